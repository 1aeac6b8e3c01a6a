# SPDX-License-Identifier: Apache-2.0
"""The report of a study as one page for a browser, made from what the study keeps; no model is loaded.

`record` reads the study, `sections` say what is known in words and tables, `figures` draw, `page` writes the HTML and
`make` publishes the folder.
"""
