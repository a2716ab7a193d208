"""What does not fit together in a configuration: faults that concern several keys.

A rule is a generator over a draft (`drafts`): in it None stands for what could not be read, which was reported already
by what reads the single keys. What concerns one search algorithm stands at its row (`searchers.algorithms`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from sae_moo import zoo
from sae_moo.config.faults import faults_of
from sae_moo.config.sections import MeanSection, MethodSection
from sae_moo.errors import InputError, nearest
from sae_moo.evaluate.kinds import HARNESS, KINDS
from sae_moo.files.places import folder_at
from sae_moo.objectives import SPARSITY, SPEED
from sae_moo.recipe import BASE, BLOCKS, MOE_EXPERTS, STRUCTURED, pattern_sparsity
from sae_moo.recipe.section import Section
from sae_moo.searchers.algorithms import ALGORITHMS, Algorithm, Draft, Fault
from sae_moo.searchers.breeding import Operators
from sae_moo.searchers.learning import Generator

if TYPE_CHECKING:
    from sae_moo.config.document import Config

OPERATORS = "operators"  # key of `search`
UNITS = tuple(scope for scope in STRUCTURED if scope != BLOCKS)  # scopes of units of blocks
MOST_SPARSE = 0.95  # no candidate is ever asked to be sparser
COUNTED = (SPARSITY, SPEED)
"""Objectives that are not scored on tasks."""
QUICKENS = ("neurons", "heads", "blocks")
"""Scopes whose pruning makes the structured export faster. Experts of a mixture that go leave as much to compute."""


def slug(name: str) -> str:
    """Return a method's name as part of a folder's."""
    return re.sub("[^A-Za-z0-9.]+", "-", name).strip("-.") or "method"


def cross_faults(draft: Config) -> Iterator[Fault]:
    """Yield the faults that concern several keys."""
    for rule in RULES:
        yield from rule(draft)
    algorithm = _algorithm(draft)
    if algorithm is not None:
        for rule_of_algorithms in RULES_OF_ALGORITHMS:
            yield from rule_of_algorithms(draft, algorithm)


def faults_of_places(draft: Config, directory: Path) -> Iterator[Fault]:
    """Yield what is wrong with places on this machine; what is configured may be for others.

    A stored study is read where it is not searched, so that this is no fault of the configuration as such.

    Args:
        draft: the configuration.
        directory: the folder that relative paths start from.
    """
    for i, root in enumerate(draft.models.roots or ()):
        try:
            folder_at(root, directory)
        except InputError as error:
            yield ("models", "roots", i), str(error)


def _algorithm(draft: Config) -> Algorithm | None:
    """Return the search algorithm; None where there is none of that name."""
    try:
        return ALGORITHMS.get(draft.search.algorithm or "")
    except InputError:  # a package offers it and it cannot be imported
        return None


def _tasks(draft: Config) -> list[str]:
    return [task.name for task in draft.tasks if task.name is not None]


def _unnamed(draft: Config) -> bool:
    """Say whether it is not known what all tasks are called."""
    return not draft.tasks or len(_tasks(draft)) < len(draft.tasks)


def _objectives(draft: Config) -> list[str]:
    called = [entry.name if isinstance(entry, MeanSection) else entry for entry in draft.objectives]
    return [name for name in called if name is not None]


def _workers_beside(draft: Config) -> Iterator[Fault]:
    if draft.executor.kind == "local" and (draft.executor.workers or 1) > 1:
        yield (
            ("executor", "workers"),
            f"local evaluates in this process; for {draft.executor.workers} use kind: processes",
        )
    if draft.executor.kind not in ("ray", None):
        for key in ("address", "cpus_per_worker", "gpus_per_worker"):
            if getattr(draft.executor, key) is not None:
                yield ("executor", key), f"it is for kind: ray, got kind: {draft.executor.kind}"
    if draft.executor.kind == "ray":
        joins = draft.executor.address is not None
        if joins and draft.executor.workers is None and "workers" not in draft.executor.unread:
            yield ("executor", "workers"), "expected how many, for a cluster that runs already has its own size"
        if (draft.models.device or "").startswith("cuda:"):
            yield ("models", "device"), "expected cuda or auto: a worker of Ray is given its GPUs, and sees no others"


def _every_task_once(draft: Config) -> Iterator[Fault]:
    names: set[str] = set()
    for i, name in enumerate(task.name for task in draft.tasks):
        if name is not None and name in names:
            yield ("tasks", i, "name"), f"expected every task once, {name!r} came before"
        if name in COUNTED:
            yield ("tasks", i, "name"), f"{name!r} is an objective of its own; give the task another name"
        if name is not None:
            names.add(name)


def _tasks_that_are_built_in(draft: Config) -> Iterator[Fault]:
    for i, task in enumerate(draft.tasks):
        if task.name is None:
            continue
        if task.data is None and task.name.startswith("zoo_") and task.name not in zoo.TASKS:
            known = ", ".join(zoo.TASKS)
            yield (
                ("tasks", i, "name"),
                f"no built-in task {task.name!r}{nearest(task.name, zoo.TASKS)}; there are {known}",
            )
        if task.data is not None and task.kind is None and "kind" not in task.unread:
            yield ("tasks", i, "kind"), f"expected {', '.join(KINDS)} beside data"
        kind = None if task.kind is None else KINDS[task.kind]
        if kind is not None and task.data is None and (kind.fields or task.name in zoo.TASKS):
            of_ours = "a built-in task has its own kind; leave it out, or give data: FILE"
            of_yours = f"kind: {kind.name} is for items of your own; give data: FILE"
            yield ("tasks", i, "kind"), of_ours if task.name in zoo.TASKS else of_yours
        if kind is not None and task.data is not None and not kind.fields:
            yield ("tasks", i, "data"), f"kind: {kind.name} reads no items; leave it out"


def _settings_of_a_kind(draft: Config) -> Iterator[Fault]:
    for i, task in enumerate(draft.tasks):
        settings = None if task.kind is None else KINDS[task.kind].settings
        if settings is None and task.settings:
            yield ("tasks", i, "settings"), f"kind: {task.kind} has no settings"
        elif settings is not None:
            try:
                settings.model_validate(task.settings)
            except ValidationError as error:
                yield from ((("tasks", i, "settings", *key), text) for key, text in faults_of(settings, error, {}))


def _settings_of_the_harness(draft: Config) -> Iterator[Fault]:
    for i, task in enumerate(draft.tasks):
        if task.name is None:
            continue
        of_harness = [key for key in HARNESS.keys if getattr(task, key) not in (None, False, {})]
        if of_harness and task.data is not None:
            yield ("tasks", i, of_harness[0]), "is for tasks of the harness; own items (data) have no such setting"
        if of_harness and task.name in zoo.TASKS and not {"task", "include"} & {*of_harness}:
            yield ("tasks", i, of_harness[0]), f"is for tasks of the harness; {task.name} is built in"
        if task.multiturn and not task.chat_template:
            yield ("tasks", i, "multiturn"), "is for chat_template: true"


def _objectives_are_tasks(draft: Config) -> Iterator[Fault]:
    tasks, unnamed = dict.fromkeys(_tasks(draft)), _unnamed(draft)
    valid = {**tasks, **dict.fromkeys(COUNTED)}
    for i, entry in enumerate(draft.objectives):
        if isinstance(entry, str) and entry not in valid and not unnamed:
            yield ("objectives", i), f"expected a task, {SPARSITY!r} or {SPEED!r}, got {entry!r}{nearest(entry, valid)}"
        if isinstance(entry, MeanSection):
            before: set[str] = set()
            for j, task in enumerate(entry.mean or ()):
                if task in before:
                    yield ("objectives", i, "mean", j), f"expected every task once, {task!r} came before"
                if task not in tasks and not unnamed:
                    yield ("objectives", i, "mean", j), f"expected a task, got {task!r}{nearest(task, tasks)}"
                before.add(task)
            if entry.name in valid:
                yield ("objectives", i, "name"), f"expected a name of its own, {entry.name!r} is taken"


def _every_objective_once(draft: Config) -> Iterator[Fault]:
    called = Counter(_objectives(draft))
    for name in sorted(name for name, count in called.items() if count > 1):
        yield ("objectives",), f"expected every objective once, {name!r} comes {called[name]} times"


def _what_is_limited(draft: Config) -> Iterator[Fault]:
    limited = dict.fromkeys([*_tasks(draft), *COUNTED, *_objectives(draft)])
    for name, limit in draft.constraints.items():
        if name not in limited and not _unnamed(draft):
            yield (
                ("constraints", name),
                f"expected a task, an objective, {SPARSITY!r} or {SPEED!r}, got {name!r}{nearest(name, limited)}",
            )
        for side, value in (("min", limit.min), ("max", limit.max)):
            if value is not None and name != SPEED and value > 1:
                yield ("constraints", name, side), f"expected less than or equal to 1, got {value}"
            if value is not None and name == SPEED and value < 1:
                yield ("constraints", name, side), f"expected 1, as fast as the base, or more, got {value}"
        if limit.min is not None and limit.max is not None and limit.min > limit.max:
            yield ("constraints", name), f"expected min <= max, got {limit.min} > {limit.max}"


def _population(draft: Config, algorithm: Algorithm) -> int | None:
    """Return the size of the population, asked for or usual; None if it could not be read."""
    experts, asked = draft.models.experts, draft.search.population
    usual = None if experts is None or "population" in draft.search.unread else algorithm.population(len(experts))
    return usual if asked is None else asked


def _room_in_the_first_population(draft: Config, algorithm: Algorithm) -> Iterator[Fault]:
    experts, population = draft.models.experts or {}, _population(draft, algorithm)
    least = len(experts) + algorithm.holds_base
    if population is not None and population < least:
        whom = "the base and every expert" if algorithm.holds_base else "every expert"
        need = f"expected at least {least}, room for {whom} in the first population"
        yield ("search", "population"), f"{need}; got {population}"


def _storage_that_lasts(draft: Config) -> Iterator[Fault]:
    storage = draft.study.storage
    if storage is not None and ("://" not in storage or storage.endswith(("://", ":memory:"))):
        expected = "expected an Optuna URL that outlives the process, e.g. sqlite:///s.db, or null for a journal file"
        yield ("study", "storage"), f"{expected}; got {storage!r}"


def _what_pruning_reads(draft: Config) -> Iterator[Fault]:
    pruning = draft.pruning
    if pruning.rescale and pruning.scope is not None and pruning.scattered is None:
        yield ("pruning", "rescale"), f"scope: {', '.join(pruning.scopes)} is not rescaled; leave it out"
    model, models = BASE if pruning.calibration is None else pruning.calibration.model, [BASE]
    models += draft.models.experts or {}
    if model is not None and model not in models:
        yield (
            ("pruning", "calibration", "model"),
            f"expected one of {', '.join(models)}, got {model!r}{nearest(model, models)}",
        )


def _scopes_together(draft: Config) -> Iterator[Fault]:
    pruning = draft.pruning
    scattered: list[str] = []
    before: set[str] = set()
    for i, scope in enumerate(pruning.scope if isinstance(pruning.scope, list) else ()):
        if scope in before:
            yield ("pruning", "scope", i), f"expected every scope once, {scope!r} came before"
        elif scope not in STRUCTURED:
            if scattered:
                yield (
                    ("pruning", "scope", i),
                    f"expected one scope of scattered zeros at most, {scattered[0]!r} came before; together go "
                    f"{', '.join(STRUCTURED)}, and one of the others",
                )
            scattered.append(scope)
        before.add(scope)
    if pruning.protect is not None and pruning.scope is not None and BLOCKS not in pruning.scopes:
        yield ("pruning", "protect"), f"is for scope: {BLOCKS}; leave it out"


def _what_is_fast(draft: Config) -> Iterator[Fault]:
    if draft.pruning.scope is None or {*draft.pruning.scopes} & {*QUICKENS}:
        return
    asked = ", ".join(draft.pruning.scopes)
    why = f"is 1 of every candidate with pruning.scope: {asked}; expected one that removes {', '.join(QUICKENS)}"
    for i, entry in enumerate(draft.objectives):
        if entry == SPEED:
            yield ("objectives", i), f"{SPEED!r} {why}"
    if SPEED in draft.constraints:
        yield ("constraints", SPEED), f"{SPEED!r} {why}"


def _evaluation_of_parts(draft: Config) -> Iterator[Fault]:
    evaluation, called = draft.evaluation, _objectives(draft)
    if evaluation.racing is not None and called and set(called) <= {*COUNTED}:
        yield ("evaluation", "racing"), f"expected an objective that is scored on instances; {called[0]} is not"
    scopes = () if draft.pruning.scope is None else draft.pruning.scopes
    if evaluation.generation == "vllm" and MOE_EXPERTS in scopes:
        yield (
            ("evaluation", "generation"),
            f"not vllm with scope: {MOE_EXPERTS}; given zeros in place of experts, it lets routers choose them",
        )
    if evaluation.anchors is not None and evaluation.generation == "vllm":
        yield (
            ("evaluation", "anchors"),
            "not with generation: vllm; its memory holds one engine, choosing takes another",
        )


def _stages_of_screening(draft: Config) -> Iterator[Fault]:
    section, key = draft.evaluation.screening, ("evaluation", "screening")
    if section is None:
        return
    survivors, candidates = section.survivors, section.candidates
    if survivors is not None and candidates is not None and survivors > candidates:
        yield (*key, "survivors"), f"expected at most {candidates}, all candidates, got {survivors}"
    if section.more is not None and section.tokens is not None and survivors != 1 and section.more < section.tokens:
        yield (*key, "more"), f"expected at least {section.tokens}, the tokens of the first stage, got {section.more}"


def _compared_methods(draft: Config) -> Iterator[Fault]:
    names: dict[str, str] = {}  # by what their folders are called
    for i, entry in enumerate(() if draft.compare is None else draft.compare.methods):
        name = entry.name if isinstance(entry, MethodSection) else entry
        if isinstance(entry, str) and not 1 <= len(entry) <= 60:
            yield ("compare", "methods", i), f"expected the name of an algorithm, got {entry!r}"
        if name is not None:
            if slug(name) in names:
                once = f"expected every method once, with a name of its own, got {name!r} again"
                yield ("compare", "methods", i), once
            names.setdefault(slug(name), name)
        for budget in ("evaluations", "tokens", "finish"):
            if isinstance(entry, MethodSection) and budget in (entry.search or {}):
                every = f"every method has the same budget; set search.{budget} for all"
                yield ("compare", "methods", i, "search", budget), every
        for key in (entry.evaluation or {}) if isinstance(entry, MethodSection) else ():
            if key != "screening":
                every = f"every method is asked alike but for screening; set evaluation.{key} for all"
                yield ("compare", "methods", i, "evaluation", key), every
    reference = None if draft.compare is None else draft.compare.reference
    known = names.values()
    if reference is not None and names and reference not in known:
        yield ("compare", "reference"), f"expected a method, got {reference!r}{nearest(reference, known)}"


def _what_a_comparison_needs(draft: Config) -> Iterator[Fault]:
    if draft.compare is None:
        return
    if draft.study.storage is not None:
        yield ("study", "storage"), "a comparison keeps every search in a journal of its own; leave it out"
    for i, task in enumerate(draft.tasks):
        if task.test == 0:
            yield ("tasks", i, "test"), "a comparison judges on the test split; expected at least 1 instance"


RULES: Sequence[Callable[[Config], Iterator[Fault]]] = (
    _workers_beside,
    _every_task_once,
    _tasks_that_are_built_in,
    _settings_of_a_kind,
    _settings_of_the_harness,
    _objectives_are_tasks,
    _every_objective_once,
    _what_is_limited,
    _storage_that_lasts,
    _what_pruning_reads,
    _scopes_together,
    _what_is_fast,
    _evaluation_of_parts,
    _stages_of_screening,
    _compared_methods,
    _what_a_comparison_needs,
)
"""What holds whatever the search algorithm."""


def _names(able: Callable[[Algorithm], bool]) -> str:
    """Return the names of the house's algorithms of a kind."""
    return ", ".join(name for name, row in ALGORITHMS.items() if able(row))


def _space_of_the_algorithm(draft: Config, algorithm: Algorithm) -> Iterator[Fault]:
    kind = draft.space.kind
    if kind is not None and kind not in algorithm.spaces:
        own = " or ".join(algorithm.spaces)
        leave = f"searches {own}; leave it out" if own else "has no space"
        yield ("space", "kind"), f"algorithm: {algorithm.name} {leave}"
    for key in algorithm.breeding:
        if getattr(draft.search, key, None) is not None and _over(draft, algorithm) != "lineage":
            yield ("search", key), "is for space.kind: lineage"


def _over(draft: Config, algorithm: Algorithm) -> str | None:
    """Return what kind of space is searched."""
    return algorithm.space(draft.space.kind if draft.space.kind in algorithm.spaces else None)


def _one_sparsity_for_all(draft: Config, algorithm: Algorithm) -> Iterator[Fault]:
    sparsity = draft.space.sparsity
    if sparsity is None:
        return
    if _over(draft, algorithm) != "coefficients":
        yield ("space", "sparsity"), "is for coefficients; lineages draw the sparsity of every child"
    scope = draft.pruning.scope
    if isinstance(scope, list) and sparsity:
        yield ("space", "sparsity"), f"is for one scope; of {', '.join(draft.pruning.scopes)} each has its own"
    pattern = pattern_sparsity(scope) if isinstance(scope, str) else None
    if pattern is not None and sparsity not in (0, pattern):
        yield ("space", "sparsity"), f"expected 0 or {pattern:g}, what scope: {scope} prunes to, got {sparsity}"
    limit = draft.constraints.get(SPARSITY)
    most = MOST_SPARSE if limit is None or limit.max is None else min(limit.max, MOST_SPARSE)
    if sparsity > most:
        yield ("space", "sparsity"), f"expected at most {most:g}, got {sparsity:g}"


def _annealing_of_the_algorithm(draft: Config, algorithm: Algorithm) -> Iterator[Fault]:
    annealing = draft.annealing
    if annealing.adapts and (not algorithm.anneals or _over(draft, algorithm) != "lineage"):
        fixed = f"expected a fixed one; algorithm: {algorithm.name} has no cycles that could adapt"
        yield ("annealing", "schedule"), fixed
    usual = annealing.high is None and "high" not in annealing.unread
    if usual and annealing.low is not None and annealing.low > algorithm.high:
        yield ("annealing", "low"), f"expected low <= high, got {annealing.low} > {algorithm.high}"


def _what_one_number_is_made_of(draft: Config, algorithm: Algorithm) -> Iterator[Fault]:
    weights, objectives = draft.search.weights, _objectives(draft)
    settings = _settings_that_are_read(draft)
    one_number = algorithm.one_number(settings)
    if weights is not None and one_number is False and len(settings) == len(draft.search.settings):
        single = _names(lambda row: row.one_number({}) is not False)
        so = "" if algorithm.one_number({}) is False else " with these settings"
        yield ("search", "weights"), f"is for what works on one number ({single}), not for {algorithm.name}{so}"
    for name in weights or ():
        if name not in objectives:
            yield ("search", "weights", name), f"expected an objective, got {name!r}{nearest(name, objectives)}"
    if weights is not None and not any(weights.values()):
        yield ("search", "weights"), "expected at least one weight above 0"
    if one_number and weights is None and objectives and set(objectives) <= {*COUNTED}:
        yield ("objectives",), f"algorithm: {algorithm.name} needs one that is scored on tasks, or search.weights"


def _what_the_algorithm_can(draft: Config, algorithm: Algorithm) -> Iterator[Fault]:
    if draft.search.pace is not None and not algorithm.paces:
        able = _names(lambda row: row.paces)
        yield ("search", "pace"), f"is for {able}; algorithm: {algorithm.name} does not read it"
    if draft.evaluation.racing is not None and not algorithm.races:
        able = _names(lambda row: row.races)
        needs = f"is for {able}; algorithm: {algorithm.name} needs the scores of every candidate"
        yield ("evaluation", "racing"), needs


def _what_there_is_to_screen(draft: Config, algorithm: Algorithm) -> Iterator[Fault]:
    key = ("evaluation", "screening")
    if draft.evaluation.screening is None:
        return
    if not algorithm.screens:
        able = _names(lambda row: row.screens)
        yield key, f"is for {able}; algorithm: {algorithm.name} proposes one allocation for each candidate"
        return
    if _over(draft, algorithm) != "lineage":
        yield key, "is for space.kind: lineage; over coefficients the allocation is a part of the vector"
    scopes = () if draft.pruning.scope is None else draft.pruning.scopes
    if (scopes and not set(scopes) - {BLOCKS} <= {"tensor", "group", "row"}) or scopes == (BLOCKS,):
        beside = f"expected tensor, group or row, beside them {BLOCKS} if you like"
        yield key, f"pruning.scope: {', '.join(scopes)} leaves no allocation to choose that keeps the budget; {beside}"
    elif draft.space.granularity == "model":
        yield key, "space.granularity: model prunes all blocks alike, which leaves no allocation to choose"
    operators = getattr(draft.search, "operators", None)
    if operators is not None and operators.prune_after is False:
        yield key, "search.operators.prune_after: false prunes no child"


def _what_of_pruning_the_algorithm_reads(draft: Config, algorithm: Algorithm) -> Iterator[Fault]:
    ablation = getattr(draft.search, "ablation", None)
    if _apart(draft) and draft.pruning.scattered is None and ablation is not None and ablation.ladder:
        yield ("search", "ablation", "ladder"), "is for a scope of scattered zeros"
    if algorithm.combines:
        return
    able = _names(lambda row: row.combines)
    if isinstance(draft.pruning.scope, list):
        one = f"expected one scope; several are for {able}, algorithm: {algorithm.name} prunes by one"
        yield ("pruning", "scope"), one
    if draft.pruning.protect is not None:
        lowest = f"algorithm: {algorithm.name} removes the blocks of the lowest scores, whichever they are"
        yield ("pruning", "protect"), f"is for {able}; {lowest}"


def _apart(draft: Config) -> list[str]:
    """Return the scopes of whole parts that are searched apart: of several scopes, or blocks."""
    pruning = draft.pruning
    whole = [] if pruning.scope is None else [scope for scope in pruning.scopes if scope in STRUCTURED]
    return whole if isinstance(pruning.scope, list) or whole == [BLOCKS] else []


def _what_operators_of_pruning_read(draft: Config, algorithm: Algorithm) -> Iterator[Fault]:
    own = getattr(draft.search, OPERATORS, None)
    if not isinstance(own, Operators) or own.unread or draft.pruning.scope is None or not algorithm.combines:
        return
    pruning, apart = draft.pruning, _apart(draft)
    units = [scope for scope in apart if scope != BLOCKS]
    by_tensor = pruning.scattered in ("tensor", "row")
    one = draft.space.granularity == "model"
    reasons = {
        "switch": "is for space.granularity: block" if one else None,
        "tensors": None if by_tensor and not one else "is for scope: tensor or row, and space.granularity: block",
        "graft": None if apart or pruning.scattered else f"is for scattered zeros, {BLOCKS}, or a list of scopes",
        "drop": "is for space.granularity: block" if one else None,
        "restructure": None if apart else f"is for pruning.scope: {BLOCKS}, or a list",
    }
    if not reasons["tensors"] and not own.switch:
        reasons["tensors"] = "is for switch above 0"
    if not reasons["switch"] and not units and pruning.scattered in (None, "global"):
        reasons["switch"] = f"scope: {', '.join(pruning.scopes)} has one level for all blocks; there is none to switch"
    for key in ("remove", "removable", "contiguous", "edit"):
        reasons[key] = None if BLOCKS in apart else f"is for pruning.scope: {BLOCKS}"
    for key in ("narrow", "narrowest"):
        reasons[key] = None if units else f"is for a list of scopes with {', '.join(UNITS)}"
    for key, reason in reasons.items():
        if reason is not None and key not in own.unsaid:
            yield ("search", OPERATORS, key), reason


def _what_a_generator_makes(draft: Config, algorithm: Algorithm) -> Iterator[Fault]:
    own = getattr(draft.search, "generator", None)
    makes = isinstance(own, Generator) and "share" not in own.unread and bool(own.share)
    if makes and _over(draft, algorithm) == "lineage" and draft.pruning.scope is not None:
        whole = [scope for scope in draft.pruning.scopes if scope in STRUCTURED]
        if whole or isinstance(draft.pruning.scope, list):
            only = "over lineages it is for one scope of scattered zeros"
            yield ("search", "generator", "share"), f"{only}, not for {', '.join(draft.pruning.scopes)}"


def _what_the_algorithm_says(draft: Config, algorithm: Algorithm) -> Iterator[Fault]:
    if algorithm.faults is None:
        return
    yield from algorithm.faults(
        Draft(
            experts=tuple(draft.models.experts or ()),
            objectives=tuple(_objectives(draft)),
            population=_population(draft, algorithm),
            settings=_settings_that_are_read(draft),
        )
    )


def _settings_that_are_read(draft: Config) -> dict[str, Section]:
    """Return the algorithm's own settings, but for those that could not be read whole."""
    return {key: each for key, each in draft.search.settings.items() if not each.unread}


def _what_takes_over(draft: Config, algorithm: Algorithm) -> Iterator[Fault]:
    if draft.study.extends is None:
        return
    if not algorithm.inherits:
        able = _names(lambda row: row.inherits)
        yield ("study", "extends"), f"algorithm: {algorithm.name} takes nothing over from an earlier run; {able} do"
    if draft.compare is not None:
        yield ("study", "extends"), "searches that are compared begin anew; leave it out"


def _what_islands_need(draft: Config, algorithm: Algorithm) -> Iterator[Fault]:
    islands = draft.study.islands
    if islands is None:
        return
    key = ("study", "islands")
    if islands.names and draft.study.name not in islands.names:
        yield (*key, "names"), f"expected study.name among them, {draft.study.name!r}; got {', '.join(islands.names)}"
    if not algorithm.hosts or _over(draft, algorithm) != "lineage":
        here = f"{algorithm.name} over {_over(draft, algorithm)}" if algorithm.hosts else algorithm.name
        able = _names(lambda row: row.hosts)
        yield key, f"algorithm: {here} takes in nothing that others find; {able} do, over space.kind: lineage"
    if draft.compare is not None:
        yield key, "searches that are compared stand alone; leave it out"


RULES_OF_ALGORITHMS: Sequence[Callable[[Config, Algorithm], Iterator[Fault]]] = (
    _room_in_the_first_population,
    _space_of_the_algorithm,
    _one_sparsity_for_all,
    _annealing_of_the_algorithm,
    _what_one_number_is_made_of,
    _what_the_algorithm_can,
    _what_there_is_to_screen,
    _what_of_pruning_the_algorithm_reads,
    _what_operators_of_pruning_read,
    _what_a_generator_makes,
    _what_islands_need,
    _what_takes_over,
    _what_the_algorithm_says,
)
"""What its row says of a search algorithm."""
