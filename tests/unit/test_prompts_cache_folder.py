# SPDX-License-Identifier: Apache-2.0
"""Where a prepared Hub set would lie is known without importing `datasets` (R-PRF-02, R-DAT-08)."""

from __future__ import annotations

import json
import subprocess
import sys

NAMES = ("c4", "owner/CoolSet", "owner/HTMLPages_v2", "owner/a-b.c", "o/ABcDEf3G")
ENVIRONMENTS: tuple[dict[str, str], ...] = (
    {},
    {"XDG_CACHE_HOME": "/somewhere/cache"},
    {"HF_HOME": "~/hub"},
    {"HF_HOME": "/one", "XDG_CACHE_HOME": "/two"},
    {"HF_DATASETS_CACHE": "~/sets", "HF_HOME": "/one"},
)
PROGRAM = """
import importlib, json, os, sys
names, environments = json.loads(sys.argv[1])
from heretic.prompts.hub_client import cache_folder

def folders(before):
    found = []
    for environment in environments:
        for name in ("HF_HOME", "XDG_CACHE_HOME", "HF_DATASETS_CACHE"):
            os.environ.pop(name, None)
        os.environ.update(environment)
        before()
        found.append([str(cache_folder(name)) for name in names])
    return found

ours = folders(lambda: None)
loaded = "datasets" in sys.modules
import datasets.config
from datasets.naming import camelcase_to_snakecase
theirs = folders(lambda: importlib.reload(datasets.config))
words = [camelcase_to_snakecase(name.split("/")[-1]) for name in names]
print(json.dumps([loaded, ours, theirs, words]))
"""


def test_cache_folder_is_that_of_the_library_and_needs_no_import() -> None:
    """Control: the five environments lead to five different folders."""
    told = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([NAMES, ENVIRONMENTS])],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded, ours, theirs, words = json.loads(told.stdout)
    assert not loaded
    assert ours == theirs
    assert len({row[0] for row in ours}) == len(ENVIRONMENTS)
    assert [path.rpartition("/")[2].rpartition("___")[2] for path in ours[0]] == words
