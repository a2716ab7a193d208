"""What studies teach a predictor: which of their trials are merges by known operators, of which experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sae_moo.errors import InputError, itemized
from sae_moo.evaluate.asking import ProbesSection
from sae_moo.explore.run import Run
from sae_moo.jobs.bench import Bench
from sae_moo.jobs.judge import bench_of
from sae_moo.jobs.namesakes import strangers
from sae_moo.prediction.observations import Observation, observations_of
from sae_moo.prediction.ranking import Chain
from sae_moo.prediction.table import FeatureTable
from sae_moo.recipe import BASE, Recipe
from sae_moo.recipe.operators import Operator, chain_of
from sae_moo.searchers.algorithms import PAIRS
from sae_moo.study.record import Ended, ended


@dataclass(frozen=True, slots=True)
class Lesson:
    """What the trials of one study teach.

    Args:
        run: the study.
        trials: how many of its trials have a result that is not another's.
        pairs: how many of these are merges of two experts by a known operator.
        longer: how many are chains of such merges, of three experts or more.
        stopped: how many trials were stopped in races: they have no scores, and teach nothing.
        names: what the run calls an expert -> what it is called here: those of ours as we call them, others by their
            own name and the run's.
        strangers: experts of these merges that are not ours, as the run calls them.
        observations: what all of them, and experts by themselves, scored; experts as they are called here.
        merges: those of our experts alone, with their trials.
    """

    run: Run
    trials: int
    pairs: int
    longer: int
    stopped: int
    names: Mapping[str, str]
    strangers: tuple[str, ...]
    observations: tuple[Observation, ...]
    merges: tuple[tuple[Chain, Ended], ...]

    def __str__(self) -> str:
        """Say how much there is to learn from."""
        more = f", and {self.longer} of more" if self.longer else ""
        less = f"; {self.stopped} that were stopped in races teach nothing" if self.stopped else ""
        return f"{self.run.name}: {self.pairs} of {self.trials} trials are merges of two by known operators{more}{less}"


def lesson_of(run: Run, bench: Bench, tasks: Sequence[str], operators: Sequence[Operator]) -> Lesson:
    """Return what a study teaches.

    Args:
        run: the study.
        bench: our models and tasks: an expert of the run is ours if it has the weights of one of them and the run has
            our base.
        tasks: the tasks that are learned about.
        operators: those that are known.

    Raises:
        InputError: if the study has other tasks, be it under the same names (`namesakes.strangers`), or asked chosen
            instances of them, or none of its trials is a merge of two by one of the operators.
    """
    missing = [task for task in tasks if task not in run.tasks]
    if missing:
        raise InputError(
            f"{run.name}: cannot be learned from, it has no task {', '.join(map(repr, missing))}; expected trials on "
            f"{', '.join(tasks)}, it has {', '.join(run.tasks)}"
        )
    if run.anchors:
        raise InputError(
            f"{run.name}: cannot be learned from, its scores are those of chosen instances (evaluation.anchors); "
            "expected all to be asked"
        )
    others = list(strangers(run, bench, tasks))
    if others:
        raise InputError(
            itemized(f"{run.name}: cannot be learned from, tasks of the same name are others here", others)
        )
    names = _names(run, bench.pool.fingerprints)
    trials = ended(run.trials())
    records = [each for each in trials if each.evaluation.ok and each.repeats is None]
    chains = {each.number: chain for each in records if (chain := _chain(each.recipe, operators)) is not None}
    pairs = sum(len(chain.experts) == 2 for chain in chains.values())
    if not pairs:
        known = ", ".join(operator.name for operator in operators)
        raise InputError(
            f"{run.name}: cannot be learned from, none of its {len(records)} trials with a result is a merge of two "
            f"experts by one of predict.operators ({known}); a study with search.algorithm: {PAIRS} makes them all"
        )
    read = {name for chain in chains.values() for name in chain.experts}
    ours = {*bench.pool.fingerprints}
    return Lesson(
        run=run,
        trials=len(records),
        pairs=pairs,
        longer=len(chains) - pairs,
        stopped=sum(each.state == "stopped" for each in trials),
        names=names,
        strangers=tuple(name for name in names if name in read and names[name] not in ours),
        observations=tuple(
            _renamed(each, names)
            for each in observations_of(((record.recipe, record.evaluation.scores) for record in records), operators)
            if each.task in tasks and all(name != BASE for name in each.experts)
        ),
        merges=tuple(
            (Chain(tuple(names[name] for name in chain.experts), chain.operators), each)
            for each in records
            if (chain := chains.get(each.number)) is not None and all(names[name] in ours for name in chain.experts)
        ),
    )


def features_with(lesson: Lesson, table: FeatureTable, tasks: Sequence[str], probes: ProbesSection) -> FeatureTable:
    """Return a table with the features of a study's own experts, which are opened for it if there are any.

    Args:
        lesson: what the study teaches.
        table: features of our experts, and of those of other studies.
        tasks: the tasks that are learned about.
        probes: how many texts; those of the study's own tasks are read.

    Raises:
        InputError: if the study's experts, or what else it was made with, are not what they were.
    """
    if not lesson.strangers:
        return table
    read = {name for each in lesson.observations for name in each.experts}
    experts = [name for name, here in lesson.names.items() if here in read]
    try:
        bench = bench_of(lesson.run, any_device=True)
    except InputError as error:
        raise InputError(itemized(f"{lesson.run.name}: its experts are needed for their features", [error])) from error
    found = bench.features(probes, experts).renamed(lesson.names)
    rows = {key: row for key, row in found.rows.items() if key[2] in tasks and key not in table.rows}
    return table.joined(FeatureTable(found.names, rows))


def _names(run: Run, fingerprints: Mapping[str, str]) -> dict[str, str]:
    """Return what each expert of a run is called here."""
    left = {name: mark for name, mark in fingerprints.items() if name != BASE}
    here: dict[str, str] = {}
    alike = run.fingerprints.get(BASE) == fingerprints.get(BASE)
    experts = {name: mark for name, mark in run.fingerprints.items() if name != BASE}
    for name in sorted(experts, key=lambda name: left.get(name) != experts[name]):  # of twins, the namesake first
        same = [each for each, mark in left.items() if alike and mark == experts[name]]
        if same:
            here[name] = name if name in same else same[0]
            del left[here[name]]
        else:
            here[name] = f"{name} of {run.name}"
    return {name: here[name] for name in experts}


def _chain(recipe: Recipe, operators: Sequence[Operator]) -> Chain | None:
    found = chain_of(recipe, operators)
    if found is None or BASE in found[1] or len({*found[1]}) < len(found[1]):
        return None
    return Chain(found[1], tuple(operator.name for operator in found[0]))


def _renamed(each: Observation, names: Mapping[str, str]) -> Observation:
    experts = tuple(names[name] for name in each.experts)
    return Observation(each.operators, experts, each.task, each.score, each.instances)
