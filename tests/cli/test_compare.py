"""`sae-moo compare` on tiny models, whole."""

from __future__ import annotations

import csv
import json
import os
import pickle
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import call, config_for, refused, written

from sae_moo.config.document import Config
from sae_moo.config.sections import MethodSection
from sae_moo.errors import Hint, InputError, RunError
from sae_moo.explore.run import Run
from sae_moo.jobs import bench as bench_module
from sae_moo.jobs.bench import Bench
from sae_moo.jobs.compare import away, comparison
from sae_moo.jobs.compare.cells import Made, cells_of, finished
from sae_moo.jobs.compare.comparison import CellBegun, CellDone, compare
from sae_moo.jobs.search import search
from sae_moo.searchers.breeding import Operators
from sae_moo.study.folder import ComparisonFolder

METHODS = [
    "nsga2",
    {"name": "swarm, dense", "search": {"algorithm": "pso"}, "space": {"sparsity": 0.0}},
    "task-arithmetic",
]


@pytest.fixture
def config(here, tiny_folders):
    """A comparison of three methods over two seeds."""
    raw = config_for(tiny_folders)
    raw["search"] = {"population": 6, "evaluations": 9}
    raw["compare"] = {"methods": METHODS, "seeds": 2, "resamples": 100}
    (here / "compare.yaml").write_text(written(raw))
    return here / "compare.yaml"


def test_everything_that_is_promised(config, here):
    result = call("compare", "compare.yaml", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["split"], found["reference"], found["reference_point"]) == ("test", "nsga2", [0.0, 0.0])
    assert [(m["name"], m["seeds"]) for m in found["methods"]] == [
        ("nsga2", [0, 1]),
        ("swarm, dense", [0, 1]),
        ("task-arithmetic", [0]),
    ]
    nsga, swarm, once = found["methods"]
    assert nsga["evaluations"] == [9, 9]
    assert swarm["quantities"]["sparsity"]["values"] == [0.0, 0.0]
    assert nsga["quantities"]["accuracy"]["difference"] is None
    assert set(swarm["quantities"]["accuracy"]["difference"]) == {"mean", "low", "high", "p", "seeds"}
    assert once["quantities"]["accuracy"]["interval"] is None
    folder = here / "runs" / "tiny"
    assert {p.name for p in folder.iterdir()} == {
        "compare.json", "compare.csv", "compare.md", "compare.png", "nsga2-0", "nsga2-1", "swarm-dense-0", "swarm-dense-1", "task-arithmetic-0",
    }  # fmt: skip
    assert json.loads((folder / "compare.json").read_text()) == found
    rows = list(csv.DictReader((folder / "compare.csv").read_text().splitlines()))
    assert [(row["method"], row["seed"]) for row in rows] == [
        ("nsga2", "0"),
        ("nsga2", "1"),
        ("swarm, dense", "0"),
        ("swarm, dense", "1"),
        ("task-arithmetic", "0"),
    ]
    for row, value in zip(
        rows,
        [*nsga["quantities"]["hypervolume"]["values"], *swarm["quantities"]["hypervolume"]["values"]],
        strict=False,
    ):
        assert float(row["hypervolume"]) == pytest.approx(value, abs=1e-6)
    text = (folder / "compare.md").read_text()
    assert "| minus nsga2 |" in text
    assert "| swarm, dense | 2 | 9 |" in text


def test_the_numbers_are_those_of_evaluate_on_the_test_split(config, here):
    found = json.loads(call("compare", "compare.yaml", "--json").stdout)
    run = Run.open(here / "runs" / "tiny" / "nsga2-0")
    best = max(run.front(), key=lambda record: (record.values["facts"], record.evaluation.sparsity))
    export = call(
        "export", "runs/tiny/nsga2-0", "--trial", str(best.number), "--output", "exported", "--verify", "--json"
    )
    score = json.loads(export.stdout)["scores"]["test"]["facts"]["score"]
    assert found["methods"][0]["quantities"]["accuracy"]["values"][0] == pytest.approx(score, abs=1e-6)


def test_what_is_done_is_not_done_again_and_more_seeds_are_added(config, here, monkeypatch):
    assert call("compare", "compare.yaml").exit_code == 0
    asked = []
    monkeypatch.setattr(comparison, "run_cell", lambda cell, *more: asked.append(str(cell)))
    again = call("compare", "compare.yaml")
    assert (again.exit_code, asked) == (0, [])
    assert "minus nsga2" in again.stdout
    with pytest.raises(InputError, match=r"no run .*nsga2-2"):
        compare(Config.load("compare.yaml", ["compare.seeds=3"]))
    assert asked == ["nsga2, seed 2", "swarm, dense, seed 2"]


@pytest.fixture
def counted(monkeypatch):
    """What is worked out for searches, and the configurations whose experts are opened in this process."""
    worked_out, opened = [], []
    cell, open_bench = Config.cell, Bench.open
    monkeypatch.setattr(Config, "cell", lambda *given: worked_out.append(given) or cell(*given))
    monkeypatch.setattr(comparison.Bench, "open", lambda config: opened.append(config) or open_bench(config))
    return worked_out, opened


def test_every_search_is_worked_out_once_and_experts_are_opened_once(config, counted):
    worked_out, opened = counted
    parsed = Config.load(config, ["search.evaluations=6"])
    del worked_out[:]  # every method is checked once when it is read
    compare(parsed)
    cells = len(worked_out)
    assert cells == 3 * 2
    assert opened == [parsed]
    compare(parsed)
    assert (len(worked_out), len(opened)) == (2 * cells, 1), "nothing to do, nothing to open"


def test_an_unfinished_search_is_resumed(config, here):
    assert (
        call("search", "compare.yaml", "--set", "search.algorithm=nsga2").exit_code == 0
    )  # an ordinary run of that name
    listened = []
    parsed = Config.load("compare.yaml", ["study.name=other"])
    (cell, *_) = cells_of(parsed)
    short = Config.from_dict(
        {**cell.config.model_dump(mode="json", exclude_unset=True), "search": {"population": 6, "evaluations": 4}}, here
    )
    search(short, root=here / "runs" / "other")
    found = compare(parsed, listened.append)
    assert [each.evaluations for each in found.outcomes if each.method == "nsga2"] == [9, 9]
    steps = [type(event) for event in listened]
    assert (steps.count(CellBegun), steps.count(CellDone)) == (5, 5)
    made = [
        (event.evaluations, event.new, event.budget)
        for event in listened
        if str(getattr(event, "cell", "")) == str(cell) and isinstance(event, Made)
    ]
    assert made == [(4 + i, i, 9) for i in range(6)]


def test_a_smaller_budget_is_no_equal_one(config, here):
    call("compare", "compare.yaml")
    for _ in range(2):  # and again: nothing was written
        error = refused("compare", "compare.yaml", "--set", "search.evaluations=8")
    assert "nsga2, seed 0: runs/tiny/nsga2-0 holds 9 evaluations, the budget is 8; use another study.name" in error
    error = refused("compare", "compare.yaml", "--set", "annealing.high=0.5")
    assert "nsga2, seed 0: runs/tiny/nsga2-0: the study was made under other settings" in error
    assert "annealing.high: the study has 0.8, now it is 0.5" in error
    assert "give the comparison another study.name, or remove runs/tiny/nsga2-0" in error
    assert "--fresh" not in error


def test_apart_and_together_give_the_same_and_apart_tell_how_far_they_are(config, counted):
    worked_out, opened = counted
    parsed = {name: Config.load("compare.yaml", [f"study.name={name}", "compare.seeds=1"]) for name in ("one", "two")}
    together = compare(parsed["one"])
    del worked_out[:], opened[:]
    heard = []
    apart = compare(parsed["two"], heard.append, workers=2)
    assert (len(worked_out), opened) == (3, []), "worker processes open their own"
    for method in ("nsga2", "swarm, dense"):
        assert apart.methods[method]["hypervolume"].values == together.methods[method]["hypervolume"].values
        own = [event for event in heard if event.cell.method.name == method]
        assert [type(event) for event in own] == [CellBegun, *[Made] * 9, CellDone]
        assert [event.evaluations for event in own[1:-1]] == list(range(1, 10))
    compare(parsed["two"], workers=2)
    assert (len(worked_out), opened) == (2 * 3, []), "nothing to do"


def test_a_search_over_which_workers_die_fails_alone(config, here, monkeypatch):
    dying = here / "sitecustomize.py"  # found by every process started from here
    dying.write_text(
        "import sys, threading\n"
        "def watch():\n"
        "    import glob, os, time\n"
        "    while True:\n"
        "        time.sleep(0.005)\n"
        "        for lock in glob.glob(os.environ['TMPDIR'] + '/sae-moo-*/swarm-dense-0/search.lock'):\n"
        "            if open(lock).read().startswith(f'{os.getpid()}\\n'):\n"
        "                os.kill(os.getpid(), 9)\n"
        "threading.Thread(target=watch, daemon=True).start()\n"
    )
    (here / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(here / "tmp"))
    monkeypatch.setenv("PYTHONPATH", f"{here}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    result = call("compare", "compare.yaml", "--workers", "2", "--set", "compare.seeds=1", code=1)
    assert (
        "swarm, dense, seed 0: 2 workers were lost over it, the last one: its process was ended by SIGKILL"
        in result.stderr
    )
    assert (here / "runs" / "tiny" / "task-arithmetic-0" / "test.json").exists()


FULL = 9000
"""Bytes a file may have: a journal ends after some evaluations."""


def where_room_is_little() -> tuple[int, str]:
    """Compare in this process; return the exit code and what the command says."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (FULL, before[1]))
    try:
        said = call("compare", "compare.yaml", code=1).stderr.splitlines()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    return 1, "\n".join(line for line in said if line and "Loading weights" not in line)  # by transformers


def where_workers_have_little_room() -> tuple[int, str]:
    """Compare by workers, in processes of their own; return the exit code and all that they print on stderr."""
    command = [sys.executable, "-m", "sae_moo.cli.main", "compare", "compare.yaml", "--workers", "2"]
    limit = (FULL, resource.RLIM_INFINITY)
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )
    return done.returncode, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("compared", [where_room_is_little, where_workers_have_little_room])
def test_a_disk_without_room_is_one_line_that_names_search_and_place_and_the_search_goes_on(config, here, compared):
    code, said = compared()
    assert code == 1
    (line,) = said.splitlines()
    told = r"sae-moo: (.*), seed 0: (\S+)/([\w-]+/study\.journal): File too large; what was finished before is kept"
    alone = compared is where_room_is_little
    assert (re.fullmatch(told, line)[2] == "runs/tiny") == alone, "its own folder, or that of the worker"
    journal = Path("runs/tiny", re.fullmatch(told, line)[3])
    assert re.fullmatch(told, line)[1] in ("nsga2", "swarm, dense", "task-arithmetic")
    kept = journal.read_bytes()
    assert len(kept) <= FULL
    assert kept.endswith(b"\n"), "an entry is there whole or not at all"
    call("compare", "compare.yaml", "--set", "compare.seeds=1")
    assert journal.read_bytes().startswith(kept)
    assert [len(Run.open(f"runs/tiny/{name}-0").trials()) for name in ("nsga2", "swarm-dense")] == [9, 9]


def test_a_fault_of_ours_on_a_worker_is_told_with_its_name(config, monkeypatch):
    def faulty(*given):
        raise KeyError("somewhere")

    monkeypatch.setattr(away, "run_cell", faulty)
    parsed = Config.load(config)
    (cell, *_) = cells_of(parsed)
    desk = away._Desk(parsed, None)
    begin = away.Begin(cell.method, 0, (), None)
    news = pickle.loads(desk(pickle.dumps(begin)))
    assert news.ending == away.Ending("KeyError: 'somewhere'")


def test_a_search_with_a_space_that_has_nothing_left_to_try_is_finished(config, here, monkeypatch):
    run_dry(monkeypatch, after=7)
    call("compare", "compare.yaml", "--set", "compare.seeds=1")
    assert len(Run.open(here / "runs/tiny/nsga2-0").trials()) == 7
    asked = []
    monkeypatch.setattr(comparison, "run_cell", lambda cell, *more: asked.append(str(cell)))
    call("compare", "compare.yaml", "--set", "compare.seeds=1")
    assert asked == []


def test_a_finished_search_that_reads_features_is_not_finished_for_those_of_other_texts(config, here, monkeypatch):
    monkeypatch.setattr(bench_module, "features_of", lambda *arguments: None)
    run_dry(monkeypatch, after=1)
    changes = [
        "compare.seeds=1",
        "compare.methods=[nsga2, {name: first, search: {prescreening: {factor: 4, features: true}}}]",
    ]
    given = [word for change in changes for word in ("--set", change)]
    call("compare", "compare.yaml", *given)
    folder = ComparisonFolder(here / "runs" / "tiny")

    def left(*more):
        return [str(cell) for cell in cells_of(Config.load(config, [*changes, *more])) if not finished(cell, folder)]

    assert left() == []
    assert left("predict.listed=3") == []
    for changed in ("items=5", "tokens=99", "data=texts.txt"):
        assert left(f"predict.probes.{changed}") == ["first, seed 0"]


def run_dry(monkeypatch, after: int) -> None:
    from sae_moo.searchers.nsga import NsgaSearcher

    ask, asked = NsgaSearcher.ask, Counter()

    def until(self, n):
        asked[id(self)] += 1
        return ask(self, n) if asked[id(self)] <= after else []

    monkeypatch.setattr(NsgaSearcher, "ask", until)


def test_a_name_may_hold_what_tables_are_made_of(config, here):
    result = call("compare", "compare.yaml", "--set", "compare.methods.1.name='[dim]a|b'", "--set", "compare.seeds=1")
    assert "[dim]a|b" in result.stdout
    assert r"| \[dim\]a\|b | 1 |" in (here / "runs" / "tiny" / "compare.md").read_text()


def test_sections_that_a_method_does_not_read_are_left_out_for_it(config):
    changes = ["annealing.schedule=adaptive", "search.operators.stretch=0.1", "search.pace=steady-state"]
    parsed = Config.load(config, changes)
    cells = {method.name: parsed.cell(method, 0) for method in parsed.compare.named}
    assert cells["nsga2"].annealing.schedule == "adaptive"
    assert cells["nsga2"].search.operators.stretch == 0.1
    assert cells["swarm, dense"].schedule.schedule == "cosine"
    method = MethodSection(name="x", search={"operators": {"tilt": 0.1}})
    assert parsed.cell(method, 0).search.operators == Operators(stretch=0.1, tilt=0.1), "changed, not replaced"
    assert not hasattr(cells["swarm, dense"].search, "operators")


def test_a_search_that_fails_is_told_and_the_others_are_compared(config, here, monkeypatch):
    real = comparison.run_cell

    def failing(cell, *more):
        if cell.method.name == "swarm, dense":
            raise RunError("all 6 first candidates failed: not finite", Hint.ANEW)
        real(cell, *more)

    monkeypatch.setattr(comparison, "run_cell", failing)
    result = call("compare", "compare.yaml", code=1)
    assert "swarm, dense, seed 0: all 6 first candidates failed: not finite" in result.stderr
    assert "task-arithmetic" in result.stdout
    failed = json.loads((here / "runs" / "tiny" / "compare.json").read_text())["failed"]
    assert failed["swarm, dense, seed 1"] == "all 6 first candidates failed: not finite"


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ("compare.reference=nsga3", "compare.reference: expected a method, got 'nsga3' (did you mean 'nsga2'?)"),
        ("compare.methods.1.search.evaluations=5", "compare.methods[1].search.evaluations: every method has the same budget"),
        ("compare.methods.1.name=nsga2", "compare.methods[1]: expected every method once, with a name of its own, got 'nsga2' again"),
        ("compare.methods.1.search.algorithm=psso", "compare.methods[1]: swarm, dense: search.algorithm: expected a search algorithm, one of nsga2"),
        ("compare.methods.0=nsga", "compare.methods[0]: nsga: search.algorithm: expected a search algorithm, one of nsga2"),
        ("compare.methods.1.serch={}", "compare.methods[1].serch: no such key (did you mean 'search'?)"),
        ("tasks.0.test=0", "tasks[0].test: a comparison judges on the test split"),
        ("study.storage=sqlite:///x.db", "study.storage: a comparison keeps every search in a journal of its own"),
        ("compare.methods.0={name: x, search: {algorithm: [a]}}", "compare.methods[0]: x: search.algorithm: expected"),
        ("compare.methods.0=''", "compare.methods[0]: expected"),
        ("compare.seeds=0", "compare.seeds: expected greater than or equal to 1, got 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused(config, change, fault):
    result = call("compare", "compare.yaml", "--set", change, code=2)
    assert fault in result.stderr


def test_a_configuration_without_methods(here):
    result = call("compare", "c.yaml", code=2)
    assert "the configuration has no section compare; expected e.g. compare: {methods: [nsga2, pso]}" in result.stderr


LONGER = ["compare", "compare.yaml", "--set", "search.evaluations=40", "--set", "compare.seeds=1"]


def begun(journal: Path, still: Callable[[], bool]) -> None:
    """Wait until a search has some evaluations."""
    deadline = time.monotonic() + 120
    while not (journal.exists() and journal.stat().st_size > 12_000):
        assert time.monotonic() < deadline
        assert still()
        time.sleep(0.01)


@pytest.mark.slow
def test_interrupted_it_goes_on(config, here):
    def interrupt():
        begun(here / "runs/tiny/nsga2-0/study.journal", still=lambda: True)
        signal.raise_signal(signal.SIGINT)

    interrupter, before = threading.Thread(target=interrupt), signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it
    try:
        interrupter.start()
        stopped = call(*LONGER, code=130)
        interrupter.join()
    finally:
        signal.signal(signal.SIGINT, before)
    assert "the same command goes on" in stopped.stderr
    goes_on(here)


@pytest.mark.slow
def test_workers_killed_by_ctrl_c_go_on(config, here):
    process = subprocess.Popen(
        [sys.executable, "-m", "sae_moo.cli.main", *LONGER, "--workers", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs of a shell ignore it
    )
    begun(here / "runs/tiny/nsga2-0/study.journal", still=lambda: process.poll() is None)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "the same command goes on" in error
    assert "Traceback" not in error
    goes_on(here)


def goes_on(here: Path) -> None:
    made = len(Run.open(here / "runs/tiny/nsga2-0").trials())
    assert 0 < made < 40
    assert call(*LONGER).exit_code == 0
    assert len(Run.open(here / "runs/tiny/nsga2-0").trials()) == 40


STUDIES = sorted(path for path in Path(__file__).parents[2].glob("studies/*/*.yaml") if "compare:" in path.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_studies_run(study, tmp_path, monkeypatch):
    """Every comparison among the studies, at its smallest, where its models are at hand."""
    parsed = Config.load(study)
    if not all(source.startswith("zoo:") for source in (parsed.models.base, *parsed.models.experts.values())):
        pytest.skip("its models are not embedded")
    monkeypatch.chdir(tmp_path)
    result = call("compare", str(study), "--smoke", "--json")
    found = json.loads(result.stdout)
    assert found["study"] == f"{parsed.study.name}-smoke"
    assert [m["name"] for m in found["methods"]] == [m.name for m in parsed.compare.named]
    assert found["failed"] == {}


def test_smoke_is_small(config):
    small = Config.load(config, ["compare.methods.1.search.population=50"]).smoke()
    assert (small.study.name, small.search.population, small.search.evaluations) == ("tiny-smoke", 7, 10)
    assert [(task.search, task.test) for task in small.tasks] == [(8, 8), (6, 4)]
    assert small.compare.seeds == 1
    assert small.cell(small.compare.named[1], 0).search.population == 7
