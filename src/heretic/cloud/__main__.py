# SPDX-License-Identifier: Apache-2.0
"""`python -m heretic.cloud` is the command `heretic-vast`."""

from __future__ import annotations

from heretic.cloud.cli import main

if __name__ == "__main__":
    main()
