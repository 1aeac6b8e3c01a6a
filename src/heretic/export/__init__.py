# SPDX-License-Identifier: Apache-2.0
"""Writing the chosen edit into the files of a model, and proving what was written (algorithms section 10)."""
