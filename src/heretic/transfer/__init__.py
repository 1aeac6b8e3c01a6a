# SPDX-License-Identifier: Apache-2.0
"""Priors of model families become the first points of a search; knows nothing of models or of the study."""
