# SPDX-License-Identifier: Apache-2.0
"""Pieces of replies: text as soon as it is known, an end on every path, the main thread's work (R-UI-04)."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from heretic.apps.main_thread import MainThread, directly
from heretic.apps.streaming import Decoder, Generation, Reader, Sampling
from heretic.demo import model_path
from heretic.exceptions import GenerationError
from heretic.model.tokens import token_list
from heretic.testing.pico import pico_model
from heretic.testing.tokenizers import byte_tokenizer

torch.set_num_threads(1)
CHANGES = {"vocab_size": 320, "max_position_embeddings": 512, "eos_token_id": None}
BYTES = byte_tokenizer()


def generation(**changes: object) -> Generation:
    fields: dict[str, object] = {
        "network": pico_model("qwen2", changes=CHANGES).eval(),
        "tokenizer": BYTES,
        "rows": [[1, 70, 71]],
        "sampling": Sampling(0.0, 16),
        "edits": contextlib.nullcontext,
        "pad": 0,
        "ends": frozenset(),
        "stop": threading.Event(),
        "at_end": lambda: None,
        **changes,
    }
    return Generation(**fields)  # type: ignore[arg-type]  # fields of the record


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40))
def test_pieces_add_up_to_the_text(text: str) -> None:
    """Also for characters of several tokens, which are never shown in parts."""
    decoder = Decoder(BYTES)
    ids = token_list(BYTES(text, add_special_tokens=False))
    pieces = [decoder.add(token) for token in ids]
    assert "".join(pieces) + decoder.rest() == BYTES.decode(ids, skip_special_tokens=True)
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


def test_words_keep_their_spaces_and_come_at_once() -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    text = "To pick a lock, take a thin pick."
    ids = token_list(tokenizer(text, add_special_tokens=False))
    decoder = Decoder(tokenizer)
    pieces = [decoder.add(token) for token in ids]
    assert "".join(pieces) == text and all(pieces)


def test_bytes_that_never_become_a_character_are_not_held_back_for_ever() -> None:
    decoder = Decoder(BYTES)
    broken = token_list(BYTES("\u00e9", add_special_tokens=False))[0]
    pieces = [decoder.add(broken) for _ in range(40)]
    assert sum(map(bool, pieces)) >= 9


def test_the_network_is_left_before_the_end_is_told() -> None:
    """Whoever waits for the end may start the next reply at once."""
    left: list[str] = []
    own = generation(at_end=lambda: left.append("left"))
    pieces = list(own.stream(5.0))
    assert left == ["left"] and "".join(piece.text for piece in pieces)


@pytest.mark.parametrize(
    "failure",
    [OSError("x"), AssertionError("x"), KeyError("x"), ZeroDivisionError("x"), ImportError("x")],
)
def test_any_error_of_the_network_ends_the_stream_with_ours(failure: Exception) -> None:
    left: list[str] = []

    @contextlib.contextmanager
    def broken() -> Iterator[None]:
        raise failure
        yield

    with pytest.raises(GenerationError, match="decoding failed"):
        list(generation(edits=broken, at_end=lambda: left.append("left")).stream(5.0))
    assert left == ["left"]


def test_a_network_that_never_returns_does_not_keep_the_caller() -> None:
    """The consumer is told after its limit, and the thread does not keep the program from ending."""
    release = threading.Event()

    @contextlib.contextmanager
    def hanging() -> Iterator[None]:
        release.wait(20)
        yield

    begin = time.monotonic()
    with pytest.raises(GenerationError, match="no text"):
        list(generation(edits=hanging).stream(0.2))
    assert time.monotonic() - begin < 2.0
    [thread] = [thread for thread in threading.enumerate() if thread.name == "heretic-chat"]
    assert thread.daemon
    release.set()
    thread.join(20)


def test_a_row_ends_at_its_own_end_token_and_the_others_go_on() -> None:
    """A padded row adds nothing to its text after its end."""
    own = generation(rows=[[1, 70, 71], [1, 70, 71, 72, 73]])
    alone = ["".join(p.text for p in generation(rows=[row]).stream(5.0)) for row in own.rows]
    together = ["", ""]
    for piece in own.stream(5.0):
        together[piece.row] += piece.text
    assert together == alone
    network: Any = own.network
    first = network.generate(torch.tensor([list(own.rows[0])]), max_new_tokens=16, do_sample=False)
    end = int(first[0, 3 + 5])
    own.network.generation_config.eos_token_id = end
    short = ["", ""]
    for piece in generation(network=own.network, rows=own.rows, ends=frozenset({end})).stream(5.0):
        short[piece.row] += piece.text
    assert alone[0].startswith(short[0]) and len(short[0]) < len(alone[0])


def test_the_reading_of_a_token_is_that_of_the_state_in_which_it_was_chosen() -> None:
    """One forward pass over the whole reply gives the same numbers. Control: another direction does not."""
    network = pico_model("qwen2", changes=CHANGES).eval()
    unit = torch.nn.functional.normalize(torch.arange(40.0) - 11.0, dim=0)
    own = generation(network=network, reader=Reader(network.model.layers[1], unit))
    found = [piece.reading for piece in own.stream(5.0) if piece.reading is not None]
    ids = network.generate(torch.tensor([[1, 70, 71]]), max_new_tokens=16, do_sample=False)
    states: list[torch.Tensor] = []
    handle = network.model.layers[1].register_forward_hook(
        lambda module, inputs, output: states.append(output[0] if isinstance(output, tuple) else output)
    )
    with torch.inference_mode():
        network(ids)
    handle.remove()
    wanted = (states[0][0, 2:-1] @ unit).tolist()
    assert found and all(any(abs(value - one) < 1e-4 for one in wanted) for value in found)
    assert not any(
        abs(value - one) < 1e-4 for value in found for one in (states[0][0, 2:-1] @ -unit).tolist()
    )
    assert not network.model.layers[1]._forward_hooks


def test_the_main_thread_does_the_work_of_others() -> None:
    """What is asked from a thread is done in the main one, also when it was asked for before; errors go back."""
    main, ended = MainThread(), threading.Event()
    found: list[object] = []

    def ask() -> None:
        found.append(main.run(threading.current_thread))
        try:
            main.run(lambda: 1 // 0)
        except ZeroDivisionError as error:
            found.append(error)
        ended.set()

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(0.05)
    assert found == []
    main.serve(ended, poll_s=0.02)
    asking.join()
    assert found[0] is threading.main_thread() and isinstance(found[1], ZeroDivisionError)
    assert directly(threading.current_thread) is main.run(threading.current_thread)
    late: list[str] = []

    def ask_late() -> None:
        try:
            main.run(lambda: 1)
        except GenerationError as error:
            late.append(error.message)

    thread = threading.Thread(target=ask_late)
    thread.start()
    thread.join(5)
    assert late == ["the program is ending"]
