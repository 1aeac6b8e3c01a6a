# SPDX-License-Identifier: Apache-2.0
"""REL-09, REL-18: every seeded mistake ends in one sentence with a remedy and the right exit code, early, cleanly."""

from __future__ import annotations

import pytest

from .mistakes import MODEL, Mistake
from .mistakes_data import DATA, PLACES
from .mistakes_settings import SETTINGS
from .world import World, joined


def refuse_to_load(*arguments: object) -> None:
    """In place of the loader where the mistake can be known before."""
    raise AssertionError("weights were read before the mistake was noticed")


@pytest.mark.parametrize(
    "mistake", (*MODEL, *SETTINGS, *DATA, *PLACES), ids=lambda mistake: mistake.name.replace(" ", "_")
)
def test_mistake_is_told_early_with_its_remedy(
    mistake: Mistake, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """REL-09: before weights are read where it can be known; nothing half-written; one document with --json."""
    if not mistake.loads:
        monkeypatch.setattr("heretic.model.loading._load", refuse_to_load)
    if mistake.name == "memory":
        monkeypatch.setattr("heretic.phases.loading.device_memory", lambda: 1000)
    if mistake.damage is not None:
        mistake.damage(world)
    before = world.snapshot()
    told = world.heretic(*mistake.command, "--json")
    said = joined([told.err])
    error = told.document["error"]
    print(f"{told.code} {error and error['type']}\n{told.err}")
    assert told.code == mistake.code == told.document["exit_code"], told.err
    assert told.document["status"] == "failed"
    assert error["type"] == mistake.error
    assert error["message"] and error["remedy"]
    assert "Traceback" not in told.err
    for word in mistake.words:
        assert word in said
    assert not world.leftovers()
    after = world.snapshot()
    assert {name: after.get(name) for name in before} == before
