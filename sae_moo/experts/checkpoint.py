"""Weights read tensor by tensor; a checkpoint: a folder of safetensors opened lazily, its facts and its fingerprint.

Nothing here unpickles.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sae_moo import zoo
from sae_moo.errors import InputError
from sae_moo.experts.layout import HEADS, TOKEN_EMBEDDINGS, content_digest, stored_name
from sae_moo.files import user_cache

log = logging.getLogger(__name__)

PART = 1 << 20  # elements looked at together: it takes some copies of them
ZOO = "zoo:"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
# Buffers that old checkpoints stored beside the weights: causal masks and rotary frequencies, rebuilt by every model.
_BUFFERS = re.compile(r"(\.masked_bias|rotary_emb\.inv_freq)$")
_HUB_ID = re.compile(r"^[\w.-]+(/[\w.-]+)?(@[\w./-]+)?$")
_HUB_FILES = [
    "*.safetensors",
    "*.safetensors.index.json",
    "*.json",
    "tokenizer*",
    "*.model",
    "*.txt",
    "*.tiktoken",
    "*.jinja",
    "README.md",
    "LICEN[CS]E*",
]


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """What the header of a safetensors file says of one tensor."""

    shape: tuple[int, ...]
    dtype: str


class ModelWeights(Protocol):
    """Weights of one model that can be read one tensor at a time, however they are stored.

    ``load`` returns the same bits whenever it is called, in the shape and dtype that ``tensors`` says, on the CPU; the
    caller does not write to it. Equal fingerprints are equal weights.
    """

    @property
    def source(self) -> str:
        """What the user wrote."""

    @property
    def origin(self) -> str:
        """A name that finds the same from anywhere."""

    @property
    def folder(self) -> Path:
        """Where the files are."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The ``config.json`` of the model."""

    @property
    def tensors(self) -> Mapping[str, TensorFacts]:
        """Tensor name -> shape and dtype; a tied head is none."""

    @property
    def tied(self) -> bool:
        """Whether the head is the embeddings."""

    @property
    def vocabulary(self) -> int | None:
        """Number of rows of the embeddings; None if no tensor is named like embeddings."""

    @property
    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of the weights.

        Raises:
            InputError: naming the tensors that hold NaN or an infinity.
        """

    def load(self, name: str) -> Tensor:
        """Return one tensor."""

    def stored(self, name: str) -> bool:
        """Say whether `load` gives a view into a file, which takes no memory of the process's own."""

    def shares_base(self, name: str) -> bool:
        """Say whether a tensor is known, without reading it, to be the base's; False says nothing."""


def locate(source: str, relative_to: Path | None = None) -> tuple[Path, str]:
    """Return the local folder of a checkpoint, fetched if it is a hub id, and a name that finds it from anywhere.

    Args:
        source: ``zoo:NAME``, a local folder, or a hub id ``owner/name`` (``owner/name@revision``).
        relative_to: folder that relative paths start from; None means the current one.

    Raises:
        InputError: if there is no such folder and the hub cannot provide it.
    """
    if source.startswith(ZOO):
        try:
            return zoo.checkpoint(source.removeprefix(ZOO)), source
        except ValueError as error:
            raise InputError(str(error)) from error
    path = Path(source).expanduser()
    path = path if path.is_absolute() or relative_to is None else relative_to / path
    if path.is_dir():
        return path.resolve(), str(path.resolve())
    if path.exists():
        raise InputError(f"expected a folder with a checkpoint, got a file: {path}")
    if source.startswith((".", "/", "~")) or not _HUB_ID.match(source):
        raise InputError(f"no such folder: {path}")
    return _from_hub(source, path), source


def _from_hub(source: str, tried: Path) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    name, _, revision = source.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=_HUB_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"{source!r} is neither a local folder ({tried}) nor a model the hub gives us: {reason}"
        ) from error


class Checkpoint:
    """A Hugging Face causal-LM folder, opened for reading tensor by tensor.

    Args:
        source: as the user wrote it; see `locate`.
        relative_to: folder that relative paths start from.

    Attributes:
        folder: where the files are.
        origin: a name that finds the checkpoint from anywhere: ``zoo:NAME``, a hub id, or an absolute path.
        config: the parsed ``config.json``.
        tensors: tensor name -> shape and dtype, sorted by name; buffers and a tied head left out.
        head: name of the head's tensor; None if it is tied to the embeddings.
        embeddings: name of the tensor of token embeddings; None if none is named so.

    Raises:
        InputError: if files are missing, truncated, not safetensors, or an adapter instead of a model.
    """

    def __init__(self, source: str, relative_to: Path | None = None) -> None:
        self.source = source
        self.folder, self.origin = locate(source, relative_to)
        self.config = read_json(self.folder / "config.json", "a model's config.json")
        self._mapped: dict[str, Tensor] = {}  # views into the files; opening one takes longer than merging a small one
        self._handles = {file: opened(file) for file in self._files()}
        self._file_of: dict[str, Path] = {}
        tensors: dict[str, TensorFacts] = {}
        for file, handle in self._handles.items():
            for name in handle.keys():  # noqa: SIM118  # a safetensors handle is not a mapping
                part = handle.get_slice(name)
                facts = TensorFacts(tuple(part.get_shape()), str(part.get_dtype()))
                if not _BUFFERS.search(name) and not (name.endswith(".bias") and len(facts.shape) == 4):
                    tensors[name] = facts
                    self._file_of[name] = file
        head = next((name for name in HEADS if name in tensors), None)
        embeddings = next((name for name in tensors if TOKEN_EMBEDDINGS.search(name)), None)
        if head and embeddings and self.config.get("tie_word_embeddings") is True:
            if not torch.equal(self.load(head), self.load(embeddings)):
                raise InputError(
                    f"{self.folder}: config.json ties the head to the embeddings, but the file holds a different {head}"
                )
            del tensors[head]
            head = None
        self.head = head
        self.embeddings = embeddings
        self.tied = head is None
        self.vocabulary = tensors[embeddings].shape[0] if embeddings else None
        self.tensors: Mapping[str, TensorFacts] = dict(sorted(tensors.items()))

    def load(self, name: str) -> Tensor:
        """Return one tensor as stored, on the CPU, memory-mapped: do not write to it."""
        if name not in self._mapped:
            self._mapped[name] = self._handles[self._file_of[name]].get_tensor(name)
        return self._mapped[name]

    @cached_property
    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of the weights: names, dtypes, shapes and bytes; not of file layout or location.

        Reading every byte is also where NaN and infinities are found. The result is kept per file size and modification
        time in the user's cache folder, so that a large model is read once.

        Raises:
            InputError: naming the tensors that hold NaN or an infinity.
        """
        stamp = stamp_of(self.folder, self._handles, list(self.tensors))
        known = remembered(stamp)
        if known:
            return known
        fingerprint = digest_of(self.source, ((name, self.load(name)) for name in self.tensors))
        remember(stamp, fingerprint)
        return fingerprint

    def stored(self, name: str) -> bool:  # noqa: ARG002
        """Return True: every tensor is mapped into memory."""
        return True

    def shares_base(self, name: str) -> bool:  # noqa: ARG002  # a file of its own may hold anything
        """Return False: nothing is known without reading."""
        return False

    def _files(self) -> Iterator[Path]:
        index = self.folder / "model.safetensors.index.json"
        single = self.folder / "model.safetensors"
        if (self.folder / ADAPTER_CONFIG).is_file() and (single.is_file() or index.is_file()):
            raise InputError(f"{self.folder}: holds both a model and an adapter; expected one of them in a folder")
        if single.is_file():
            yield single
            return
        if index.is_file():
            weight_map = read_json(index, "an index of shards").get("weight_map")
            if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
                raise InputError(f"{index}: expected an object 'weight_map' of tensor names and file names")
            missing = sorted({shard for shard in weight_map.values() if not (self.folder / shard).is_file()})
            if missing:
                raise InputError(f"{self.folder}: shards named in {index.name} are missing: {', '.join(missing)}")
            yield from sorted({self.folder / shard for shard in weight_map.values()})
            return
        if (self.folder / ADAPTER_WEIGHTS).is_file():
            raise InputError(f"{self.folder}: holds a LoRA adapter without its {ADAPTER_CONFIG}; expected a model")
        pickles = sorted(path.name for path in self.folder.glob("*.bin")) + sorted(
            path.name for path in self.folder.glob("*.pt*")
        )
        if pickles:
            raise InputError(
                f"{self.folder}: only pickled weights ({', '.join(pickles[:3])}), which can run code when opened; "
                "convert them to safetensors (save_pretrained does)"
            )
        raise InputError(f"{self.folder}: no model.safetensors and no model.safetensors.index.json")


def is_adapter(folder: Path) -> bool:
    """Say whether a folder holds a PEFT adapter and no model."""
    models = ("model.safetensors", "model.safetensors.index.json")
    return (folder / ADAPTER_CONFIG).is_file() and not any((folder / name).is_file() for name in models)


def opened(file: Path) -> Any:
    """Open a safetensors file lazily.

    Raises:
        InputError: if it is none.
    """
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: truncated, or not a safetensors file: {error}") from error


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InputError: saying that `what` was expected.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path.parent}: expected {what}, there is no {path.name}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected {what}: {error}") from error
    if not isinstance(document, dict):
        raise InputError(f"{path}: expected {what}, got {type(document).__name__}")
    return document


def digest_of(source: str, tensors: Iterable[tuple[str, Tensor]], *facts: Any) -> str:
    """Return the SHA-256 of named tensors and further facts, reading every byte once.

    Raises:
        InputError: naming the tensors that hold NaN or an infinity.
    """
    whole = hashlib.sha256(json.dumps(facts).encode() if facts else b"")
    broken = []
    for name, tensor in tensors:
        flat = tensor.contiguous().reshape(-1)
        if not all(torch.isfinite(part).all() for part in torch.split(flat, PART)):
            broken.append(name)
        told = [name, stored_name(tensor.dtype), tuple(tensor.shape), content_digest(flat)]
        whole.update(json.dumps(told).encode())
    if broken:
        shown = ", ".join(broken[:5]) + (f" and {len(broken) - 5} more" if len(broken) > 5 else "")
        raise InputError(f"{source}: NaN or infinite weights in {shown}")
    return whole.hexdigest()


def stamp_of(folder: Path, files: Iterable[Path], facts: Any) -> str:
    """Return a name for what files hold now, by their sizes and modification times."""
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(files)]
    return hashlib.sha256(json.dumps([str(folder), stats, facts]).encode()).hexdigest()


def remembered(stamp: str) -> str | None:
    """Return the fingerprint kept under a stamp, if any."""
    text = user_cache.kept("fingerprints", stamp)
    return text if text is not None and re.fullmatch(r"[0-9a-f]{64}", text) else None


def remember(stamp: str, fingerprint: str) -> None:
    """Keep a fingerprint under a stamp."""
    user_cache.keep("fingerprints", stamp, fingerprint)
