from __future__ import annotations

import json
import re
from base64 import b64decode
from dataclasses import replace

import numpy as np
import pytest
from busy import busy
from synthetic import view

from sae_moo.errors import InputError
from sae_moo.explore.draw.numbers import answers_of
from sae_moo.explore.pages.report import page, write_report

NASTY = ("base", "<script>alert(1)</script>", "a&b", '"c"')


def specs(text: str) -> list[dict]:
    """The figures of a page."""
    return [
        json.loads(each) for each in re.findall(r'<script type="application/json" id="[^"]+-data">(.*?)</script>', text)
    ]


def own(text: str) -> str:
    """What is ours of a page: all before plotly.js."""
    return text.partition('<script id="plotly">')[0]


@pytest.mark.parametrize("count", [0, 1, 3, 60])
def test_a_report_of_any_number_of_trials(tmp_path, count):
    study = view(count)
    size = write_report(study, tmp_path / "r.html", "s")
    text = (tmp_path / "r.html").read_text("utf-8")
    assert size == (tmp_path / "r.html").stat().st_size < 8e6
    assert re.findall(r'<tr id="row-(\d+)"', text) == [str(record.number) for record in study.front]
    assert all(spec["data"] for spec in specs(text))
    headings = [f'<h2 id="trial-{number}">' for number in {each.record.number for each in study.picks}]
    assert all(heading in text for heading in headings)
    if count == 0:
        assert "Nothing feasible so far" in text


@pytest.mark.parametrize("tasks", [("a",), ("a", "b"), ("a", "b", "c"), ("a", "b", "c", "d")])
def test_a_figure_for_any_number_of_objectives(tasks):
    kinds = {2: [{"scatter"}], 3: [{"scatter3d"}, {"scatter"}]}.get(len(tasks) + 1, [{"parcoords"}, {"scatter"}])
    found = specs(own(page(view(40, tasks), "s")))
    assert [{trace["type"] for trace in spec["data"]} for spec in found[: len(kinds)]] == kinds


def test_one_objective_alone():
    study = view(20)
    study = replace(study, objectives=study.objectives[:1], front=study.front[:1])
    assert "trial number" in own(page(study, "s"))


def test_who_was_busy_when_is_shown_where_it_is_known():
    study = busy(60, 3)
    lost = replace(study.records[40], losses=2)
    named = replace(study.records[41], worker="<b>&")
    study = replace(study, records=(*study.records[:40], lost, named, *study.records[42:]))
    text = own(page(study, "s"))
    assert '<a href="#workers">Workers</a>' in text
    section = text.partition('<h2 id="workers">Who was busy when</h2>')[2]
    assert section.startswith("\n<p>4 workers, busy 9")
    assert "2 workers lost over trials" in section[:200]
    cost = text.partition("What it cost")[2][:800]
    assert re.search(r"Evaluated by 4 workers, busy 96% of 8\.7 min; 2 workers were lost over trials", cost)
    (figure,) = (spec for spec in specs(text) if any(trace.get("name") == "merging" for trace in spec["data"]))
    assert "&lt;b&gt;&amp;" in figure["layout"]["yaxis"]["ticktext"]
    assert "<b>" not in json.dumps(figure)
    assert "workers" not in own(page(view(60), "s")).lower()


def test_a_search_that_evaluates_itself_has_a_row_and_no_workers():
    text = own(page(busy(30, 1), "s"))
    assert "\n<p>the search itself, busy 98% of" in text.partition('<h2 id="workers">')[2]
    assert "Evaluated by" not in text


def test_a_page_asks_nothing_of_the_network():
    text = own(page(view(30), "s"))
    assert re.findall(r'(?:src|href)="(?!#|data:)', text) == []
    assert "@import" not in text
    assert "default-src 'none'" in text


def test_names_are_names_and_nothing_else():
    study = view(40, ("<b>t", "x"), NASTY, name="</title><script>alert(2)</script>")
    text = own(page(study, "$(reboot) </pre>"))
    assert "<script>alert" not in text
    assert "<b>t" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "sae-moo export &#x27;$(reboot) &lt;/pre&gt;&#x27; --trial" in text
    for spec in specs(text):
        assert "<script>" not in json.dumps(spec)
        assert "<b>t" not in json.dumps(spec)


def choices(text: str) -> dict:
    """What the reader may choose from for the agreement of two trials."""
    return json.loads(re.search(r'id="answers">(.*?)</script>', text)[1])


def test_two_trials_to_choose_have_their_answers():
    study = view(60)
    found = choices(own(page(study, "s")))
    named = list(dict.fromkeys(each.record.number for each in (*study.picks, *study.references)))
    numbers = [each["number"] for each in found["trials"]]
    assert numbers == named + [r.number for r in study.front if r.number not in named]
    assert found["chosen"] == [study.picks[0].record.number, study.average.number]
    assert found["sizes"] == [40, 40]
    for each in found["trials"]:
        scores = study.records[each["number"]].evaluation.scores
        right = np.unpackbits(np.frombuffer(b64decode(each["right"]), np.uint8))[:80]
        assert right.tolist() == [*scores["a"], *scores["b"]]
    assert found["trials"][0]["said"].startswith(f"trial {numbers[0]} (knee")


def test_of_a_long_front_as_many_can_be_chosen_as_find_room():
    study = view(60)
    named = {each.record.number for each in (*study.picks, *study.references)}
    few = answers_of(study, most=80 * (len(named) + 2))
    rest = [r.number for r in study.front if r.number not in named]
    assert [r.number for r in few.trials][len(named) :] == [rest[0], rest[-1]]
    assert answers_of(view(0)) is None
    assert 'id="agreement"' not in own(page(view(1), "s")), "there are no two"


def test_a_trial_that_was_asked_other_instances_cannot_be_chosen():
    study = view(60)
    named = {each.record.number for each in (*study.picks, *study.references)}
    odd = next(record for record in study.front if record.number not in named)
    more = {task: row * 2 for task, row in odd.evaluation.scores.items()}  # the same means, so the same picks
    other = replace(odd, evaluation=replace(odd.evaluation, scores=more))
    changed = replace(study, front=tuple(other if record is odd else record for record in study.front))
    before, after = (tuple(r.number for r in answers_of(each).trials) for each in (study, changed))
    assert after == tuple(number for number in before if number != odd.number)


def test_what_is_not_drawn_is_told(monkeypatch):
    monkeypatch.setattr("sae_moo.explore.draw.numbers.MOST_DOTS", 10)
    study = view(60)
    text = own(page(study, "s"))
    assert f"Of {60 - len(study.front)} other trials 10 are drawn" in text
    assert [len(trace["customdata"]) for trace in specs(text)[1]["data"][:2]] == [10, len(study.front)]


def test_a_report_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    (tmp_path / "there.html").write_text("mine")
    with pytest.raises(InputError, match=r"there.html: exists already"):
        write_report(view(3), tmp_path / "there.html", "s")
    with pytest.raises(InputError, match="there is no folder"):
        write_report(view(3), tmp_path / "gone/r.html", "s")
    monkeypatch.setattr("pathlib.Path.replace", lambda self, target: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_report(view(3), tmp_path / "r.html", "s")
    assert [path.name for path in tmp_path.iterdir()] == ["there.html"]
