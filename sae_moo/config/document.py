"""The configuration: a YAML file, read whole, refused whole with every fault and its place."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import PrivateAttr, SerializeAsAny, ValidationError, ValidatorFunctionWrapHandler

from sae_moo.config.consistency import cross_faults, faults_of_places, slug
from sae_moo.config.drafts import draft
from sae_moo.config.faults import faults_of
from sae_moo.config.sections import (
    CompareSection,
    EvaluationSection,
    ExecutorSection,
    LimitSection,
    MeanSection,
    MethodSection,
    ModelsSection,
    PredictSection,
    PruningSection,
    SearchSection,
    SpaceSection,
    SpeedSection,
    StudySection,
    read_search,
    search_section_of,
)
from sae_moo.errors import InputError
from sae_moo.evaluate.asking import TaskSection
from sae_moo.evaluate.kinds import HARNESS
from sae_moo.files import marked_yaml
from sae_moo.files.marked_yaml import Key, Places, dotted, refusal
from sae_moo.objectives import SPARSITY, SPEED, Constraint, Objective, Sparsity, Speed, TaskMean, named_quantities
from sae_moo.recipe import BLOCKS, STRUCTURED
from sae_moo.recipe.section import Field, Section, field_validator
from sae_moo.searchers.algorithms import ALGORITHMS, Algorithm
from sae_moo.searchers.schedule import ADAPTIVE, Schedule
from sae_moo.searchers.searcher import Pace, SpaceKind


class Config(Section):
    """A whole configuration. Read one with `Config.load`, or build it in Python from the sections."""

    study: StudySection = StudySection()
    models: ModelsSection
    tasks: Annotated[list[TaskSection], Field(min_length=1)]
    objectives: Annotated[list[str | MeanSection], Field(min_length=1)]
    constraints: dict[str, LimitSection] = Field(default={})
    speed: SpeedSection | None = None
    space: SpaceSection = SpaceSection()
    pruning: PruningSection = PruningSection()
    annealing: Schedule = Schedule()
    search: SerializeAsAny[SearchSection] = Field(default_factory=lambda: search_section_of({})())
    evaluation: EvaluationSection = EvaluationSection()
    executor: ExecutorSection = ExecutorSection()
    compare: CompareSection | None = None
    predict: PredictSection = PredictSection()
    _directory: Path = PrivateAttr(default_factory=Path.cwd)

    @field_validator("search", mode="wrap")
    @classmethod
    def _of_the_algorithm(cls, search: Any, validated: ValidatorFunctionWrapHandler) -> SearchSection:
        """Read ``search`` with the settings of its algorithm."""
        if isinstance(search, SearchSection):
            search = search.model_dump(exclude_unset=True)
        if not isinstance(search, dict):
            checked: SearchSection = validated(search)
            return checked
        return search_section_of(search).model_validate(read_search(search))

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to other processes as a document: the class of ``search`` is made where the algorithm is known."""
        return Config.from_dict, (self.model_dump(mode="json", exclude_unset=True), str(self.directory))

    @property
    def directory(self) -> Path:
        """The folder that relative paths in the configuration start from: that of its file."""
        return self._directory

    @classmethod
    def load(
        cls,
        path: str | Path,
        overrides: Sequence[str] = (),
        given_as: str = "override",
        shorthands: Mapping[str, str] = MappingProxyType({}),
    ) -> Config:
        """Read a configuration.

        Args:
            path: a YAML file.
            overrides: changes as ``key.path=value``; the value is YAML too.
            given_as: what faults call an override, such as the flag that it was given by.
            shorthands: further changes, as overrides are, each with all that faults call it by, such as
                ``{"study.seed=-1": "--seed -1"}``.

        Raises:
            InputError: listing every fault with file, line, key, what was expected and the nearest valid name.
        """
        path = Path(path)
        raw, lines, faults = marked_yaml.read(path, "configuration", cls.model_fields)
        for change, source in [*((change, f"{given_as} {change}") for change in overrides), *shorthands.items()]:
            faults += marked_yaml.override_(raw, lines, change, source)
        directory, places = path.resolve().parent, Places(lines, str(path))
        if isinstance(raw, dict):
            faults += [places.fault(key, text) for key, text in faults_of_places(draft(cls, raw), directory)]
        return cls._checked(raw, lines, str(path), faults, directory)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], directory: str | Path = ".") -> Config:
        """Check a configuration given as nested dictionaries; see `load`."""
        return cls._checked(json.loads(json.dumps(raw)), {}, "configuration", [], Path(directory).resolve())

    @classmethod
    def _checked(
        cls, raw: dict[str, Any], lines: Mapping[Key, str], source: str, faults: list[str], directory: Path
    ) -> Config:
        config, found = cls._read(raw, directory)
        places = Places(lines, source)
        faults += [places.fault(key, text) for key, text in found]
        if config is None or faults:
            raise refusal("configuration", faults)
        return config

    @classmethod
    def _read(cls, raw: dict[str, Any], directory: Path) -> tuple[Config | None, list[tuple[Key, str]]]:
        """Return a configuration, None if it is not even typed as one, and its faults, each with its key."""
        config = None
        faults: list[tuple[Key, str]] = []
        if not isinstance(raw, dict):
            keys = ", ".join(cls.model_fields)
            return None, [((), f"expected a mapping with the keys {keys}, got {type(raw).__name__}")]
        raw = {  # an empty section means its defaults
            str(key): value for key, value in raw.items() if value is not None or key not in cls.model_fields
        }
        try:
            config = cls.model_validate(raw)
            config._directory = directory
        except ValidationError as error:
            faults += faults_of(cls, error, {("search",): search_section_of(raw.get("search", {}))})
        faults += cross_faults(config if config is not None else draft(cls, raw))
        if config is not None and config.compare is not None and not faults:
            for i, method in enumerate(config.compare.named):
                _, wrong = cls._read(config._cell(method, config.study.seed), directory)
                faults += [(("compare", "methods", i), f"{method.name}: {dotted(key)}: {text}") for key, text in wrong]
        return config, faults

    def smoke(self) -> Config:
        """Return the smallest comparison that still runs everything once: one seed, a few evaluations and instances.

        Its study is called ``NAME-smoke``.
        """
        raw = self.model_dump(mode="json", exclude_unset=True)
        small = {"population": max(len(self.models.experts) + 3, 2 * len(self.models.experts) + 1)}  # as all need
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

        What the other sections say holds for every method that reads it: a kind of space for algorithms that search it,
        a sparsity of that space for those over coefficients.

        Raises:
            InputError: listing what is wrong with the method.
        """
        return Config.from_dict(self._cell(method, seed), self.directory)

    def _cell(self, method: MethodSection, seed: int) -> dict[str, Any]:
        raw = self.model_dump(mode="json", exclude_unset=True, exclude={"compare"})
        search = _deeper(raw.get("search", {}), method.search)
        algorithm = _row(search.get("algorithm", self.search.algorithm))
        space = {**raw.get("space", {}), **method.space}
        if space.get("kind") not in algorithm.spaces and "kind" not in method.space:
            space.pop("kind", None)
        over = algorithm.space(space.get("kind"))
        if over != "coefficients" and "sparsity" not in method.space:
            space.pop("sparsity", None)
        read = {*SearchSection.model_fields, *algorithm.read(over)}
        read -= {"pace"} if not algorithm.paces else set()
        if "weights" not in method.search and algorithm.one_number(_settings(algorithm, search)) is False:
            read -= {"weights"}
        search = {key: value for key, value in search.items() if key in read or key in method.search}
        raw |= {"search": search, "space": space}
        for section in ("pruning", "annealing", "evaluation"):
            raw[section] = {**raw.get(section, {}), **getattr(method, section)}
        unread = raw["annealing"].get("schedule") == ADAPTIVE and not algorithm.annealed(space.get("kind"))
        if unread and method.annealing.get("schedule") != ADAPTIVE:
            del raw["annealing"]["schedule"]
        raw["study"] = {"name": f"{slug(method.name)}-{seed}", "seed": seed}
        document: dict[str, Any] = json.loads(json.dumps(raw))
        return document

    @property
    def algorithm(self) -> Algorithm:
        """The search algorithm."""
        return ALGORITHMS[self.search.algorithm]

    @property
    def anneals(self) -> bool:
        """Whether the pruning ratio of children follows the schedule: it is children of a lineage that are pruned."""
        return self.algorithm.annealed(self.space.kind)

    @property
    def space_kind(self) -> SpaceKind | None:
        """The space that is searched, ``lineage`` or ``coefficients``; None for one-shot merges."""
        return self.algorithm.space(self.space.kind)

    @property
    def pace(self) -> Pace:
        """When a population takes its children in."""
        return self.search.pace or "generational"

    @property
    def population(self) -> int:
        """Size of the population, archive or swarm: as asked, else as the algorithm has it."""
        return self.search.population or self.algorithm.population(len(self.models.experts))

    @property
    def schedule(self) -> Schedule:
        """The schedule of pruning ratios: as asked, else as the algorithm has it."""
        return self.annealing.filled(self.algorithm.schedule, self.algorithm.high)

    @property
    def rescale(self) -> bool:
        """Whether what pruning leaves of a tensor keeps its norm: as asked, else as the algorithm has it."""
        asked = self.pruning.rescale
        return self.algorithm.rescales and self.pruning.scattered is not None if asked is None else asked

    @property
    def structured(self) -> tuple[str, ...]:
        """The scopes of whole parts that are searched apart, in the order of pruning: of several scopes, or blocks."""
        pruning = self.pruning
        apart = isinstance(pruning.scope, list) or pruning.scope == BLOCKS
        searched = apart and self.algorithm.combines
        return tuple(scope for scope in pruning.scopes if scope in STRUCTURED) if searched else ()

    def objective_list(self) -> tuple[Objective, ...]:
        """Return the objectives, in order; all are maximized."""
        return tuple(
            TaskMean(entry.name, tuple(entry.mean))
            if isinstance(entry, MeanSection)
            else Sparsity()
            if entry == SPARSITY
            else Speed()
            if entry == SPEED
            else TaskMean(entry, (entry,))
            for entry in self.objectives
        )

    @property
    def modelled(self) -> SpeedSection | None:
        """What work the modelled speed of candidates is of; None if nothing asks for it."""
        asked = self.speed is not None or SPEED in self.objectives or SPEED in self.constraints
        return (self.speed or SpeedSection()) if asked else None

    def quantities(self) -> dict[str, Objective]:
        """Return every quantity that has a name: tasks, objectives, sparsity, speed where it is modelled."""
        tasks = [task.name for task in self.tasks]
        return named_quantities(tasks, self.objective_list(), speed=self.modelled is not None)

    def constraint_list(self) -> tuple[Constraint, ...]:
        """Return the limits, in order."""
        known = self.quantities()
        return tuple(Constraint(known[name], limit.min, limit.max) for name, limit in self.constraints.items())

    def identity(self) -> dict[str, Any]:
        """Return what a study may not change while it is resumed, as flat ``key.path -> value``.

        Of an algorithm that an installed package offers, the package and its version are part of it.

        The budgets of evaluations, tokens and repairs, the place of storage, the cache, the executor and what is ranked
        by prediction change no result and are left out; so are islands, whose migrants are stored. Of models, texts
        and items the places are left out: a study is bound to their contents instead.
        """
        document = self.model_dump(mode="json")
        for key in ("executor", "compare", "predict"):
            del document[key]
        for key in ("storage", "islands"):
            del document["study"][key]
        for budget in ("evaluations", "tokens", "finish"):
            del document["search"][budget]
        for key in ("base", "experts", "roots", "cache_gib"):
            del document["models"][key]
        del document["pruning"]["calibration"]
        if self.pruning.calibrated is not None:
            document["pruning"]["calibration"] = self.pruning.calibrated.model_dump(mode="json", exclude={"data"})
        if self.evaluation.screening is not None:
            del document["evaluation"]["screening"]["data"]
        document["pruning"]["scope"] = ", ".join(self.pruning.scopes)
        for section in ("study", "pruning"):
            for key in getattr(self, section).unsaid:
                del document[section][key]
        for name, settings in self.search.settings.items():
            said = {key: value for key, value in settings.model_dump(mode="json").items() if key not in settings.unsaid}
            if document["search"].get(name) is not None or said.keys() & settings.later:
                document["search"][name] = said
        tasks = document.pop("tasks")
        document["tasks"] = {  # prompts and items are bound by their contents
            t["name"]: {
                **{key: t[key] for key in ("kind", "search", "test")},
                **({"settings": t["settings"]} if t["settings"] else {}),
                **{key: t[key] for key in HARNESS.keys if key != "include" and t[key] not in (None, False, {})},
            }
            for t in tasks
        }
        del document["speed"]
        if self.modelled is not None:
            document["speed"] = self.modelled.model_dump(mode="json")
        document["pruning"]["rescale"] = self.rescale
        document["annealing"] = self.schedule.model_dump(mode="json")
        document["space"]["kind"] = self.space_kind
        document["search"]["population"] = self.population
        document["search"]["pace"] = self.pace if self.algorithm.paces else None
        if self.algorithm.guest is not None:
            document["search"]["algorithm's package"] = str(self.algorithm.guest)
        document["objectives"] = json.dumps(document["objectives"])
        return dict(_flat(document, ()))


def _row(name: Any) -> Algorithm:
    """Return an algorithm, or the usual one where the name is none: that is told by what checks the whole."""
    try:
        return ALGORITHMS.find(name if isinstance(name, str) else "")
    except InputError:
        return ALGORITHMS[SearchSection().algorithm]


def _settings(algorithm: Algorithm, search: Mapping[str, Any]) -> dict[str, Section]:
    """Return an algorithm's own settings as far as they can be read; what is wrong with others is told elsewhere."""
    settings = {}
    for key, kind in algorithm.settings.items():
        with suppress(ValidationError):
            settings[key] = kind.model_validate(search.get(key) or {})
    return settings


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
