# SPDX-License-Identifier: Apache-2.0
"""Rounds of extraction as a fixed basis (algorithms 9): a direction that acts only once the first is gone is found in
the second round, the basis is orthonormal, and a writer that was missed is an error."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from heretic.directions.bank import DirectionBank
from heretic.exceptions import AbliterationError
from heretic.interventions.hooks import Edits, applied, every_row
from heretic.phases import iteration
from heretic.phases.direction_extraction import Extraction
from heretic.phases.iteration import Rounds, refined, require_removed

from .test_strategies import run_with


@cache
def work() -> tuple[Extraction, DirectionBank, int]:
    """The demo model after its first round, and the layer that separates best."""
    from heretic.directions.contrast import Contrast
    from heretic.directions.difference import difference
    from heretic.phases.method import captures_of, extraction_options

    run = run_with("--strategy=subspace", "--n-refusal-directions=1")
    assert run.bundle is not None and run.extraction is not None
    captures = captures_of(run)
    contrast = Contrast(
        captures.residuals(run.bundle.bad.prompts), captures.residuals(run.bundle.good.prompts)
    )
    made = Extraction(captures, run.bundle, extraction_options(run), contrast)
    return made, difference(contrast), run.extraction.best_layer


def gap_under(edits: Edits, layer: int) -> Tensor:
    """Difference of the class means at a layer while the edits act, [d] float64."""
    made, _, _ = work()
    model = made.captures.model
    means = []
    for prompts in (made.bundle.bad.prompts, made.bundle.good.prompts):
        sequences = model.encoder.encode_all(prompts)
        batch = model.batch(sequences)
        rows = every_row(0, len(sequences), model.device)
        kept: list[Tensor] = []
        handle = model.blocks()[layer].register_forward_hook(
            lambda _m, _a, out, kept=kept: kept.append((out[0] if isinstance(out, tuple) else out)[:, -1])
        )
        with torch.no_grad(), applied(model.network, [edits], rows):
            model.network(input_ids=batch.ids, attention_mask=batch.mask, position_ids=batch.positions)
        handle.remove()
        means.append(kept[0].double().mean(dim=0))
    return means[0] - means[1]


def test_a_further_round_adds_what_separates_the_classes_once_the_first_is_gone() -> None:
    """The new component is the difference that a hook-edited model really has there, outside the first; control: one
    round adds nothing."""
    made, bank, layer = work()
    assert refined(made, bank, layer, Rounds(1)).components == 1
    more = refined(made, bank, layer, Rounds(2))
    assert more.components == 2 and torch.equal(more.directions[:, 0], bank.directions[:, 0])
    rows = more.directions[layer].double()
    assert torch.allclose(rows @ rows.T, torch.eye(2, dtype=torch.float64), atol=1e-5)
    left = gap_under(iteration.full_removal(made, bank, layer), layer)
    first = bank.directions[layer, 0].double()
    before = made.contrast.means()[0][layer] - made.contrast.means()[1][layer]
    assert float(left @ first) < 1e-3 * float(before @ first), "what was removed separates nothing"
    control_mean = made.contrast.means()[1][layer]
    outside = (
        left - first * (first @ left) - control_mean * (control_mean @ left) / (control_mean @ control_mean)
    )
    assert float(outside @ rows[1] / outside.norm()) > 0.9


def test_limits_end_the_rounds_with_their_reason() -> None:
    made, bank, layer = work()
    costly = Rounds(3, most_kl=0.5, cost=lambda edits: 0.7)
    assert refined(made, bank, layer, costly).components == 1
    assert "0.7" in str(made.notes["iteration"])
    assert refined(made, bank, layer, Rounds(3, least=1e6)).components == 1
    assert "of the length of the first" in str(made.notes["iteration"])


def test_what_comes_back_along_a_removed_direction_is_a_missed_writer() -> None:
    """Control: with every writer edited nothing comes back."""
    made, bank, layer = work()
    with pytest.raises(AbliterationError, match="still lies along"):
        require_removed(made.contrast, made.contrast, bank, layer)
    refined(made, bank, layer, Rounds(2))
