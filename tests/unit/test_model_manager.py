# SPDX-License-Identifier: Apache-2.0
"""Finding, checking, loading and releasing models (requirements R-UI-01 to R-UI-03, R-UI-06; reliability G02, G07)."""

from __future__ import annotations

import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from heretic.apps import manager as manager_module
from heretic.apps.chat_model import PlainChatModel
from heretic.apps.devices import memory_lines, resident_bytes
from heretic.apps.discovery import Places, choices, chosen, missing_files
from heretic.apps.main_thread import MainThread
from heretic.apps.manager import ModelManager
from heretic.apps.session import ChatSession
from heretic.demo import model_path
from heretic.exceptions import (
    GenerationError,
    HereticError,
    HostMemoryError,
    ModelNotFoundError,
    ModelValidationError,
    UntrustedContentError,
)
from heretic.testing.tokenizers import save_pico

torch.set_num_threads(1)
CHANGES = {"vocab_size": 320, "max_position_embeddings": 256}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small models of different size in a folder."""
    folder = tmp_path_factory.mktemp("world") / "models"
    save_pico(folder / "first-one", "llama", changes=CHANGES)
    save_pico(folder / "second", "qwen2", changes=CHANGES)
    return folder


def manager(models: Path, **places: object) -> ModelManager:
    return ModelManager(Places(models, **places), offline=True)  # type: ignore[arg-type]  # fields of the record


def reply(manager: ModelManager, word: str, text: str = "hello") -> str:
    session = ChatSession(
        source=lambda: manager.open(word), lock=manager.lock, temperature=0.0, max_tokens=64, run=manager.run
    )
    return "".join(session.send(text))


def test_folders_are_listed_by_readable_name_and_looked_up_anew(models: Path, tmp_path: Path) -> None:
    """R-UI-01; leftovers of a save and links are not listed."""
    folder = tmp_path / "models"
    shutil.copytree(models, folder)
    (folder / "second.partial").mkdir()
    (folder / ".hidden").mkdir()
    (folder / "file").write_text("x")
    (folder / "link").symlink_to(models / "second")
    places = Places(folder, named={"demo": str(model_path())})
    assert [entry.label for entry in choices(places)] == ["demo", "first one", "second"]
    shutil.copytree(models / "second", folder / "third")
    assert [entry.name for entry in choices(places)][-1] == "folder:third"
    assert choices(Places(tmp_path / "absent")) == ()


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        ("config.json", "config.json is missing"),
        ("model.safetensors", "no weights"),
        ("tokenizer", "no tokenizer"),
        ("shard", "1 of"),
    ],
)
def test_what_a_folder_lacks_is_said_before_loading(
    models: Path, tmp_path: Path, gone: str, words: str
) -> None:
    """R-UI-02: the missing files are listed. Control: the whole folder lacks nothing."""
    folder = tmp_path / "models"
    target = save_pico(
        folder / "m", "llama", changes=CHANGES, max_shard_size="20kB" if gone == "shard" else "1GB"
    )
    assert missing_files(target) == []
    if gone == "shard":
        next(iter(sorted(target.glob("model-*.safetensors")))).unlink()
    for path in list(target.glob(f"{gone}*" if gone == "tokenizer" else gone)):
        path.unlink()
    [problem] = missing_files(target)
    assert words in problem
    assert choices(Places(folder))[0].problem == problem
    with pytest.raises(ModelValidationError, match="no complete model"):
        reply(manager(folder), "folder:m")


def test_words_that_lead_elsewhere_open_nothing(models: Path, tmp_path: Path) -> None:
    """G02: what is not listed, no trial and no Hub name is refused. Control: a listed one is found."""
    shutil.copytree(models / "second", tmp_path / "elsewhere")
    places = Places(models, storage=None)
    bases = ["elsewhere", str(tmp_path / "elsewhere"), "/etc", "second", "folder:../elsewhere", "named:x", ""]
    words: list[object] = [None, 3, ["folder:second"], {"path": "x"}, "a/../b", "../x", "./x", "x/..", "s:1"]
    for base in bases:
        for separator in ("/", "\\", "%2f", "//"):
            words += [f"..{separator}" * depth + base for depth in range(20)]
    assert len(words) > 500
    for word in words:
        with pytest.raises(ModelNotFoundError):
            chosen(places, word)
    assert chosen(places, "folder:second").kind == "folder"
    assert chosen(places, "org/name").kind == "hub"
    assert chosen(replace(places, storage="sqlite:///x.db"), "study:3").kind == "trial"


def test_a_model_is_loaded_when_needed_and_the_one_before_is_gone(models: Path) -> None:
    """R-UI-03: lazily, cached, released completely."""
    desk = manager(models)
    assert not desk.state.ready and "no model" in desk.state.text
    first = reply(desk, "folder:first-one")
    with desk.alone():
        kept = desk.open("folder:first-one")
        assert desk.open("folder:first-one") is kept
    assert desk.state.ready and "first one is ready" in desk.state.text
    with desk.alone():
        other = desk.open("folder:second")
    assert kept.network.get_input_embeddings().weight.device.type == "meta"
    assert other.network.get_input_embeddings().weight.device.type == "cpu"
    assert reply(desk, "folder:first-one") == first
    with desk.alone():
        desk.release()
    assert not desk.state.ready


def test_two_models_stay_only_where_both_fit(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """R-UI-08."""
    for free, stays in ((10**12, True), (1, False)):
        desk = manager(models)
        monkeypatch.setattr(manager_module, "host_memory", lambda: 10**12)
        monkeypatch.setattr(desk, "_require_room", lambda source, choice: None)
        with desk.alone():
            first = desk.open("folder:first-one")
            monkeypatch.setattr(manager_module, "device_memory", lambda free=free: free)
            desk.open("folder:second", beside="folder:first-one")
        device = first.network.get_input_embeddings().weight.device.type
        assert (device == "cpu") is stays


def test_what_does_not_fit_is_refused_with_need_and_free(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manager_module, "device_memory", lambda: 10_000)
    desk = manager(models)
    with pytest.raises(HostMemoryError, match=r"needs 0\.0 GB .* 0\.0 GB are free") as failure:
        reply(desk, "folder:second")
    assert failure.value.data["free"] == 10_000 and failure.value.data["need"] != 10_000
    assert not desk.state.ready and not desk.lock.locked()


def test_a_damaged_model_is_an_error_in_words_and_the_next_one_works(models: Path, tmp_path: Path) -> None:
    """R-UI-06: "ready" is said only when it is."""
    folder = tmp_path / "models"
    shutil.copytree(models, folder)
    (folder / "second" / "model.safetensors").write_bytes(b"\x00" * 100)
    desk = manager(folder)
    for _ in range(2):
        with pytest.raises(HereticError) as failure:
            reply(desk, "folder:second")
        assert failure.value.hint and not desk.state.ready
    assert reply(desk, "folder:first-one")


def test_templates_have_their_time_limit_when_threads_ask(tmp_path: Path) -> None:
    """F04: a nested loop of a stranger's template is ended while a server's thread waits for it. Control: the same
    model with an ordinary template answers."""
    folder = tmp_path / "models"
    good = save_pico(folder / "good", "llama", changes=CHANGES)
    bad = folder / "bad"
    shutil.copytree(good, bad)
    bomb = "{% for a in range(9999) %}" * 3 + "x" + "{% endfor %}" * 3
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        if (bad / name).is_file() and name.endswith("jinja"):
            (bad / name).write_text(bomb)
        elif (bad / name).is_file():
            table = json.loads((bad / name).read_text())
            table["chat_template"] = bomb
            (bad / name).write_text(json.dumps(table))
    main, ended = MainThread(), threading.Event()
    desk = ModelManager(Places(folder), offline=True, run=main.run)
    found: list[object] = []

    def ask() -> None:
        for word in ("folder:bad", "folder:good"):
            try:
                found.append(reply(desk, word))
            except HereticError as error:
                found.append(error)
        ended.set()

    asking = threading.Thread(target=ask)
    asking.start()
    main.serve(ended, poll_s=0.05)
    asking.join()
    assert isinstance(found[0], UntrustedContentError) and "longer than 2 s" in found[0].message
    assert isinstance(found[1], str)


def test_whoever_waits_too_long_is_told(models: Path) -> None:
    desk = manager(models)
    with desk.alone(), pytest.raises(GenerationError, match="still being written"), desk.alone(0.05):
        raise AssertionError
    with desk.alone(0.05):
        assert desk.lock.locked()


@pytest.mark.slow
def test_switching_fifty_times_leaves_memory_where_it_was(models: Path) -> None:
    """REL-14: within 1 %."""
    desk = manager(models)
    for _ in range(6):
        reply(desk, "folder:first-one")
        reply(desk, "folder:second")
    before = resident_bytes()
    for _ in range(25):
        reply(desk, "folder:first-one")
        reply(desk, "folder:second")
    assert resident_bytes() < before * 1.01


def test_fifty_conversations_leave_memory_where_it_was(models: Path) -> None:
    """Issue 6: nothing of a finished conversation stays."""
    desk = manager(models)
    for _ in range(10):
        reply(desk, "folder:second")
    before, threads = resident_bytes(), threading.active_count()
    for number in range(50):
        reply(desk, "folder:second", f"conversation {number} " * 4)
    assert resident_bytes() < before * 1.01
    assert threading.active_count() == threads
    with desk.alone():
        network = desk.open("folder:second").network
    assert not [module for module in network.modules() if module._forward_hooks]


def test_the_memory_of_this_machine_is_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """R-UI-22: reserved memory of every device, CPU mode without one."""
    assert memory_lines()[0].startswith("CPU mode") and resident_bytes() > 10**7

    class Properties:
        total_memory = 80 * 10**9

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: Properties)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda number: 20 * 10**9 * (1 + number))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "Big One")
    assert memory_lines() == (
        "GPU 0, Big One: 20.0 of 80.0 GB reserved (25%)",
        "GPU 1, Big One: 40.0 of 80.0 GB reserved (50%)",
    )


def test_the_bundled_model_answers(models: Path) -> None:
    """A named model, as `heretic ui` offers it to somebody who has none yet."""
    desk = manager(models, named={"demo": str(model_path())})
    text = reply(desk, "named:demo", "How do I boil an egg?")
    assert len(text.split()) > 3
    with desk.alone():
        opened = desk.open("named:demo")
    assert isinstance(opened, PlainChatModel) and not opened.has_edit and opened.reader is None
