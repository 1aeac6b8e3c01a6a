# SPDX-License-Identifier: Apache-2.0
"""`heretic ui`: the workbench page in a browser (requirements R-CLI-15)."""

from __future__ import annotations

from pathlib import Path

from cyclopts import App

from heretic.cli.context import Injected, Tokens
from heretic.cli.effects import Effect, command
from heretic.model.libraries import quick_imports


def register(app: App) -> None:
    """Add the command to `app`."""
    command(app, "ui", Effect.READ, settings=True)(ui)


def ui(*tokens: Tokens, context: Injected) -> int:
    """Open a page to chat, compare models, watch a search and look at directions. MODEL is offered beside the models
    folder.

    The settings host, port, share, auth, models_dir, chat_history_dir and storage say where and for whom.
    """
    # A page needs no model to start with, which a run does.
    resolved = context.peek(tokens)
    settings = resolved.settings
    context.console.set_progress(settings.progress)
    context.configure_logs(settings.log_level, settings.log_file, settings.structured_logging)
    for notice in resolved.notices:
        context.console.note(f"note: {notice}")
    with quick_imports():
        from heretic.apps.discovery import Places
        from heretic.apps.workbench.server import Options, require_gradio, serve
        from heretic.demo import model_path
        from heretic.phases.loading import load_options

        require_gradio()
    named = {settings.model: settings.model} if settings.model else {}
    options = Options(
        places=Places(
            models_dir=settings.models_dir,
            named={**named, "Bundled demo model": str(model_path())},
            storage=settings.storage,
            base=Path.cwd(),
        ),
        history=settings.chat_history_dir,
        host=settings.host,
        port=settings.port,
        share=settings.share,
        auth=settings.auth,
        load=load_options(settings),
        offline=settings.offline,
    )
    serve(options, context.console)
    return 0
