"""A base and experts of random weights, drawn on the card and opened as what the product opens: files."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from sae_moo import zoo
from sae_moo.experts.checkpoint import Checkpoint
from sae_moo.experts.pool import ExpertPool
from sae_moo.materialization.calibration import add_norms

ROOT = Path(__file__).parents[2]
GIB = 2**30
MEMORY = Path("/dev/shm")
APART = 0.002
"""Standard deviation of an expert's distance from the base, whose own is ten times that."""


def _loaded(name: str, file: Path) -> Any:
    """Return a study's file as a module: studies are no packages."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


materialize_study = _loaded("sae_moo_materialize_study", ROOT / "studies" / "materialize" / "measure.py")


class Made(Checkpoint):
    """A checkpoint that was drawn from seeds: its fingerprint says from which, so that its gigabytes are not read."""

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(str(self.folder).encode()).hexdigest()


def bytes_of(size: str, count: int = 3, width: int = 2) -> int:
    """Return the bytes of a base and `count` experts."""
    _, shapes = materialize_study.described(size)
    return (count + 1) * width * sum(torch.Size(shape).numel() for shape in shapes.values())


@contextmanager
def room(needed: int) -> Iterator[Path]:
    """Give an empty folder that has so much room, in memory where there is that much, and remove it.

    Raises:
        OSError: if neither memory nor the disk has it.
    """
    places = [place for place in (MEMORY, Path(tempfile.gettempdir())) if place.is_dir()]
    chosen = next((place for place in places if shutil.disk_usage(place).free > 1.05 * needed), None)
    if chosen is None:
        free = ", ".join(f"{place} has {shutil.disk_usage(place).free / GIB:.1f}" for place in places)
        raise OSError(f"the checkpoints need {needed / GIB:.1f} GiB; {free}: set TMPDIR, or take a smaller --size")
    with tempfile.TemporaryDirectory(prefix="sae_moo_gpu_", dir=chosen) as folder:
        yield Path(folder)


def made_pool(
    folder: Path,
    size: str,
    device: torch.device | str,
    dtypes: Sequence[torch.dtype] = (torch.bfloat16,),
    count: int = 3,
    edges: bool = False,
) -> ExpertPool:
    """Write a base and `count` experts, and open them; see `opened` for how to open them again.

    Args:
        folder: where to.
        size: one of `measure.SIZES` of `studies/materialize`.
        device: where the weights are drawn.
        dtypes: of the base, of the experts in turn, over and over.
        count: how many experts.
        edges: whether some tensors are what selections stumble over: nothing but zeros, the base's own, two values.
    """
    config, shapes = materialize_study.described(size)
    for number in range(count + 1):
        dtype = dtypes[number % len(dtypes)]
        path = folder / str(number)
        path.mkdir(parents=True)
        weights = {}
        for i, (name, shape) in enumerate(shapes.items()):
            drawn = _normal(shape, 0.02, i, device)
            if number and not (edges and i % 7 == 1 and number == 1):
                drawn += _normal(shape, APART, 1000 * number + i, device)
            if edges and i % 7 == 2 and number == 2:
                drawn.zero_()
            if edges and i % 7 == 3 and number:
                drawn = drawn.sign() * 0.25
            weights[name] = drawn.to(dtype).cpu()
        save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
        config.save_pretrained(path)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(zoo.checkpoint("base") / file, folder / "0")
    return opened(folder)


def opened(folder: Path) -> ExpertPool:
    """Open what `made_pool` wrote."""
    paths = sorted(folder.iterdir(), key=lambda path: int(path.name))
    return ExpertPool({f"x{i - 1}" if i else "base": Made(str(path), tied=True) for i, path in enumerate(paths)})


def _normal(shape: Sequence[int], spread: float, seed: int, device: torch.device | str) -> torch.Tensor:
    return torch.empty(tuple(shape), device=device).normal_(
        0, spread, generator=torch.Generator(device).manual_seed(seed)
    )


def norms(pool: ExpertPool) -> str:
    """Give a pool activation norms of no model, and return their digest: what they are does not matter to speed."""
    rows = {}
    for i, info in enumerate(pool.tensors):
        if info.prunable:
            rows[info.name] = torch.rand(info.shape[-1], generator=torch.Generator().manual_seed(i)) + 0.1
    return add_norms(pool, rows)
