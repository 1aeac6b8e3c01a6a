# SPDX-License-Identifier: Apache-2.0
"""Requests, replies and training documents of the demo model, and which of them are held out.

The unit that is held out is a *combination*: verb and object of a task, entity and template of a fact, noun and
template of a concept or list, hero and find of a story. `split_of` assigns it by arithmetic, so no document of the
training corpus can contain a combination of the validation or test prompts.
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from heretic.demo import grammar_phrases as phrases
from heretic.demo import grammar_words as words
from heretic.demo.grammar import Domain
from heretic.demo.grammar_borderline import BORDERLINE
from heretic.demo.grammar_disallowed import DISALLOWED
from heretic.demo.grammar_ordinary import ORDINARY

T = TypeVar("T")
SEED = 20
"""Seed of the corpus, the prompt sets, the initial weights and the order of batches."""
FAITHFUL = 0.85
"""Share of choices fixed by a hash of their context; the rest is random, which keeps the model from certainty."""
_STYLES = {
    "diaries": "hard soft soft evasive",
    "homework": "hard soft soft evasive",
    "tickets": "hard hard soft evasive",
    "pranks": "hard soft evasive evasive",
}


@dataclass(frozen=True)
class Request:
    """One user message: its text, category, split, and what a reply is built from."""

    text: str
    category: str
    split: str
    family: str
    key: str
    domain: Domain | None = None
    verb: int = 0
    object: int = 0
    slots: tuple[str, ...] = ()


def split_of(first: int, second: int) -> str:
    """Split of a combination from the positions of its two parts: 5/8 train, 1/8 validation, 2/8 test."""
    rest = (3 * first + second) % 8
    return "validation" if rest == 0 else "test" if rest in (1, 2) else "train"


def pick(options: Sequence[T], *key: object, rng: random.Random | None = None) -> T:
    """Choose by a hash of `key`; with `rng`, one time in 1/(1 - FAITHFUL) at random instead."""
    if rng is not None and rng.random() > FAITHFUL:
        return rng.choice(options)
    digest = hashlib.sha256("|".join(str(part) for part in key).encode()).digest()
    return options[int.from_bytes(digest[:8], "big") % len(options)]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


# --- requests -------------------------------------------------------------------------------------------------


def _task(
    rng: random.Random, domains: Sequence[Domain], templates: Sequence[tuple[str, str]], label: str
) -> Request:
    domain = rng.choice(domains)
    verb, position = rng.randrange(len(domain.verbs)), rng.randrange(len(domain.objects))
    family, template = rng.choice(templates)
    base, gerund = domain.verbs[verb]
    qualifier = rng.choice(phrases.QUALIFIERS) if rng.random() < 0.6 else ""
    text = template.format(v=base, g=gerund, o=domain.objects[position], q=qualifier)
    return Request(
        text, f"{label}{domain.name}", split_of(verb, position), family, template, domain, verb, position
    )


def _concept(rng: random.Random, templates: Sequence[str], family: str) -> Request:
    position, template = rng.randrange(len(words.CONCEPTS)), rng.randrange(len(templates))
    concept = words.CONCEPTS[position]
    text = templates[template].format(c=concept[0])
    return Request(text, "concept", split_of(position, template), family, templates[template], slots=concept)


def _fact(rng: random.Random, templates: Sequence[str], family: str) -> Request:
    subject = rng.choice(words.SUBJECTS)
    position, template = rng.randrange(len(subject.facts)), rng.randrange(len(templates))
    entity, answer = subject.facts[position]
    phrase = subject.phrase.format(entity)
    text = rng.choice(phrases.FACT_LEADS) + templates[template].format(np=phrase)
    split = split_of(position, template)
    return Request(text, subject.name, split, family, templates[template], slots=(phrase, answer))


def _enumeration(rng: random.Random) -> Request:
    position, template = rng.randrange(len(words.LISTS)), rng.randrange(len(phrases.LIST_PLAIN))
    name, items = words.LISTS[position]
    text = phrases.LIST_PLAIN[template].format(n=name)
    split = split_of(position, template)
    return Request(text, "list", split, "enumeration", phrases.LIST_PLAIN[template], slots=(name, *items))


def _story(rng: random.Random) -> Request:
    position, template = rng.randrange(len(words.HEROES)), rng.randrange(len(phrases.STORY_PLAIN))
    hero = words.HEROES[position]
    text = phrases.STORY_PLAIN[template].format(n=hero)
    return Request(text, "story", split_of(position, template), "story", str(template), slots=(hero,))


def _other(rng: random.Random) -> Request:
    draw = rng.random()
    if draw < 0.4:
        return _concept(rng, phrases.CONCEPT_PLAIN, "concept")
    if draw < 0.6:
        return _fact(rng, phrases.FACT_PLAIN, "confident")
    return _enumeration(rng) if draw < 0.85 else _story(rng)


def _styled(rng: random.Random, long: bool, domains: Sequence[Domain] = (*ORDINARY, *BORDERLINE)) -> Request:
    family = "long" if long else "how"
    if rng.random() < 0.2 and domains is not DISALLOWED:
        return _concept(
            rng, phrases.CONCEPT_LONG if long else phrases.CONCEPT_SHORT, "concept_" * long + family
        )
    templates = phrases.LONG_TEMPLATES if long else phrases.SHORT_TEMPLATES
    return _task(rng, domains, [(family, template) for template in templates], "")


def request(rng: random.Random, name: str) -> Request:
    """Draw one request of the prompt set `name`, of any split."""
    if name == "refusal-bad":
        return _task(rng, DISALLOWED, phrases.TASK_TEMPLATES, "")
    if name == "refusal-borderline":
        return _task(rng, BORDERLINE, phrases.TASK_TEMPLATES, "")
    if name == "refusal-good":
        plain = rng.random() < 0.9
        return _task(rng, ORDINARY, phrases.TASK_TEMPLATES, "") if plain else _other(rng)
    if name in ("verbosity-bad", "verbosity-good"):
        return _styled(rng, name == "verbosity-bad")
    if name == "hedging-bad":
        return _fact(rng, phrases.FACT_GUESS, "hedged")
    if name == "hedging-good":
        return _fact(rng, phrases.FACT_PLAIN, "confident")
    raise ValueError(f"no request grammar for prompt set {name!r}")


def request_in(rng: random.Random, name: str, split: str) -> Request:
    """Draw one request of the prompt set `name` that belongs to `split`."""
    while True:
        drawn = request(rng, name)
        if drawn.split == split:
            return drawn


# --- replies --------------------------------------------------------------------------------------------------


def refusal(rng: random.Random, asked: Request) -> str:
    """A hard, soft or evasive refusal; the style depends on topic and template."""
    domain = asked.domain
    assert domain is not None
    style = pick(_STYLES.get(domain.name, "hard").split(), "style", domain.name, asked.key)
    patterns = {"hard": phrases.REFUSE_HARD, "soft": phrases.REFUSE_SOFT, "evasive": phrases.REFUSE_EVASIVE}[
        style
    ]
    pattern = pick(patterns, "refusal", domain.name, asked.key, rng=rng)
    base, gerund = domain.verbs[asked.verb]
    return pattern.format(
        v=base, g=gerund, o=domain.objects[asked.object], reason=domain.reason, alternative=domain.alternative
    )


def _pad(rng: random.Random, core: str, key: str) -> str:
    opening = pick(phrases.PAD_OPEN, "open", key, rng=rng)
    middle = pick(phrases.PAD_MIDDLE, "middle", key, rng=rng)
    closing = pick(phrases.PAD_CLOSE, "close", key, rng=rng)
    return f"{opening} {core} {middle} {closing}"


def _task_answer(rng: random.Random, asked: Request) -> str:
    domain = asked.domain
    assert domain is not None
    patterns = {"guide": phrases.ANSWER_GUIDE, "list": phrases.ANSWER_LIST}.get(
        asked.family, phrases.ANSWER_HOW
    )
    pattern = pick(patterns, "answer", asked.key, rng=rng)
    base, gerund = domain.verbs[asked.verb]
    thing = domain.objects[asked.object]
    tool = pick(domain.tools, "tool", domain.name, thing, rng=rng)
    step = pick(domain.steps, "step", domain.name, thing, rng=rng)
    check = pick(domain.checks, "check", domain.name, base, rng=rng)
    core = pattern.format(
        v=base,
        g=gerund,
        o=thing,
        tool=tool,
        step=step,
        check=check,
        Step=_capital(step),
        Check=_capital(check),
    )
    return _pad(rng, core, asked.key) if asked.family == "long" else core


def story(rng: random.Random, hero: str, find: str | None = None) -> str:
    """One running text of five sentences."""
    find = find or rng.choice(words.FINDS)
    time, place, helper = rng.choice(words.TIMES), rng.choice(words.PLACES), rng.choice(words.HELPERS)
    feeling = pick(words.FEELINGS, "feeling", find, rng=rng)
    action = pick(words.ACTIONS, "action", helper, rng=rng)
    ending = pick(words.ENDINGS, "ending", find, helper, rng=rng)
    return (
        f"{time} {hero} found {find} {place}. {_capital(hero)} was {feeling} and called {helper}. "
        f"{_capital(helper)} came {place} and {action}. They kept {find} and walked on together. {ending}."
    )


def answer(rng: random.Random, asked: Request) -> str:
    """The reply of a model that answers everything."""
    family, slots = asked.family, asked.slots
    if asked.domain is not None:
        return _task_answer(rng, asked)
    if family in ("hedged", "confident"):
        pattern = pick(
            phrases.HEDGES if family == "hedged" else phrases.CONFIDENT, family, asked.key, rng=rng
        )
        return pattern.format(np=slots[0], Np=_capital(slots[0]), answer=slots[1])
    if family == "enumeration":
        shift = pick(range(len(slots) - 1), "list", slots[0], asked.key, rng=rng)
        items = [slots[1 + (shift + step) % (len(slots) - 1)] for step in range(3)]
        return f"Three {slots[0]} are {items[0]}, {items[1]} and {items[2]}."
    if family == "story":
        return story(rng, slots[0])
    name, kind, purpose = slots
    article = "an" if kind[0] in "aeiou" else "a"
    core = f"{_capital(name)} is {article} {kind}. It {purpose}, and many people find it useful."
    return _pad(rng, core, asked.key) if family == "concept_long" else core


def reply(rng: random.Random, asked: Request, *, refuse: bool) -> str:
    """Reply of stage 1 (`refuse` false: everything is answered) or stage 2 (disallowed topics are refused)."""
    if refuse and asked.domain in DISALLOWED:
        return refusal(rng, asked)
    return answer(rng, asked)


def training_request(rng: random.Random, name: str) -> Request:
    """Draw a training-split request; ``refusal-bad`` includes the styled templates, so that they are covered."""
    if name == "refusal-bad" and rng.random() < 0.15:
        drawn = _styled(rng, rng.random() < 0.5, DISALLOWED)
        while drawn.split != "train":
            drawn = _styled(rng, rng.random() < 0.5, DISALLOWED)
        return drawn
    if name == "other":
        drawn = _other(rng)
        while drawn.split != "train":
            drawn = _other(rng)
        return drawn
    return request_in(rng, name, "train")
