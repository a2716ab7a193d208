"""What Perfetto and chrome://tracing read, by the Trace Event Format."""

from __future__ import annotations

import json
from itertools import groupby, pairwise

import pytest
from busy import EPOCH, busy, trial
from synthetic import view

from sae_moo.explore.pages.trace import trace, write_trace
from sae_moo.explore.timeline import timeline


def events(document: dict, phase: str) -> list[dict]:
    return [event for event in document["traceEvents"] if event["ph"] == phase]


@pytest.mark.parametrize("workers", [1, 3])
def test_a_trace_has_what_its_readers_need(tmp_path, workers):
    study = busy(50, workers, pauses=(20,), first=0.123456789)
    path = tmp_path / "timeline.json"
    assert write_trace(path, "s", study.records)
    document = json.loads(path.read_text("utf-8"))
    assert set(document) == {"traceEvents", "displayTimeUnit", "otherData"}
    assert {event["ph"] for event in document["traceEvents"]} == {"X", "M"}
    for event in document["traceEvents"]:
        numbers = [event[key] for key in ("ts", "pid", "tid", *(("dur",) if event["ph"] == "X" else ()))]
        assert all(type(number) is int and number >= 0 for number in numbers)
    whole = [event for event in events(document, "X") if event["cat"] == "evaluation"]
    assert sorted(event["name"] for event in whole) == sorted(f"trial {i}" for i in range(50))
    assert min(event["ts"] for event in whole) == 0
    spent = sum(record.evaluation.seconds for record in study.records)
    assert sum(event["dur"] for event in whole) == pytest.approx(spent * 1e6, abs=50)
    assert max(event["ts"] + event["dur"] for event in whole) == pytest.approx(
        (study.timeline.sessions[-1].ended - study.timeline.sessions[0].began) * 1e6, abs=1
    )


def test_phases_lie_within_their_evaluation_and_evaluations_of_a_worker_apart():
    records = [trial(i, f"w{i % 2}", 1.0000004 * i // 2 * 3, 0.1000003, 0.3333333, 0.7777777) for i in range(20)]
    document = trace(timeline(records), "s")
    key = lambda event: (event["pid"], event["tid"])  # noqa: E731
    for _, row in groupby(sorted(events(document, "X"), key=key), key):
        row = list(row)
        whole = sorted((event for event in row if event["cat"] == "evaluation"), key=lambda event: event["ts"])
        assert all(a["ts"] + a["dur"] <= b["ts"] for a, b in pairwise(whole))
        for event in whole:
            parts = [e for e in row if e["cat"] == "phase" and f"trial {e['args']['trial']}" == event["name"]]
            assert [part["name"] for part in parts] == ["screening", "merging", "scoring"]
            assert parts[0]["ts"] == event["ts"]
            assert all(a["ts"] + a["dur"] == b["ts"] for a, b in pairwise(parts))
            assert parts[-1]["ts"] + parts[-1]["dur"] == event["ts"] + event["dur"]


def test_sessions_and_workers_have_names():
    document = trace(busy(12, 3, pauses=(8,)).timeline, "mine")
    named = {(e["name"], e["pid"], e["tid"]): e["args"] for e in events(document, "M")}
    assert named["process_name", 1, 0] == {"name": "mine, session 1"}
    assert named["process_name", 2, 0] == {"name": "mine, session 2"}
    assert named["thread_name", 2, 3] == {"name": "worker 3"}
    assert {(e["pid"], e["tid"]) for e in events(document, "X")} == {(s, w) for s in (1, 2) for w in (1, 2, 3)}
    assert trace(busy(12, 3).timeline, "mine")["traceEvents"][0]["args"] == {"name": "mine"}


def test_a_trace_tells_of_its_trials_and_of_the_whole():
    failed = trial(1, "w2", 0.0, losses=1)
    document = trace(timeline([trial(0, "w1", 0.25), failed]), "s")
    assert document["otherData"] | {"busy": None} == {
        "study": "s",
        "began": "2023-11-14T22:13:20.000000+00:00",
        "workers": 2,
        "workers lost": 1,
        "busy": None,
    }
    first, second = (e["args"] for e in events(document, "X") if e["cat"] == "evaluation")
    assert first["workers lost"] == 1
    assert second["values"] == {"accuracy": 0.5, "sparsity": 0.0}
    assert EPOCH == 1_700_000_000, "which is when it began"


def test_a_trace_can_be_made_again_and_where_there_is_nothing_there_is_none(tmp_path):
    path, study = tmp_path / "t.json", busy(20, 2)
    write_trace(path, "s", study.records)
    before = path.read_bytes()
    write_trace(path, "s", study.records[::-1])
    assert path.read_bytes() == before
    assert not write_trace(tmp_path / "none.json", "s", view(20).records)
    assert [each.name for each in tmp_path.iterdir()] == ["t.json"]


def test_a_trace_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "t.json"
    write_trace(path, "s", busy(4, 2).records)
    before = path.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.write_text", lambda *_, **__: (_ for _ in ()).throw(OSError("full")))
        with pytest.raises(OSError, match="full"):
            write_trace(path, "s", busy(8, 2).records)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["t.json"]
