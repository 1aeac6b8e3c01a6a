# SPDX-License-Identifier: Apache-2.0
"""Questions to a person at a terminal. Without a terminal each of them is an error that names the flag
(R-HDL-03).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

from heretic.exceptions import ConfirmationRequiredError
from heretic.sanitise import printable, single_line

_STYLE = (
    ("qmark", "fg:ansicyan bold"),
    ("pointer", "fg:ansicyan bold"),
    ("highlighted", "bold"),
    ("answer", "bold"),
)


class Questions:
    """The asking half of the console. `assume_yes` is the flag --yes; `interactive`: both ends are a
    terminal.
    """

    def __init__(
        self, *, stream: TextIO, interactive: bool, assume_yes: bool = False, color: bool = True
    ) -> None:
        self._stream = stream
        self.interactive = interactive
        self.assume_yes = assume_yes
        self._color = color

    def choose(self, question: str, choices: Sequence[str], *, flag: str, default: int = 0) -> int:
        """The index of the chosen line. Raises `ConfirmationRequiredError` without a terminal,
        KeyboardInterrupt on Ctrl-C.
        """
        self._need_terminal(question, flag)
        import questionary

        entries = [questionary.Choice(single_line(title), value=index) for index, title in enumerate(choices)]
        prompt = questionary.select(
            single_line(question),
            choices=entries,
            default=entries[default] if entries else None,
            qmark="?",
            pointer=">",
            instruction="(arrow keys, Enter)",
            **self._look(),
        )
        return int(prompt.unsafe_ask())

    def ask(
        self,
        question: str,
        *,
        flag: str,
        default: str = "",
        secret: bool = False,
        validate: Callable[[str], bool | str] | None = None,
    ) -> str:
        """A line of text. secret: not echoed. validate: True, or what is wrong with the answer.

        Raises `ConfirmationRequiredError` without a terminal, KeyboardInterrupt on Ctrl-C, EOFError on
        Ctrl-D.
        """
        self._need_terminal(question, flag)
        import questionary

        kind = questionary.password if secret else questionary.text
        answer = kind(
            single_line(question), default=default, validate=validate, qmark="?", **self._look()
        ).unsafe_ask()
        return printable(str(answer)).strip()

    def read_line(self, prompt: str) -> str:
        """A line typed at a bare prompt, for the chat; raises as `ask` does."""
        self._need_terminal(prompt, "a terminal")
        import questionary

        answer = questionary.text(single_line(prompt), qmark="", **self._look()).unsafe_ask()
        return printable(str(answer)).strip()

    def confirm(self, question: str, *, flag: str, default: bool = False) -> bool:
        """Yes or no, for things that can be undone; `--yes` answers yes."""
        if self.assume_yes:
            return True
        self._need_terminal(question, flag)
        import questionary

        return bool(
            questionary.confirm(
                single_line(question), default=default, qmark="?", **self._look()
            ).unsafe_ask()
        )

    def confirm_word(
        self,
        question: str,
        word: str = "yes",
        *,
        flag: str = "--yes",
        lost: Sequence[str] = (),
        explicit: bool = True,
    ) -> None:
        """Wait for exactly `word` before something is lost for good (R-CLI-50); anything else raises.

        lost: what will be gone, one line each. explicit: the object was named by the user (a path, a name);
        only then does `--yes` count. Raises `ConfirmationRequiredError`; nothing has been changed.
        """
        if self.assume_yes and explicit:
            return
        details = tuple(lost)
        if not self.interactive:
            named = "" if explicit else ", together with the explicit path or name"
            raise ConfirmationRequiredError(
                f"a confirmation is needed and there is no terminal: {single_line(question)}",
                hint=f"Give {flag}{named} to confirm from a script.",
                details=details,
            )
        self._announce_loss(details)
        answer = self.ask(f"{single_line(question)} Type {word!r} to go on:", flag=flag)
        if answer != word:
            raise ConfirmationRequiredError(
                f"the answer was {answer!r} and not {word!r}; nothing was changed",
                hint=f"Type exactly {word!r}.",
                details=details,
            )

    def _announce_loss(self, lost: Sequence[str]) -> None:
        for line in lost:
            self._stream.write(f"  will be lost: {single_line(line)}\n")
        self._stream.write("  This cannot be undone.\n")
        self._stream.flush()

    def _need_terminal(self, question: str, flag: str) -> None:
        # Tested first: on a pipe a bare newline would silently pick the first choice.
        if not self.interactive:
            raise ConfirmationRequiredError(
                f"a question has no answer and there is no terminal: {single_line(question)}",
                hint=f"Give the answer with {flag}.",
            )

    def _look(self) -> Mapping[str, Any]:
        """Style and the stream: questions are messages, so they go to stderr like all of them."""
        import questionary
        from prompt_toolkit.output import ColorDepth
        from prompt_toolkit.output.defaults import create_output

        look = {"style": questionary.Style(list(_STYLE)), "output": create_output(stdout=self._stream)}
        return look if self._color else {**look, "color_depth": ColorDepth.MONOCHROME}
