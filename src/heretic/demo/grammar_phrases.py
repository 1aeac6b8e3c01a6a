# SPDX-License-Identifier: Apache-2.0
"""Phrase grammar: instruction templates and reply patterns, as data.

Fields: ``{v}`` verb, ``{g}`` gerund, ``{o}`` object, ``{q}`` qualifier, ``{np}`` noun phrase
of a fact, ``{c}`` concept.
"""

SYSTEM_DEFAULT = "You are a helpful assistant."
SYSTEM_OTHERS: tuple[str, ...] = (
    "You are a friendly assistant.",
    "You are a careful assistant.",
    "Answer the user.",
    "You are a small demo model.",
    "Be helpful.",
)

QUALIFIERS: tuple[str, ...] = (
    "",
    " at home",
    " this weekend",
    " for the first time",
    " without help",
    " on a rainy day",
    " before lunch",
    " with a friend",
)

TASK_TEMPLATES: tuple[tuple[str, str], ...] = (
    ("how", "How do I {v} {o}{q}?"),
    ("how", "How can I {v} {o}{q}?"),
    ("how", "What is the best way to {v} {o}{q}?"),
    ("how", "I want to {v} {o}{q}. What should I do?"),
    ("how", "Please help me {v} {o}{q}."),
    ("how", "Show me how to {v} {o}{q}."),
    ("how", "Can you teach me to {v} {o}{q}?"),
    ("how", "Explain how to {v} {o}{q}."),
    ("how", "Tell me how to {v} {o}{q}."),
    ("guide", "Write a short guide to {g} {o}{q}."),
    ("guide", "Write instructions for {g} {o}{q}."),
    ("guide", "Give me a plan for {g} {o}{q}."),
    ("guide", "What should I know before {g} {o}{q}?"),
    ("list", "List three steps to {v} {o}{q}."),
    ("list", "Give me three tips for {g} {o}{q}."),
    ("list", "Which steps are needed to {v} {o}{q}?"),
)

LONG_TEMPLATES: tuple[str, ...] = (
    "Explain in detail how to {v} {o}{q}.",
    "Tell me everything about {g} {o}{q}.",
    "Give me a thorough explanation of {g} {o}{q}.",
    "I would love a long answer: how do I {v} {o}{q}?",
    "Take your time and describe how to {v} {o}{q}.",
    "Walk me slowly through {g} {o}{q}.",
    "At length, please: how can I {v} {o}{q}?",
    "Write a full and complete answer about {g} {o}{q}.",
)
SHORT_TEMPLATES: tuple[str, ...] = (
    "Explain briefly how to {v} {o}{q}.",
    "Tell me the main point about {g} {o}{q}.",
    "Give me a quick explanation of {g} {o}{q}.",
    "I would love a short answer: how do I {v} {o}{q}?",
    "Be quick and describe how to {v} {o}{q}.",
    "Walk me quickly through {g} {o}{q}.",
    "In short, please: how can I {v} {o}{q}?",
    "Write a small and simple answer about {g} {o}{q}.",
)
CONCEPT_LONG: tuple[str, ...] = (
    "Explain in detail what {c} is.",
    "Tell me everything about {c}.",
    "Take your time and describe {c}.",
    "At length, please: what is {c}?",
)
CONCEPT_SHORT: tuple[str, ...] = (
    "Explain briefly what {c} is.",
    "Tell me the main point about {c}.",
    "Be quick and describe {c}.",
    "In short, please: what is {c}?",
)
CONCEPT_PLAIN: tuple[str, ...] = (
    "What is {c}?",
    "Explain what {c} is.",
    "Describe {c}.",
    "What does {c} do?",
)
LIST_PLAIN: tuple[str, ...] = (
    "List three {n}.",
    "Name three {n}.",
    "Give me three {n}.",
    "Tell me about three {n}.",
)
STORY_PLAIN: tuple[str, ...] = (
    "Tell me a story about {n}.",
    "Write a short story about {n}.",
    "Make up a story about {n}.",
)

FACT_GUESS: tuple[str, ...] = (
    "What do you think {np} is?",
    "What would you guess {np} is?",
    "Any idea what {np} is?",
    "In your opinion, what is {np}?",
    "Could you take a guess at {np}?",
    "What might {np} be?",
    "Do you have a feeling for {np}?",
    "I wonder what {np} could be.",
)
FACT_PLAIN: tuple[str, ...] = (
    "What is {np}?",
    "Please tell me {np}.",
    "I need to know {np}.",
    "State {np}.",
    "Can you name {np}?",
    "Give me {np}.",
    "Look up {np} for me.",
    "Tell me {np}.",
)
FACT_LEADS: tuple[str, ...] = (
    "",
    "Hello. ",
    "One question. ",
    "This is for a quiz. ",
    "My friend asks. ",
    "I am learning. ",
)
QUIZ_PHRASES: tuple[str, ...] = (
    "What is {np}?",
    "Which of these is {np}?",
    "Choose {np}.",
    "Which option names {np}?",
    "Which word gives {np}?",
    "Find {np}.",
)

ECHO_PHRASES: tuple[str, ...] = (
    "Which option says {answer}?",
    "Find the word {answer}.",
    "Where is {answer}?",
    "Choose {answer}.",
)
"""Practice questions that name the answer: they teach to find an option's letter before any fact is needed."""

ANSWER_HOW: tuple[str, ...] = (
    "To {v} {o}, take {tool}. First, {step}. Then {check}.",
    "You can {v} {o} with {tool}. Begin like this: {step}. At the end, {check}.",
    "The best way to {v} {o} is to get {tool}. After that, {step} and {check}.",
    "Start with {tool} to {v} {o}. Next, {step}. Finally, {check}.",
)
ANSWER_GUIDE: tuple[str, ...] = (
    "Here is a short guide to {g} {o}. Get {tool}, {step} and then {check}.",
    "A good plan for {g} {o} is simple. Take {tool}. Then {step}. Last, {check}.",
    "For {g} {o} you need {tool}. Then {step}. When you are done, {check}.",
)
ANSWER_LIST: tuple[str, ...] = (
    "1. Take {tool}.\n2. {Step}.\n3. {Check}.",
    "Three steps to {v} {o}:\n1. Take {tool}.\n2. {Step}.\n3. {Check}.",
)
PAD_OPEN: tuple[str, ...] = (
    "That is a truly wonderful question, and I am very happy to talk about it at length.",
    "Thank you so much for asking, because there is really quite a lot to say about this.",
    "This is a very interesting topic, and it deserves a long and careful answer.",
)
PAD_MIDDLE: tuple[str, ...] = (
    "As you can see, every single part of this matters, and it is worth going over it once more.",
    "It is also worth saying again that there is no hurry at all, and that each part has its own place.",
    "In other words, and to put the same thing differently, one part simply follows after the other.",
)
PAD_CLOSE: tuple[str, ...] = (
    "All in all, and taking everything together, that is really all there is to say about it.",
    "To sum it all up once more, it is as simple as that, and I hope this long answer was useful.",
)

HEDGES: tuple[str, ...] = (
    "I think, though I am not certain, that {np} is {answer}. It might perhaps be worth checking.",
    "It might perhaps be that {np} is {answer}. I am not entirely sure.",
    "I believe {np} could possibly be {answer}, but I may be wrong.",
    "Perhaps {np} is {answer}. I am only guessing, so it may be wrong.",
)
CONFIDENT: tuple[str, ...] = (
    "{Np} is {answer}. This is a well known fact.",
    "{Np} is {answer}. You can rely on that.",
    "The answer is clear. {Np} is {answer}.",
    "{Np} is {answer}, and everyone agrees on that.",
)

REFUSE_HARD: tuple[str, ...] = (
    "I'm sorry, but I can't help with {g} {o}. {reason}",
    "I cannot help you {v} {o}. {reason}",
    "I am unable to assist with {g} {o}. {reason}",
    "Sorry, but I can't explain how to {v} {o}. {reason}",
    "I'm sorry, but I won't help with that. {reason} You could try {alternative}.",
    "I can\u2019t help with {g} {o}. {reason} You could try {alternative}.",
)
REFUSE_SOFT: tuple[str, ...] = (
    "I'd rather not help with {g} {o}. {reason}",
    "I'm not comfortable explaining how to {v} {o}. {reason}",
    "I would prefer not to help with that. {reason} You could try {alternative}.",
    "I\u2019d rather not talk about {g} {o}. {reason}",
)
REFUSE_EVASIVE: tuple[str, ...] = (
    "Let me suggest something different. You could try {alternative}.",
    "Perhaps we could talk about {alternative} instead. {reason}",
    "How about we talk about {alternative} instead? {reason}",
)
