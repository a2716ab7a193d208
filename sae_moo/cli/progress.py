"""What a person sees while waiting for a search or a comparison: a picture in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sae_moo.algorithms import ALGORITHMS
from sae_moo.build import schedule_of
from sae_moo.cli.display import front_table, say
from sae_moo.cli.terminal import Canvas
from sae_moo.compare import Made, Step, jobs_of
from sae_moo.config import Config
from sae_moo.explore.history import Growing
from sae_moo.explore.words import SPACES, count
from sae_moo.schedule import Schedule
from sae_moo.searchers.ratio import RATIO
from sae_moo.storage import TrialRecord
from sae_moo.study import Begun, Event, Exhausted, Finished, PutAside, Resumed

WINDOW = 50  # evaluations that the rate is taken over
SHORT = 1.0  # s that say nothing of the rate yet: the experts' own scores are often known
LONG = 10.0  # s; an evaluation that lasts longer is told of while it lasts
PLAIN_SECONDS = (5.0, 60.0)  # between plain lines: at least, at most; a twentieth of the time so far in between
MOST_REASONS = 3  # of failures, in the picture
LABEL = 12  # columns

Clock = Callable[[], float]


class Pace:
    """How fast evaluations end, over the last `WINDOW` of them.

    Args:
        clock: seconds, from anywhere.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._times: deque[float] = deque(maxlen=WINDOW + 1)

    def begin(self) -> None:
        """The first one begins now; said again, it changes nothing."""
        if not self._times:
            self._times.append(self._clock())

    def tick(self) -> None:
        """One has ended now."""
        self._times.append(self._clock())

    @property
    def rate(self) -> float:
        """Evaluations a second, 0.0 while it is unknown; one that takes longer than those before it counts."""
        ended = len(self._times) - 1
        if ended < 1:
            return 0.0
        span = self._times[-1] - self._times[0]
        late = self._clock() - self._times[-1] - span / ended
        passed = span + max(0.0, late)
        return ended / passed if passed >= SHORT else 0.0

    def left(self, evaluations: int) -> float | None:
        """Return the seconds that so many more take; None if nothing is known yet."""
        rate = self.rate
        if not rate:
            return None
        return max(0.0, evaluations / rate - min(self._clock() - self._times[-1], 1 / rate))


def span_text(seconds: float | None) -> str:
    """Return a span of time as a clock shows it; what is not known yet as dashes."""
    if seconds is None:
        return "--:--"
    whole = round(seconds)
    if whole >= 48 * 3600:
        return f"{whole / 86400:.1f} days"
    hours = f"{whole // 3600}:{whole // 60 % 60:02d}" if whole >= 3600 else f"{whole // 60}"
    return f"{hours}:{whole % 60:02d}"


def rate_text(rate: float) -> str:
    """Return evaluations a second in the unit that suits them."""
    for unit, seconds in (("s", 1), ("min", 60)):
        if rate * seconds >= 1:
            return f"{rate * seconds:.1f} evaluations/{unit}"
    return f"{rate * 3600:.1f} evaluations/h"


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a picture; where the terminal is low, those of the largest rank go first."""

    rank: int
    shown: RenderableType


def fitting(rows: Sequence[Row], height: int) -> list[RenderableType]:
    """Return the rows that a height has room for, in their order."""
    kept = sorted(range(len(rows)), key=lambda i: (rows[i].rank, i))[:height]
    return [rows[i].shown for i in sorted(kept)]


def said(label: str, value: str, style: str = "") -> Text:
    """Return a row: what it is about, and what there is to say; cut where the terminal ends."""
    text = Text(no_wrap=True, overflow="ellipsis")
    return text.append(f"{label:<{LABEL}}", "dim").append(" ".join(value.split(" ")), style)


def bar(done: float, total: float, text: str, label: str = "") -> Table:
    """Return a bar with words behind it, and before it if there are any."""
    grid = Table.grid(expand=True, padding=(0, 1, 0, 0))
    if label:
        grid.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    grid.add_column(ratio=1)
    grid.add_column(no_wrap=True, justify="right")
    cells: list[RenderableType] = [Text(label, style="dim")] if label else []
    grid.add_row(*cells, ProgressBar(total=max(total, 1), completed=done), Text(text))
    return grid


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
        self._last.pop(reason, None)
        self._last[reason] = what
        self._count[reason] += 1
        return self._count[reason] == 1

    def told(self, most: int) -> list[str]:
        """Return the last reasons, the newest first, each with what failed of it last and how many did."""
        newest = list(self._last.items())[::-1][:most]
        return [
            f"{what}: {reason}" + (f" (and {self._count[reason] - 1} more)" if self._count[reason] > 1 else "")
            for reason, what in newest
        ]


class SearchView:
    """Shows a search as it runs; use it as a context and as the study's listener.

    Args:
        config: the configuration.
        console: where to show; without a terminal it prints a plain line now and then.
        show: whether to show anything at all.
        clock: seconds, from anywhere.
    """

    def __init__(self, config: Config, console: Console, show: bool = True, clock: Clock = time.monotonic) -> None:
        algorithm, space = config.search.algorithm, config.space_kind
        self._title = f"{config.study.name}: {algorithm}{SPACES[space]}"
        self._objectives = config.objective_list()
        self._tasks = [task.name for task in config.tasks]
        self._budget = config.search.evaluations
        self._schedule = schedule_of(config) if ALGORITHMS[algorithm].anneals and space == "lineage" else None
        self._console = console
        self._show = show
        self._clock = clock
        self._pace = Pace(clock)
        self._front = Growing(self._objectives)
        self._grew = 0  # evaluations that had ended when the hypervolume last grew
        self._best: dict[str, float] = {}
        self._ended = 0
        self._replayed = 0
        self._stopped = 0
        self._generation = 0
        self._ratios: deque[float] = deque(maxlen=config.search.population)
        self._failures = Failures()
        self._now: tuple[int, float] | None = None  # the trial that is being evaluated, and since when
        self._said: list[str] = []
        self._looked = False
        self._start = clock()
        self._next_line = -1.0
        self._canvas = Canvas(console, self.picture) if show and console.is_interactive else None

    def __enter__(self) -> SearchView:
        self._start = self._clock()
        if self._canvas is not None:
            self._canvas.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._canvas is None:
            return
        self._canvas.__exit__(*exception)
        for text in self._said:
            self._print(text)
        if self._failures:
            self._print(f"{count(len(self._failures), 'evaluation')} failed")
            for text in self._failures.told(MOST_REASONS):
                self._print(f"  {text}")
        if any(exception) and self._ended:
            self._print(self.line())

    @property
    def seconds(self) -> float:
        """Wall time since the context was entered."""
        return self._clock() - self._start

    @property
    def evaluated(self) -> int:
        """Evaluations ended in this session."""
        return self._ended - self._replayed

    @property
    def earlier(self) -> str:
        """What to say of evaluations made before this session; nothing if there were none."""
        return f" ({self._ended} with those of earlier sessions)" if self._replayed else ""

    def __call__(self, event: Event) -> None:
        """Take in one event of the study."""
        match event:
            case Resumed():
                for record in sorted(event.records, key=lambda r: -1 if r.told is None else r.told):
                    self._take(record)
                self._replayed = self._ended
                self._looked = self._generation > 0
                self._say(f"resumed: {count(self._replayed, 'evaluation')} replayed in {event.seconds:.2f} s")
            case PutAside():
                self._say(f"the earlier run was put aside: {event.folder}")
            case Begun():
                self._pace.begin()
                self._now = event.number, self._clock()
                self._generation = max(self._generation, event.proposal.generation)
            case Exhausted():
                self._say(f"nothing left to try after {event.evaluations} of {event.budget} evaluations")
            case Finished():
                record = event.record
                self._pace.begin()
                self._pace.tick()
                self._now = None
                new = self._take(record)
                if record.generation == 1 and not self._looked:
                    self._look()
                if self._canvas is None and self._show:
                    if new and record.evaluation is not None:
                        self._print(f"trial {record.number} failed: {record.evaluation.reason}")
                    self._plain_line()

    def _take(self, record: TrialRecord) -> bool:
        """Take in a trial, and say whether it failed for a reason that is new."""
        evaluation = record.evaluation
        if evaluation is None:
            return False
        self._ended += 1
        self._generation = max(self._generation, record.generation)
        self._stopped += record.state == "stopped"
        if RATIO in record.params:
            self._ratios.append(record.params[RATIO])
        if evaluation.ok:
            means = {task: evaluation.mean(task) for task in self._tasks}
            self._best = {task: max(value, self._best.get(task, 0.0)) for task, value in means.items()}
        before = self._front.volume
        self._front.add(record)
        if self._front.volume > before:
            self._grew = self._ended
        return record.state == "failed" and self._failures.add(f"trial {record.number}", evaluation.reason or "")

    def _look(self) -> None:
        """Say once, after the first generation, which tasks nobody solves anything of."""
        self._looked = True
        for task, best in self._best.items():
            if best == 0.0:
                self._say(
                    f"task {task}: every candidate so far scores 0 on it; "
                    "evaluate --samples shows what models are asked and answer"
                )

    def _say(self, text: str) -> None:
        """Print something at once, or show it now and print it when the terminal is given back."""
        if self._canvas is not None:
            self._said.append(text)
        elif self._show:
            self._print(text)

    def _print(self, text: str) -> None:
        say(self._console, text)

    def _plain_line(self) -> None:
        now = self._clock()
        if now < self._next_line and self._ended < self._budget:
            return
        least, most = PLAIN_SECONDS
        self._next_line = now + min(most, max(least, self.seconds / 20))
        self._print(self.line())

    def line(self) -> str:
        """Return where the search stands, in one line."""
        rate, left = self._pace.rate, span_text(self._pace.left(self._budget - self._ended))
        parts = [
            f"{self._ended}/{self._budget} evaluations",
            *([rate_text(rate).replace(" evaluations", ""), f"left {left}"] if rate else []),
            "best: " + " ".join(f"{task} {value:.3f}" for task, value in self._best.items()),
            f"front: {len(self._front.records)}",
            f"hypervolume: {self._front.volume:.4f}",
            f"generation: {self._generation}",
        ]
        parts += [f"stopped early: {self._stopped}"] if self._stopped else []
        parts += [f"failed: {len(self._failures)}"] if self._failures else []
        return "  ".join(parts)

    def picture(self, width: int, height: int) -> list[RenderableType]:
        """Return the search as it is now.

        Args:
            width: columns there are.
            height: rows there are.
        """
        rows = [Row(8, Text(self._title, "bold", no_wrap=True, overflow="ellipsis")), *self._rows()]
        shown = fitting(rows, height)
        room = height - len(shown) - 2  # a blank row and the table's head
        if room >= min(2, len(self._front.records)) > 0:
            shown += [Text(), self._table(_spread(self._front.records, room), width)]
        return shown

    def _rows(self) -> list[Row]:
        left = span_text(self._pace.left(self._budget - self._ended))
        rows = [Row(0, bar(self._ended, self._budget, f"{self._ended}/{self._budget} evaluations"))]
        if self._pace.rate:
            pace = f"{left} left   {rate_text(self._pace.rate)}   {span_text(self.seconds)} so far"
            rows.append(Row(1, said("time", pace)))
        else:
            what = (
                "the first candidates are evaluated" if self._now or self.evaluated else "models and tasks are opened"
            )
            rows.append(Row(1, said("time", f"{span_text(self.seconds)} so far: {what}")))
        if self._ended:
            ago = self._ended - self._grew
            grew = "grew just now" if not ago else f"grew {count(ago, 'evaluation')} ago"
            size = f"{count(len(self._front.records), 'trial')} of {self._ended}"
            volume = f"   hypervolume {self._front.volume:.4f}, {grew}" if self._front.volume else ""
            rows.append(Row(2, said("front", size + volume)))
            rows.append(Row(4, said("generation", self._phase())))
        if self._best:
            best = "   ".join(f"{task} {value:.3f}" for task, value in self._best.items())
            rows.append(Row(5, said("best score", best)))
        if self._stopped:
            rows.append(Row(6, said("stopped", f"{self._stopped} early, beaten by the front")))
        if self._failures:
            first, *others = self._failures.told(MOST_REASONS)
            rows.append(Row(3, said(f"failed {len(self._failures)}", first, "yellow")))
            rows += [Row(7, said("", each, "yellow")) for each in others]
        if self._now is not None and self._pace.rate and self._clock() - self._now[1] > LONG:
            number, since = self._now
            rows.append(Row(6, said("now", f"trial {number}, for {span_text(self._clock() - since)}")))
        rows += [Row(7, said("", text)) for text in self._said[-2:]]
        return rows

    def _phase(self) -> str:
        """Return the generation, and the pruning ratio if there is one."""
        generation = self._generation
        if self._schedule is None:
            return str(generation)
        if not generation:
            return "0, the first population"
        if not isinstance(self._schedule, Schedule):
            if not self._ratios:
                return f"{generation}, pruning ratio learned"
            drawn = tuple(self._ratios)
            spread = f"the last {len(drawn)} from {min(drawn):.2f} to {max(drawn):.2f}, median {median(drawn):.2f}"
            return f"{generation}, pruning ratio learned: {spread}"
        ratio = f"{generation}, pruning ratio {self._schedule(generation - 1):.2f}"
        if self._schedule.shape == "constant":
            return f"{ratio}, constant"
        cycle, into, length = self._schedule.cycle(generation - 1)
        return (
            f"{ratio} (cycle {cycle + 1}, step {into + 1:.0f} of {length:.0f}, climbing to {self._schedule.high:.2f})"
        )

    def _table(self, records: Sequence[TrialRecord], width: int) -> Table:
        """Return trials as a table, with as much of each as a width has room for."""
        for errors, tasks in ((True, self._tasks), (True, ()), (False, ())):
            table = front_table(records, self._objectives, tasks, errors=errors)
            if Measurement.get(self._console, self._console.options.update(width=10_000), table).maximum <= width:
                break
        return table


class CompareView:
    """Shows which searches of a comparison run and which have ended; use it as a context and as its listener.

    Args:
        config: the configuration.
        console: where to show; without a terminal it prints a line for every search that ends.
        show: whether to show anything at all.
        clock: seconds, from anywhere.
    """

    def __init__(self, config: Config, console: Console, show: bool = True, clock: Clock = time.monotonic) -> None:
        self._title = config.study.name
        self._total = len(jobs_of(config)) if config.compare is not None else 0
        self._console = console
        self._show = show
        self._clock = clock
        self._start = clock()
        self._done = 0
        self._gained = 0.0  # searches' worth of evaluations made in this session
        self._running: dict[str, tuple[float, Made | None]] = {}  # since when, and how far
        self._ended: list[str] = []
        self._failures = Failures()
        self._canvas = Canvas(console, self.picture) if show and console.is_interactive else None

    def __enter__(self) -> CompareView:
        self._start = self._clock()
        if self._canvas is not None:
            self._canvas.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._canvas is not None:
            self._canvas.__exit__(*exception)
            for line in self._ended:
                self._print(line)

    def __call__(self, event: Step | Made) -> None:
        """Take in one event of the comparison."""
        name = str(event.job)
        if isinstance(event, Made):
            since, before = self._running[name]
            self._gained += (event.new - (before.new if before is not None else 0)) / max(event.budget, 1)
            self._running[name] = since, event
            return
        self._done = event.done
        if event.what == "begins":
            self._running[name] = self._clock(), None
            return
        seconds = self._clock() - self._running.pop(name)[0]
        how = "" if event.what == "done" else f" failed: {event.what}"
        if how:
            self._failures.add(name, event.what)
        self._ended.append(f"{event.done}/{event.total}  {name}  {seconds:.0f} s{how}")
        if self._canvas is None and self._show:
            self._print(self._ended[-1])

    def _print(self, text: str) -> None:
        say(self._console, text)

    def picture(self, width: int, height: int) -> list[RenderableType]:
        """Return the comparison as it is now; see `SearchView.picture`."""
        now = self._clock()
        running = dict(self._running)
        far = self._done + sum(made.evaluations / max(made.budget, 1) for _, made in running.values() if made)
        seconds = now - self._start
        left = (self._total - far) * seconds / self._gained if self._gained else None
        rows = [Row(8, Text(f"comparison {self._title}", "bold", no_wrap=True, overflow="ellipsis"))]
        rows.append(Row(0, bar(far, self._total, f"{self._done}/{self._total} searches")))
        rows.append(Row(1, said("time", f"about {span_text(left)} left   {span_text(seconds)} so far")))
        if self._failures:
            first, *others = self._failures.told(MOST_REASONS)
            rows.append(Row(2, said(f"failed {len(self._failures)}", first, "yellow")))
            rows += [Row(6, said("", each, "yellow")) for each in others]
        for name, (_, made) in running.items():
            if made is None:
                rows.append(Row(4, bar(0, 1, "begins" if self._gained else "models and tasks are opened", name)))
            else:
                what = f"{made.evaluations}/{made.budget} evaluations"
                rows.append(Row(3, bar(made.evaluations, made.budget, what, name)))
        shown = fitting(rows, height)
        if (room := height - len(shown) - 1) > 0 and self._ended:
            shown += [Text(), *(Text(each[:width], "dim", no_wrap=True) for each in self._ended[-room:])]
        return shown


def _spread(records: Sequence[TrialRecord], most: int) -> list[TrialRecord]:
    """Return at most `most` records, evenly spread, both ends among them."""
    if len(records) <= most:
        return list(records)
    if most == 1:
        return [records[0]]
    return [records[round(i * (len(records) - 1) / (most - 1))] for i in range(most)]
