"""The sections of a configuration: their keys, the values each takes, and the defaults."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator

from sae_moo import zoo
from sae_moo.errors import nearest
from sae_moo.evaluate.kinds import HARNESS as OF_HARNESS
from sae_moo.evaluate.kinds import KINDS
from sae_moo.recipe import BASE, SCOPES, pattern
from sae_moo.recipe.criteria import CRITERIA
from sae_moo.searchers.algorithms import ALGORITHMS
from sae_moo.searchers.schedule import ADAPTIVE, SHAPES

Sparsity = Annotated[float, Field(ge=0.0, lt=1.0)]
Count = Annotated[int, Field(ge=1, le=10**9)]


class Section(BaseModel):
    """What every section is: frozen, strict, and without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class StudySection(Section):
    """``study``: name, seed, and where trials are stored (null: ``runs/NAME/study.journal``, or an Optuna URL)."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)] = Field(
        default="study", description="names the run folder `runs/NAME/` and the study"
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        default=0, description="seed of the search; the same seed gives the same trials"
    )
    storage: str | None = Field(
        default=None,
        description="where trials are stored: null for a journal file in the run folder, or an Optuna URL such as "
        "`sqlite:///s.db`",
    )


class ModelsSection(Section):
    """``models``: base, experts by name, dtype and device of the live model, cache of weights, vocabulary policy."""

    base: str = Field(
        description="the model that the experts were fine-tuned from: `zoo:NAME`, a folder with safetensors, or a hub "
        "id (`owner/name@revision`)"
    )
    experts: dict[str, str] = Field(
        description="experts by name; each is written like `base`, and may be a LoRA adapter over the base"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32",
        description="dtype of the model that is evaluated and exported; the arithmetic of merging is float32 whatever "
        "is chosen",
    )
    device: str = Field(default="auto", description="`cpu`, `cuda`, `cuda:N`, or `auto`: CUDA where there is one")
    cache_gib: Annotated[float, Field(ge=0.0, le=1e6)] = Field(
        default=2.0,
        description="memory in GiB for the population's weights; read where children are merged from their parents' "
        "weights. It changes speed, never a result",
    )
    vocabulary: Literal["refuse", "intersection", "base"] = Field(
        default="refuse",
        description="what happens to experts whose tokens are not the base's: they are refused, or rows are matched by "
        "token (`base`, `intersection`)",
    )

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

    name: Annotated[str, Field(min_length=1)] = Field(
        description="names the task; `zoo_math`, `zoo_lingua` and `zoo_logic` are built in, a name without `data` is a "
        "task of the harness"
    )
    data: Annotated[str, Field(min_length=1)] | None = Field(
        default=None, description="file of your own items, a JSON object a line"
    )
    kind: str | None = Field(
        default=None, description="how your own items are scored; needed with `data`. `package/name` is a package's"
    )
    search: Count = Field(default=200, description="instances that the search asks")
    test: Annotated[int, Field(ge=0, le=10**9)] = Field(
        default=400, description="instances kept for judging what was found; the search never sees them"
    )
    task: Annotated[str, Field(min_length=1)] | None = Field(
        default=None, description="the harness's name for the task, if it is not `name`"
    )
    include: Annotated[str, Field(min_length=1)] | None = Field(
        default=None, description="folder or file of your own harness YAMLs"
    )
    fewshot: Annotated[int, Field(ge=0, le=1000)] | None = Field(
        default=None, description="examples before each question; null: as the task's YAML says"
    )
    chat_template: bool = Field(default=False, description="whether prompts go through the tokenizer's chat template")
    system_prompt: str | None = Field(default=None, description="system prompt before every question")
    multiturn: bool | None = Field(
        default=None,
        description="whether examples become turns of the chat; null: yes with a chat template, as in the harness",
    )
    metric: Annotated[str, Field(min_length=1)] | None = Field(
        default=None, description="the metric that scores an instance; null: the first of the task's `metric_list`"
    )
    filter: Annotated[str, Field(min_length=1)] | None = Field(
        default=None, description="the filter that reads the answer; null: the task's first"
    )
    generation: dict[str, Any] = Field(
        default={}, description="changes to the task's generation settings, such as `{max_gen_toks: 128}`"
    )
    documents: Literal["train", "validation", "test"] | None = Field(
        default=None,
        description="the documents that the search takes; null: validation, else training, else a part of those the "
        "harness evaluates on",
    )

    @field_validator("kind")
    @classmethod
    def _kind(cls, kind: str | None) -> str | None:
        return None if kind is None else KINDS.find(kind).name

    @property
    def of_harness(self) -> bool:
        """Whether it is a task of the harness."""
        return self.data is None and (self.task is not None or self.include is not None or self.name not in zoo.TASKS)


HARNESS = OF_HARNESS.settings
"""Settings that only a task of the harness has."""


class MeanSection(Section):
    """An objective that is the mean of several tasks' scores."""

    mean: Annotated[list[str], Field(min_length=1)] = Field(description="names of the tasks whose scores are averaged")
    name: Annotated[str, Field(min_length=1)] = Field(
        description="names the objective in every table, picture and pick"
    )


class LimitSection(Section):
    """Limits on one quantity."""

    min: Annotated[float, Field(ge=0.0, le=1.0)] | None = Field(
        default=None, description="a candidate below it is infeasible; null: no lower limit"
    )
    max: Annotated[float, Field(ge=0.0, le=1.0)] | None = Field(
        default=None, description="a candidate above it is infeasible; null: no upper limit"
    )


class SpaceSection(Section):
    """``space``: lineages or coefficients (null: what the algorithm searches), how fine, a sparsity for all or none."""

    kind: Literal["lineage", "coefficients"] | None = Field(
        default=None,
        description="`lineage`: children are bred from recipes; `coefficients`: one merge by a vector of numbers; "
        "null: the first that the algorithm searches",
    )
    granularity: Literal["block", "model"] = Field(
        default="block", description="`block`: numbers of its own for every transformer block; `model`: one set for all"
    )
    sparsity: Sparsity | None = Field(
        default=None,
        description="over coefficients, the sparsity that every candidate is pruned to; null: the sparsity of every "
        "block is searched",
    )


class CalibrationSection(Section):
    """``pruning.calibration``: whose activations over which texts; null: the prompts of the tasks' search split."""

    data: Annotated[str, Field(min_length=1)] | None = Field(
        default=None,
        description="texts to calibrate on, `.txt` or `.jsonl` with `text`; null: the prompts of the tasks' search "
        "split",
    )
    tokens: Annotated[int, Field(ge=2, le=10**9)] = Field(default=4096, description="how many tokens are read at most")
    model: str = Field(default=BASE, description="whose activations are measured: `base`, or an expert's name")


class PruningSection(Section):
    """``pruning``: by what weights are ranked, what competes with what, whether what is left keeps a tensor's norm."""

    criterion: str = Field(
        default="magnitude",
        description="how weights are ranked: `magnitude`, `wanda`, or `package/name` of an installed package",
    )
    scope: str = Field(
        default="tensor",
        description="what competes for the zeros: `tensor`, `group` (a block), `global`, `row`, `N:M` such as `2:4`, "
        "`neurons`, or `heads`",
    )
    rescale: bool | None = Field(
        default=None,
        description="whether what is left of a tensor is multiplied so that it keeps its L2 norm; null: yes in our own "
        "search, no in the methods of others, and never for neurons and heads",
    )
    calibration: CalibrationSection | None = Field(
        default=None, description="texts and model of criteria that need activations; null: the defaults below"
    )

    @field_validator("criterion")
    @classmethod
    def _ranking(cls, criterion: str) -> str:
        row = CRITERIA.find(criterion)
        if row.unavailable is not None:
            raise ValueError(row.unavailable)
        return row.name

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
        return (self.calibration or CalibrationSection()) if CRITERIA.find(self.criterion).calibrated else None


class AnnealingSection(Section):
    """``annealing``: how hard pruning-merging cycles prune; a period counts generations."""

    schedule: Literal["cosine", "sine", "sawtooth", "constant", "sae-published", "adaptive"] | None = Field(
        default=None,
        description="course of the largest pruning ratio over the generations; null: constant in our own search, "
        "cosine in the methods of others",
    )
    low: Sparsity = Field(default=0.0, description="ratio at the start of every cycle")
    high: Sparsity | None = Field(
        default=None,
        description="ratio that every cycle approaches; null: 0.8 in our own search, 0.6 in the methods of others. "
        "Over coefficients it bounds the first population alone",
    )
    period: Count = Field(default=8, description="generations of the first cycle")
    growth: Annotated[float, Field(ge=1.0, le=1000.0)] = Field(
        default=2.0, description="how many times as long each cycle is as the one before"
    )


Share = Annotated[float, Field(ge=0.0, le=1.0)]
Amount = Annotated[float, Field(ge=0.0, le=1e6)]


class OperatorsSection(Section):
    """``search.operators``: the parts of our own search over lineages, each of which can be turned off."""

    attraction: bool = Field(
        default=True, description="whether parents are paired that complement each other item by item"
    )
    founders: Share = Field(default=0.0, description="probability that the second parent is an original expert")
    remerge: Share = Field(
        default=1.0,
        description="probability that a child is merged anew from the experts by its parents' mixing weights; else "
        "their weights are merged",
    )
    zero_aware: bool = Field(
        default=True, description="whether, where one parent's weight is zero, the other's takes its place undiluted"
    )
    split: Share = Field(
        default=0.0,
        description="probability that a merge of two parents exchanges them behind a split point, as M2N2 does",
    )
    stretch: Share = Field(
        default=0.5, description="probability that a child's mixing weights, or its task vectors, are moved"
    )
    reach: Annotated[float, Field(ge=0.0, le=1.0)] = Field(default=0.1, description="standard deviation of that move")
    prune_before: bool = Field(default=False, description="whether parents are pruned before they are merged")
    prune_after: bool = Field(default=True, description="whether a child is pruned after it is merged")
    inherit: Share = Field(
        default=0.5,
        description="probability that a child's sparsity is near its parent's; else it is drawn below the annealed "
        "ratio",
    )
    shape: Share = Field(
        default=0.8, description="probability that a child inherits how a parent's sparsity differs over the blocks"
    )
    tilt: Annotated[float, Field(ge=0.0, le=2.0)] = Field(
        default=0.4,
        description="standard deviation of the slope of sparsity from the first block to the last, where no shape is "
        "inherited",
    )
    ladder: Annotated[int, Field(ge=0, le=10_000)] = Field(
        default=0, description="how many models of the first population are averages pruned to evenly spaced sparsities"
    )


class SaeSection(Section):
    """``search.sae``: the numbers of the SAE paper; M2N2 reads alpha and matchmaker."""

    omega: Amount = Field(default=0.5, description="weight of the competition for instances in a model's score")
    beta: Amount = Field(default=0.5, description="weight of the competition for sparsity in a model's score")
    alpha: Annotated[float, Field(ge=0.0, le=10.0)] = Field(
        default=1.0, description="strength of the competition for instances; 0 is none"
    )
    tau: Annotated[float, Field(gt=0.0, le=1e6)] = Field(
        default=1.0, description="temperature of the competition for sparsity"
    )
    measure: Literal["zeros", "l1", "hoyer"] = Field(
        default="zeros", description="what counts as sparse in the competition"
    )
    matchmaker: bool = Field(default=True, description="whether second parents are chosen by attraction; else by score")


class PsoSection(Section):
    """``search.pso``: which particle swarm, and its patience."""

    flavour: Literal["model-swarms", "pso-merging"] = Field(default="model-swarms", description="which particle swarm")
    patience: Annotated[int, Field(ge=2, le=10**6)] = Field(
        default=10,
        description="a particle without a new best for half as many generations begins anew at its best",
    )


class OneShotSection(Section):
    """``search.one_shot``: what one-shot merges are tuned over, and the sparsities that the best is pruned to."""

    scales: Annotated[list[Annotated[float, Field(gt=0.0, le=100.0)]], Field(min_length=1)] = Field(
        default=[
            *(round(0.1 * i, 1) for i in range(2, 11)),
            1.2,
        ],
        description="scales of the task vectors that are tried",
    )
    densities: Annotated[list[Annotated[float, Field(gt=0.0, le=1.0)]], Field(min_length=1)] = Field(
        default=[0.2, 0.5, 0.8], description="shares of each task vector that are tried where the method trims"
    )
    levels: list[Annotated[float, Field(gt=0.0, lt=1.0)]] = Field(
        default=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7], description="sparsities that the best merge is then pruned to"
    )


class SearchSection(Section):
    """``search``: algorithm, population, number of evaluations, generational or steady-state; settings of families."""

    algorithm: str = Field(default="nsga2", description="the search algorithm; see the page on algorithms")
    population: Annotated[int, Field(ge=4, le=100_000)] = Field(
        default=24, description="size of the population, archive or swarm"
    )
    evaluations: Count = Field(
        default=400, description="the budget: trials in all, earlier ones of a resumed study counted"
    )
    pace: Literal["generational", "steady-state"] | None = Field(
        default=None,
        description="when children enter the population: all of a generation at once, or each as it is evaluated; "
        "null: generational",
    )
    weights: dict[str, Amount] | None = Field(
        default=None,
        description="for algorithms that work on one number, weights of the objectives such as `{accuracy: 1, "
        "sparsity: 0.5}`; null: the mean of the objectives scored on tasks",
    )
    operators: OperatorsSection | None = Field(
        default=None, description="parts of our own search over lineages; null: the defaults below"
    )
    sae: SaeSection | None = Field(default=None, description="numbers of the SAE paper; null: the defaults below")
    pso: PsoSection | None = Field(default=None, description="the particle swarm; null: the defaults below")
    one_shot: OneShotSection | None = Field(
        default=None, description="what one-shot merges are tuned over; null: the defaults below"
    )

    @field_validator("algorithm")
    @classmethod
    def _known(cls, algorithm: str) -> str:
        if algorithm not in ALGORITHMS:
            expected = f"expected one of {', '.join(ALGORITHMS)}"
            raise ValueError(f"{expected}, got {algorithm!r}{nearest(algorithm, ALGORITHMS)}")
        return algorithm


class RacingSection(Section):
    """``evaluation.racing``: parts the instances are asked in, confidence of giving a candidate up, margin."""

    blocks: Annotated[int, Field(ge=2, le=100)] = Field(default=10, description="parts that the instances are asked in")
    confidence: Annotated[float, Field(ge=0.5, lt=1.0)] = Field(
        default=0.9, description="confidence with which a candidate must be beaten before it is stopped"
    )
    margin: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        default=0.01, description="how far beyond the front a candidate must promise to be, in some objective, to go on"
    )


class EvaluationSection(Section):
    """``evaluation``: how much a candidate is asked: everything, less in a race, or a share that stands for all."""

    racing: RacingSection | None = Field(
        default=None, description="candidates race against the front; null: no, `{}`: yes, with the defaults below"
    )
    anchors: Annotated[float, Field(gt=0.0, lt=1.0)] | None = Field(
        default=None,
        description="share of each task's search split that stands for all of it; null: all instances are asked",
    )
    generation: Literal["transformers", "vllm"] = Field(
        default="transformers",
        description="what continues the prompts of tasks that let models write; `vllm` is experimental",
    )


class ExecutorSection(Section):
    """``executor``: where evaluations run."""

    kind: Literal["local"] = Field(default="local", description="where candidates are evaluated: in this process")


class MethodSection(Section):
    """One of ``compare.methods``: a name, and what it changes of the configuration's other sections."""

    name: Annotated[str, Field(min_length=1, max_length=60)] = Field(
        description="names the method in tables and folders"
    )
    search: dict[str, Any] = Field(default={}, description="what it changes of `search`, all but the budget")
    space: dict[str, Any] = Field(default={}, description="what it changes of `space`")
    pruning: dict[str, Any] = Field(default={}, description="what it changes of `pruning`")
    annealing: dict[str, Any] = Field(default={}, description="what it changes of `annealing`")


class CompareSection(Section):
    """``compare``: methods, seeds, the method that others are held against, sparsities to report at."""

    methods: Annotated[list[str | MethodSection], Field(min_length=1)] = Field(
        description="algorithms by name, or methods: a name and what it changes"
    )
    seeds: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=5, description="searches of each method, with the seeds `study.seed`, `study.seed + 1`, and so on"
    )
    reference: str | None = Field(
        default=None, description="the method that the others are held against; null: the first"
    )
    thresholds: list[Sparsity] = Field(
        default=[0.0, 0.3, 0.5, 0.6], description="sparsities at which the best accuracy is reported"
    )
    resamples: Annotated[int, Field(ge=100, le=100_000)] = Field(
        default=2000, description="bootstrap samples over instances"
    )

    @property
    def named(self) -> tuple[MethodSection, ...]:
        """The methods; a plain name is an algorithm's."""
        return tuple(
            MethodSection(name=entry, search={"algorithm": entry}) if isinstance(entry, str) else entry
            for entry in self.methods
        )


_SCHEDULES = get_args(get_args(AnnealingSection.model_fields["schedule"].annotation)[0])
assert set(_SCHEDULES) == {*SHAPES, ADAPTIVE}
