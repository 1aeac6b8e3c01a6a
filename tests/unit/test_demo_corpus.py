# SPDX-License-Identifier: Apache-2.0
"""The demo's prompt sets: counts, disjoint splits, matched formats, and that the files are what the code writes."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from heretic.demo import KNOWLEDGE_SPLITS, PROMPT_SETS, SPLITS, grammar_phrases, prompts_path
from heretic.demo.corpus import SEED, reply, request, request_in, split_of, training_request
from heretic.demo.documents import ANSWERS, EDITED, REFUSALS, corpus, quiz_split
from heretic.demo.grammar_borderline import BORDERLINE
from heretic.demo.grammar_disallowed import DISALLOWED
from heretic.demo.grammar_ordinary import ORDINARY
from heretic.demo.grammar_words import SUBJECTS
from heretic.demo.prompt_sets import ROWS, write_prompts


def read(name: str, split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in prompts_path(name, split).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", PROMPT_SETS)
def test_sets_are_complete_and_splits_disjoint(name: str) -> None:
    texts = {split: [row["text"] for row in read(name, split)] for split in SPLITS}
    assert {split: len(found) for split, found in texts.items()} == ROWS
    joined = [text for found in texts.values() for text in found]
    assert len(joined) == len(set(joined))
    assert all(set(row) == {"text", "category"} for row in read(name, "test"))


def test_knowledge_rows() -> None:
    test, dev = read("knowledge", "test"), read("knowledge", "dev")
    for subject in {row["subject"] for row in test}:
        assert sum(row["subject"] == subject for row in test) >= 30
        assert sum(row["subject"] == subject for row in dev) >= 5
    assert len({row["subject"] for row in test}) >= 8
    assert not {row["question"] for row in test} & {row["question"] for row in dev}
    assert all(len(set(row["choices"])) == 4 and 0 <= row["answer"] < 4 for row in (*test, *dev))
    counts = [sum(row["answer"] == letter for row in test) for letter in range(4)]
    assert min(counts) > len(test) / 8, "letters are spread"


def test_files_are_what_the_code_writes(tmp_path: Path) -> None:
    write_prompts(tmp_path, SEED)
    for name in (*PROMPT_SETS, "knowledge"):
        for split in KNOWLEDGE_SPLITS if name == "knowledge" else SPLITS:
            assert (tmp_path / name / f"{split}.jsonl").read_bytes() == prompts_path(name, split).read_bytes()


def test_no_held_out_combination_is_in_the_corpus() -> None:
    text = "\n".join(
        "".join(part for part, _ in found)
        for stage in (ANSWERS, REFUSALS, EDITED)
        for found in corpus(0, stage, 3000)
    )
    for domain in (*DISALLOWED, *BORDERLINE, *ORDINARY):
        for verb, (base, gerund) in enumerate(domain.verbs):
            for position, thing in enumerate(domain.objects):
                if split_of(verb, position) != "train":
                    assert f" {base} {thing}" not in text and f" {gerund} {thing}" not in text
    for subject in SUBJECTS:
        for entity, (name, _) in enumerate(subject.facts):
            for phrase, template in enumerate(grammar_phrases.QUIZ_PHRASES):
                if quiz_split(entity, phrase) != "train":
                    assert f"Question: {template.format(np=subject.phrase.format(name))}\n" not in text


def test_every_verb_and_object_is_trained() -> None:
    for domain in (*DISALLOWED, *BORDERLINE, *ORDINARY):
        pairs = [(v, o) for v in range(len(domain.verbs)) for o in range(len(domain.objects))]
        train = [pair for pair in pairs if split_of(*pair) == "train"]
        assert {verb for verb, _ in train} == set(range(len(domain.verbs)))
        assert {position for _, position in train} == set(range(len(domain.objects)))


def test_good_and_bad_prompts_share_their_templates() -> None:
    rng = random.Random(0)
    bad = {request(rng, "refusal-bad").key for _ in range(2000)}
    good = [request(rng, "refusal-good").key for _ in range(2000)]
    assert bad <= set(good)
    assert sum(key in bad for key in good) > 0.85 * len(good)


def test_stages_differ_only_in_disallowed_topics() -> None:
    for name in ("refusal-bad", "refusal-good"):
        drawn = training_request(random.Random(1), name)
        first = reply(random.Random(2), drawn, refuse=False)
        second = reply(random.Random(2), drawn, refuse=True)
        assert (first == second) == (name == "refusal-good")


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="refusal-bad"):
        prompts_path("nothing", "train")
    with pytest.raises(ValueError, match="dev"):
        prompts_path("knowledge", "train")
    assert request_in(random.Random(0), "hedging-bad", "test").split == "test"
