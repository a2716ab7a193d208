"""The sections of a configuration: their keys, the values each takes, and the defaults."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator

from sae_moo import zoo
from sae_moo.algorithms import ALGORITHMS
from sae_moo.errors import nearest
from sae_moo.recipe import BASE, SCOPES, pattern
from sae_moo.schedule import ADAPTIVE, SHAPES

Sparsity = Annotated[float, Field(ge=0.0, lt=1.0)]
Count = Annotated[int, Field(ge=1, le=10**9)]


class Section(BaseModel):
    """What every section is: frozen, strict, and without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class StudySection(Section):
    """``study``: name, seed, and where trials are stored (null: ``runs/NAME/study.journal``, or an Optuna URL)."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)] = "study"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    storage: str | None = None


class ModelsSection(Section):
    """``models``: base, experts by name, dtype and device of the live model, cache of weights, vocabulary policy."""

    base: str
    experts: dict[str, str]
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "auto"
    cache_gib: Annotated[float, Field(ge=0.0, le=1e6)] = 2.0
    vocabulary: Literal["refuse", "intersection", "base"] = "refuse"

    @field_validator("experts")
    @classmethod
    def _some(cls, experts: dict[str, str]) -> dict[str, str]:
        if not experts:
            raise ValueError("expected at least one expert, got none")
        if not all(experts):
            raise ValueError("expected a name for every expert, got ''")
        if BASE in experts:
            raise ValueError(f"{BASE!r} names the base model; give the expert another name")
        return experts


class TaskSection(Section):
    """One entry of ``tasks``: built in, one's own items (``data``, ``kind``), or a task of the evaluation harness."""

    name: Annotated[str, Field(min_length=1)]
    data: Annotated[str, Field(min_length=1)] | None = None
    kind: Literal["multiple_choice", "exact_match", "likelihood"] | None = None
    search: Count = 200
    test: Annotated[int, Field(ge=0, le=10**9)] = 400
    task: Annotated[str, Field(min_length=1)] | None = None
    include: Annotated[str, Field(min_length=1)] | None = None
    fewshot: Annotated[int, Field(ge=0, le=1000)] | None = None
    chat_template: bool = False
    system_prompt: str | None = None
    multiturn: bool | None = None
    metric: Annotated[str, Field(min_length=1)] | None = None
    filter: Annotated[str, Field(min_length=1)] | None = None
    generation: dict[str, Any] = {}
    documents: Literal["train", "validation", "test"] | None = None

    @property
    def of_harness(self) -> bool:
        """Whether it is a task of the harness."""
        return self.data is None and (self.task is not None or self.include is not None or self.name not in zoo.TASKS)


HARNESS = tuple(TaskSection.model_fields)[list(TaskSection.model_fields).index("task") :]
"""Settings that only a task of the harness has."""


class MeanSection(Section):
    """An objective that is the mean of several tasks' scores."""

    mean: Annotated[list[str], Field(min_length=1)]
    name: Annotated[str, Field(min_length=1)]


class LimitSection(Section):
    """Limits on one quantity."""

    min: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    max: Annotated[float, Field(ge=0.0, le=1.0)] | None = None


class SpaceSection(Section):
    """``space``: lineages or coefficients (null: what the algorithm searches), how fine, a sparsity for all or none."""

    kind: Literal["lineage", "coefficients"] | None = None
    granularity: Literal["block", "model"] = "block"
    sparsity: Sparsity | None = None


class CalibrationSection(Section):
    """``pruning.calibration``: whose activations over which texts; null: the prompts of the tasks' search split."""

    data: Annotated[str, Field(min_length=1)] | None = None
    tokens: Annotated[int, Field(ge=2, le=10**9)] = 4096
    model: str = BASE


class PruningSection(Section):
    """``pruning``: by what weights are ranked, what competes with what, whether what is left keeps a tensor's norm."""

    criterion: Literal["magnitude", "wanda"] = "magnitude"
    scope: str = "tensor"
    rescale: bool | None = None
    calibration: CalibrationSection | None = None

    @field_validator("scope", mode="before")
    @classmethod
    def _known(cls, scope: Any) -> Any:
        if type(scope) is int and scope > 60:  # YAML reads 2:4 as two minutes and four seconds
            scope = f"{scope // 60}:{scope % 60}"
        if not isinstance(scope, str) or (scope not in SCOPES and pattern(scope) is None):
            near = nearest(str(scope), SCOPES)
            raise ValueError(f"expected {', '.join(SCOPES)}, or N:M with N < M such as 2:4, got {scope!r}{near}")
        return scope

    @property
    def calibrated(self) -> CalibrationSection | None:
        """The calibration, defaults filled in; None if the criterion needs none."""
        return (self.calibration or CalibrationSection()) if self.criterion == "wanda" else None


class AnnealingSection(Section):
    """``annealing``: how hard pruning-merging cycles prune; a period counts generations."""

    schedule: Literal["cosine", "sine", "sawtooth", "constant", "sae-published", "adaptive"] | None = None
    low: Sparsity = 0.0
    high: Sparsity | None = None
    period: Count = 8
    growth: Annotated[float, Field(ge=1.0, le=1000.0)] = 2.0


Share = Annotated[float, Field(ge=0.0, le=1.0)]
Amount = Annotated[float, Field(ge=0.0, le=1e6)]


class OperatorsSection(Section):
    """``search.operators``: the parts of our own search over lineages, each of which can be turned off."""

    attraction: bool = True
    founders: Share = 0.0
    remerge: Share = 1.0
    zero_aware: bool = True
    split: Share = 0.0
    stretch: Share = 0.5
    reach: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1
    prune_before: bool = False
    prune_after: bool = True
    inherit: Share = 0.5
    shape: Share = 0.8
    tilt: Annotated[float, Field(ge=0.0, le=2.0)] = 0.4
    ladder: Annotated[int, Field(ge=0, le=10_000)] = 0


class SaeSection(Section):
    """``search.sae``: the numbers of the SAE paper; M2N2 reads alpha and matchmaker."""

    omega: Amount = 0.5
    beta: Amount = 0.5
    alpha: Annotated[float, Field(ge=0.0, le=10.0)] = 1.0
    tau: Annotated[float, Field(gt=0.0, le=1e6)] = 1.0
    measure: Literal["zeros", "l1", "hoyer"] = "zeros"
    matchmaker: bool = True


class PsoSection(Section):
    """``search.pso``: which particle swarm, and its patience."""

    flavour: Literal["model-swarms", "pso-merging"] = "model-swarms"
    patience: Annotated[int, Field(ge=2, le=10**6)] = 10


class OneShotSection(Section):
    """``search.one_shot``: what one-shot merges are tuned over, and the sparsities that the best is pruned to."""

    scales: Annotated[list[Annotated[float, Field(gt=0.0, le=100.0)]], Field(min_length=1)] = [
        *(round(0.1 * i, 1) for i in range(2, 11)),
        1.2,
    ]
    densities: Annotated[list[Annotated[float, Field(gt=0.0, le=1.0)]], Field(min_length=1)] = [0.2, 0.5, 0.8]
    levels: list[Annotated[float, Field(gt=0.0, lt=1.0)]] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]


class SearchSection(Section):
    """``search``: algorithm, population, number of evaluations, generational or steady-state; settings of families."""

    algorithm: str = "nsga2"
    population: Annotated[int, Field(ge=4, le=100_000)] = 24
    evaluations: Count = 400
    pace: Literal["generational", "steady-state"] | None = None
    weights: dict[str, Amount] | None = None
    operators: OperatorsSection | None = None
    sae: SaeSection | None = None
    pso: PsoSection | None = None
    one_shot: OneShotSection | None = None

    @field_validator("algorithm")
    @classmethod
    def _known(cls, algorithm: str) -> str:
        if algorithm not in ALGORITHMS:
            expected = f"expected one of {', '.join(ALGORITHMS)}"
            raise ValueError(f"{expected}, got {algorithm!r}{nearest(algorithm, ALGORITHMS)}")
        return algorithm


class RacingSection(Section):
    """``evaluation.racing``: parts the instances are asked in, confidence of giving a candidate up, margin."""

    blocks: Annotated[int, Field(ge=2, le=100)] = 10
    confidence: Annotated[float, Field(ge=0.5, lt=1.0)] = 0.9
    margin: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.01


class EvaluationSection(Section):
    """``evaluation``: how much a candidate is asked: everything, less in a race, or a share that stands for all."""

    racing: RacingSection | None = None
    anchors: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    generation: Literal["transformers", "vllm"] = "transformers"


class ExecutorSection(Section):
    """``executor``: where evaluations run."""

    kind: Literal["local"] = "local"


class MethodSection(Section):
    """One of ``compare.methods``: a name, and what it changes of the configuration's other sections."""

    name: Annotated[str, Field(min_length=1, max_length=60)]
    search: dict[str, Any] = {}
    space: dict[str, Any] = {}
    pruning: dict[str, Any] = {}
    annealing: dict[str, Any] = {}


class CompareSection(Section):
    """``compare``: methods, seeds, the method that others are held against, sparsities to report at."""

    methods: Annotated[list[str | MethodSection], Field(min_length=1)]
    seeds: Annotated[int, Field(ge=1, le=1000)] = 5
    reference: str | None = None
    thresholds: list[Sparsity] = [0.0, 0.3, 0.5, 0.6]
    resamples: Annotated[int, Field(ge=100, le=100_000)] = 2000

    @property
    def named(self) -> tuple[MethodSection, ...]:
        """The methods; a plain name is an algorithm's."""
        return tuple(
            MethodSection(name=entry, search={"algorithm": entry}) if isinstance(entry, str) else entry
            for entry in self.methods
        )


_SCHEDULES = get_args(get_args(AnnealingSection.model_fields["schedule"].annotation)[0])
assert set(_SCHEDULES) == {*SHAPES, ADAPTIVE}
