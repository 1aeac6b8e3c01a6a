# SPDX-License-Identifier: Apache-2.0
"""From the settings to the options of extraction and the space of the strategy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from heretic.config import SearchSpace, Settings
from heretic.interventions.hooks import Edits
from heretic.phases.captures import Captures
from heretic.phases.direction_extraction import ExtractionOptions
from heretic.phases.iteration import Rounds
from heretic.phases.sources import SourceOptions
from heretic.phases.state import Run
from heretic.prompts import Prompt
from heretic.study.types import Dimension, Value

ONE_DIRECTION: Final = ("single", "heads", "caa")


CAUSAL_TOKENS: Final = 16
"""Reply tokens on which candidates for the direction are compared: the search judges whole replies."""


def captures_of(run: Run) -> Captures:
    """What the unedited model is asked, with the run's engine, scorer and lengths."""
    settings = run.settings
    assert run.model is not None and run.engine is not None and run.scorer is not None
    thought = settings.thinking_tokens if run.model.encoder.thinking else 0
    return Captures(
        run.model,
        run.engine,
        run.scorer,
        settings.batch_size or settings.max_batch_size,
        position=settings.residual_position,
        labelled=labelled_tokens(run),
        response=settings.max_response_length + thought,
    )


def labelled_tokens(run: Run) -> int:
    """Reply tokens by which a behaviour is judged before the search; a thought comes on top."""
    assert run.model is not None
    thought = run.settings.thinking_tokens if run.model.encoder.thinking else 0
    return run.settings.refusal_check_tokens + thought


def extraction_options(run: Run) -> ExtractionOptions:
    """The settings of requirements 3.5 as plain values."""
    settings = run.settings
    several = settings.use_pca_extraction
    return ExtractionOptions(
        strategy=settings.strategy,
        goal=settings.goal,
        project=settings.project_direction,
        winsorization_quantile=settings.winsorization_quantile,
        count=settings.n_refusal_directions if several else 1,
        alpha=settings.pca_alpha,
        weights=settings.eigenvalue_weight_method if settings.use_eigenvalue_weights else None,
        temperature=settings.eigenvalue_weight_temperature,
        direction_weights=settings.direction_weights,
        sources=_source_options(run),
        sacred=settings.n_sacred_directions if settings.use_sacred_directions else 0,
        sacred_overlap=settings.sacred_overlap_threshold,
        calibrate=settings.use_activation_calibration,
        percentile=settings.activation_target_percentile,
        layer_frac=settings.activation_calibration_layer_frac,
        min_factor=settings.activation_calibration_min_factor,
        max_factor=settings.activation_calibration_max_factor,
        cone_count=settings.n_concept_cones,
        cone_minimum=settings.min_cone_size,
        cone_directions=settings.directions_per_cone,
        cone_floor=settings.min_silhouette_score,
        shrinkage=settings.search_space.shrinkage,
        rounds=Rounds(
            settings.iterative_rounds,
            settings.min_direction_magnitude,
            settings.max_kl_per_round,
            _cost(run),
        ),
        caa_overlap=settings.caa_max_overlap,
        head_count=settings.n_refusal_circuits,
        head_threshold=settings.circuit_importance_threshold,
        circuit_cache=settings.circuit_cache_path,
        seed=settings.seed,
        explicit=run.resolved.explicit | ({"strict"} if settings.strict else set()),
    )


def _source_options(run: Run) -> SourceOptions:
    settings = run.settings
    return SourceOptions(
        covector=settings.use_covectors and settings.goal == "suppress",
        probe=settings.use_supervised_probing,
        ensemble=settings.ensemble_probe_pca,
        weight_probe=settings.ensemble_weight_probe,
        weight_components=settings.ensemble_weight_pca,
        floor=settings.min_probe_accuracy,
        shown=_shown(run),
        base_rate=_base_rate(run),
    )


def _base_rate(run: Run) -> float:
    """How often the unedited model shows the behaviour on the bad evaluation prompts (`induce` counts elsewhere)."""
    return 0.0 if run.baseline is None or run.induces else run.baseline.rate


def _cost(run: Run) -> Callable[[Edits], float | None]:
    def cost(edits: Edits) -> float | None:
        assert run.evaluator is not None
        found = run.evaluator.divergences([edits])[0]
        return None if found is None else found.mean

    return cost


def _shown(run: Run) -> Callable[[Sequence[Edits], Sequence[Prompt]], list[int]]:
    def shown(trials: Sequence[Edits], prompts: Sequence[Prompt]) -> list[int]:
        assert run.evaluator is not None and run.model is not None and run.scorer is not None
        sequences = run.model.encoder.encode_all(prompts)
        replies = run.evaluator.replies_under(trials, sequences, min(CAUSAL_TOKENS, labelled_tokens(run)))
        requests = [prompt.text for prompt in prompts]
        verdicts = [run.scorer.judge(requests, [reply.text for reply in own]) for own in replies]
        return [sum(verdict.hit for verdict in own) for own in verdicts]

    return shown


def strategy_dimensions(run: Run) -> tuple[Dimension, ...]:
    """Dimensions that the strategy and goal add to direction and kernels (requirements 7.2)."""
    assert run.extraction is not None and run.model is not None
    settings, findings = run.settings, run.extraction.findings
    space = settings.search_space
    found: list[Dimension] = []
    if len(findings.sources) > 1:
        wanted = space.direction_source
        choices = tuple(name for name in findings.sources if wanted is None or name in wanted)
        if len(choices) > 1:
            found.append(Dimension("direction_source", "categorical", choices=choices))
    if settings.strategy in ("subspace", "norm_preserving"):
        found.append(_count("n_components", findings.bank.components, space.n_components))
    if settings.strategy == "norm_preserving":
        found.append(
            Dimension("norm_mode", "categorical", choices=tuple(space.norm_mode or ("column", "row")))
        )
    if settings.strategy == "heads":
        found.append(_count("n_heads", len(findings.heads), space.n_heads))
    if settings.strategy == "oblique" and findings.shifts:
        allowed = {"yes" if value else "no" for value in space.center or (True, False)}
        found.append(
            Dimension("center", "categorical", choices=tuple(c for c in ("no", "yes") if c in allowed))
        )
    return (*found, *_additions(settings, space, bool(findings.shifts)))


def _additions(settings: Settings, space: SearchSpace, carried: bool) -> list[Dimension]:
    found = []
    if settings.goal == "induce":
        low, high = space.amplification or (0.0, 1.0)
        found.append(Dimension("amplification", "float", low, high))
    if carried and (
        settings.strategy == "caa" or (settings.goal == "induce" and settings.strategy != "heads")
    ):
        low, high = space.addition_strength or (0.0, max(1.0, 2 * settings.caa_addition_strength))
        found.append(Dimension("addition_strength", "float", low, high))
    return found


def _count(name: str, most: int, wanted: tuple[int, int] | None) -> Dimension:
    low, high = wanted or (1, most)
    return Dimension(name, "int", min(low, most), min(high, most))


def strategy_defaults(run: Run) -> Mapping[str, Value]:
    """Values of those dimensions for points that are tried first: what the strategy is about, in full."""
    values: dict[str, Value] = {}
    for dimension in strategy_dimensions(run):
        if dimension.kind == "categorical":
            values[dimension.name] = dimension.choices[0]
        elif dimension.name == "amplification":
            values[dimension.name] = dimension.low
        elif dimension.name == "addition_strength" and run.settings.goal == "suppress":
            values[dimension.name] = min(dimension.high, run.settings.caa_addition_strength)
        else:
            values[dimension.name] = dimension.high
    return values
