"""Exporting a trial of a large study by the command line: memory, and what is left when it is killed.

    python studies/deploy/trial.py --size 1.5B --folder /tmp/deploy

Searches a few merges of the checkpoints that `measure.py` makes (with its --folder they are found again), then exports
the sparsest: with the cache of fingerprints empty, with it full, and after exports that were killed half-way. Memory is
the peak of the command's anonymous pages, sampled from outside every 5 ms.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from measure import SIZES, checkpoints

COMMAND = [sys.executable, "-m", "sae_moo.cli.main"]


def study(folder: Path) -> int:
    """Search a few merges of the checkpoints, unless that was done; return the trial that is exported."""
    items = [{"prompt": f"fact {i} is", "answer": f" {i}"} for i in range(6)]
    (folder / "facts.jsonl").write_text("\n".join(map(json.dumps, items)))
    config = {
        "study": {"name": "large"},
        "models": {"base": "base", "experts": {"math": "math", "code": "code"}, "dtype": "bfloat16"},
        "tasks": [{"name": "facts", "data": "facts.jsonl", "kind": "likelihood", "search": 4, "test": 2}],
        "objectives": ["facts", "sparsity"],
        "search": {"population": 7, "evaluations": 8},
    }
    (folder / "large.yaml").write_text(json.dumps(config))
    subprocess.run([*COMMAND, "search", "large.yaml", "--json"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    told = subprocess.run([*COMMAND, "trials", "large", "--json"], cwd=folder, check=True, stdout=subprocess.PIPE)
    return max(json.loads(told.stdout)["trials"], key=lambda trial: trial["sparsity"] or 0.0)["number"]


def exported(folder: Path, trial: int, cache: Path, end: tuple[signal.Signals, float] | None = None) -> dict:
    """Run one export, or kill it; return what it took and left behind."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    command = [*COMMAND, "export", "large", "--trial", str(trial), "--output", "out"]
    environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
    start, peak = time.perf_counter(), 0
    running = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while running.poll() is None:
        status = Path(f"/proc/{running.pid}/status").read_text()
        if "RssAnon:" in status:
            peak = max(peak, sum(1024 * int(status.split(f"{key}:")[1].split()[0]) for key in ("RssAnon", "RssShmem")))
        written = sum(path.stat().st_size for path in folder.glob(".out.partial-*/*"))
        if end is not None and written > end[1]:
            running.send_signal(end[0])
            end = None
        time.sleep(0.005)
    weights = sorted((folder / "out").glob("*.safetensors"))
    digest = hashlib.sha256(b"".join(hashlib.file_digest(path.open("rb"), "sha256").digest() for path in weights))
    return {
        "exit": running.returncode,
        "seconds": time.perf_counter() - start,
        "peak": peak / 2**30,
        "folder": (folder / "out").exists(),
        "partial": len(list(folder.glob(".out.partial-*"))),
        "digest": digest.hexdigest()[:12] if weights else "",
    }


def main() -> None:
    """Print a table of exports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    asked = parser.parse_args()
    folder = asked.folder / asked.size
    checkpoints(folder, asked.size)
    trial = study(folder)
    cache = folder / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    half = (folder / "base" / "model.safetensors").stat().st_size / 2
    print("| export | exit | seconds | peak memory, GiB | folder by its name | partial folders | weights |")
    print("|---|---|---|---|---|---|---|")
    for name, end in (
        ("cold", None),
        ("fingerprints known", None),
        ("SIGTERM half-way", (signal.SIGTERM, half)),
        ("SIGKILL half-way", (signal.SIGKILL, half)),
        ("after it", None),
    ):
        found = exported(folder, trial, cache, end)
        left = "yes" if found["folder"] else "no"
        row = (name, found["exit"], f"{found['seconds']:.0f}", f"{found['peak']:.2f}", left, found["partial"])
        print(f"| {' | '.join(map(str, row))} | {found['digest']} |", flush=True)


if __name__ == "__main__":
    main()
