"""Predicting merges before they are made: experts are held beside each other, studies teach, merges are ranked."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from sae_moo.config.document import Config
from sae_moo.deploy.surroundings import recipe_document
from sae_moo.errors import InputError, first_few, itemized
from sae_moo.evaluate.asking import ProbesSection
from sae_moo.evaluate.probes import facts_of
from sae_moo.explore.run import Run
from sae_moo.files.places import located
from sae_moo.files.whole import whole_file
from sae_moo.jobs.bench import Bench
from sae_moo.jobs.lessons import Lesson, features_with, lesson_of
from sae_moo.jobs.namesakes import asked_of, asked_otherwise
from sae_moo.objectives import Evaluation
from sae_moo.objectives.front import Accuracy
from sae_moo.objectives.scores import Score, task_scores
from sae_moo.prediction import file
from sae_moo.prediction.correlations import Tendency, correlations, tendencies
from sae_moo.prediction.estimators import release
from sae_moo.prediction.frames import write_csv
from sae_moo.prediction.observations import Observation, own_scores
from sae_moo.prediction.predictor import Prediction, Predictor
from sae_moo.prediction.quality import Quality, quality
from sae_moo.prediction.ranking import Chain, Ranking, Signal, in_order, rank, signs, weighed, weighed_signal
from sae_moo.prediction.table import FeatureTable, Key
from sae_moo.prediction.untrained import untrained
from sae_moo.recipe import BASE, Cast, Recipe
from sae_moo.recipe.operators import Operator, chained
from sae_moo.study.folder import RUNS
from sae_moo.study.record import Ended

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Measured:
    """What a merge scored once it was made.

    Args:
        run: name of the study that holds its trial.
        trial: the trial's number.
        accuracy: on the search split; None if it failed.
        tasks: task -> score on the search split.
        reason: why it failed; None if it did not.
        test: accuracy on the test split; None where that was not looked at.
    """

    run: str
    trial: int
    accuracy: Score | None
    tasks: Mapping[str, Score] = field(default_factory=dict)
    reason: str | None = None
    test: Score | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Forecast:
    """Which merges of the configured experts promise most.

    Args:
        bench: experts and tasks.
        shares: task -> what it counts in the accuracy that is predicted, with the sum 1.
        operators: those that are ranked, by name; where nothing was learned the first alone, which stands for all.
        table: features of all ordered pairs on all tasks.
        ranking: the merges; what is expected of each is a `Prediction`, or a `Signal` where nothing was learned.
        predictor: what was learned; None: nothing.
        lessons: what it was learned from, where that was done now.
        left_out: configured operators of which nothing was learned.
        measured: what merges scored that were made already; of comparable studies only: the same weights, asked the
            same.
    """

    bench: Bench
    shares: Mapping[str, float]
    operators: Mapping[str, Operator]
    table: FeatureTable
    ranking: Ranking[Prediction] | Ranking[Signal]
    predictor: Predictor | None = None
    lessons: tuple[Lesson, ...] = ()
    left_out: tuple[str, ...] = ()
    measured: Mapping[Chain, Measured] = field(default_factory=dict)

    @property
    def config(self) -> Config:
        """The configuration."""
        return self.bench.config

    @property
    def trained(self) -> bool:
        """Whether scores are predicted; if not, merges are ranked by signals that nobody trained."""
        return self.predictor is not None

    def first(self, count: int | None = None) -> tuple[Chain, ...]:
        """Return the most promising merges, the best first; as many as are asked for, or else as are listed."""
        return tuple(
            each.chain for each in self.ranking.merges[: self.config.predict.listed if count is None else count]
        )

    def promise(self, chain: Chain) -> Prediction | Signal:
        """Return what is expected of a merge, with what speaks for it and against it."""
        if self.predictor is None:
            return next(each.promise for each in self.ranking.merges if each.chain == chain)
        told = {task: self.predictor.chain(chain.operators, chain.experts, task) for task in self.shares}
        return weighed(told, self.shares)

    def signs(self, chain: Chain) -> dict[str, float]:
        """Return the features by which a merge is ranked where nothing was learned, by name."""
        return signs(chain, self.table, self.shares)

    @property
    def unseen(self) -> int:
        """Of how many experts of a merge nothing was learned: 0, or 2; 1 if that differs."""
        if self.predictor is None:
            return 2
        known = sum(name in self.predictor.known for name in self.bench.pool.names)
        return 2 if not known else int(known < len(self.bench.pool.names) - 1)

    def quality(self) -> list[Quality]:
        """Return how well each operator is predicted, by cross-validation, experts being as unseen as they are here."""
        return [] if self.predictor is None else quality(self.predictor, self.unseen)

    def tendencies(self) -> list[Tendency]:
        """Return how each feature goes by itself with what was observed; nothing where nothing was."""
        if self.predictor is None:
            return []
        training = self.predictor.training
        return tendencies(correlations(training.table, training.observations, training.operators))

    def recipe(self, chain: Chain) -> Recipe:
        """Return the candidate that a merge is, rounded as all are."""
        operators = [self.operators[name] for name in chain.operators]
        return self.bench.ground().candidate(chained(operators, chain.experts))

    def best(self, count: int = 1) -> tuple[Chain, str]:
        """Return one of the first merges, and why: that which scored best on the search split, if they were made.

        Args:
            count: among how many; the first where none of them was made.
        """
        first = self.first(count)
        scores = {
            chain: measured.accuracy.score
            for chain in first
            if (measured := self.measured.get(chain)) is not None and measured.accuracy is not None
        }
        if count > 1 and scores:
            best = max(scores, key=lambda chain: scores[chain])
            return best, f"the best of the {len(scores)} that were evaluated, by the search split"
        return first[0], "the highest prediction" if self.trained else "the strongest signal, nothing was learned"

    def write_features(self, path: str | Path) -> None:
        """Write the features as a CSV file, a row for each ordered pair and task; whole or not at all.

        Raises:
            InputError: if there is such a file, or it cannot be written.
        """
        write_csv(self.table, Path(path))

    def write_recipe(self, chain: Chain, path: str | Path) -> None:
        """Write the recipe of a merge, with its experts, as `merge` takes it; whole or not at all.

        Raises:
            InputError: if there is such a file, or it cannot be written.
        """
        document = recipe_document(self.recipe(chain), self.bench.pool)
        with whole_file(Path(path)) as partial:
            partial.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")

    def save_predictor(self, path: str | Path) -> None:
        """Write what was learned to a plain file, that `predict` reads back.

        Raises:
            InputError: if nothing was learned from runs, there is such a file, or it cannot be written.
        """
        if self.predictor is None or not self.lessons:
            raise InputError("there is no predictor to save: nothing was learned from runs")
        file.save(self.predictor, Path(path))


def predict(
    config: Config,
    learn: Sequence[str | Path] = (),
    predictor: str | Path | None = None,
    *,
    root: str | Path = RUNS,
    stage: Callable[[str], None] = lambda what: None,
) -> Forecast:
    """Rank merges of the configured experts by what they promise, without making one.

    Args:
        config: the configuration; `predict` in it says which merges, on what texts.
        learn: runs whose trials are learned from, by folder or by name under `root`.
        predictor: a file that `Forecast.save_predictor` wrote, instead of runs.
        root: folder of run folders.
        stage: is told what is being done, a few words each.

    Returns:
        The ranking; by untrained signals, not by predicted scores, if there is nothing to learn from.

    Raises:
        InputError: if there are not two experts, no objective is scored on tasks, a run has other tasks or no merges of
            two, the predictor knows none of the operators or others by their names, or anything does not fit.
    """
    accuracy = Accuracy(config.objective_list())
    _check(config, accuracy, learn, predictor)
    if learn or predictor is not None:
        release()  # refused at once where scikit-learn is not installed
    section, tasks = config.predict, tuple(accuracy.shares)
    runs = _opened(learn, Path(root))
    loaded = None if predictor is None else _loaded(Path(predictor), section.known, tasks)
    stage("opening models and tasks")
    bench = Bench.open(config)
    bench.tell_twins()
    if loaded is not None and predictor is not None:
        _check_same_tasks(Path(predictor), loaded, asked_of(bench, tasks), tasks)
        _tell_other_probes(Path(predictor), loaded, facts_of(section.probes, config.directory))
    lessons = tuple(lesson_of(run, bench, tasks, section.known) for run in runs)
    experts = [name for name in bench.pool.names if name != BASE]
    stage(f"holding {len(experts)} experts beside each other")
    table = bench.features()
    learned = None
    if lessons or loaded is not None:
        stage("scoring the experts by themselves")
        own = _own(bench, tasks)
        if loaded is not None:
            learned = loaded.on(table, own_scores(own), _same(bench, loaded))
        else:
            whole = table
            for lesson in lessons:
                stage(f"holding the experts of {lesson.run.name} beside each other")
                whole = features_with(lesson, whole, tasks, _here(section.probes, config.directory))
            stage("learning")
            observed = _observed(own, lessons)
            learned = Predictor.learn(
                whole,
                observed,
                section.known,
                confidence=section.confidence,
                fingerprints=_fingerprints(bench, lessons),
                probes=facts_of(section.probes, config.directory),
                tasks=asked_of(bench, tasks),
            )
    # untrained signals tell no operators apart: the first stands for all
    known = section.known[:1] if learned is None else learned.operators
    operators = {each.name: each for each in section.known if each in known}
    stage("ranking")
    return Forecast(
        bench=bench,
        shares=accuracy.shares,
        operators=operators,
        table=table,
        ranking=_ranked(config, experts, operators, accuracy.shares, learned or untrained(table)),
        predictor=learned,
        lessons=lessons,
        left_out=() if learned is None else tuple(each.name for each in section.known if each.name not in operators),
        measured=_known(lessons, bench, accuracy, operators),
    )


def measured(record: Ended, run: Run, accuracy: Accuracy) -> Measured:
    """Return what a trial that has ended tells of the merge that it made."""
    evaluation = record.evaluation
    if not evaluation.ok:
        return Measured(run.name, record.number, None, reason=evaluation.reason)
    scores = task_scores({task: evaluation.scores[task] for task in accuracy.shares})
    return Measured(run.name, record.number, accuracy_of(evaluation, accuracy), scores)


def accuracy_of(evaluation: Evaluation, accuracy: Accuracy) -> Score:
    """Return how accurate an evaluated merge is, with its standard error over the instances of all tasks that count."""
    instances = sum(len(evaluation.scores[task]) for task in accuracy.shares)
    return Score(accuracy.value(evaluation), accuracy.stderr(evaluation), instances)


def _check(config: Config, accuracy: Accuracy, learn: Sequence[str | Path], predictor: str | Path | None) -> None:
    """Raise InputError if there is nothing to predict, or two answers to what it is predicted from."""
    if not accuracy:
        names = ", ".join(each.name for each in config.objective_list())
        raise InputError(
            f"objectives: expected one that is scored on tasks, since that is what is predicted; got {names}"
        )
    if len(config.models.experts) < 2:
        raise InputError(f"models.experts: expected two or more to merge, got {', '.join(config.models.experts)} alone")
    if learn and predictor is not None:
        raise InputError("expected either runs to learn from or a predictor's file, got both")


def _opened(learn: Sequence[str | Path], root: Path) -> list[Run]:
    """Open the runs that are learned from; experts are called by the names of their runs, so that these differ."""
    runs = [Run.open(each, root) for each in learn]
    names = [run.name for run in runs]
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice:
        raise InputError(f"expected every run to learn from once, and named differently; {twice[0]!r} came before")
    return runs


def _loaded(path: Path, operators: Sequence[Operator], tasks: Sequence[str]) -> Predictor:
    """Return the predictor of a file, if what it knows is what is asked."""
    predictor = file.load(path)
    known = {each.name: each for each in predictor.operators}
    shared = [each for each in operators if each.name in known]
    if not shared:
        ours = ", ".join(each.name for each in operators)
        raise InputError(f"{path}: knows the operators {', '.join(known)}, none of predict.operators: {ours}")
    other = [
        f"{each.name}: it learned of {_told(known[each.name])}, predict.operators has {_told(each)}"
        for each in shared
        if each != known[each.name]
    ]
    if other:
        raise InputError(itemized(f"{path}: operators of the same name are others", first_few(other)))
    learned = predictor.training.table.tasks
    missing = [task for task in tasks if task not in learned]
    if missing:
        raise InputError(f"{path}: knows the tasks {', '.join(learned)}; the accuracy is of {', '.join(missing)} too")
    return predictor


def _check_same_tasks(path: Path, predictor: Predictor, here: Mapping[str, str], tasks: Sequence[str]) -> None:
    """Raise InputError if a predictor learned of other tasks of the same names, as far as it holds what they were."""
    learned = predictor.training.tasks
    others = [fault for task in tasks for fault in asked_otherwise(learned, here, task)]
    if learned and others:
        raise InputError(itemized(f"{path}: tasks of the same name are others here", others))


def _tell_other_probes(path: Path, predictor: Predictor, here: Mapping[str, str]) -> None:
    """Warn if a predictor learned of features of other texts than those that are read here."""
    probes = predictor.training.probes
    if probes and probes != here:
        there, ours = (", ".join(f"{name}: {value}" for name, value in each.items()) for each in (probes, here))
        log.warning(
            "%s: predictions may be off, it learned of features of other texts (%s) than predict.probes says here (%s)",
            path,
            there,
            ours,
        )


def _told(operator: Operator) -> str:
    settings = ", ".join(f"{name} {value}" for name, value in operator.settings)
    return f"{operator.method} {list(operator.weights)}" + (f" with {settings}" if settings else "")


def _here(probes: ProbesSection, directory: Path) -> ProbesSection:
    """Return which texts, their file found from a configuration in any other folder, too."""
    if probes.data is None:
        return probes
    return probes.model_copy(update={"data": str(located(probes.data, directory).resolve())})


def _fingerprints(bench: Bench, lessons: Sequence[Lesson]) -> dict[str, str]:
    """Return the contents of the base and of the experts over it that are learned of, by name."""
    ours = bench.pool.fingerprints
    marks = dict(ours)
    for lesson in lessons:
        theirs = lesson.run.fingerprints
        if theirs.get(BASE) == ours[BASE]:
            marks |= {here: theirs[name] for name, here in lesson.names.items()}
    return marks


def _same(bench: Bench, predictor: Predictor) -> dict[str, str]:
    """Return which of our experts are the same models as experts that a predictor learned of, and their names there.

    Marks are there of others, too, which were in no merge that it learned from.
    """
    ours, marks = bench.pool.fingerprints, predictor.training.fingerprints
    if marks.get(BASE) != ours[BASE]:
        return {}
    theirs = {marks[name]: name for name in predictor.training.experts if name in marks}
    return {name: theirs[mark] for name, mark in ours.items() if name != BASE and mark in theirs}


def _own(bench: Bench, tasks: Sequence[str]) -> list[Observation]:
    """Return what our experts score by themselves; of one that cannot be scored nothing is known."""
    return [
        Observation.of_expert(name, task, evaluation.mean(task), len(evaluation.scores[task]))
        for name, evaluation in bench.unmerged().items()
        if name != BASE and evaluation.ok
        for task in tasks
    ]


def _observed(own: Sequence[Observation], lessons: Sequence[Lesson]) -> list[Observation]:
    """Return all that is learned from; what our experts score by themselves is taken from here alone."""
    ours = {each.experts[0] for each in own}
    taught = [each for lesson in lessons for each in lesson.observations]
    return [*own, *(each for each in taught if each.operators or each.experts[0] not in ours)]


def _ranked(
    config: Config,
    experts: Sequence[str],
    operators: Mapping[str, Operator],
    shares: Mapping[str, float],
    model: Predictor | Mapping[Key, float],
) -> Ranking[Prediction] | Ranking[Signal]:
    """Return the ranking of all merges, what is expected of each without reasons; by signals, if that is the model."""

    def predicted(chains: Sequence[Chain], predictor: Predictor) -> list[Prediction]:
        asked = [(chain.operators, chain.experts, task) for chain in chains for task in shares]
        told = iter(predictor.chains(asked))
        return [weighed({task: next(told) for task in shares}, shares) for _ in chains]

    def signalled(chains: Sequence[Chain], signals: Mapping[Key, float]) -> list[Signal]:
        return [weighed_signal(chain, signals, shares) for chain in chains]

    names, symmetric, section = tuple(operators), _symmetric(operators), config.predict
    most = {"largest": section.largest, "most": section.most}
    if isinstance(model, Predictor):
        return rank(experts, names, partial(predicted, predictor=model), symmetric=symmetric, **most)
    return rank(experts, names, partial(signalled, signals=model), symmetric=symmetric, **most)


def _symmetric(operators: Mapping[str, Operator]) -> set[str]:
    return {name for name, operator in operators.items() if operator.symmetric}


def _known(
    lessons: Sequence[Lesson], bench: Bench, accuracy: Accuracy, operators: Mapping[str, Operator]
) -> dict[Chain, Measured]:
    """Return what merges of ours scored in studies that asked the same instances of the same weights.

    All tasks are the same: what is scored on the test split is kept in the run's folder, of each of its tasks.
    """
    marks = {f"items of {task.name}": task.fingerprint for task in bench.tasks}
    experts = [name for name in bench.pool.names if name != BASE]
    found: dict[Chain, Measured] = {}
    for lesson in lessons:
        identity = lesson.run.identity
        if len(lesson.run.tasks) != len(marks) or any(identity.get(name) != mark for name, mark in marks.items()):
            continue
        for chain, record in lesson.merges:
            if isinstance(record.recipe, Cast) and record.recipe.dtype == bench.rounding:
                here = in_order(chain, experts, _symmetric(operators))
                found.setdefault(here, measured(record, lesson.run, accuracy))
    return found
