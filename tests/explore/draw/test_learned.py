from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from stand_ins import record
from synthetic import view

from sae_moo.explore.draw import learned
from sae_moo.explore.draw.learned import moves_of, panels_of
from sae_moo.explore.draw.page.learned import learning_figure, moves_figure
from sae_moo.explore.draw.print.learned import learning_picture, moves_picture
from sae_moo.explore.pages.dashboard import shown_of
from sae_moo.explore.pages.figures import write_figures
from sae_moo.explore.pages.report import page
from sae_moo.objectives import Evaluation
from sae_moo.recipe import Expert, Merge
from sae_moo.searchers.learning import CYCLE, OFFSPRING, POPULATION, PULL, SHARE

LOSSES = {CYCLE: 0.2, PULL: 0.1, OFFSPRING: 0.1, POPULATION: 0.4}


def taught(places, numbers=LOSSES, count=30):
    """A study in which a generator made the trials of these places, each of the one before it."""
    study = view(count)
    records = tuple(
        replace(each, params={**each.params, **numbers}, parents=(i - 1,)) if i in places else each
        for i, each in enumerate(study.records)
    )
    return replace(study, records=records)


def test_numbers_are_told_from_the_evaluation_that_has_them_on():
    study = taught({12, 13, 20, 21})
    records = list(study.records)
    records[20], records[21] = (replace(records[i], params={**LOSSES, CYCLE: 0.05, SHARE: 0.3}) for i in (20, 21))
    records[20], records[13] = replace(records[20], told=13), replace(records[13], told=20)
    panels = panels_of(replace(study, records=tuple(records)))
    assert [list(panel.curves) for panel in panels] == [[CYCLE, PULL], [POPULATION, OFFSPRING], [SHARE]]
    steps, values = panels[0].curves[CYCLE]
    assert steps.tolist() == [13, 14, 21, 22], "in the order in which they were told"
    assert values.tolist() == [0.2, 0.05, 0.2, 0.05]
    steps, values = panels[0].curves[PULL]
    assert (steps.tolist(), values.tolist()) == ([13, 22], [0.1, 0.1]), "where it begins and where it ends"


def test_moves_lie_where_all_candidates_scatter_most():
    base, experts = view(0), (Expert("math"), Expert("code"))
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((20, 2)) * (1.0, 0.3)
    weights[:, 1] -= weights[:, 0] * (weights[:, 0] @ weights[:, 1]) / (weights[:, 0] @ weights[:, 0])
    weights -= weights.mean(axis=0)
    records = [
        replace(
            record(i, accuracy=float(i % 2), sparsity=0.0),
            recipe=Merge("task_arithmetic", experts, tuple(map(float, row))),
            params=LOSSES if i in (5, 8, 9) else {},
            parents=(i - 1,),
            values={"a": float(i % 2), "b": float(i % 2), "sparsity": 0.0},
        )
        for i, row in enumerate(weights)
    ]
    records[9] = replace(records[9], evaluation=Evaluation(experts[0], reason="NaN"), values={}, feasible=False)
    moves = moves_of(replace(base, records=tuple(records)))
    assert [(a.number, b.number) for a, b in moves.pairs] == [(4, 5), (7, 8)], "what failed is nowhere"
    assert (moves.total, moves.gained) == (2, 1)
    assert [(a.number, b.number) for a, b in moves.better(True)] == [(4, 5)]
    done = [i for i in range(20) if i != 9]
    groups = len(base.groups) ** 0.5
    shown = np.stack([axis.values([records[i] for i in done]) for axis in (moves.right, moves.up)], axis=1)
    expected = groups * (weights[done] - weights[done].mean(axis=0))
    assert np.linalg.norm(shown, axis=1) == pytest.approx(np.linalg.norm(expected, axis=1), abs=1e-6)
    assert abs(np.corrcoef(shown[:, 0], expected[:, 0])[0, 1]) > 0.99
    assert abs(np.corrcoef(shown[:, 1], expected[:, 1])[0, 1]) > 0.99
    share = np.var(expected[:, 0]) / np.var(expected, axis=0).sum()
    assert moves.right.title == f"first principal axis ({share:.0%} of the variance)"


def test_of_many_moves_some_are_drawn_and_all_are_counted(monkeypatch):
    monkeypatch.setattr(learned, "MOST_MOVES", 3)
    moves = moves_of(taught(set(range(10, 29, 2))))
    assert [child.number for _, child in moves.pairs] == [10, 18, 28]
    assert moves.total == 10
    assert "3 of them are drawn" in moves.caption


def test_candidates_that_are_all_alike_have_no_axes():
    alike = [replace(record(i, 0.5, 0.0), recipe=Expert("math"), params=LOSSES, parents=(0,)) for i in range(3)]
    assert moves_of(replace(view(0), records=tuple(alike))) is None


def test_who_searches_with_a_generator_sees_it_and_nobody_else(tmp_path):
    plain, own = view(12), taught({8, 11}, count=12)
    assert panels_of(plain) == []
    assert moves_of(plain) is None
    assert '<h2 id="generator">' in page(own, "s")
    assert {"learning", "moves"} <= shown_of(own, "s").figures.keys()
    assert not {"learning", "moves"} & shown_of(plain, "s").figures.keys()
    assert {"learning", "moves"} <= write_figures(own, tmp_path / "own").files.keys()


def test_pages_and_pictures_draw_the_same():
    study = taught({12, 20})
    panels, moves = panels_of(study), moves_of(study)
    figure, picture = moves_figure(study, moves), moves_picture(study, moves)
    dots = np.stack([moves.right.values(moves.trials), moves.up.values(moves.trials)], axis=1)
    drawn = [trace for trace in figure.data if trace.customdata is not None]
    assert np.stack([drawn[0].x, drawn[0].y], axis=1) == pytest.approx(dots, abs=1e-6)
    offsets = [each.get_offsets() for each in picture.axes[0].collections]
    assert any(len(each) == len(dots) and np.allclose(each, dots) for each in offsets)
    page_lines, print_lines = learning_figure(panels).data, [a.lines for a in learning_picture(panels).axes]
    assert [trace.name for trace in page_lines] == [line.get_label() for lines in print_lines for line in lines]
