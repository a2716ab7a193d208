"""Weights read tensor by tensor; a checkpoint: a folder of safetensors opened lazily, its facts and its fingerprint.

Nothing here unpickles.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sae_moo import zoo
from sae_moo.errors import InputError
from sae_moo.experts.layout import BLOCK, HEADS, STORED_DTYPES, TOKEN_EMBEDDINGS, content_digest, is_head, stored_name
from sae_moo.experts.live import ties
from sae_moo.experts.quantization import quantized
from sae_moo.experts.shards import Assignment, assigned, weight_map
from sae_moo.files import user_cache
from sae_moo.files.identity import stamp, state
from sae_moo.files.json_text import read_json
from sae_moo.files.places import located

log = logging.getLogger(__name__)

PART = 1 << 20  # elements looked at together: it takes some copies of them
ZOO = "zoo:"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Buffers that old checkpoints stored beside the weights: causal masks and rotary frequencies, rebuilt by every model.
_BUFFERS = re.compile(r"(\.masked_bias|rotary_emb\.inv_freq)$")
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers")
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
    "*.tiktoken",
    "*.py",  # copied with what is merged, never run
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
    path = located(source, relative_to)
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

    Which tensors a model has, and which of several copies counts, is what transformers makes of the files, but that of
    copies in several shards the one counts that the index names. What transformers ties is tied: a head that its class
    ties, by its configuration or by default, is none of its own, and one that is written out nevertheless is the
    embeddings where it equals them. Where it differs, the head is one of its own, as in transformers, and a warning
    says so.

    Args:
        source: as the user wrote it; see `locate`.
        relative_to: folder that relative paths start from.
        tied: whether the model that it is merged with has a tied head: one that equals the embeddings then counts as
            tied whatever its configuration says.

    Attributes:
        folder: where the files are.
        origin: a name that finds the checkpoint from anywhere: ``zoo:NAME``, a hub id, or an absolute path.
        config: the parsed ``config.json``; of a model whose head differs though it should be tied, without the tie.
        tensors: tensor name -> shape and dtype, sorted by name; a tied head left out, and buffers that every model
            rebuilds.
        doubled: names of tensors of which several shards hold a copy.
        head: name of the head's tensor; None if it is tied to the embeddings.
        embeddings: name of the tensor of token embeddings; None if none is named so.

    Raises:
        InputError: if files are missing, truncated, not safetensors, do not hold what their index names, are quantized,
            or an adapter instead of a model.
    """

    def __init__(self, source: str, relative_to: Path | None = None, tied: bool = False) -> None:
        self.source = source
        self.folder, self.origin = locate(source, relative_to)
        self.config = read_json(self.folder / "config.json", "a model's config.json")
        self._refuse_quantized(None)
        self._mapped: dict[str, Tensor] = {}  # views into the files; opening one takes longer than merging a small one
        named, files = self._files()
        self._state = state(files)  # before anything is read: what is read later may be another file's
        self._handles = {file: opened(file) for file in files}
        self._stored_as: dict[str, str] = {}
        assignment = self._assigned(named)
        self._file_of = assignment.files
        self.doubled = assignment.doubled
        for note in assignment.notes:
            log.warning("%s", note)
        tensors: dict[str, TensorFacts] = {}
        for name, file in self._file_of.items():
            part = self._handles[file].get_slice(name)
            facts = TensorFacts(tuple(part.get_shape()), str(part.get_dtype()))
            if not _BUFFERS.search(name) and not (name.endswith(".bias") and len(facts.shape) == 4):
                tensors[name] = facts
        self._refuse_quantized({name: facts.dtype for name, facts in tensors.items()})
        self._refuse_more_layers(len(tensors))
        self._settle_ties(tensors, tied)
        self.embeddings, self.head = _embeddings(tensors), _head(tensors)
        self.tied = self.head is None
        self.vocabulary = tensors[self.embeddings].shape[0] if self.embeddings else None
        self.tensors: Mapping[str, TensorFacts] = dict(sorted(tensors.items()))

    def load(self, name: str) -> Tensor:
        """Return one tensor as stored, on the CPU, memory-mapped: do not write to it."""
        if name not in self._mapped:
            stored = self._stored_as.get(name, name)
            self._mapped[name] = self._handles[self._file_of[stored]].get_tensor(stored)
        return self._mapped[name]

    @cached_property
    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of the weights: names, dtypes, shapes and bytes; not of file layout or location.

        Reading every byte is also where NaN and infinities are found. The result is kept in the user's cache folder, so
        that a large model is read once; under what files it is found again, `files.identity.stamp` says: folder, names
        of files and tensors, sizes, inodes, times and content. Nothing is looked up or kept if the files are not those
        any more that were opened.

        Raises:
            InputError: naming the tensors that hold NaN or an infinity.
        """
        key = self._stamp()
        known = None if key is None else remembered(key)
        if known:
            return known
        fingerprint = digest_of(self.source, ((name, self.load(name)) for name in self.tensors))
        if key is not None and self._stamp() == key:
            remember(key, fingerprint)
        return fingerprint

    def _stamp(self) -> str | None:
        """Return the name of what the files hold; None if others took their places since they were opened."""
        try:
            found = stamp_of(self.folder, self._handles, [list(self.tensors), self._stored_as])
            return found if state(self._handles) == self._state else None
        except OSError:
            return None

    def stored(self, name: str) -> bool:  # noqa: ARG002
        """Return True: every tensor is mapped into memory."""
        return True

    def shares_base(self, name: str) -> bool:  # noqa: ARG002  # a file of its own may hold anything
        """Return False: nothing is known without reading."""
        return False

    def _files(self) -> tuple[dict[str, Path] | None, list[Path]]:
        """Return what the index says, if one counts, and the files that hold weights, in the order of their names."""
        chosen = self.config.get("transformers_weights")
        names: tuple[str, ...] = (WEIGHTS, INDEX)
        if isinstance(chosen, str):
            names = (chosen,)
            if Path(chosen).name != chosen or not (self.folder / chosen).is_file():
                raise InputError(f"{self.folder}: config.json names the weights {chosen!r}, there is no such file")
        there = [self.folder / name for name in names if (self.folder / name).is_file()]
        if there and (self.folder / ADAPTER_CONFIG).is_file():
            raise InputError(f"{self.folder}: holds both a model and an adapter; expected one of them in a folder")
        if not there:
            raise InputError(self._without_weights())
        if len(there) > 1:
            log.warning("%s: holds %s and %s; as in transformers, the former counts", self.folder, WEIGHTS, INDEX)
        if there[0].suffix != ".json":
            return None, [there[0]]
        self._index = there[0]
        placed = weight_map(self._index, read_index(self._index))
        return placed, sorted(set(placed.values()))

    def _without_weights(self) -> str:
        if (self.folder / ADAPTER_WEIGHTS).is_file():
            return f"{self.folder}: holds a LoRA adapter without its {ADAPTER_CONFIG}; expected a model"
        pickles = [path.name for kind in ("*.bin", "*.pt*", "*.ckpt", "*.pkl") for path in self.folder.glob(kind)]
        others = [
            path.name for kind in ("*.gguf", "*.safetensors", "*.h5", "*.msgpack") for path in self.folder.glob(kind)
        ]
        if pickles:
            return (
                f"{self.folder}: only pickled weights ({', '.join(sorted(pickles)[:3])}), which can run code when "
                "opened; convert them to safetensors (save_pretrained does)"
            )
        beside = f"; there is {', '.join(sorted(others)[:3])}" if others else ""
        return f"{self.folder}: no {WEIGHTS} and no {INDEX}{beside}"

    def _assigned(self, named: Mapping[str, Path] | None) -> Assignment:
        held = {file: list(handle.keys()) for file, handle in self._handles.items()}
        if named is None:
            return Assignment({name: file for file, names in held.items() for name in names})

        def equal(name: str, one: Path, other: Path) -> bool:
            ours, theirs = self._handles[one].get_tensor(name), self._handles[other].get_tensor(name)
            return ours.dtype == theirs.dtype and torch.equal(ours, theirs)

        there = {name for names in held.values() for name in names}
        return assigned(
            self._index,
            {name: file for name, file in named.items() if name in there or not self._tied_to(name, there)},
            held,
            equal,
        )

    def _tied_to(self, name: str, there: set[str]) -> bool:
        """Say whether a head or embeddings that no file holds are, to transformers, another tensor that one holds."""
        if not is_head(name) and not TOKEN_EMBEDDINGS.search(name):
            return False
        pairs = ties(self.folder) or {}
        return any(name in pair and there.intersection(pair) for pair in pairs.items())

    def _refuse_quantized(self, dtypes: Mapping[str, str] | None) -> None:
        how = quantized(self.folder, self.config, dtypes)
        if how is not None:
            raise InputError(
                f"{self.folder}: quantized: {how}; expected weights in {', '.join(STORED_DTYPES)}, as they were before"
            )

    def _refuse_more_layers(self, count: int) -> None:
        """Raise InputError for more layers than tensors: building such a model would not end."""
        for part in (self.config, *self.config.values()):
            for key in _LAYERS if isinstance(part, Mapping) else ():
                layers = part.get(key)
                if isinstance(layers, int) and count and layers > count:
                    raise InputError(f"{self.folder}: config.json says {key} {layers}, the files hold {count} tensors")

    def _settle_ties(self, tensors: dict[str, TensorFacts], tied: bool) -> None:
        """Leave out tensors that are another one to transformers, and change names that only it would find."""
        head, embeddings = _head(tensors), _embeddings(tensors)
        own = self._ties(tensors, head, embeddings)
        pairs = dict(own)
        if tied and head and embeddings:
            pairs.setdefault(head, embeddings)
        for target, source in pairs.items():
            if target not in tensors:
                continue
            if source not in tensors:  # of two names that share weights, safetensors may have kept either
                tensors[source] = tensors.pop(target)
                self._stored_as[source] = target
                continue
            one, other = self.load(target), self.load(source)
            if one.dtype == other.dtype and torch.equal(one, other):
                del tensors[target]
            elif target in own:
                log.warning(
                    "%s: its configuration ties %s to the embeddings, its files hold a different one: it counts as one "
                    "of its own, as in transformers",
                    self.folder,
                    target,
                )
                self.config = _untied(self.config)

    def _ties(self, tensors: Mapping[str, TensorFacts], head: str | None, embeddings: str | None) -> Mapping[str, str]:
        """Return what transformers ties of the tensors that the files may hold twice, by their names in the files."""
        outside = Counter(facts.shape for name, facts in tensors.items() if not BLOCK.search(name))
        twins = any(count > 1 and len(shape) == 2 for shape, count in outside.items())
        written = self.config.get("tie_word_embeddings")
        nested = any(key.endswith("_config") for key in self.config)
        if not (twins or (head and not embeddings)) or (written is False and not nested):
            return {}
        pairs = ties(self.folder)
        if pairs is None:  # transformers knows no such class, or cannot build it: what is written counts
            return {head: embeddings} if written is True and head and embeddings else {}

        def spelled(name: str) -> str:
            known = [each for each in (head, embeddings) if each and each.split(".")[-2:] == name.split(".")[-2:]]
            return known[0] if name not in tensors and known else name

        return {spelled(target): spelled(source) for target, source in pairs.items()}


def _embeddings(tensors: Iterable[str]) -> str | None:
    return next((name for name in tensors if TOKEN_EMBEDDINGS.search(name)), None)


def _head(tensors: Iterable[str]) -> str | None:
    heads = [name for name in tensors if is_head(name)]
    return min(heads, key=lambda name: HEADS.index(name) if name in HEADS else len(HEADS), default=None)


def _untied(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration that ties no head, in the parts of a multimodal model neither."""
    parts = {
        key: {**part, "tie_word_embeddings": False}
        if isinstance(part, Mapping) and "tie_word_embeddings" in part
        else part
        for key, part in config.items()
    }
    return {**parts, "tie_word_embeddings": False}


def is_adapter(folder: Path) -> bool:
    """Say whether a folder holds a PEFT adapter and no model."""
    return (folder / ADAPTER_CONFIG).is_file() and not any((folder / name).is_file() for name in (WEIGHTS, INDEX))


def opened(file: Path) -> Any:
    """Open a safetensors file lazily.

    Raises:
        InputError: if it is none.
    """
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: truncated, or not a safetensors file: {_pointer(file) or error}") from error


def _pointer(file: Path) -> str | None:
    """Return what to do about a file that Git LFS has left in place of the weights; None for any other."""
    try:
        with file.open("rb") as handle:
            found = handle.read(40).startswith(b"version https://git-lfs")
    except OSError:
        return None
    return "it is a pointer of Git LFS, git lfs pull fetches the weights" if found else None


def read_index(file: Path) -> dict[str, Any]:
    """Read an index of shards.

    Raises:
        InputError: if it is none, or names a tensor twice.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
            raise InputError(f"{file}: expected an index of shards, it names {twice!r} twice")
        return found

    return read_json(file, "an index of shards", unique)


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
    """Return a name for what files hold now: see `files.identity.stamp` for what it is made of."""
    return stamp(folder, files, facts)


def remembered(stamp: str) -> str | None:
    """Return the fingerprint kept under a stamp, if any."""
    text = user_cache.kept("fingerprints", stamp)
    return text if text is not None and re.fullmatch(r"[0-9a-f]{64}", text) else None


def remember(stamp: str, fingerprint: str) -> None:
    """Keep a fingerprint under a stamp."""
    user_cache.keep("fingerprints", stamp, fingerprint)
