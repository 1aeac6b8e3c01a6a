# SPDX-License-Identifier: Apache-2.0
"""Saved chats (requirements R-FMT-07, R-UI-07; reliability G02, G03, REL-14)."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heretic.apps.conversation import Message
from heretic.apps.history import CONTENT_LIMIT, ChatHistory, SavedChat, parsed
from heretic.exceptions import FileOperationError

CHAT = SavedChat(
    (Message("user", "hello \u00e9\u4e16"), Message("assistant", "<script>hi</script>")),
    model="demo",
    trial="study:3",
    system_prompt="be kind",
    parameters={"temperature": 0.5, "max_tokens": 128},
)
PLAIN = {"version": 1, "messages": [{"role": "user", "content": "x"}]}


def written(document: object) -> bytes:
    return json.dumps(document).encode()


def test_a_saved_chat_is_read_back_as_it_was(tmp_path: Path) -> None:
    """Save, list, load; nobody else may read the file; the control is another chat."""
    history = ChatHistory(tmp_path / "new" / "chats")
    name = history.save(CHAT)
    loaded = history.load(name)
    assert (loaded.messages, loaded.model, loaded.trial) == (CHAT.messages, "demo", "study:3")
    assert loaded.system_prompt == "be kind" and loaded.parameters == CHAT.parameters and loaded.created
    assert (history.folder / name).stat().st_mode & 0o077 == 0
    [entry] = history.entries()
    assert entry.name == name and "hello" in entry.label and entry.problem is None
    document = json.loads((history.folder / name).read_text())
    assert list(document) == [
        "version", "created", "model", "trial", "system_prompt", "parameters", "messages",
    ]  # fmt: skip
    assert list(document["messages"][0]) == ["role", "content", "time"]


def test_saving_again_replaces_and_a_new_chat_gets_a_new_name(tmp_path: Path) -> None:
    history = ChatHistory(tmp_path)
    first = history.save(CHAT)
    longer = SavedChat((*CHAT.messages, Message("user", "more")))
    assert history.save(longer, first) == first and len(history.load(first).messages) == 3
    names = {history.save(CHAT) for _ in range(3)}
    assert len(names) == 3 and first not in names and len(history.entries()) == 4
    assert history.save(CHAT, "../outside.json") not in ("../outside.json",)
    assert not (tmp_path.parent / "outside.json").exists()


def test_an_empty_chat_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(FileOperationError, match="nothing to save"):
        ChatHistory(tmp_path / "x").save(SavedChat(()))
    assert not (tmp_path / "x").exists()


def test_the_older_form_is_read() -> None:
    older = {
        "timestamp": "2024-05-01",
        "history": [
            {"role": "system", "content": "short"},
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
        ],
    }
    chat = parsed(written(older), "x")
    assert chat.system_prompt == "short" and [turn.content for turn in chat.messages] == ["a", "b"]
    assert chat.created == "2024-05-01"


@pytest.mark.parametrize(
    "damage",
    [
        {"messages": [{"role": "user", "content": {"path": "/etc/passwd"}}]},
        {"messages": [{"role": "user", "content": ["a"]}]},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": "user", "content": "x", "metadata": {}}]},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "user", "content": "x" * (CONTENT_LIMIT + 1)}]},
        {"messages": [{"role": "user", "content": "\ud800"}]},
        {"messages": [{"role": "user", "content": "x"}] * 10_001},
        {"messages": {}},
        {"version": 2},
        {"version": True},
        {"version": "1"},
        {"files": []},
        {"parameters": {"temperature": float("inf")}},
        {"parameters": {"temperature": float("nan")}},
        {"parameters": {"temperature": True}},
        {"parameters": {"max_tokens": 10**9}},
        {"parameters": {"path": 1}},
        {"system_prompt": {"path": "x"}},
        {"model": 3},
        {"trial": ["x"]},
        {"created": None},
    ],
)
def test_anything_but_the_form_is_refused_with_a_sentence(damage: dict[str, object]) -> None:
    """G03: a reference to a file in place of a text made the browser part serve that file. Control: undamaged."""
    assert parsed(written(PLAIN), "chat.json").messages[0].content == "x"
    with pytest.raises(FileOperationError, match=r"the saved chat chat\.json "):
        parsed(written({**PLAIN, **damage}), "chat.json")


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b"9" * 10_000])
def test_bytes_that_are_no_chat(data: bytes) -> None:
    with pytest.raises(FileOperationError, match="the saved chat"):
        parsed(data, "chat.json")


TREE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "time", "version", "messages", "history", "parameters", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(TREE, st.integers(0, 400), st.binary(max_size=3))
def test_mutated_files_are_a_chat_or_an_error_of_ours(tree: object, place: int, bytes_: bytes) -> None:
    """REL-14: what is loaded holds nothing but strings; no other exception leaves."""
    valid = written(
        {"version": 1, "parameters": {"top_p": 1.0}, "messages": [{"role": "user", "content": "x"}]}
    )
    mutated = valid[: place % len(valid)] + bytes_ + valid[place % len(valid) + 1 :]
    documents = [mutated, json.dumps(tree).encode(), json.dumps({**PLAIN, "messages": tree}).encode()]
    for data in documents:
        try:
            chat = parsed(data, "x")
        except FileOperationError:
            continue
        assert all(type(turn.content) is str and turn.role in ("user", "assistant") for turn in chat.messages)


def traversals() -> list[object]:
    """Names that lead elsewhere; as a client could send them past the page."""
    bases = ["secret.json", "chat_20200101_000000.json", "../secret.json", "/etc/passwd", "..", ".", "", "~"]
    forms: list[object] = [None, 3, ["chat_20200101_000000.json"], {"path": "x"}, "chat_2020*.json", "\x00"]
    for base in bases:
        for depth in range(1, 9):
            for separator in ("/", "\\", "%2f", "%252f", "//", "/./", "\u2215"):
                forms.append(f"..{separator}" * depth + base)
    return [*forms, *bases]


def test_names_that_lead_elsewhere_open_and_delete_nothing(tmp_path: Path) -> None:
    """G02: only listed names count. Control: the listed one can be loaded and deleted."""
    folder = tmp_path / "chats"
    history = ChatHistory(folder)
    name = history.save(CHAT)
    outside = tmp_path / "secret.json"
    outside.write_bytes(written(PLAIN))
    (folder / "link.json").symlink_to(outside)
    os.symlink(outside, folder / "chat_20200101_000000.json")
    os.mkfifo(folder / "chat_20200101_000001.json")
    (folder / "chat_20200101_000002.json").mkdir()
    words = traversals()
    assert len(words) > 440
    for word in [*words, "link.json", "chat_20200101_000001.json", "chat_20200101_000002.json", str(outside)]:
        for act in (history.load, history.delete):
            with pytest.raises(FileOperationError, match="no saved chat"):
                act(word)  # type: ignore[arg-type]  # as a client could
    assert outside.exists() and [entry.name for entry in history.entries()] == [name]
    history.delete(name)
    assert history.entries() == () and outside.exists()


def test_a_damaged_file_is_listed_with_its_problem_and_can_be_deleted(tmp_path: Path) -> None:
    """R-UI-07: reported, not fatal."""
    history = ChatHistory(tmp_path)
    name = history.save(CHAT)
    (tmp_path / "chat_20990101_000000.json").write_text("{")
    first, second = history.entries()
    assert "damaged" in first.label and "JSON" in str(first.problem) and second.name == name
    with pytest.raises(FileOperationError, match="JSON"):
        history.load(first.name)
    history.delete(first.name)
    assert [entry.name for entry in history.entries()] == [name]


def test_a_folder_that_cannot_be_made_is_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileOperationError):
        ChatHistory(tmp_path / "file" / "chats").save(CHAT)
    assert ChatHistory(tmp_path / "absent").entries() == ()
