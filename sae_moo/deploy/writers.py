"""How each of the house's formats is written: the functions that rows of `formats` name as ``write``."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from sae_moo.deploy import zeros
from sae_moo.deploy.formats import FORMATS
from sae_moo.deploy.mergekit import writer
from sae_moo.deploy.order import Order
from sae_moo.deploy.pace import pace_words, paces
from sae_moo.deploy.packing import Packer, unpack
from sae_moo.deploy.shrink import Shrunk
from sae_moo.deploy.surroundings import CARD_FILE, RECIPE_FILE
from sae_moo.deploy.tensor_files import in_bytes, write_shards
from sae_moo.errors import InputError
from sae_moo.experts.checkpoint import Checkpoint, ModelWeights
from sae_moo.experts.layout import content_digest
from sae_moo.recipe import BASE


def dense(order: Order, folder: Path) -> None:
    """Write a folder of dense weights."""
    write_shards(folder, order.stream.entries, order.content(order.stream), order.shard_bytes)
    order.surround(folder)
    _certify(folder, order.verified(folder))


def packed(order: Order, file: Path) -> None:
    """Write one file of what is not zero; verified as it is unpacked."""
    _pack(order, file, None)


def delta(order: Order, file: Path) -> None:
    """Write one file of what is not the base's; verified as it is unpacked."""
    _pack(order, file, order.stream.pool.checkpoints[BASE])


def _pack(order: Order, file: Path, base: ModelWeights | None) -> None:
    stream = order.stream
    named = None if base is None else {"source": base.origin, "fingerprint": stream.pool.fingerprints[BASE]}
    with Packer(file, order.shard_bytes, named) as packer:
        for entry, tensor in order.tensors():
            reference = None if base is None else base.load(entry.name).to(entry.dtype)
            packer.add(entry, tensor, stream.digests[entry.name], reference)
        with order.scratch() as folder:
            order.surround(folder)
            paths = sorted(path for path in folder.rglob("*") if path.is_file())
            files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        packer.seal(files)
        if order.verifies:
            with order.scratch() as folder:
                unpack(file, folder / "unpacked", None if base is None else base.origin)
                card = order.verified(folder / "unpacked")
            assert card is not None
            packer.seal(files | {CARD_FILE: card.encode()})
        size, whole = file.stat().st_size, sum(entry.nbytes for entry in stream.entries)
        rest = in_bytes(size - packer.size)
        order.tell(
            f"{order.output}: {in_bytes(packer.size)} of weights, {packer.size / whole:.3f} of the "
            f"{in_bytes(whole)} of the dense weights; {in_bytes(size)} in all, {rest} of it tokenizer, card and index"
        )


def recipe(order: Order, folder: Path) -> None:
    """Write a folder of the recipe and the digests of the tensors it gives; verified by merging it."""
    for _ in order.tensors():
        pass  # their digests are kept
    order.origin(folder)
    if order.verifies:
        order.stream.release()  # to merge it takes as much
        with order.scratch() as scratch:
            order.merge(folder / RECIPE_FILE, scratch / "merged")
            _certify(folder, order.verified(scratch / "merged"))
    size = (folder / RECIPE_FILE).stat().st_size
    order.tell(f"{order.output}: {in_bytes(size)}; whoever has the experts makes the model of it by sae-moo merge")


def mergekit(order: Order, file: Path) -> None:
    """Write a configuration for mergekit; verified by merging it here, which may differ in the last digits.

    Raises:
        InputError: if mergekit has no words for the recipe.
    """
    try:
        text, notes = writer.configuration_text(order.stream.recipe, order.stream.pool)
    except InputError as error:
        *most, last = (name for name, row in FORMATS.items() if not row.needs)
        raise InputError(
            f"format {order.format.name}: {error}; the formats {', '.join(most)} and {last} hold any model"
        ) from error
    for note in notes:
        order.tell(note)
    file.write_text(text, encoding="utf-8")
    if order.verifies:
        with order.scratch() as folder:
            document = folder / f"mergekit{order.format.endings[0]}"
            shutil.copyfile(file, document)
            order.merge(document, folder / "merged")
            digests = _against_model(order, folder / "merged")
            order.verified(folder / "merged", digests, exact=digests == order.stream.digests)


def _against_model(order: Order, folder: Path) -> dict[str, str]:
    """Tell how the tensors of a folder differ from the model's, and return their names and SHA-256 digests."""
    stream, written = order.stream, Checkpoint(str(folder))
    digests: dict[str, str] = {}
    worst, where, count = 0.0, "", 0
    for entry, ours in order.tensors():
        theirs = written.load(entry.name).contiguous()
        digests[entry.name] = content_digest(theirs)
        if digests[entry.name] == stream.digests[entry.name]:
            continue
        count += 1
        far = (ours.float() - theirs.float()).abs()
        if (most := float(far.max())) >= worst:
            worst, where = most, f"{entry.name}, where the trial has {float(ours.flatten()[far.argmax()]):.3g}"
    order.check_sparsity()
    same = "all" if not count else f"{len(digests) - count} of"
    said = f"read and merged by sae-moo, {same} {len(digests)} tensors are bit for bit the trial's"
    order.tell(said + (f"; the largest difference is {worst:.3g}, in {where}" if count else ""))
    return digests


def structured(order: Order, folder: Path) -> None:
    """Write a folder of dense weights without the blocks, neurons and heads that are zero as a whole.

    Raises:
        InputError: if nothing can be dropped, or nothing would be left.
    """
    order.stage("what is zero as a whole is looked for")
    small = Shrunk(order.stream)
    size, whole = (sum(entry.nbytes for entry in each.entries) for each in (small, order.stream))
    said = f"{small.dropped} dropped: {in_bytes(size)} of weights, {size / whole:.3f} of {in_bytes(whole)}"
    rounding = ", but for the rounding of smaller sums" if small.narrower else ", bit for bit"
    note = (
        f"{said}. All of it was zero, so that the model computes what the evaluated one does{rounding}; "
        f"{zeros.STRUCTURED}."
    )
    left = small.left()
    facts = {
        "sparsity": f"{order.sparsity:.4f} of the {order.stream.pool.counted_words} were exact zeros before "
        f"{small.dropped} were dropped"
    }
    card = replace(
        order.card,
        facts={**order.card.facts, **facts},
        notes=(*order.card.notes, note, *(f"{sentence[0].upper()}{sentence[1:]}." for sentence in left)),
        again=f"{order.card.again}  # whole, with zeros in place of what was dropped",
    )
    order = replace(order, card=card)
    order.tell(f"{order.output}: {said}")
    for sentence in left:
        order.tell(sentence)
    write_shards(folder, small.entries, order.content(small), order.shard_bytes)
    order.surround(folder, small.config)
    if order.verifies:
        order.stage("timed beside the base")
        order.stream.release()  # two models are in memory then
        base, dtype = order.stream.pool.checkpoints[BASE].folder, order.stream.dtype
        measured = paces(folder, base, dtype, order.device)
        order.timed(measured)
        faster = pace_words(measured, order.device)
        order.tell(faster)
        order = replace(order, card=replace(card, notes=(*card.notes, f"{faster[0].upper()}{faster[1:]}.")))
    _certify(folder, order.verified(folder, small.digests, exact=not small.narrower))


def _certify(folder: Path, card: str | None) -> None:
    """Write the card with the scores that were found by verifying, if that was done."""
    if card is not None:
        (folder / CARD_FILE).write_text(card, encoding="utf-8")
