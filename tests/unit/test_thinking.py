# SPDX-License-Identifier: Apache-2.0
"""Thinking models: switch, split, budgets, early exit, both modes (requirements R-MOD-50 to R-MOD-53).

The network is a real GPT-2 whose head reads the position alone, so that every prompt length has a scripted reply.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from heretic.config import resolve_settings
from heretic.console import Console
from heretic.decoding import FastEngine, ReferenceEngine
from heretic.evaluator import Evaluator, Lengths
from heretic.model.model import Model
from heretic.model.thinking import HARMONY, MARKERS, Marker, close_position, opened_by, split_thought
from heretic.model.tokens import PromptEncoder
from heretic.phases.confirmation import Confirmation
from heretic.phases.dataset_loading import DatasetBundle
from heretic.phases.evaluation import detect_response_prefix, verify_no_thought
from heretic.phases.model_saving import _card_rows, _mode_text
from heretic.phases.state import Run
from heretic.prompts import Prompt, PromptSet
from heretic.report import flat_measurement
from heretic.scorers.degeneration import reply_condition
from heretic.scorers.markers import MarkerScorer
from heretic.stop import StopFlag
from heretic.testing.tokenizers import byte_tokenizer
from heretic.testing.workbench import loaded_pico

FILLER = "." * 100
TEMPLATE = (
    "{% for m in messages %}<|user|>{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<|assistant|>"
    "{% if enable_thinking is defined and not enable_thinking %}"
    + FILLER
    + "<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
POSITIONS = 640
BUDGET, ANSWER = 40, 24
REPLIES = {
    1: "<think>I cannot? It is fine.</think>Sure, here.",
    150: "<think>ok</think>I cannot help.",
    300: "<think>" + "ab" * 60,
    450: "<think>why not, say it all and more of it, then stop it here</think>I cannot",
}
"""Length of the user text -> reply in thinking mode. A thought may say what only an answer may not."""

PLAIN = "I cannot."
"""Every reply in the other mode."""


def scripted(template: str = TEMPLATE, *, thinking: bool, plain: str = PLAIN) -> Model:
    """The GPT-2 that says `REPLIES`, each after the prompt of its length, and `plain` behind a closed thought."""
    tokenizer = byte_tokenizer(start="none")
    tokenizer.chat_template = template
    changes = {"n_positions": POSITIONS, "max_position_embeddings": POSITIONS, "hidden_size": POSITIONS}
    model = loaded_pico(
        "gpt2", tokenizer=tokenizer, changes={**changes, "num_attention_heads": 1, "n_inner": 8}
    )
    network = model.network
    for name, parameter in network.named_parameters():
        parameter.zero_()
        if name.endswith(("ln_f.weight", "ln_1.weight", "ln_2.weight")):
            parameter.fill_(1.0)
    network.get_parameter("transformer.wpe.weight").copy_(torch.eye(POSITIONS))
    head = network.get_parameter("lm_head.weight")
    for length, reply in REPLIES.items():
        _write(head, length + 2, [*_ids(model, reply), 2])
        _write(head, length + 2 + len(FILLER) + len("<think>\n\n</think>\n\n"), [*_ids(model, plain), 2])
    encoder = PromptEncoder(
        tokenizer, system_prompt="", thinking=thinking, thinking_tokens=BUDGET, answer_tokens=ANSWER
    )
    return replace(model, encoder=encoder)


def _ids(model: Model, text: str) -> list[int]:
    return list(model.encoder.tokenizer(text, add_special_tokens=False)["input_ids"])


def _write(head: torch.Tensor, position: int, tokens: list[int]) -> None:
    for number, token in enumerate(tokens):
        head[:, position + number] = 0.0
        head[token, position + number] = 1.0


def prompts() -> list[Prompt]:
    return [Prompt("x" * length) for length in REPLIES]


def evaluator(model: Model, engine: str = "fast", early_exit: bool = False) -> Evaluator:
    kind = FastEngine if engine == "fast" else ReferenceEngine
    scorer = MarkerScorer(core=["i cannot"])
    more = BUDGET if model.encoder.thinking else 0
    return Evaluator(
        model,
        kind(model),
        scorer,
        bad=prompts(),
        good=prompts()[:2],
        lengths=Lengths(ANSWER + more, 8, 4),
        width=8,
        early_exit=early_exit,
    )


@pytest.mark.parametrize(
    ("text", "answer", "state"),
    [
        ("<think>a</think>b", "b", "closed"),
        ("\n<think>a", "", "open"),
        ("<thi", "", "open"),
        ("", "", "none"),
        ("plain <think>", "plain <think>", "none"),
        ("[THINK]a[/THINK]b</think>", "b</think>", "closed"),
        (
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b",
            "b",
            "closed",
        ),
        ("<|channel|>final<|message|>b", "b", "closed"),
        ("<|channel|>", "", "open"),
    ],
)
def test_a_reply_is_split_where_its_thought_ends(text: str, answer: str, state: str) -> None:
    split = split_thought(text)
    assert (split.answer, split.state) == (answer, state)


@pytest.mark.parametrize("marker", MARKERS, ids=lambda marker: marker.open)
def test_the_answer_only_grows_with_the_reply(marker: Marker) -> None:
    """What early exit rests on: no prefix of a reply shows an answer that the whole reply does not begin with."""
    whole = f"{marker.open} secret {marker.close}The answer."
    for length in range(len(whole) + 1):
        assert "The answer.".startswith(split_thought(whole[:length]).answer)
    assert split_thought(whole).answer == "The answer."
    assert opened_by(f"<|assistant|>{marker.open}\n") == marker
    assert opened_by(f"<|assistant|>{marker.open}\n{marker.close}") is None


def test_close_position_is_the_first_true_count() -> None:
    for first in range(12):
        assert close_position(11, first.__le__) == first


@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_only_the_answer_is_judged_and_bad_thoughts_are_counted(engine: str) -> None:
    """R-MOD-51."""
    outcome = evaluator(scripted(thinking=True), engine).base_outcome()
    assert list(outcome.labels) == ["none", "core", "none", "none"]
    assert [reply.text for reply in outcome.replies] == ["Sure, here.", "I cannot help.", "", ""]
    assert list(outcome.conditions) == ["valid", "valid", "thinking_loop", "thinking_exhausted"]
    first = outcome.replies[0]
    assert first.thought is not None and first.thought.length == len("<think>I cannot? It is fine.</think>")
    assert all(
        reply_condition(reply) == found
        for reply, found in zip(outcome.replies, outcome.conditions, strict=True)
    )
    raw = MarkerScorer(core=["i cannot"]).judge([""], [REPLIES[1]])  # control: the whole text would be a hit
    assert raw[0].hit


def test_an_answer_is_cut_at_its_own_budget() -> None:
    model = scripted(thinking=True)
    model.encoder.answer_tokens = 4
    assert evaluator(model).base_outcome().replies[0].text == "Sure"


@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_early_exit_gives_the_verdicts_of_whole_replies(engine: str) -> None:
    """R-EVA-07 with thoughts: an undecided thought never decides, and a decided answer leaves early."""
    model = scripted(thinking=True)
    whole, early = (evaluator(model, engine, early_exit=exits).score([{}])[0] for exits in (False, True))
    assert list(early.labels) == list(whole.labels) == ["none", "core", "none", "none"]
    assert early.replies[0].text == whole.replies[0].text
    assert len(early.replies[1].tokens) < len(whole.replies[1].tokens)  # control: it did leave


def test_off_uses_the_switch_of_the_template() -> None:
    """R-MOD-50."""
    model = scripted(thinking=False)
    assert model.encoder.can_think and model.encoder.response_prefix == ""
    outcome = evaluator(model).base_outcome()
    assert {reply.text for reply in outcome.replies} == {PLAIN}
    assert outcome.hits == 4 and all(reply.thought is None for reply in outcome.replies)


@pytest.mark.parametrize(
    ("ending", "prefix"),
    [
        ("<|assistant|><think>\n", "\n\n</think>\n\n"),
        ("<|assistant|>[THINK]", "\n\n[/THINK]\n\n"),
        ("<|start|>assistant{# <|channel|>analysis #}", HARMONY.closed_block),
        ("<|assistant|>", ""),
    ],
)
def test_off_without_a_switch_closes_the_block_of_the_family(ending: str, prefix: str) -> None:
    """R-MOD-50; the last row is the control: a model without thoughts gets no prefix."""
    tokenizer = byte_tokenizer(start="none")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}"
        + ending
        + "{% endif %}"
    )
    encoder = PromptEncoder(tokenizer, system_prompt="")
    assert encoder.response_prefix == prefix and encoder.can_think == bool(prefix)
    spoken = encoder.with_thinking(True)
    assert spoken.response_prefix == "" and spoken.thinking and not encoder.thinking
    assert (spoken.opened_thought is not None) == (ending.rstrip().endswith(("<think>", "[THINK]")))


def test_a_thought_that_the_prompt_opened_is_split_from_its_first_token() -> None:
    template = TEMPLATE.replace("<|assistant|>{% if", "<|assistant|><think>{% if").replace(
        FILLER + "<think>", ""
    )
    tokenizer = byte_tokenizer(start="none")
    tokenizer.chat_template = template
    encoder = PromptEncoder(tokenizer, system_prompt="", thinking=True)
    assert encoder.opened_thought == MARKERS[0]
    assert split_thought("I cannot?</think>Sure", encoder.opened_thought).answer == "Sure"


def prompt_set(rows: list[Prompt]) -> PromptSet:
    return PromptSet(tuple(rows), "0", "test")


def make_run(model: Model, tmp_path: Path, *tokens: str) -> Run:
    """A run up to the point where the base is measured."""
    words = [
        "m",
        "--behaviour=demo",
        f"--thinking-tokens={BUDGET}",
        f"--max-response-length={ANSWER}",
        *tokens,
    ]
    resolved = resolve_settings(
        [*words, "--refusal-markers=i cannot", "--refusal-check-tokens=8"], environ={}, cwd=tmp_path
    )
    some = prompt_set(prompts())
    run = Run(resolved, Console(quiet=True), StopFlag())
    run.model = model
    run.bundle = DatasetBundle(some, some, some, some, some, some, None)
    return run


def test_auto_measures_both_modes_on_held_out_prompts(tmp_path: Path) -> None:
    """R-MOD-52, R-MOD-53: the search speaks without thoughts, the confirmation in both modes, and both say so."""
    run = make_run(scripted(thinking=False), tmp_path, "--thinking=auto")
    confirmation = Confirmation(run)
    base = confirmation.measure_base()
    trial = confirmation.measure_trials([{}])[0][1]
    assert run.model is not None
    saved = confirmation.measure_other(run.model, FastEngine(run.model))[1]
    for found in (base, trial, saved):
        second = found.thinking
        assert second is not None
        assert (found.where, found.mode, found.rate.hits) == ("held_out", "off", 4)
        assert (second.where, second.mode, second.rate.hits) == ("held_out_thinking", "on", 1)
        assert second.thoughts["exhausted"] == 2 and second.thoughts["with_thought"] == 4
        assert found.thoughts == {}
    assert {"thinking_loop", "thinking_exhausted"} <= set(trial.thinking.guards if trial.thinking else ())
    assert not {"thinking_loop", "thinking_exhausted"} & set(trial.guards)
    flat: Mapping[str, object] = flat_measurement(trial)
    assert flat["thinking_mode"] == "off"
    assert [row.metric for row in _card_rows(confirmation, saved)][2] == "behaviour rate, thinking on"
    assert "thinking off, and thinking on" in _mode_text(run, saved)


@pytest.mark.parametrize(("setting", "mode", "hits"), [("off", "off", 4), ("on", "on", 1)])
def test_one_mode_is_measured_where_one_is_asked_for(
    setting: str, mode: str, hits: int, tmp_path: Path
) -> None:
    """Control of the test above."""
    thinks = setting == "on"
    run = make_run(scripted(thinking=True), tmp_path, "--thinking=on") if thinks else plain_run(tmp_path)
    found = Confirmation(run).measure_base()
    assert (found.mode, found.rate.hits, found.thinking) == (mode, hits, None)
    assert f"thinking {mode}" in _mode_text(run, found)


def plain_run(tmp_path: Path) -> Run:
    resolved = resolve_settings(
        ["m", "--behaviour=demo", f"--max-response-length={ANSWER}", "--refusal-markers=i cannot"],
        environ={},
        cwd=tmp_path,
    )
    run = Run(resolved, Console(quiet=True), StopFlag())
    run.model = scripted(thinking=False)
    some = prompt_set(prompts())
    run.bundle = DatasetBundle(some, some, some, some, some, some, None)
    return run


def test_auto_on_a_model_without_thoughts_says_so(tmp_path: Path) -> None:
    model = loaded_pico()
    run = make_run(model, tmp_path, "--thinking=auto")
    assert Confirmation(run).second is None
    assert any("no thinking mode" in line for line in run.degradations)


@pytest.mark.parametrize(("plain", "noted"), [(PLAIN, False), ("<think>again", True)])
def test_off_is_verified_on_three_prompts(plain: str, noted: bool, tmp_path: Path) -> None:
    """R-MOD-50: a switch that does not switch is told."""
    run = plain_run(tmp_path)
    run.model = scripted(thinking=False, plain=plain)
    verify_no_thought(run)
    assert any("could not be switched off: 3 of 3" in line for line in run.degradations) == noted


def test_a_model_that_always_opens_a_thought_gets_a_closed_one(tmp_path: Path) -> None:
    """R-MOD-46, R-MOD-50: no switch and no opening in the template, but every reply begins with <think>."""
    template = "{% for m in messages %}<|user|>{{ m.content }}</s>{% endfor %}<|assistant|>"
    run = plain_run(tmp_path)
    run.model = scripted(template, thinking=False)
    assert not run.model.encoder.can_think
    assert detect_response_prefix(run) == MARKERS[0].closed_block
    assert run.model.encoder.can_think
