# SPDX-License-Identifier: Apache-2.0
"""The program as a user starts it."""
