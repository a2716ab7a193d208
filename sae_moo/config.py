"""The configuration: a YAML file, read whole, refused whole with every fault and its place."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator

from sae_moo import marked_yaml, zoo
from sae_moo.algorithms import ALGORITHMS, SETTINGS
from sae_moo.consistency import cross_faults, slug
from sae_moo.errors import InputError, nearest
from sae_moo.marked_yaml import Key, dotted, place, refusal
from sae_moo.objectives import SPARSITY, Constraint, Objective, named_quantities
from sae_moo.recipe import BASE, SCOPES, STRUCTURED, pattern
from sae_moo.schedule import ADAPTIVE, SHAPES

Sparsity = Annotated[float, Field(ge=0.0, lt=1.0)]
Count = Annotated[int, Field(ge=1, le=10**9)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class StudySection(_Section):
    """``study``: name, seed, and where trials are stored (null: ``runs/NAME/study.journal``, or an Optuna URL)."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)] = "study"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    storage: str | None = None


class ModelsSection(_Section):
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


class TaskSection(_Section):
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


class MeanSection(_Section):
    """An objective that is the mean of several tasks' scores."""

    mean: Annotated[list[str], Field(min_length=1)]
    name: Annotated[str, Field(min_length=1)]


class LimitSection(_Section):
    """Limits on one quantity."""

    min: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    max: Annotated[float, Field(ge=0.0, le=1.0)] | None = None


class SpaceSection(_Section):
    """``space``: lineages or coefficients (null: what the algorithm searches), how fine, a sparsity for all or none."""

    kind: Literal["lineage", "coefficients"] | None = None
    granularity: Literal["block", "model"] = "block"
    sparsity: Sparsity | None = None


class CalibrationSection(_Section):
    """``pruning.calibration``: whose activations over which texts; null: the prompts of the tasks' search split."""

    data: Annotated[str, Field(min_length=1)] | None = None
    tokens: Annotated[int, Field(ge=2, le=10**9)] = 4096
    model: str = BASE


class PruningSection(_Section):
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


class AnnealingSection(_Section):
    """``annealing``: how hard pruning-merging cycles prune; a period counts generations."""

    schedule: Literal["cosine", "sine", "sawtooth", "constant", "sae-published", "adaptive"] | None = None
    low: Sparsity = 0.0
    high: Sparsity | None = None
    period: Count = 8
    growth: Annotated[float, Field(ge=1.0, le=1000.0)] = 2.0


Share = Annotated[float, Field(ge=0.0, le=1.0)]
Amount = Annotated[float, Field(ge=0.0, le=1e6)]


class OperatorsSection(_Section):
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


class SaeSection(_Section):
    """``search.sae``: the numbers of the SAE paper; M2N2 reads alpha and matchmaker."""

    omega: Amount = 0.5
    beta: Amount = 0.5
    alpha: Annotated[float, Field(ge=0.0, le=10.0)] = 1.0
    tau: Annotated[float, Field(gt=0.0, le=1e6)] = 1.0
    measure: Literal["zeros", "l1", "hoyer"] = "zeros"
    matchmaker: bool = True


class PsoSection(_Section):
    """``search.pso``: which particle swarm, and its patience."""

    flavour: Literal["model-swarms", "pso-merging"] = "model-swarms"
    patience: Annotated[int, Field(ge=2, le=10**6)] = 10


class OneShotSection(_Section):
    """``search.one_shot``: what one-shot merges are tuned over, and the sparsities that the best is pruned to."""

    scales: Annotated[list[Annotated[float, Field(gt=0.0, le=100.0)]], Field(min_length=1)] = [
        *(round(0.1 * i, 1) for i in range(2, 11)),
        1.2,
    ]
    densities: Annotated[list[Annotated[float, Field(gt=0.0, le=1.0)]], Field(min_length=1)] = [0.2, 0.5, 0.8]
    levels: list[Annotated[float, Field(gt=0.0, lt=1.0)]] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]


class SearchSection(_Section):
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


class RacingSection(_Section):
    """``evaluation.racing``: parts the instances are asked in, confidence of giving a candidate up, margin."""

    blocks: Annotated[int, Field(ge=2, le=100)] = 10
    confidence: Annotated[float, Field(ge=0.5, lt=1.0)] = 0.9
    margin: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.01


class EvaluationSection(_Section):
    """``evaluation``: how much a candidate is asked: everything, less in a race, or a share that stands for all."""

    racing: RacingSection | None = None
    anchors: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    generation: Literal["transformers", "vllm"] = "transformers"


class ExecutorSection(_Section):
    """``executor``: where evaluations run."""

    kind: Literal["local"] = "local"


class MethodSection(_Section):
    """One of ``compare.methods``: a name, and what it changes of the configuration's other sections."""

    name: Annotated[str, Field(min_length=1, max_length=60)]
    search: dict[str, Any] = {}
    space: dict[str, Any] = {}
    pruning: dict[str, Any] = {}
    annealing: dict[str, Any] = {}


class CompareSection(_Section):
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


class Config(_Section):
    """A whole configuration. Read one with `Config.load`, or build it in Python from the sections."""

    study: StudySection = StudySection()
    models: ModelsSection
    tasks: Annotated[list[TaskSection], Field(min_length=1)]
    objectives: Annotated[list[str | MeanSection], Field(min_length=1)]
    constraints: dict[str, LimitSection] = {}
    space: SpaceSection = SpaceSection()
    pruning: PruningSection = PruningSection()
    annealing: AnnealingSection = AnnealingSection()
    search: SearchSection = SearchSection()
    evaluation: EvaluationSection = EvaluationSection()
    executor: ExecutorSection = ExecutorSection()
    compare: CompareSection | None = None
    _directory: Path = PrivateAttr(default_factory=Path.cwd)

    @property
    def directory(self) -> Path:
        """The folder that relative paths in the configuration start from: that of its file."""
        return self._directory

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> Config:
        """Read a configuration.

        Args:
            path: a YAML file.
            overrides: changes as ``key.path=value``; the value is YAML too.

        Raises:
            InputError: listing every fault with file, line, key, what was expected and the nearest valid name.
        """
        path = Path(path)
        raw, lines, faults = marked_yaml.read(path, "configuration", cls.model_fields)
        for override in overrides:
            faults += _override(raw, lines, override)
        return cls._checked(raw, lines, str(path), faults, path.resolve().parent)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], directory: str | Path = ".") -> Config:
        """Check a configuration given as nested dictionaries; see `load`."""
        return cls._checked(json.loads(json.dumps(raw)), {}, "configuration", [], Path(directory).resolve())

    @classmethod
    def _checked(
        cls, raw: dict[str, Any], lines: Mapping[Key, str], source: str, faults: list[str], directory: Path
    ) -> Config:
        config = None
        raw = {key: value for key, value in raw.items() if value is not None}  # an empty section means its defaults
        try:
            config = cls.model_validate(raw)
        except ValidationError as error:
            for fault in error.errors():
                if _of_another_branch(fault):
                    continue
                key = _own_key(fault["loc"])
                faults.append(f"{place(key, lines, source)}: {dotted(key)}: {_explained(cls, key, fault)}")
        faults += [f"{place(key, lines, source)}: {dotted(key)}: {text}" for key, text in cross_faults(raw, HARNESS)]
        if config is not None and config.compare is not None and not faults:
            config._directory = directory
            for i, method in enumerate(config.compare.named):
                try:
                    config.cell(method, config.study.seed)
                except InputError as error:
                    where = ("compare", "methods", i)
                    told = [line.strip().removeprefix("configuration: ") for line in str(error).splitlines()[1:]]
                    faults += [
                        f"{place(where, lines, source)}: {dotted(where)}: {method.name}: {line}" for line in told
                    ]
        if faults:
            raise refusal("configuration", faults)
        assert config is not None
        config._directory = directory
        return config

    def smoke(self) -> Config:
        """Return the smallest comparison that still runs everything once: one seed, a few evaluations and instances.

        Its study is called ``NAME-smoke``.
        """
        raw = self.model_dump(mode="json", exclude_unset=True)
        small = {"population": len(self.models.experts) + 3}
        raw["study"] = {**raw.get("study", {}), "name": f"{self.study.name}-smoke"[-100:].lstrip("-._")}
        raw["search"] = {**raw.get("search", {}), **small, "evaluations": small["population"] + 3}
        for task in raw["tasks"]:
            task |= {"search": min(8, task.get("search", 8)), "test": min(8, task.get("test", 8))}
        methods = []
        for method in () if self.compare is None else self.compare.named:
            changed = {**method.search, **({} if "population" not in method.search else small)}
            methods.append({**method.model_dump(mode="json", exclude_unset=True), "search": changed})
        raw["compare"] = {**raw.get("compare", {}), "methods": methods, "seeds": 1, "resamples": 100}
        return Config.from_dict(raw, self.directory)

    def cell(self, method: MethodSection, seed: int) -> Config:
        """Return the configuration of one search of a comparison, in a study of its own.

        What the other sections say holds for every method that reads it; the kind of space is the method's own.

        Raises:
            InputError: listing what is wrong with the method.
        """
        raw = self.model_dump(mode="json", exclude_unset=True, exclude={"compare"})
        search = _deeper(raw.get("search", {}), method.search)
        named = search.get("algorithm", "nsga2")
        algorithm = ALGORITHMS.get(named if isinstance(named, str) else "", ALGORITHMS["nsga2"])
        for key in SETTINGS:
            if key not in algorithm.reads and key not in method.search:
                search.pop(key, None)
        if algorithm.scalar is False and "weights" not in method.search:
            search.pop("weights", None)
        space = {key: value for key, value in raw.get("space", {}).items() if key not in ("kind", "sparsity")}
        space |= method.space
        over = space.get("kind") or (*algorithm.spaces, None)[0]
        if over != "lineage" and "operators" not in method.search:
            search.pop("operators", None)
        raw |= {"search": search, "space": space}
        for section in ("pruning", "annealing"):
            raw[section] = {**raw.get(section, {}), **getattr(method, section)}
        unread = raw["annealing"].get("schedule") == ADAPTIVE and (over != "lineage" or not algorithm.anneals)
        if unread and method.annealing.get("schedule") != ADAPTIVE:
            del raw["annealing"]["schedule"]
        raw["study"] = {"name": f"{slug(method.name)}-{seed}", "seed": seed}
        return Config.from_dict(raw, self.directory)

    @property
    def space_kind(self) -> str | None:
        """The space that is searched, ``lineage`` or ``coefficients``; None for one-shot merges."""
        return self.space.kind or (*ALGORITHMS[self.search.algorithm].spaces, None)[0]

    @property
    def pace(self) -> Literal["generational", "steady-state"]:
        """When a population takes its children in."""
        return self.search.pace or "generational"

    @property
    def schedule(self) -> str:
        """The schedule of pruning ratios: as asked, else as the algorithm has it."""
        return self.annealing.schedule or ALGORITHMS[self.search.algorithm].schedule

    @property
    def highest_ratio(self) -> float:
        """The largest pruning ratio of that schedule."""
        high = self.annealing.high
        return ALGORITHMS[self.search.algorithm].high if high is None else high

    @property
    def rescale(self) -> bool:
        """Whether what pruning leaves of a tensor keeps its norm: as asked, else as the algorithm has it."""
        asked = self.pruning.rescale
        return (
            ALGORITHMS[self.search.algorithm].rescales and self.pruning.scope not in STRUCTURED
            if asked is None
            else asked
        )

    def objective_list(self) -> tuple[Objective, ...]:
        """Return the objectives, in order; all are maximized."""
        return tuple(
            Objective(entry.name, tuple(entry.mean))
            if isinstance(entry, MeanSection)
            else Objective(entry, () if entry == SPARSITY else (entry,))
            for entry in self.objectives
        )

    def constraint_list(self) -> tuple[Constraint, ...]:
        """Return the limits, in order."""
        known = named_quantities([task.name for task in self.tasks], self.objective_list())
        return tuple(Constraint(known[name], limit.min, limit.max) for name, limit in self.constraints.items())

    def identity(self) -> dict[str, Any]:
        """Return what a study may not change while it is resumed, as flat ``key.path -> value``.

        The budget of evaluations, the place of storage, the cache and the executor change no result and are left out;
        so are places of models, items and calibration texts, whose contents a study is bound to instead.
        """
        document = self.model_dump(mode="json")
        del document["study"]["storage"], document["search"]["evaluations"], document["executor"], document["compare"]
        del document["models"]["cache_gib"], document["models"]["base"], document["models"]["experts"]
        del document["pruning"]["calibration"]
        if self.pruning.calibrated is not None:
            document["pruning"]["calibration"] = self.pruning.calibrated.model_dump(mode="json", exclude={"data"})
        tasks = document.pop("tasks")
        document["tasks"] = {  # prompts and items are bound by their contents
            t["name"]: {
                **{key: t[key] for key in ("kind", "search", "test")},
                **{key: t[key] for key in HARNESS if key != "include" and t[key] not in (None, False, {})},
            }
            for t in tasks
        }
        document["pruning"]["rescale"] = self.rescale
        document["annealing"] |= {"schedule": self.schedule, "high": self.highest_ratio}
        document["space"]["kind"] = self.space_kind
        document["search"]["pace"] = self.pace if "pace" in ALGORITHMS[self.search.algorithm].reads else None
        document["objectives"] = json.dumps(document["objectives"])
        return dict(_flat(document, ()))


def _deeper(given: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a section with changes; where both have a section within, it is changed and not replaced."""
    return {**given} | {
        key: {**given[key], **value} if isinstance(value, dict) and isinstance(given.get(key), dict) else value
        for key, value in changes.items()
    }


@dataclass(frozen=True, slots=True)
class Difference:
    """One difference between a study and what it is to be resumed with.

    Args:
        key: what differs.
        stored: its value in the study.
        given: its value now.
    """

    key: str
    stored: Any
    given: Any

    def __str__(self) -> str:
        return f"{self.key}: the study has {self.stored!r}, now it is {self.given!r}"


def differences(stored: Mapping[str, Any], given: Mapping[str, Any]) -> list[Difference]:
    """Return every key whose value differs; a key of one side only counts as None on the other."""
    keys = sorted({*stored, *given})
    return [Difference(k, stored.get(k), given.get(k)) for k in keys if stored.get(k) != given.get(k)]


def _flat(value: Any, key: Key) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _flat(inner, (*key, name))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _flat(inner, (*key, i))
    else:
        yield dotted(key), value


def _override(raw: dict[str, Any], lines: dict[Key, str], override: str) -> list[str]:
    """Change `raw` by one ``key.path=value``; `lines` then says that the value came from the command line."""
    path, equals, text = override.partition("=")
    source = f"--set {override}"
    if not equals or not path:
        return [f"{source}: expected key.path=value, e.g. search.population=32"]
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        return [f"{source}: the value is not YAML: {str(error).splitlines()[0]}"]
    keys: list[str | int] = [int(part) if re.fullmatch("[0-9]{1,9}", part) else part for part in path.split(".")]
    target: Any = raw
    for i, key in enumerate(keys[:-1]):
        if isinstance(target, dict) and target.get(key) is None:
            target[key] = {}
            lines[tuple(keys[: i + 1])] = source
        if not _holds(target, key):
            return [f"{source}: {dotted(tuple(keys[: i + 1]))}: there is nothing to go into"]
        target = target[key]
    if isinstance(target, dict) or _holds(target, keys[-1]):
        target[keys[-1]] = value
    else:
        return [f"{source}: {dotted(tuple(keys))}: there is no such place"]
    lines[tuple(keys)] = source
    return []


def _holds(target: Any, key: str | int) -> bool:
    if isinstance(target, list):
        return isinstance(key, int) and key < len(target)
    return isinstance(target, dict) and key in target


def _of_another_branch(fault: Any) -> bool:
    """Say whether a fault is only that the value is not of the other type of a union."""
    if isinstance(fault["input"], dict):
        return "str" in fault["loc"]
    return bool({"MeanSection", "MethodSection"} & {*fault["loc"]}) and fault["type"] == "model_type"


def _own_key(location: Sequence[str | int]) -> Key:
    """Drop what pydantic adds to a location: the branch of a union it was in."""
    return tuple(part for part in location if part not in ("str", "MeanSection", "MethodSection", "[key]"))


def _explained(model: type[BaseModel], key: Key, fault: Any) -> str:
    got = fault["input"]
    shown = repr(got) if not isinstance(got, (dict, list)) else type(got).__name__
    match fault["type"]:
        case "extra_forbidden":
            siblings = _keys_beside(model, key)
            return f"no such key{nearest(str(key[-1]), siblings)}; expected one of {', '.join(siblings)}"
        case "missing":
            return "expected this key, it is missing"
        case "value_error":
            return str(fault["ctx"]["error"])
        case "string_pattern_mismatch":
            return f"expected letters, digits, '.', '_' and '-', beginning with a letter or digit, got {shown}"
        case "literal_error":
            near = nearest(str(got), [part.strip("' ") for part in re.split(",| or ", fault["ctx"]["expected"])])
            return f"expected {fault['ctx']['expected']}, got {shown}{near}"
        case _:
            if (
                isinstance(got, str)
                and fault["type"] in ("float_type", "int_type")
                and re.fullmatch(r"-?\d+e-?\d+", got)
            ):
                return f"expected a number; YAML reads {got} as text, write {float(got)!r}"
            text = str(fault["msg"]).removeprefix("Input should be ").replace("a valid ", "")
            text = re.sub(r"dictionary or instance of \w+|dictionary", "a mapping", text)
            text = re.sub(r"List should have at least 1 item.*", "at least one entry", text)
            return f"expected {text}, got {shown}"


def _keys_beside(model: type[BaseModel], key: Key) -> list[str]:
    current: Any = model
    for part in key[:-1]:
        if isinstance(current, type) and issubclass(current, BaseModel) and part in current.model_fields:
            current = current.model_fields[str(part)].annotation
        while not (isinstance(current, type) and issubclass(current, BaseModel)):
            inner = [each for each in get_args(current) if isinstance(each, type) and each not in (str, type(None))]
            inner += [each for each in get_args(current) if get_origin(each) is not None]
            if not inner:
                break
            current = inner[-1]
    return list(current.model_fields) if isinstance(current, type) and issubclass(current, BaseModel) else []
