"""Trials of a study in the order of events."""

from __future__ import annotations

from collections.abc import Iterable

from sae_moo.study.storage import TrialRecord


def told(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Return the trials that have ended, in the order in which the search was told of them."""
    places = [(record.told, record) for record in records if record.told is not None]
    return [record for _, record in sorted(places, key=lambda place: place[0])]


def evaluations(records: Iterable[TrialRecord]) -> int:
    """Return how many evaluations have ended: with a result, failed or stopped."""
    return sum(record.told is not None for record in records)
