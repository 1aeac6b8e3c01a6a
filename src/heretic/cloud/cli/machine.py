# SPDX-License-Identifier: Apache-2.0
"""`heretic-vast setup`, `run`, `exec`, `extend` (requirements R-VAS-25 to 27, reliability H06, H09, H10)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Final

from cyclopts import App, Parameter

from heretic import __version__
from heretic.cli.effects import Effect
from heretic.cloud.cli.context import CloudContext, Injected, Switch, command
from heretic.cloud.cli.follow import Tail, follow_until_ended
from heretic.cloud.cli.reach import reached
from heretic.cloud.clock import utc
from heretic.cloud.consent import Act, require_consent
from heretic.cloud.discrepancies import guard_findings
from heretic.cloud.errors import CloudError
from heretic.cloud.guard import check_hours
from heretic.cloud.jobs import Plan, check_flags, end, require_disk, start, study_name
from heretic.cloud.layout import Layout
from heretic.cloud.lease import renew_lease
from heretic.cloud.models import model_size
from heretic.cloud.provision import provision, source_of, steps
from heretic.cloud.remote import Answer, Remote, login_shell, quoted
from heretic.cloud.snapshot import Snapshot, look
from heretic.cloud.targets import check_model, parse_id
from heretic.cloud.types import Instance, Secret
from heretic.exceptions import ConfigurationError, ConfirmationRequiredError, HereticError

LONGEST_COMMAND: Final = 10_000
LONGEST_TIMEOUT_S: Final = 86_400.0
DESTRUCTIVE: Final = re.compile(
    r"\brm\b[^|;&\n]*\s-{1,2}\w*(r|f|R)|\b(p?kill|killall|mkfs(\.\w+)?|shutdown|reboot|poweroff|halt|wipefs|shred)\b"
    r"|\bdd\b.*\bof=|\bgit\s+reset\s+--hard\b|\bgit\s+clean\b|\bdrop\s+(table|database)\b|\bfind\b.*-delete\b"
    r"|>\s*/dev/(sd|nvme|vd)",
    re.IGNORECASE | re.DOTALL,
)
"""Commands that are asked about first (R-VAS-27). A net for accidents, not a boundary: the machine is the user's."""

OptionalId = Annotated[str | None, Parameter()]


def register(app: App) -> None:
    """Add the commands to `app`."""
    command(app, "setup", Effect.WRITE_LOCAL)(setup)
    command(app, "run", Effect.WRITE_LOCAL)(run)
    command(app, "exec", Effect.DESTROY_REMOTE)(execute)
    command(app, "extend", Effect.SPEND)(extend)


def setup(instance: OptionalId = None, *, source: str | None = None, context: Injected) -> int:
    """Install this version on the machine and let its doctor look at it; may be repeated.

    Parameters
    ----------
    instance
        ID; without it the only running instance that this program rented.
    source
        Git URL or wheel in place of the package index.
    """
    layout = Layout(context.configuration().workspace)
    origin = source_of(source, __version__, layout)
    plan = steps(origin, __version__, layout)
    if context.flags.dry_run:
        parse_id(instance)
        return context.show_remote([step.command for step in plan])
    with reached(context, instance, "setup") as (found, remote, _):
        context.standing = (f"{found.title} goes on running and costing; setup may be repeated.",)
        provision(remote, origin, plan, layout, context.console.note)
        _warn_of_guard(context, found, look(remote, layout, log_lines=1))
        context.console.document(
            {"id": found.id, "version": __version__, "steps": [step.title for step in plan]}
        )
        context.console.result(f"{found.title} has heretic {__version__}, and its doctor found nothing wrong")
        context.console.next_command(f"heretic-vast run MODEL {found.id}")
    return 0


def _warn_of_guard(context: CloudContext, found: Instance, snapshot: Snapshot) -> None:
    """A lease that the machine cannot keep is said before hours are spent."""
    rental = context.ledger().of(found)
    for line in guard_findings(snapshot, rental is not None and rental.max_hours > 0):
        context.console.warn(line, f"A second guard runs here: heretic-vast guard {found.id}")


def run(
    model: str, instance: OptionalId = None, *, study: str | None = None, foreground: Switch = False,
    restart: Switch = False, send_hf_token: Switch = False,
    weights_gb: Annotated[float | None, Parameter(name="--weights-gb")] = None, context: Injected,
) -> int:  # fmt: skip
    """Start the search on the machine, detached: it outlives this command. Flags of heretic stand behind --.

    Parameters
    ----------
    model
        Hub id.
    instance
        ID; without it the only running instance that this program rented.
    study
        Name of the study in place of the model's; the same name goes on with the same study.
    foreground
        Follow the log to the end and leave with the run's exit status.
    restart
        End a run that lives, and begin the study anew; the old study keeps its trials under another name.
    send_hf_token
        Give HF_TOKEN to the run's environment; it is in the machine's memory then, and in no file.
    weights_gb
        Size of the weights in GB for the check of the disk, where it cannot be looked up.
    """
    check_model(model)
    plan = Plan(model, study_name(study or model), check_flags(context.trailing), fresh=restart)
    token = _token(context, send_hf_token)
    identity = parse_id(instance)
    if restart and context.flags.yes and identity is None:
        raise ConfirmationRequiredError(
            "--yes restarts only on an instance that is named", hint="Give its ID."
        )
    if context.flags.dry_run:
        return context.show_remote([quoted(plan.command(Layout(context.configuration().workspace)))])
    with reached(context, instance, "run") as (found, remote, layout):
        before = look(remote, layout)
        _check_machine(context, before, model, weights_gb)
        if before.job is not None and before.alive:
            if not restart:
                raise _lives(found, before)
            _restart(context, found, before, identity is not None)
            end(remote, layout, before.job, context.world.clock)
        tail = Tail(remote, layout) if foreground else None
        pid, started = start(remote, layout, plan, token)
        if not started:
            raise ConfigurationError(
                f"{found.title} runs something already (process {pid}); nothing was started",
                hint=f"Look at it: heretic-vast watch {found.id}",
            )
        return _started(context, found, remote, plan, pid, tail)


def _token(context: CloudContext, send: bool) -> Secret | None:
    if not send:
        return None
    token = context.configuration().hf_token
    if token is None:
        raise ConfigurationError(
            "--send-hf-token: there is no HF_TOKEN", hint="Set it in the environment or .env."
        )
    return token


def _check_machine(context: CloudContext, snapshot: Snapshot, model: str, weights_gb: float | None) -> None:
    """Set up, and room on the disk; a size that cannot be looked up is said and not guessed."""
    if not snapshot.ready:
        raise CloudError("heretic is not installed on the machine", hint="Run first: heretic-vast setup")
    try:
        require_disk(snapshot, model_size(model, weights_gb=weights_gb))
    except HereticError as error:
        if weights_gb is not None or type(error).__name__ == "DiskSpaceError":
            raise
        context.console.warn(
            f"the disk of the machine was not checked: {error.message}", "State --weights-gb N."
        )


def _lives(instance: Instance, snapshot: Snapshot) -> ConfigurationError:
    job = snapshot.job
    assert job is not None
    return ConfigurationError(
        f"{instance.title} runs {job.model} already (process {job.pid}, study {job.study}); nothing was started",
        hint=f"Look at it with 'heretic-vast watch {instance.id}', or end it with --restart.",
        data={"pid": job.pid, "study": job.study},
    )


def _restart(context: CloudContext, instance: Instance, snapshot: Snapshot, explicit: bool) -> None:
    job = snapshot.job
    assert job is not None
    lines = (
        f"the run of {job.model} (process {job.pid}, since {utc(job.started)}) is ended",
        "its finished trials stay in the old study, which gets another name; the search begins at 0",
        "the machine goes on costing money",
    )
    require_consent(
        context.console, Act(f"Restart on {instance.title}", lines, "the instance ID"), explicit=explicit
    )


def _started(
    context: CloudContext, found: Instance, remote: Remote, plan: Plan, pid: int, tail: Tail | None
) -> int:
    """Say so only after the machine shows the process (R-VAS-38)."""
    layout = Layout(context.configuration().workspace)
    now = look(remote, layout)
    if now.job is None or now.job.pid != pid or not (now.alive or now.job.code is not None):
        raise CloudError(
            f"the run was started as process {pid}, and the machine does not show it",
            hint=f"Look at: heretic-vast logs {found.id}",
        )
    context.standing = (
        f"The run goes on on {found.title}, which goes on costing: heretic-vast watch {found.id}",
    )
    context.console.document(
        {"id": found.id, "pid": pid, "study": plan.study, "log": layout.log, "model": plan.model}
    )
    context.console.result(
        f"started as process {pid} on {found.title}, study {plan.study}; it outlives this command"
    )
    if tail is not None:
        code = follow_until_ended(context, remote, layout, tail)
        context.console.document({"remote_status": code})
        context.console.next_command(
            f"heretic-vast download {found.id}" if code == 0 else f"heretic-vast logs {found.id}"
        )
        return code
    context.console.next_command(f"heretic-vast watch {found.id}")
    return 0


def execute(
    text: Annotated[str, Parameter(name="command", allow_leading_hyphen=True)],
    instance: OptionalId = None, *, timeout: float = 60.0, context: Injected,
) -> int:  # fmt: skip
    """Run COMMAND in a login shell of the machine, unchanged; leaves with its exit status.

    Parameters
    ----------
    text
        One word of the command line, at most 10,000 characters; nothing of it is expanded here.
    instance
        ID; without it the only running instance that this program rented.
    timeout
        Seconds until the answer must be there.
    """
    identity = parse_id(instance)
    if not text.strip() or len(text) > LONGEST_COMMAND or "\0" in text:
        raise ConfigurationError(
            f"the command has {len(text)} characters", hint=f"Give 1 to {LONGEST_COMMAND} characters."
        )
    if not 0 < timeout <= LONGEST_TIMEOUT_S:
        raise ConfigurationError(
            f"--timeout is {timeout:g}", hint=f"Give seconds up to {LONGEST_TIMEOUT_S:.0f}."
        )
    remote_text = shell_text(text)
    if context.flags.dry_run:
        return context.show_remote([remote_text])
    with reached(context, instance, "exec") as (found, remote, _):
        if DESTRUCTIVE.search(text):
            act = Act(
                f"Run on {found.title}: {text}",
                ("it looks destructive; what it removes is gone",),
                "the instance ID",
            )
            require_consent(context.console, act, explicit=identity is not None)
        context.standing = (f"The command may go on on {found.title}; the machine goes on costing.",)
        lines = WholeLines(context.console.stream)
        answer = remote.run(remote_text, timeout_s=timeout, on_output=lines.write)
        lines.end()
    return _told(context, found, answer)


class WholeLines:
    """Hands on whole lines: a secret that is cut in two by the network would not be recognised."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show
        self._open = ""

    def write(self, text: str) -> None:
        """Take a piece."""
        whole, newline, self._open = (self._open + text).rpartition("\n")
        if newline:
            self._show(f"{whole}\n")

    def end(self) -> None:
        """Show what has no line end."""
        if self._open:
            self._show(self._open)


def shell_text(text: str) -> str:
    """The command for a login shell. One that ends in a background process must not hold the connection open, so its
    output goes through files, and the connection ends with the shell (R-VAS-27).
    """
    if not text.rstrip().endswith("&") or text.rstrip().endswith("&&"):
        return login_shell(text)
    return (
        "d=$(mktemp -d) && { "
        f'{login_shell(text)} >"$d/out" 2>"$d/err" </dev/null; code=$?; cat "$d/out"; cat "$d/err" >&2; '
        'rm -r "$d"; exit $code; }'
    )


def _told(context: CloudContext, found: Instance, answer: Answer) -> int:
    for line in answer.err.splitlines():
        context.console.log_line(line)
    context.console.document(
        {"id": found.id, "remote_status": answer.code, "out": answer.out, "err": answer.err}
    )
    if answer.code:
        context.console.document({"status": "failed"})
    return answer.code


def extend(hours: float, instance: OptionalId = None, *, context: Injected) -> int:
    """Let the lease of the machine end HOURS from now; asks first.

    Parameters
    ----------
    hours
        At most 24.
    instance
        ID; without it the only running instance that this program rented.
    """
    check_hours(hours)
    identity = parse_id(instance)
    if context.flags.yes and identity is None:
        raise ConfirmationRequiredError("--yes extends only an instance that is named", hint="Give its ID.")
    if context.flags.dry_run:
        return context.show_remote([f"the lease ends {hours:g} h from now"])
    with reached(context, instance, "extend") as (found, remote, _):
        price = "an unknown price" if found.hourly is None else f"at most ${found.hourly * hours:.2f}"
        lines = (f"it may run {hours:g} h from now: {price}", "then its guard pauses it")
        require_consent(
            context.console,
            Act(f"Extend the lease of {found.title}", lines, "the instance ID"),
            explicit=identity is not None,
        )
        until = renew_lease(
            remote, context.ledger(), context.configuration(), found, hours, context.world.clock
        )
    context.console.document({"id": found.id, "lease_end": until})
    context.console.result(f"the lease of {found.title} ends {utc(until)}")
    context.console.next_command(f"heretic-vast watch {found.id}")
    return 0
