"""What local files a dataset is made of, and what they hold."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def content_of(path: Any, settings: dict[str, Any]) -> str | None:
    """Return a digest of the names and all bytes of the local files that a dataset is made of; None if of none.

    Args:
        path: as `datasets.load_dataset` takes it: a format, a folder, the name of a dataset.
        settings: its further arguments.
    """
    files = _local_files(path, settings)
    return _digest(files) if files else None


def _local_files(path: Any, settings: dict[str, Any]) -> list[Path]:
    """Return the local files that a dataset is made of, in an order of their own."""
    root = Path(settings.get("data_dir") or "")
    named = settings.get("data_files")
    places = [str(root / each) for each in _texts(named) if "://" not in each]
    if not places and isinstance(path, str) and Path(path).is_dir():
        places = [str(Path(path) / "**")]
    elif not places and settings.get("data_dir") and root.is_dir():
        places = [str(root / "**")]
    found = {Path(each) for place in places for each in [place, *glob.glob(place, recursive=True)]}
    return sorted(each for each in found if each.is_file())


def _texts(named: Any) -> Iterator[str]:
    if isinstance(named, dict):
        named = list(named.values())
    if isinstance(named, (list, tuple)):
        for each in named:
            yield from _texts(each)
    elif named is not None:
        yield str(named)


def _digest(files: list[Path]) -> str:
    whole = hashlib.sha256()
    for file in files:
        whole.update(f"{file}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as handle:
            while part := handle.read(1 << 20):
                whole.update(part)
    return whole.hexdigest()[:32]
