"""Digests and values that must not change while the code does: recorded once, compared after.

    python tests/recorded/record.py                       # compare all; exit 1 on any difference
    python tests/recorded/record.py --only algorithms     # quickstart | algorithms | weights | exports
    python tests/recorded/record.py --write               # record anew: where a change of results is meant, and said

It goes by what users have: the command line with its JSON, and the names of `sae_moo`. What is recorded:

quickstart   the 360 trials of ``configs/quickstart.yaml`` (takes two minutes), and their hypervolume
algorithms   a few evaluations by every algorithm, in every setting that takes another path
weights      SHA-256 of the weights that every merge method and every pruning gives
exports      every format of a trial

A trial is number, state, digest (16 digits), values, operator, generation, parents; floats are compared bit for bit.
Left out on purpose: seconds, dates and versions; paths of this machine; model cards and tokenizers, which name
versions or are written by other libraries; standard errors. Files from earlier runs are not read (the cache folder of
the user is replaced), one thread computes, on the CPU.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from copy import deepcopy
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import cases
import torch
import transformers
import zstandard

import sae_moo as sm
from sae_moo.cli.main import main as command_line

FIXTURE = Path(__file__).with_name("recorded.json")
QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
LIBRARIES = (
    *("torch", "numpy", "pymoo", "optuna", "numba", "cma", "scipy", "scikit-learn"),
    *("transformers", "safetensors", "zstandard"),
)
DIGITS = 16

Section = dict[str, Any]
Recorder = Callable[[Path], Any]


def made_on() -> dict[str, str]:
    """Return what the numbers may depend on beside our code: libraries, and how this processor rounds."""
    found = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            found[library] = "none"
    return found | {"rounding": rounding()}


def rounding() -> str:
    """Return a digest of sums, products and functions of floats that processors round differently; none of our code."""
    with one_thread():
        draws = torch.Generator().manual_seed(0)
        left, right = torch.randn(96, 64, generator=draws), torch.randn(64, 160, generator=draws)
        product = left @ right
        parts = (product, product.softmax(1), product.exp(), left.norm(dim=0), product.sum(1), product.double().sum(0))
    return hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()[:DIGITS]


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread: sums over several may round otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def current_folder(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def call(folder: Path, *arguments: str) -> str:
    """Run ``sae-moo`` in a folder, in this process; return what it prints on stdout."""
    before, printed, code = sys.argv, StringIO(), None
    sys.argv = ["sae-moo", *arguments]
    try:
        with current_folder(folder), redirect_stdout(printed):
            command_line()
    except SystemExit as end:
        code = end.code
    finally:
        sys.argv = before
    if code not in (None, 0):
        raise RuntimeError(f"sae-moo {' '.join(arguments)}: exit status {code}")
    return printed.getvalue()


def trials(folder: Path, run: str) -> list[list[Any]]:
    document = json.loads(call(folder, "trials", run, "--json"))
    return [
        [
            trial["number"],
            trial["state"],
            trial["digest"][:DIGITS],
            [trial["values"][name] for name in document["objectives"] if trial["values"]],
            trial["operator"],
            trial["generation"],
            trial["parents"],
        ]
        for trial in document["trials"]
    ]


def record_quickstart(folder: Path) -> Section:
    with one_thread():
        printed = call(folder, "search", str(QUICKSTART), "--set", "models.device=cpu", "--json")
    return {"hypervolume": [[json.loads(printed)["hypervolume"]]], "trials": trials(folder, "quickstart")}


def search(folder: Path, name: str, changes: Mapping[str, Any]) -> None:
    raw = deepcopy(cases.GROUND)
    for section, change in changes.items():
        raw[section] = {**raw.get(section, {}), **change} if isinstance(change, dict) else change
    if "constraints" in changes:
        raw["constraints"] = changes["constraints"]
    raw["study"] = {"name": name, **raw.get("study", {})}
    with one_thread():
        sm.search(sm.Config.from_dict(raw, folder), root=folder / "runs")


def write_own_items(folder: Path) -> None:
    """Write items for the kinds of tasks that users bring: sums, as the zoo's models have learned them."""
    sums = [(a, b) for a in range(2, 8) for b in range(1, 8)]
    rows: dict[str, list[dict[str, Any]]] = {
        "likelihood": [{"prompt": f"{a} + {b} =", "answer": f" {a + b}"} for a, b in sums],
        "exact_match": [{"prompt": f"{a} + {b} =", "answer": f" {a + b}"} for a, b in sums],
        "multiple_choice": [
            {"prompt": f"{a} + {b} =", "choices": [f" {a + b + i - b % 3}" for i in range(3)], "label": b % 3}
            for a, b in sums
        ],
    }
    for kind, items in rows.items():
        (folder / f"{kind}.jsonl").write_text("\n".join(map(json.dumps, items)))


def record_search(folder: Path, name: str) -> list[list[Any]]:
    """Return the trials of a search of `cases.SEARCHES`."""
    study = name.replace(" ", "-").replace(":", "-")
    write_own_items(folder)
    search(folder, study, cases.SEARCHES[name])
    return trials(folder, study)


def missing(name: str) -> str | None:
    """Return the package that a search needs and that is not installed."""
    package = cases.NEEDS.get(name)
    return package if package is not None and find_spec(package) is None else None


def record_algorithms(folder: Path) -> Section:
    return {name: record_search(folder, name) for name in cases.SEARCHES if missing(name) is None}


def record_weights(folder: Path) -> Section:  # a recorder; nothing is written
    """Return SHA-256 of the weights, sparsity and digest of every recipe, in two dtypes."""
    pool = sm.ExpertPool.open("zoo:base", cases.EXPERTS)
    rows: Section = {}
    with one_thread():
        calibration = sm.calibrate(pool, ["3 + 4 = 7", "the quick brown fox", "red is not blue"], 64)
        for dtype in ("float32", "bfloat16"):
            model = pool.live_model(getattr(torch, dtype))
            for name, recipe in _recipes(pool, calibration):
                report = sm.materialize(sm.Cast(recipe, dtype), pool, into=model)
                state = model.state_dict()
                hashed = hashlib.sha256()
                for key in sorted(state):
                    hashed.update(key.encode() + state[key].contiguous().view(torch.uint8).numpy().tobytes())
                digest = report.recipe.digest(pool)[:DIGITS]
                rows[f"{name}, {dtype}"] = [[hashed.hexdigest()[:DIGITS], report.sparsity, digest]]
    return rows


def _recipes(pool: Any, calibration: str) -> Iterator[tuple[str, sm.Recipe]]:
    for name, (method, settings, params) in cases.MERGES.items():
        inputs = tuple(sm.Expert(each) for each in settings.get("inputs", cases.EXPERTS))
        if "by group" in settings:
            weights = tuple((0.2 + 0.1 * i, 0.5, 0.3 - 0.02 * i) for i in range(len(pool.groups)))
        else:
            weights = settings["weights"]
        yield f"merge {name}", sm.Merge(method, inputs, weights, tuple(params.items()))
    merged = sm.Merge("linear", tuple(map(sm.Expert, cases.EXPERTS)), (0.5, 0.3, 0.4))
    for name, settings in cases.PRUNES.items():
        bound = {"calibration": calibration} if settings.get("criterion") == "wanda" else {}
        yield f"prune {name}", sm.Prune(merged, **{"sparsity": 0.4, **settings, **bound})


def record_export(folder: Path, name: str) -> Section:
    """Return what identifies every export of a run of `cases.EXPORTS`: format -> rows."""
    changes, forms = cases.EXPORTS[name]
    study = f"exported-{name}".replace(" ", "-")
    search(folder, study, changes)
    number = [row[0] for row in trials(folder, study) if row[1] == "complete"][-1]
    found: Section = {}
    with one_thread():
        for form in forms:
            target = folder / (f"{study}-{form}" + (".yaml" if form == "mergekit" else ""))
            call(folder, "export", study, "--trial", str(number), "--format", form, "--output", target.name, "--json")
            rows = [["trial", number]]
            if form == "mergekit":
                rows += [["line", re.sub(r"model: /.*/", "model: ", line)] for line in target.read_text().splitlines()]
            elif form in ("packed", "delta"):
                rows += _packed(target)
                base = ("--base", "zoo:base") if form == "delta" else ()
                call(folder, "unpack", target.name, "--output", f"{target.name}-back", *base)
                rows += _folder(target.with_name(f"{target.name}-back"))
            else:
                rows += _folder(target)
            found[f"{name}, {form}"] = rows
    return found


def record_exports(folder: Path) -> Section:
    return {form: rows for name in cases.EXPORTS for form, rows in record_export(folder, name).items()}


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:DIGITS]


def _canonical(document: Any) -> str:
    return _sha256(json.dumps(document, sort_keys=True).encode())


def _folder(folder: Path) -> list[list[Any]]:
    """Return the names in a folder, SHA-256 of its weights, what its configuration and recipe say."""
    rows: list[list[Any]] = [["files", " ".join(sorted(path.name for path in folder.iterdir()))]]
    rows += [[path.name, _sha256(path.read_bytes())] for path in sorted(folder.glob("*.safetensors"))]
    if (folder / "config.json").is_file():
        config = json.loads((folder / "config.json").read_text())
        rows.append(["config.json", _canonical({k: v for k, v in config.items() if k != "transformers_version"})])
    recipe = json.loads((folder / "recipe.json").read_text())
    experts = {name: expert["fingerprint"] for name, expert in recipe.pop("experts").items()}
    tensors = recipe.pop("tensors", None)
    rows += [["digest", recipe.pop("digest")], ["fingerprints", _canonical(experts)]]
    return [*rows, ["tensors", _canonical(tensors)], ["recipe.json without places", _canonical(recipe)]]


def _packed(path: Path) -> list[list[Any]]:
    """Return SHA-256 of what the index of a packed file says of its tensors, by the layout that its readers know."""
    content = path.read_bytes()
    offset, size = struct.unpack("<QQ", content[-56:-40])
    packed = content[offset : offset + size]
    index = json.loads(zstandard.ZstdDecompressor().decompressobj().decompress(packed))
    base = None if index["base"] is None else index["base"]["fingerprint"]
    start = min(row["offset"] for row in index["files"])
    return [
        ["magic", content[:8].decode("ascii")],
        ["base", None if base is None else base[:DIGITS]],
        ["files", " ".join(row["name"] for row in index["files"])],
        ["tensors in the index", _canonical(index["tensors"])],
        ["frames of tensors", _sha256(content[8:start])],
    ]


SECTIONS: Mapping[str, Recorder] = {
    "quickstart": record_quickstart,
    "algorithms": record_algorithms,
    "weights": record_weights,
    "exports": record_exports,
}


def recorded() -> Section:
    """Return the fixture."""
    return json.loads(FIXTURE.read_text(encoding="utf-8"))


def differences(now: Sequence[Any], then: Sequence[Any]) -> list[str]:
    """Return a line for every row that is not bit for bit the recorded one."""
    rows = [json.loads(json.dumps(row)) for row in now]
    lines = [f"recorded {old}, now {new}" for old, new in zip(then, rows, strict=False) if old != new]
    lines += [f"recorded {old}, now nothing" for old in then[len(rows) :]]
    return lines + [f"recorded nothing, now {new}" for new in rows[len(then) :]]


def compare(section: str, now: Section, then: Section) -> bool:
    """Print what of a section is equal and what is not; return whether all is."""
    equal = different = 0
    for name in {**then, **now}:
        if name not in now and (package := missing(name)) is not None:
            print(f"{section}: {name}: not compared, {package} is not installed")
            continue
        lines = differences(now.get(name, []), then.get(name, []))
        equal += len(now.get(name, [])) - sum(not line.endswith("now nothing") for line in lines)
        different += len(lines)
        if lines:
            print(f"{section}: {name}: {len(lines)} different; the first one: {lines[0]}")
    print(f"{section}: {equal} equal, {different} different", flush=True)
    return not different


def write(fixture: Section) -> None:
    """Write the fixture, a line a row, so that a change can be read."""

    def text(rows: Sequence[Any]) -> str:
        lines = ",\n".join(json.dumps(row, separators=(",", ":"), ensure_ascii=False) for row in rows)
        return f"[\n{lines}]"

    parts = [f'"made on":{json.dumps(fixture["made on"])}']
    for section in (name for name in SECTIONS if name in fixture):
        entries = ",\n".join(f"{json.dumps(name)}:{text(rows)}" for name, rows in fixture[section].items())
        parts.append(f'"{section}":{{\n{entries}}}')
    FIXTURE.write_text("{" + ",\n".join(parts) + "}\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(SECTIONS), help="one section")
    parser.add_argument("--write", action="store_true", help="record anew instead of comparing")
    arguments = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    here = made_on()
    fixture = recorded() if FIXTURE.is_file() else {}
    if not arguments.write:
        other = [
            f"{name} {value}, here {here[name]}" for name, value in fixture["made on"].items() if here[name] != value
        ]
        if other:
            print("recorded with " + "; ".join(other))
    elif lacking := [f"{name} ({package})" for name in cases.SEARCHES if (package := missing(name)) is not None]:
        print(f"not recorded, for want of packages: {', '.join(lacking)}", file=sys.stderr)
        return 2
    fine = True
    for name in [arguments.only] if arguments.only else SECTIONS:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
            now = SECTIONS[name](Path(folder))
        if arguments.write:
            fixture[name] = now
            print(f"{name}: {sum(map(len, now.values()))} recorded", flush=True)
        else:
            fine &= compare(name, now, fixture[name])
    if arguments.write:
        write({**fixture, "made on": here})
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
