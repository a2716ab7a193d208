"""Crews of workers that evaluate the stand-in for models, and one that does what a test says."""

from __future__ import annotations

import os
import pickle
import time
from collections import deque
from dataclasses import dataclass

import numpy as np

from sae_moo.errors import InputError, StorageError
from sae_moo.study.crew import Lost, Ready, Refused, Replied
from sae_moo.study.executor import Job
from sae_moo.study.local import evaluated
from sae_moo.study.post import WorkerLine
from sae_moo.testing.searchers import Landscape


def best_of(landscape):
    return lambda recipes, rivals=None: landscape(recipes[-1], rivals)


@dataclass(frozen=True)
class Stands:
    """Opens a worker that evaluates the landscape; can be pickled.

    Args:
        dies_at: names of experts; a candidate that is that expert alone ends the worker's process.
        pause: seconds that an evaluation lasts.
        wrong: what opening it raises.
    """

    dies_at: str = ""
    pause: float = 0.0
    wrong: str = ""

    def __call__(self):
        if self.wrong == "input":
            raise InputError("items of a are others")
        if self.wrong == "room":
            raise StorageError("/cache: no space left")
        if self.wrong == "fault":
            raise ZeroDivisionError("a fault of ours")
        if self.wrong == "death":
            os._exit(3)
        line, landscape = WorkerLine(), Landscape()

        def answer(letter: bytes) -> bytes:
            job = line.read(letter)
            if self.dies_at and self.dies_at in str(job.recipes[0].to_json()):
                os.kill(os.getpid(), 9)
            time.sleep(self.pause)
            return line.written(job.number, evaluated(job, landscape, best_of(landscape)), time.time(), {})

        return answer, {"device": "none"}


class ScriptedCrew:
    """Workers in this process, that do what a test says.

    Args:
        size: how many there are to be.
        order: which of the letters that are out is answered next; the last one sent, by default.
        stands: what the workers are.
        late: names of workers that become ready only when a test calls `arrive`.
        stillborn: how many of the first are lost before they are ready.

    Attributes:
        sent: who was sent how many bytes.
        begun_at: when workers were begun, by `now`.
        now: a clock that goes on where nothing is heard.
        losing: who is lost over the next letter that is answered: a name, or ``any``; one after another.
    """

    def __init__(self, size=2, order=lambda count: count - 1, stands=None, late=(), stillborn=0) -> None:
        self.size, self.order, self.stands = size, order, stands or Stands()
        self.late, self.stillborn = set(late), stillborn
        self.begun = self.closed = 0
        self.heard: deque = deque()
        self.answers: dict = {}
        self.out: list[tuple[str, bytes]] = []
        self.sent: list[tuple[str, int]] = []
        self.begun_at: list[float] = []
        self.losing: list[str] = []
        self.now = 0.0

    def begin(self) -> None:
        for _ in range(self.size):
            self._hire()

    def _hire(self) -> None:
        self.begun += 1
        self.begun_at.append(self.now)
        name = f"w{self.begun}"
        if self.begun <= self.stillborn:
            self.heard.append(Lost(name, f"{name} never began"))
        elif name not in self.late:
            self.arrive(name)

    def arrive(self, name: str) -> None:
        self.answers[name], facts = self.stands()
        self.heard.append(Ready(name, facts))

    def send(self, worker: str, letter: bytes) -> None:
        assert worker in self.answers, "it was never ready, or is lost"
        assert worker not in [name for name, _ in self.out], "one letter at a time"
        self.out.append((worker, letter))
        self.sent.append((worker, len(letter)))

    def hear(self, seconds=None):
        if self.heard:
            return [self.heard.popleft()]
        if not self.out:
            assert seconds is not None, "nothing will ever be heard"
            self.now += seconds
            return []
        name, letter = self.out.pop(self.order(len(self.out)))
        if self.losing and self.losing[0] in ("any", name):
            self.losing.pop(0)
            self.lose(name)
            return [self.heard.pop()]
        return [Replied(name, self.answers[name](letter))]

    def lose(self, name: str) -> None:
        del self.answers[name]
        self.out = [each for each in self.out if each[0] != name]
        self.heard.append(Lost(name, "killed"))

    def replace(self, worker: str) -> None:
        assert worker not in self.answers
        self._hire()

    def refuse(self, message: str, kind) -> None:
        self.heard.append(Refused("w1", message, kind))

    def close(self) -> None:
        self.closed += 1


class ShuffledCrew(ScriptedCrew):
    """Workers that answer in an order that looks random, and depends on the jobs that are out and on nothing else.

    So a search that is stopped and resumed with as many workers hears the answers that it would have heard.

    Args:
        size: how many there are to be.
        seed: of the order.
        until: after so many answers Ctrl-C comes instead of the next; None: never.
        evaluate: instead of the landscape.
    """

    def __init__(self, size, seed=0, until=None, evaluate=None) -> None:
        super().__init__(size, order=self._next, stands=Stands() if evaluate is None else lambda: desk(evaluate))
        self.seed, self.until, self.evaluated = seed, until, 0

    def _next(self, count: int) -> int:
        numbers = [pickle.loads(letter).number for _, letter in self.out]
        return min(range(count), key=lambda i: np.random.default_rng((self.seed, numbers[i])).random())

    def hear(self, seconds=None):
        if not self.heard:
            if self.evaluated == self.until:
                raise KeyboardInterrupt
            self.evaluated += 1
        return super().hear(seconds)


def desk(evaluate):
    """What answers letters by a function from a recipe and its rivals to an evaluation."""
    line = WorkerLine()

    def answer(letter: bytes) -> bytes:
        job = line.read(letter)
        return line.written(job.number, evaluate(job.recipes[0], job.rivals), 1.0, {})

    return answer, {}


def jobs(recipes) -> list[Job]:
    return [Job(number, (recipe,)) for number, recipe in enumerate(recipes)]
