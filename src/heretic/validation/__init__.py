# SPDX-License-Identifier: Apache-2.0
"""What an edit cost beside its KL: knowledge questions, plain text, lengths, hedging, text that is none; as a report
before and after (requirements 6.4).
"""
