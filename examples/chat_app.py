#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The workbench page from a script of your own: `python examples/chat_app.py [MODELS_DIR [PORT]]`.

Needs the extra `chat`: pip install 'heretic-workbench[chat]'. `heretic ui` is the same with all its flags.
"""

from __future__ import annotations

import sys
from pathlib import Path

from heretic.apps.discovery import Places
from heretic.apps.workbench.server import Options, serve
from heretic.console import Console
from heretic.demo import model_path


def main() -> None:
    """Serve the models of a folder, and the bundled demo model for a start, on this machine only."""
    models = Path(sys.argv[1] if len(sys.argv) > 1 else "models")
    places = Places(
        models_dir=models,
        named={"Bundled demo model": str(model_path())},
        storage="sqlite:///heretic_study.db",
    )
    port = int(sys.argv[2]) if len(sys.argv) > 2 else 7860
    serve(Options(places=places, history=Path("chat_history"), port=port), Console())


if __name__ == "__main__":
    main()
