# SPDX-License-Identifier: Apache-2.0
"""One worker as a process of its own: `python worker_program.py FOLDER [HANG] [RATE]`; the storage address is in
the variable STORAGE.

HANG: a comma list of indexes at which it stops for good (or until it is continued, for those behind a `~`);
RATE: how fast its monotonic clock runs.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from heretic.study.sharing import Terms, join_study, share
from heretic.study.space import canonical_key, default_space
from heretic.study.state import open_study
from heretic.study.types import FinishedTrial, Json, Proposal, Scores, TrialFailure
from heretic.study.workers import search_shared

SPACE = default_space(("attn.o_proj", "mlp.down_proj"), 6)
FINGERPRINT: dict[str, Json] = {"seed": 1}
NAME = "s"


def measure(proposal: Proposal) -> Scores:
    weights = [
        float(proposal.parameters[f"{name}.max_weight"] or 0.0) for name in ("attn.o_proj", "mlp.down_proj")
    ]
    rate = math.exp(-weights[0] - 0.7 * weights[1])
    divergence = 0.1 * weights[0] ** 2 + 0.2 * weights[1] ** 2 + 1e-3
    return Scores((rate, divergence), {"effect": rate - 0.9}, {"rate": rate, "hits": 1, "n": 2})


def create(storage: str, terms: Terms) -> None:
    """The study as a parent makes it before it starts children."""
    with open_study(storage, NAME, fingerprint=FINGERPRINT) as study:
        share(study, terms)


def work(
    storage: str,
    folder: Path,
    *,
    hang: Sequence[str] = (),
    rate: float = 1.0,
    batch: int = 2,
    pause_s: float = 0.01,
) -> dict[int, str]:
    """Takes part until the study is complete; index -> what became of this worker's own results."""
    told: dict[int, str] = {}

    def evaluate(
        proposals: Sequence[Proposal], finished: Sequence[FinishedTrial]
    ) -> list[Scores | TrialFailure]:
        with (folder / "evaluated").open("a", encoding="utf-8") as record:
            for proposal in proposals:
                record.write(f"{os.getpid()} {proposal.index} {canonical_key(proposal.parameters)}\n")
        for proposal in proposals:
            if str(proposal.index) in hang:
                (folder / f"hangs-{os.getpid()}").touch()
                time.sleep(600)
            if f"~{proposal.index}" in hang:
                (folder / f"hangs-{os.getpid()}").touch()
                while not (folder / "go-on").exists():
                    time.sleep(0.02)
        time.sleep(pause_s)
        return [measure(proposal) for proposal in proposals]

    with join_study(storage, NAME, fingerprint=FINGERPRINT, terms=Terms(1)) as study:
        search_shared(
            study,
            evaluate,
            space=SPACE,
            seed=1,
            batch_size=batch,
            n_startup_trials=6,
            poll_s=0.05,
            clock=lambda: rate * time.monotonic() + 1e6 * (rate - 1.0),
            on_told=lambda index, outcome: told.update({index: type(outcome).__name__}),
        )
    return told


def main(folder: str, hang: str = "", rate: str = "1") -> None:
    logging.basicConfig(level="WARNING", format="%(message)s", stream=sys.stderr)
    told = work(os.environ["STORAGE"], Path(folder), hang=hang.split(","), rate=float(rate))
    (Path(folder) / f"told-{os.getpid()}").write_text(" ".join(map(str, sorted(told))), encoding="ascii")


if __name__ == "__main__":
    main(*sys.argv[1:])
