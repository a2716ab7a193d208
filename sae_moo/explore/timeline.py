"""Who was busy when: the evaluations of a study by worker, as its trials tell.

A trial keeps when it was taken up, by the clock of whoever evaluated it, and for how long that screened, merged and
scored. Each worker's times are consistent among themselves; where workers are on several machines, rows are set beside
each other as if their clocks agreed, and are as far off as these are. The opening of experts and tasks, and
evaluations that nobody finished, leave no trace.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from sae_moo.study.record import Ended, TrialRecord, own, told

PAUSE = 60.0  # s; a shorter time in which nobody evaluates is one that the search took between evaluations
HERE = "the search itself"
"""What the process that searches is called where it evaluates, too."""

Phase: TypeAlias = Literal["screening", "merging", "scoring"]
PHASES: tuple[Phase, ...] = get_args(Phase)
"""What an evaluation consists of, in this order."""


@dataclass(frozen=True, slots=True)
class Part:
    """A phase of an evaluation.

    Args:
        phase: which.
        began: seconds since the epoch.
        ended: likewise, not before `began`.
    """

    phase: Phase
    began: float
    ended: float


@dataclass(frozen=True, slots=True)
class Span:
    """An evaluation, as its worker spent time on it.

    Args:
        worker: who evaluated.
        record: the trial.
        parts: one for each phase that took any time, one right after the other.
        began: seconds since the epoch.
        ended: likewise, not before `began`, nor after the worker's next one began.
    """

    worker: str
    record: Ended
    parts: tuple[Part, ...]
    began: float
    ended: float

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ended - self.began


@dataclass(frozen=True, slots=True)
class Session:
    """A time in which a search ran, without longer pauses.

    Args:
        spans: its evaluations, at least one, in the order in which they began.
        ended: when the last one of them ended, seconds since the epoch.
        places: how many could be evaluated at once, as far as can be seen: as many as ever were, or as there were
            workers without those that were lost.
    """

    spans: tuple[Span, ...]
    ended: float
    places: int

    @property
    def began(self) -> float:
        """When its first evaluation began, seconds since the epoch."""
        return self.spans[0].began

    @property
    def seconds(self) -> float:
        """How long it lasted."""
        return self.ended - self.began


@dataclass(frozen=True, slots=True)
class Timeline:
    """Who was busy when, of a whole study.

    Args:
        workers: names, those that differ by a number in its order.
        sessions: in their order; pauses lie between them.
        losses: workers that were lost over trials.
    """

    workers: tuple[str, ...] = ()
    sessions: tuple[Session, ...] = ()
    losses: int = 0

    @property
    def spans(self) -> tuple[Span, ...]:
        """All evaluations of which is known when they began, in that order."""
        return tuple(span for session in self.sessions for span in session.spans)

    @property
    def seconds(self) -> float:
        """How long the sessions lasted, pauses left out."""
        return sum(session.seconds for session in self.sessions)

    @property
    def places(self) -> int:
        """How many could be evaluated at once, at most; see `Session.places`."""
        return max((session.places for session in self.sessions), default=0)

    def share(self, phases: Sequence[Phase] = PHASES) -> float:
        """Return the share of the workers' time in which they were in one of some phases, in [0, 1]."""
        capacity = sum(session.places * session.seconds for session in self.sessions)
        return _seconds(self.spans, phases) / capacity if capacity else 0.0

    def share_of(self, worker: str) -> float:
        """Return the share of the sessions in which a worker evaluated anything that it was busy, in [0, 1].

        One that was lost, or that came late, was busy for a part of its session only.
        """
        lasted = busy = 0.0
        for session in self.sessions:
            spans = [span for span in session.spans if span.worker == worker]
            lasted += session.seconds if spans else 0.0
            busy += _seconds(spans, PHASES)
        return busy / lasted if lasted else 0.0


def timeline(records: Iterable[TrialRecord]) -> Timeline:
    """Return who was busy when.

    A pause, which ends a session, is a time in which nobody evaluated anything that is longer than `PAUSE` seconds and
    than any evaluation of the study.

    Args:
        records: all trials; those that are running, that nobody had to evaluate, or that do not tell when they began
            are left out.
    """
    trials = told(own(records))
    rows: dict[str, list[Ended]] = {}
    for record in trials:
        for worker in record.workers or (HERE,) if record.began is not None else ():
            rows.setdefault(worker, []).append(record)
    spans = sorted(
        (span for worker, row in rows.items() for span in _spans(worker, row)),
        key=lambda span: (span.began, span.record.number),
    )
    sessions = _sessions(spans)
    return Timeline(
        tuple(sorted(rows, key=_numbered)),
        tuple(
            Session(tuple(part), max(span.ended for span in part), _places(part, lost))
            for part, lost in zip(sessions, _losses(trials, sessions), strict=True)
        ),
        sum(record.losses for record in trials),
    )


def _spans(worker: str, records: Sequence[Ended]) -> list[Span]:
    """Return the evaluations of one worker; a clock that was set back meanwhile makes some shorter than they were.

    Of one that several workers shared, each is taken to have spent the same time on it.
    """
    row = sorted(((record.began or 0.0, record) for record in records), key=lambda pair: (pair[0], pair[1].number))
    ends = [began for began, _ in row[1:]] + [float("inf")]
    found = []
    for (began, record), latest in zip(row, ends, strict=True):
        evaluation, several = record.evaluation, max(1, len(record.workers))
        screening = 0.0 if evaluation.screened is None else evaluation.screened.seconds
        parts, now = [], began
        for phase, seconds in zip(PHASES, (screening, evaluation.seconds_merge, evaluation.seconds_score), strict=True):
            after = min(now + seconds / several, latest)
            if after > now:
                parts.append(Part(phase, now, after))
                now = after
        found.append(Span(worker, record, tuple(parts), began, now))
    return found


def _sessions(spans: Sequence[Span]) -> list[list[Span]]:
    """Return evaluations, given in the order in which they began, in groups with pauses between them."""
    pause = max([PAUSE, *(span.seconds for span in spans)])
    sessions: list[list[Span]] = []
    reached = -float("inf")
    for span in spans:
        if span.began - reached > pause:
            sessions.append([])
        sessions[-1].append(span)
        reached = max(reached, span.ended)
    return sessions


def _losses(trials: Sequence[Ended], sessions: Sequence[Sequence[Span]]) -> list[int]:
    """Return how many workers were lost over trials of each session; trials are in the order in which they ended."""
    session_of = {span.record.number: i for i, spans in enumerate(sessions) for span in spans}
    losses, now = [0] * len(sessions), 0
    for record in trials:
        now = session_of.get(record.number, now)  # nobody finished it, or had to: it ended after the one before
        if sessions:
            losses[now] += record.losses
    return losses


def _places(spans: Sequence[Span], losses: int) -> int:
    """Return how many could be evaluated at once; see `Session.places`."""
    changes = [(span.began, 1) for span in spans if span.parts] + [(span.ended, -1) for span in spans if span.parts]
    most = now = 0
    for _, change in sorted(changes):  # what ends makes room for what begins in the same moment
        now += change
        most = max(most, now)
    return max(1, most, len({span.worker for span in spans}) - losses)


def _seconds(spans: Iterable[Span], phases: Sequence[Phase]) -> float:
    return sum(part.ended - part.began for span in spans for part in span.parts if part.phase in phases)


def _numbered(name: str) -> list[tuple[str, int]]:
    """Return what sorts names with numbers in them by these."""
    texts, numbers = re.split(r"\d+", name), [int(digits) for digits in re.findall(r"\d+", name)]
    return list(zip(texts, [*numbers, 0], strict=True))
