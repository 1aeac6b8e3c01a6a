# SPDX-License-Identifier: Apache-2.0
"""Load, tokenise, forward, weight access by site; nothing else."""
