"""Who was busy when, as a file for Perfetto (ui.perfetto.dev) and chrome://tracing.

The format is Google's Trace Event Format: complete events (``ph`` X) with begin and duration in microseconds, those of
an evaluation's phases within that of the evaluation, and metadata events (``ph`` M) that name sessions and workers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sae_moo.explore.timeline import Span, Timeline, timeline
from sae_moo.files.whole import whole_file
from sae_moo.study.record import TrialRecord

MICRO = 1_000_000  # microseconds a second


def write_trace(path: Path, study: str, records: Iterable[TrialRecord]) -> bool:
    """Write who was busy when, whole or not at all; one that is there is replaced.

    Args:
        path: the file.
        study: the study's name.
        records: all trials.

    Returns:
        Whether there was anything to write: a trial that tells when it began.

    Raises:
        InputError: if the file cannot be made.
        StorageError: if there is no room.
    """
    found = timeline(records)
    if not found.spans:
        return False
    text = json.dumps(trace(found, study), separators=(",", ":"), allow_nan=False)
    with whole_file(path, replace=True) as partial:
        partial.write_text(text + "\n", encoding="utf-8")
    return True


def trace(found: Timeline, study: str) -> dict[str, Any]:
    """Return a timeline as a document of the Trace Event Format.

    A session is a process, a worker a thread of it. Times are since the study's first evaluation, which
    ``otherData.began`` tells in UTC.

    Args:
        found: the timeline, with at least one evaluation.
        study: the study's name.
    """
    zero = found.sessions[0].began
    places = {worker: i for i, worker in enumerate(found.workers, 1)}
    events: list[dict[str, Any]] = []
    for number, session in enumerate(found.sessions, 1):
        title = study if len(found.sessions) == 1 else f"{study}, session {number}"
        events.append(_named("process_name", number, 0, name=title))
        events.append(_named("process_sort_index", number, 0, sort_index=number))
        there = {span.worker for span in session.spans}
        for worker, place in places.items():
            if worker in there:
                events.append(_named("thread_name", number, place, name=worker))
                events.append(_named("thread_sort_index", number, place, sort_index=place))
        for span in session.spans:
            events += _events(span, zero, number, places[span.worker])
    began = datetime.fromtimestamp(zero, UTC).isoformat(timespec="microseconds")
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {
            "study": study,
            "began": began,
            "workers": len(found.workers),
            "workers lost": found.losses,
            "busy": round(found.share(), 4),
        },
    }


def _events(span: Span, zero: float, process: int, thread: int) -> list[dict[str, Any]]:
    """Return an evaluation and its phases, each within it to the microsecond."""

    def complete(name: str, category: str, began: float, ended: float, **arguments: Any) -> dict[str, Any]:
        start, end = round((began - zero) * MICRO), round((ended - zero) * MICRO)
        event = {"name": name, "cat": category, "ph": "X", "ts": start, "dur": end - start}
        return {**event, "pid": process, "tid": thread, "args": arguments}

    record = span.record
    facts: dict[str, Any] = {"state": record.state, "generation": record.generation, "operator": record.operator}
    facts |= {"digest": record.digest, "values": dict(record.values)}
    facts |= {"reason": record.evaluation.reason} if record.evaluation.reason is not None else {}
    facts |= {"workers lost": record.losses} if record.losses else {}
    return [
        complete(f"trial {record.number}", "evaluation", span.began, span.ended, **facts),
        *(complete(part.phase, "phase", part.began, part.ended, trial=record.number) for part in span.parts),
    ]


def _named(what: str, process: int, thread: int, **arguments: Any) -> dict[str, Any]:
    return {"name": what, "ph": "M", "ts": 0, "pid": process, "tid": thread, "args": arguments}
