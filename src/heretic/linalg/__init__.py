# SPDX-License-Identifier: Apache-2.0
"""Pure functions, tensor in, tensor out: everything that can be computed without a model."""
