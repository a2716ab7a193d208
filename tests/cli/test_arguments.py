"""What is wrong with an argument is said in our words, with what came and what there is."""

from __future__ import annotations

import pytest
from commands import call, refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "tiny", "--trial", "x", "-o", "m"], "'--trial': expected a whole number, got 'x'\n"),
        (["figures", "tiny", "--against=1.5", "-o", "m"], "'--against': expected a whole number, got '1.5'\n"),
        (["search", "c.yaml", "--evaluations", "x"], "'--evaluations': expected a whole number, got 'x'\n"),
        (["search", "c.yaml", "--seed", ""], "'--seed': expected a whole number, got ''\n"),
        (["pick", "tiny", "--tolerance", "y"], "'--tolerance': expected a number, got 'y'\n"),
        (["dashboard", "tiny", "--port", "70000"], "'--port': expected less than or equal to 65535, got '70000'\n"),
        (["compare", "c.yaml", "--workers", "0"], "'--workers': expected greater than or equal to 1, got '0'\n"),
        (["figures", "tiny", "-o", "m", "--type", "jpg"], "'--type': 'jpg' is not one of 'png', 'svg', 'pdf'"),
        (["evaluate", "zoo:math", "--config", "c.yaml", "--split", "foo"], "'--split': 'foo' is not one of 'search'"),
        (["pick", "tiny", "--weights", "facts=inf"], "weights: expected finite weights of at least 0, got inf"),
        (["pick", "tiny", "--where", "facts>=0.5", "--where", "facts<=0.4"], "facts >= 0.5 and facts <= 0.4: nothing"),
        (["export", "tiny", "--trial", "0", "-o", "m", "--max-shard-size", "5"], "expected one such as 5GB or 800MiB"),
    ],
)
def test_a_bad_argument(there, arguments, message):
    assert message in refused(*arguments)


@pytest.mark.parametrize("run", ["runs", "emptyrun", "", "NOPE"])
def test_where_there_is_no_run_those_that_there_are_are_told(here, run):
    call("search", "c.yaml", "--evaluations", "1")
    (here / "emptyrun").mkdir()
    for command in (["front", run], ["pick", run], ["trials", run]):
        assert refused(*command).endswith("; there are tiny\n")
    if not run:
        assert "got no name" in refused("front", run)


def test_a_picture_makes_its_folder_as_an_export_does(there, tmp_path):
    call("front", "tiny", "--figure", f"{tmp_path}/new/folder/front.svg")
    assert (tmp_path / "new/folder/front.svg").stat().st_size > 1000
    assert "exists already" in refused("front", "tiny", "--figure", f"{tmp_path}/new/folder/front.svg")


def test_a_packed_file_tells_the_measure_that_its_estimate_did(there, tmp_path):
    rows = [line.split("  ") for line in call("export", "tiny", "--trial", "0", "--estimate").stdout.splitlines()]
    packed = next([cell.strip() for cell in row if cell.strip()] for row in rows if "packed" in row[0].split())
    told = call("export", "tiny", "--trial", "0", "-o", f"{tmp_path}/m", "--format", "packed").stdout
    assert f": {packed[1]} of weights, {packed[2]} of the " in told
    assert "in all" in told
    assert max(len(" ".join(row).strip()) for row in rows) < 200
