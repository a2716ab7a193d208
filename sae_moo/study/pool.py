"""Evaluations by a crew of workers, several at a time: the idle get the next job, a lost one's goes to another."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from sae_moo.objectives import Evaluation
from sae_moo.study.crew import Crew, Ready, Replied
from sae_moo.study.executor import Answer, Crewed, Job, WorkerLost
from sae_moo.study.post import DriverLine
from sae_moo.study.roster import Roster
from sae_moo.study.splitting import Errand, Misfit, Reply, Share, Shares, Split, job_of, letter_of, reply_of

LOSSES = 2
"""Workers that may be lost over one job; then it has failed, for it may be what kills them."""


@dataclass(slots=True)
class _Hand:
    """A worker as the driver knows it.

    Args:
        facts: about it, for people.
        line: what went between it and the driver.
        errand: what it was sent for; None: it is idle.
        since: when it was sent.
    """

    facts: Mapping[str, str]
    line: DriverLine = field(default_factory=DriverLine)
    errand: Errand | None = None
    since: float = 0.0


class PooledExecutor:
    """Shares jobs out among workers; see `Executor`.

    A worker that is lost is replaced, and its job goes to another; a job over which `LOSSES` workers were lost has
    failed. One that becomes ready late gets jobs from then on. Where worker after worker is lost before it is ready
    there are fewer from then on, and the search ends where none is left. Where there are fewer jobs than idle workers,
    these share them (`splitting`); jobs that others evaluate already, too, if nothing else is to be done: whoever is
    done first answers, and what comes after that counts for nothing.

    Args:
        crew: the workers; they begin with the first job.
        told: called with a worker's batch sizes (`sizes.BatchSizes`) whenever they change.
        listener: told who evaluates whenever that changes, and of each worker that is lost.
        clock: seconds, from whenever.
        splits: whether the workers can be sent for shares.
        splits_races: whether also of candidates that race, which then take more forward tokens.
    """

    def __init__(
        self,
        crew: Crew,
        told: Callable[[Mapping[str, int]], None] = lambda batches: None,
        listener: Callable[[Crewed | WorkerLost], None] = lambda event: None,
        *,
        clock: Callable[[], float] = time.monotonic,
        splits: bool = False,
        splits_races: bool = True,
    ) -> None:
        self._roster = Roster(crew, clock)
        self._clock = clock
        self._told = told
        self._listener = listener
        self._said: Crewed | None = None
        self._lost = 0
        self._hands: dict[str, _Hand] = {}
        self._jobs: dict[int, Job] = {}  # out
        self._queue: deque[Errand] = deque()  # for these, nobody was sent yet
        self._splits = splits
        self._shares = Shares(splits_races)
        self._split: dict[int, Split] = {}  # jobs that are out in shares
        self._whole: set[int] = set()  # those that one worker has to evaluate
        self._losses: Counter[int] = Counter()
        self._answers: deque[Answer] = deque()
        self._batches: dict[str, dict[str, int]] = {}

    @property
    def free(self) -> bool:
        """Whether there are fewer jobs than workers, those counted that are yet to come."""
        return len(self._jobs) < max(1, self._roster.size)

    @property
    def busy(self) -> bool:
        """Whether a job is out."""
        return bool(self._jobs)

    def submit(self, job: Job) -> None:
        """Take a job.

        Raises:
            RuntimeError: if it is not free, or has a job of that number.
        """
        if not self.free:
            raise RuntimeError(f"{len(self._jobs)} jobs have not come back yet, one a worker")
        if job.number in self._jobs:
            raise RuntimeError(f"job {job.number} has not come back yet")
        self._roster.begin()
        self._jobs[job.number] = job
        self._queue.append(job)
        if not self._splits or not self.free:  # else there may be more to share out, or nothing
            self._share_out()
        self._say()

    def wait(self) -> Answer:
        """Return what came of one job; see `Executor.wait`."""
        if not self._jobs:
            raise RuntimeError("no job is out")
        while not self._answers:
            self._split_up()
            self._split_begun()
            self._share_out()
            self._say()
            for heard in self._roster.hear():
                self._take(heard)
        self._share_out()
        self._say()
        answer = self._answers.popleft()
        del self._jobs[answer.number]
        losses = self._losses.pop(answer.number, 0)
        self._whole.discard(answer.number)
        return replace(answer, losses=losses)

    def close(self) -> None:
        """End all workers."""
        self._roster.close()

    @property
    def standing(self) -> Crewed:
        """Who evaluates, as it stands now."""
        return Crewed(
            size=self._roster.size,
            ready={name: hand.facts for name, hand in self._hands.items()},
            busy=sum(hand.errand is not None for hand in self._hands.values()),
            waiting=len({job_of(errand).number for errand in self._queue}),
            lost=self._lost,
        )

    def _say(self) -> None:
        """Tell who evaluates if that has changed."""
        if self._said != (standing := self.standing):
            self._said = standing
            self._listener(standing)

    def _share_out(self) -> None:
        for name, hand in self._hands.items():
            if not self._queue:
                return
            if hand.errand is None:
                hand.errand, hand.since = self._queue.popleft(), self._clock()
                self._roster.send(name, letter_of(hand.line, hand.errand))

    def _split_up(self) -> None:
        """Split the jobs that nobody has, where more workers are idle that compute as many tokens at once."""
        jobs = [errand for errand in self._queue if isinstance(errand, Job)]
        if len(jobs) < len(self._queue) or any(job.number in self._whole for job in jobs):
            return
        if (count := self._shares.best(jobs, self._sharers())) > 1:
            self._queue_shares(jobs, count)

    def _split_begun(self) -> None:
        """Split the jobs that others have, where nobody else has anything to do: none is to come before one is back."""
        if self._queue or self._split or not (idle := self._sharers()):
            return
        begun = [
            (hand.since, hand.errand)
            for hand in self._hands.values()
            if isinstance(hand.errand, Job) and self._is_out(hand.errand) and hand.errand.number not in self._whole
        ]
        begun.sort(key=lambda each: each[0])
        now = self._clock()
        while begun:
            jobs = [job for _, job in begun]
            if (count := self._shares.best(jobs, idle, now - begun[0][0])) > 1:
                self._queue_shares(jobs, count)
                return
            begun.pop(0)  # it is done soon; those that were begun later may not be

    def _sharers(self) -> int:
        """Return how many workers are idle, 0 where they do not compute as many tokens at once."""
        if not self._splits:
            return 0
        idle = [name for name, hand in self._hands.items() if hand.errand is None]
        alike = len({tuple(sorted(self._batches.get(name, {}).items())) for name in idle}) == 1
        return len(idle) if alike else 0

    def _queue_shares(self, jobs: Sequence[Job], count: int) -> None:
        """Have nothing but jobs in so many shares each go out next."""
        self._split |= {job.number: Split(job, count) for job in jobs}
        self._queue = deque(Share(job, i, count) for job in jobs for i in range(count))

    def _is_out(self, job: Job) -> bool:
        """Whether it is not known yet what comes of a job."""
        return self._jobs.get(job.number) is job and all(answer.number != job.number for answer in self._answers)

    def _is_whole(self, job: Job) -> bool:
        """Whether a worker evaluates all of a job."""
        return any(hand.errand is job for hand in self._hands.values())

    def _drop_shares(self, job: Job) -> None:
        """Let nobody have a share of a job any more; what those that have one find out counts for nothing."""
        if self._split.pop(job.number, None) is not None:
            self._queue = deque(each for each in self._queue if job_of(each) is not job)

    def _take(self, heard: Ready | Replied | WorkerLost) -> None:
        match heard:
            case Ready(worker, facts):
                self._hands[worker] = _Hand(facts)
            case Replied(worker, letter):
                hand = self._hands[worker]
                errand, hand.errand = hand.errand, None
                assert errand is not None  # nobody replies unasked
                reply, batches = reply_of(hand.line, letter)
                self._come_back(worker, errand, reply)
                if batches != self._batches.get(worker, {}):
                    self._batches[worker] = dict(batches)
                    self._told(batches)
            case WorkerLost():
                self._lose(heard)

    def _lose(self, lost: WorkerLost) -> None:
        self._lost += 1
        self._batches.pop(lost.worker, None)
        hand = self._hands.pop(lost.worker, None)
        if hand is not None and hand.errand is not None and self._is_out(job_of(hand.errand)):
            again = self._give_back(hand.errand, lost.worker, lost.why)
            lost = replace(lost, number=job_of(hand.errand).number, again=again)
        self._listener(lost)

    def _come_back(self, worker: str, errand: Errand, reply: Reply) -> None:
        """Take what a worker came back with from an errand."""
        job = job_of(errand)
        if not self._is_out(job):
            return  # it has failed meanwhile, or another worker was sooner
        split = self._split.get(job.number)
        if isinstance(reply, Answer):
            if isinstance(errand, Job) or split is None:
                reply, count = replace(reply, worker=worker), 1
            else:
                reply, count = replace(reply, worker=split.names, began=split.began), split.count
            self._drop_shares(job)
            self._shares.note(job, reply.evaluation, count)
            self._answers.append(reply)
        elif split is None:
            return  # a worker evaluates all of it
        elif isinstance(reply, Misfit):
            self._shares.note_misfit()
            self._drop_shares(job)
            self._whole.add(job.number)
            if not self._is_whole(job):
                self._queue.appendleft(job)
        elif isinstance(errand, Share):
            self._shares.note_most(reply.most)
            split.found[errand.index], split.workers[errand.index] = reply, worker
            if split.whole:
                self._queue.appendleft(split.joining)

    def _give_back(self, errand: Errand, worker: str, why: str) -> bool:
        """Let another worker have the errand of a lost one, unless it was the job's fault; return whether one will."""
        job = job_of(errand)
        split = job.number in self._split
        if not isinstance(errand, Job) and not split:
            return True  # a worker evaluates all of it
        self._whole.add(job.number)
        self._losses[job.number] += 1
        if self._losses[job.number] < LOSSES:
            if self._is_whole(job):
                self._drop_shares(job)
            elif not (isinstance(errand, Job) and split):  # else others have its shares
                self._queue.appendleft(errand)
            return True
        self._drop_shares(job)
        self._queue = deque(each for each in self._queue if job_of(each) is not job)
        reason = f"{LOSSES} workers were lost over it, the last one: {why}"
        self._answers.append(Answer(job.number, Evaluation(job.recipes[0], reason=reason), worker=worker))
        return False
