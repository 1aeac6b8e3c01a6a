# SPDX-License-Identifier: Apache-2.0
"""The search as a state machine in storage: space, runner (ask and tell), ledger, resume, selection."""
