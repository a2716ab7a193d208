"""What a study promises wherever it lies: what is written is read again, by a process that knows nothing of the first."""

from __future__ import annotations

from itertools import count

import postgres_server
import pytest
from scripted_study import Setup
from stand_ins import Landscape

from sae_moo.errors import InputError, Interrupted, StorageError
from sae_moo.study import journal
from sae_moo.study.journal import create_or_load, describe, only_study, open_storage

STORAGES = ("journal", "sqlite", "postgres")
DATABASES = count()


@pytest.fixture(scope="session")
def server():
    """A PostgreSQL server, where one is installed."""
    why = postgres_server.missing()
    if why is not None:
        pytest.skip(why)
    with postgres_server.server() as running:
        yield running


@pytest.fixture(autouse=True)
def closed(monkeypatch):
    """Close at the end what was opened; else connections are closed, with a warning, when they happen to be collected."""
    opened = []

    def recorded(where, write):
        opened.append(journal.open_storage(where, write))
        return opened[-1]

    monkeypatch.setattr("scripted_study.open_storage", recorded)
    monkeypatch.setitem(globals(), "open_storage", recorded)
    yield
    for storage in opened:
        if hasattr(storage, "engine"):
            storage.engine.dispose()


@pytest.fixture(params=STORAGES)
def study(request, tmp_path):
    """A function that opens the study anew."""
    match request.param:
        case "journal":
            where = None
        case "sqlite":
            where = f"sqlite:///{tmp_path}/s.db"
        case "postgres":
            where = request.getfixturevalue("server").url(f"d{next(DATABASES)}")
    return lambda: Setup(tmp_path / "s.journal", where=where)


@pytest.fixture
def unbroken(tmp_path):
    return Setup(tmp_path / "unbroken").run(18)


def test_a_study_is_the_same_wherever_it_lies(study, unbroken):
    assert study().run(18) == unbroken
    assert study().facts() == unbroken


@pytest.mark.parametrize("at", [1, 8, 17])
def test_what_was_interrupted_goes_on_as_if_it_had_not_been(study, unbroken, at):
    landscape = Landscape()

    def evaluate(recipe, rivals=None):
        if len(landscape.evaluated) == at:
            raise Interrupted("Ctrl-C")
        return landscape(recipe)

    with pytest.raises(Interrupted):
        study().run(18, evaluate=evaluate)
    assert study().run(18) == unbroken


def test_attributes_and_names_of_objectives_are_kept(study):
    first = study()
    opened = open_storage(first.where or first.path, write=True)
    described = create_or_load(opened, "s", first.storage().objectives)
    describe(described, {"models": {"base": "zoo:base", "long": "ü" * 5000}, "seed": 3})
    again = open_storage(first.where or first.path, write=False)
    assert only_study(again) == "s"
    assert study().storage().study.user_attrs["models"] == {"base": "zoo:base", "long": "ü" * 5000}
    assert study().storage().study.metric_names == ["accuracy", "sparsity"]


def test_other_objectives_are_refused(study):
    study().storage()
    first = study()
    with pytest.raises(InputError, match="has the objectives"):
        create_or_load(open_storage(first.where or first.path, write=True), "s", first.storage().objectives[::-1])


def test_looking_makes_nothing(study, tmp_path):
    first = study()
    with pytest.raises(InputError, match="no study at"):
        open_storage(first.where or first.path, write=False)
    assert not list(tmp_path.iterdir())


def test_a_server_that_is_gone_is_one_line_and_the_search_goes_on_when_it_is_back(server, tmp_path, unbroken):
    url = server.url(f"d{next(DATABASES)}")
    landscape = Landscape()

    def evaluate(recipe, rivals=None):
        if len(landscape.evaluated) == 9:
            server.stop()
        return landscape(recipe)

    with pytest.raises(StorageError, match=r"^storage postgresql\+psycopg://[^\n]*; what was finished before is kept$"):
        Setup(None, where=url).run(18, evaluate=evaluate)
    with pytest.raises(InputError, match=r"^storage postgresql\+psycopg://[^\n]*: Optuna cannot open it: [^\n]*$"):
        Setup(None, where=url).run(18)
    server.start()
    assert Setup(None, where=url).run(18) == unbroken


def test_a_password_is_not_shown():
    with pytest.raises(InputError) as caught:
        open_storage("postgresql+psycopg://me:secret@127.0.0.1:1/x?connect_timeout=1", write=True)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_study_that_two_processes_begin_is_that_of_the_first(study, monkeypatch):
    storage = study().storage()._storage
    monkeypatch.setattr(type(storage), "get_all_studies", lambda self: [])  # as it looked a moment before
    with pytest.raises(InputError, match=r"^study 's': another process has begun it at this moment"):
        create_or_load(storage, "s", [])
