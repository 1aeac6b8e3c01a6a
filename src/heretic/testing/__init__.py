# SPDX-License-Identifier: Apache-2.0
"""Shipped test kit: pico models of many architectures and tokenizers made of bytes, without any download."""
