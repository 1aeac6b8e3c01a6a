# SPDX-License-Identifier: Apache-2.0
"""Quick imports leave out what is not used, and nothing else becomes different (R-PRF-02)."""

from __future__ import annotations

import functools
import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import transformers
from transformers.utils import import_utils

from heretic.model import libraries
from heretic.model.libraries import answer_no, from_last_statement, link_in_background, quick_imports

PROGRAM = """
import contextlib, hashlib, json, sys
from heretic.model.libraries import quick_imports
way = sys.argv[1]
with contextlib.nullcontext() if way == "plain" else quick_imports(compiling=way == "compiling"):
    import torch
    import transformers
    from heretic.demo import model_path
    from heretic.interventions.probe import probe
    from heretic.model.loading import LoadOptions, load_model
    from heretic.model.source import locate
torch.set_num_threads(1)
model = load_model(locate(str(model_path())), LoadOptions(), prove=probe)
brought = [name in sys.modules for name in ("scipy", "sympy", "torch._dynamo", "torch.distributed.tensor")]
ids = torch.arange(3, 35)[None]
with torch.inference_mode():
    logits = model.network(input_ids=ids).logits
state = hashlib.sha256()
for name, tensor in sorted({**model.network.state_dict(), **dict(model.network.named_buffers())}.items()):
    state.update(name.encode() + tensor.contiguous().numpy().tobytes())
table = transformers._class_to_module
import torch._dynamo
doubled = torch.compile(lambda x: 2 * x, backend="eager")(torch.ones(3))
print(json.dumps({
    "brought": brought,
    "logits": hashlib.sha256(logits.numpy().tobytes()).hexdigest(),
    "state": state.hexdigest(),
    "names": hashlib.sha256(json.dumps(sorted(table.items())).encode()).hexdigest(),
    "compiled": doubled.tolist(),
    "real compiler": hasattr(torch._dynamo, "optimize") and type(torch._dynamo).__name__ == "module",
}))
"""


@functools.cache
def told(way: str) -> dict[str, Any]:
    """What a process of its own says that imported in this way and loaded the demo model."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, way], capture_output=True, text=True, check=True
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_quick_imports_leave_out_what_plain_ones_bring() -> None:
    """Control: the plain import brings all four, and the one for a process that compiles brings the compiler."""
    assert told("quick")["brought"] == [False, False, False, False]
    assert told("plain")["brought"] == [True, True, True, True]
    assert told("compiling")["brought"][2] is True


def test_everything_else_is_as_it_was() -> None:
    """Weights, buffers, logits and the table of all names, bit for bit; and who asks for the compiler gets it."""
    quick, plain = told("quick"), told("plain")
    for name in ("logits", "state", "names", "compiled", "real compiler"):
        assert quick[name] == plain[name], name
    assert quick["compiled"] == [2.0, 2.0, 2.0] and quick["real compiler"]


def test_a_machine_with_an_accelerator_imports_as_ever() -> None:
    """Control: the same process without such a file is the first test's."""
    program = PROGRAM.replace(
        "way = sys.argv[1]",
        "way = sys.argv[1]\nfrom heretic.model import libraries\nlibraries.ACCELERATORS = (sys.executable,)",
    )
    assert program != PROGRAM
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, "quick"], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["brought"] == [True, True, True, True]


def test_nothing_happens_where_torch_is_imported() -> None:
    enabled, frozen, finders = gc.isenabled(), gc.get_freeze_count(), list(sys.meta_path)
    with quick_imports():
        assert gc.isenabled() == enabled
    assert (gc.get_freeze_count(), sys.meta_path) == (frozen, finders)
    assert not libraries.QUICK.active


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x = 1\n",
        '__all__ = ["A", "B"]\n',
        'import x\n\n__all__ = ["A"]\n\nclass A: ...\n',
        'import x\n__all__ = [\n    "A",\n    "B",\n]\n',
        '__all__ = ["A"]\n__all__ = ["B"]\n',
        '"""A text about __all__."""\n',
    ],
)
def test_the_names_of_a_file_are_those_of_the_library(text: str) -> None:
    assert from_last_statement(import_utils.fetch__all__)(text) == import_utils.fetch__all__(text)


def test_the_names_of_every_file_of_the_library_are_the_same() -> None:
    """Control: the search does skip most of the text."""
    seen: list[int] = []

    def counted(text: str) -> list[str]:
        seen.append(len(text))
        return list(import_utils.fetch__all__(text))

    quick, whole = from_last_statement(counted), 0
    for path in sorted(Path(transformers.__file__).parent.glob("models/[a-g]*/*.py")):
        text = path.read_text(encoding="utf-8")
        whole += len(text)
        assert quick(text) == import_utils.fetch__all__(text), path
    assert sum(seen) < whole / 10


def test_a_question_is_answered_with_no_for_good_and_its_probe_is_restored() -> None:
    owner = SimpleNamespace(probe=lambda name: (True, "1.0"))
    calls: list[str] = []

    @functools.lru_cache
    def question() -> bool:
        calls.append("asked")
        return bool(owner.probe("scipy")[0])

    probe = owner.probe
    assert question() is True  # control: before
    answer_no(question, owner, "probe")
    assert question() is False and owner.probe is probe and calls == ["asked", "asked"]
    answer_no(None, owner, "probe")  # another version without the question
    answer_no(question, owner, "missing")
    assert question() is False


def test_linking_ends_quietly_where_a_library_is_missing(tmp_path: Path) -> None:
    libraries._link([(tmp_path / "libnone.so", 2)])
    broken = tmp_path / "libbroken.so"
    broken.write_bytes(b"no library")
    libraries._link([(broken, 2)])
    thread = link_in_background()
    if thread is not None:
        thread.join(60)
        assert not thread.is_alive()


KEPT = """
import ctypes, os, sys
from heretic.model.libraries import keep_freed_memory
import torch
torch.set_num_threads(1)
if sys.argv[1] == "kept":
    assert keep_freed_memory(os.environ)
names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in names]
info = ctypes.CDLL(None).mallinfo2
info.restype = Info
held = [torch.ones(6 * 2**20) for _ in range(5)]
held.clear()
print(info().fordblks // 2**20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the setting is one of glibc")
def test_freed_memory_is_kept_unless_the_user_says_how_it_is_to_be() -> None:
    """MiB that malloc holds after tensors went. Control: without it the system has them back."""
    environ = {name: value for name, value in os.environ.items() if "MALLOC" not in name}
    kept, plain = (
        int(
            subprocess.run(
                [sys.executable, "-c", KEPT, way], capture_output=True, text=True, check=True, env=environ
            ).stdout
        )
        for way in ("kept", "plain")
    )
    assert kept >= 100, "of five tensors of 24 MiB; page faults would be noise of the machine's"
    assert plain < 10
    assert not libraries.keep_freed_memory({"MALLOC_TRIM_THRESHOLD_": "1"})
    assert not libraries.keep_freed_memory({"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=1"})
