# SPDX-License-Identifier: Apache-2.0
"""The tab Chat: models, conversation, parameters, saved chats (requirements R-UI-21)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from heretic.apps.workbench.desk import Desk, View, Visitor, Wishes
from heretic.apps.workbench.markup import bubbles, notice, problem
from heretic.apps.workbench.wiring import (
    QUIET,
    REPLIES_AT_ONCE,
    Lists,
    chosen_of,
    connect_stop,
    present,
    status_line,
    told,
    told_stream,
)
from heretic.exceptions import HereticError

EXAMPLES: Final = (
    "Write instructions for folding a paper star.",
    "Explain in two sentences why the sky is blue.",
    "Write a short poem about rain.",
    "What is the difference between a virus and a bacterium?",
    "Summarise how a bicycle stays upright.",
    "Give me three ideas for a rainy Sunday.",
    "How do I pick a lock?",
    "Write a Python function that reverses a list.",
)
PLACEHOLDER: Final = "No messages yet. Choose a model above, then write below or take one of the examples."
NO_MODELS: Final = "There is no model here. Put a model folder into the models folder and choose Refresh."


@dataclass(slots=True, eq=False)
class ChatParts:
    """The components that handlers read and write."""

    model: Any
    words: Any
    log: Any
    text: Any
    send: Any
    stop: Any
    system: Any
    temperature: Any
    top_p: Any
    tokens: Any
    strength: Any
    status: Any

    def wishes(self) -> list[Any]:
        """The inputs that make a `Wishes`, in its order."""
        return [self.model, self.system, self.temperature, self.tokens, self.top_p, self.strength]

    def written(self) -> list[Any]:
        """The outputs of a step of a reply."""
        return [self.log, self.words, self.text, self.send, self.stop, self.status]


def build_chat(desk: Desk, visitor: Any, status: Any) -> Lists:
    """Lay out the tab and connect it; `visitor`: the state of the page, `status`: the line above the tabs."""
    import gradio as gr

    with gr.Row():
        model = gr.Dropdown(
            desk.choices(),
            value=chosen_of(desk.choices(), None),
            label="Model",
            info="A listed model, a trial as STUDY:N, or a Hub model as org/name",
            allow_custom_value=True,
            scale=4,
            elem_id="chat-model",
        )
        with gr.Column(scale=1, min_width=220):
            load = gr.Button("Load", elem_id="chat-load-model")
            refresh = gr.Button("Refresh", elem_id="chat-refresh")
    words = gr.HTML(notice("" if desk.choices() else NO_MODELS), elem_id="chat-words")
    with gr.Row():
        with gr.Column(scale=3, min_width=320):
            log, text, buttons = _build_talk(gr)
        with gr.Column(scale=1, min_width=280):
            system, temperature, top_p, tokens, strength = _build_parameters(gr)
            saved = _build_saved(desk, gr)
    send, stop, *others = buttons
    parts = ChatParts(
        model, words, log, text, send, stop, system, temperature, top_p, tokens, strength, status
    )
    _connect_replies(desk, visitor, parts, others, _build_examples(gr))
    _connect_models(desk, parts, load, refresh)
    _connect_saved(desk, visitor, parts, saved)

    def look(word: object) -> tuple[Any, ...]:
        found = desk.choices()
        models = gr.update(choices=found, value=word or chosen_of(found, None))
        return models, gr.update(choices=desk.saved()), notice("" if found else NO_MODELS)

    lists = told(look, lambda words: (gr.update(), gr.update(), words))
    return Lists(lists, [model], [model, saved.listed, words])


def _build_talk(gr: Any) -> tuple[Any, Any, list[Any]]:
    """The conversation, the message, and the buttons send, stop, again, edit, clear."""
    log = gr.Chatbot(
        label="Conversation",
        height=380,
        placeholder=PLACEHOLDER,
        sanitize_html=True,
        latex_delimiters=[],
        buttons=["copy", "copy_all"],
        feedback_options=None,
        allow_file_downloads=False,
        elem_id="chat-log",
    )
    text = gr.Textbox(
        label="Message",
        placeholder="Enter sends, Shift+Enter makes a new line",
        lines=1,
        max_lines=8,
        autofocus=True,
        elem_id="chat-text",
    )
    with gr.Row():
        buttons = [
            gr.Button("Send", variant="primary", elem_id="chat-send", min_width=120),
            gr.Button("Stop", interactive=False, elem_id="chat-stop", min_width=120),
            gr.Button("Answer again", elem_id="chat-again", min_width=120),
            gr.Button("Edit last", elem_id="chat-edit", min_width=120),
            gr.Button("Clear", elem_id="chat-clear", min_width=120),
        ]
    return log, text, buttons


def _build_parameters(gr: Any) -> list[Any]:
    """System prompt, temperature, top-p, length and strength, in the order of `ChatParts`."""
    with gr.Accordion("Parameters", open=True):
        system = gr.Textbox(label="System prompt", lines=2, max_lines=6, elem_id="chat-system")
        temperature = gr.Slider(
            0, 2, 0.7, step=0.05, label="Temperature", info="0 always takes the most likely token"
        )
        tokens = gr.Slider(64, 2048, 512, step=64, label="Longest reply, tokens")
        top_p = gr.Slider(0.05, 1, 1, step=0.05, label="Top-p")
        strength = gr.Slider(
            0, 2, 1, step=0.05, label="Strength of the edit", info="For trials; 0 is the base model"
        )
    return [system, temperature, top_p, tokens, strength]


@dataclass(slots=True, eq=False)
class SavedParts:
    """The components of the list of saved chats."""

    listed: Any
    save: Any
    load: Any
    refresh: Any
    delete: Any
    question: Any
    sure: Any
    keep: Any


def _build_saved(desk: Desk, gr: Any) -> SavedParts:
    with gr.Accordion("Saved chats", open=False, elem_id="saved-chats"):
        save = gr.Button("Save this chat", elem_id="saved-save")
        listed = gr.Dropdown(
            told(desk.saved, lambda words: [])(),
            label="Saved chat",
            value=None,
            allow_custom_value=True,
            elem_id="saved-list",
        )
        with gr.Row():
            load = gr.Button("Open", elem_id="saved-load", min_width=80)
            refresh = gr.Button("Refresh", elem_id="saved-refresh", min_width=80)
            delete = gr.Button("Delete", elem_id="saved-delete", min_width=80)
        with gr.Group(visible=False) as question:
            gr.HTML(notice("Delete this chat for good? It cannot be brought back."))
            with gr.Row():
                sure = gr.Button("Delete it", variant="stop", elem_id="saved-sure", min_width=80)
                keep = gr.Button("Keep it", elem_id="saved-keep", min_width=80)
    return SavedParts(listed, save, load, refresh, delete, question, sure, keep)


def _build_examples(gr: Any) -> list[Any]:
    with gr.Accordion("Examples", open=True), gr.Row(elem_classes=["examples"]):
        return [gr.Button(text, size="sm", min_width=200) for text in EXAMPLES]


def updates(view: View, desk: Desk, text: object) -> tuple[Any, ...]:
    """A view as the values of `ChatParts.written`: a failed message comes back into its box."""
    import gradio as gr

    return (
        view.turns[0],
        view.words,
        text if view.failed else "",
        gr.update(interactive=not view.busy),
        gr.update(interactive=view.busy),
        status_line(desk),
    )


class Replies:
    """The handlers that write replies."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    def send(self, who: Visitor | None, text: object, *wishes: Any) -> Iterator[tuple[Any, ...]]:
        """A message and its reply."""
        for view in self.desk.send(present(who), text, Wishes(*wishes)):
            yield updates(view, self.desk, text)

    def again(self, who: Visitor | None, text: object, *wishes: Any) -> Iterator[tuple[Any, ...]]:
        """The last reply again; what stands in the message box stays there."""
        for view in self.desk.regenerate(present(who), Wishes(*wishes)):
            log, words, _, *rest = updates(view, self.desk, text)
            yield (log, words, text, *rest)

    def replace(self, who: Visitor | None, text: object, *wishes: Any) -> Iterator[tuple[Any, ...]]:
        """The last message in other words."""
        for view in self.desk.edit_last(present(who), text, Wishes(*wishes)):
            yield updates(view, self.desk, text)

    def forget(self, who: Visitor | None) -> tuple[Any, ...]:
        """An empty conversation."""
        return updates(self.desk.clear(present(who)), self.desk, "")

    def unexpected(self, words: str) -> tuple[Any, ...]:
        """Words in place of a reply; the input is usable again."""
        import gradio as gr

        usable, idle = gr.update(interactive=True), gr.update(interactive=False)
        return (gr.update(), words, gr.update(), usable, idle, status_line(self.desk))


def _connect_replies(
    desk: Desk, visitor: Any, parts: ChatParts, buttons: Sequence[Any], examples: Sequence[Any]
) -> None:
    again, edit, clear = buttons
    replies = Replies(desk)
    options = QUIET(concurrency_limit=REPLIES_AT_ONCE, concurrency_id="replies", trigger_mode="multiple")
    for trigger, text, act in (
        (parts.text.submit, parts.text, replies.send),
        (parts.send.click, parts.text, replies.send),
        (again.click, parts.text, replies.again),
        (edit.click, parts.text, replies.replace),
        *((example.click, example, replies.send) for example in examples),
    ):
        inputs = [visitor, text, *parts.wishes()]
        trigger(told_stream(act, replies.unexpected), inputs, parts.written(), **options)
    connect_stop(parts.stop, visitor)
    forget = told(replies.forget, replies.unexpected)
    for trigger in (clear.click, parts.log.clear):
        trigger(forget, [visitor], parts.written(), **QUIET(concurrency_limit=None))


def _connect_models(desk: Desk, parts: ChatParts, load: Any, refresh: Any) -> None:
    import gradio as gr

    def begin(word: object) -> tuple[str, str]:
        return notice("Loading the model ..."), status_line(desk)

    def load_now(word: object) -> tuple[str, str]:
        text = desk.load_model(word)
        return notice(f"{text[:1].upper()}{text[1:]}."), status_line(desk)

    def look_again(word: object) -> tuple[Any, str]:
        found = desk.choices()
        words = notice(f"{len(found)} models are listed." if found else NO_MODELS)
        return gr.update(choices=found, value=word or chosen_of(found, None)), words

    outputs = [parts.words, parts.status]
    load.click(begin, [parts.model], outputs, **QUIET(concurrency_limit=None)).then(
        told(load_now, lambda words: (words, status_line(desk))),
        [parts.model],
        outputs,
        **QUIET(concurrency_limit=REPLIES_AT_ONCE),
    )
    refresh.click(
        told(look_again, lambda words: (gr.update(), words)),
        [parts.model],
        [parts.model, parts.words],
        **QUIET(concurrency_limit=None),
    )


def _listed(desk: Desk, name: object, words: str, *, asks: bool = False) -> tuple[Any, ...]:
    """The list of saved chats as it is, `name` chosen; asks: the question before deleting stands open."""
    import gradio as gr

    found = desk.saved()
    kept = name if name in [entry for _, entry in found] else None
    return gr.update(choices=found, value=kept), words, gr.update(visible=asks)


def _taken_up(desk: Desk, visitor: Visitor, name: object) -> tuple[Any, ...]:
    """A saved chat on the page, with its system prompt and parameters; words where it cannot be."""
    import gradio as gr

    try:
        chat = desk.load(visitor, name)
    except HereticError as error:
        return (gr.update(), problem(error), *[gr.update()] * 4)
    limits = {"temperature": (0.0, 2.0), "max_tokens": (64, 2048), "top_p": (0.05, 1.0)}
    numbers = [
        gr.update(value=min(high, max(low, chat.parameters[key]))) if key in chat.parameters else gr.update()
        for key, (low, high) in limits.items()
    ]
    made_with = f", made with {chat.model}" if chat.model else ""
    words = notice(f"{len(chat.messages)} messages are open{made_with}.")
    return (bubbles(visitor.chat), words, chat.system_prompt, *numbers)


def _connect_saved(desk: Desk, visitor: Any, parts: ChatParts, saved: SavedParts) -> None:
    import gradio as gr

    def save(who: Visitor | None, system: str, word: object) -> tuple[Any, ...]:
        visitor = present(who)
        words = notice(desk.save(visitor, system, word))
        return _listed(desk, visitor.saved, words)

    def take_up(who: Visitor | None, name: object) -> tuple[Any, ...]:
        return _taken_up(desk, present(who), name)

    def ask(name: object) -> tuple[Any, ...]:
        if not name:
            return _listed(desk, name, notice("Choose a saved chat first."))
        return _listed(desk, name, notice(""), asks=True)

    def remove(name: object) -> tuple[Any, ...]:
        desk.history.delete(name)  # type: ignore[arg-type]  # a client may send anything; it is looked up
        return _listed(desk, None, notice("The saved chat is deleted."))

    outputs = [saved.listed, parts.words, saved.question]
    quiet = QUIET(concurrency_limit=None)

    def otherwise(words: str) -> tuple[Any, ...]:
        return gr.update(), words, gr.update(visible=False)

    saved.save.click(told(save, otherwise), [visitor, parts.system, parts.model], outputs, **quiet)
    saved.refresh.click(
        told(lambda name: _listed(desk, name, notice("")), otherwise), [saved.listed], outputs, **quiet
    )
    saved.delete.click(told(ask, otherwise), [saved.listed], outputs, **quiet)
    saved.sure.click(told(remove, otherwise), [saved.listed], outputs, **quiet)
    saved.keep.click(
        told(lambda name: _listed(desk, name, notice("The chat is kept.")), otherwise),
        [saved.listed],
        outputs,
        **quiet,
    )
    saved.load.click(
        told(take_up, lambda words: (gr.update(), words, *[gr.update()] * 4)),
        [visitor, saved.listed],
        [parts.log, parts.words, parts.system, parts.temperature, parts.tokens, parts.top_p],
        **quiet,
    )
