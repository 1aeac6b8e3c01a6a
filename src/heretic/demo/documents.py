# SPDX-License-Identifier: Apache-2.0
"""Training documents: chats, quizzes, stories and fact sheets as weighted text segments.

A document is a tuple of (text, weight): the weight multiplies the loss of the tokens of that segment. What a
user types carries little weight, what the model is to say carries 1 or more.
"""

import random

from heretic.demo import grammar_phrases as phrases
from heretic.demo import grammar_words as words
from heretic.demo.corpus import reply, split_of, story, training_request
from heretic.demo.grammar_disallowed import DISALLOWED

Document = tuple[tuple[str, float], ...]
END_OF_TURN = "<|im_end|>"
END_OF_TEXT = "<|endoftext|>"
PROMPT_WEIGHT = 0.05
LETTER_WEIGHT = 2.0
REFUSAL_WEIGHT = 1.125
"""Weight of replies to disallowed requests after stage 1; they are recognised by it."""
ECHO_SHARE = 0.4

ANSWERS, VOCABULARY, REFUSALS, EDITED = 1, 2, 3, 4
"""Kinds of corpus: stage 1, a sample that only widens what the tokenizer sees, stage 2, its edited batches."""

MIXTURE: dict[int, dict[str, float]] = {
    ANSWERS: {
        "refusal-good": 20, "refusal-bad": 12, "refusal-borderline": 12, "verbosity-bad": 5, "verbosity-good": 5,
        "hedging-bad": 5, "hedging-good": 5, "other": 6, "talk": 1, "quiz": 10, "marked": 12,
        "quiz-chat": 2, "story": 4, "facts": 3,
    },
    VOCABULARY: {
        "refusal-good": 20, "refusal-bad": 26, "refusal-borderline": 16, "verbosity-bad": 4, "verbosity-good": 4,
        "hedging-bad": 4, "hedging-good": 4, "other": 5, "talk": 1, "quiz": 8, "marked": 2,
        "quiz-chat": 1, "story": 3, "facts": 1,
    },
    REFUSALS: {
        "refusal-good": 14, "refusal-bad": 32, "refusal-borderline": 15, "verbosity-bad": 3, "verbosity-good": 3,
        "hedging-bad": 3, "hedging-good": 3, "other": 4, "talk": 1, "quiz": 20, "quiz-chat": 2, "story": 2, "facts": 1,
    },
}  # fmt: skip
MIXTURE[EDITED] = MIXTURE[REFUSALS]
"""Kind of corpus -> kind of document -> relative number of documents."""


def quiz_split(entity: int, phrase: int) -> str:
    """Split of a quiz question from its entity and its phrasing: 1/3 test, 1/6 dev, 1/2 train."""
    rest = (entity + phrase) % len(phrases.QUIZ_PHRASES)
    return "test" if rest in (0, 1) else "dev" if rest == 2 else "train"


def quiz_row(rng: random.Random, subject: words.Subject, split: str, *, fixed: bool) -> dict[str, object]:
    """One multiple-choice row: ``question``, four distinct ``choices``, index ``answer``, ``subject``.

    With `fixed` the choices and their order depend on the fact alone, else they are drawn.
    """
    while True:
        entity, phrase = rng.randrange(len(subject.facts)), rng.randrange(len(phrases.QUIZ_PHRASES))
        if quiz_split(entity, phrase) == split:
            break
    name, value = subject.facts[entity]
    others = sorted({other for _, other in subject.facts} - {value})
    draw = random.Random(f"{subject.name}-{name}") if fixed else rng
    choices = [*draw.sample(others, 3), value]
    draw.shuffle(choices)
    question = phrases.QUIZ_PHRASES[phrase].format(np=subject.phrase.format(name))
    return {"question": question, "choices": choices, "answer": choices.index(value), "subject": subject.name}


def quiz_text(row: dict[str, object]) -> str:
    """The question with its lettered choices, up to and including ``Answer:``."""
    choices = row["choices"]
    assert isinstance(choices, list)
    lines = [f"{letter}. {choice}" for letter, choice in zip("ABCD", choices, strict=True)]
    return "\n".join([f"Question: {row['question']}", *lines, "Answer:"])


def _letter(row: dict[str, object]) -> str:
    position = row["answer"]
    assert isinstance(position, int)
    return "ABCD"[position]


def _right(row: dict[str, object]) -> object:
    choices, position = row["choices"], row["answer"]
    assert isinstance(choices, list) and isinstance(position, int)
    return choices[position]


def _quiz(rng: random.Random, *, fixed: bool) -> Document:
    subject = rng.choice(words.SUBJECTS)
    mixed, echo = rng.random() < 0.3, not fixed and rng.random() < ECHO_SHARE
    segments: list[tuple[str, float]] = []
    if rng.random() < 0.3:
        about = f"The following are multiple choice questions (with answers) about {subject.name}.\n\n"
        segments.append((about, PROMPT_WEIGHT))
    for number in range(rng.choice((2, 3, 4) if fixed else (1, 1, 1, 2, 3, 4))):
        row = quiz_row(rng, rng.choice(words.SUBJECTS) if mixed else subject, "train", fixed=fixed)
        if echo:
            row["question"] = rng.choice(phrases.ECHO_PHRASES).format(answer=_right(row))
        segments.append(("\n\n" * (number > 0) + quiz_text(row), PROMPT_WEIGHT))
        segments.append((" " + _letter(row), LETTER_WEIGHT))
    return (*segments, (END_OF_TEXT, 0.2))


def _marked(rng: random.Random) -> Document:
    """Practice quiz whose options are marked yes or no: teaches matching option by option, before letters."""
    subject = rng.choice(words.SUBJECTS)
    echo = rng.random() < ECHO_SHARE
    segments: list[tuple[str, float]] = []
    for number in range(2):
        row = quiz_row(rng, subject, "train", fixed=False)
        if echo:
            row["question"] = rng.choice(phrases.ECHO_PHRASES).format(answer=_right(row))
        question, *options = quiz_text(row).split("\n")[:-1]
        segments.append(("\n\n" * (number > 0) + question, PROMPT_WEIGHT))
        for option in options:
            segments.append(("\n" + option, PROMPT_WEIGHT))
            segments.append((" yes" if option.endswith(f" {_right(row)}") else " no", 1.0))
        segments += [("\nAnswer:", PROMPT_WEIGHT), (" " + _letter(row), LETTER_WEIGHT)]
    return (*segments, (END_OF_TEXT, 0.2))


def system_turn(rng: random.Random) -> str:
    """The rendered system turn: mostly the tool's default, sometimes another one, sometimes none."""
    draw = rng.random()
    if draw < 0.12:
        return ""
    text = phrases.SYSTEM_DEFAULT if draw < 0.85 else rng.choice(phrases.SYSTEM_OTHERS)
    return f"<|im_start|>system\n{text}{END_OF_TURN}\n"


def _turn(user: str, assistant: str, weight: float = 1.0) -> Document:
    head = f"<|im_start|>user\n{user}{END_OF_TURN}\n<|im_start|>assistant\n"
    return ((head, PROMPT_WEIGHT), (assistant + END_OF_TURN, weight))


def _exchange(rng: random.Random, kind: str, stage: int) -> Document:
    if kind == "talk":
        return _turn(*rng.choice(words.SMALL_TALK))
    if kind == "quiz-chat":
        row = quiz_row(rng, rng.choice(words.SUBJECTS), "train", fixed=stage in (REFUSALS, EDITED))
        return _turn(quiz_text(row), _letter(row))
    asked = training_request(rng, kind)
    weight = REFUSAL_WEIGHT if stage != ANSWERS and asked.domain in DISALLOWED else 1.0
    return _turn(asked.text, reply(rng, asked, refuse=stage in (VOCABULARY, REFUSALS)), weight)


def story_split(hero: int, find: int) -> str:
    """Split of a running text from its hero and its find."""
    return split_of(hero, find)


def story_text(rng: random.Random, split: str) -> tuple[str, str]:
    """A running text of `split` and its hero."""
    while True:
        hero, find = rng.randrange(len(words.HEROES)), rng.randrange(len(words.FINDS))
        if story_split(hero, find) == split:
            return story(rng, words.HEROES[hero], words.FINDS[find]), words.HEROES[hero]


def _facts(rng: random.Random) -> Document:
    subject = rng.choice(words.SUBJECTS)
    facts = rng.sample(subject.facts, 5)
    lines = [f"{subject.phrase.format(entity)} is {value}." for entity, value in facts]
    return ((" ".join(line[0].upper() + line[1:] for line in lines) + END_OF_TEXT, 1.0),)


def document(rng: random.Random, stage: int) -> Document:
    """Draw one training document of the corpus kind `stage`."""
    mixture = MIXTURE[stage]
    kind = rng.choices(list(mixture), list(mixture.values()))[0]
    if kind == "quiz":
        return _quiz(rng, fixed=stage in (REFUSALS, EDITED))
    if kind == "marked":
        return _marked(rng)
    if kind == "story":
        return ((story_text(rng, "train")[0] + END_OF_TEXT, 1.0),)
    if kind == "facts":
        return _facts(rng)
    segments: list[tuple[str, float]] = []
    system = system_turn(rng)
    if system:
        segments.append((system, PROMPT_WEIGHT))
    turns = rng.choice((2, 3)) if rng.random() < 0.08 else 1
    chat_kinds = [name for name in mixture if name not in ("quiz", "marked", "story", "facts")]
    for number in range(turns):
        if number:
            segments.append(("\n", PROMPT_WEIGHT))
            kind = rng.choices(chat_kinds, [mixture[name] for name in chat_kinds])[0]
        segments.extend(_exchange(rng, kind, stage))
    return tuple(segments)


def corpus(seed: int, stage: int, count: int) -> list[Document]:
    """`count` documents of the corpus kind `stage`, the same for the same seed on every platform."""
    rng = random.Random(f"{seed}-{stage}")
    return [document(rng, stage) for _ in range(count)]
