"""What looking at a long run costs: the report and the figures of made-up runs, and the page in a headless Chromium.

Usage: python studies/explore/measure.py [--trials 5000] [--instances 200] [--tasks 2] [--folder DIR]

The run is one of tests/synthetic.py, on disk as a search leaves it (a journal of lineages, scores per instance and
sparsity, no models); making it takes longer than all else. Commands are whole processes. With --folder the run is made
there once and kept.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests")]

import synthetic  # noqa: E402  # it lies in tests/
from browser import Page, opened  # noqa: E402

FRAME = "new Promise(done => requestAnimationFrame(() => setTimeout(done)))"


def timed(*arguments: str) -> tuple[float, str]:
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "sae_moo.cli.main", *arguments], check=True, stdout=subprocess.PIPE)
    return time.perf_counter() - start, done.stdout.decode()


def looked_at(page_file: Path) -> dict[str, float | int | str]:
    """Open a page as a reader does: load it, scroll through it, sort its table, choose two trials."""
    found: dict[str, float | int | str] = {}
    with opened("about:blank") as page:
        start = time.perf_counter()
        page.open(f"file://{page_file}")
        page.wait("document.querySelector('.plot .main-svg, .plot canvas') !== null")
        found["open, first figure drawn, s"] = time.perf_counter() - start
        found["loaded (load event), s"] = (
            page.value("performance.getEntriesByType('navigation')[0].loadEventEnd") / 1000
        )

        height = page.value("document.documentElement.scrollHeight")
        start, steps = time.perf_counter(), 0
        while page.value("window.innerHeight + window.scrollY < document.documentElement.scrollHeight - 2"):
            page.value("window.scrollBy(0, 600)")
            page.send("Runtime.evaluate", expression=FRAME, awaitPromise=True)
            steps += 1
        page.wait("document.querySelectorAll('.plot:not(.js-plotly-plot)').length === 0")
        found["page height, pixels"], found["scrolled to the end, s"] = height, time.perf_counter() - start
        found["steps of 600 pixels"] = steps
        found["figures, all drawn"] = page.value("document.querySelectorAll('.js-plotly-plot').length")

        heads = page.value("[...document.querySelectorAll('#trials th')].map(head => head.textContent.trim())")
        column = heads.index("sparsity")
        milliseconds = clocked(page, f"document.querySelectorAll('#trials th button')[{column}].click()")
        cell = f"row => Number(row.cells[{column}].dataset.value)"
        values = page.value(f"[...document.querySelectorAll('#trials tbody tr')].map({cell})")
        assert values == sorted(values, reverse=True), "the table does not sort"
        found["rows of the table"], found["sorting them, ms"] = len(values), milliseconds

        choose = "const s = document.querySelectorAll('#chooser select')[0]; s.selectedIndex = s.options.length - 1;"
        choose += "s.dispatchEvent(new Event('change'))"
        found["choosing another trial, ms"] = clocked(page, choose)
        found["trials to choose from"] = page.value("document.querySelector('#chooser select').options.length")
        found["errors in the console"] = len(page.errors)
        found["addresses of a network"] = sum(not each.startswith(("file:", "data:", "blob:")) for each in page.asked)
    return found


def clocked(page: Page, script: str) -> float:
    return page.value(f"(() => {{ const t = performance.now(); {script}; return performance.now() - t; }})()")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=5000)
    parser.add_argument("--instances", type=int, default=200, help="of each task")
    parser.add_argument("--tasks", type=int, default=2)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as own:
        folder = (options.folder or Path(own)).resolve()
        run = folder / f"made-{options.trials}-{options.tasks}-{options.instances}"
        if not run.is_dir():
            run.mkdir(parents=True)
            synthetic.INSTANCES = options.instances
            synthetic.run_folder(run, options.trials, tuple("abcdefghij"[: options.tasks]))
        page = Path(own) / "report.html"
        seconds, said = timed("report", str(run), "--output", str(page), "--json")
        told = json.loads(said)
        print(
            f"{options.trials} trials, {options.tasks} tasks of {options.instances} instances, journal {size(run)} MB"
        )
        print(f"report: {seconds:.1f} s the whole process, {told['seconds']:.1f} s the command")
        print(f"page: {told['bytes'] / 1e6:.1f} MB")
        print(f"figures: {timed('figures', str(run), '--output', str(Path(own) / 'f'))[0]:.1f} s the whole process")
        for name, value in looked_at(page).items():
            print(f"{name}: {value:.2f}" if isinstance(value, float) else f"{name}: {value}")


def size(folder: Path) -> str:
    return f"{sum(file.stat().st_size for file in folder.iterdir()) / 1e6:.1f}"


if __name__ == "__main__":
    main()
