# SPDX-License-Identifier: Apache-2.0
"""What a study keeps for its report: points and figures of residuals, and the document of the run (R-FMT-08)."""

from __future__ import annotations

import base64
import json
import math
import zlib
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from heretic.exceptions import StorageError, StudyCorruptError
from heretic.linalg.geometry import silhouette
from heretic.phases import report_store
from heretic.phases.report_store import (
    PICTURES,
    PLAIN_LIMIT,
    POINTS,
    REPORT,
    RESIDUALS,
    TEXT_LIMIT,
    ResidualView,
    packed,
    residual_view,
    shown_layers,
    store_report,
    store_residual_view,
    stored_report,
    stored_residual_view,
    unpacked,
)
from heretic.study.sharing import visit_study
from heretic.study.state import Study, open_study

LAYERS, WIDTH = 9, 12


def planted(counts: tuple[int, int] = (60, 50), seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Residuals whose classes differ along e0 by the number of the layer; the largest spread beside it is along e1."""
    generator = torch.Generator().manual_seed(seed)
    sides = [torch.randn(count, LAYERS, WIDTH, generator=generator) for count in counts]
    for side in sides:
        side[:, :, 1] *= 7.0
        side[:, :, 2] += 20.0
    sides[0][:, :, 0] += torch.arange(LAYERS)
    directions = torch.zeros(LAYERS, WIDTH)
    directions[:, 0] = 3.0
    return sides[0], sides[1], directions


def view(target: Tensor, control: Tensor, directions: Tensor, seed: int = 0) -> ResidualView:
    figures = [float(layer) for layer in range(LAYERS)]
    return residual_view(
        target, control, directions, auroc=figures, effect_size=figures, stability=figures, seed=seed
    )


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return open_study(f"sqlite:///{tmp_path / 'study.db'}", "one", fingerprint={"model": "m"})


def test_x_is_the_projection_and_y_the_largest_spread_beside_it() -> None:
    """The gap along x is that of the means, y follows e1; control: in the raw data neither holds for another axis."""
    target, control, directions = planted()
    found = view(target, control, directions)
    for picture in found.projections:
        sides = [torch.tensor(points, dtype=torch.float64) for points in (picture.target, picture.control)]
        gap = float(sides[0][:, 0].mean() - sides[1][:, 0].mean())
        raw = target[:, picture.layer].mean(dim=0) - control[:, picture.layer].mean(dim=0)
        assert gap == pytest.approx(float(raw[0]), abs=1e-3)
        assert float(sides[0][:, 0].mean()) == pytest.approx(gap / 2, abs=1e-3)
        together = torch.cat([target[:, picture.layer], control[:, picture.layer]]).double()
        y = torch.cat(sides)[:, 1]
        assert abs(float(torch.corrcoef(torch.stack([y, together[:, 1]]))[0, 1])) > 0.99
        assert abs(float(torch.corrcoef(torch.stack([y, together[:, 3]]))[0, 1])) < 0.5
        assert float(y.mean()) == pytest.approx(0.0, abs=1e-2)
        rest = together[:, 1:] - together[:, 1:].mean(dim=0)
        values = torch.linalg.svdvals(rest).square()
        assert picture.share == pytest.approx(float(values[0] / values.sum()), abs=1e-4)


def test_figures_are_those_of_the_residuals() -> None:
    target, control, directions = planted()
    directions[4] = 0.0
    directions[6] = torch.eye(WIDTH)[5]
    found = view(target, control, directions)
    row = found.layers[5]
    means = target[:, 5].double().mean(dim=0), control[:, 5].double().mean(dim=0)
    assert row.target_norm == pytest.approx(float(means[0].norm()), rel=1e-4)
    assert row.difference_norm == pytest.approx(float((means[0] - means[1]).norm()), rel=1e-4)
    assert row.silhouette == pytest.approx(silhouette(target[:, 5], control[:, 5]), abs=1e-4)
    assert (row.auroc, row.effect_size, row.stability) == (5.0, 5.0, 5.0)
    cosines = [entry.previous_cosine for entry in found.layers]
    assert cosines == [None, 1.0, 1.0, 1.0, None, None, 0.0, 0.0, 1.0]
    assert 4 not in [picture.layer for picture in found.projections]


def test_points_are_bounded_and_drawn_by_the_seed() -> None:
    target, control, directions = planted((POINTS + 40, POINTS + 1))
    found = view(target, control, directions)
    assert (found.target_count, found.control_count) == (POINTS + 40, POINTS + 1)
    assert {len(picture.target) for picture in found.projections} == {POINTS}
    assert found == view(target, control, directions)
    assert found.projections != view(target, control, directions, seed=1).projections


def test_shown_layers_hold_the_best_and_both_ends() -> None:
    for layers in range(1, 100):
        for best in (0, layers // 3, layers - 1):
            shown = shown_layers(layers, best)
            assert {0, best, layers - 1} <= set(shown) <= set(range(layers))
            assert len(shown) <= PICTURES and list(shown) == sorted(shown)


def test_one_prompt_or_no_spread_is_no_error() -> None:
    target, control, directions = planted((1, 1))
    found = view(target, control, directions)
    assert all(
        math.isfinite(value) for row in found.layers for value in asdict(row).values() if value is not None
    )
    same = torch.ones(3, LAYERS, WIDTH)
    assert {picture.share for picture in view(same, same, directions).projections} == {0.0}


def test_what_is_kept_comes_back_in_another_process(study: Study) -> None:
    """Through the storage, by somebody who does not own the study; control: nothing is there before."""
    assert stored_residual_view(study) is None and stored_report(study) is None
    found = view(*planted())
    store_residual_view(study, found)
    document = {"status": "complete", "front": [{"trial": 1, "strengths": {"a": (0.5, 1.0)}}]}
    assert store_report(study, document, [{"path": "a", "rank": 1}]) is None
    with study:
        other = visit_study(study.location.url, "one")
        again = stored_report(other)
        assert stored_residual_view(other) == found
        other.close()
    assert again is not None
    assert again.document == {"status": "complete", "front": [{"trial": 1, "strengths": {"a": [0.5, 1.0]}}]}
    assert again.certificate == ({"path": "a", "rank": 1},)


def test_a_later_report_replaces_the_first(study: Study) -> None:
    with study:
        for status in ("interrupted", "complete"):
            store_report(study, {"status": status})
        found = stored_report(study)
        assert found is not None and found.document["status"] == "complete"


def test_what_json_cannot_hold_and_secrets_do_not_get_in(study: Study) -> None:
    """NaN is null, a long text is cut, a token is blanked out."""
    token = "hf_" + "a1B2" * 8
    with study:
        store_report(
            study, {"kl": float("nan"), "long": "x" * 10 * TEXT_LIMIT, "reply": f"my {token}", "fine": 0.5}
        )
        found = stored_report(study)
    assert found is not None
    assert found.document["kl"] is None and found.document["fine"] == 0.5
    assert len(found.document["long"]) == TEXT_LIMIT and token not in str(found.document)
    assert found.document["reply"].startswith("my ")


def test_a_report_that_is_too_large_loses_what_can_be_spared(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: within the bound all is kept."""
    generator = torch.Generator().manual_seed(0)
    strengths = {f"a.{layer}": torch.rand(40, generator=generator).tolist() for layer in range(40)}
    document = {"status": "complete", "front": [{"trial": 3, "strengths": strengths}]}
    with study:
        assert store_report(study, document, [{"path": "a"}]) is None
        monkeypatch.setattr(report_store, "PACKED_LIMIT", 5_000)
        told = store_report(study, document, [{"path": "a"}])
        found = stored_report(study)
        assert told is not None and "too large" in told
        assert found is not None and found.certificate == ()
        assert found.document == {"status": "complete", "front": [{"trial": 3}]}
        monkeypatch.setattr(report_store, "PACKED_LIMIT", 10)
        with pytest.raises(StorageError, match="too large"):
            store_report(study, document)


def forged(plain: bytes, **changes: object) -> dict[str, object]:
    """An attribute of the right form around any bytes."""
    import hashlib

    data = base64.b64encode(zlib.compress(plain)).decode("ascii")
    return {"version": 1, "sha256": hashlib.sha256(plain).hexdigest(), "data": data, **changes}


@pytest.mark.parametrize(
    "stored",
    [
        None, 7, "text", [], {}, forged(b"{}", version=2), forged(b"{}", version=None), forged(b"{}", sha256="0"),
        forged(b"{}", data=5), forged(b"{}", data="!!"), forged(b"{}", data="AAAA"), forged(b"[1]"), forged(b"{"),
        forged(b"[" * 100_000), forged(b"\xff"),
    ],
)  # fmt: skip
def test_damage_is_told_and_not_guessed_around(stored: object) -> None:
    """Control: the same bytes undamaged are read."""
    assert unpacked(forged(b'{"a": 1}'), "report") == {"a": 1}
    with pytest.raises(StudyCorruptError):
        unpacked(stored, "report")


def test_what_would_unpack_to_too_much_is_not_read() -> None:
    bomb = b'{"a": "' + b"x" * PLAIN_LIMIT + b'"}'
    with pytest.raises(StudyCorruptError, match="checksum"):
        unpacked(forged(bomb), "report")
    with pytest.raises(StorageError):
        packed({"a": [1234567] * (PLAIN_LIMIT // 8)})


def test_a_view_with_foreign_values_is_refused(study: Study) -> None:
    """Control: the same view unchanged is read."""
    good = asdict(view(*planted()))
    bad: list[dict[str, object]] = [
        {**good, "layers": [{**good["layers"][0], "auroc": None}]},
        {**good, "layers": [{**good["layers"][0], "auroc": "high"}]},
        {**good, "layers": [{"layer": 0}]},
        {**good, "projections": [{"layer": 0, "share": 0.5, "target": [[1, 2, 3]], "control": []}]},
        {**good, "best_layer": "x"},
        {**good, "layers": 5},
    ]
    with study:
        study.set_attribute(RESIDUALS, packed(good))
        assert stored_residual_view(study) is not None
        for document in bad:
            study.set_attribute(RESIDUALS, packed(document))
            with pytest.raises(StudyCorruptError):
                stored_residual_view(study)
        infinite = json.dumps(good).replace('"auroc": 1.0', '"auroc": 1e999').encode()
        study.set_attribute(RESIDUALS, forged(infinite))  # type: ignore[arg-type]  # strings and a number
        with pytest.raises(StudyCorruptError):
            stored_residual_view(study)


def test_more_points_than_are_kept_are_not_read(study: Study) -> None:
    found = view(*planted())
    many = tuple((float(number), 0.0) for number in range(POINTS + 500))
    wide = replace(
        found, projections=tuple(replace(found.projections[0], target=many) for _ in range(PICTURES + 9))
    )
    with study:
        store_residual_view(study, wide)
        again = stored_residual_view(study)
    assert again is not None and len(again.projections) == PICTURES
    assert {len(picture.target) for picture in again.projections} == {POINTS}


def test_a_document_of_another_form_is_refused(study: Study) -> None:
    with study:
        wrongs: list[dict[str, object]] = [
            {"document": [], "certificate": []},
            {"document": {}},
            {"certificate": []},
        ]
        for wrong in wrongs:
            study.set_attribute(REPORT, packed(wrong))
            with pytest.raises(StudyCorruptError):
                stored_report(study)
