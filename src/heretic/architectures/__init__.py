# SPDX-License-Identifier: Apache-2.0
"""What a network is made of: sites, families as data, total resolution, coverage."""
