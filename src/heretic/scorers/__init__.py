# SPDX-License-Identifier: Apache-2.0
"""One question each: does this reply show the behaviour, is it still a reply at all."""
