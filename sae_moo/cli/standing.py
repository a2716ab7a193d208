"""Where a search stands, as its trials tell one after another."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from statistics import median

from sae_moo.config.document import Config
from sae_moo.objectives.front import Front
from sae_moo.searchers.learning import CYCLE, OFFSPRING, POPULATION, PULL, SHARE
from sae_moo.searchers.ratio import RATIO
from sae_moo.study.record import Ended, TrialRecord, told

LEARNED = (SHARE, OFFSPRING, POPULATION, CYCLE, PULL)


class Failures:
    """What failed so far, by reason."""

    def __init__(self) -> None:
        self._last: dict[str, str] = {}  # reason -> what failed of it last; the newest reason is the last
        self._count = Counter[str]()

    def __len__(self) -> int:
        return self._count.total()

    def add(self, what: str, reason: str) -> bool:
        """Take in a failure, and say whether its reason is a new one."""
        reason = " ".join(reason.split())
        self._count[reason] += 1
        self._last = {**{known: last for known, last in self._last.items() if known != reason}, reason: what}
        return self._count[reason] == 1

    def told(self, most: int) -> list[str]:
        """Return the last reasons, the newest first, each with what failed of it last and how many did."""
        newest = list(self._last.items())[::-1][:most]
        return [
            f"{what}: {reason}" + (f" (and {self._count[reason] - 1} more)" if self._count[reason] > 1 else "")
            for reason, what in newest
        ]


class Standing:
    """What has come of a search so far.

    What its attributes hold is replaced as trials end, never changed in place, so that a thread that draws them sees
    each whole.

    Args:
        config: the configuration.

    Attributes:
        tasks: names of the tasks.
        objectives: what is maximized.
        budget: evaluations asked for.
        tokens: forward tokens allowed, or None.
        spent: forward tokens that evaluations took, as far as they tell.
        screening: those of them that screening took.
        front: the front so far.
        volume: its hypervolume.
        ended: evaluations that have ended, those of earlier sessions among them.
        replayed: those of earlier sessions.
        inherited: trials that an earlier study has evaluated.
        stopped: those that racing ended early.
        generation: the newest generation.
        grew: evaluations that had ended when the hypervolume last grew.
        best: task -> best mean score.
        failures: what failed.
    """

    def __init__(self, config: Config) -> None:
        self.tasks = tuple(task.name for task in config.tasks)
        self.objectives = config.objective_list()
        self.budget = config.search.trials
        self.tokens = config.search.tokens
        self.spent = self.screening = 0
        self.front: Front[Ended] = Front(self.objectives)
        self.volume = 0.0
        self.inherited = self.ended = self.replayed = self.stopped = self.generation = self.grew = 0
        self.best: dict[str, float] = {}
        self.failures = Failures()
        self._schedule = config.schedule if config.anneals else None
        self._ratios: deque[float] = deque(maxlen=config.population)
        self._learned: dict[str, float] = {}

    @property
    def left(self) -> int:
        """Evaluations that are still to be made."""
        return self.budget - self.ended

    @property
    def unsolved(self) -> tuple[str, ...]:
        """Tasks on which every candidate so far scores 0."""
        return tuple(task for task, best in self.best.items() if best == 0.0)

    def replay(self, records: Sequence[TrialRecord]) -> None:
        """Take in the trials of earlier sessions, in the order in which they ended."""
        for record in told(records):
            self.take(record)
        self.replayed = self.ended

    def take(self, record: Ended) -> bool:
        """Take in a trial, and say whether it failed for a reason that is new."""
        evaluation, inherits = record.evaluation, record.inherited is not None
        self.ended += not inherits
        self.inherited += inherits
        self.generation = max(self.generation, record.generation)
        self.stopped += record.state == "stopped"
        if record.repeats is None and not inherits:
            self.spent += evaluation.spent or 0
            self.screening += 0 if evaluation.screened is None else evaluation.screened.tokens
        if RATIO in record.params:
            self._ratios.append(record.params[RATIO])
        self._learned |= {name: record.params[name] for name in LEARNED if name in record.params}
        if evaluation.ok:
            means = {task: evaluation.mean(task) for task in self.tasks}
            self.best = {task: max(value, self.best.get(task, 0.0)) for task, value in means.items()}
        volume = self.volume + self.front.gain(record)
        if volume > self.volume:
            self.grew = self.ended
        self.front, self.volume = self.front.after(record), volume
        return record.state == "failed" and self.failures.add(f"trial {record.number}", evaluation.reason or "")

    def reading(self) -> str:
        """Return how many forward tokens were spent, where they are a budget or screening takes some; else nothing."""
        if self.tokens is None and not self.screening:
            return ""
        most = "" if self.tokens is None else f"/{self.tokens:,}"
        share = f", {self.screening / self.spent:.0%} of them by screening" if self.screening else ""
        return f"{self.spent:,}{most}{share}"

    def learned(self) -> str:
        """Return what is known of a generator that makes offspring, as of the newest of them; else nothing."""
        known = self._learned
        parts = [f"share {known[SHARE]:.2f}"] if SHARE in known else []
        if OFFSPRING in known:
            parts.append(f"spread {known[OFFSPRING]:.2f} of the population's {known[POPULATION]:.2f}")
        parts += [f"{name} {known[name]:.3f}" for name in (CYCLE, PULL) if name in known]
        return "   ".join(parts)

    def phase(self) -> str:
        """Return the generation, and the pruning ratio if there is one."""
        generation = self.generation
        if self._schedule is None:
            return str(generation)
        if not generation:
            return "0, the first population"
        if self._schedule.adapts:
            drawn = tuple(self._ratios)
            if not drawn:
                return f"{generation}, pruning ratio learned"
            spread = f"the last {len(drawn)} from {min(drawn):.2f} to {max(drawn):.2f}, median {median(drawn):.2f}"
            return f"{generation}, pruning ratio learned: {spread}"
        ratio = f"{generation}, pruning ratio {self._schedule(generation - 1):.2f}"
        if self._schedule.schedule == "constant":
            return f"{ratio}, constant"
        cycle, into, length = self._schedule.cycle(generation - 1)
        return f"{ratio} (cycle {cycle + 1}, step {into + 1:.0f} of {length:.0f}, climbing to {self._schedule.top:.2f})"
