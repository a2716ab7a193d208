"""What a person sees while waiting, drawn at sizes that terminals have, by a clock that the test moves."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from itertools import pairwise

import pytest
from rich.console import Console, Group
from stand_ins import record, running

from sae_moo.cli.pace import Speed, rate_text
from sae_moo.cli.progress import CompareView, SearchView
from sae_moo.cli.standing import Failures
from sae_moo.config.document import Config
from sae_moo.explore.words import clock_time
from sae_moo.jobs.compare.cells import Made, cells_of
from sae_moo.jobs.compare.comparison import CellBegun, CellDone, CellFailed
from sae_moo.objectives import Evaluation
from sae_moo.recipe import Expert
from sae_moo.searchers.searcher import Proposal
from sae_moo.study.events import Begun, Exhausted, Finished, Opened, Resumed
from sae_moo.study.executor import Crewed, WorkerLost

SIZES = [(200, 50), (100, 30), (60, 15), (30, 8), (20, 3), (10, 1)]
CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def config(**changes) -> Config:
    raw = {
        "study": {"name": "s"},
        "models": {"base": "zoo:base", "experts": {"a": "zoo:math", "b": "zoo:logic"}},
        "tasks": [{"name": name, "data": "x.jsonl", "kind": "likelihood"} for name in "xy"],
        "objectives": [{"mean": ["x", "y"], "name": "accuracy"}, "sparsity"],
        "search": {"population": 4, "evaluations": 100},
    }
    return Config.from_dict(raw | changes, ".")


def terminal(width: int = 100, height: int = 30, **more) -> Console:
    settings = {"force_terminal": True, "color_system": None, "_environ": {"TERM": "xterm"}} | more
    settings |= {"markup": False, "emoji": False, "highlight": False}  # as `frame.make_console` has it
    return Console(file=io.StringIO(), width=width, height=height, **settings)


def shown(view, width: int = 100, height: int = 30) -> list[str]:
    console = terminal(width, height, force_terminal=False)
    console.print(Group(*view.picture(width, height)))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def ended(number: int, accuracy: float = 0.5, zeros: float = 0.0, generation: int = 0, **more) -> Finished:
    one = record(number, accuracy, zeros)
    return Finished(replace(one, stderr={"accuracy": 0.02, "sparsity": 0.0}, generation=generation, **more))


def failed(number: int, reason: str) -> Finished:
    evaluation = Evaluation(Expert("a"), reason=reason)
    return ended(number, values={}, feasible=False, evaluation=evaluation)


def begun(number: int, generation: int = 0) -> Begun:
    return Begun(number, Proposal(Expert("a"), generation=generation))


def search(clock: Clock, count: int = 20, seconds: float = 2.0, **changes) -> SearchView:
    """A search that has made so many evaluations, a better one each time, four a generation."""
    view = SearchView(config(**changes), terminal(), clock=clock)
    clock.now += 60  # of opening models
    for i in range(count):
        view(begun(i, i // 4))
        clock.now += seconds
        view(ended(i, 0.9 - i / 100, i / 50, i // 4))
    return view


def test_what_there_is_to_know_while_waiting():
    clock = Clock()
    view = search(clock)
    view(failed(20, "out of\nmemory: [red]x"))
    clock.now += 1
    lines = shown(view)
    assert lines[0] == "s: nsga2 over lineages"
    assert lines[1].endswith("21/100 evaluations")
    assert lines[2] == "time        2:29 left   31.5 evaluations/min   1:41 so far"
    assert lines[3] == "front       20 trials of 21   hypervolume 0.3040, grew 1 evaluation ago"
    assert lines[4] == "generation  4, pruning ratio 0.80, constant"
    assert lines[5] == "best score  x 0.900   y 0.900"
    assert lines[6] == "failed 1    trial 20: out of memory: [red]x"
    assert lines[8].split() == ["trial", "accuracy", "sparsity", "x", "y"]
    assert lines[9].split() == ["0", "0.900", "±", "0.020", "0.000", "0.900", "0.900"]
    assert lines[28].split()[0] == "19"
    assert len(lines) == 29


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_a_picture_fits_its_terminal(width, height):
    view = search(Clock(), 60)
    for number in range(60, 66):
        view(failed(number, f"reason {number} " * 40))
    view(Exhausted(66, 100))
    view(Opened("fused Triton kernels on cuda:0 (a card whose name is as long as can be) " * 3))
    lines = shown(view, width, height)
    assert len(lines) <= height, lines
    assert max(map(len, lines)) <= width, lines
    assert "66/100"[: width - 2] in lines[0] + lines[min(1, height - 1)]
    if height >= 3:
        assert any(re.match("time +1:00", line) for line in lines), lines
    if height >= 8:
        assert any(line.startswith("failed 6") for line in lines)
    if height >= 15:
        numbers = [int(line.split()[0]) for line in lines if re.match(r" +\d+ +0\.", line)]
        assert (numbers[0], numbers[-1]) == (0, 59), "both ends of the front"
        assert len(lines) == height, "as much of the front as there is room for"


def test_narrow_terminals_leave_columns_out_and_never_fold_them():
    view = search(Clock(), 3)
    heads = {width: next(line for line in shown(view, width) if "trial " in line[:7]) for width in (60, 36, 30)}
    assert [len(head.split()) for head in heads.values()] == [5, 3, 3]
    assert any("±" in line for line in shown(view, 36))
    assert not any("±" in line for line in shown(view, 30))


def test_nothing_is_told_that_is_not_known_yet():
    clock = Clock()
    view = SearchView(config(), terminal(), clock=clock)
    clock.now += 3
    assert shown(view)[2:] == ["time        0:03 so far: models and tasks are opened"]
    view(begun(0))
    clock.now += 2
    assert shown(view)[2:] == ["time        0:05 so far: the first candidates are evaluated"]
    view(failed(0, "no"))
    text = "\n".join(shown(view))
    assert "0 trials of 1\n" in text
    assert "best" not in text
    assert "hypervolume" not in text


def test_what_merges_is_told_once_it_is_known_in_the_picture_or_in_a_line():
    view = search(Clock(), 3)
    assert not any(line.startswith("merging") for line in shown(view))
    view(Opened("plain torch on mps: the fused kernels are for CUDA"))
    assert "merging     plain torch on mps: the fused kernels are for CUDA" in shown(view)
    console = terminal(force_terminal=False)
    with SearchView(config(), console) as view:
        view(Opened("compiled loops (numba) on cpu"))
        assert console.file.getvalue() == "", "there may be nothing to evaluate"
        view(begun(0))
        view(begun(1))
    assert console.file.getvalue() == "merging: compiled loops (numba) on cpu\n"


def test_rate_and_time_left_are_of_this_session():
    clock = Clock()
    view = SearchView(config(), terminal(), clock=clock)
    clock.now += 30
    earlier = [ended(i).record for i in range(80)]
    view(Resumed([*earlier, running(record(80, 0, 0))], 0.25))
    assert view.evaluated == 0
    assert any(line.strip() == "resumed: 80 evaluations replayed in 0.25 s" for line in shown(view))
    view(begun(80, 20))
    clock.now += 4
    view(ended(80, generation=20))
    assert shown(view)[2] == "time        1:16 left   15.0 evaluations/min   0:34 so far"
    assert (view.evaluated, view.earlier) == (1, " (81 with those of earlier sessions)")


def test_pace_follows_a_change_and_counts_down():
    clock = Clock()
    pace = Speed(clock)
    assert (pace.rate, pace.left(5)) == (0.0, None)
    pace.begin()
    for _ in range(60):
        clock.now += 10
        pace.tick()
    assert pace.rate == pytest.approx(0.1)
    assert pace.left(6) == pytest.approx(60)
    clock.now += 4
    assert pace.left(6) == pytest.approx(56)
    for _ in range(50):
        clock.now += 1
        pace.tick()
    assert 0.9 < pace.rate < 1.0
    clock.now += 1000  # one that hangs
    assert pace.rate < 0.05


def test_a_long_evaluation_is_told_of():
    clock = Clock()
    view = search(clock, 3)
    view(begun(3))
    clock.now += 9
    assert not any(line.startswith("now") for line in shown(view))
    clock.now += 66
    assert "now         trial 3, for 1:15" in shown(view)


def crewed(size: int, ready: int, busy: int, waiting: int = 0, lost: int = 0, hosts: int = 1) -> Crewed:
    """So many workers, on graphics cards of so many machines."""
    facts = {f"worker {i}": {"device": "cuda", "host": f"node-{i % hosts}", "process": str(i)} for i in range(ready)}
    return Crewed(size, facts, busy, waiting, lost)


def row(view, label: str) -> str:
    """What a row of the picture says; nothing where it is not there."""
    return next((line[12:] for line in shown(view) if line.startswith(label)), "")


def test_a_row_tells_of_workers_and_how_busy_they_were():
    clock = Clock()
    view = SearchView(config(), terminal(), clock=clock)
    assert row(view, "workers") == ""
    view(crewed(2, 0, 0, waiting=2))
    view(begun(0))
    view(begun(1))
    clock.now += 100
    assert row(view, "time") == "1:40 so far: workers open models and tasks"
    assert row(view, "workers") == "0 of 2   2 starting   2 evaluations waiting"
    view(crewed(2, 1, 1, waiting=1))
    clock.now += 10
    assert row(view, "workers") == "1 of 2 on cuda   1 busy, 100% of their time   1 starting   1 evaluation waiting"
    view(crewed(2, 2, 2, hosts=2))
    clock.now += 5
    view(crewed(2, 2, 1, lost=1, hosts=2))
    clock.now += 10
    assert row(view, "workers") == "2 on cuda on 2 machines   1 busy, 75% of their time   1 lost"
    clock.now += 20
    assert row(view, "workers").startswith("2 on cuda on 2 machines   1 busy, 62%"), "while it is looked at"


def test_the_pace_is_that_of_workers_once_they_are_there():
    clock = Clock()
    view = SearchView(config(), terminal(), clock=clock)
    view(crewed(2, 0, 0, waiting=1))
    view(begun(0))
    clock.now += 1000
    view(crewed(2, 1, 1))
    clock.now += 4
    view(ended(0))
    assert "15.0 evaluations/min" in row(view, "time")


def test_of_several_evaluations_the_longest_is_told():
    clock = Clock()
    view = search(clock, 3)
    for number in (3, 4, 5):
        view(begun(number))
        clock.now += 20
    assert row(view, "now") == "trial 3, for 1:00, the longest of 3"
    view(ended(3))
    assert row(view, "now") == "trial 4, for 0:40, the longest of 2"
    view(ended(4))
    assert row(view, "now") == "trial 5, for 0:20"


def loss(worker: int, number: int | None = None, again: bool = True, why: str = "its process was killed") -> WorkerLost:
    return WorkerLost(f"worker {worker}", why, number, again, replaced=True)


def test_lost_workers_are_told_by_reason_with_what_follows():
    view = search(Clock(), 3)
    for event in (loss(1, 12), loss(2), loss(3, 13, again=False), loss(4, why="the machine is gone")):
        view(event)
    assert row(view, "lost 4") == "worker 4 (another begins in its place): the machine is gone"
    console = terminal(100, 20)
    with SearchView(config(), console) as view:
        for event in (loss(1, 12), loss(2), loss(3, 13, again=False), loss(4, why="the machine is gone")):
            view(event)
    after = CODES.sub("", console.file.getvalue().split("\x1b[?1049l")[1])
    assert after.splitlines() == [
        "4 workers lost",
        "  worker 4 (another begins in its place): the machine is gone",
        "  worker 3 (trial 13 has failed): its process was killed (and 2 more)",
    ]


def test_without_a_terminal_workers_are_told_of_and_losses_one_by_one():
    console = terminal(200, force_terminal=False)
    with SearchView(config(), console) as view:
        view(crewed(2, 0, 0, waiting=1))
        view(begun(0))
        view(crewed(2, 1, 1, waiting=1))
        assert console.file.getvalue() == "", "the others come"
        view(crewed(2, 2, 2))
        view(loss(1, 0))
        view(replace(loss(2), replaced=False))
        view(crewed(2, 2, 2))
    assert console.file.getvalue().splitlines() == [
        "workers: 2 on cuda",
        "worker 1 was lost: its process was killed; trial 0 goes to another",
        "worker 2 was lost: its process was killed; no other begins in its place",
    ]
    console = terminal(200, force_terminal=False)
    with SearchView(config(), console) as view:
        view(crewed(8, 3, 3))
        view(ended(0))
    assert console.file.getvalue().startswith("workers: 3 of 8 on cuda\n1/100 evaluations")


def test_workers_that_come_after_the_first_candidate_has_ended_are_told_of_once_they_are_all_there():
    console = terminal(200, force_terminal=False)
    with SearchView(config(), console) as view:
        view(crewed(3, 1, 1))
        view(ended(0))
        view(crewed(3, 2, 2))
        view(ended(1))
        view(crewed(3, 3, 3))
        view(ended(2))
        view(crewed(3, 2, 2, lost=1))
        view(crewed(3, 3, 3, lost=1))
    lines = console.file.getvalue().splitlines()
    assert [line for line in lines if line.startswith("workers")] == ["workers: 1 of 3 on cuda", "workers: 3 on cuda"]


@pytest.mark.parametrize(
    ("annealing", "expected"),
    [
        ({"schedule": "sawtooth", "high": 0.6, "period": 2}, "4, pruning ratio 0.15 (cycle 2, step 2 of 4, climbing to 0.60)"),
        ({"schedule": "adaptive", "high": 0.6}, "4, pruning ratio learned: the last 2 from 0.20 to 0.40, median 0.30"),
    ],
)  # fmt: skip
def test_the_phase_of_annealing(annealing, expected):
    clock = Clock()
    view = search(clock, annealing=annealing)
    for number, ratio in ((20, 0.2), (21, 0.4)):
        view(ended(number, generation=4, params={"annealed ratio": ratio}))
    assert f"generation  {expected}" in shown(view)
    assert "generation  0, the first population" in shown(search(clock, 2, annealing=annealing))


def test_before_the_first_child_no_ratio_has_been_drawn():
    view = search(Clock(), 4, annealing={"schedule": "adaptive", "high": 0.6})
    view(begun(4, generation=1))
    assert "generation  1, pruning ratio learned" in shown(view)


def test_how_a_generator_stands():
    view = search(Clock(), 3)
    assert not any(line.startswith("generator") for line in shown(view))
    losses = {"cycle loss": 0.1638, "pull loss": 0.0699}
    view(
        ended(3, params={"generator share": 0.5, "spread of offspring": 0.189, "spread of population": 0.425, **losses})
    )
    view(ended(4, params={"generator share": 0.728}))
    scatter = "spread 0.19 of the population's 0.42"
    assert f"generator   share 0.73   {scatter}   cycle loss 0.164   pull loss 0.070" in shown(view)


def test_what_does_not_anneal_has_a_generation_only():
    over = {"search": {"algorithm": "pso", "population": 4, "evaluations": 100}, "space": {"kind": "coefficients"}}
    assert "generation  4" in shown(search(Clock(), **over))


def test_failures_are_told_by_reason():
    found = Failures()
    assert [found.add(f"trial {i}", why) for i, why in enumerate(("a", "b\n  c", "a", "d"))] == [
        True,
        True,
        False,
        True,
    ]
    assert len(found) == 4
    assert found.told(2) == ["trial 3: d", "trial 2: a (and 1 more)"]


def test_the_terminal_is_given_back_and_what_was_said_comes_after():
    console = terminal(80, 20)
    with pytest.raises(KeyboardInterrupt), SearchView(config(), console) as view:  # noqa: PT012
        view(begun(0))
        view(ended(0))
        view(failed(1, "no"))
        view(Exhausted(2, 100))
        raise KeyboardInterrupt
    drawn, after = console.file.getvalue().split("\x1b[?1049l")
    assert drawn.startswith("\x1b[?1049h")
    assert "\x1b[?25h" in drawn[-20:] + after[:20], "the cursor"
    assert CODES.sub("", after).splitlines()[:3] == [
        "nothing left to try after 2 of 100 evaluations",
        "1 evaluation failed",
        "  trial 1: no",
    ]
    assert after.splitlines()[3].startswith("2/100 evaluations  ")


def test_why_a_search_ends_early_is_said_with_what_would_go_on():
    console = terminal(400, force_terminal=False)
    with SearchView(config(), console) as view:
        view(Exhausted(88, 100, unproposed=9, unrepaired=3))
        view(Exhausted(97, 100, unrepaired=3))
    first, second = console.file.getvalue().splitlines()[:2]
    assert first.startswith("nothing left to try after 88 of 100 evaluations: nsga2 has no further candidate for 9 of ")
    assert "in a study of another name; the front has no further member to repair for 3 of search.finish" in first
    assert "97 of 100 evaluations: the front has no further member to repair for 3 of search.finish" in second


@pytest.mark.parametrize("settings", [{"force_terminal": False}, {"_environ": {"TERM": "dumb"}}])
def test_pipes_and_dumb_terminals_get_lines_at_a_calm_rate(settings):
    clock, console = Clock(), terminal(400, **settings)
    with SearchView(config(search={"population": 4, "evaluations": 4000}), console, clock=clock) as view:
        for i in range(4000):
            view(begun(i))
            clock.now += 1
            view(failed(i, "no") if i % 10 == 5 else ended(i, generation=i // 4))
    text = console.file.getvalue()
    assert "\x1b" not in text
    lines = text.splitlines()
    assert lines[0].startswith(
        "1/4000 evaluations  1.0/s  left 1:06:39  best: x 0.500 y 0.500  front: 1  hypervolume: 0.0000"
    )
    assert lines[-1].startswith("4000/4000 evaluations")
    assert lines[-1].endswith("failed: 400")
    assert [line for line in lines if "failed:" in line[:20]] == ["trial 5 failed: no"], "a reason is told once"
    made = [int(line.split("/")[0]) for line in lines if line[0].isdigit()]
    gaps = [after - before for before, after in pairwise(made)]
    assert (gaps[0], max(gaps)) == (5, 60)
    assert len(made) < 120


def test_nothing_is_shown_where_nothing_is_asked_for(capsys):
    console = terminal()
    with SearchView(config(), console, show=False) as view:
        view(begun(0))
        view(failed(0, "no"))
        view(Exhausted(1, 100))
    assert console.file.getvalue() == ""
    assert view.evaluated == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "--:--"), (0.4, "0:00"), (59.6, "1:00"), (3599.4, "59:59"), (3600, "1:00:00"), (200000, "2.3 days")],
)
def test_spans(seconds, text):
    assert clock_time(seconds) == text


@pytest.mark.parametrize(("rate", "text"), [(4.2, "4.2 evaluations/s"), (0.5, "30.0 evaluations/min"), (0.01, "36.0 evaluations/h")])  # fmt: skip
def test_rates(rate, text):
    assert rate_text(rate) == text


def comparison(clock: Clock, console: Console) -> tuple[CompareView, list]:
    section = {"methods": ["nsga2", {"name": "swarm", "search": {"algorithm": "pso"}}], "seeds": 2}
    compared = config(compare=section)
    return CompareView(compared, console, clock=clock), cells_of(compared)


def test_a_comparison_shows_what_runs_and_how_far_it_is():
    clock = Clock()
    view, (one, two, three, _) = comparison(clock, terminal())
    assert shown(view)[1].endswith("what is finished already is looked up")
    view(CellBegun(one, 0, 4))
    assert "models and tasks are opened" in shown(view)[3]
    view(CellBegun(two, 0, 4))
    view(Made(one, 50, 0, 100))  # of an earlier session
    for i in range(50):
        clock.now += 1
        view(Made(one, 51 + i, 1 + i, 100))
    view(Made(two, 25, 25, 100))
    view(CellDone(one, 1, 4))
    view(CellBegun(three, 1, 4))
    lines = shown(view)
    assert lines[0] == "comparison s"
    assert lines[1].endswith("1/4 searches")
    assert lines[2] == "time        about 3:03 left   0:50 so far"
    assert re.fullmatch(r"swarm, seed 0 +━+ +25/100 evaluations", lines[3])
    assert lines[4].split() == ["nsga2,", "seed", "1", "begins"]
    assert lines[-1] == "1/4  nsga2, seed 0  50 s"
    view(CellFailed(two, 2, 4, "no memory"))
    assert "failed 1    swarm, seed 0: no memory" in shown(view)
    for width, height in SIZES:
        lines = shown(view, width, height)
        assert len(lines) <= height
        assert max(map(len, lines)) <= width


def test_a_comparison_in_a_pipe_says_a_line_for_every_search_that_ends():
    clock, console = Clock(), terminal(400, force_terminal=False)
    view, (one, two, *_) = comparison(clock, console)
    with view:
        for cell in (one, two):
            view(CellBegun(cell, 0, 4))
            view(Made(cell, 1, 1, 100))
        clock.now += 7
        view(CellDone(one, 1, 4))
        view(CellFailed(two, 2, 4, "[x] died"))
    assert console.file.getvalue() == "1/4  nsga2, seed 0  7 s\n2/4  swarm, seed 0  7 s failed: [x] died\n"
