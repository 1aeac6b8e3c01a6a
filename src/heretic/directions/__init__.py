# SPDX-License-Identifier: Apache-2.0
"""Residuals become direction banks; the consumer of a bank cannot tell which method made it."""
