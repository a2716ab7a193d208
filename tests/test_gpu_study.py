"""The study of a card, run where there is none: what it counts, judges and survives, with a card pretended."""

from __future__ import annotations

import itertools
import json
import logging
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import card_counts
import card_models
import card_speed
import check
import pytest
import torch
from card_bits import STORES, Pair, difference
from card_counts import Counts, counted, tallied
from card_models import made_pool, norms, room
from card_peers import FORMULAS, MERGEKIT, Peers
from card_recipes import GOALS, SETTINGS, candidates, everything, lines
from card_speed import Deadline, Findings, Floor, Measured

import sae_moo as sm
from sae_moo.materialization.check import check as check_fit
from sae_moo.recipe.methods import METHODS

CPU, CARD = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    return made_pool(tmp_path_factory.mktemp("pool") / "specks", "specks", CPU)


def event(kind: str, name: str, start: float, end: float = 0.0) -> dict:
    return {"ph": "X", "cat": kind, "name": name, "ts": start, "dur": (end or start + 1) - start}


EVENTS = [
    {"ph": "M", "name": "process_name", "pid": 1},
    event("cuda_runtime", "cudaStreamSynchronize", 5),  # before the candidate
    event("kernel", "an_earlier_kernel", 6),
    event("user_annotation", card_counts.REGION, 10, 100),
    event("gpu_user_annotation", card_counts.REGION, 11, 130),
    event("cuda_runtime", "cudaLaunchKernel", 20),
    event("cuda_driver", "cuLaunchKernelEx", 21),
    event("kernel", "combine_kernel", 40),
    event("kernel", "void at::native::vectorized_elementwise_kernel", 120),  # begun later, of this candidate
    event("gpu_memcpy", "Memcpy DtoH (Device -> Pageable)", 50),
    event("gpu_memset", "Memset (Device)", 51),
    event("cpu_op", "aten::item", 60),
    event("cpu_op", "aten::_local_scalar_dense", 60),
    event("cuda_runtime", "cudaMemcpyAsync", 61),
    event("cuda_runtime", "cudaStreamSynchronize", 62),
    event("cuda_driver", "cuEventSynchronize", 70),
    event("cuda_sync", "Stream Sync", 62),  # the same wait, as the device sees it
    event("cuda_runtime", "cudaMalloc", 80),
    event("cuda_runtime", "cudaDeviceSynchronize", 110),  # our own, after it
]


def test_what_is_counted_is_one_candidates():
    assert tallied(EVENTS) == {"launches": 2, "waits": 2, "items": 1, "allocations": 1}
    with pytest.raises(RuntimeError, match="one region"):
        tallied(EVENTS[:2])


def test_a_pretended_card_is_counted_whole(monkeypatch):
    held = iter([100, 120])
    modes = []

    class Profile:
        def __init__(self, activities):
            assert len(activities) == 2

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def export_chrome_trace(self, path):
            Path(path).write_text(json.dumps({"traceEvents": EVENTS}))

    def action() -> None:
        if modes and modes[-1] == "warn":
            for _ in range(2):
                card_counts.warnings.warn("called a synchronizing CUDA operation (Triggered internally)", stacklevel=1)

    monkeypatch.setattr(card_counts, "profile", Profile)
    for name, stand_in in {
        "synchronize": lambda device: None,
        "memory_allocated": lambda device: next(held),
        "reset_peak_memory_stats": lambda device: None,
        "max_memory_allocated": lambda device: 1100,
        "get_sync_debug_mode": lambda: 0,
        "set_sync_debug_mode": modes.append,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    assert counted(action, CARD) == Counts(2, 2, 1, warned=2, allocations=1, peak=1000, grown=20)
    assert modes == ["warn", 0], "as it was"


def test_numbers_fetched_are_counted_by_the_real_profiler():
    number = torch.ones(3)
    assert counted(lambda: [each.item() for each in number], CPU).items == 3


def test_every_method_is_among_the_recipes():
    assert set(SETTINGS) == {name for name in METHODS if "/" not in name}


def test_every_line_has_a_goal(pool):
    digest = norms(pool)
    assert set(GOALS) < set(lines(digest))
    assert set(FORMULAS) | set(MERGEKIT) <= set(lines(digest))
    assert all(line.goal >= 2 and 1 <= line.read <= 4 for line in lines(digest).values())


def test_the_formulas_beside_ours_are_the_same_merges(pool):
    """Within rounding; magnitudes that tie may go or stay."""
    ours, others = pool.live_model(torch.bfloat16), pool.live_model(torch.bfloat16)
    peers = Peers(pool, pool.parameters(others), CPU)
    todo = lines(norms(pool))
    for name in FORMULAS:
        sm.materialize(todo[name].recipe, pool, ours)
        for write in (peers.plain(name), peers.compiled(name)):
            write()
            mine, theirs = pool.parameters(ours), pool.parameters(others)
            near = [torch.isclose(mine[each], theirs[each], rtol=0.02, atol=1e-4).float().mean() for each in mine]
            assert min(near) > 0.9, name
    assert peers.plain("della .5") is None


def test_mergekit_gets_the_tensors_that_its_methods_take(pool, monkeypatch):
    calls = []

    def merge_tensors(tensors, method, parameters, **more):
        calls.append((len(tensors), torch.equal(tensors[0], base), method, parameters, more))
        return tensors[-1]

    base = pool.load("base", pool.tensors[0].name)
    parameters = pool.parameters(pool.live_model(torch.bfloat16))
    peers = Peers(pool, {pool.tensors[0].name: parameters[pool.tensors[0].name].view(base.shape)}, CPU)
    base = base if pool.tensors[0].prunable else base.view(-1)
    monkeypatch.setitem(sys.modules, "mergekit", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "mergekit.merge_methods", SimpleNamespace(merge_tensors=merge_tensors))
    for name in ("linear", "ties .5"):
        peers.mergekit(name)()
    assert calls == [
        (3, False, "linear", {"weight": [0.2, 0.3, 0.4]}, {}),
        (4, True, "ties", {"weight": [0.2, 0.3, 0.4], "density": 0.5}, {"base_index": 0}),
    ]
    assert peers.mergekit("slerp") is None
    monkeypatch.setitem(sys.modules, "mergekit.merge_methods", None)
    with pytest.raises(ImportError):
        peers.mergekit("linear")


def test_a_bit_that_differs_is_seen():
    one = torch.tensor([0.0, 1.0, torch.nan])
    assert difference(one, one.clone()) == ""
    assert difference(one, torch.tensor([-0.0, 1.0, torch.nan])) == "1 of 3 weights, by up to 0"
    assert difference(one, torch.tensor([0.5, 1.25, torch.nan])) == "2 of 3 weights, by up to 0.5"
    assert difference(one, torch.tensor([0.0, torch.nan, torch.nan])) == "1 of 3 weights, by up to inf"
    assert difference(one.half(), one.half() + 1) == "2 of 3 weights, by up to 1"


def test_differences_of_any_kind_are_faults(pool, monkeypatch):
    def other(recipe, pool, model):
        report = sm.materialize(recipe, pool, model)
        if model is pair.models[1]:
            pool.parameters(model)["model.norm.weight"][0] += 1
            return replace(report, sparsity=0.25)
        return report

    pair = Pair(pool, "bfloat16", CPU)
    assert pair.pools[0].remembered is not pair.pools[1].remembered, "the device finds everything out itself"
    assert pair.faults(sm.Expert("x0")) == []
    monkeypatch.setattr("card_bits.sm", SimpleNamespace(materialize=other))
    weights, report = pair.faults(sm.Expert("x0"))
    assert weights.startswith("model.norm.weight: 1 of 32 weights, by up to ")
    assert report == "sparsity: 0.0 on the CPU, 0.25 there"


def test_a_floor_moves_every_operand_and_one_model(monkeypatch):
    floor = Floor(1000, CPU)
    moved = []
    monkeypatch.setattr(torch.Tensor, "copy_", lambda self, source, non_blocking: moved.append(source.numel()))
    for read, wanted in ((1, 1000), (2, 1500), (3, 2000), (4, 2500)):
        moved.clear()
        floor._copy((read + 1) / 2)
        assert sum(moved) == wanted, "reading is half of a copy, writing the other half"


def test_a_goal_is_missed_by_time_or_by_waiting(pool):
    line = lines(norms(pool))["linear"]
    counts = Counts(3, 3, 0, 3, 0, 0, 0)
    assert card_speed._missed("linear", line, Measured(9.0, 2.0, 1.0, counts)) == []
    slow = Measured(9.0, 2.5, 1.0, Counts(3, 4, 0, 3, 0, 0, 0))
    assert card_speed._missed("linear", line, slow) == [
        "linear: 2.50 times the copy, the goal is 2",
        "linear: the host waits 4 times, the goal is 3",
    ]


def test_a_part_that_fails_or_hangs_does_not_end_the_others(monkeypatch, capsys, tmp_path):
    def failing(here, deadline):
        raise RuntimeError("no\nmore")

    def hanging(here, deadline):
        time.sleep(60)

    parts = {"bits": failing, "speed": hanging, "tiny": lambda here, deadline: Findings({"n": 1}, missed=["slow"])}
    monkeypatch.setattr(check, "PARTS", parts)
    here, start = check.Check(CPU, "specks", 1, tmp_path, 4, 9), time.monotonic()
    results = check.run(here, list(parts), seconds=0.1)
    assert results["bits"]["faults"] == ["RuntimeError: no"]
    assert results["speed"]["faults"] == ["TimeoutError: still not done after 0 s"]
    assert time.monotonic() - start < 5
    assert (results["tiny"]["ok"], results["tiny"]["goals missed"]) == (True, ["slow"])
    assert "FAILED RuntimeError: no\n" in capsys.readouterr().out


def test_parts_share_the_whole_time(monkeypatch, tmp_path):
    allowed = []

    def part(here, deadline):
        allowed.append(deadline.seconds)
        time.sleep(0.3)
        return Findings()

    monkeypatch.setattr(check, "PARTS", dict.fromkeys(("bits", "tests", "tiny"), part))
    here = check.Check(CPU, "specks", 1, tmp_path, 4, 9)
    check.run(here, ["bits", "tests", "tiny"], seconds=2.0, total=2.2)
    assert allowed[0] == 2.0
    assert 1.0 < allowed[1] < 2.0
    assert 1.0 <= allowed[2] < allowed[1], "what is left, a second at least"


def test_commands_run_from_the_checkout_and_fail_or_take_too_long_with_a_fault(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    code = f"import os; raise SystemExit(os.getcwd() != {str(check.ROOT)!r} or os.environ['PYTHONPATH'] != {str(check.ROOT) + ':/elsewhere'!r})"
    assert check._run([sys.executable, "-c", code], Deadline(60)).faults == []
    (fault,) = check._run([sys.executable, "-c", "raise SystemExit(4)"], Deadline(60)).faults
    assert fault == "exit status 4: -c raise SystemExit(4)"
    (fault,) = check._run([sys.executable, "-c", "import time; time.sleep(60)"], Deadline(1.0)).faults
    assert fault == "not done in 1 s: -c import time; time.sleep(60)"


def test_on_a_card_the_tests_and_the_study_of_deployment_are_commands(monkeypatch, tmp_path):
    ran = []
    monkeypatch.setattr(check, "_run", lambda command, deadline: ran.append(command) or Findings())
    monkeypatch.setattr(check, "TWO_FOUR", check.ROOT / "studies" / "gpu" / "check.py")  # any that is there
    here = check.Check(CARD, "1.5B", 1, tmp_path, 4, 9)
    assert here.judged
    for part in (check.tests, check.two_four):
        assert part(here, Deadline(1.0)).faults == []
    assert [command[1] for command in ran] == ["-m", str(check.TWO_FOUR)]
    monkeypatch.setattr(check, "TWO_FOUR", tmp_path / "gone.py", raising=True)
    monkeypatch.setattr(check, "ROOT", tmp_path)
    check.two_four(here, Deadline(1.0))
    assert len(ran) == 2, "what is not there is not run"


def test_the_figures_say_what_they_are_of(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (70 * 2**30, 80 * 2**30))
    monkeypatch.setattr("sae_moo.materialization.forms.form", lambda device: SimpleNamespace(words="fused on a card"))
    facts = check.surroundings(CARD)
    assert (facts["merging"], facts["memory"]) == ("fused on a card", "70.0 of 80.0 GiB free")
    assert "torch" in facts["versions"]


@pytest.mark.parametrize(("found", "code"), [(Findings(), 0), (Findings(missed=["m"]), 3), (Findings(faults=["f"], missed=["m"]), 1)])  # fmt: skip
def test_the_exit_status_says_what_came_of_it(monkeypatch, tmp_path, found, code):
    monkeypatch.setattr(check, "PARTS", {"tiny": lambda here, deadline: found})
    before = logging.root.manager.disable, os.environ.get("XDG_CACHE_HOME")
    assert check.main(["--device", "cpu", "--only", "tiny", "--output", str(tmp_path / "o.json")]) == code
    assert (logging.root.manager.disable, os.environ.get("XDG_CACHE_HOME")) == before, "as they were"
    document = json.loads((tmp_path / "o.json").read_text())
    assert document["surroundings"]["merging"].endswith("on cpu")
    assert document["parts"]["tiny"]["ok"] == (code != 1)


def test_no_candidate_that_is_timed_was_made_before(pool):
    for name, line in lines(norms(pool)).items():
        one, two, three = itertools.islice(candidates(line.recipe), 3)
        assert one == line.recipe
        assert len({one, two, three}) == 3, name
        check_fit(three, pool)


def test_lines_for_which_there_is_no_time_are_faults(pool):
    found = card_speed.tiny(pool, CPU, 1, Deadline(-1.0), False)
    assert len(found.faults) == len(lines(norms(pool)))


def test_models_lie_where_there_is_room_and_are_removed(monkeypatch, tmp_path):
    monkeypatch.setattr(card_models, "MEMORY", tmp_path / "gone")
    with room(1) as folder:
        assert folder.is_dir()
    assert not folder.exists()
    with pytest.raises(OSError, match="take a smaller --size"), room(2**60):
        pass


@pytest.mark.slow
def test_the_study_runs_without_a_card(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(check, "STORES", {"mixed": STORES["mixed"]})
    output = tmp_path / "o.json"
    small = ["--device", "cpu", "--size", "specks", "--rounds", "1", "--requests", "4", "--evaluations", "9"]
    assert check.main([*small, "--output", str(output)]) == 0, capsys.readouterr().out
    parts = json.loads(output.read_text())["parts"]
    assert set(parts) == set(check.PARTS)
    assert parts["bits"]["numbers"]["compared"] == len(everything(4, "0" * 64))
    assert set(parts["speed"]["numbers"]) == set(lines("0" * 64))
    assert parts["search"]["numbers"]["candidates"] == 6
