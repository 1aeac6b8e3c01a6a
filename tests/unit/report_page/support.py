# SPDX-License-Identifier: Apache-2.0
"""A small real study with everything that a report shows, and a page as a tree of elements."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Final

import torch

from heretic.apps.report_page.make import Made
from heretic.apps.report_page.record import PageRecord
from heretic.linalg.intervals import wilson
from heretic.phases.report_store import residual_view, store_report, store_residual_view
from heretic.report import CategoryRate, Divergence, Example, Measurement, Rate, RunReport, TrialReport
from heretic.study.runner import run_study
from heretic.study.space import default_space
from heretic.study.state import Study, open_study
from heretic.study.types import FinishedTrial, Json, Proposal, Scores

LAYERS: Final = 6
SPACE: Final = default_space(("attn.o_proj", "mlp.down_proj"), LAYERS)
FINGERPRINT: Final[dict[str, Json]] = {
    "model": "tiny", "settings": {"behaviour": {"name": "refusal"}, "goal": "suppress", "strategy": "single"},
}  # fmt: skip
KEYS: Final = (
    "summary", "before-after", "front", "kernels", "separability", "projections", "importance", "replies",
    "certificate", "coverage", "limits", "origin", "commands",
)  # fmt: skip
VOID: Final = frozenset({"meta", "link", "br", "img", "hr", "input"})


@dataclass(frozen=True)
class Whole:
    """A report of a run that ended well."""

    storage: str
    record: PageRecord
    made: Made
    page: str


# A page as a tree


@dataclass
class Element:
    """An element with its own text and its children."""

    name: str
    attributes: dict[str, str]
    children: list[Element] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)

    def all(self, name: str) -> list[Element]:
        """Descendants of that name, in order."""
        found = [child for child in self.children if child.name == name]
        return [
            entry
            for child in self.children
            for entry in ([child] if child in found else []) + child.all(name)
        ]

    @property
    def text(self) -> str:
        """All text inside, spaces collapsed."""
        inside = "".join(self.pieces) + " " + " ".join(child.text for child in self.children)
        return " ".join(inside.split())


class Tree(HTMLParser):
    """Builds the tree; a tag that is closed wrongly is an error, so markup from outside would be seen."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("root", {})
        self.open = [self.root]
        self.feed(page)
        self.close()
        assert [element.name for element in self.open] == ["root"]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, names)
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].children.append(Element(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].name == tag, (self.open[-1].name, tag)
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].pieces.append(data)


@cache
def tree(page: str) -> Element:
    """The page, parsed once."""
    return Tree(page).root


def section(page: str, key: str) -> Element:
    """The section of that anchor."""
    (found,) = [entry for entry in tree(page).all("section") if entry.attributes["id"] == key]
    return found


def table(page: str, caption: str) -> list[list[str]]:
    """Rows of the table of that caption, the headings first."""
    (found,) = [entry for entry in tree(page).all("table") if entry.all("caption")[0].text == caption]
    return [[cell.text for cell in row.children] for row in found.all("tr")]


# A study


def rate(hits: int, n: int) -> Rate:
    return Rate(hits, n, *wilson(hits, n))


def measured(where: str, hits: int, kl: float | None, n: int = 40) -> Measurement:
    found = None if kl is None else Divergence(kl, 0.01, kl, 2 * kl, 3 * kl, 1.5 * kl, 30, 150)
    return Measurement(where, rate(hits, n), found, over_rate=rate(1, 20))


def evaluate(proposals: Sequence[Proposal], finished: Sequence[FinishedTrial]) -> list[Scores]:
    """A cheap world: more strength, fewer hits, more KL; every fifth trial is ended early."""
    found = []
    for proposal in proposals:
        peak = float(str(proposal.parameters["attn.o_proj.max_weight"] or 0.0))
        hits, kl = round(40 * max(0.0, 1.0 - peak)), 0.002 + 0.1 * peak * peak
        kept: dict[str, Json] = {
            "status": "complete",
            "rate": hits / 40,
            "hits": hits,
            "n": 40,
            "kl_mean": kl,
        }
        kept |= {"kl_standard_error": 0.002, "kl_n": 30, "kl_tokens": 150, "kl_first_token": kl}
        kept["strengths"] = {"model.layers.3.self_attn.o_proj.weight": [peak]}
        if proposal.index % 5 == 4:
            kept |= {"status": "rejected_by_kl", "rate": None, "hits": None, "n": None}
        found.append(Scores((hits / 40, kl), {"effect": peak * -1.0}, kept))
    return found


def report(**changes: Any) -> RunReport:
    """Everything a run measured, with figures that occur once."""
    strengths = {
        "model.layers.3.self_attn.o_proj.weight": [0.731],
        "model.layers.4.self_attn.o_proj.weight": [0.412, 0.5],
        "model.layers.4.mlp.down_proj.weight": [1.25],
    }
    parameters: dict[str, object] = {
        "direction_scope": "global", "direction_index": 3.25, "attn.o_proj.max_weight": 0.75,
        "attn.o_proj.max_weight_position": 3.1, "attn.o_proj.min_weight": 0.25, "attn.o_proj.min_weight_distance": 1.5,
        "mlp.down_proj.max_weight": 0.0, "mlp.down_proj.max_weight_position": None,
    }  # fmt: skip
    chosen = TrialReport(
        7, parameters, measured("search", 3, 0.0311), measured("held_out", 5, 0.0417), (), strengths
    )
    other = TrialReport(2, parameters, measured("search", 20, 0.0123), None, ("loop",), {})
    facts: dict[str, Any] = {
        "status": "complete", "model": "/home/anna/models/tiny", "behaviour": "refusal", "goal": "suppress",
        "strategy": "single", "study": {"name": "one"},
        "settings": {
            "seed": {"value": 11, "source": "command line"}, "dtypes": {"value": ["auto"], "source": "default"},
        },
        "baseline": measured("held_out", 38, None), "search_baseline": measured("search", 39, None),
        "noise_floor": 2.5e-6, "front": [chosen, other], "chosen": chosen, "reason": "the lowest rate "
        "within the limits",
        "separable": "trial 7 is separable from trial 2", "verified": measured("saved", 6, 0.0419),
        "verification": {"checksums": "match", "logit_difference": 1.25e-5, "changed_tensors": 3},
        "output": "/home/anna/out/tiny-heretic", "uploaded": None, "timings": {}, "phases": {"search": 61.0},
        "degradations": ["cones are off: too few prompts"],
        "coverage": {
            "family": "llama", "share": 0.875, "writers": 12, "components": ["attn.o_proj", "mlp.down_proj"],
            "skipped": ["model.embed_tokens.weight: excluded: tied"],
        },
        "data": {
            "bad": {"source": "heretic:refusal-bad", "rows": 64, "duplicates": 3, "content_hash": "abcdef0123456789"}
        },
        "environment": {"python": "3.11.7"}, "examples": [Example("How?", "I cannot.", "Like this.")],
        "categories": [CategoryRate("locks", rate(9, 10), rate(2, 10))],
        "controls": {"random directions": measured("held_out", 37, 0.0007)},
        "next_command": "heretic chat /home/anna/out",
    }  # fmt: skip
    return RunReport(**{**facts, **changes})


def site(path: str = "model.layers.3.self_attn.o_proj.weight") -> dict[str, object]:
    return {
        "path": path, "layer": 3, "component": "attn.o_proj", "dtype": "F32", "wanted": [0.731], "achieved": [0.7309],
        "leftover": 0.2691, "relative_change": 0.0666, "realised": 0.9999, "protected_change": None,
    }  # fmt: skip


def keep_residuals(study: Study) -> None:
    generator = torch.Generator().manual_seed(0)
    sides = [torch.randn(count, LAYERS, 8, generator=generator) for count in (30, 25)]
    sides[0][:, :, 0] += 4.0
    directions = torch.zeros(LAYERS, 8)
    directions[:, 0] = 1.0
    view = residual_view(
        sides[0], sides[1], directions, auroc=[0.81, 0.82, 0.83, 0.84, 0.85, 0.8],
        effect_size=[1.0, 2.0, 3.0, 3.75, 2.5, 2.0], stability=[0.9] * LAYERS,
    )  # fmt: skip
    store_residual_view(study, view)


@cache
def rows_of(trials: int) -> bytes:
    """The database of a study of that many real rows."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        path = Path(folder, "study.db")
        with open_study(f"sqlite:///{path}", "one", fingerprint=FINGERPRINT) as study:
            run_study(study, evaluate, space=SPACE, seed=0, n_trials=trials, batch_size=trials, sampler="qmc")
        return path.read_bytes()


def searched(folder: Path, trials: int = 40) -> str:
    """A storage with a study that was searched and nothing else kept."""
    (folder / "study.db").write_bytes(rows_of(trials))
    return f"sqlite:///{folder / 'study.db'}"


def add_report(
    storage: str, document: Mapping[str, object], certificate: Sequence[Mapping[str, object]] = ()
) -> None:
    with open_study(storage, "one", fingerprint=FINGERPRINT) as study:
        keep_residuals(study)
        store_report(study, document, certificate)
