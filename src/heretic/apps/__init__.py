# SPDX-License-Identifier: Apache-2.0
"""Programs over finished models and studies: the chat session, the terminal chat, the menu."""
