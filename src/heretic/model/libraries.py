# SPDX-License-Identifier: Apache-2.0
"""Importing torch and transformers in half of the time, for the command line (requirements R-PRF-02).

A plain import of both takes 3.3 s on two cores (torch 2.13, transformers 5.23), as long as everything else up to the
first trial of a small model. What is saved, and why nothing is lost:

- The garbage collector is off while modules are made, and looks at none of them later: 0.6 s.
- The shared libraries of torch are linked in a second thread meanwhile: 0.2 s.
- Memory that was given back is kept, see `keep_freed_memory`: 0.2 s, and 3 % of a search.
- transformers asks once whether scipy and torch.distributed are there, and is told that they are not: 0.5 s. Neither
  is used by one language model in one process (the losses of object detection, tensor parallelism).
- The compiler has a stand-in, see `stand_ins`: 0.7 s. Not with `--compile`.
- The table of all of transformers' names is read by a search from the end of each file, once and not twice: 0.3 s.

Only without an accelerator: with one, loading the model takes longer than all of this, and its software asks the
libraries for more.

Everything here may fail to apply to another version of a library; then the import is as slow as it was.
"""

from __future__ import annotations

import functools
import gc
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from heretic.model.stand_ins import compiler_stand_in

logger = logging.getLogger("heretic.model")

IMPORT_TABLE: Final = "transformers.utils.import_utils"
EXTENSIONS: Final = ("numpy", "regex", "asyncio", "markupsafe", "yaml")
"""What transformers imports that loads a shared library, for which it would wait until those of torch are linked."""
NEEDED: Final = (
    "transformers.masking_utils",
    "transformers.generation.utils",
    "transformers.modeling_layers",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
)
"""What every language model of transformers imports."""


ACCELERATORS: Final = ("/proc/driver/nvidia/version", "/dev/kfd", "/dev/dxg")
"""Files of the drivers of NVIDIA and AMD, and of either under Windows' Linux."""


class _Mode:
    """Whether this process imported the libraries quickly and compiles nothing."""

    active = False


QUICK: Final = _Mode()


def without_compiler() -> AbstractContextManager[None]:
    """The context in which to make a model: with the compiler's stand-in, in a process of `quick_imports`."""
    return compiler_stand_in() if QUICK.active else nullcontext()


@contextmanager
def quick_imports(*, compiling: bool = False) -> Iterator[None]:
    """Import the two libraries as said above, then the caller's modules; for a process that will load a model.

    compiling: the process will compile, so it gets the real compiler. Does nothing where one of the libraries is
    imported already, or where there is an accelerator.
    """
    if "torch" in sys.modules or "transformers" in sys.modules or any(map(os.path.exists, ACCELERATORS)):
        yield
        return
    collecting, QUICK.active = gc.isenabled(), not compiling
    gc.disable()
    try:
        keep_freed_memory(os.environ)
        _import_all(EXTENSIONS)
        link_in_background()
        _import_needed(compiling)
        yield
    finally:
        gc.freeze()
        if collecting:
            gc.enable()


def _import_needed(compiling: bool) -> None:
    sys.meta_path.insert(0, _TableFinder())
    # Without torch as yet: so the thread that links has time.
    importlib.import_module("transformers")
    torch = importlib.import_module("torch")
    utilities = importlib.import_module(IMPORT_TABLE)
    answer_no(getattr(utilities, "is_scipy_available", None), utilities, "_is_package_available")
    answer_no(getattr(utilities, "is_torch_distributed_available", None), torch.distributed, "is_available")
    with nullcontext() if compiling else compiler_stand_in():
        _import_all(NEEDED)


def _import_all(names: Sequence[str]) -> None:
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:  # another version keeps it elsewhere, or does without it
            logger.debug("%s is not imported: %s", name, error)


# -- memory -----------------------------------------------------------------------------------------------------------

MEMORY: Final = ((-1, 2**30), (-2, 2**26), (-3, 2**25))
"""M_TRIM_THRESHOLD, M_TOP_PAD and M_MMAP_THRESHOLD of glibc's malloc.h, in bytes."""


def keep_freed_memory(environ: Mapping[str, str]) -> bool:
    """Let glibc keep up to 1 GiB that tensors gave back, unless `environ` says how it is to be; True where it does.

    It would return the end of the heap to the system after each large tensor and get it back page by page: nine tenths
    of the page faults of a search on the CPU, and half of those up to the first trial.
    """
    if sys.platform != "linux" or any("MALLOC_" in name or name == "GLIBC_TUNABLES" for name in environ):
        return False
    import ctypes

    adjust = getattr(ctypes.CDLL(None), "mallopt", None)
    return adjust is not None and all(adjust(option, value) == 1 for option, value in MEMORY)


# -- linking ----------------------------------------------------------------------------------------------------------

LIBRARIES: Final = (("libtorch_global_deps.so", "RTLD_GLOBAL"), ("libtorch.so", "RTLD_LOCAL"))
"""In the order and with the visibility that torch gives them."""


def link_in_background() -> threading.Thread | None:
    """Start loading torch's shared libraries, of which the import then finds them loaded; None where it cannot help.

    ctypes keeps the interpreter's lock while it opens a library, but not while it calls a function, dlopen being one.
    """
    found = importlib.util.find_spec("torch")
    if sys.platform != "linux" or found is None or found.origin is None:
        return None
    folder = Path(found.origin).parent / "lib"
    paths = [(folder / name, getattr(os, mode) | os.RTLD_NOW) for name, mode in LIBRARIES]
    thread = threading.Thread(target=_link, args=(paths,), name="link torch", daemon=True)
    thread.start()
    return thread


def _link(paths: Sequence[tuple[Path, int]]) -> None:
    import ctypes

    try:
        link = ctypes.CDLL(None).dlopen
    except (OSError, AttributeError) as error:
        logger.debug("dlopen cannot be called: %s", error)
        return
    link.restype, link.argtypes = ctypes.c_void_p, (ctypes.c_char_p, ctypes.c_int)
    for path, mode in paths:
        # A library that cannot be opened here is reported by the import of torch, which opens it again.
        if not path.is_file() or link(os.fsencode(path), mode) is None:
            return


# -- answers ----------------------------------------------------------------------------------------------------------


def answer_no(question: Any, owner: Any, probe: str) -> None:
    """Let a question of transformers, which remembers its answer, be answered with no.

    question: a function under `lru_cache`. owner, probe: the function by which it finds out, replaced meanwhile.
    """
    original = getattr(owner, probe, None)
    if original is None or not hasattr(question, "cache_clear"):
        return
    setattr(owner, probe, _absent)
    try:
        question.cache_clear()
        question()
    finally:
        setattr(owner, probe, original)


def _absent(name: str | None = None, return_version: bool = False) -> bool | tuple[bool, str]:
    """`_is_package_available(name)` of transformers, and `torch.distributed.is_available()`."""
    return False if name is None else (False, "N/A")


# -- the table of names -----------------------------------------------------------------------------------------------


class _TableFinder(importlib.abc.MetaPathFinder):
    """Finds the module that makes the table of names as everybody does, and quickens it once it is there."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The ordinary specification with a loader that quickens the module; None for every other one."""
        if fullname != IMPORT_TABLE:
            return None
        sys.meta_path.remove(self)
        found = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if found is not None and found.loader is not None:
            execute = found.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                quicken_table(module)

            found.loader.exec_module = exec_module  # type: ignore[method-assign]  # of this one loader
        return found


def quicken_table(module: ModuleType) -> None:
    """Replace two functions of transformers' `import_utils` by quicker ones with the same results."""
    names, structure = (
        getattr(module, name, None) for name in ("fetch__all__", "create_import_structure_from_path")
    )
    if names is not None:
        vars(module)["fetch__all__"] = from_last_statement(names)
    if structure is not None and hasattr(structure, "__wrapped__"):
        # It is asked twice for more folders than its cache holds.
        vars(module)["create_import_structure_from_path"] = functools.cache(structure.__wrapped__)


def from_last_statement(names: Callable[[str], list[str]]) -> Callable[[str], list[str]]:
    """`fetch__all__` of transformers, which counts from the last line that begins with `__all__`, given only the text
    from that line on."""

    def quick(text: str) -> list[str]:
        start = text.rfind("\n__all__") + 1
        return names(text[start:])

    return quick
