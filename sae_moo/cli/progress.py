"""What a person sees while waiting for a search or a comparison: a picture in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from sae_moo.cli.attendance import Attendance, follow_words
from sae_moo.cli.display import front_table, say
from sae_moo.cli.pace import Clock, Speed, rate_text
from sae_moo.cli.rows import ScreenRow, bar, fitting, said
from sae_moo.cli.standing import Failures, Standing
from sae_moo.cli.terminal import Canvas
from sae_moo.config.document import Config
from sae_moo.explore.words import SPACES, clock_time, count
from sae_moo.jobs.compare.cells import Made
from sae_moo.jobs.compare.comparison import CellBegun, CellFailed, Milestone
from sae_moo.study.events import Arrived, Begun, Event, Exhausted, Finished, Opened, PutAside, Resumed, Spent
from sae_moo.study.executor import Crewed, WorkerLost
from sae_moo.study.record import Ended

LONG = 10.0  # s; an evaluation that lasts longer is told of while it lasts
PLAIN_SECONDS = (5.0, 60.0)  # between plain lines: at least, at most; a twentieth of the time so far in between
MOST_REASONS = 3  # of failures, in the picture


class SearchView:
    """Shows a search as it runs; use it as a context and as the study's listener.

    Args:
        config: the configuration.
        console: where to show; without a terminal it prints a plain line now and then.
        show: whether to show anything at all.
        clock: seconds, from anywhere.
    """

    def __init__(self, config: Config, console: Console, show: bool = True, clock: Clock = time.monotonic) -> None:
        self._algorithm = config.search.algorithm
        self._islands = config.study.islands is not None
        self._title = f"{config.study.name}: {self._algorithm}{SPACES[config.space_kind]}"
        self._standing = Standing(config)
        self._console = console
        self._show = show
        self._clock = clock
        self._pace = Speed(clock)
        self._now: dict[int, float] = {}  # the trials that are being evaluated, and since when; replaced, never changed
        self._attendance = Attendance(clock)
        self._counted = self._complete = False  # whether it was said how many workers there are, and that all are there
        self._lost = Failures()  # workers
        self._said: list[str] = []
        self._merging = ""
        self._begun = False
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
        so_far = self._standing
        self._canvas.__exit__(*exception)
        for text in self._said:
            self._print(text)
        for failures, what, became in ((self._lost, "worker", "lost"), (so_far.failures, "evaluation", "failed")):
            if failures:
                self._print(f"{count(len(failures), what)} {became}")
                for text in failures.told(MOST_REASONS):
                    self._print(f"  {text}")
        if any(exception) and so_far.ended:
            self._print(self.line())

    @property
    def seconds(self) -> float:
        """Wall time since the context was entered."""
        return self._clock() - self._start

    @property
    def evaluated(self) -> int:
        """Evaluations ended in this session."""
        return self._standing.ended - self._standing.replayed

    @property
    def earlier(self) -> str:
        """What to say of evaluations made before this session; nothing if there were none."""
        return f" ({self._standing.ended} with those of earlier sessions)" if self._standing.replayed else ""

    def __call__(self, event: Event) -> None:
        """Take in one event of the study."""
        match event:
            case Resumed():
                self._standing.replay(event.records)
                self._looked = self._standing.generation > 0
                again = count(self._standing.replayed, "evaluation")
                if self._standing.left <= 0:
                    spent = f"{self._standing.replayed:,} of {self._standing.budget:,} evaluations"
                    islands = "only what the other islands found since is taken over"
                    left = islands if self._islands else "there is nothing to do unless it is raised"
                    self._say(f"the budget is spent already, {spent}: {left}")
                if self._standing.inherited:
                    taken = count(self._standing.inherited, "trial")
                    self._say(f"taken over from other studies, in no budget: {taken}")
                if self._standing.replayed:
                    self._say(f"resumed: {again} replayed in {event.seconds:.2f} s")
            case Opened():
                self._merging = event.merging
            case PutAside():
                self._say(f"the earlier run was put aside: {event.folder}")
            case Crewed():
                self._attendance.take(event)
                if event.ready:
                    self._pace.begin()  # not while they open models
                if self._attendance.complete and not self._complete:
                    self._count()
            case WorkerLost():
                follows = follow_words(event)
                self._lost.add(f"{event.worker} ({follows})", event.why)
                if self._canvas is None and self._show:
                    self._print(f"{event.worker} was lost: {event.why}; {follows}")
            case Begun():
                if self._merging and self._canvas is None and not self._begun:  # not where nothing is evaluated
                    self._say(f"merging: {self._merging}")
                self._begun = True
                if not self._attendance.opening:
                    self._pace.begin()
                self._now = {**self._now, event.number: self._clock()}
                self._standing.generation = max(self._standing.generation, event.proposal.generation)
            case Exhausted():
                self._say(_why_it_ends(event, self._algorithm))
            case Spent():
                self._say(
                    f"the budget of {event.budget:,} forward tokens is spent after {event.evaluations} evaluations"
                )
            case Arrived():
                self._standing.take(event.record)
            case Finished():
                record = event.record
                self._pace.begin()
                self._pace.tick()
                self._now = {number: since for number, since in self._now.items() if number != record.number}
                if not self._counted:
                    self._count()
                new = self._standing.take(record)
                if record.generation == 1 and not self._looked:
                    self._look()
                if self._canvas is None and self._show:
                    if new:
                        self._print(f"trial {record.number} failed: {record.evaluation.reason}")
                    self._plain_line()

    def _look(self) -> None:
        """Say once, after the first generation, which tasks nobody solves anything of."""
        self._looked = True
        for task in self._standing.unsolved:
            self._say(
                f"task {task}: every candidate so far scores 0 on it; "
                "evaluate --samples shows what models are asked and answer"
            )

    def _count(self) -> None:
        """Say how many workers there are, without a terminal: once all are there, and before if some are late.

        They are late where the first candidate has ended without them.
        """
        if self._canvas is None and self._attendance.there():
            self._counted, self._complete = True, self._attendance.complete
            self._say(f"workers: {self._attendance.there()}")

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
        if now < self._next_line and self._standing.ended < self._standing.budget:
            return
        least, most = PLAIN_SECONDS
        self._next_line = now + min(most, max(least, self.seconds / 20))
        self._print(self.line())

    def line(self) -> str:
        """Return where the search stands, in one line."""
        so_far = self._standing
        rate, left = self._pace.rate, clock_time(self._pace.left(so_far.left))
        parts = [
            f"{so_far.ended}/{so_far.budget} evaluations",
            *([rate_text(rate).replace(" evaluations", ""), f"left {left}"] if rate else []),
            "best: " + " ".join(f"{task} {value:.3f}" for task, value in so_far.best.items()),
            f"front: {len(so_far.front.ranked)}",
            f"hypervolume: {so_far.volume:.4f}",
            f"generation: {so_far.generation}",
        ]
        parts += [f"forward tokens: {so_far.reading()}"] if so_far.reading() else []
        parts += [f"taken over: {so_far.inherited}"] if so_far.inherited else []
        parts += [f"stopped early: {so_far.stopped}"] if so_far.stopped else []
        parts += [f"failed: {len(so_far.failures)}"] if so_far.failures else []
        return "  ".join(parts)

    def picture(self, width: int, height: int) -> list[RenderableType]:
        """Return the search as it is now.

        Args:
            width: columns there are.
            height: rows there are.
        """
        rows = [ScreenRow(8, Text(self._title, "bold", no_wrap=True, overflow="ellipsis")), *self._rows()]
        shown = fitting(rows, height)
        room = height - len(shown) - 2  # a blank row and the table's head
        if room >= min(2, len(self._standing.front.ranked)) > 0:
            shown += [Text(), self._table(_spread(self._standing.front.ranked, room), width)]
        return shown

    def _rows(self) -> list[ScreenRow]:
        so_far, now = self._standing, self._now  # which the search may replace at any moment
        left = clock_time(self._pace.left(so_far.left))
        rows = [ScreenRow(0, bar(so_far.ended, so_far.budget, f"{so_far.ended}/{so_far.budget} evaluations"))]
        if self._pace.rate:
            pace = f"{left} left   {rate_text(self._pace.rate)}   {clock_time(self.seconds)} so far"
            rows.append(ScreenRow(1, said("time", pace)))
        else:
            what = "the first candidates are evaluated" if now or self.evaluated else "models and tasks are opened"
            what = "workers open models and tasks" if self._attendance.opening else what
            rows.append(ScreenRow(1, said("time", f"{clock_time(self.seconds)} so far: {what}")))
        if so_far.ended:
            ago = so_far.ended - so_far.grew
            grew = "grew just now" if not ago else f"grew {count(ago, 'evaluation')} ago"
            size = f"{count(len(so_far.front.ranked), 'trial')} of {so_far.ended}"
            volume = f"   hypervolume {so_far.volume:.4f}, {grew}" if so_far.volume else ""
            rows.append(ScreenRow(2, said("front", size + volume)))
            rows.append(ScreenRow(4, said("generation", so_far.phase())))
        if self._attendance.now is not None:
            rows.append(ScreenRow(5, said("workers", self._attendance.words())))
        if self._lost:
            rows.append(ScreenRow(6, said(f"lost {len(self._lost)}", self._lost.told(1)[0], "yellow")))
        if so_far.learned():
            rows.append(ScreenRow(6, said("generator", so_far.learned())))
        if so_far.best:
            best = "   ".join(f"{task} {value:.3f}" for task, value in so_far.best.items())
            rows.append(ScreenRow(5, said("best score", best)))
        if so_far.reading():
            rows.append(ScreenRow(6, said("tokens", so_far.reading())))
        if so_far.inherited:
            rows.append(ScreenRow(6, said("taken", f"{count(so_far.inherited, 'trial')} of other studies")))
        if so_far.stopped:
            rows.append(ScreenRow(6, said("stopped", f"{so_far.stopped} early, beaten by the front")))
        if so_far.failures:
            first, *others = so_far.failures.told(MOST_REASONS)
            rows.append(ScreenRow(3, said(f"failed {len(so_far.failures)}", first, "yellow")))
            rows += [ScreenRow(7, said("", each, "yellow")) for each in others]
        if self._merging:
            rows.append(ScreenRow(7, said("merging", self._merging)))
        if now and self._pace.rate:
            number, since = min(now.items(), key=lambda item: item[1])
            lasts = self._clock() - since
            if lasts > LONG:
                among = f", the longest of {len(now)}" if len(now) > 1 else ""
                rows.append(ScreenRow(6, said("now", f"trial {number}, for {clock_time(lasts)}{among}")))
        rows += [ScreenRow(7, said("", text)) for text in self._said[-2:]]
        return rows

    def _table(self, records: Sequence[Ended], width: int) -> Table:
        """Return trials as a table, with as much of each as a width has room for."""
        for errors, tasks in ((True, self._standing.tasks), (True, ()), (False, ())):
            table = front_table(records, self._standing.objectives, tasks, errors=errors)
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
        self._total: int | None = None  # until the first search begins
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

    def __call__(self, event: Milestone | Made) -> None:
        """Take in one event of the comparison."""
        name = str(event.cell)
        if isinstance(event, Made):
            since, before = self._running[name]
            self._gained += (event.new - (before.new if before is not None else 0)) / max(event.budget, 1)
            self._running[name] = since, event
            return
        self._done, self._total = event.done, event.total
        if isinstance(event, CellBegun):
            self._running[name] = self._clock(), None
            return
        seconds = self._clock() - self._running.pop(name)[0]
        how = ""
        if isinstance(event, CellFailed):
            how = f" failed: {event.why}"
            self._failures.add(name, event.why)
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
        left = (self._total - far) * seconds / self._gained if self._gained and self._total is not None else None
        rows = [ScreenRow(8, Text(f"comparison {self._title}", "bold", no_wrap=True, overflow="ellipsis"))]
        if self._total is None:
            rows.append(ScreenRow(0, bar(0, 1, "what is finished already is looked up")))
        else:
            rows.append(ScreenRow(0, bar(far, self._total, f"{self._done}/{self._total} searches")))
        rows.append(ScreenRow(1, said("time", f"about {clock_time(left)} left   {clock_time(seconds)} so far")))
        if self._failures:
            first, *others = self._failures.told(MOST_REASONS)
            rows.append(ScreenRow(2, said(f"failed {len(self._failures)}", first, "yellow")))
            rows += [ScreenRow(6, said("", each, "yellow")) for each in others]
        for name, (_, made) in running.items():
            if made is None:
                rows.append(ScreenRow(4, bar(0, 1, "begins" if self._gained else "models and tasks are opened", name)))
            else:
                what = f"{made.evaluations}/{made.budget} evaluations"
                rows.append(ScreenRow(3, bar(made.evaluations, made.budget, what, name)))
        shown = fitting(rows, height)
        if (room := height - len(shown) - 1) > 0 and self._ended:
            shown += [Text(), *(Text(each[:width], "dim", no_wrap=True) for each in self._ended[-room:])]
        return shown


def _why_it_ends(event: Exhausted, algorithm: str) -> str:
    """Return for people that a search ends before its budget does, why, and what would go on."""
    said = [f"nothing left to try after {event.evaluations:,} of {event.budget:,} evaluations"]
    if event.unproposed:
        said.append(
            f"{algorithm} has no further candidate for {event.unproposed:,} of search.evaluations; other settings or "
            "another algorithm may, in a study of another name"
        )
    if event.unrepaired:
        said.append(
            f"the front has no further member to repair for {event.unrepaired:,} of search.finish, since only what is "
            "pruned can be; more search.evaluations may find some"
        )
    return ": ".join([said[0], "; ".join(said[1:])] if said[1:] else said)


def _spread(records: Sequence[Ended], most: int) -> list[Ended]:
    """Return at most `most` records, evenly spread, both ends among them."""
    if len(records) <= most:
        return list(records)
    if most == 1:
        return [records[0]]
    return [records[round(i * (len(records) - 1) / (most - 1))] for i in range(most)]
