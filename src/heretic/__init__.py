# SPDX-License-Identifier: Apache-2.0
"""A workbench that finds, measures, removes, weakens or strengthens a behavioural direction of a language
model, and writes the result into its weights.

`heretic.main.run` is the method on one screen; docs/library.md shows the parts on their own. Importing this
package loads nothing.
"""

from __future__ import annotations

from typing import Final

__version__: Final = "0.1.0"
