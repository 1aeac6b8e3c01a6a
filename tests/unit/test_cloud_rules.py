# SPDX-License-Identifier: Apache-2.0
"""Pure rules of renting: tiers, disk, offers, sizes, needs (requirements R-VAS-10 to 13, R-VAS-20 to 22)."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heretic.cloud.disk import class_minimum_gb, disk_need, formula_gb
from heretic.cloud.models import model_size, name_says, weight_bytes
from heretic.cloud.needs import fitting_tiers, memory_needs
from heretic.cloud.offers import RELAXED, Wanted, canonical, choose, filters, no_offer
from heretic.cloud.parsing import addresses
from heretic.cloud.targets import check_model
from heretic.cloud.tiers import cost_table, find_tier, table
from heretic.cloud.types import ModelSize, Offer
from heretic.demo import model_path
from heretic.exceptions import ConfigurationError, ModelValidationError, NetworkError

TIERS = table().tiers
GOOD = Offer(1, "RTX 4090", 1, 23.99, 500, 0.30, 0.31, 0.15, 900, 12.9, reliability=0.99, verified=True)


def size(billions: float, weights: float) -> ModelSize:
    return ModelSize("m", weights, billions, "test")


# Disk

EXAMPLES = [
    (7.6, 15.2, 50, 75),
    (14.8, 29.5, 79, 100),
    (32.8, 65.5, 151, 200),
    (70.6, 141.0, 302, 400),
    (72.7, 145.4, 311, 400),
]


@pytest.mark.parametrize(("billions", "weights", "formula", "requested"), EXAMPLES)
def test_the_worked_examples(billions: float, weights: float, formula: int, requested: int) -> None:
    """R-VAS-12: weights -> formula -> requested; a tier with a small disk leaves the rule alone."""
    tier = replace(TIERS["RTX_4090"], disk_gb=75)
    assert round(formula_gb(weights)) == formula
    need = disk_need(size(billions, weights), tier, 1)
    assert need.requested == requested and need.minimum == requested
    assert any(f"= {formula} GB" in line for line in need.arithmetic)


def test_the_largest_of_rule_class_and_tier_is_requested() -> None:
    small = size(7.6, 15.2)
    assert disk_need(small, TIERS["A6000"], 1).requested == 200
    assert disk_need(size(7.6, 200.0), TIERS["A6000"], 1).requested == 420
    assert disk_need(small, TIERS["RTX_4090"], 1).requested == 75


@pytest.mark.parametrize(
    ("billions", "least"),
    [(1, 75), (9, 75), (9.4, 75), (9.6, 100), (20, 100), (20.9, 200), (40, 200), (41, 400)],
)
def test_classes(billions: float, least: int) -> None:
    """A maker's "9B" may have 9.4."""
    assert class_minimum_gb(billions) == least


def test_a_smaller_disk_is_refused_down_to_the_formula() -> None:
    """R-VAS-13."""
    model, tier = size(32.8, 65.5), TIERS["A100_80GB"]
    with pytest.raises(ConfigurationError, match="199 is less than the 200 GB"):
        disk_need(model, tier, 1, asked=199)
    assert disk_need(model, tier, 1, asked=200).requested == 200
    assert disk_need(model, tier, 1, asked=151, accept_small=True).requested == 151
    with pytest.raises(ConfigurationError, match="150 is less than the 151 GB"):
        disk_need(model, tier, 1, asked=150, accept_small=True)


def test_without_a_model_the_tier_counts_and_several_gpus_need_400() -> None:
    assert disk_need(None, TIERS["RTX_4090"], 1).requested == 75
    assert disk_need(None, TIERS["RTX_4090"], 2).requested == 400
    with pytest.raises(ConfigurationError, match="less than the 75 GB"):
        disk_need(None, TIERS["RTX_4090"], 1, asked=74, accept_small=True)


@given(st.floats(0.1, 900), st.floats(0.1, 1800), st.sampled_from(sorted(TIERS)), st.integers(1, 8))
def test_what_is_requested_always_holds_download_and_export(
    billions: float, weights: float, tier: str, gpus: int
) -> None:
    need = disk_need(size(billions, weights), TIERS[tier], gpus)
    assert need.requested >= need.minimum >= need.floor >= 2 * weights + 20 - 0.002
    assert need.requested >= TIERS[tier].disk_gb


# Tiers


def test_the_table_is_the_one_of_the_requirements() -> None:
    """R-VAS-10."""
    rows = {name: (tier.max_price, tier.min_vram_gib, tier.disk_gb) for name, tier in TIERS.items()}
    assert rows == {
        "RTX_4090": (0.5, 24, 75), "A6000": (0.8, 48, 200), "A100_40GB": (1.0, 40, 200), "A100_80GB": (2.0, 80, 400),
        "A100_SXM": (2.5, 80, 400), "H100": (4.0, 80, 400), "H200": (4.5, 141, 400),
    }  # fmt: skip


def test_the_image_is_pinned_and_its_torch_is_in_the_range() -> None:
    """R-VAS-11."""
    import tomllib

    found = re.fullmatch(r"pytorch/pytorch:(\d+)\.(\d+)\.\d+-cuda(\d+\.\d+)-.*", table().image)
    assert found is not None and (2, 7) <= (int(found[1]), int(found[2])) < (3, 0)
    assert float(found[3]) == table().min_cuda
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    assert "torch>=2.7,<3" in project["project"]["dependencies"]


@pytest.mark.parametrize("word", ["rtx_4090", "RTX-4090", "rtx 4090", " RTX_4090 "])
def test_a_tier_is_found_however_it_is_written(word: str) -> None:
    assert find_tier(word, TIERS).name == "RTX_4090"


def test_an_unknown_tier_names_the_nearest() -> None:
    with pytest.raises(ConfigurationError) as caught:
        find_tier("RTX_4080", TIERS)
    assert caught.value.hint is not None and "RTX_4090" in caught.value.hint


def test_the_cost_table_of_the_page_is_worked_out_from_the_data() -> None:
    page = (Path(__file__).parents[2] / "docs" / "cloud.md").read_text(encoding="utf-8")
    assert cost_table() in page
    assert "| RTX_4090 | RTX 4090 | 24 GiB | 75 GB | 0.50 | 4.00 | 12.00 |" in cost_table()


# Offers


def wanted(**changes: Any) -> Wanted:
    return replace(Wanted(TIERS["RTX_4090"], 1, 75, 0.5), **changes)


BAD = {
    "name": {"gpu_name": "RTX 3090"}, "number of GPUs": {"num_gpus": 2}, "VRAM": {"vram_gib": 23.2},
    "disk": {"disk_gb": 74.9}, "driver": {"cuda": 12.4}, "download": {"download": 199},
    "reliability": {"reliability": 0.9}, "verified": {"verified": False}, "price": {"base_price": 0.49},
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_each_filter_excludes_what_it_names(name: str) -> None:
    """And nothing else is wrong with the offer: the control is the good one."""
    found = choose([replace(GOOD, **BAD[name])], wanted(), table())  # type: ignore[arg-type]
    assert not found.offers and found.excluded == {name: 1} and found.strictest == name
    assert choose([GOOD], wanted(), table()).offers == (GOOD,)
    assert set(BAD) == set(filters(wanted(), table()))
    error = no_offer(found, wanted(), 1, table())
    assert error.exit_code == 3 and repr(name) in error.message and error.hint


def test_the_cap_counts_storage_and_is_per_gpu() -> None:
    """R-VAS-11: 0.49 + 75 GB at 0.15 a month is above 0.50; two cards for 0.98 are below 0.50 each."""
    assert GOOD.hourly(75) == pytest.approx(0.30 + 0.15 * 75 / 720)
    dear = replace(GOOD, base_price=0.49, stated_price=0.49)
    assert not choose([dear], wanted(), table()).offers and choose([dear], wanted(disk_gb=10), table()).offers
    pair = replace(GOOD, num_gpus=2, base_price=0.97, stated_price=0.97)
    assert choose([pair], wanted(num_gpus=2), table()).offers
    dear_pair = replace(pair, base_price=1.0, stated_price=1.0)
    assert not choose([dear_pair], wanted(num_gpus=2), table()).offers


def test_the_providers_own_total_counts_when_it_is_higher() -> None:
    assert replace(GOOD, stated_price=0.7).hourly(75) == 0.7


def test_the_cheapest_with_storage_is_first() -> None:
    """The one with the lower base price is dearer with its disk."""
    cheap_base = replace(GOOD, id=2, base_price=0.28, stated_price=0.28, storage_price=1.0)
    assert [offer.id for offer in choose([cheap_base, GOOD], wanted(), table()).offers] == [1, 2]


def test_a_doubly_listed_offer_counts_once_with_the_dearer_price() -> None:
    twice = [GOOD, replace(GOOD, base_price=0.4, stated_price=0.4)]
    (only,) = choose(twice, wanted(), table()).offers
    assert only.base_price == 0.4


def test_relaxed_leaves_out_three_filters_and_no_other() -> None:
    assert set(filters(wanted(), table())) - set(filters(wanted(relaxed=True), table())) == set(RELAXED)


def test_vram_has_a_tolerance_of_three_per_cent() -> None:
    """A "24 GB" card reports 23.99 GiB, an 80 GB one 79.3."""
    assert choose([replace(GOOD, vram_gib=24 * 0.971)], wanted(), table()).offers
    assert not choose([replace(GOOD, vram_gib=24 * 0.969)], wanted(), table()).offers


@pytest.mark.parametrize("name", ["RTX_4090", "rtx 4090", "RTX-4090", " RTX  4090"])
def test_names_of_cards_are_compared_without_their_spelling(name: str) -> None:
    assert canonical(name) == "RTX 4090"


# Sizes


def test_a_folder_is_measured_by_its_weights() -> None:
    found = model_size(str(model_path()))
    assert found.weights_gb == (model_path() / "model.safetensors").stat().st_size / 1e9 and found.measured


def test_copies_of_the_same_weights_are_counted_once() -> None:
    files = [
        ("model-1.safetensors", 5), ("model-2.safetensors", 6), ("consolidated.safetensors", 11),
        ("original/consolidated.00.pth", 11), ("pytorch_model.bin", 11), ("README.md", 1),
        ("x.safetensors.index.json", 1),
    ]  # fmt: skip
    assert weight_bytes(files) == 11
    assert weight_bytes([("pytorch_model.bin", 7), ("README.md", None)]) == 7 and not weight_bytes([])


@pytest.mark.parametrize(
    ("name", "billions"),
    [("Qwen/Qwen2.5-32B-Instruct", 32), ("meta-llama/Llama-3.1-8B", 8), ("x/Qwen3-0.6B", 0.6), ("x/phi-4", None),
     ("x/Mixtral-8x7B", 7), ("a/b-4bit", None), ("a/3Bears", None), ("google/gemma-2-9b-it", 9)],
)  # fmt: skip
def test_what_a_name_says(name: str, billions: float | None) -> None:
    assert name_says(name) == billions


def test_offline_answers_in_words(tmp_path: Path) -> None:
    guess = model_size("Qwen/Qwen2.5-32B", offline=True)
    assert not guess.measured and guess.source == "guessed from the name" and guess.weights_gb > 64
    with pytest.raises(NetworkError) as caught:
        model_size("x/phi-4", offline=True)
    assert caught.value.hint is not None and "--weights-gb" in caught.value.hint
    assert model_size("x/phi-4", offline=True, weights_gb=29.0).weights_gb == 29.0
    with pytest.raises(ModelValidationError):
        model_size(str(tmp_path))
    with pytest.raises(ConfigurationError):
        model_size("x", weights_gb=-1)


def test_plans_name_the_precision_a_tier_holds() -> None:
    """R-VAS-20 with the recommendations of the table: 7B on one RTX_4090, 32B on one A100_80GB."""
    seven = {tier.name: precision for tier, precision in fitting_tiers(size(7.6, 15.2), TIERS, 1)}
    assert seven["RTX_4090"] == "16 bit"
    large = {tier.name: precision for tier, precision in fitting_tiers(size(32.8, 65.5), TIERS, 1)}
    assert large["A100_80GB"] == "16 bit" and large["RTX_4090"] == "4 bit" and large["A6000"] == "8 bit"
    assert "RTX_4090" not in {tier.name for tier, _ in fitting_tiers(size(72.7, 145.4), TIERS, 1)}
    needs = memory_needs(size(7.6, 15.2))
    assert needs[16] > needs[8] > needs[4] > 7.6 / 2


# The provider's answers


HOSTS = [("ssh5.vast.ai", True), ("192.0.2.4", True), ("2001:db8::1", True), ("-oProxyCommand=x", False), ("", False),
         ("a b", False), ("a;b", False), ("$(id)", False), ("x" * 300, False)]  # fmt: skip


@pytest.mark.parametrize(("host", "plain"), HOSTS)
def test_a_host_that_could_be_an_option_or_a_command_is_no_address(host: str, plain: bool) -> None:
    """H10."""
    found = addresses({"ssh_host": host, "ssh_port": 22})
    assert bool(found) == plain


def test_the_direct_address_comes_first_and_ports_are_checked() -> None:
    raw = {"ssh_host": "ssh5.vast.ai", "ssh_port": 10022, "public_ipaddr": "192.0.2.4",
           "ports": {"22/tcp": [{"HostIp": "0.0.0.0", "HostPort": "41022"}]}}  # fmt: skip
    assert [(entry.kind, entry.port) for entry in addresses(raw)] == [("direct", 41022), ("proxy", 10022)]
    assert [entry.kind for entry in addresses({**raw, "ports": {"22/tcp": [{"HostPort": "99999"}]}})] == [
        "proxy"
    ]
    assert not addresses({"ssh_host": "x", "ssh_port": 0})


@pytest.mark.parametrize("model", ["a/b", "Qwen/Qwen2.5-7B-Instruct", "x", "a_b/c.d-e"])
def test_names_of_models_that_may_go_to_the_machine(model: str) -> None:
    assert check_model(model) == model


@pytest.mark.parametrize(
    "model",
    [
        "",
        "-x",
        "/abs",
        "../x",
        "a/../b",
        "a/b/c",
        "a b",
        "a;b",
        "$x",
        "a\nb",
        "\u00e9",
        "a" * 501,
        "a/",
        "/a",
        ".",
    ],
)
def test_names_that_may_not(model: str) -> None:
    with pytest.raises(ConfigurationError):
        check_model(model)
