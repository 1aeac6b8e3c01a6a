# SPDX-License-Identifier: Apache-2.0
"""`python -m heretic.cli`."""

from heretic.cli import main

if __name__ == "__main__":
    main()
