"""The dashboard as a reader has it: a study of three objectives and 500 trials in a browser."""

from __future__ import annotations

import base64
import io
import json

import matplotlib.image
import pytest
from browser import opened, served
from synthetic import run_folder

from sae_moo.explore.pages.dashboard import shown_of, with_notes
from sae_moo.explore.run import Run

pytestmark = pytest.mark.slow
FRONT = "document.getElementById('graph-pareto-front')"
PLACE = f"""(() => {{
    const plot = {FRONT}, box = plot.getBoundingClientRect(), {{xaxis, yaxis}} = plot._fullLayout;
    const [dot] = plot.calcdata[3], at = (axis, value) => axis._offset + axis.l2p(value);
    return JSON.stringify([box.left + at(xaxis, dot.x), box.top + at(yaxis, dot.y), plot.data[3].x.length]);
}})()"""


def test_the_pages_of_a_study_draw_and_tell(tmp_path):
    run = Run.open(run_folder(tmp_path / "s", 500))
    address = served(with_notes(run.storage, run.name, lambda: shown_of(run.view(), "s")))
    pages = address.replace("/api", "/dashboard/studies/0")
    with opened(pages) as page:
        page.send("Emulation.setDeviceMetricsOverride", width=1300, height=2600, deviceScaleFactor=1, mobile=False)
        page.wait(f"{FRONT}?.calcdata?.[3]?.length")
        page.wait("document.querySelectorAll('[id^=user-defined-plot].js-plotly-plot').length === 3")
        x, y, count = json.loads(page.value(PLACE))
        assert count == len(run.front())
        page.point_at(x, y)
        said = page.wait(f"{FRONT}.querySelector('.hoverlayer .hovertext')?.textContent")
        told = json.loads(said[said.index("{") : said.rindex("}") + 1])
        record = run.trial(told["number"])
        assert told["values"] == list(record.values.values())
        assert record.number in {each.number for each in run.front()}
        picture = base64.b64decode(page.send("Page.captureScreenshot", format="png")["data"])
        pixels = matplotlib.image.imread(io.BytesIO(picture))[..., :3]
        inked = (pixels[100:, 100:].min(axis=-1) < 0.7).mean(axis=1)
        assert (inked > 0).mean() > 0.4, "there is something to see all the way down"

        page.open(f"{pages}/trials?numbers={record.number}")
        page.wait(f"document.body.innerText.includes('sae-moo export s --trial {record.number} ')")
        page.open(f"{pages}/smartSelection")
        ranges = (
            "document.querySelector('[id*=parallel].js-plotly-plot')?.data?.[0]?.dimensions?.map(each => each.range)"
        )
        page.wait(f"{ranges}?.length >= 7")
        assert max(high for _, high in page.value(ranges)) <= 1.5, "axes end where the trials do"
        page.open(f"{pages}/note")
        page.wait("document.body.innerText.includes('What was found')")
        assert page.errors == []
