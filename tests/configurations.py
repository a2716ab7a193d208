"""Reading configurations in tests, good ones and those with faults."""

from __future__ import annotations

from pathlib import Path

import pytest

from sae_moo.config.document import Config
from sae_moo.errors import InputError


def load(folder: Path, text: str, *overrides: str, **how) -> Config:
    """Return a configuration from its text, written as ``c.yaml``; further arguments are those of `Config.load`."""
    path = folder / "c.yaml"
    path.write_text(text)
    return Config.load(path, overrides, **how)


def faults(folder: Path, text: str, *overrides: str, **how) -> list[str]:
    """Return what is wrong with a configuration, a line each, places without the folder."""
    with pytest.raises(InputError) as caught:
        load(folder, text, *overrides, **how)
    return [line.strip().removeprefix(f"{folder}/") for line in str(caught.value).splitlines()[1:]]
