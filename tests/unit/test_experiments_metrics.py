# SPDX-License-Identifier: Apache-2.0
"""What experiments count in a reply, against values counted by hand (requirements section 11, R-XPT-04)."""

from __future__ import annotations

import random

import pytest
import torch

from heretic.decoding.protocol import Reply
from heretic.experiments import code_text
from heretic.experiments.code_text import take_apart
from heretic.experiments.figures import figures, spread
from heretic.experiments.metrics import METRICS
from heretic.experiments.prepare import Row
from heretic.linalg.bootstrap import paired_change

FENCED = (
    "Sure, here it is.\n\n```python\ndef add(a, b):\n    # the sum\n    return a + b\n```\n\n"
    "It adds two numbers.\nThat is all."
)
DOCUMENTED = '```py\ndef add(a, b):\n    """Add.\n\n    Two numbers.\n    """\n    return a + b  # sum\n```'
BARE = "def add(a, b):\n    return a + b\n"
CUT = "```python\ndef add(a, b):\n    return (a +"


def row(kind: str = "", answer: tuple[str, ...] = (), prompt: str = "Why?") -> Row:
    return Row("r1-bad", "r1", "bad", "test", prompt, kind, answer)


def reply(text: str, tokens: int = 3) -> Reply:
    return Reply(tuple(range(tokens)), text, ended=True)


def counted(name: str, text: str, of: Row | None = None) -> tuple[float, float] | None:
    return METRICS[name].measure(of or row(), reply(text))


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("words", "One two-three, it's four.", (4, 1)),
        ("words", "", (0, 1)),
        ("characters", "  abc d \n", (5, 1)),
        ("tokens", "anything", (3, 1)),
        ("hedges", "Perhaps it is Rome. It is Rome.", (100, 7)),
        ("hedges", "It is Rome. It is Rome. Surely so.", (0, 8)),
        ("hedged", "Perhaps it is Rome. Perhaps not.", (1, 1)),
        ("hedged", "It is Rome.", (0, 1)),
        ("refusals", "I'm sorry, but I can't help with that.", (1, 1)),
        ("refusals", "Use os.kill with the number of the process.", (0, 1)),
        ("prose", FENCED, (3, 6)),
        ("prose", BARE, (0, 2)),
        ("prose", "It adds.\n\nThat is all.", (2, 2)),
        ("prose", "", (0, 0)),
    ],
)
def test_counts_are_those_made_by_hand(name: str, text: str, expected: tuple[float, float]) -> None:
    assert counted(name, text) == expected


def test_padding_counts_filler_and_nothing_else() -> None:
    plain, filled = "A clock shows the time.", "Great question! A clock shows the time. I hope this helps!"
    assert counted("padding", plain) == (0, 5)
    found = counted("padding", filled)
    assert found is not None and found[0] >= 100 and found[1] == 11


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It is CANBERRA, of course.", 1.0),
        ("It is the *act*.", 1.0),
        ("It is Sydney, in fact.", 0.0),
        ("Canberran food is fine.", 0.0),
        ("The ca\u00adnberra of old.", 1.0),
    ],
)
def test_content_is_any_answer_as_whole_words(text: str, found: float) -> None:
    """`act` is in `fact` and `canberra` in `Canberran`; neither counts."""
    assert counted("content", text, row(answer=("canberra", "act"))) == (found, 1.0)
    assert counted("content", text) is None, "a row without answers says nothing"


def test_names_of_functions_survive_the_removal_of_emphasis() -> None:
    of = row("python", ("is_palindrome",))
    assert counted("content", "def is_palindrome(text): ...", of) == (1.0, 1.0)
    assert counted("content", "def is_palindromes(text): ...", of) == (0.0, 1.0)


def test_comments_are_marked_lines_and_docstrings() -> None:
    assert counted("comments", FENCED, row("python")) == (1, 3)
    assert counted("comments", DOCUMENTED, row("python")) == (3, 5)
    javascript = "```js\n// one\nlet x = 1; // no line of its own\n/* two\n * three\n */\n```"
    assert counted("comments", javascript, row("javascript")) == (4, 5)
    assert counted("comments", "```sql\n-- one\nSELECT 1;\n# no\n```", row("sql")) == (1, 3)


@pytest.mark.parametrize(
    ("text", "language", "found"),
    [
        (FENCED, "python", True),
        (BARE, "python", True),
        ("```python\ndef add(a, b) return a + b\n```", "python", False),
        (CUT, "python", None),
        ("```python\nx = 1", "python", True),
        ("It adds two numbers.", "python", False),
        ("Hello", "python", False),
        ("```sql\nSELECT FROM WHERE\n```", "sql", True),
        ("```sql\nSELECT 1", "sql", None),
        ("```\n\n```", "sql", False),
        ("```bash\npip install x\n```\n```python\nx = 1\n```", "python", True),
        ("```bash\npip install x\n```\n```python\nx = (\n```", "python", False),
        ("~~~\nx = 1\n```\ny = 2\n~~~", "python", False),
    ],
)
def test_code_parses_by_grammar_or_by_its_fence(text: str, language: str, found: bool | None) -> None:
    assert code_text.parses(take_apart(text), language) is found


def test_a_fence_ends_at_its_own_mark_only() -> None:
    parts = take_apart("~~~md\n```\ninside\n```\n~~~\nafter")
    assert [block.lines for block in parts.blocks] == [("```", "inside", "```")] and parts.prose == ("after",)
    assert take_apart("````\n```\n````").blocks[0].lines == ("```",)


def test_a_doubtful_escape_in_the_code_of_a_model_is_no_warning_of_ours() -> None:
    assert code_text.parses(take_apart('```python\nx = "\\d"\n```'), "python") is True


# --- the bootstrap ---------------------------------------------------------------------------------------------


def test_change_is_the_change_of_ratios_of_sums() -> None:
    """Two replies of 1 and 9 words with 1 and 0 phrases: 1 of 10 words, and not the mean of 1 and 0."""
    first, second = torch.tensor([[100.0, 1.0], [0.0, 9.0]]), torch.tensor([[0.0, 1.0], [0.0, 9.0]])
    change = paired_change(first, second, seed=1)
    assert (change.first, change.second, change.difference, change.relative) == (10.0, 0.0, -10.0, -1.0)


def test_equal_measurements_have_no_interval_and_shifted_ones_a_point() -> None:
    values = torch.stack([torch.arange(1.0, 31.0), torch.ones(30)], dim=1)
    same = paired_change(values, values, seed=1)
    assert tuple(same.difference_interval) == (0.0, 0.0) and same.relative == 0.0
    shifted = paired_change(values, values + torch.tensor([2.0, 0.0]), seed=1)
    assert shifted.difference_interval == pytest.approx((2.0, 2.0)), "what units share cancels"
    mixed = paired_change(
        values, values[torch.randperm(30, generator=torch.Generator().manual_seed(3))], seed=1
    )
    assert mixed.difference_interval.high - mixed.difference_interval.low > 4.0, "control: other pairs"


def test_interval_has_the_width_that_theory_gives() -> None:
    """For many units the bootstrap of a mean is normal: 1.96 standard deviations / sqrt(n), here within 5 %."""
    noise = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    zero = torch.stack([torch.zeros(400).double(), torch.ones(400).double()], dim=1)
    found = paired_change(zero, torch.stack([noise, torch.ones(400).double()], dim=1), seed=2)
    half = 1.96 * float(noise.std(correction=0)) / 20.0
    low, high = found.difference_interval
    assert (high - low) / 2 == pytest.approx(half, rel=0.05)
    assert found.relative is None and found.relative_interval is None, "nothing is a share of 0"


def test_bounds_depend_on_the_seed_and_on_nothing_else() -> None:
    first = torch.stack([torch.arange(20.0), torch.ones(20)], dim=1)
    second = first.flip(0)
    torch.manual_seed(1)
    one = paired_change(first, second, seed=5)
    torch.manual_seed(2)
    random.seed(2)
    assert paired_change(first, second, seed=5) == one
    assert paired_change(first, second, seed=6).difference_interval != one.difference_interval


def test_coverage_of_the_interval_is_near_its_level() -> None:
    """Of 200 samples of 40 pairs with a true change of 1, about 95 % of the intervals hold it."""
    generator = torch.Generator().manual_seed(7)
    held = 0
    for number in range(200):
        base = 5.0 * torch.randn(40, generator=generator, dtype=torch.float64)
        after = base + 1.0 + torch.randn(40, generator=generator, dtype=torch.float64)
        ones = torch.ones(40, dtype=torch.float64)
        change = paired_change(
            torch.stack([base, ones], 1), torch.stack([after, ones], 1), seed=number, resamples=400
        )
        held += change.difference_interval.low <= 1.0 <= change.difference_interval.high
    assert 180 <= held <= 199


# --- figures ---------------------------------------------------------------------------------------------------


def test_figures_are_paired_by_prompt_and_taken_by_kind() -> None:
    rows = [row("simple"), row("open"), row("open")]
    base = [reply("a b c d"), reply("a b c d e f"), reply("a b")]
    edited = [reply("a b"), reply("a b c d e f"), reply("a")]
    found = figures(("words",), rows, base, {"edited": edited}, prompts="bad", groups=("simple", "open"))
    by_group = {figure.group: figure for figure in found}
    assert [by_group[g].n for g in ("", "simple", "open")] == [3, 1, 2]
    assert (by_group["simple"].base, by_group["simple"].value, by_group["simple"].relative) == (4, 2, -0.5)
    assert (by_group["open"].base, by_group["open"].value) == (4, 3.5)
    assert by_group[""].difference == pytest.approx(-1.0)
    assert by_group[""].base_spread == spread([(4, 1), (6, 1), (2, 1)])


def test_a_reply_that_says_nothing_is_left_out_on_both_sides() -> None:
    rows = [row("python")] * 4
    base = [reply(CUT), reply(FENCED), reply(FENCED), reply(FENCED)]
    edited = [reply(FENCED), reply("no code"), reply(FENCED), reply(CUT)]
    (figure,) = figures(("parses",), rows, base, {"edited": edited}, prompts="bad")
    assert (figure.n, figure.base, figure.value) == (2, 1.0, 0.5)
    assert figures(("content",), rows, base, {"edited": edited}, prompts="bad") == []


def test_spread_is_median_and_deviation_of_single_replies() -> None:
    found = spread([(2, 1), (4, 1), (9, 1)])
    assert found.median == 4 and found.deviation == pytest.approx(3.605551, abs=1e-6)
    assert spread([(2, 1)]).deviation is None
