# SPDX-License-Identifier: Apache-2.0
"""Tests of the cloud room against a provider on 127.0.0.1 and, for the machine, a real SSH server."""
