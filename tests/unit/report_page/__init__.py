# SPDX-License-Identifier: Apache-2.0
"""The report of a study as a page, made from a real storage and read back by a parser of HTML."""
