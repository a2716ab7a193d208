"""The sections of a configuration: their keys, the values each takes, and the defaults."""

from __future__ import annotations

import re
from functools import cache
from typing import Annotated, Any, ClassVar, Literal

from pydantic import create_model

from sae_moo.errors import InputError, nearest
from sae_moo.evaluate.asking import ProbesSection, Racing, ScreeningSection
from sae_moo.recipe import BASE, SCOPES, STRUCTURED, pattern
from sae_moo.recipe.criteria import CRITERIA, USUAL
from sae_moo.recipe.operators import USUAL as USUAL_OPERATORS
from sae_moo.recipe.operators import Operator, OperatorSections, operators_of
from sae_moo.recipe.section import (
    Amount,
    BeforeValidator,
    Count,
    Discriminator,
    Field,
    Section,
    Sparsity,
    Tag,
    field_validator,
)
from sae_moo.searchers import algorithms
from sae_moo.searchers.algorithms import ALGORITHMS
from sae_moo.searchers.searcher import Pace

ONE, SEVERAL = "one scope", "several scopes"
"""What pydantic calls the two forms of ``pruning.scope`` in the location of a fault."""


StudyName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]


class IslandsSection(Section):
    """``study.islands``: studies that search beside each other, each by a process of its own, and exchange members."""

    names: Annotated[list[StudyName], Field(min_length=2)] = Field(
        description="names of all of them, `study.name` among these; each is searched by a command of its own, on any "
        "machine that reaches the run folders, or `study.storage`"
    )
    every: Annotated[int, Field(ge=1)] = Field(
        default=48, description="after how many evaluations of its own a study looks at the others"
    )
    migrants: Annotated[int, Field(ge=1)] = Field(
        default=4, description="how many members it takes over then, at most, of the front of each of the others"
    )

    @field_validator("names")
    @classmethod
    def _every_one_once(cls, names: list[str]) -> list[str]:
        if len(set(names)) < len(names):
            raise ValueError(f"expected every name once, got {', '.join(names)}")
        return names


class StudySection(Section):
    """``study``: name, seed, where trials are stored (null: ``runs/NAME/study.journal``), what run is gone on from."""

    later: ClassVar[frozenset[str]] = frozenset({"extends"})

    name: StudyName = Field(default="study", description="names the run folder `runs/NAME/` and the study")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        default=0, description="seed of the search; the same seed gives the same trials"
    )
    storage: str | None = Field(
        default=None,
        description="where trials are stored: null for a journal file in the run folder, or an Optuna URL such as "
        "`sqlite:///s.db`",
    )
    extends: Annotated[str, Field(min_length=1)] | None = Field(
        default=None,
        description="name or folder of an earlier run: what it has evaluated when this study begins is known to the "
        "search and counts in no budget, while operators, tasks and experts may have joined; null: none",
    )
    islands: IslandsSection | None = Field(
        default=None, description="other searches of the same that this one exchanges members with; null: none"
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
        description="dtype of the model that is evaluated and exported; where it is the base's, tensors which the "
        "base stores in another one keep theirs; the arithmetic of merging is float32 whatever is chosen",
    )
    device: str = Field(default="auto", description="`cpu`, `cuda`, `cuda:N`, or `auto`: CUDA where there is one")
    cache_gib: Annotated[float, Field(ge=0.0, le=1e6)] = Field(
        default=2.0,
        description="memory in GiB for the population's weights; read where children are merged from their parents' "
        "weights. It changes speed, never a result",
    )
    roots: list[Annotated[str, Field(min_length=1)]] = Field(
        default=[],
        description="folders in which relative paths of models are looked for first, in this order, on every machine "
        "for itself; what none of them has lies relative to the configuration, as without",
    )
    vocabulary: Literal["refuse", "intersection", "base", "union", "position"] = Field(
        default="refuse",
        description="what happens to experts whose tokens are not the base's: they are refused, or rows are matched by "
        "token (`base`, `intersection`, `union`), or taken as they lie (`position`)",
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


class MeanSection(Section):
    """An objective that is the mean of several tasks' scores."""

    mean: Annotated[list[str], Field(min_length=1)] = Field(description="names of the tasks whose scores are averaged")
    name: Annotated[str, Field(min_length=1)] = Field(
        description="names the objective in every table, picture and pick"
    )


class LimitSection(Section):
    """Limits on one quantity."""

    min: Annotated[float, Field(ge=0.0, le=1e6)] | None = Field(
        default=None,
        description="a candidate below it is infeasible; null: no lower limit. From 0 to 1, of `speed` from 1",
    )
    max: Annotated[float, Field(ge=0.0, le=1e6)] | None = Field(
        default=None, description="a candidate above it is infeasible; null: no upper limit. Likewise"
    )


class SpeedSection(Section):
    """``speed``: of what work the modelled speed is; null: as below, where an objective or a limit names `speed`."""

    mode: Literal["decode", "prompt"] = Field(
        default="decode",
        description="`decode`: writing, a token of every row after those that stand before it; `prompt`: reading, all "
        "tokens of a row at once",
    )
    batch: Annotated[int, Field(ge=1, le=4096)] = Field(default=1, description="rows that are computed at once")
    length: Annotated[int, Field(ge=1, le=10**6)] | None = Field(
        default=None,
        description="tokens of a row that are read, or that stand before the one that is written; null: 256, or as "
        "many as the base takes",
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
    """``pruning.calibration``: which texts repairs and some criteria read; null: the tasks' prompts to search on.

    Read by criteria that weigh by activations, and whenever a candidate is repaired, after a search or when it is
    picked or exported.
    """

    data: Annotated[str, Field(min_length=1)] | None = Field(
        default=None,
        description="texts to calibrate on, `.txt` or `.jsonl` with `text`; null: the prompts of the tasks' search "
        "split",
    )
    tokens: Annotated[int, Field(ge=2, le=10**9)] = Field(default=4096, description="how many tokens are read at most")
    model: str = Field(
        default=BASE,
        description="whose activations a criterion weighs by: `base`, or an expert's name; a repair measures its own",
    )


def _scope(scope: Any) -> Any:
    """Return the name of a scope; YAML reads 2:4 as two minutes and four seconds."""
    if type(scope) is int and scope > 60:
        scope = f"{scope // 60}:{scope % 60}"
    if not isinstance(scope, str) or (scope not in SCOPES and pattern(scope) is None):
        near = nearest(str(scope), SCOPES)
        raise ValueError(f"expected {', '.join(SCOPES)}, or N:M with N < M such as 2:4, got {scope!r}{near}")
    return scope


Scope = Annotated[str, BeforeValidator(_scope)]


class ProtectSection(Section):
    """``pruning.protect``: how many blocks at either end are never removed."""

    first: Annotated[int, Field(ge=0, le=100_000)] = Field(
        default=0, description="how many of the first blocks are never removed"
    )
    last: Annotated[int, Field(ge=0, le=100_000)] = Field(
        default=0, description="how many of the last blocks are never removed"
    )


class PruningSection(Section):
    """``pruning``: by what weights are ranked, what competes with what, whether what is left keeps a tensor's norm."""

    later: ClassVar[frozenset[str]] = frozenset({"protect"})

    criterion: str = Field(
        default=USUAL,
        description="how weights are ranked; see the page on pruning, or `package/name` of an installed package",
    )
    scope: Annotated[
        Annotated[Scope, Tag(ONE)] | Annotated[list[Scope], Tag(SEVERAL), Field(min_length=1)],
        Discriminator(lambda given: SEVERAL if isinstance(given, (list, tuple)) else ONE),
    ] = Field(
        default="tensor",
        description="what competes for the zeros: `tensor`, `group` (a block), `global`, `row`, `N:M` such as `2:4`; "
        "or what goes whole: `neurons`, `heads`, `moe-experts`, `blocks`. A list such as `[blocks, neurons, row]` "
        "searches all of these together, each block with its own numbers",
    )
    protect: ProtectSection | None = Field(
        default=None, description="blocks at either end that are never removed; null: any may be"
    )
    rescale: bool | None = Field(
        default=None,
        description="whether what is left of a tensor is multiplied so that it keeps its L2 norm; null: yes in our own "
        "search, no in the methods of others, and never for what goes whole",
    )
    submodels: list[str] = Field(
        default_factory=list,
        description="sub-models that are pruned, and counted in the sparsity, beside the text model: such as "
        "`vision_tower`, as `validate` names them. Others are merged only",
    )
    calibration: CalibrationSection | None = Field(
        default=None,
        description="texts that repairs read, and criteria that need activations; null: the defaults below, of a "
        "repair more tokens",
    )

    @field_validator("criterion")
    @classmethod
    def _ranking(cls, criterion: str) -> str:
        row = CRITERIA.find(criterion)
        if row.unavailable is not None:
            raise ValueError(row.unavailable)
        return row.name

    @property
    def scopes(self) -> tuple[str, ...]:
        """The scopes in the order of pruning: blocks, then what goes whole within them, then scattered weights."""
        given = [self.scope] if isinstance(self.scope, str) else self.scope
        order = ["blocks", *(scope for scope in STRUCTURED if scope != "blocks")]
        return tuple(sorted(given, key=lambda scope: order.index(scope) if scope in order else len(order)))

    @property
    def scattered(self) -> str | None:
        """The scope of scattered zeros; None where only what goes whole is pruned."""
        return next((scope for scope in self.scopes if scope not in STRUCTURED), None)

    @property
    def calibrated(self) -> CalibrationSection | None:
        """The calibration, defaults filled in; None if the criterion needs none."""
        return (self.calibration or CalibrationSection()) if CRITERIA.find(self.criterion).calibrated else None


class SearchSection(Section):
    """``search``: algorithm, population, number of evaluations, generational or steady-state.

    Beside these stand the settings that the algorithm itself reads: `search_section` has them as keys too.
    """

    for_algorithm: ClassVar[str] = ""  # whose settings it has

    algorithm: str = Field(default=algorithms.USUAL, description="the search algorithm; see the page on algorithms")
    population: Annotated[int, Field(ge=4, le=100_000)] | None = Field(
        default=None,
        description="size of the population, archive or swarm; null: 24, for `evogm` twice the number of experts",
    )
    evaluations: Count = Field(
        default=400, description="the budget: trials in all, earlier ones of a resumed study counted"
    )
    tokens: Count | None = Field(
        default=None,
        description="a second budget: forward tokens, of screening and of scoring; when so many are spent, no more "
        "candidates are asked for. null: no such limit",
    )
    finish: Annotated[int, Field(ge=0, le=100_000)] = Field(
        default=0,
        description="how many members of the front, those that stand for it best, are repaired after the search and "
        "evaluated as further trials, on top of `evaluations` and `tokens`",
    )
    pace: Pace | None = Field(
        default=None,
        description="when children enter the population: all of a generation at once, or each as it is evaluated; "
        "null: generational",
    )
    weights: dict[str, Amount] | None = Field(
        default=None,
        description="for algorithms that work on one number, weights of the objectives such as `{accuracy: 1, "
        "sparsity: 0.5}`; null: the mean of the objectives scored on tasks",
    )

    @field_validator("algorithm")
    @classmethod
    def _known(cls, algorithm: str) -> str:
        search_section(algorithm)  # refused there if what it reads is called like what every search has
        return ALGORITHMS.find(algorithm).name

    @property
    def trials(self) -> int:
        """How many trials there will be: of the search, then of repaired members of its front."""
        return self.evaluations + self.finish

    @property
    def settings(self) -> dict[str, Section]:
        """The algorithm's own settings by their keys, defaults filled in, those that follow from others too."""
        row = ALGORITHMS[self.algorithm]
        own = {key: getattr(self, key, None) or kind() for key, kind in row.settings.items()}
        return row.settled(own, self.pace or "generational")


@cache
def search_section(algorithm: str) -> type[SearchSection]:
    """Return ``search`` with the settings of an algorithm.

    Raises:
        InputError: if there is no such algorithm, or what it reads is called like what every search has.
    """
    own = ALGORITHMS.find(algorithm).settings
    taken = [key for key in own if key in SearchSection.model_fields]
    if taken:
        raise InputError(f"search algorithm {algorithm!r} calls settings {taken[0]!r}, as every search has them")
    described = {key: str(kind.__doc__ or "").partition("\n")[0] for key, kind in own.items()}
    fields: Any = {key: (kind | None, Field(default=None, description=described[key])) for key, kind in own.items()}
    made = create_model("SearchSection", __base__=SearchSection, __doc__=SearchSection.__doc__, **fields)
    made.for_algorithm = algorithm
    return made


def search_section_of(raw: Any) -> type[SearchSection]:
    """Return the class of ``search`` that its algorithm asks for; without settings if there is no such algorithm."""
    algorithm = raw.get("algorithm", SearchSection.model_fields["algorithm"].default) if isinstance(raw, dict) else None
    try:
        return search_section(algorithm) if isinstance(algorithm, str) else SearchSection
    except InputError:  # told as a fault of the key itself
        return SearchSection


def read_search(raw: Any) -> Any:
    """Return ``search`` as far as its keys can be judged: null sections, and the settings of nobody, are left out."""
    if not isinstance(raw, dict):
        return raw
    common, kind = SearchSection.model_fields, search_section_of(raw)
    settings = {key for row in ALGORITHMS.values() for key in row.settings}
    return {
        key: value
        for key, value in raw.items()
        if key in common
        or (not (value is None and key in settings) and not (kind is SearchSection and isinstance(value, dict)))
    }


class EvaluationSection(Section):
    """``evaluation``: how much a candidate is asked: everything, less in a race, or a share that stands for all."""

    racing: Racing | None = Field(
        default=None, description="candidates race against the front; null: no, `{}`: yes, with the defaults below"
    )
    anchors: Annotated[float, Field(gt=0.0, lt=1.0)] | None = Field(
        default=None,
        description="share of each task's search split that stands for all of it; null: all instances are asked",
    )
    screening: ScreeningSection | None = Field(
        default=None,
        description="several allocations of each child's sparsity are ranked without labels, and the best is "
        "evaluated; null: no, `{}`: yes, with the defaults below",
    )
    generation: Literal["transformers", "vllm"] = Field(
        default="transformers",
        description="what continues the prompts of tasks that let models write; `vllm` is experimental",
    )


class ExecutorSection(Section):
    """``executor``: where evaluations run, and how many may fail."""

    kind: Literal["local", "processes", "ray"] = Field(
        default="local",
        description="where candidates are evaluated: `local`, in this process, one after another; `processes`, in "
        "processes of this machine, several at a time; `ray`, in processes of a Ray cluster, on any number of machines",
    )
    workers: Annotated[int, Field(ge=1, le=10_000)] | None = Field(
        default=None,
        description="how many evaluate at a time; null: one a GPU, or one for every two cores where there is none; "
        "`local` has one, and for a cluster that runs already the number is to be given",
    )
    address: str | None = Field(
        default=None,
        description="`ray`: the cluster, as `HOST:PORT` of its head, or `auto` for the one that runs on this machine; "
        "null: one of the search's own, on this machine alone, which ends with it",
    )
    cpus_per_worker: Annotated[int, Field(ge=1, le=10_000)] | None = Field(
        default=None,
        description="`ray`: processors of each worker, and how many threads it computes with; null: its share of this "
        "machine, one where `address` is given",
    )
    gpus_per_worker: Annotated[float, Field(ge=0.0, le=1000.0)] | None = Field(
        default=None,
        description="`ray`: GPUs of each worker, or the share of one that several have; null: one where models are on "
        "GPUs, else none",
    )
    failures: Annotated[int, Field(ge=0, le=10**9)] = Field(
        default=20,
        description="evaluations that may fail in a row; then the search stops and tells why, and goes on when it is "
        "run again. 0: any number",
    )

    @field_validator("address")
    @classmethod
    def _head(cls, address: str | None) -> str | None:
        if address not in (None, "auto"):
            found = re.fullmatch(r"[^\s/]+:([0-9]{1,5})", address)
            if found is None or not 0 < int(found[1]) < 2**16:
                raise ValueError(f"expected 'auto', or HOST:PORT with a port from 1 to 65535, got {address!r}")
        return address

    @field_validator("gpus_per_worker")
    @classmethod
    def _whole_or_a_share(cls, gpus: float | None) -> float | None:
        if gpus is not None and gpus > 1.0 and gpus != int(gpus):
            raise ValueError(f"expected a whole number of GPUs, or a share of one, got {gpus:g}")
        return gpus


class PredictSection(Section):
    """``predict``: which merges `sae-moo predict` ranks, on what texts, and how many of them it lists."""

    operators: OperatorSections = Field(
        default=[each.name for each in USUAL_OPERATORS],
        validate_default=True,
        description="ways to merge two experts: plain names, or mappings with the keys below",
    )
    probes: ProbesSection = Field(
        default=ProbesSection(), description="the texts on which experts are held beside each other; see below"
    )
    largest: Annotated[int, Field(ge=2, le=20)] = Field(
        default=2,
        description="experts in one merge at most; more than two are merged one after another, and their predictions "
        "are not to be trusted without trying",
    )
    most: Annotated[int, Field(ge=1, le=10**7)] = Field(
        default=5000,
        description="merges of each number of experts beyond two that are looked at, at most; where there are more, "
        "those that go on from the most promising merges of one expert less",
    )
    listed: Annotated[int, Field(ge=1, le=10**7)] = Field(
        default=20, description="how many merges are listed, the most promising first"
    )
    confidence: Annotated[float, Field(ge=0.5, lt=1.0)] = Field(
        default=0.9, description="share of merges whose score the intervals are to hold"
    )

    @property
    def known(self) -> tuple[Operator, ...]:
        """The operators, in their order."""
        return operators_of(self.operators)


class MethodSection(Section):
    """One of ``compare.methods``: a name, and what it changes of the configuration's other sections."""

    name: Annotated[str, Field(min_length=1, max_length=60)] = Field(
        description="names the method in tables and folders"
    )
    search: dict[str, Any] = Field(default={}, description="what it changes of `search`, all but the budget")
    space: dict[str, Any] = Field(default={}, description="what it changes of `space`")
    pruning: dict[str, Any] = Field(default={}, description="what it changes of `pruning`")
    annealing: dict[str, Any] = Field(default={}, description="what it changes of `annealing`")
    evaluation: dict[str, Any] = Field(
        default={}, description="what it changes of `evaluation`: `screening`, all else is the same for all"
    )


class CompareSection(Section):
    """``compare``: methods, seeds, the method that others are held against, sparsities to report at."""

    methods: Annotated[list[str | MethodSection], Field(min_length=1, max_length=500)] = Field(
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
