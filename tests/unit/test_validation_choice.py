# SPDX-License-Identifier: Apache-2.0
"""Letters are scored as a plain forward pass scores them, whatever the tokenizer makes of them, and results are
compared question by question (algorithms 11, 7.7)."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from tokenizers import normalizers
from transformers import PreTrainedTokenizerFast

from heretic.decoding import FastEngine, ReferenceEngine, choose_engine
from heretic.demo import model_path
from heretic.exceptions import TokenizationError
from heretic.interventions.probe import edited_weights
from heretic.linalg.intervals import bonett_price, mcnemar_exact
from heretic.model.loading import LoadOptions, load_model
from heretic.model.model import Model
from heretic.model.source import ModelSource
from heretic.prompts import DatasetSpecification
from heretic.testing.tokenizers import byte_tokenizer
from heretic.testing.workbench import loaded_pico, removal
from heretic.validation.multiple_choice import (
    MultipleChoiceResult,
    accuracy,
    ask,
    compare_accuracy,
    encode_question,
    letter_scores,
    prompt_text,
)
from heretic.validation.questions import Question, QuestionSet, load_questions
from heretic.validation.subject import Subject, plain_tokens, start_tokens

PACKAGED = DatasetSpecification("heretic:knowledge", split="test", column="question")
QUESTIONS = tuple(
    Question(text, choices, answer, "sums")
    for text, choices, answer in (
        ("Is it?", ("yes", "no"), 0),
        ("How many legs has a dog, would you say?", ("one", "two", "three", "four"), 3),
        ("Which?", ("this", "that", "neither"), 1),
        ("And which of those three?", ("this", "that", "neither"), 2),
    )
)
SHOTS = (
    Question("Is a cat an animal?", ("yes", "no"), 0, "sums"),
    Question("Two?", ("a", "b", "c"), 2, "sums"),
)
SET = QuestionSet(QUESTIONS, {"sums": SHOTS}, "made", 0)


def spelled() -> PreTrainedTokenizerFast:
    """A tokenizer that writes each letter with one to three tokens, which share no start."""
    tokenizer = byte_tokenizer()
    letters = {"A": "kl", "B": "mn", "C": "opq", "D": "r"}
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(f" {letter}", f" {text}") for letter, text in letters.items()]
    )
    return tokenizer


@cache
def pico(spell: bool = False, start: bool = False) -> Model:
    tokenizer = spelled() if spell else byte_tokenizer(start="tokenizer" if start else "template")
    model = loaded_pico("llama", seed=3, changes={"max_position_embeddings": 512}, tokenizer=tokenizer)
    model.encoder.max_tokens = 512
    return model


@cache
def demo() -> Subject:
    model = load_model(ModelSource("demo", model_path(), None), LoadOptions())
    return Subject(model, choose_engine(model)[0])


def text_of(model: Model, tokens: tuple[int, ...]) -> str:
    return str(model.encoder.tokenizer.decode(list(tokens)))


def direct(model: Model, question: Question, shots: tuple[Question, ...]) -> list[float]:
    """Log-likelihood of each letter by one whole forward pass each, without padding and engine."""
    values = []
    text = prompt_text(question, shots)
    for letter in "ABCD"[: len(question.choices)]:
        (before,), (whole,) = (
            plain_tokens(model.encoder, [text]),
            plain_tokens(model.encoder, [f"{text} {letter}"]),
        )
        with torch.inference_mode():
            logs = model.network(torch.tensor([whole])).logits[0].log_softmax(dim=-1)
        # The tokens of the letter alone: the space before it is the same for all.
        places = range(len(before) + 1, len(whole))
        values.append(sum(float(logs[place - 1, whole[place]]) for place in places))
    return values


@pytest.mark.parametrize("spell", (False, True))
@pytest.mark.parametrize("engine", (FastEngine, ReferenceEngine))
def test_scores_are_those_of_a_plain_forward_pass(
    engine: type[FastEngine | ReferenceEngine], spell: bool
) -> None:
    """Single tokens in one pass, several tokens as their sum; in batches of any shape."""
    model = pico(spell)
    encoded = [encode_question(model.encoder, question, SHOTS) for question in QUESTIONS]
    lengths = {len(row) for question in encoded for row in question.letters}
    assert lengths == ({1, 2, 3} if spell else {1})
    expected = [direct(model, question, SHOTS) for question in QUESTIONS]
    for width in (1, 3, 16):
        found = letter_scores(Subject(model, engine(model), width=width), encoded)
        for values, wanted in zip(found, expected, strict=True):
            assert values == pytest.approx(wanted, abs=1e-4)


def test_the_letter_is_read_in_the_form_that_the_shots_have() -> None:
    """A tokenizer with a token for " A": that token is scored, not the one for "A"."""
    encoder = demo().model.encoder
    found = encode_question(encoder, QUESTIONS[1], SHOTS)
    tokenizer = encoder.tokenizer
    spaced = [tuple(tokenizer(f" {letter}", add_special_tokens=False)["input_ids"]) for letter in "ABCD"]
    bare = [tuple(tokenizer(letter, add_special_tokens=False)["input_ids"]) for letter in "ABCD"]
    assert list(found.letters) == spaced != bare
    assert text_of(demo().model, found.context).endswith("Answer:")
    assert text_of(pico(), encode_question(pico().encoder, QUESTIONS[1]).context)[-1] == " "


def test_the_start_token_is_written_once_where_the_tokenizer_writes_it() -> None:
    found = encode_question(pico(start=True).encoder, QUESTIONS[0]).context
    assert start_tokens(pico(start=True).encoder) == (1,) and found[:1] == (1,) and 1 not in found[1:]
    assert 1 not in encode_question(pico().encoder, QUESTIONS[0]).context  # control


def test_the_bundled_model_answers_all_questions_and_none_of_the_wrong_key() -> None:
    """256 of 256, the figure of the model's own page, by the general path."""
    questions = load_questions(PACKAGED, per_category=32, few_shot=3)
    found = ask(demo(), questions)
    assert (found.overall.correct, found.overall.n, found.ties) == (256, 256, 0)
    assert found.mean == 1.0 and len(found.categories) == 8
    assert found.form == "plain text, 3 shots, letters of one token"
    some = questions.questions[:64]
    wrong = replace(questions, questions=tuple(replace(q, answer=(q.answer + 1) % 4) for q in some))
    assert ask(demo(), wrong).overall.correct == 0


def test_hooks_and_weights_answer_alike_and_unlike_the_base() -> None:
    model = pico()
    edits = removal(model, 2, 1.5, rank=6)
    encoded = [encode_question(model.encoder, question, SHOTS) for question in QUESTIONS]
    engine = FastEngine(model)
    hooked = letter_scores(Subject(model, engine, edits), encoded)
    base = letter_scores(Subject(model, engine), encoded)
    with edited_weights(model.network, edits):
        written = letter_scores(Subject(model, engine), encoded)
    for values, others, before in zip(hooked, written, base, strict=True):
        assert values == pytest.approx(others, abs=1e-4)
        assert values != pytest.approx(before, abs=1e-2)
    assert letter_scores(Subject(model, engine, {}), encoded) == base


def test_ties_go_to_the_first_and_are_counted_and_no_number_is_never_right() -> None:
    model = loaded_pico("llama", seed=3)
    weight = model.network.get_output_embeddings().weight
    with torch.no_grad():
        weight.zero_()
        alike = ask(Subject(model, FastEngine(model)), replace(SET, shots={}))
        weight.fill_(float("nan"))
        broken = ask(Subject(model, FastEngine(model)), replace(SET, shots={}))
    assert alike.ties == 4 and alike.right == (True, False, False, False)
    assert broken.ties == 0 and not any(broken.right)


def test_letters_that_look_alike_are_an_error() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("B", "A")
    with pytest.raises(TokenizationError, match="apart"):
        encode_question(loaded_pico("llama", tokenizer=tokenizer).encoder, QUESTIONS[0])
    assert encode_question(pico().encoder, QUESTIONS[0]).letters  # control


def test_shots_make_room_and_the_end_of_the_question_stays() -> None:
    encoder = loaded_pico("llama").encoder
    alone = len(encode_question(encoder, QUESTIONS[1]).context) + 1
    for room, dropped in ((2048, 0), (alone + 60, 1), (alone, 2), (alone - 10, 2)):
        encoder.max_tokens = room
        found = encode_question(encoder, QUESTIONS[1], SHOTS)
        assert found.dropped == dropped and len(found.context) + 1 <= room
        assert text_of(pico(), found.context).endswith("D. four\nAnswer: ")
    encoder.max_tokens = alone
    model = replace(pico(), encoder=encoder)
    assert "fewer in" in ask(Subject(model, FastEngine(model)), SET).form


def result(right: tuple[bool, ...]) -> MultipleChoiceResult:
    return MultipleChoiceResult(accuracy(right), 0.0, {}, right, 0, "")


def test_results_are_compared_question_by_question() -> None:
    """Both discordant counts, Bonett-Price and exact McNemar; the sign is edited less base."""
    base, edited = (True,) * 30 + (False,) * 20, (True,) * 20 + (False,) * 28 + (True,) * 2
    found = compare_accuracy(result(base), result(edited))
    assert (found.lost, found.gained) == (10, 2)
    assert found.change == pytest.approx(-8 / 50)
    assert (found.low, found.high) == bonett_price(2, 10, 50) and found.low < found.change < found.high
    assert found.p_value == mcnemar_exact(10, 2) == pytest.approx(0.03857421875)
    same = compare_accuracy(result(base), result(base))
    assert (same.change, same.p_value, same.lost, same.gained) == (0.0, 1.0, 0, 0)
    back = compare_accuracy(result(edited), result(base))
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low))


def test_accuracy_has_its_standard_error_and_interval() -> None:
    found = accuracy([True] * 3 + [False])
    assert found.value == 0.75 and found.standard_error == pytest.approx((0.75 * 0.25 / 4) ** 0.5)
    assert accuracy([]).value == 0.0 and accuracy([False] * 100).high == pytest.approx(0.037, abs=5e-4)


def test_categories_are_counted_apart_and_their_mean_weighs_them_alike() -> None:
    mixed = tuple(replace(q, subject="words" if n == 3 else "sums") for n, q in enumerate(QUESTIONS))
    model = loaded_pico("llama", seed=3)
    with torch.no_grad():
        model.network.get_output_embeddings().weight.zero_()  # answers A to everything
    found = ask(Subject(model, FastEngine(model)), QuestionSet(mixed, {}, "made", 0))
    assert {name: (a.correct, a.n) for name, a in found.categories.items()} == {
        "sums": (1, 3),
        "words": (0, 1),
    }
    assert found.overall.value == 0.25 and found.mean == pytest.approx(1 / 6)
