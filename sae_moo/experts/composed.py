"""A model with an adapter that is no adapter of the base: one model of its own, written ``model+adapter``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sae_moo.experts.adapters import Adapter
from sae_moo.experts.checkpoint import Checkpoint, TensorFacts
from sae_moo.files.places import located

PLUS = "+"


class Composed:
    """A checkpoint with an adapter over it; tokenizer, settings and files besides are the checkpoint's.

    Args:
        source: ``model+adapter``, each as `checkpoint.locate` takes it.
        relative_to: folder that relative paths start from.

    Raises:
        InputError: if one of them cannot be opened, or they do not fit.
    """

    def __init__(self, source: str, relative_to: Path | None = None) -> None:
        under, _, adapter = source.partition(PLUS)
        self.source = source
        self._model = Checkpoint(under, relative_to)
        self._adapter = Adapter(adapter, self._model, relative_to)
        self.origin = f"{self._model.origin}{PLUS}{self._adapter.origin}"
        self.folder = self._model.folder
        self.config: Mapping[str, Any] = self._adapter.config
        self.tensors: Mapping[str, TensorFacts] = self._adapter.tensors
        self.tied, self.vocabulary = self._adapter.tied, self._adapter.vocabulary

    @property
    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of the weights."""
        return self._adapter.fingerprint

    def load(self, name: str) -> Tensor:
        """Return one tensor."""
        return self._adapter.load(name)

    def stored(self, name: str) -> bool:
        """Say whether a tensor is read as it lies in a file."""
        return self._adapter.stored(name)

    def shares_base(self, name: str) -> bool:  # noqa: ARG002  # the adapter's base is not the pool's
        """Return False: nothing is known of the pool's base."""
        return False


def is_composed(source: str, relative_to: Path | None = None) -> bool:
    """Say whether a source is a model with an adapter: it has one plus sign inside, and there is no such folder."""
    under, plus, adapter = source.partition(PLUS)
    if not (under and plus and adapter) or PLUS in adapter:
        return False
    return not located(source, relative_to).is_dir()
