"""What every search algorithm promises, as a suite that the author of one runs in one line.

    from sae_moo.testing.searchers import SearcherContract

    class TestAnts(SearcherContract):
        algorithm = "acme/ants"

Models are stood in for by a `Landscape`, so that a suite takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from sae_moo.errors import RunError
from sae_moo.objectives import Constraint, Evaluation, Sparsity, TaskMean
from sae_moo.recipe import Cast, Merge, Prune, Recipe, children, experts_of, walk
from sae_moo.recipe.mixing import mixing_weights
from sae_moo.searchers.algorithms import ALGORITHMS, Algorithm, Draft, Needs
from sae_moo.searchers.ground import Ground
from sae_moo.searchers.schedule import Schedule
from sae_moo.searchers.searcher import Assignment, Hosting, Inheriting, Proposal, Recalling, Searcher

NAMES = ("base", "math", "code", "law")
GROUND = Ground(NAMES[1:], (False, True, True, False))
OBJECTIVES = (TaskMean("accuracy", ("a", "b")), Sparsity())
LIMIT = (Constraint(Sparsity(), high=0.5),)

Make = Callable[[int], Searcher]
History = list[tuple[Proposal, Evaluation]]


class Landscape:
    """A stand-in for models: scores of a recipe from its mixing weights and the sparsity it asks for.

    Attributes:
        evaluated: what was evaluated, in order.
    """

    names = NAMES
    groups = ("embeddings", "block.0", "block.1", "head")
    prunable = (False, True, True, False)
    fingerprints: ClassVar[Mapping[str, str]] = dict.fromkeys(NAMES, "f")

    def __init__(self) -> None:
        self.evaluated: list[Recipe] = []
        self._zeros: dict[Recipe, NDArray[np.float64]] = {}

    def zeros(self, recipe: Recipe) -> NDArray[np.float64]:
        """Return the sparsity per group: as pruning asks; a zero-aware merge keeps some of what both parents have."""
        for node in walk(recipe, stop=self._zeros):
            if node in self._zeros:
                continue
            inputs = [self._zeros[child] for child in children(node)]
            match node:
                case Prune():
                    self._zeros[node] = np.maximum(inputs[0], np.broadcast_to(np.array(node.sparsity), (4,)))
                case Merge():
                    kept = 0.9 * np.min(inputs, axis=0) if node.method == "zero_aware" else np.zeros(4)
                    self._zeros[node] = kept
                case _:
                    self._zeros[node] = inputs[0] if inputs else np.zeros(4)
        return self._zeros[recipe]

    def __call__(self, recipe: Recipe, _rivals: object = None) -> Evaluation:
        """Return the evaluation of a recipe; nobody is given up for rivals."""
        self.evaluated.append(recipe)
        asked = self.zeros(recipe)
        rho = float(asked[1:3].mean())
        weights = mixing_weights(recipe, self.names, 4).mean(axis=0)
        scores = {}
        for i, task in enumerate(("a", "b")):
            good = np.clip(1 - (weights[i + 1] - 0.6) ** 2 - 0.5 * rho**2, 0, 1)
            instances = np.clip(good - np.linspace(0, 0.5, 10 + i), 0, 1)
            scores[task] = tuple(instances if i == 0 else instances[::-1])
        groups = tuple(float(a) * p for a, p in zip(asked, self.prunable, strict=True))
        return Evaluation(recipe, scores, rho, groups, sparseness=(rho / 2, *(each / 2 for each in groups)))


def assignment(algorithm: str, settings: Mapping[str, Mapping[str, Any]] | None = None, **changes: Any) -> Assignment:
    """Return what an algorithm is made for in these suites.

    Args:
        algorithm: its name.
        settings: key of ``search`` -> the algorithm's own settings, as a YAML has them.
        **changes: other arguments of `Assignment`.
    """
    row = ALGORITHMS.find(algorithm)
    given = settings or {}
    made = Assignment(
        algorithm=algorithm,
        ground=GROUND,
        objectives=OBJECTIVES,
        constraints=LIMIT,
        schedule=Schedule(period=2),
        population=12,
        settings={key: kind.model_validate(given.get(key, {})) for key, kind in row.settings.items()},
    )
    made = replace(made, **changes)
    return replace(made, space=row.space(made.space), settings=row.settled(made.settings, made.pace))


def drive(
    searcher: Searcher,
    evaluate: Callable[[Recipe], Evaluation],
    count: int,
    failing: Callable[[int], bool] = lambda i: False,
) -> History:
    """Ask and tell one proposal after another, `count` of them or until there is nothing left to try."""
    history: History = []
    while len(history) < count:
        proposals = searcher.ask(1)
        if not proposals:
            break
        assert len(proposals) == 1, "ask(1) returns at most one"
        evaluation = evaluate(proposals[0].recipe)
        if failing(len(history)):
            evaluation = Evaluation(proposals[0].recipe, reason="out of memory")
        searcher.tell(proposals[0], evaluation)
        history.append((proposals[0], evaluation))
    return history


class SearcherContract:
    """The promises of `Searcher`, and of the algorithm's row.

    Attributes:
        algorithm: name in ``search.algorithm``.
        settings: of its own, as a YAML has them under ``search``.
        changes: other arguments of the `Assignment` that it is made for.
        evaluations: how long a search is here; less than two populations show little.
        population: its size.
        repeats: how many of the recipes may come again: vectors may round to the same one, and a method may ask for
            what it knows.
    """

    algorithm: ClassVar[str]
    settings: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    changes: ClassVar[Mapping[str, Any]] = {}
    evaluations: ClassVar[int] = 60
    population: ClassVar[int] = 12
    repeats: ClassVar[int] = 1

    @pytest.fixture
    def row(self) -> Algorithm:
        """The algorithm's row; skips what cannot run here, for the reason that the row gives."""
        row = ALGORITHMS.find(self.algorithm)
        names = tuple(objective.name for objective in OBJECTIVES)
        settings = assignment(self.algorithm, self.settings).settings
        draft = Draft(experts=GROUND.experts, objectives=names, population=self.population, settings=settings)
        for _, fault in () if row.faults is None else row.faults(draft):
            pytest.skip(fault)
        return row

    @pytest.fixture
    def make(self, row: Algorithm) -> Make:
        """A function from a seed to a fresh searcher."""
        return lambda seed: row.searcher(replace(self.assigned(), seed=seed))

    def assigned(self) -> Assignment:
        """Return what the algorithm is made for."""
        return assignment(self.algorithm, self.settings, population=self.population, **self.changes)

    @pytest.fixture
    def models(self) -> Landscape:
        """The models' stand-in."""
        return Landscape()

    def recipes(self, searcher: Searcher, models: Landscape, **more: Any) -> list[Recipe]:
        """Return what a search proposes."""
        return [proposal.recipe for proposal, _ in drive(searcher, models, self.evaluations, **more)]

    def test_its_row_says_what_it_is_and_every_setting_what_it_does(self, row: Algorithm) -> None:
        assert row.summary
        assert "\n" not in row.summary
        for kind in row.settings.values():
            assert all(field.description for field in kind.model_fields.values())
            kind()  # every setting has a default
        assert isinstance(row.needs(self.assigned()), Needs)

    def test_candidates_are_whole(self, make: Make, models: Landscape) -> None:
        for recipe in self.recipes(make(0), models):
            assert isinstance(recipe, Cast)
            assert recipe.dtype == GROUND.dtype
            assert set(experts_of(recipe)) <= set(models.names)

    def test_the_same_seed_gives_the_same_candidates_and_another_seed_others(
        self, make: Make, models: Landscape, row: Algorithm
    ) -> None:
        runs = [self.recipes(make(seed), models) for seed in (3, 3, 4)]
        assert runs[0] == runs[1]
        assert (runs[0] == runs[2]) == (not row.draws(self.assigned().settings))

    def test_global_random_numbers_are_neither_read_nor_changed(self, make: Make, models: Landscape) -> None:
        np.random.seed(1)  # noqa: NPY002  # the global generator is what must not matter
        before = np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002
        first = self.recipes(make(0), models)
        assert np.random.get_state()[1].tolist() == before  # type: ignore[index]  # noqa: NPY002
        np.random.seed(2)  # noqa: NPY002
        assert self.recipes(make(0), models) == first

    def test_recorded_calls_bring_a_fresh_searcher_to_the_same_state(self, make: Make, models: Landscape) -> None:
        first, half = make(0), self.evaluations // 2 + 1
        history = drive(first, models, half)
        replayed = make(0)
        for proposal, evaluation in history:
            if isinstance(replayed, Recalling):
                recalled = replayed.recall(proposal.vector)
                assert recalled is not None
                again = replace(recalled, numbers=proposal.numbers)
            else:
                (again,) = replayed.ask(1)
            assert again == proposal
            replayed.tell(proposal, evaluation)
        assert drive(first, models, half) == drive(replayed, models, half)

    def test_many_may_be_out_and_come_back_in_any_order(self, make: Make, models: Landscape, row: Algorithm) -> None:
        searcher, rng, told = make(0), np.random.default_rng(0), 0
        out: list[Proposal] = []
        while told < self.evaluations:
            asked: Sequence[Proposal] = searcher.ask(5 - len(out))
            assert len(asked) <= 5 - len(out)
            out += asked
            if not out:
                break
            proposal = out.pop(int(rng.integers(len(out))))
            searcher.tell(proposal, models(proposal.recipe))
            told += 1
        assert told == self.evaluations or not row.spaces, "never stuck while nothing is out"

    def test_candidates_are_not_proposed_twice(self, make: Make, models: Landscape) -> None:
        recipes = self.recipes(make(0), models)
        assert len(set(recipes)) >= len(recipes) - self.repeats

    def test_what_an_earlier_study_evaluated_is_not_proposed_again(
        self, make: Make, models: Landscape, row: Algorithm
    ) -> None:
        if not row.inherits:
            pytest.skip("it takes nothing over from an earlier study")
        earlier = [evaluation for _, evaluation in drive(make(0), models, self.evaluations // 2)]
        searchers = [make(0), make(0)]
        for searcher in searchers:
            assert isinstance(searcher, Inheriting)
            searcher.inherit(earlier)
        first, second = (self.recipes(searcher, models) for searcher in searchers)
        assert first == second
        assert not {each.recipe for each in earlier} & set(first)

    def test_what_other_searches_evaluate_may_become_a_parent_and_is_not_proposed(
        self, make: Make, models: Landscape, row: Algorithm
    ) -> None:
        if not row.hosts or self.assigned().space != "lineage":
            pytest.skip("it takes in nothing from other searches")
        others = [evaluation for _, evaluation in drive(make(1), models, self.evaluations) if evaluation.ok]
        guests = sorted(others, key=lambda each: -sum(each.mean(task) for task in each.scores))[:6]
        runs = []
        for _ in range(2):
            searcher = make(0)
            assert isinstance(searcher, Hosting)
            proposals = [proposal for proposal, _ in drive(searcher, models, self.evaluations // 3)]
            for guest in guests:
                searcher.host(guest)
            runs.append([proposal for proposal, _ in drive(searcher, models, self.evaluations)])
        assert runs[0] == runs[1]
        strangers = {guest.recipe for guest in guests} - {proposal.recipe for proposal in proposals}
        assert strangers & {parent for proposal in runs[0] for parent in proposal.parents}
        assert not strangers & {proposal.recipe for proposal in runs[0]}

    def test_failures_are_never_parents_and_do_not_stop_the_search(
        self, make: Make, models: Landscape, row: Algorithm
    ) -> None:
        history = drive(make(0), models, self.evaluations, failing=lambda i: i % 3 == 1)
        assert len(history) == self.evaluations or not row.spaces
        outcomes = [
            {proposal.recipe for proposal, evaluation in history if evaluation.ok == ok} for ok in (False, True)
        ]
        failed = outcomes[0] - outcomes[1]  # here, unlike in a study, one that is asked for again may fail later
        assert failed
        for proposal, _ in history:
            assert not failed & set(proposal.parents)

    def test_one_seed_gives_one_run_even_when_nearly_all_fail(self, make: Make, models: Landscape) -> None:
        runs = [self.recipes(make(0), models, failing=lambda i: i % self.population != 0) for _ in range(3)]
        assert runs[0] == runs[1] == runs[2]

    def test_a_first_population_that_fails_whole_says_why(self, make: Make, models: Landscape) -> None:
        with pytest.raises(RunError, match=r"all \d+ first candidates failed: out of memory"):
            drive(make(0), models, 3 * self.population, failing=lambda i: True)

    def test_the_search_gets_better_than_its_start(self, make: Make, models: Landscape, row: Algorithm) -> None:
        if not row.spaces:
            pytest.skip("one-shot merges do not search")
        history = drive(make(0), models, self.evaluations * 5 // 2)
        single = [TaskMean("a", ("a",)), TaskMean("b", ("b",)), Sparsity()]
        value = [sum(o.value(e) for o in single) if e.sparsity <= 0.5 else 0 for _, e in history]
        assert max(value[self.population :]) > max(value[: self.population])
