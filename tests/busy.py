"""Studies made up without any model, of which it is known who evaluated what, and when."""

from __future__ import annotations

from dataclasses import replace

from stand_ins import record
from synthetic import view

from sae_moo.explore.view import View
from sae_moo.objectives import Evaluation, Screened
from sae_moo.recipe import Expert
from sae_moo.study.record import Ended

EPOCH = 1_700_000_000.0
AFTER = 0.5  # s between two evaluations of a worker


def trial(number: int, worker: str, began: float | None, *seconds: float, **more) -> Ended:
    """A trial that began so many seconds after `EPOCH` and screened, merged and scored for so long."""
    screening, merging, scoring = seconds or (0.0, 1.0, 3.0)
    screened = Screened(2, 0, 0.9, 10, screening) if screening else None
    evaluation = Evaluation(Expert("a"), seconds_merge=merging, seconds_score=scoring, screened=screened)
    at = None if began is None else EPOCH + began
    return replace(record(number, 0.5, 0.0), evaluation=evaluation, began=at, worker=worker, **more)


def busy(count: int, workers: int, pauses: tuple[int, ...] = (), first: float = 0.0) -> View:
    """A study whose trials go to whoever is idle first; one worker is the search itself; hours pass before `pauses`."""
    free, records = [EPOCH + first] * workers, []
    shape = view(min(count, 60)).records
    for i in range(count):
        if i in pauses:
            free = [max(free) + 7200.0] * workers
        worker = free.index(min(free))
        like = shape[i] if i < len(shape) else shape[7 + i % (len(shape) - 7)]
        evaluation = replace(like.evaluation, seconds_merge=1.0 + i % 3, seconds_score=20.0 + i % 7)
        name = f"worker {worker + 1}" if workers > 1 else ""
        records.append(replace(like, number=i, told=i, evaluation=evaluation, began=free[worker], worker=name))
        free[worker] += evaluation.seconds + AFTER
    return replace(view(min(count, 60)), records=tuple(records))
