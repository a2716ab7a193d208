"""Trials as they are written to a journal: as Optuna would write them, at once, and whoever else writes meanwhile."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from itertools import count

import numpy as np
import pytest
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import Trial, TrialState
from scripted_study import Setup, facts_of

from sae_moo.errors import InputError, StorageError
from sae_moo.objectives import Evaluation, Stopped
from sae_moo.recipe import Cast, Expert
from sae_moo.searchers.searcher import Proposal
from sae_moo.study import trials, writer
from sae_moo.study.executor import Answer
from sae_moo.study.journal import Journal, JournalFile, open_storage

PROPOSAL = Proposal(Cast(Expert("math"), "float32"))
FAILED = {"reason": "out of memory"}
RACED = {"reason": "raced", "stopped": Stopped("d", {"a": 12}, {"accuracy": 0.5}, {"accuracy": 0.25})}


@pytest.fixture
def fetched(monkeypatch):
    """How often a journal was read from the disk."""
    reads, read = [], JournalFileBackend.read_logs
    monkeypatch.setattr(JournalFileBackend, "read_logs", lambda *given: reads.append(1) or read(*given))
    return reads


def begun(storage, **more):
    return storage.begin(PROPOSAL, "d", asked_after=0, versions="v", **more)


def finished(storage, number, landscape, told=0, params=None, **facts):
    evaluation = Evaluation(PROPOSAL.recipe, **facts) if facts else landscape(PROPOSAL.recipe)
    return storage.finish(number, PROPOSAL, Answer(number, evaluation, 1.5), told, params=params)


def lines(path):
    """The entries of a journal, without who wrote them and when."""
    entries = [json.loads(line) for line in path.read_bytes().splitlines()]
    return [{k: v for k, v in each.items() if k != "worker_id" and not k.startswith("datetime")} for each in entries]


def test_entries_are_those_that_optuna_writes(tmp_path, landscape, monkeypatch):
    def written(path):
        storage = Setup(path).storage()
        for told, facts in enumerate([{}, {}, FAILED, RACED, {}]):
            vector = (0.25, -1.0) if told == 3 else ()
            name = {"allocations": "a"} if told == 4 else {}
            proposal = replace(PROPOSAL, vector=vector)
            number = storage.begin(proposal, "d", params={"x": 0.1, "y": 99.0}, asked_after=told, versions="v", **name)
            finished(storage, number, landscape, told, {"z": 1 / 3} if told % 2 else None, **facts)
        return lines(path), facts_of(storage.records()), facts_of(Setup(path).storage().records())

    ours = written(tmp_path / "ours")
    monkeypatch.setattr(trials, "writer_of", writer.Writer)
    assert ours == written(tmp_path / "optuna's")
    assert ours[1] == ours[2]


def test_moments_are_as_optuna_has_them(tmp_path, landscape):
    storage = Setup(tmp_path / "s").storage()
    for told in range(3):
        finished(storage, begun(storage), landscape, told)
    moments = [moment for trial in storage.study.trials for moment in (trial.datetime_start, trial.datetime_complete)]
    assert moments == sorted(moments)
    assert (moments[-1] - moments[0]).total_seconds() < 60, "the first is Optuna's, the last ours"


def test_a_trial_is_written_twice_waited_for_once_and_never_read(tmp_path, landscape, monkeypatch, fetched):
    setup = Setup(tmp_path / "s")
    storage = setup.storage()
    waited, written, append = [], [], JournalFile._append
    for told, facts in enumerate([{}, {}, {}, FAILED]):
        for noted in (fetched, waited, written):
            noted.clear()
        with monkeypatch.context() as patched:
            patched.setattr("os.fsync", lambda handle: waited.append(setup.path.read_bytes()))
            patched.setattr(JournalFile, "_append", lambda *args, **more: [written.append(1), append(*args, **more)])
            number = begun(storage)
            assert not waited
            record = finished(storage, number, landscape, told, **facts)
        assert (len(written), len(waited)) == (2, 1), "its beginning, and all that came of it"
        assert waited == [setup.path.read_bytes()], "whole when the disk was waited for"
        assert facts or (b"a score" in waited[0] and b"constraints:" in waited[0])
        assert not fetched or told in (0, 3), "but who comes first, and what has failed"
        assert record == Setup(setup.path).storage().records()[told]
    assert storage.records() == setup.storage().records()


def test_a_trial_is_in_the_file_when_it_begins(tmp_path, landscape):
    setup = Setup(tmp_path / "s")
    storage = setup.storage()
    for told in range(3):
        number = begun(storage)
        assert [record.state for record in setup.storage().records()][told:] == ["running"]
        finished(storage, number, landscape, told)


class Other:
    """Somebody else who writes to a journal: trials of this study and of another, and notes."""

    def __init__(self, path, rng):
        self.storage, self.rng = open_storage(path, write=True), rng
        self.study = self.storage.create_new_study([StudyDirection.MAXIMIZE], "other")

    def write(self):
        match int(self.rng.integers(4)):
            case 0:
                self.storage.create_new_trial(self.study)
            case 1:
                trial = self.storage.create_new_trial(self.study)
                self.storage.set_trial_state_values(trial, TrialState.COMPLETE, [0.5])
            case 2:
                self.storage.set_study_system_attr(0, "note", "looks good")
            case 3:
                self.storage.set_study_user_attr(self.study, "x", 1)


@pytest.mark.parametrize("seed", range(6))
def test_trials_are_what_they_are_whoever_else_writes(tmp_path, landscape, seed):
    rng = np.random.default_rng(seed)
    setup = Setup(tmp_path / "s")
    storage = setup.storage()
    other = Other(setup.path, rng)
    out, made = [], {}
    for told in range(40):
        for _ in range(int(rng.integers(3))):
            out.append(begun(storage))
            made[out[-1]] = None
        if rng.random() < 0.4:
            other.write()
        if out:
            number = out.pop(int(rng.integers(len(out))))
            made[number] = finished(storage, number, landscape, told, **(FAILED if rng.random() < 0.2 else {}))
    assert list(made) == list(range(len(made))), "numbered as they were begun"
    for records in (storage.records(), setup.storage().records()):
        assert [each.number for each in records] == list(made)
        assert [each for each in records if each.state != "running"] == [each for each in made.values() if each]
        assert [each.number for each in records if each.state == "running"] == sorted(out)


def test_what_somebody_else_wrote_to_a_trial_that_runs_is_read(tmp_path, landscape):
    setup = Setup(tmp_path / "s")
    storage = setup.storage()
    numbers = [begun(storage) for _ in range(3)]
    other = setup.storage()
    Trial(other.study, other.study.get_trials()[1]._trial_id).set_user_attr("reason", "none of ours")
    Trial(other.study, other.study.get_trials()[1]._trial_id).set_user_attr("tokens", 7)
    begun(storage)  # by which it is known again who comes next
    records = [
        finished(storage, number, landscape, told, scores={"a": (1.0, 0.0), "b": (0.5, 1.0)})
        for told, number in enumerate(numbers)
    ]
    assert [record.evaluation.tokens for record in records] == [None, 7, None]
    assert records == setup.storage().records()[:3]


def interrupting(step):
    """A tracer: Ctrl-C before a line of the writer or of the journal's file, but where the lock is taken or given back."""
    lines = count()

    def trace(frame, event, arg):
        name = frame.f_code.co_filename
        if not name.endswith(("study/writer.py", "study/journal.py")) or frame.f_code.co_name in LOCKING:
            return None
        if event == "line" and next(lines) == step:
            raise KeyboardInterrupt
        return trace

    return trace


LOCKING = ("acquire", "release", "held")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a file that nobody could close
def test_wherever_it_is_interrupted_the_next_trial_is_the_next(tmp_path, landscape):
    for step in count():
        setup = Setup(tmp_path / str(step))
        storage = setup.storage()
        first, _ = begun(storage), begun(storage)
        tracing = sys.gettrace()
        sys.settrace(interrupting(step))
        try:
            begun(storage)
            finished(storage, first, landscape)
            break
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(tracing)
        there = setup.storage().records()
        for told in range(5, 8):
            number = begun(storage)
            assert number == len(there)
            record = finished(storage, number, landscape, told)
            there = setup.storage().records()
            assert record == there[number]
        assert {each.state for each in there[-3:]} == {"complete"}
        assert {each.state for each in there[:-3]} <= {"running", "complete"}
    assert step > 40


TAILS = {"torn": b'{"op_code"', "empty": b"\n", "zeros": b'{"op_code":4,"study_id"\0\0\0\n', "other": b"7\n"}
TAILS |= {"none of Optuna's": b'{"a":1}\n', "no text": b"\xff\xfe\n", "long": b"[" + b"1," * 20000 + b"\n"}


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("already", [0, 3])
def test_nothing_is_written_behind_a_line_that_is_no_entry(tmp_path, landscape, tail, ends, already):
    setup = Setup(tmp_path / "s")
    storage = setup.storage()
    numbers = [begun(storage) for _ in range(already)]
    with setup.path.open("ab") as file:
        file.write(TAILS[tail])
    whole = setup.path.read_bytes()
    fault = "its last line is torn" if tail == "torn" else "its last line is no entry of a study"
    for _ in range(2):
        with pytest.raises(StorageError, match=rf"/s: {fault}[^\n]*; what was finished before is kept$"):
            finished(storage, numbers[0], landscape) if ends and numbers else begun(storage)
        assert setup.path.read_bytes() == whole
    if tail == "torn" and numbers:
        finished(setup.storage(), numbers[0], landscape)
        assert setup.storage().records()[0].state == "complete"


@pytest.mark.parametrize("line", [b"\n", b"7\n", b'{"a":1}\n', b"\xff\xfe\n", b'{"op_code":4,\0\n'])
def test_a_damaged_line_among_others_is_one_line(tmp_path, line):
    setup = Setup(tmp_path / "s")
    storage = setup.storage()
    begun(storage)
    lines = setup.path.read_bytes().splitlines(keepends=True)
    setup.path.write_bytes(b"".join([*lines, line, lines[-1]]))
    fault = f"line {len(lines) + 1} is no entry of a study"
    for act in (storage.records, lambda: begun(storage)):
        with pytest.raises(StorageError, match=f"/s: {fault}"):
            act()
    with pytest.raises(InputError, match=f"^{setup.path}: not a study, or damaged: {fault}"):
        setup.storage()


@pytest.mark.parametrize("read", [False, True])
@pytest.mark.parametrize("left", [0, 0.5, 0.99])
def test_a_journal_that_was_cut_is_not_written_on(tmp_path, landscape, read, left):
    setup = Setup(tmp_path / "s")
    storage = setup.storage()
    for told in range(3):
        finished(storage, begun(storage), landscape, told)
    number = begun(storage)
    if read:
        storage.records()
    whole = setup.path.read_bytes()
    lines = whole.splitlines(keepends=True)
    setup.path.write_bytes(b"".join(lines[: int(left * len(lines))]))
    cut = setup.path.read_bytes()
    for act in (lambda: begun(storage), lambda: finished(storage, number, landscape), storage.records):
        with pytest.raises(StorageError, match="/s: shorter than it was"):
            act()
    assert setup.path.read_bytes() == cut
    setup.path.write_bytes(whole)
    assert finished(storage, number, landscape, 3) == setup.storage().records()[3]


def test_a_journal_that_was_cut_behind_a_reader_is_not_written_on(tmp_path, landscape):
    setup = Setup(tmp_path / "s")
    storage = setup.storage()
    for told in range(3):
        finished(storage, begun(storage), landscape, told)
    reader = setup.storage()
    reader.records()
    lines = setup.path.read_bytes().splitlines(keepends=True)
    setup.path.write_bytes(b"".join(lines[:-1]))
    with pytest.raises(StorageError, match="/s: shorter than it was"):
        begun(reader)


def test_what_a_storage_calls_a_new_trial_is_new(tmp_path, monkeypatch):
    setup = Setup(tmp_path / "s")
    storage = setup.storage()
    begun(storage)
    begun(storage)
    setup.storage().study.set_user_attr("note", "x")
    monkeypatch.setattr(Journal, "create_new_trial", lambda *given, **more: 1)
    with pytest.raises(StorageError, match="/s: a trial that has begun is not in it"):
        begun(storage)


@pytest.mark.parametrize("again", [False, True])
def test_a_trial_that_somebody_else_has_ended_is_not_taken_for_ours(tmp_path, landscape, again):
    setup = Setup(tmp_path / "s")
    storage = setup.storage()
    numbers = [begun(storage) for _ in range(2)]
    theirs = finished(setup.storage(), numbers[0], landscape, 5)
    if again:
        begun(storage)
    with pytest.raises(StorageError, match="trial 0: another process has ended it"):
        finished(storage, numbers[0], landscape, 0)
    assert setup.storage().records()[0] == theirs
    finished(storage, numbers[1], landscape, 0)


def test_an_end_is_written_whole_even_where_somebody_else_writes(tmp_path, landscape, monkeypatch):
    setup = Setup(tmp_path / "s")
    storage = setup.storage()
    numbers = [begun(storage) for _ in range(4)]
    append, written = JournalFile._append, []
    monkeypatch.setattr(JournalFile, "_append", lambda *args, **more: [written.append(1), append(*args, **more)])
    for told, number in enumerate(numbers):
        setup.storage().study.set_user_attr(f"note {told}", "x")
        written.clear()
        assert finished(storage, number, landscape, told) == setup.storage().records()[number]
        assert len(written) == 1


def test_a_journal_that_is_gone_is_one_line(tmp_path, landscape):
    setup = Setup(tmp_path / "s")
    storage = setup.storage()
    number = begun(storage)
    setup.path.unlink()
    for act in (lambda: begun(storage), lambda: finished(storage, number, landscape), storage.records):
        with pytest.raises(StorageError, match=r"/s: No such file or directory"):
            act()


def test_what_is_no_number_is_not_written(tmp_path):
    storage = Setup(tmp_path / "s").storage()
    for _ in range(2):
        with pytest.raises(ValueError, match="got NaN"):
            begun(storage, params={"x": float("nan")})
        begun(storage)


def test_another_one_goes_on_where_one_stopped(tmp_path, landscape):
    setup = Setup(tmp_path / "s")
    first = setup.storage()
    numbers = [begun(first) for _ in range(3)]
    second = setup.storage()
    record = finished(second, numbers[1], landscape)
    assert (record.number, record.state) == (1, "complete")
    assert begun(second) == 3
    assert begun(first) == 4
    assert [each.state for each in first.records()] == ["running", "complete", "running", "running", "running"]
