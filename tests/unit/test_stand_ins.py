# SPDX-License-Identifier: Apache-2.0
"""The stand-in for the compiler answers like it, and gives way to it (R-PRF-02, R-PRF-10)."""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
import json, sys
import torch
from heretic.model.stand_ins import COMPILER, PART, StandIn, compiler_stand_in

said = {}
def plain(x):
    return x + 1

with compiler_stand_in():
    said["stands"] = isinstance(torch._dynamo, StandIn) and isinstance(sys.modules[COMPILER], StandIn)
    assert torch._dynamo.allow_in_graph(plain) is plain
    assert torch._dynamo.assume_constant_result(plain)._dynamo_marked_constant is True
    whole = torch.compiler.disable(plain)
    partly = torch.compiler.disable(recursive=False)(plain)
    from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex
    said["works"] = [whole(1), partly(1)]
    said["gone"] = COMPILER in sys.modules and not isinstance(sys.modules[COMPILER], StandIn)
said["left"] = [COMPILER in sys.modules, PART in sys.modules, "_dynamo" in vars(torch)]
before = TransformGetItemToIndex
with before():
    said["index"] = torch.arange(3)[torch.tensor(1)].item()
import torch._dynamo
said["real"] = type(before()).__module__
print(json.dumps(said))
"""
OTHER = """
import sys
import torch
from heretic.model.stand_ins import COMPILER, StandIn, compiler_stand_in
with compiler_stand_in():
    {question}
    print(isinstance(sys.modules[COMPILER], StandIn), isinstance(torch._dynamo, StandIn))
print(COMPILER in sys.modules)
"""


def run(program: str) -> str:
    """What a process of its own prints, in which nobody has imported the compiler."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True
    )
    return done.stdout


def test_decorators_are_served_without_the_compiler() -> None:
    """Control: afterwards the real names are there, and the class made before them makes the real object."""
    said = json.loads(run(PROGRAM))
    assert said["stands"] and said["works"] == [2, 2] and not said["gone"]
    assert said["left"] == [False, False, False]
    assert said["index"] == 1 and said["real"].startswith("torch._dynamo")


def test_any_other_question_brings_the_real_one() -> None:
    """Control: no question, no compiler."""
    assert run(OTHER.format(question="pass")).split() == ["True", "True", "False"]
    for question in ("torch._dynamo.config", "import torch._dynamo.eval_frame"):
        assert run(OTHER.format(question=question)).split() == ["False", "False", "True"], question
