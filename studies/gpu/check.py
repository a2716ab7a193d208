"""Is merging on this card right, and as fast as its memory?

    python studies/gpu/check.py                                    # all of it: under four minutes on an H100
    python studies/gpu/check.py --only bits speed --output out.json
    python studies/gpu/check.py --device cpu --size tiny           # that the study itself runs, anywhere

Runs from a bare checkout. Data are drawn on the card. Exit status: 0 all is well; 1 something failed or bits differ;
3 nothing failed, but a goal was missed.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch  # noqa: E402  # the paths come first
from card_bits import STORES, Pair  # noqa: E402
from card_models import bytes_of, made_pool, norms, opened, room  # noqa: E402
from card_recipes import everything, lines  # noqa: E402
from card_search import search  # noqa: E402
from card_speed import Deadline, Findings, speed, streamed, tiny, told  # noqa: E402
from transformers.utils.logging import disable_progress_bar, enable_progress_bar  # noqa: E402

from sae_moo.recipe import Recipe  # noqa: E402

SECONDS = {"bits": 80, "tests": 45, "speed": 70, "streamed": 25, "tiny": 15, "search": 40, "two-four": 35}
"""Part -> how long it may take."""
TOTAL = 230.0
"""Seconds for all of them: kernels that are compiled for the first time take most of what they may."""
SIZES = ("1.5B", "60M", "tiny", "specks")
SMALL = ("tiny", "specks")
GOALS_AT = "1.5B"
TWO_FOUR = ROOT / "studies" / "deploy" / "two_four.py"
MOST_SHOWN = 40
LARGE = "60M"
"""Size of models whose bits are compared too, of the lines of the table of speed."""
SLOW = ("della .5",)  # on the CPU, which is what it is compared with


@dataclass
class Check:
    """What the parts share.

    Args:
        device: where merging is checked.
        size: of the models whose speed is measured.
        rounds: how often each line is measured.
        folder: where models and runs lie.
        requests: of the search.
        evaluations: likewise.
    """

    device: torch.device
    size: str
    rounds: int
    folder: Path
    requests: int
    evaluations: int
    _made: set[str] = field(default_factory=set)

    @property
    def judged(self) -> bool:
        """Whether the goals are about this size and device."""
        return self.device.type == "cuda" and self.size == GOALS_AT

    @property
    def odd(self) -> str:
        """The size of models whose bits are compared, and that a search of tiny ones has: with a row for each token."""
        return "specks" if self.size == "specks" else "odd"

    def pool(self, size: str):
        """Open the models of a size anew, drawn the first time."""
        place = self.folder / size
        if size not in self._made:
            start = time.perf_counter()
            made_pool(place, size, self.device)
            print(f"  models of {size} drawn and written to {place} in {time.perf_counter() - start:.1f} s", flush=True)
            self._made.add(size)
        return opened(place)


def tests(check: Check, deadline: Deadline) -> Findings:
    """The tests marked `gpu`."""
    if check.device.type != "cuda":
        print("  not run: they need a card")
        return Findings()
    command = [sys.executable, "-m", "pytest", "-n0", "-m", "gpu", "tests/gpu"]
    return _run(command, deadline)


def bits(check: Check, deadline: Deadline) -> Findings:
    """Every recipe on the device and on the CPU."""
    found = Findings()
    if check.device.type == "cpu":
        print("  the device is the CPU: it is compared with itself")
    compared = 0
    for store, (dtypes, rounded) in STORES.items():
        pool = made_pool(check.folder / f"bits {store}", check.odd, check.device, dtypes, edges=True)
        todo = everything(len(pool.groups), norms(pool))
        compared += _compared(Pair(pool, rounded, check.device), todo, store, deadline, found)
    if check.device.type != "cpu":
        pool = check.pool(LARGE)
        todo = {name: line.recipe for name, line in lines(norms(pool)).items() if name not in SLOW}
        compared += _compared(Pair(pool, "bfloat16", check.device), todo, LARGE, deadline, found)
    found.numbers = {"compared": compared}
    return found


def _compared(pair: Pair, todo: Mapping[str, Recipe], store: str, deadline: Deadline, found: Findings) -> int:
    """Compare recipes, add to the faults, and return how many were compared."""
    compared, differing, late = 0, 0, 0
    for name, recipe in todo.items():
        if deadline.left < 0:
            late += 1
            continue
        faults = found.attempt(f"{store}, {name}", lambda recipe=recipe: pair.faults(recipe))
        compared += faults is not None
        differing += bool(faults)
        found.faults += [f"{store}, {name}: {fault}" for fault in faults or ()]
    if late:
        found.faults.append(f"{store}: {late} of {len(todo)} recipes not compared, the part's time was over")
    print(f"  {store}: {compared} of {len(todo)} recipes compared, {differing} differ", flush=True)
    return compared


def _speed(check: Check, deadline: Deadline) -> Findings:
    """Experts that stay on the device."""
    return speed(check.pool(check.size), check.device, check.rounds, deadline, check.judged, check.size)


def _streamed(check: Check, deadline: Deadline) -> Findings:
    """Experts that are sent for every candidate."""
    return streamed(check.pool(check.size), check.device, min(check.rounds, 3), deadline, check.judged)


def _tiny(check: Check, deadline: Deadline) -> Findings:
    """Two hundred tiny tensors."""
    size = "specks" if check.size == "specks" else "tiny"
    return tiny(check.pool(size), check.device, check.rounds, deadline, check.device.type == "cuda")


def _search(check: Check, deadline: Deadline) -> Findings:  # noqa: ARG001  # its evaluations are counted
    """A search, split into merging, scoring and the rest."""
    size = check.odd if check.size in SMALL else check.size  # the tokenizer has more tokens than `tiny`
    place = check.folder / "search"
    place.mkdir(exist_ok=True)
    return search(check.pool(size), check.device, place, check.requests, check.evaluations, check.judged)


def two_four(check: Check, deadline: Deadline) -> Findings:
    """2:4 sparse matrices, by the study of deployment."""
    if not TWO_FOUR.is_file():
        print(f"  not run: there is no {TWO_FOUR.relative_to(ROOT)}")
        return Findings()
    if check.device.type != "cuda":
        print("  not run: it needs a card")
        return Findings()
    return _run([sys.executable, str(TWO_FOUR), "--shapes", "8192x4096", "--rows", "1", "8192"], deadline)


def _run(command: list[str], deadline: Deadline) -> Findings:
    """Run a command from the checkout's root, shown as it comes; a fault where it fails, or takes too long."""
    print(f"  {' '.join(command[1:])}", flush=True)
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    try:
        code = subprocess.run(
            command, cwd=ROOT, env=environment, timeout=max(1.0, deadline.left), check=False
        ).returncode
    except subprocess.TimeoutExpired:
        return Findings(faults=[f"not done in {deadline.seconds:.0f} s: {' '.join(command[1:])}"])
    return Findings({"code": code}, [] if code == 0 else [f"exit status {code}: {' '.join(command[1:])}"])


PARTS: dict[str, Callable[[Check, Deadline], Findings]] = {
    "bits": bits,  # compiles what the tests need as well
    "tests": tests,
    "speed": _speed,
    "streamed": _streamed,
    "tiny": _tiny,
    "search": _search,
    "two-four": two_four,
}


@contextlib.contextmanager
def ended_after(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in what takes much longer than it may: a part that hangs must not keep the others waiting."""

    def over(*_: object) -> None:
        raise TimeoutError(f"still not done after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run(check: Check, names: list[str], seconds: float | None, total: float = TOTAL) -> dict[str, dict]:
    """Run parts, each whatever became of the others, in the total of seconds; return what came of them, for JSON."""
    results: dict[str, dict] = {}
    whole = Deadline(total)
    for name in names:
        allowed = min(SECONDS[name] if seconds is None else seconds, max(1.0, whole.left))
        print(f"\n## {name}: {PARTS[name].__doc__}\n", flush=True)
        start = time.monotonic()
        try:
            with ended_after(min(2 * allowed, max(allowed, whole.left))):
                found = PARTS[name](check, Deadline(allowed))
        except Exception as error:  # whatever it is, the other parts are run
            logging.getLogger(__name__).debug("%s", name, exc_info=True)
            found = Findings(faults=[told(error)])
        took = time.monotonic() - start
        for fault in found.faults[:MOST_SHOWN]:
            print(f"  FAILED {fault}")
        if len(found.faults) > MOST_SHOWN:
            print(f"  FAILED and {len(found.faults) - MOST_SHOWN} more, in the file of results")
        print(f"  {name}: {'failed' if found.faults else 'fine'}, {took:.1f} s", flush=True)
        results[name] = {
            "seconds": took,
            "ok": not found.faults,
            "faults": found.faults,
            "goals missed": found.missed,
            "numbers": found.numbers,
        }
        if check.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
    return results


def surroundings(device: torch.device) -> dict[str, str]:
    """Return what the figures are of."""
    from sae_moo.jobs.bench import versions
    from sae_moo.materialization.forms import form

    facts = {"merging": form(device).words, "versions": versions(), "python": sys.version.split()[0]}
    if device.type == "cuda":
        free, all_of_it = torch.cuda.mem_get_info(device)
        facts |= {"cuda": str(torch.version.cuda), "memory": f"{free / 2**30:.1f} of {all_of_it / 2**30:.1f} GiB free"}
    with contextlib.suppress(ImportError):
        import triton

        facts["triton"] = triton.__version__
    return facts


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep warnings and bars of progress out of the tables."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    disable_progress_bar()
    try:
        yield
    finally:
        logging.disable(before)
        enable_progress_bar()


@contextlib.contextmanager
def cached_in(folder: Path) -> Iterator[None]:
    """Remember things there and not in the user's cache: nothing is worth keeping of models that are gone."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(folder)
    try:
        yield
    finally:
        os.environ.pop("XDG_CACHE_HOME")
        if before is not None:
            os.environ["XDG_CACHE_HOME"] = before


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default=GOALS_AT, help="of the models whose speed is measured")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu")
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--seconds", type=float, help="how long each part may take, instead of its own bound")
    parser.add_argument("--total", type=float, default=TOTAL, help="how long all of them may take, in seconds")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--requests", type=int, help="four-choice requests that the search scores; 800, of small models 40"
    )
    parser.add_argument("--evaluations", type=int, default=30, help="candidates of the search")
    parser.add_argument("--output", type=Path, default=Path("gpu_check.json"), help="the file of results")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device here; --device cpu --size tiny shows that the study itself runs")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    start = time.monotonic()
    facts = surroundings(device)
    for name, fact in facts.items():
        print(f"{name}: {fact}")
    names = [name for name in PARTS if options.only is None or name in options.only]
    large = {options.size} if {"speed", "streamed", "search"} & set(names) else set()
    needed = 2**28 + sum(map(bytes_of, large | ({LARGE} if "bits" in names else set())))
    with quiet(), room(needed) as folder, cached_in(folder / "cache"):
        requests = options.requests or (40 if options.size in SMALL else 800)
        check = Check(device, options.size, options.rounds, folder / "models", requests, options.evaluations)
        results = run(check, names, options.seconds, options.total)
    took = time.monotonic() - start
    missed = [goal for each in results.values() for goal in each["goals missed"]]
    failed = [name for name, each in results.items() if not each["ok"]]
    document = {"device": str(device), "size": options.size, "surroundings": facts, "seconds": took, "parts": results}
    options.output.write_text(json.dumps(document, indent=1) + "\n")
    print(f"\n## In {took:.0f} s\n")
    for goal in missed:
        print(f"  MISSED {goal}")
    print(f"failed: {', '.join(failed) or 'nothing'}; goals missed: {len(missed)}; results in {options.output}")
    return 1 if failed else 3 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
