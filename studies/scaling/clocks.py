"""Crews that evaluate nothing but time: workers that sleep, and workers on a clock of their own that costs no time."""

from __future__ import annotations

import heapq
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import numpy as np

from sae_moo.objectives import Evaluation
from sae_moo.objectives.front import Front
from sae_moo.recipe import Recipe
from sae_moo.study.crew import Heard, Ready, Replied
from sae_moo.study.executor import Answer, Executor, Job
from sae_moo.study.local import evaluated
from sae_moo.study.post import WorkerLine
from sae_moo.testing.searchers import Landscape

Evaluate = Callable[[Recipe, Front[Evaluation] | None], Evaluation]
BestOf = Callable[[Sequence[Recipe], Front[Evaluation] | None], Evaluation]


@dataclass(frozen=True, slots=True)
class Skewed:
    """How long evaluations last: log-normal, the same for a recipe whenever and by whomever it is evaluated.

    Args:
        mean: seconds.
        sigma: standard deviation of the logarithm; 0.7: one in twenty lasts two and a half times the mean.
    """

    mean: float = 1.0
    sigma: float = 0.7

    def __call__(self, recipe: Recipe) -> float:
        """Return the seconds that a recipe takes."""
        normal = np.random.default_rng(int(recipe.key[:12], 16)).standard_normal()
        return float(self.mean * np.exp(self.sigma * normal - self.sigma**2 / 2))


@dataclass(frozen=True, slots=True)
class Sleepers:
    """Opens a worker in a process that sleeps, then answers by the landscape; can be pickled.

    Args:
        seconds: how long it sleeps over a recipe.
        presence: a folder in which every worker leaves a file named after its process; empty: none does.
    """

    seconds: Skewed
    presence: str = ""

    def __call__(self) -> tuple[Callable[[bytes], bytes], Mapping[str, str]]:
        """Return what answers letters, and facts for people."""
        if self.presence:
            (Path(self.presence) / str(os.getpid())).touch()
        line, landscape = WorkerLine(), Landscape()

        def answer(letter: bytes) -> bytes:
            began, job = time.time(), line.read(letter)
            evaluation = evaluated(job, landscape, None)
            time.sleep(self.seconds(job.recipes[0]))
            return line.written(job.number, replace(evaluation, seconds_score=time.time() - began), began, {})

        return answer, {"device": "none"}


class VirtualCrew:
    """Workers in this process on a clock that stands still but for what they do; see `study.crew.Crew`.

    A letter is answered when it is sent, and the answer is heard when the clock has come to its end: thousands of
    workers cost what their evaluations cost here.

    Args:
        size: how many workers.
        evaluate: recipe, and the front it races against -> evaluation.
        seconds: how long the evaluation of a recipe lasts on the clock.
        driver: seconds that the driver has spent so far, by any clock: what it spends between two calls goes by on this
            clock, too; None: the driver takes no time.
        best_of: recipes, and the front -> evaluation of the best of them; None where there never are several.

    Attributes:
        now: the clock, in seconds.
        letters: bytes of each letter that was sent, and of its answer.
    """

    def __init__(
        self,
        size: int,
        evaluate: Evaluate,
        seconds: Callable[[Recipe], float],
        driver: Callable[[], float] | None = None,
        best_of: BestOf | None = None,
    ) -> None:
        self.size = size
        self.now = 0.0
        self.letters: list[tuple[int, int]] = []
        self._evaluate = evaluate
        self._best_of = best_of
        self._seconds = seconds
        self._driver = (lambda: 0.0) if driver is None else driver
        self._spent = 0.0
        self._order = count()
        self._coming: list[tuple[float, int, Heard]] = []
        self._lines: dict[str, WorkerLine] = {}

    def begin(self) -> None:
        """Let the workers begin; they are ready at once."""
        self._spent = self._driver()
        for place in range(self.size):
            name = f"worker {place + 1}"
            self._lines[name] = WorkerLine()
            heapq.heappush(self._coming, (self.now, next(self._order), Ready(name, {"device": "none"})))

    def send(self, worker: str, letter: bytes) -> None:
        """Send a letter to a worker that is ready."""
        self._enter()
        line = self._lines[worker]
        job = line.read(letter)
        seconds = self._seconds(job.recipes[0])
        evaluation = replace(evaluated(job, self._evaluate, self._best_of), seconds_score=seconds, seconds_merge=0.0)
        reply = Replied(worker, line.written(job.number, evaluation, self.now, {}))
        self.letters.append((len(letter), len(reply.letter)))
        heapq.heappush(self._coming, (self.now + seconds, next(self._order), reply))
        self._spent = self._driver()

    def hear(self, seconds: float | None = None) -> Sequence[Heard]:
        """Return what was heard since; if nothing was, let the clock go on until something is, or the time is up."""
        self._enter()
        first = self._coming[0][0] if self._coming else float("inf")
        self.now = max(self.now, first if seconds is None else min(first, self.now + seconds))
        heard = []
        while self._coming and self._coming[0][0] <= self.now:
            heard.append(heapq.heappop(self._coming)[2])
        self._spent = self._driver()
        return heard

    def replace(self, worker: str) -> None:
        """Nobody is lost here.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(f"{worker} is not lost")

    def close(self) -> None:
        """Forget what was to be heard."""
        self._coming.clear()

    def _enter(self) -> None:
        """Let the clock go on by what the driver has spent since it last left."""
        self.now += self._driver() - self._spent


class Batched:
    """Takes as many jobs as another executor has room for, and no more before all of them have come back.

    Args:
        inner: what evaluates.
    """

    def __init__(self, inner: Executor) -> None:
        self._inner = inner
        self._full = False

    @property
    def free(self) -> bool:
        """Whether a job can be submitted."""
        return self._inner.free and not self._full

    @property
    def busy(self) -> bool:
        """Whether a job is out."""
        return self._inner.busy

    def submit(self, job: Job) -> None:
        """Take a job."""
        self._inner.submit(job)

    def wait(self) -> Answer:
        """Return what came of one job; from now on the batch is full."""
        answer = self._inner.wait()
        self._full = self._inner.busy
        return answer

    def close(self) -> None:
        """End whatever evaluates."""
        self._inner.close()
