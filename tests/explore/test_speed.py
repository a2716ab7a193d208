"""Speed beside what is in [0, 1]: axes, planes, picks, pages; numbers that people read are speeds, not shares."""

from __future__ import annotations

import numpy as np
import pytest
from synthetic import view

from sae_moo.errors import InputError
from sae_moo.explore.decide.rules import Condition, Wish
from sae_moo.explore.draw.numbers import axes_of, planes
from sae_moo.explore.draw.page.front import front_figures
from sae_moo.explore.draw.print.front import front_picture
from sae_moo.explore.pages.report import page
from sae_moo.explore.words import objective_words, trial_words
from sae_moo.objectives import Speed
from sae_moo.objectives.pareto import non_dominated

SPEED = (Speed(),)


def names(pairs):
    return [(x.name, y.name) for x, y in pairs]


def test_axes_have_the_speed_and_one_scale_for_all_has_what_it_saves():
    shown = view(60, ("a",), speed=SPEED)
    axis = axes_of(shown)[-1]
    values = axis.values(shown.done)
    assert (values >= 1).all()
    assert values.max() > 2
    assert axis.title == "speed (modelled tokens per second, the base's are 1)" == objective_words(Speed())
    assert axis.scaled == "1 - 1/speed"
    assert [axis.shares(record) for record in shown.done] == pytest.approx(1 - 1 / values)
    assert [each.scaled for each in axes_of(shown)[:-1]] == ["a", "sparsity"]


def test_planes_hold_every_pair_or_accuracy_over_each_that_is_not_scored():
    assert names(planes(view(20, ("a",), speed=SPEED))) == [("speed", "a"), ("speed", "sparsity"), ("sparsity", "a")]
    assert names(planes(view(20, speed=SPEED))) == [("sparsity", "accuracy"), ("speed", "accuracy")]
    assert names(planes(view(20, ("a", "b", "c")))) == [("sparsity", "accuracy")]


@pytest.mark.parametrize("tasks", [("a",), ("a", "b")])
def test_figures_are_drawn_with_it(tasks):
    shown = view(60, tasks, speed=SPEED)
    assert len(front_figures(shown)) == 2
    picture = front_picture(shown)
    panels = [axes for axes in picture.axes if axes.get_xlabel()]
    reach = max(record.values["speed"] for record in shown.done)
    assert any(axes.get_xlabel().startswith("speed (") and axes.get_xlim()[1] >= reach for axes in panels)
    if len(tasks) == 2:
        parallel = picture.axes[0]
        assert [label.get_text() for label in parallel.get_xticklabels()] == ["a", "b", "sparsity", "1 - 1/speed"]
        assert parallel.get_ylim()[1] < 1.2, "all have one scale"


def test_the_front_and_its_volume_are_those_of_the_times_saved():
    shown = view(60, ("a",), speed=SPEED)
    points = np.array([[record.values[o.name] for o in shown.objectives] for record in shown.done])
    best = {record.number for record, keep in zip(shown.done, non_dominated(points), strict=True) if keep}
    assert {record.number for record in shown.front} == best
    assert 0 < shown.hypervolume < 1
    assert shown.hypervolumes[-1] == pytest.approx(shown.hypervolume)


def test_picks_name_speeds():
    shown = view(60, ("a",), speed=SPEED)
    found, why = shown.pick([Condition.parse("speed>=1.5")])
    assert found.values["speed"] >= 1.5
    assert "with speed >= 1.5" in why
    best = max(shown.front, key=lambda record: record.values["speed"])
    assert shown.pick(rule=Wish({"speed": 100.0}))[0] == best
    with pytest.raises(InputError, match=r"wish: expected values from 0 to 1, got sparsity=1\.5"):
        Wish({"sparsity": 1.5})
    with pytest.raises(InputError, match="wish: expected a number from 0, got speed=inf"):
        Wish({"speed": float("inf")})
    able = [r for r in shown.front if r.values["a"] >= shown.base.values["a"]]
    fastest = next(each for each in shown.picks if each.name == "fastest at least as accurate as the base")
    assert fastest.record.values["speed"] == max(record.values["speed"] for record in able)


def test_pages_and_words_tell_it_whether_it_is_an_objective_or_not():
    shown = view(60, ("a",), speed=SPEED)
    text = page(shown, "run")
    assert ">speed</button>" in text
    record = shown.front[0]
    assert f"speed {record.values['speed']:.3f}" in trial_words(shown, record)[0]
    object.__setattr__(shown, "objectives", shown.objectives[:-1])
    assert f"; modelled speed {record.values['speed']:.3f}." in trial_words(shown, record)[0]
    assert page(shown, "run").count(">speed</button>") == 1


def test_nothing_is_said_of_it_where_nobody_asked():
    shown = view(30, ("a",))
    assert "speed" not in " ".join(trial_words(shown, shown.front[0]))
    assert ">speed</button>" not in page(shown, "run")
