# SPDX-License-Identifier: Apache-2.0
"""Settings out of a stranger's `heretic_run.json`, by an allow-list (reliability F05, requirements R-CLI-12).

A run file may say what was computed. It may not say where to read or write, what to trust, what to upload or which
code to run: such values are refused, and whoever wants them gives them on the command line.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from heretic.config import schema
from heretic.config.behaviour import built_in_behaviours
from heretic.config.command_line import command_line_layer
from heretic.config.describe import public_settings
from heretic.config.groups_data import DataSettings
from heretic.config.groups_method import DetectionSettings, DirectionSettings, InterventionSettings
from heretic.config.groups_run import BatchSettings, SearchSettings
from heretic.config.resolve import Resolved, default_layer, resolve_settings
from heretic.config.tables import BUILT_IN_SCORERS
from heretic.exceptions import ConfigurationError, UntrustedContentError

PLACES: Final = (
    "storage",
    "auto_select_path",
    "hf_upload",
    "chat_template",
    "circuit_cache_path",
    "validation_report_path",
    "models_dir",
    "chat_history_dir",
    "log_file",
    "host",
    "port",
    "share",
    "auth",
)
"""Where things lie, and who may reach them: never written into a run file, never taken from one."""

TAKEN: Final = frozenset(
    (
        *("behaviour", "goal", "strategy", "seed", "dtypes", "quantization", "system_prompt"),
        *("thinking", "thinking_tokens", "response_prefix", "allow_partial", "allow_zero_baseline"),
        *("max_prompt_tokens", "max_response_length", "refusal_check_tokens", "kl_divergence_tokens"),
        *("kl_divergence_scale", "max_strength"),
        *DetectionSettings.model_fields,
        *DirectionSettings.model_fields,
        *InterventionSettings.model_fields,
        *DataSettings.model_fields,
    )
) - {*PLACES, "neural_detection_batch_size"}
"""Settings that decide what is computed."""

IGNORED: Final = frozenset(
    (
        *("model", "model_revision", "device_map", "max_memory", "attn_implementation", "compile", "offline"),
        *(
            "strict",
            "auto_select",
            "trial",
            "select_max_kl",
            "select_max_rate",
            "select_fallback",
            "finalists",
            "controls",
        ),
        *("export_formats", "overwrite", "hf_private", "hf_upload_manifest", "progress", "log_level"),
        *("structured_logging", "neural_detection_batch_size", "enable_validation", "run_mmlu_validation"),
        *("mmlu_source", "mmlu_categories", "mmlu_samples_per_category", "mmlu_few_shot"),
        *("validation_benchmarks", "save_validation_report"),
        *(name for name in (*BatchSettings.model_fields, *SearchSettings.model_fields) if name not in TAKEN),
    )
) - {*PLACES}
"""Settings of the search, the machine and the screen: a run file may hold them, and nothing reads them."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*")
_PACKAGED = re.compile(r"heretic:[\w-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SOURCE = "heretic_run.toml"


def recorded_settings(resolved: Resolved) -> dict[str, Mapping[str, object]]:
    """The settings a run file holds: all but places, with their sources (R-FMT-01, R-OUT-30)."""
    return {
        name: entry for name, entry in public_settings(resolved).items() if name.split(".")[0] not in PLACES
    }


def settings_from_run_file(document: Mapping[str, object], tokens: Sequence[str] = ()) -> Resolved:
    """The settings of a run file under those of the command line; nothing else speaks (no config.toml, no variable).

    tokens: settings of the user, who alone may name places, folders and consents. Raises `UntrustedContentError` for
    a setting outside the allow-list, `ConfigurationError` where the user has to name what the file cannot.
    """
    given = {schema.dotted(path): entry.value for path, entry in command_line_layer(tokens).entries.items()}
    values = _allowed(document, given)
    values |= _model(document, given)
    with tempfile.TemporaryDirectory() as empty:
        Path(empty, _SOURCE).write_text(_toml(values), encoding="utf-8")
        resolved = resolve_settings(
            _absolute_behaviour(tokens), environ={}, cwd=Path(empty), config_files=(Path(_SOURCE),)
        )
    # What only the file states is not the user's demand: an auxiliary set that was out of reach may be so again.
    stated = frozenset(name for name in resolved.explicit if any(_covers(name, said) for said in given))
    return replace(resolved, explicit=stated, notices=())


def _covers(name: str, said: str) -> bool:
    return name == said or said.startswith(f"{name}.")


def _allowed(document: Mapping[str, object], given: Mapping[str, object]) -> dict[str, object]:
    """Leaf name -> value of everything that is taken, checked one by one."""
    stored = document.get("settings")
    if not isinstance(stored, Mapping):
        raise ConfigurationError(
            "The run file holds no settings.", hint="Use a heretic_run.json as it was written."
        )
    values: dict[str, object] = {}
    for name, entry in stored.items():
        assert isinstance(name, str), "keys of JSON are text"
        value = entry.get("value") if isinstance(entry, Mapping) else entry
        top = name.split(".")[0]
        if name in given or top in given:
            if name.endswith(".dataset"):
                # The same prompts at another place: said here too, so that their split and column stay with them.
                values[name] = given[name]
            continue
        if top in TAKEN and schema.annotation_of(tuple(name.split("."))) is not None:
            if top not in DataSettings.model_fields or _was_read(top, document):
                values[name] = _checked(name, value, document)
        elif top not in IGNORED and not _is_default(name, value):
            raise _refused(name, value)
    return values


def _is_default(name: str, value: object) -> bool:
    entry = default_layer().entries.get(tuple(name.split(".")))
    return entry is not None and schema.plain(entry.value) == value


def _refused(name: str, value: object) -> UntrustedContentError:
    shown = schema.shown(value)
    return UntrustedContentError(
        f"The run file states {name} = {shown[:80]}, which no run file may decide.",
        hint=f"If you want it, give --{name.replace('_', '-')} yourself; a value on the command line replaces it.",
    )


def _checked(name: str, value: object, document: Mapping[str, object]) -> object:
    """A taken value; its shape and, where it names something, what it names."""
    top, _, key = name.partition(".")
    if top == "scorers":
        return _scorers(name, value)
    if top == "behaviour" and value not in built_in_behaviours():
        if not isinstance(value, str) or not re.fullmatch(r"[\w-]+(\.toml)?", value):
            raise _refused(name, value)
        raise ConfigurationError(
            f"The run used the behaviour {value!r}, which is not built in.",
            hint="Name its file with --behaviour PATH.",
        )
    if top == "neural_detection_model" and not (isinstance(value, str) and _HUB_ID.fullmatch(value)):
        raise _refused(name, value)
    if top in DataSettings.model_fields:
        return _data_value(top, key, value, document)
    records = top == "layer_range_profiles"
    if not _is_flat(value) and not (records and isinstance(value, list) and all(map(_is_record, value))):
        raise _refused(name, value)
    return value


def _scorers(name: str, value: object) -> object:
    """Built-in scorers with plain options; code of anybody counts only from the command line."""
    entries = value if isinstance(value, list) else []
    for entry in entries:
        known = (
            isinstance(entry, Mapping)
            and entry.get("name") in BUILT_IN_SCORERS
            and set(entry) <= {"name", "options"}
        )
        if not known or not _is_record(entry.get("options", {})):
            raise _refused(name, value)
    if value is not None and not entries:
        raise _refused(name, value)
    return value


def _data_value(table: str, key: str, value: object, document: Mapping[str, object]) -> object:
    """One key of a prompt set: packaged and Hub sets by name; of a local file only its base name is known."""
    if key == "dataset":
        if isinstance(value, str) and _PACKAGED.fullmatch(value):
            return value
        if isinstance(value, str) and _HUB_ID.fullmatch(value) and not Path(value).exists():
            return value
        if isinstance(value, str) and re.fullmatch(r"[\w .-]+", value) and not value.startswith("."):
            raise ConfigurationError(
                f"The run read {table} from a local source called {value!r}.",
                hint=f"Name it with --{table.replace('_', '-')}.dataset PATH.",
            )
        raise _refused(f"{table}.{key}", value)
    if (
        key == "data_files"
        and isinstance(value, list)
        and any(".." in str(n) or str(n)[:1] in "/\\~" for n in value)
    ):
        raise _refused(f"{table}.{key}", value)
    if not _is_flat(value):
        raise _refused(f"{table}.{key}", value)
    if key == "revision" and value is None:
        return _recorded_revision(table, document)
    return value


def _was_read(table: str, document: Mapping[str, object]) -> bool:
    """Whether the run loaded this prompt set; of the others nothing is taken."""
    data = document.get("data")
    return isinstance(data, Mapping) and table.removesuffix("_prompts") in data


def _recorded_revision(table: str, document: Mapping[str, object]) -> str | None:
    """The commit a Hub set was read at, which the settings of the run may have left open."""
    data = document.get("data")
    record = data.get(table.removesuffix("_prompts")) if isinstance(data, Mapping) else None
    revision = record.get("revision") if isinstance(record, Mapping) else None
    return revision if isinstance(revision, str) and _COMMIT.fullmatch(revision) else None


def _model(document: Mapping[str, object], given: Mapping[str, object]) -> dict[str, object]:
    """The base model by Hub id and commit, unless the user names one."""
    if "model" in given:
        return {}
    model = document.get("model")
    name = model.get("id") if isinstance(model, Mapping) else None
    commit = model.get("commit") if isinstance(model, Mapping) else None
    if not isinstance(name, str) or commit is None:
        raise ConfigurationError(
            f"The run edited a local model ({name!r}); where it lies is not in the file.",
            hint="Name the base with --model PATH.",
        )
    if not _HUB_ID.fullmatch(name) or not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise UntrustedContentError(
            f"The run file names the model {name!r} at {commit!r}, which is no Hub id with a commit.",
            hint="Name the base with --model.",
        )
    if Path(name).exists():
        raise ConfigurationError(
            f"The run edited {name!r} of the Hub, but a folder of that name lies here.",
            hint="Name the base with --model, or start from another folder.",
        )
    return {"model": name, **({} if "model_revision" in given else {"model_revision": commit})}


def _is_scalar(value: object) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _is_flat(value: object) -> bool:
    return _is_scalar(value) or (isinstance(value, list) and all(map(_is_scalar, value)))


def _is_record(value: object) -> bool:
    return isinstance(value, Mapping) and all(map(_is_flat, value.values()))


def _toml(values: Mapping[str, object]) -> str:
    """The values as a settings file; null where a pack might say something else, and nowhere else."""
    import tomlkit

    leaves: dict[tuple[str, ...], object] = {}
    for name, value in values.items():
        path = tuple(name.split("."))
        annotation = schema.annotation_of(path)
        if value is not None:
            leaves[path] = json.loads(json.dumps(schema.plain(value)))
        elif schema.is_optional(annotation) and not schema.accepts_empty(annotation):
            leaves[path] = ""
    return tomlkit.dumps(schema.nest(leaves))


def _absolute_behaviour(tokens: Sequence[str]) -> list[str]:
    """The user's own behaviour file is found from where the user is."""
    words = list(tokens)
    for position, word in enumerate(words):
        if word.partition("=")[0] not in ("--behaviour", "--behavior"):
            continue
        flag, equals, value = word.partition("=")
        if equals and Path(value).is_file():
            words[position] = f"{flag}={Path(value).resolve()}"
        elif not equals and position + 1 < len(words) and Path(words[position + 1]).is_file():
            words[position + 1] = str(Path(words[position + 1]).resolve())
    return words
