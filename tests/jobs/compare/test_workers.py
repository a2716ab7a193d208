"""Searches of a comparison on workers: what they are given, what is kept of them, and what becomes of lost ones."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import pytest
from crews import ScriptedCrew

import sae_moo as sm
from sae_moo.errors import InputError, Interrupted
from sae_moo.jobs.compare import comparison
from sae_moo.jobs.compare.away import Away, Begin, Ending, News
from sae_moo.jobs.compare.cells import cells_of
from sae_moo.jobs.compare.workers import LOSSES, run_apart
from sae_moo.study.copies import Piece
from sae_moo.study.folder import JOURNAL, ComparisonFolder

LENGTH = 4
"""Evaluations of a search; with each its journal gets a line."""
WHOLE = b"".join(b"%d\n" % i for i in range(LENGTH))


def configured(**executor) -> sm.Config:
    return sm.Config.from_dict(
        {
            "study": {"name": "compared"},
            "models": {"base": "zoo:base", "experts": {"math": "zoo:math", "lingua": "zoo:lingua"}, "device": "cpu"},
            "tasks": [{"name": "zoo_math", "search": 12, "test": 5}, {"name": "zoo_lingua", "search": 12, "test": 5}],
            "objectives": [{"mean": ["zoo_math", "zoo_lingua"], "name": "accuracy"}, "sparsity"],
            "search": {"population": 4, "evaluations": 10},
            "compare": {"methods": ["nsga2", "random"], "seeds": 2},
            "executor": executor,
        }
    )


CELLS = cells_of(configured())
NAMES = [str(cell) for cell in CELLS]


class Desk:
    """A worker whose search is at the line after those it was begun with, and makes one with each letter.

    Args:
        endings: name of a search -> how it ends, once it is begun; by itself otherwise.
        begun: gets the name of every search that is begun, and what its journal held.
    """

    def __init__(self, endings, begun) -> None:
        self.endings, self.begun = endings, begun

    def __call__(self, letter: bytes) -> bytes:
        order = pickle.loads(letter)
        if isinstance(order, Begin):
            self.name = f"{order.method.name}, seed {order.seed}"
            journal = b"".join(piece.content for piece in order.pieces if piece.name == JOURNAL)
            self.begun.append((self.name, journal))
            self.made = self.before = journal.count(b"\n")
            if self.name in self.endings:
                return pickle.dumps(News((), ending=self.endings[self.name]))
        line = b"%d\n" % self.made
        piece = Piece(JOURNAL, line, self.made * len(line))
        self.made += 1
        ending = Ending() if self.made == LENGTH else None
        return pickle.dumps(News((piece,), ((self.made, self.made - self.before, LENGTH),), ending))


class Compared(ScriptedCrew):
    """Workers of a comparison, the one that waits longest first, and all that is heard of it.

    Attributes:
        told: events in their order.
        begun: searches that workers began, and what their journals held.
        folder: of the comparison.
    """

    def __init__(self, path, size=2, endings=None, **more) -> None:
        self.told, self.begun_with = [], []
        self.folder = ComparisonFolder(path / "compared")
        stands = lambda: (Desk(endings or {}, self.begun_with), {})  # noqa: E731
        super().__init__(size, order=lambda count: 0, stands=stands, **more)

    def run(self, cells=CELLS) -> None:
        run_apart(
            cells,
            self.folder,
            self,
            lambda cell: self.told.append(("begins", str(cell))),
            lambda cell, why: self.told.append(("ended", str(cell), why)),
            lambda made: self.told.append(("made", str(made.cell), made.evaluations, made.new, made.budget)),
        )

    def search(self, place: int):
        return self.folder.search(CELLS[place].config.study.name)

    def copied(self, place: int) -> bytes:
        return self.search(place).journal.read_bytes()

    def of(self, kind: str) -> list:
        return [event[1] for event in self.told if event[0] == kind]


def alone(name: str) -> list:
    """What is told of a search that nothing happens to."""
    made = [("made", name, i, i, LENGTH) for i in range(1, LENGTH + 1)]
    return [("begins", name), *made, ("ended", name, None)]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_every_search_is_run_once_in_its_order_and_told_of_as_by_one_process(tmp_path, size):
    crew = Compared(tmp_path, size)
    crew.run()
    assert crew.of("begins") == [name for name, _ in crew.begun_with] == NAMES
    for name in NAMES:
        assert [event for event in crew.told if event[1] == name] == alone(name)
    if size == 1:
        assert crew.told == [event for name in NAMES for event in alone(name)]
    assert [crew.copied(i) for i in range(4)] == [WHOLE] * 4
    assert not any(crew.search(i).busy for i in range(4))
    assert (crew.begun, crew.closed) == (size, 1)


def test_the_search_of_a_lost_worker_goes_on_elsewhere_from_what_was_copied(tmp_path):
    crew = Compared(tmp_path, 1)
    hear = crew.hear

    def third_lost(seconds=None):
        if len(crew.of("made")) == 2 and crew.begun == 1:
            crew.losing = ["w1"]
        return hear(seconds)

    crew.hear = third_lost
    crew.run()
    assert crew.begun_with[:2] == [(NAMES[0], b""), (NAMES[0], WHOLE[:4])]
    assert crew.of("begins") == NAMES, "it is told of once"
    assert crew.of("ended") == NAMES
    assert [event[2:] for event in crew.told if event[:2] == ("made", NAMES[0])] == [
        (1, 1, 4),
        (2, 2, 4),
        (3, 1, 4),
        (4, 2, 4),
    ]
    assert [crew.copied(i) for i in range(4)] == [WHOLE] * 4


def test_a_search_over_which_two_workers_are_lost_has_failed_and_the_others_go_on(tmp_path):
    crew = Compared(tmp_path, 1)
    crew.losing = ["any"] * LOSSES
    crew.run()
    assert [event for event in crew.told if event[1] == NAMES[0]] == [
        ("begins", NAMES[0]),
        ("ended", NAMES[0], "2 workers were lost over it, the last one: killed"),
    ]
    for name in NAMES[1:]:
        assert [event for event in crew.told if event[1] == name] == alone(name)
    assert crew.begun == 1 + LOSSES


def test_a_search_that_fails_is_told_of_and_its_worker_gets_the_next_one(tmp_path):
    crew = Compared(tmp_path, 1, endings={NAMES[1]: Ending("20 evaluations failed")})
    crew.run()
    assert [event[1:] for event in crew.told if event[0] == "ended"] == [
        (name, "20 evaluations failed" if name == NAMES[1] else None) for name in NAMES
    ]


def test_wrong_input_of_a_search_ends_the_comparison(tmp_path):
    crew = Compared(tmp_path, 2, endings={NAMES[1]: Ending(error=InputError("items of a are others"))})
    with pytest.raises(InputError, match=r"^items of a are others$"):
        crew.run()
    assert (crew.of("begins"), crew.of("ended"), crew.closed) == (NAMES[:2], [], 1)
    assert not any(crew.search(i).busy for i in range(4))


def test_on_ctrl_c_what_is_on_its_way_is_copied_and_the_folders_are_free(tmp_path):
    crew = Compared(tmp_path, 2)
    hear, seconds, held = crew.hear, [], []

    def stopped(longest=None):
        if len(crew.of("made")) < 3:
            return hear(longest)
        if not held:
            held.extend(crew.search(i).busy for i in range(3))
            raise KeyboardInterrupt
        seconds.append(longest)
        return hear(longest)

    crew.hear = stopped
    with pytest.raises(KeyboardInterrupt):
        crew.run()
    assert held == [True, True, False], "held as long as a worker has the search"
    assert crew.of("made") == [NAMES[0], NAMES[1], NAMES[0]]
    assert (crew.copied(0), crew.copied(1)) == (WHOLE[:6], WHOLE[:4]), "one more each"
    assert all(0 <= each <= 2 for each in seconds)
    assert (len(seconds), crew.out, crew.closed) == (2, [], 1)
    assert not any(crew.search(i).busy for i in range(4))


def test_on_ctrl_c_nobody_waits_for_those_who_say_nothing(tmp_path):
    crew = Compared(tmp_path, 2)
    answered = []

    def hear(seconds=None):
        if seconds is not None:
            answered.append(seconds)
            return []
        if len(crew.of("made")) == 2:
            raise KeyboardInterrupt
        return ScriptedCrew.hear(crew)

    crew.hear = hear
    with pytest.raises(KeyboardInterrupt):
        crew.run()
    assert (len(answered), crew.closed) == (1, 1)
    assert not any(crew.search(i).busy for i in range(2))


def test_an_idle_worker_gets_the_search_of_one_that_is_lost(tmp_path):
    crew = Compared(tmp_path, 2, late=["w3"])  # who replaces the lost one never arrives
    crew.losing = ["w1"]
    crew.order = lambda count: next((i for i, (name, _) in enumerate(crew.out) if name == "w2"), 0)
    crew.run(CELLS[:2])
    assert crew.begun_with == [(NAMES[1], b""), (NAMES[0], b"")]
    assert {name for name, _ in crew.sent[2:]} == {"w2"}, "the only one that is left"
    assert crew.of("ended") == [NAMES[1], NAMES[0]]


def test_a_worker_that_is_lost_idle_takes_nothing_with_it(tmp_path):
    crew = Compared(tmp_path, 2)
    hear = crew.hear

    def idle_lost(seconds=None):
        if crew.of("made") == [NAMES[0]] and "w2" in crew.answers:
            crew.lose("w2")
        return hear(seconds)

    crew.hear = idle_lost
    crew.run(CELLS[:1])
    assert crew.told == alone(NAMES[0])


@pytest.mark.parametrize(
    ("executor", "workers", "searches", "kind", "size"),
    [
        ({}, None, 4, None, 0),
        ({}, 1, 4, None, 0),
        ({}, 3, 1, None, 0),
        ({}, 3, 4, "ProcessCrew", 3),
        ({}, 9, 4, "ProcessCrew", 4),
        ({"kind": "processes", "workers": 3}, None, 4, "ProcessCrew", 3),
        ({"kind": "processes", "workers": 3}, None, 2, "ProcessCrew", 2),
        ({"kind": "processes", "workers": 3}, 1, 4, "ProcessCrew", 1),
        ({"kind": "ray", "workers": 3}, 2, 4, "RayCrew", 2),
    ],
)
def test_on_which_workers_searches_run(tmp_path, monkeypatch, executor, workers, searches, kind, size):
    found = []

    def apart(waiting, folder, crew, *events):
        found.append((type(crew).__name__, crew.size))
        raise KeyboardInterrupt

    def here(cell, *rest):
        found.append((None, 0))
        raise KeyboardInterrupt

    monkeypatch.setattr(comparison, "run_apart", apart)
    monkeypatch.setattr(comparison, "run_cell", here)
    monkeypatch.setattr(comparison, "finished", lambda cell, folder: str(cell) not in NAMES[:searches])
    with pytest.raises(Interrupted, match=f"^stopped; {4 - searches} finished searches"):
        comparison.compare(configured(**executor), root=tmp_path, workers=workers)
    assert found == [(kind, size)]


@pytest.fixture
def opened(monkeypatch):
    """A worker as it is opened, over no models."""
    monkeypatch.setattr("sae_moo.jobs.compare.away.Bench.open", lambda config: SimpleNamespace(device="cpu"))
    monkeypatch.setattr("sae_moo.jobs.compare.away.SHORTEST", 0.0)
    answer, facts = Away(configured(kind="processes", workers=2))()
    assert facts == {"device": "cpu"}
    return lambda order: pickle.loads(answer(pickle.dumps(order)))


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (ZeroDivisionError("of ours"), "ZeroDivisionError: of ours"),
        (InputError("items are others"), None),
        (None, None),
    ],
)
def test_a_worker_runs_a_search_where_it_was_and_says_what_is_new_and_how_it_ended(
    opened, monkeypatch, caplog, error, failure
):
    places = []

    def run_cell(cell, bench, folder, heard):
        place = folder.search(cell.config.study.name)
        assert place.journal.read_bytes() == b"0\n"
        assert (cell.config.executor.kind, bench().device) == ("local", "cpu")
        places.append(place.path)
        with place.journal.open("ab") as file:
            file.write(b"1\n")
        if error is not None:
            raise error

    monkeypatch.setattr("sae_moo.jobs.compare.away.run_cell", run_cell)
    for _ in range(2):  # one after another
        begin = Begin(CELLS[0].method, CELLS[0].seed, (Piece(JOURNAL, b"0\n"),), None)
        news = opened(begin)
        assert news.pieces == (Piece(JOURNAL, b"1\n", 2),)
        assert news.ending is not None
        assert news.ending.failure == failure
        assert str(news.ending.error) == ("items are others" if isinstance(error, InputError) else "None")
    assert len(set(places)) == 2
    assert not any(place.exists() for place in places)
    traced = [record for record in caplog.records if record.exc_info]
    assert [record.getMessage() for record in traced] == [f"{NAMES[0]} failed by a fault of this package"] * (
        2 if failure else 0
    )
