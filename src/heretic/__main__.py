# SPDX-License-Identifier: Apache-2.0
"""`python -m heretic` is the command `heretic`."""

from __future__ import annotations

from heretic.cli import main

if __name__ == "__main__":
    main()
