# SPDX-License-Identifier: Apache-2.0
"""The catalogue of seeded mistakes: prompts, places, studies, commands (reliability REL-09)."""

from __future__ import annotations

from .mistakes import Mistake, truncate, with_file
from .world import World, base_run


def two_configs(world: World) -> None:
    """A folder with the variants `first` and `second`."""
    for name in ("first", "second"):
        world.write(f"sets/{name}/train.txt", "one\n")


def empty_folder(world: World) -> None:
    """A folder with nothing in it."""
    (world.folder / "empty").mkdir()


DATA = (
    Mistake(
        "empty prompt file",
        base_run(),
        1,
        "DatasetError",
        ["bad_prompts", "bad.txt", "empty"],
        with_file("bad.txt", ""),
    ),
    Mistake(
        "blank prompt file",
        base_run("--bad-prompts.split=train"),
        1,
        "DatasetError",
        ["bad_prompts", "bad.txt", "blank"],
        with_file("bad.txt", "\n  \n\t\n"),
    ),
    Mistake(
        "binary prompt file",
        base_run(),
        1,
        "DatasetError",
        ["bad.txt"],
        with_file("bad.txt", bytes(range(256)) * 8),
    ),
    Mistake(
        "UTF-16 without a mark",
        base_run(),
        1,
        "DatasetError",
        ["bad.txt"],
        with_file("bad.txt", "one\ntwo\n".encode("utf-16-le")),
    ),
    Mistake(
        "prompt file missing",
        base_run("--bad-prompts.dataset=nowhere.txt"),
        1,
        "DatasetError",
        ["nowhere.txt"],
    ),
    Mistake(
        "data set not in the cache",
        base_run("--bad-prompts.dataset=org/set"),
        1,
        "NetworkError",
        ["org/set", "offline"],
    ),
    Mistake(
        "missing column",
        base_run("--bad-prompts.dataset=rows.jsonl"),
        1,
        "DatasetConfigError",
        ["text", "question", "answer"],
        with_file("rows.jsonl", '{"question": "a", "answer": "b"}\n' * 40),
    ),
    Mistake(
        "missing split", base_run("--bad-prompts.split=test[:9]"), 1, "DatasetConfigError", ["test", "train"]
    ),
    Mistake(
        "missing config",
        base_run("--bad-prompts.dataset=sets", "--bad-prompts.config=third"),
        1,
        "DatasetConfigError",
        ["third", "first", "second"],
        two_configs,
    ),
    Mistake("malformed slice", base_run("--bad-prompts.split=train[:x]"), 1, "DatasetError", ["train[:x]"]),
    Mistake(
        "broken JSON line",
        base_run("--bad-prompts.dataset=rows.jsonl"),
        1,
        "DatasetError",
        ["rows.jsonl", "2"],
        with_file("rows.jsonl", '{"text": "a"}\n{"text": \n'),
    ),
    Mistake(
        "broken Parquet",
        base_run("--bad-prompts.dataset=rows.parquet"),
        1,
        "DatasetError",
        ["rows.parquet"],
        with_file("rows.parquet", b"PAR1nothing"),
    ),
    Mistake(
        "folder without data",
        base_run("--bad-prompts.dataset=empty"),
        1,
        "DatasetError",
        ["empty"],
        empty_folder,
    ),
    Mistake(
        "identical bad and good",
        base_run("--good-prompts.dataset=bad.txt"),
        1,
        "DatasetError",
        ["30 of 30", "bad_prompts", "good_prompts"],
    ),
    Mistake("too few prompts", base_run("--bad-prompts.split=train[:3]"), 1, "DatasetError", ["3", "8"]),
    Mistake(
        "packaged set unknown",
        base_run("--bad-prompts.dataset=heretic:refusal"),
        1,
        "DatasetError",
        ["heretic:NAME"],
    ),
    Mistake(
        "behaviour never shown",
        [flag for flag in base_run() if flag != "--allow-zero-baseline"],
        1,
        "DatasetError",
        ["0 of 6", "--allow-zero-baseline"],
        loads=True,
    ),
)

PLACES = (
    Mistake(
        "output is a model folder",
        base_run("--auto-select-path=model"),
        2,
        "OutputExistsError",
        ["model folder"],
    ),
    Mistake(
        "output is somebody else's",
        base_run("--auto-select-path=place", "--overwrite", "--yes"),
        2,
        "OutputExistsError",
        ["model-heretic", "left alone"],
        with_file("place/model-heretic/notes.txt", "mine"),
    ),
    Mistake(
        "output exists",
        base_run("--auto-select-path=saved"),
        2,
        "OutputExistsError",
        ["saved", "--overwrite"],
        with_file("saved/heretic_run.json", "{}"),
    ),
    Mistake(
        "overwriting is not confirmed",
        base_run("--auto-select-path=saved", "--overwrite"),
        2,
        "ConfirmationRequiredError",
        ["saved", "--yes"],
        with_file("saved/heretic_run.json", "{}"),
    ),
    Mistake(
        "output below a file",
        base_run("--auto-select-path=bad.txt/out"),
        1,
        "FileOperationError",
        ["bad.txt"],
    ),
    Mistake(
        "storage folder missing",
        base_run("--storage=sqlite:///nowhere/study.db"),
        1,
        "StorageError",
        ["nowhere"],
    ),
    Mistake(
        "storage is no database", base_run("--storage=sqlite:///bad.txt"), 1, "StudyCorruptError", ["bad.txt"]
    ),
    Mistake(
        "storage is no URL",
        base_run("--storage=study.db"),
        2,
        "ConfigurationError",
        ["study.db", "sqlite:///"],
    ),
    Mistake("nothing to continue", base_run("--resume=continue"), 2, "StudyNotFoundError", ["heretic_study"]),
    Mistake(
        "upload without a token",
        base_run("--hf-upload=me/model"),
        1,
        "HubAccessError",
        ["me/model", "HF_TOKEN"],
    ),
    Mistake(
        "log file in a missing folder",
        base_run("--log-file=bad.txt/x.log"),
        1,
        "FileOperationError",
        ["bad.txt", "--log-file"],
    ),
    Mistake("verify without a folder", ["verify", "nowhere"], 2, "ConfigurationError", ["nowhere"]),
    Mistake("verify of a foreign folder", ["verify", "model"], 1, "SaveVerificationError", ["SHA256SUMS"]),
    Mistake(
        "study that does not exist",
        ["study", "show", "mine", "--storage", "sqlite:///study.db"],
        2,
        "StudyNotFoundError",
        ["mine"],
    ),
    Mistake(
        "export of a study that does not exist",
        ["export", "mine", "--model", "model"],
        2,
        "StudyNotFoundError",
        ["mine"],
    ),
    Mistake("evaluate without a base", ["evaluate", "model"], 2, "ConfigurationError", ["--against"]),
    Mistake("chat without a terminal", ["chat", "model"], 2, "ConfirmationRequiredError", ["terminal"]),
    Mistake("page with half a login", ["ui", "--auth=me"], 2, "ConfigurationError", ["USER:PASS"]),
    Mistake("misspelt command", ["exprot", "mine"], 2, "ConfigurationError", ["exprot", "export"]),
    Mistake("inspect of nothing", ["inspect", "./nowhere"], 1, "ModelNotFoundError", ["./nowhere"]),
    Mistake(
        "demo with an unknown flag",
        ["demo", "--n-trails=3"],
        2,
        "UnknownSettingError",
        ["n-trails", "n-trials"],
    ),
    Mistake(
        "dry run of a damaged model",
        base_run("--dry-run"),
        1,
        "ModelValidationError",
        ["model.safetensors"],
        truncate,
    ),
)
