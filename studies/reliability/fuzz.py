"""Damaged input of every kind, read in this process: how much is refused in one message, and what is not.

    python studies/reliability/fuzz.py --inputs 10000

An input is a good file, changed at random: its text (bytes lost, doubled, exchanged; lines moved) or what it says (a value
in its tree becomes another: of another type, out of range, a path, markup, a Python object for YAML). It may be read, or
refused by an error of ours. Anything else raised is a traceback for the user; an answer of over 20,000 characters, or one
that took over 2 seconds, is noted too, and so is a file that the input made somebody write.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import save_file

import sae_moo as sm
from sae_moo import zoo
from sae_moo.deploy.mergekit.reading import read_configurations
from sae_moo.deploy.packing import unpack
from sae_moo.errors import SaeMooError
from sae_moo.evaluate.tasks import read_items

ROOT = Path(__file__).resolve().parents[2]
LONGEST, SLOWEST = 20_000, 2.0
OUTCOMES = ("read", "refused", "traceback", "long", "slow", "wrote")

ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**63, -(2**70), 1e308, -0.0, float("nan"), float("inf"), 1e-320, "", " ", "\x00", "é\u2028",
    "nan", "1e3", "../../../etc/passwd", "/dev/null", "~nosuchuser/x", "~", "zoo:", "zoo:../x", "a/b/c", "os:system",
    "<script>alert(1)</script>", "{{7*7}}", "${HOME}", "%s%s%n", "$(touch pwned)", "`touch pwned`", "\ud800", "x" * 5000,
    "2001-01-01", "12:30:45", "0x1F", "1_000", "<<", "&a", [], {}, [[]], [{}], {"": None}, ["a"] * 50, {"a": {"b": {"c": 1}}},
    [1, 2.5, "3"], {"__class__": "os"}, {"py/object": "os.system"},
)  # fmt: skip
TAGS = (
    '!!python/object/apply:os.system ["touch pwned"]', "!!python/name:os.system", "!!binary aGVsbG8=", "!!timestamp 2001-99-99",
    "2001-02-30", "!!set {a, b}", "&a [*a, *a]", "*nowhere", "<<: {x: 1}", "? [a, b]\n: c", "!!float nan", "!x y", "--- \n...",
    "%YAML 9.9", "\t- a", "{" * 200, "[" * 2000, "9" * 5000, "- " * 300,
)  # fmt: skip


@dataclass(frozen=True)
class Target:
    """One kind of input.

    Args:
        files: good files.
        read: reads a damaged one, as a command would.
        tree: reads and writes what a file says: json, yaml, or None for bytes alone.
    """

    files: tuple[Path, ...]
    read: Callable[[Path], object]
    tree: str | None = None


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Return bytes with a few of them lost, doubled, changed or moved."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5, 30))):
        if not data:
            break
        at, length = rng.randrange(len(data)), rng.choice((1, 1, 2, 8, 64, 1000))
        match rng.randrange(7):
            case 0:
                del data[at : at + length]
            case 1:
                data[at:at] = data[at : at + length]
            case 2:
                data[at : at + length] = rng.randbytes(len(data[at : at + length]))
            case 3:
                data[at:at] = rng.choice((*TAGS, "\n", " ", ":", '"', "\\u0000", "-", "#", "\r", "\ufeff")).encode()
            case 4:
                data[at] ^= 1 << rng.randrange(8)
            case 5:
                del data[at:]
            case 6:
                lines = data.split(b"\n")
                lines.insert(rng.randrange(len(lines)), lines.pop(rng.randrange(len(lines))))
                data = bytearray(b"\n".join(lines))
    return bytes(data)


def places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each container in a tree with each of its keys."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield node, key
        yield from places(value)


def changed(tree: Any, rng: random.Random) -> Any:
    """Return a tree with one to three values changed, lost, doubled or renamed."""
    tree = json.loads(json.dumps(tree))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        found = list(places(tree))
        if not found:
            return rng.choice(ODD)
        inside, key = rng.choice(found)
        match rng.randrange(6):
            case 0:
                del inside[key]
            case 1 if isinstance(inside, dict):
                inside[rng.choice((f"{key}s", str(key)[:-1], str(key).upper(), "", "unknown", "\ud83d"))] = inside.pop(
                    key
                )
            case 2 if isinstance(inside, list):
                inside.append(inside[key])
            case 3:
                other, elsewhere = rng.choice(found)
                inside[key] = json.loads(json.dumps(other.get(elsewhere) if isinstance(other, dict) else None))
            case _:
                inside[key] = rng.choice(ODD)
    return tree


def written(tree: Any, form: str, rng: random.Random) -> bytes:
    """Return what a tree is in a file; in YAML sometimes with a tag in the place of a value."""
    if form == "json":
        text = json.dumps(tree, ensure_ascii=rng.random() < 0.5)
    elif form == "lines":
        text = "\n".join(json.dumps(entry) for entry in tree) if isinstance(tree, list) else json.dumps(tree)
    else:
        text = yaml.safe_dump(tree, sort_keys=False)
        if rng.random() < 0.2:
            lines = text.split("\n")
            at = rng.randrange(len(lines))
            lines[at] = f"{lines[at].partition(':')[0]}: {rng.choice(TAGS)}"
            text = "\n".join(lines)
    return text.encode("utf-8", "surrogatepass")


def read(form: str, data: bytes) -> Any:
    """Return what a good file says."""
    text = data.decode()
    return yaml.safe_load(text) if form == "yaml" else json.loads(text) if form == "json" else [
        json.loads(line) for line in text.splitlines()
    ]  # fmt: skip


def run_of_the_zoo(folder: Path) -> Path:
    """Return the folder of a small run."""
    config = sm.Config.load(ROOT / "configs" / "quickstart.yaml", ["search.population=6", "search.evaluations=8"])
    raw = config.model_dump(mode="json", exclude_unset=True)
    for task in raw["tasks"]:
        task |= {"search": 4, "test": 4}
    sm.search(sm.Config.from_dict(raw), root=folder)
    return folder / "quickstart"


def targets(folder: Path) -> dict[str, Target]:
    """Return the kinds of input, over good files in a folder."""
    run = run_of_the_zoo(folder / "runs")
    pool = sm.ExpertPool.open("zoo:base", {name: f"zoo:{name}" for name in ("math", "lingua", "logic")})
    opened = sm.Run.open(run)
    recipes = []
    for record in opened.trials()[-3:]:
        recipes.append(folder / f"recipe{record.number}.json")
        recipes[-1].write_text(record.asked.to_json())
    packed = folder / "model.saepack"
    sm.export(opened, opened.front()[0], "for a study", packed, form="packed")
    merges = []
    for i, text in enumerate(
        (
            "models:\n  - model: zoo:math\n    parameters: {weight: 0.5}\n  - {model: zoo:lingua, parameters: {weight: [0, 1]}}\n"
            "merge_method: ties\nbase_model: zoo:base\nparameters: {density: 0.5, normalize: true}\ndtype: float32\n",
            "slices:\n  - sources:\n      - {model: zoo:math, layer_range: [0, 2]}\n      - {model: zoo:lingua, layer_range: [0, 2]}\n"
            "merge_method: slerp\nbase_model: zoo:math\nparameters:\n  t:\n    - {filter: self_attn, value: [0, 0.5, 1]}\n"
            "    - value: 0.5\ntokenizer_source: base\n",
        )
    ):
        merges.append(folder / f"merge{i}.yaml")
        merges[-1].write_text(text)
    items = folder / "items.jsonl"
    items.write_text(
        "\n".join(json.dumps({"prompt": f"{i} is", "choices": ["a", "b"], "label": i % 2}) for i in range(9))
    )
    answers = folder / "answers.jsonl"
    answers.write_text("\n".join(json.dumps({"prompt": f"{i} is", "answer": str(i)}) for i in range(9)))
    adapter = folder / "adapter"
    adapter.mkdir()
    settings = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["q_proj"],
        "bias": "none",
        "use_rslora": False,
    }
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    facts = pool.checkpoints["base"].tensors["model.layers.0.self_attn.q_proj.weight"].shape
    parts = {"lora_A": np.ones((2, facts[1]), np.float32), "lora_B": np.ones((facts[0], 2), np.float32)}
    place = "base_model.model.model.layers.0.self_attn.q_proj"
    save_file({f"{place}.{name}.weight": value for name, value in parts.items()}, adapter / "adapter_model.safetensors")
    model = folder / "model"
    shutil.copytree(zoo.checkpoint("math"), model)

    def beside(good: Path, name: str, use: Callable[[Path], object]) -> Callable[[Path], object]:
        """Return a reader of a folder in which one file is the damaged one."""

        def reader(path: Path) -> object:
            copy = path.parent / "beside"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(good, copy)
            shutil.copyfile(path, copy / name)
            return use(copy)

        return reader

    def look(copy: Path) -> object:
        opened = sm.Run.open(copy)
        return opened.front(), opened.trials()

    def fit(copy: Path) -> object:
        return sm.ExpertPool.open("zoo:base", {"math": str(copy)})

    def unpacked(path: Path) -> object:
        shutil.rmtree(path.parent / "out", ignore_errors=True)
        return unpack(path, path.parent / "out")

    configurations = (*sorted((ROOT / "configs").glob("*.yaml")), ROOT / "examples" / "own_task" / "search.yaml")
    return {
        "configuration": Target(configurations, sm.Config.load, "yaml"),
        "recipe": Target(tuple(recipes), lambda path: sm.Recipe.from_json(path.read_text(errors="surrogateescape")).digest(pool), "json"),
        "mergekit configuration": Target(tuple(merges), read_configurations, "yaml"),
        "items to choose from": Target((items,), lambda path: read_items(path, "multiple_choice"), "lines"),
        "items to answer": Target((answers,), lambda path: read_items(path, "likelihood"), "lines"),
        "journal": Target((run / "study.journal",), beside(run, "study.journal", look), "lines"),
        "run.json": Target((run / "run.json",), beside(run, "run.json", look), "json"),
        "adapter's settings": Target((adapter / "adapter_config.json",), beside(adapter, "adapter_config.json", fit), "json"),
        "adapter's weights": Target((adapter / "adapter_model.safetensors",), beside(adapter, "adapter_model.safetensors", fit)),
        "model's settings": Target((model / "config.json",), beside(model, "config.json", fit), "json"),
        "tokenizer": Target((model / "tokenizer.json",), beside(model, "tokenizer.json", fit), "json"),
        "packed model": Target((packed,), unpacked),
    }  # fmt: skip


class TooSlow(BaseException):
    """An input took too long; no library can swallow this."""


def _late(*_: object) -> None:
    raise TooSlow


def outcome(target: Target, path: Path, tell: Callable[[str], None]) -> str:
    """Return what came of one damaged file."""
    signal.signal(signal.SIGALRM, _late)
    signal.alarm(30)
    start = time.perf_counter()
    before = set(os.listdir())
    said = ""
    try:
        target.read(path)
        found = "read"
    except SaeMooError as error:
        found, said = "refused", str(error)
    except TooSlow:
        found = "slow"
        tell("over 30 seconds")
    except Exception:
        found = "traceback"
        tell("".join(traceback.format_exc().splitlines(keepends=True)[-9:]))
    finally:
        signal.alarm(0)
    if len(said) > LONGEST:
        found = "long"
        tell(f"{len(said)} characters: {said[:200]}")
    if time.perf_counter() - start > SLOWEST and found in ("read", "refused"):
        found = "slow"
        tell(f"{time.perf_counter() - start:.1f} s: {said[:200]}")
    if set(os.listdir()) != before:
        found = "wrote"
        tell(f"wrote {set(os.listdir()) - before}")
    return found


def main() -> int:
    """Print counts; the exit status is 1 if anything was neither read nor refused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000, help="in all")
    parser.add_argument("--only", help="one kind of input")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder that what was neither read nor refused is copied into")
    arguments = parser.parse_args()
    good = True
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        os.environ["XDG_CACHE_HOME"] = f"{scratch}/cache"
        kinds = targets(Path(scratch))
        kinds = {name: kinds[name] for name in kinds if arguments.only in (None, name)}
        place = Path(scratch) / "damaged"
        place.mkdir()
        os.chdir(place.parent)
        print("| input | " + " | ".join(("files", *OUTCOMES)) + " |")
        print("|---" * (2 + len(OUTCOMES)) + "|")
        each = -(-arguments.inputs // len(kinds))
        for name, target in kinds.items():
            counts, rng = Counter(), random.Random(f"{arguments.seed} {name}")
            for i in range(each):
                file = rng.choice(target.files)
                data = file.read_bytes()
                if target.tree and rng.random() < 0.6:
                    data = written(changed(read(target.tree, data), rng), target.tree, rng)
                else:
                    data = damaged(data, rng)
                path = place / file.name
                path.write_bytes(data)
                told: list[str] = []
                found = outcome(target, path, told.append)
                counts[found] += 1
                if told:
                    good = False
                    print(f"{name} {i}: {found}: {told[0]}", file=sys.stderr, flush=True)
                    if arguments.keep:
                        arguments.keep.mkdir(parents=True, exist_ok=True)
                        (arguments.keep / f"{name.replace(' ', '-')}-{i}{file.suffix}").write_bytes(data)
            print(f"| {name} | {each} | " + " | ".join(str(counts[which]) for which in OUTCOMES) + " |", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
