"""The report as a reader has it: opened from disk in a browser."""

from __future__ import annotations

import json

import pytest
from browser import opened
from synthetic import view

from sae_moo.explore.draw.numbers import agreement_of
from sae_moo.explore.draw.page.plots import agreement_figure
from sae_moo.explore.pages.report import write_report

pytestmark = pytest.mark.slow


def test_a_report_opens_from_disk_sorts_and_tells_trials_where_the_pointer_rests(tmp_path):
    study = view(500, names=("base", "math", "<b>code</b>", "law"))
    write_report(study, tmp_path / "r.html", "s")
    with opened(f"file://{tmp_path}/r.html") as page:
        page.wait("document.querySelectorAll('#figure-1 canvas').length > 0")  # the space to turn
        page.value("document.getElementById('figure-2').scrollIntoView({block: 'center'})")
        page.wait("document.querySelector('#figure-2 .hoverlayer') !== null")

        front = {record.number: record.values["sparsity"] for record in study.front}
        column = [head.strip() for head in page.value("[...document.querySelectorAll('th')].map(h => h.textContent)")]
        order = "[...document.querySelectorAll('#trials tbody tr')].map(row => Number(row.cells[0].textContent))"
        assert page.value(order) == list(front)
        page.value(f"document.querySelectorAll('#trials th button')[{column.index('sparsity')}].focus()")
        page.press("Enter")
        assert [front[number] for number in page.value(order)] == sorted(front.values(), reverse=True)
        page.press("Enter")
        assert [front[number] for number in page.value(order)] == sorted(front.values())
        page.value(f"document.querySelectorAll('#trials th button')[{column.index('made by')}].click()")
        assert page.value("document.querySelectorAll('#trials th[aria-sort]').length") == 1

        page.value("document.getElementById('figure-2').scrollIntoView({block: 'center'})")
        place = """(() => {
            const plot = document.getElementById('figure-2'), box = plot.getBoundingClientRect();
            const dots = plot.data[1], {xaxis, yaxis} = plot._fullLayout;
            const at = (axis, value) => axis._offset + axis.l2p(value);
            const x = plot.calcdata[1][0].x, y = plot.calcdata[1][0].y;
            return JSON.stringify([box.left + at(xaxis, x), box.top + at(yaxis, y), dots.customdata[0]]);
        })()"""
        x, y, number = json.loads(page.value(place))
        page.point_at(x, y)
        said = page.wait("document.querySelector('#figure-2 .hoverlayer .hovertext')?.textContent")
        assert said.startswith(f"trial {number}: a 0.")

        first, second = study.front[1], study.records[1]
        for i, record in enumerate((first, second)):
            page.value(f"""(() => {{
                const select = document.querySelectorAll('#chooser select')[{i}];
                const said = [...select.options].map(option => option.text.split(/[ ,]/)[1]);
                select.selectedIndex = said.indexOf('{record.number}');
                select.dispatchEvent(new Event('change'));
            }})()""")
        drawn = "document.querySelector('#chooser .plot').data.map(t => [t.name, [...t.x], t.text, t.customdata])"
        found = agreement_of(study, first, second)
        expected = [[t.name, list(t.x), list(t.text), list(t.customdata)] for t in agreement_figure(found).data]
        assert json.loads(page.value(f"JSON.stringify({drawn})")) == expected
        both, one, two, _ = found.sizes.sum(axis=0)
        said = page.value("document.querySelector('#chooser [role=status]').textContent")
        assert said == (
            f"Of 80 instances trial {first.number} gets {both + one} right and <b>code</b> {both + two}: "
            f"{both} both, {one} only trial {first.number}, {two} only <b>code</b>."
        )

        page.value("document.querySelectorAll('.plot').forEach(draw)")  # as for printing
        count = page.value("document.querySelectorAll('.plot').length")
        page.wait(f"document.querySelectorAll('.plot .main-svg, .plot canvas').length >= {count}")
        page.wait("document.querySelectorAll('.plot:not(.js-plotly-plot)').length === 0")
        assert page.errors == []
        assert {address.partition(":")[0] for address in page.asked} <= {"file", "data", "blob"}
