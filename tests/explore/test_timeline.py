from __future__ import annotations

from itertools import pairwise

import pytest
from busy import AFTER, EPOCH, busy, trial
from stand_ins import running

from sae_moo.explore.timeline import HERE, PHASES, Timeline, timeline
from sae_moo.explore.words import busy_words
from sae_moo.study.record import Inherited


def test_an_evaluation_is_screened_then_merged_then_scored():
    found = timeline([trial(0, "w", 10, 1.0, 2.0, 4.0), trial(1, "w", 20, 0.0, 0.0, 3.0)])
    first, second = found.spans
    assert [(part.phase, part.began - EPOCH, part.ended - EPOCH) for part in first.parts] == [
        ("screening", 10, 11),
        ("merging", 11, 13),
        ("scoring", 13, 17),
    ]
    assert [part.phase for part in second.parts] == ["scoring"]
    assert (first.worker, first.record.number, first.seconds) == ("w", 0, 7)
    assert found.seconds == 13
    assert found.share() == pytest.approx(10 / 13)
    assert [found.share((phase,)) for phase in PHASES] == pytest.approx([1 / 13, 2 / 13, 7 / 13])


def test_an_evaluation_that_several_shared_is_in_the_row_of_each():
    found = timeline([trial(0, "worker 1, worker 2", 10, 0.0, 2.0, 4.0), trial(1, "worker 2", 20, 0.0, 0.0, 3.0)])
    assert found.workers == ("worker 1", "worker 2")
    assert [(span.worker, span.record.number, span.seconds) for span in found.spans] == [
        ("worker 1", 0, 3),
        ("worker 2", 0, 3),
        ("worker 2", 1, 3),
    ]


def test_what_nobody_evaluated_or_does_not_tell_when_is_left_out():
    whole = trial(0, "w", 0)
    others = [
        running(trial(1, "w", 5)),
        trial(2, "w", None),
        trial(3, "w", 5, inherited=Inherited("earlier", 3)),
    ]
    assert timeline([whole, *others]) == timeline([whole])
    assert timeline(others) == timeline([]) == Timeline()
    assert (Timeline().seconds, Timeline().share(), Timeline().places, Timeline().spans) == (0, 0, 0, ())


def test_the_order_of_trials_and_their_ends_does_not_matter():
    records = busy(40, 3, pauses=(20,)).records
    assert timeline(records[::-1]) == timeline(records)


@pytest.mark.parametrize("workers", [1, 2, 8, 64])
@pytest.mark.parametrize("pauses", [(), (100,)])
def test_each_second_of_an_evaluation_is_counted_once(workers, pauses):
    study = busy(200, workers, pauses)
    found = study.timeline
    spent = sum(record.evaluation.seconds for record in study.records)
    capacity = sum(session.places * session.seconds for session in found.sessions)
    assert found.share() * capacity == pytest.approx(spent)
    assert sum(found.share((phase,)) for phase in PHASES) == pytest.approx(found.share())
    assert [session.places for session in found.sessions] == [workers] * (1 + len(pauses))
    assert found.share() == pytest.approx(sum(map(found.share_of, found.workers)) / workers)
    assert 0.5 < found.share() <= 1
    assert len(found.workers) == workers
    for worker in found.workers:
        row = [span for span in found.spans if span.worker == worker]
        assert all(before.ended <= after.began for before, after in pairwise(row))


def test_what_the_search_evaluates_itself_has_a_name_too():
    found = busy(10, 1).timeline
    assert found.workers == (HERE,)
    assert found.seconds == pytest.approx(sum(span.seconds for span in found.spans) + 9 * AFTER)


@pytest.mark.parametrize(
    ("longest", "gap", "sessions"), [(3.0, 59.0, 1), (3.0, 61.0, 2), (100.0, 61.0, 1), (100.0, 110.0, 2)]
)
def test_a_pause_is_longer_than_a_minute_and_than_any_evaluation(longest, gap, sessions):
    end = 1.0 + longest
    records = [trial(0, "a", 0, 0.0, 1.0, longest), trial(1, "b", end - 1), trial(2, "a", end + 3 + gap)]
    found = timeline(records)
    assert len(found.sessions) == sessions
    idle = gap if sessions == 1 else 0.0
    assert found.seconds == pytest.approx(end + 3 + idle + 4)


def test_a_worker_that_goes_on_alone_makes_it_no_pause():
    long = [trial(i, "a", 5 * i) for i in range(60)]
    assert len(timeline([*long, trial(60, "b", 0), trial(61, "b", 280)]).sessions) == 1


def test_a_clock_that_was_set_back_makes_no_evaluations_at_once():
    found = timeline([trial(0, "w", 0, 0.0, 1.0, 9.0), trial(1, "w", 4), trial(2, "w", 0.5, 0.0, 2.0, 1.0)])
    assert [(span.record.number, span.began - EPOCH, span.ended - EPOCH) for span in found.spans] == [
        (0, 0, 0.5),
        (2, 0.5, 3.5),
        (1, 4, 8),
    ]
    assert [part.phase for part in found.spans[0].parts] == ["merging"]
    assert found.places == 1


def test_workers_are_in_the_order_of_their_numbers():
    names = ["worker 10", "worker 2", "node-2 gpu 1", "node-10 gpu 0", "worker 1", "x", "node-2 gpu 0"]
    found = timeline([trial(i, name, i) for i, name in enumerate(names)])
    assert found.workers == (
        "node-2 gpu 0",
        "node-2 gpu 1",
        "node-10 gpu 0",
        "worker 1",
        "worker 2",
        "worker 10",
        "x",
    )


def test_a_worker_in_the_place_of_a_lost_one_makes_no_more_places():
    lost = [trial(0, "w1", 0), trial(1, "w2", 0), trial(2, "w2", 4), trial(3, "w3", 6, losses=1)]
    found = timeline(lost)
    assert (found.losses, found.places, len(found.workers)) == (1, 2, 3)
    alternating = [trial(i, f"w{i % 2}", 5 * i) for i in range(6)]
    assert timeline(alternating).places == 2, "though never at once"
    failed = trial(4, "w2", None, losses=2)
    assert timeline([*lost[:3], failed]).losses == 2
    assert timeline([failed]).losses == 2, "though nobody finished anything"


def test_how_busy_they_were_in_words():
    found = timeline([trial(0, "w1", 0, 1.0, 1.0, 3.0), trial(1, "w2", 5, 0.0, 0.0, 5.0, losses=1), trial(2, "w1", 5)])
    assert busy_words(found) == (
        "2 workers, busy 70% of 10 s (5% screening, 10% merging, 55% scoring); 1 worker lost over trials"
    )
    assert busy_words(busy(8, 1, pauses=(4,)).timeline) == (
        "the search itself, busy 98% of 3.3 min in 2 sessions (8% merging, 91% scoring)"
    )
