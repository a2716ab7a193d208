"""A run folder that is kept elsewhere: what is sent of it, and what becomes of the copy."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from sae_moo.errors import StorageError
from sae_moo.study.copies import Original, Piece, whole, write
from sae_moo.study.folder import JOURNAL, LOCK, RunFolder


@pytest.fixture
def there(tmp_path):
    """Where a search runs."""
    return RunFolder(tmp_path / "there")


@pytest.fixture
def copy(tmp_path):
    folder = RunFolder(tmp_path / "copy")
    folder.path.mkdir()
    return folder


def append(folder, content):
    with folder.journal.open("ab", buffering=0) as file:
        file.write(content)


def send(original, copy):
    """Write what is new to the copy; return it."""
    pieces = original.news()
    for piece in pieces:
        write(copy, piece)
    return pieces


def test_a_journal_that_grows_while_it_is_copied_comes_out_the_same_in_whole_lines(there, copy):
    original = Original(there)
    entries = [b'{"number":%d,"of":"%s"}\n' % (i, b"x" * (i % 97)) for i in range(400)]

    def grow():
        for entry in entries:
            for part in (entry[:7], entry[7:]):
                append(there, part)

    writer = threading.Thread(target=grow)
    writer.start()
    while writer.is_alive():
        send(original, copy)
        assert not copy.journal.exists() or copy.journal.read_bytes().endswith(b"\n")
    send(original, copy)
    assert copy.journal.read_bytes() == b"".join(entries) == there.journal.read_bytes()
    assert send(original, copy) == ()


def test_of_a_journal_what_was_added_is_sent_and_of_a_torn_line_nothing(there, copy):
    original = Original(there)
    append(there, b"a\nb")
    assert send(original, copy) == (Piece(JOURNAL, b"a\n", 0),)
    assert send(original, copy) == ()
    append(there, b"c\nd\n")
    assert send(original, copy) == (Piece(JOURNAL, b"bc\nd\n", 2),)
    assert copy.journal.read_bytes() == b"a\nbc\nd\n"


def test_a_journal_that_was_cut_is_sent_anew(there, copy):
    original = Original(there)
    append(there, b"a\nb\nc\n")
    send(original, copy)
    there.journal.write_bytes(b"a\n")
    assert send(original, copy) == (Piece(JOURNAL, b"a\n"),)
    append(there, b"d\n")
    assert send(original, copy) == (Piece(JOURNAL, b"d\n", 2),)
    there.journal.write_bytes(b"")
    assert send(original, copy) == (Piece(JOURNAL, b""),)
    assert copy.journal.read_bytes() == b""


@pytest.mark.parametrize("cut_before_it_is_looked_at", [True, False])
def test_a_copy_that_ends_within_a_line_loses_that_line_where_the_search_goes_on(
    there, copy, cut_before_it_is_looked_at
):
    append(copy, b"a\nb\nto")
    original = Original(there, whole(copy))
    if not cut_before_it_is_looked_at:
        assert send(original, copy) == (Piece(JOURNAL, b"a\nb\n"),)
    there.journal.write_bytes(b"a\nb\n")  # as whoever opens it does
    append(there, b"much longer than what was cut\n")
    send(original, copy)
    assert copy.journal.read_bytes() == there.journal.read_bytes() == b"a\nb\nmuch longer than what was cut\n"


def test_other_files_are_replaced_whole_when_they_change_and_only_then(there, copy):
    original = Original(there)
    file = there.path / "judged.json"
    file.write_text("one")
    assert send(original, copy) == (Piece("judged.json", b"one"),)
    assert send(original, copy) == ()
    file.write_text("another")
    assert send(original, copy) == (Piece("judged.json", b"another"),)
    os.utime(file, ns=(1, 1))
    assert send(original, copy) == (Piece("judged.json", b"another"),), "of the same size, written at another time"
    assert (copy.path / "judged.json").read_text() == "another"


def test_locks_and_what_is_half_written_stay_where_they_are(there, copy):
    original = Original(there)
    for name in (LOCK, f"{JOURNAL}.lock", ".run.json.partial-1-2", "run.json"):
        (there.path / name).write_text("it")
    (there.path / "folder").mkdir()
    assert [piece.name for piece in whole(there)] == ["run.json"]
    assert [piece.name for piece in send(original, copy)] == ["run.json"]


def test_a_piece_that_does_not_go_on_where_the_copy_ends_is_an_error_and_changes_nothing(copy):
    append(copy, b"a\nb\n")
    for start in (0, 2, 6):
        with pytest.raises(ValueError, match=f"expected what goes on at byte 4, got a piece from {start}$"):
            write(copy, Piece(JOURNAL, b"c\n", start))
    assert copy.journal.read_bytes() == b"a\nb\n"
    write(copy, Piece(JOURNAL, b"c\n", 4))
    assert copy.journal.read_bytes() == b"a\nb\nc\n"


@pytest.mark.parametrize("piece", [Piece(JOURNAL, b"c\n", 2), Piece("run.json", b"{}")])
def test_no_room_is_said_of_the_file_that_is_written(copy, piece, monkeypatch):
    append(copy, b"a\n")

    def full(*arguments, **more):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "open", full)  # `write_bytes` opens too
    with pytest.raises(StorageError, match=f"^{copy.path / piece.name}: No space left on device; what was finished"):
        write(copy, piece)
    monkeypatch.undo()
    assert whole(copy) == (Piece(JOURNAL, b"a\n"),)


def test_all_that_a_folder_holds_begins_another_which_has_nothing_new_then(there, copy):
    assert whole(RunFolder(copy.path / "none")) == ()
    append(copy, b"a\nb\n")
    (copy.path / "run.json").write_text("{}")
    pieces = whole(copy)
    assert pieces == (Piece("run.json", b"{}"), Piece(JOURNAL, b"a\nb\n"))
    original = Original(there, pieces)
    assert whole(there) == pieces
    assert original.news() == ()
    append(there, b"c\n")
    assert send(original, copy) == (Piece(JOURNAL, b"c\n", 4),)
    assert whole(copy) == whole(there)
