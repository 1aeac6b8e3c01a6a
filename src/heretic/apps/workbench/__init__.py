# SPDX-License-Identifier: Apache-2.0
"""The browser page: chat, compare, study, directions (requirements 9.2). Gradio is imported by the functions that build
it, and by nothing else."""
