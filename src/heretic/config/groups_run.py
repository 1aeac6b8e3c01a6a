# SPDX-License-Identifier: Apache-2.0
"""Settings of requirements 3.2 to 3.4: task, model, batches, search, selection, output."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from heretic.config.tables import SearchSpace
from heretic.config.types import (
    Count,
    Duration,
    FilePath,
    Fraction,
    Group,
    ModelName,
    Positive,
    PositiveFloat,
    Repository,
    StorageUrl,
    Text,
    setting,
)
from heretic.constants import DEFAULT_SYSTEM_PROMPT

Strategy = Literal["single", "subspace", "cones", "heads", "caa", "oblique", "norm_preserving"]
Dtype = Literal["auto", "bfloat16", "float16", "float32"]
Dtypes = Annotated[tuple[Dtype, ...], Field(min_length=1)]
ExportFormats = Annotated[tuple[Literal["weights", "lora", "control_vector"], ...], Field(min_length=1)]


class TaskSettings(Group):
    """What is edited, and how (requirements 3.2)."""

    title: ClassVar[str] = "Task"

    model: ModelName = Field(
        description="model to edit: Hub id or folder",
        json_schema_extra={"score": True, "consent": False, "secret": False},
    )
    model_revision: Text | None = setting(None, "commit or tag; the resolved commit is recorded")
    behaviour: Text = setting("refusal", "what is edited: a built-in name or a TOML path")
    goal: Literal["suppress", "induce"] = setting("suppress", "less or more of the behaviour")
    strategy: Strategy = setting("single", "which edit is made")
    evaluate_model: Text | None = setting(None, "score this model against `model` and stop", score=False)
    seed: Count = setting(0, "all random sources")


class LoadingSettings(Group):
    """How the model is loaded and spoken to (requirements 3.2)."""

    title: ClassVar[str] = "Model and loading"

    dtypes: Dtypes = setting(("auto", "bfloat16", "float16", "float32"), "tried in this order")
    quantization: Literal["none", "bnb_4bit", "bnb_8bit"] = setting("none", "precision of the search")
    device_map: str | dict[str, int | str] = setting(
        "auto", "placement; `balanced` for several accelerators", score=False
    )
    max_memory: dict[str, int | str] | None = setting(None, "limit per device", score=False)
    attn_implementation: Text | None = setting(None, "attention back end", score=False)
    trust_remote_code: bool = setting(
        False, "run code of the model repository; needs a 40-digit model_revision", score=False, consent=True
    )
    compile: bool = setting(False, "torch.compile of the forward", score=False)
    system_prompt: str = setting(DEFAULT_SYSTEM_PROMPT, "system turn of every prompt; empty = none")
    chat_template: FilePath | None = setting(None, "overrides the tokenizer's template")
    thinking: Literal["off", "on", "auto"] = setting("off", "thinking models")
    thinking_tokens: Positive = setting(512, "budget of a thought")
    response_prefix: str | None = setting(None, "text put at the start of every reply; null = detected")
    offline: bool = setting(False, "no network; misses fail at once", score=False)
    allow_partial: bool = setting(False, "edit although some residual writers are not covered", score=False)
    allow_pickle: bool = setting(False, "read pickle weights, converted first", score=False, consent=True)
    allow_zero_baseline: bool = setting(
        False, "go on although the base model never shows the behaviour", score=False
    )
    strict: bool = setting(False, "turn warnings of verdict into errors", score=False)


class BatchSettings(Group):
    """Batches, lengths, engine (requirements 3.3)."""

    title: ClassVar[str] = "Batches, lengths, engine"

    batch_size: Count = setting(0, "rows per pass; 0 = find", score=False)
    max_batch_size: Positive = setting(128, "upper bound when it is found", score=False)
    max_prompt_tokens: Positive = setting(2048, "longer prompts are cut from the left of the user text")
    max_response_length: Positive = setting(100, "tokens at which a behaviour is finally judged")
    refusal_check_tokens: Positive = setting(30, "first check point; at most max_response_length")
    kl_divergence_tokens: Positive = setting(5, "teacher-forced positions in the KL")
    kl_divergence_scale: PositiveFloat = setting(1.0, "divisor of the KL in the objective only")
    trials_per_batch: Count = setting(
        0,
        "trials measured at a time, in one pass or on several cores; 0 = by measured throughput and free memory",
        score=False,
    )
    engine: Literal["auto", "fast", "reference"] = setting("auto", "decode loop", score=False)
    early_exit: bool = setting(True, "rows leave when decided", score=False)
    reuse_lower_layers: bool = setting(
        True, "keep what blocks below the first edited one make of the prompts", score=False
    )
    reuse_budget: PositiveFloat = setting(1.0, "memory for reuse_lower_layers, GB", score=False)


class SearchSettings(Group):
    """The search (requirements 3.4)."""

    title: ClassVar[str] = "Search"

    n_trials: Positive = setting(200, "total of the study, resumed ones included", score=False)
    n_startup_trials: Count = setting(
        30, "trials before the model-based sampler; at most n_trials", score=False
    )
    sampler: Literal["tpe", "gp", "random", "qmc"] = setting("tpe", "how trials are proposed", score=False)
    search_space: SearchSpace = setting(
        SearchSpace(), "override of any range, for all components or in a table named after one"
    )
    max_strength: Annotated[float, Field(ge=0, le=2)] = setting(
        1.5, "cap after all multipliers; above 1 reverses the component"
    )
    study_name: Text = setting("heretic_study", "name in the storage", score=False)
    storage: StorageUrl | None = setting(
        "sqlite:///heretic_study.db", "where trials are kept; empty = memory", score=False
    )
    resume: Literal["auto", "continue", "fresh", "fail"] = setting("auto", "an existing study", score=False)
    time_budget: Duration | None = setting(None, "start no batch after it: 90s, 45m, 8h", score=False)
    stop_on_stall: bool = setting(
        False, "end when 40 trials (20 % of a long search) hardly moved the front", score=False
    )
    workers: Positive | Literal["auto"] = setting(
        1, "local processes, one per accelerator with auto", score=False
    )
    lease_seconds: Annotated[int, Field(gt=10)] = setting(
        180, "a worker silent for longer loses its trial", score=False
    )
    max_trial_retries: Count = setting(2, "retries before a trial is recorded as failed", score=False)
    early_stop_trials: bool = setting(
        True, "a trial ends once it cannot win or is above max_trial_kl; false measures every trial in full"
    )
    racing: bool = setting(
        False, "a subset of the prompts first, after which a sequential test may give a trial up"
    )
    racing_prompts: Annotated[int, Field(ge=10)] = setting(30, "size of that subset")
    use_warm_start_params: bool = setting(True, "begin near values plausible for the family", score=False)
    model_family: Literal["", "llama", "qwen", "mistral", "mixtral", "gemma", "phi"] = setting(
        "", "family of the warm start; empty = detected", score=False
    )
    warm_start_n_trials: Annotated[int, Field(ge=0, le=5)] = setting(
        3, "enqueued trials; 0 = none", score=False
    )
    max_trial_kl: PositiveFloat = setting(
        2.0, "a trial above it cannot be chosen; its replies are not generated"
    )


class OutputSettings(Group):
    """Selection and output (requirements 3.4)."""

    title: ClassVar[str] = "Selection and output"

    auto_select: bool = setting(False, "choose and save without questions", score=False)
    auto_select_path: Text | None = setting(
        None, "output folder; an existing folder or a trailing slash means its parent", score=False
    )
    trial: Count | None = setting(None, "choose this trial instead of the rule", score=False)
    select_max_kl: PositiveFloat = setting(0.5, "upper limit of the KL", score=False)
    select_max_rate: Fraction | None = setting(None, "upper limit of the objective rate", score=False)
    select_fallback: Literal["knee", "none"] = setting("knee", "when nothing meets the limits", score=False)
    finalists: Positive = setting(5, "trials confirmed on held-out prompts", score=False)
    controls: bool = setting(
        True, "measure random directions and an instruction beside the saved trial", score=False
    )
    export_formats: ExportFormats = setting(("weights",), "what is written", score=False)
    overwrite: bool = setting(False, "replace an existing output folder", score=False)
    hf_upload: Repository | None = setting(None, "upload there after saving", score=False, consent=True)
    hf_private: bool = setting(False, "private repository", score=False)
    hf_upload_manifest: bool = setting(True, "manifest and checksums go along", score=False)
    progress: Literal["auto", "rich", "plain", "json", "none"] = setting("auto", "on stderr", score=False)
