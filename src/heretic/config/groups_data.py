# SPDX-License-Identifier: Apache-2.0
"""Settings of requirements 3.6: prompt sets, validation, apps and logging."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal

from pydantic import BeforeValidator, Field

from heretic.config.tables import DatasetSettings
from heretic.config.types import Count, FilePath, Group, Positive, Text, setting

HARMLESS: Final = "mlabonne/harmless_alpaca"
HARMFUL: Final = "mlabonne/harmful_behaviors"
JAILBREAK: Final = "JailbreakBench/JBB-Behaviors"

MMLU_CATEGORIES: Final = (
    "abstract_algebra",
    "formal_logic",
    "high_school_physics",
    "high_school_chemistry",
    "college_biology",
    "computer_security",
    "professional_law",
    "clinical_knowledge",
    "professional_accounting",
    "philosophy",
    "econometrics",
    "high_school_world_history",
)


def _as_level(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _behaviours(split: str) -> DatasetSettings:
    return DatasetSettings(dataset=JAILBREAK, config="behaviors", split=split, column="Goal")


Level = Annotated[Literal["debug", "info", "warning", "error", "critical"], BeforeValidator(_as_level)]


class DataSettings(Group):
    """Prompt sets; the defaults are those of the behaviour `refusal`."""

    title: ClassVar[str] = "Data"

    good_prompts: DatasetSettings = setting(
        DatasetSettings(dataset=HARMLESS, split="train[:400]"),
        "prompts that do not show the behaviour, for directions",
    )
    bad_prompts: DatasetSettings = setting(
        DatasetSettings(dataset=HARMFUL, split="train[:400]"),
        "prompts that show the behaviour, for directions",
    )
    good_evaluation_prompts: DatasetSettings = setting(
        DatasetSettings(dataset=HARMLESS, split="test[:100]"), "the same for trials; damage is measured here"
    )
    bad_evaluation_prompts: DatasetSettings = setting(
        DatasetSettings(dataset=HARMFUL, split="test[:100]"), "the same for trials"
    )
    good_confirmation_prompts: DatasetSettings = setting(
        DatasetSettings(dataset=HARMLESS, split="test[100:200]"), "held-out data", score=False
    )
    bad_confirmation_prompts: DatasetSettings = setting(_behaviours("harmful"), "held-out data", score=False)
    over_behaviour_prompts: DatasetSettings = setting(
        _behaviours("benign"), "borderline prompts that should not show the behaviour"
    )
    helpfulness_prompts: DatasetSettings = setting(
        DatasetSettings(dataset=HARMLESS, split="train[400:600]"), "helpful requests to protect"
    )
    unhelpfulness_prompts: DatasetSettings = setting(
        DatasetSettings(dataset="allenai/c4", config="en", split="train[:200]"), "plain texts, streamed"
    )
    sacred_prompts: DatasetSettings = setting(
        DatasetSettings(dataset="cais/mmlu", config="all", split="validation", column="question", sample=200),
        "capability questions over all subjects",
    )
    sacred_baseline_prompts: DatasetSettings = setting(
        DatasetSettings(
            dataset="Salesforce/wikitext",
            config="wikitext-2-raw-v1",
            split="train",
            column="text",
            sample=200,
        ),
        "plain texts beside them; empty rows are dropped",
    )


class ValidationSettings(Group):
    """The report before and after."""

    title: ClassVar[str] = "Validation"

    enable_validation: bool = setting(True, "before/after report", score=False)
    run_mmlu_validation: bool = setting(True, "MMLU in it", score=False)
    mmlu_source: DatasetSettings = setting(
        DatasetSettings(dataset="cais/mmlu", config="all", split="test", column="question"),
        "questions, or a local file of the same fields",
        score=False,
    )
    mmlu_categories: tuple[Text, ...] = setting(MMLU_CATEGORIES, "subjects", score=False)
    mmlu_samples_per_category: Positive = setting(20, "questions per subject", score=False)
    mmlu_few_shot: Count = setting(3, "shots from the dev split", score=False)
    validation_benchmarks: tuple[Text, ...] = setting((), "lm-eval task names (extra bench)", score=False)
    save_validation_report: bool = setting(True, "write it beside the output", score=False)
    validation_report_path: FilePath | None = setting(
        None, "null = validation_report_<model>_<unix time>.json", score=False
    )


class AppSettings(Group):
    """Chat, browser UI, logging."""

    title: ClassVar[str] = "Apps and logging"

    host: Text = setting("127.0.0.1", "address of the UI", score=False)
    port: Annotated[int, Field(ge=1, le=65535)] = setting(7860, "port of the UI", score=False)
    share: bool = setting(False, "public link to the UI", score=False, consent=True)
    auth: Text | None = setting(None, "USER:PASS of the UI", score=False, secret=True)
    models_dir: FilePath = setting(Path("models"), "folder with edited models", score=False)
    chat_history_dir: FilePath = setting(Path("chat_history"), "folder with saved chats", score=False)
    log_level: Level = setting("info", "least level shown", score=False)
    log_file: FilePath | None = setting(None, "rotating log file", score=False)
    structured_logging: bool = setting(False, "one JSON object per log line", score=False)
