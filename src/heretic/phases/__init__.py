# SPDX-License-Identifier: Apache-2.0
"""The steps of a run: the only rooms that see the settings and the rooms above and below together."""
