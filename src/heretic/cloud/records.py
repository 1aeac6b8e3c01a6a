# SPDX-License-Identifier: Apache-2.0
"""Study and log of a machine, copied home before it is paused or ended (reliability H07)."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from heretic.cloud.configuration import VastConfig
from heretic.cloud.errors import RemoteCommandError
from heretic.cloud.fetching import copy_command
from heretic.cloud.layout import Layout
from heretic.cloud.remote import Remote, python_program
from heretic.cloud.ssh import child_environment
from heretic.cloud.types import Instance

FOLDER: Final = "records"
COPY_S: Final = 600.0

PROGRAM: Final = """
import os, shutil, sqlite3, sys
workspace, target = sys.argv[1:3]
os.makedirs(target, exist_ok=True)
study = os.path.join(workspace, "heretic_study.db")
if os.path.exists(study):
    source, copy = sqlite3.connect(study), sqlite3.connect(os.path.join(target, "heretic_study.db"))
    source.backup(copy)  # consistent, also while a run writes
    copy.close(), source.close()
for name in os.listdir(workspace):
    beside = name.startswith("heretic_study.db.") and not name.endswith(".lock")
    if beside or name == "heretic.log":
        shutil.copyfile(os.path.join(workspace, name), os.path.join(target, name))
print(len(os.listdir(target)))
"""


def fetch_records(
    remote: Remote, layout: Layout, instance: Instance, configuration: VastConfig, environ: Mapping[str, str]
) -> Path | None:
    """Copy study and log; the local folder, None when the machine has neither. Raises `CloudError`."""
    there = f"{layout.state}/{FOLDER}"
    words = shlex.join([layout.workspace, there])
    told = remote.run(f"{python_program(PROGRAM)} {words}", timeout_s=COPY_S).checked("copying study and log")
    if told.strip() == "0":
        return None
    here = configuration.state_dir / FOLDER / str(instance.id)
    here.mkdir(parents=True, exist_ok=True, mode=0o700)
    command = copy_command(there, here, instance, configuration, environ, resume=False)
    done = subprocess.run(
        command, capture_output=True, env=child_environment(), check=False, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        raise RemoteCommandError(
            f"study and log were not copied: rsync ended with status {done.returncode}",
            hint="Look at the machine with: heretic-vast connect",
        )
    return here
