"""From recipe to evaluation: materialize into the live model, score every task, count sparsity."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_moo.errors import TaskError, WeightsError, out_of_memory
from sae_moo.evaluate.asking import Racing
from sae_moo.evaluate.expert_scores import ExpertScores
from sae_moo.evaluate.racing import Race
from sae_moo.evaluate.scorer import Scorer
from sae_moo.evaluate.screening import Screening
from sae_moo.evaluate.shares import Findings, fit
from sae_moo.experts.pool import ExpertPool
from sae_moo.materialization.into_model import l1_norms, materialize, sparseness
from sae_moo.materialization.parents import WeightCache
from sae_moo.objectives import Evaluation, Stopped, TaskMean
from sae_moo.objectives.front import Front
from sae_moo.recipe import BASE, Recipe


class Evaluator:
    """Evaluates recipes on the search split.

    Args:
        pool: the experts.
        model: the live model that candidates are written into.
        scorer: the tasks.
        cache: weights of candidates seen before, or None.
        racing: how candidates race against the front they are given, or None if they are always asked everything.
        known: what is known of unmerged experts, or None.
        measure: ``l1`` or ``hoyer``: what else of a candidate's sparsity is told (`into_model.sparseness`); None:
            nothing.
        screening: ranks allocations of one budget; None: there never are several.
        speed: a resolved recipe -> how fast its structured export is (`costs.CostTable.speed`); None: that is not told.
    """

    def __init__(
        self,
        pool: ExpertPool,
        model: Any,
        scorer: Scorer,
        *,
        cache: WeightCache | None = None,
        racing: Racing | None = None,
        known: ExpertScores | None = None,
        measure: str | None = None,
        screening: Screening | None = None,
        speed: Callable[[Recipe], float] | None = None,
    ) -> None:
        self.pool = pool
        self.model = model
        self.scorer = scorer
        self.cache = cache
        self.racing = racing
        self.known = known if measure is None else None  # what is kept of experts has no other measure
        self.measure = measure
        self.screening = screening
        self.speed = speed
        self._base_norms = l1_norms(pool, BASE) if measure == "l1" else {}

    def evaluate(self, recipe: Recipe, rivals: Front[Evaluation] | None = None) -> Evaluation:
        """Materialize and score one recipe; a failure of the candidate is an evaluation too, with its reason.

        Args:
            recipe: the candidate.
            rivals: the front it races against; None: it is asked everything.

        Raises:
            InputError: if the recipe does not fit the pool, which is an error of the caller.
        """
        found = None if self.known is None else self.known.find(recipe)
        if found is not None:
            return replace(found, speed=self._speed(recipe))
        merged, reason, tokens = recipe, None, -self.scorer.tokens
        merging: float | None = None
        start = time.perf_counter()
        try:
            report = materialize(recipe, self.pool, self.model, self.cache)
            merged, merging, start = report.recipe, report.seconds, time.perf_counter()
            tokens += report.tokens
            counted = Evaluation(merged, sparsity=report.sparsity, speed=self._speed(merged))
            scores, stopped = self._scores(counted, rivals, self.scorer.score_parts(self.model, "search"))
        except (TaskError, WeightsError) as error:
            reason = str(error)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            reason = _short_of_memory(error)
        tokens += self.scorer.tokens
        seconds = time.perf_counter() - start  # of scoring; of merging where that failed
        if reason is not None:
            merging, scoring = (seconds, 0.0) if merging is None else (merging, seconds)
            return Evaluation(merged, reason=reason, seconds_merge=merging, seconds_score=scoring, tokens=tokens)
        counted = replace(
            counted,
            group_sparsity=tuple(report.group_sparsity.values()),
            seconds_merge=report.seconds,
            seconds_score=seconds,
            sparseness=self._sparseness(),
            tokens=tokens,
        )
        return self._told(counted, scores, stopped)

    def ask(self, recipe: Recipe, index: int, shares: int) -> Findings:
        """Materialize one recipe, and ask it a share of what `evaluate` asks it; see `shares`.

        Args:
            recipe: the candidate.
            index: which share, from 0.
            shares: how many there are.

        Raises:
            InputError: if the recipe does not fit the pool.
        """
        kept = None if self.known is None else self.known.find(recipe)
        if kept is not None:
            return Findings(kept=kept)
        findings, start, tokens = Findings(), time.perf_counter(), -self.scorer.tokens
        try:
            report = materialize(recipe, self.pool, self.model, self.cache)
            findings = Findings(
                merged=None if report.recipe == recipe else report.recipe.to_json(),
                sparsity=report.sparsity,
                group_sparsity=tuple(report.group_sparsity.values()),
                seconds_merge=report.seconds,
            )
            start, tokens = time.perf_counter(), tokens + report.tokens
            answers = self.scorer.score_share(self.model, "search", index, shares)
            seconds, read = time.perf_counter() - start, tokens + self.scorer.tokens
            told = () if index else self._sparseness()
            return replace(findings, sparseness=told, answers=answers, seconds_score=seconds, tokens=read)
        except WeightsError as error:
            seconds, read = time.perf_counter() - start, tokens + self.scorer.tokens
            return replace(findings, unmerged=str(error), seconds_merge=seconds, tokens=read)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            return replace(findings, short=True)

    def join(self, recipe: Recipe, rivals: Front[Evaluation] | None, shares: Sequence[Findings]) -> Evaluation | None:
        """Put together what was found out in shares; see `ask`.

        Seconds and tokens are those of all shares together; each of them was merged for itself. A candidate that races
        was asked everything, and is stopped where `evaluate` would have stopped it.

        Args:
            recipe: the candidate.
            rivals: the front it races against; None: it does not.
            shares: all of them, in their order.

        Returns:
            What `evaluate` returns; None where that can only be found out by asking for all in one place: memory ran
            out, or shares were cut from different layouts.
        """
        kept = next((share.kept for share in shares if share.kept is not None), None)
        if kept is not None:
            return replace(kept, speed=self._speed(recipe))
        if any(share.short for share in shares):
            return None
        merging, scoring = (
            sum(getattr(share, name) for share in shares) for name in ("seconds_merge", "seconds_score")
        )
        spent = {"seconds_merge": merging, "tokens": sum(share.tokens for share in shares)}
        unmerged = next((share.unmerged for share in shares if share.unmerged is not None), None)
        if unmerged is not None:
            return Evaluation(recipe, reason=unmerged, seconds_score=scoring, **spent)
        answers, first = [share.answers for share in shares if share.answers is not None], shares[0]
        if not fit(answers):
            return None
        merged, start = recipe if first.merged is None else Recipe.from_json(first.merged), time.perf_counter()
        counted = Evaluation(merged, sparsity=first.sparsity, speed=self._speed(merged))
        try:
            scores, stopped = self._scores(counted, rivals, self.scorer.joined_parts("search", answers))
        except TaskError as error:
            scoring += time.perf_counter() - start
            return Evaluation(merged, reason=str(error), seconds_score=scoring, **spent)
        scoring += time.perf_counter() - start
        counted = replace(counted, group_sparsity=first.group_sparsity, sparseness=first.sparseness)
        return self._told(replace(counted, seconds_score=scoring, **spent), scores, stopped)

    def _told(
        self, counted: Evaluation, scores: Mapping[str, NDArray[np.float64]], stopped: Stopped | None
    ) -> Evaluation:
        """Return the evaluation of a candidate that was asked, and keep it if it is an expert's."""
        evaluation = replace(
            counted,
            scores={task: tuple(row.tolist()) for task, row in scores.items()},
            reason=None if stopped is None else self._reason(stopped),
            stopped=stopped,
        )
        if self.known is not None:
            self.known.keep(evaluation)
        return evaluation

    def _sparseness(self) -> tuple[float, ...]:
        if self.measure is None:
            return ()
        return sparseness(self.pool, self.model, self.measure, self._base_norms)

    def best_of(self, recipes: Sequence[Recipe], rivals: Front[Evaluation] | None = None) -> Evaluation:
        """Screen allocations of one budget and evaluate the best; see `Screening.best` and `evaluate`.

        Args:
            recipes: the allocations, the one that was asked for first.
            rivals: the front that the best one races against; None: it is asked everything.

        Raises:
            InputError: if a recipe does not fit the pool.
            ValueError: if nothing was given to screen with, or the recipes have several teachers.
        """
        if self.screening is None:
            raise ValueError("screening: expected one to choose among recipes with, got None")
        start, before = time.perf_counter(), self.screening.tokens
        try:
            screened = self.screening.best(recipes)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            seconds, read = time.perf_counter() - start, self.screening.tokens - before
            return Evaluation(recipes[0], reason=_short_of_memory(error), seconds_score=seconds, tokens=read)
        return replace(self.evaluate(recipes[screened.chosen], rivals), screened=screened)

    def _speed(self, recipe: Recipe) -> float | None:
        return None if self.speed is None else self.speed(recipe)

    def _scores(
        self,
        counted: Evaluation,
        rivals: Front[Evaluation] | None,
        parts: Iterator[Mapping[str, NDArray[np.float64]]],
    ) -> tuple[dict[str, NDArray[np.float64]], Stopped | None]:
        """Return the scores per instance of each task; none, and why, if the candidate was stopped.

        Args:
            counted: what is known of the candidate without asking it.
            rivals: the front it races against, or None.
            parts: scores of part after part, see `Scorer.score_parts`.
        """
        dealt = self.scorer.order("search")
        order = {task.name: np.concatenate([part[task.name] for part in dealt]) for task in self.scorer.tasks}
        race = None
        if self.racing is not None and rivals is not None and rivals.members:
            looks = {name: np.cumsum([len(part[name]) for part in dealt]).tolist() for name in order}
            known = {o.name: o.value(counted) for o in rivals.objectives if not isinstance(o, TaskMean)}
            race = Race(self.racing, rivals, order=order, looks=looks, counted=known)
        seen = {name: np.empty(0) for name in order}
        for scores in parts:
            seen = {name: np.concatenate([row, scores[name]]) for name, row in seen.items()}
            beaten = None if race is None else race.beaten(seen)
            if beaten is not None:
                rival, expected, bound = beaten
                asked = {name: len(row) for name, row in seen.items()}
                return {}, Stopped(rival.recipe.digest(self.pool), asked, expected, bound)
        whole = {name: np.empty(len(row)) for name, row in seen.items()}
        for name, row in seen.items():
            whole[name][order[name]] = row
        return whole, None

    def _reason(self, stopped: Stopped) -> str:
        asked, all_of_them = (
            sum(stopped.instances.values()),
            sum(task.instances("search") for task in self.scorer.tasks),
        )
        margin = 0.0 if self.racing is None else self.racing.margin
        given = f", given the margin of {margin:g}" if margin else ""
        return f"stopped after {asked} of {all_of_them} instances: {stopped.rival[:8]} dominates it{given}"


def _short_of_memory(error: BaseException) -> str:
    return f"out of memory: {str(error).splitlines()[0] if str(error) else 'no more could be had'}"
