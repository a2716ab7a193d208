"""An order to write a model: its weights as a stream, what goes beside them, and how it is written whole or not at all.

This is what the writer of a format is handed, one of the house's (`writers`) or a guest's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from sae_moo.deploy.card import Card
from sae_moo.deploy.formats import Format
from sae_moo.deploy.mixtures import check_whole
from sae_moo.deploy.pace import Pace
from sae_moo.deploy.stream import Stream, check_sparsity
from sae_moo.deploy.surroundings import RECIPE_FILE, deployed_config, write_origin, write_surroundings
from sae_moo.deploy.tensor_files import SHARD_BYTES, Entry
from sae_moo.errors import RunError
from sae_moo.files.whole import scratch_folder, whole_file, whole_folder
from sae_moo.recipe import BASE
from sae_moo.recipe.catalogue import blamed, resolved

Check = Callable[[Path, Mapping[str, str], bool], Mapping[Any, Mapping[str, Any]]]
"""Compares a folder with the trial: folder, tensor name -> SHA-256, whether the arithmetic is the same. Returns
split -> task or objective -> score."""


class Writable(Protocol):
    """Tensors that can be had as bytes, one after another: a `Stream`, or a `shrink.Shrunk`."""

    entries: tuple[Entry, ...]

    def content(self, entry: Entry) -> Iterator[memoryview]:
        """Yield the bytes of one tensor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is to be written, and how.

    Args:
        format: in which format.
        output: the name that it will have.
        stream: the weights; also recipe, experts and dtype.
        sparsity: what the weights' has to be.
        whose: what they are the weights of, such as ``trial 3``.
        card: the model card.
        tokenizer: what is written as the tokenizer.
        merge: makes the model folder (second argument) of a recipe file or a mergekit configuration (first).
        settings: name of the expert that settings of generation come from.
        shard_bytes: size that the tensors of one file may have together.
        device: where the model will be timed.
        check: see `verified`; None if nothing is to be verified.
        tell: is told what the user should know, a sentence each.
        stage: is told what is being done, a few words each.
        timed: is told how fast what is written is beside the base, if that was measured.
    """

    format: Format
    output: Path
    stream: Stream
    sparsity: float
    whose: str
    card: Card
    tokenizer: Any
    merge: Callable[[Path, Path], object]
    settings: str = BASE
    shard_bytes: int = SHARD_BYTES
    device: str = "cpu"
    check: Check | None = None
    tell: Callable[[str], None] = lambda note: None
    stage: Callable[[str], None] = lambda what: None
    timed: Callable[[Sequence[Pace]], None] = lambda measured: None

    def write(self) -> None:
        """Write it, whole or not at all.

        A guest's folder holds the recipe and the card whether or not its writer puts them there.

        Raises:
            InputError: if the output is taken or cannot be written, or the format cannot hold the model.
            RunError: if the writer fails, writes nothing, or leaves unverified what was to be verified.
        """
        if not self.format.smaller:
            check_whole(self.stream, f"format {self.format.name}")
        checked: list[Path] = []

        def check(folder: Path, digests: Mapping[str, str], exact: bool) -> Mapping[Any, Mapping[str, Any]]:
            assert self.check is not None
            checked.append(folder)
            return self.check(folder, digests, exact)

        order = self if self.check is None else replace(self, check=check)
        with (whole_folder if self.format.folder else whole_file)(self.output) as partial:
            with blamed(self.format, f"format {self.format.name!r}"):
                resolved(self.format.write)(order, partial)
            if not (any(partial.iterdir()) if self.format.folder else partial.stat().st_size):
                raise RunError(f"format {self.format.name}: nothing was written")
            if self.check is not None and not checked:
                raise RunError(f"format {self.format.name}: what was written was not verified; nothing was exported")
            if self.format.guest is not None and self.format.folder and not (partial / RECIPE_FILE).exists():
                self.origin(partial)

    def tensors(self, entries: Sequence[Entry] | None = None) -> Iterator[tuple[Entry, Tensor]]:
        """Yield every tensor with its name, shape and dtype, and say which one's turn it is; new ones, on the CPU.

        Args:
            entries: of these only; None: of all.
        """
        for entry in self.passing(self.stream.entries if entries is None else entries):
            tensor = self.stream.tensor(entry.name)
            self.stream.hashed(tensor, entry.name)
            yield entry, tensor

    def passing(self, entries: Sequence[Entry]) -> Iterator[Entry]:
        """Yield entries, and say which one's turn it is."""
        for i, entry in enumerate(entries):
            self.stage(f"tensor {i + 1} of {len(entries)}")
            yield entry

    def content(self, weights: Writable) -> Callable[[Entry], Iterator[memoryview]]:
        """Return what gives the bytes of an entry, and says which one's turn it is; for `tensor_files.write_shards`."""
        turns = self.passing(weights.entries)

        def content(entry: Entry) -> Iterator[memoryview]:
            next(turns)
            return weights.content(entry)

        return content

    def surround(self, folder: Path, changes: Mapping[str, Any] | None = None) -> None:
        """Write what lies beside the weights, once these have passed: configuration, tokenizer, recipe, card.

        Args:
            folder: to write into.
            changes: to the base's ``config.json``.

        Raises:
            RunError: if the weights have another sparsity than they should.
        """
        self.check_sparsity()
        config = deployed_config(self.stream.pool, self.stream.dtype, changes)
        write_surroundings(folder, self.stream.pool, config, self.tokenizer, self.settings)
        self.origin(folder)

    def origin(self, folder: Path) -> None:
        """Write recipe and card, once the weights have passed, with a guest's name and version.

        Raises:
            RunError: if the weights have another sparsity than they should.
        """
        self.check_sparsity()
        guest = self.format.guest
        facts = None if guest is None else {"format": {"name": self.format.name, **asdict(guest)}}
        write_origin(folder, self.stream, self.card, facts)

    def check_sparsity(self) -> None:
        """Raise RunError if the weights, all of which have passed, have another sparsity than they should."""
        check_sparsity(self.stream, self.sparsity, self.whose)

    def scratch(self) -> AbstractContextManager[Path]:
        """Give a folder beside the output that vanishes."""
        return scratch_folder(self.output)

    @property
    def verifies(self) -> bool:
        """Whether what is written is to be verified."""
        return self.check is not None

    def verified(self, folder: Path, digests: Mapping[str, str] | None = None, exact: bool = True) -> str | None:
        """Compare a folder that transformers loads, every tensor and every instance, with what it should be.

        Args:
            folder: what was written, or what was made of it alone.
            digests: tensor name -> SHA-256 of the bytes that it should hold; None: those of the model itself.
            exact: whether it computes bit for bit what was evaluated; if not, instances may score otherwise, and no
                task's mean may by more than its standard error.

        Returns:
            The card with the scores that were found, to be written as `surroundings.CARD_FILE` in place of the one
            without; None, having done nothing, where nothing is to be verified.

        Raises:
            RunError: for any difference.
        """
        if self.check is None:
            return None
        self.stream.release()  # there the model is in memory once more
        self.stage("loaded and scored again in a fresh process")
        scores = self.check(folder, self.stream.digests if digests is None else digests, exact)
        return self.card.of(self.stream).scored(scores).text(self.stream.pool)
