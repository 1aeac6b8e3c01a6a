# SPDX-License-Identifier: Apache-2.0
"""`heretic inspect`, `heretic verify`, `heretic doctor`: look at a model, at saved files, at the machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

from cyclopts import App, Parameter

from heretic.cli.context import Injected, Tokens
from heretic.cli.effects import Effect, command
from heretic.console import Console
from heretic.exceptions import HereticError, SaveVerificationError
from heretic.model.libraries import quick_imports


def register(app: App) -> None:
    """Add the commands to `app`."""
    command(app, "inspect", Effect.READ, settings=True)(inspect_model)
    command(app, "verify", Effect.READ)(verify)
    command(app, "doctor", Effect.READ)(doctor)


def inspect_model(
    *tokens: Tokens, probe: Annotated[bool, Parameter(negative=())] = False, context: Injected
) -> int:
    """Show what MODEL is made of: writers of the residual stream, template, size, memory needs.

    Parameters
    ----------
    probe
        Load the weights and run the template through the model as well.
    """
    resolved = context.resolve(tokens)
    with quick_imports():
        from heretic import main

    found = main.inspect(resolved, console=context.console, probe=probe)
    context.console.document(found)
    show_findings(context.console, found)
    context.console.next_command(f"heretic {resolved.settings.model} --dry-run")
    return 0


def verify(path: str, *, base: str | None = None, context: Injected) -> int:
    """Check a saved model: checksums, tensors against the base, reload, figures measured again.

    Parameters
    ----------
    path
        Folder that heretic wrote.
    base
        The model it was made from; without it what the manifest names.
    """
    with quick_imports():
        from heretic import main

    found = main.verify(path, base, console=context.console)
    context.console.document(found)
    show_findings(context.console, found)
    if not _passed(found):
        problems = found.get("problems")
        raise SaveVerificationError(
            f"{path} is not what was saved",
            details=tuple(map(str, problems)) if isinstance(problems, Sequence) else (),
            hint="Export the trial again: heretic export NAME --trial N.",
        )
    context.console.next_command(f"heretic chat {path}")
    return 0


def doctor(*, context: Injected) -> int:
    """Check the environment: packages, accelerator, disk, caches, login, and one real edit on the bundled
    model.
    """
    with quick_imports():
        from heretic import main

    found = main.doctor(context.console)
    context.console.document(found)
    show_findings(context.console, found)
    if not _passed(found):
        raise HereticError("a check failed", hint="The list above says which and what cures it.")
    context.console.next_command("heretic demo")
    return 0


def _passed(found: Mapping[str, object]) -> bool:
    """False when the findings say so: `passed`, `ok` or a check whose status is `fail`."""
    for key in ("passed", "ok"):
        if key in found:
            return bool(found[key])
    checks = found.get("checks", ())
    return not any(
        isinstance(check, Mapping) and check.get("status") == "fail"
        for check in (checks if isinstance(checks, Sequence) else ())
    )


def show_findings(console: Console, found: Mapping[str, object]) -> None:
    """A document as text: plain values as facts, lists of records as tables."""
    plain = {_words(key): shown(value) for key, value in found.items() if not _is_structure(value)}
    console.facts(plain, result=True)
    for key, value in found.items():
        if isinstance(value, Mapping) and value:
            inner = {_words(str(name)): shown(entry) for name, entry in value.items()}
            console.facts(inner, title=f"\n{_words(key)}", result=True)
        elif isinstance(value, Sequence) and not isinstance(value, str) and value:
            _show_list(console, _words(key), value)


def _show_list(console: Console, title: str, entries: Sequence[object]) -> None:
    records = [entry for entry in entries if isinstance(entry, Mapping)]
    if len(records) == len(entries):
        columns = list(dict.fromkeys(str(name) for record in records for name in record))
        rows = [[shown(record.get(name, "")) for name in columns] for record in records]
        console.table([_words(column) for column in columns], rows, title=title, result=True)
        return
    console.result(f"\n{title}")
    for entry in entries:
        console.result(f"  - {shown(entry)}")


def shown(value: object) -> str:
    """A value of a document for reading: yes and no, four digits, nested values on one line."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{_words(str(name))} {shown(entry)}" for name, entry in value.items()) or "none"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(shown(entry) for entry in value) or "none"
    return str(value)


def _words(key: str) -> str:
    return key.replace("_", " ")


def _is_structure(value: object) -> bool:
    return isinstance(value, (Mapping, Sequence)) and not isinstance(value, str)
