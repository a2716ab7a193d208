"""Handing a trial on: as a folder of weights, dense or without what is zero as a whole, or as something smaller."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from sae_moo.deploy.card import Card
from sae_moo.deploy.estimate import Estimate, estimates
from sae_moo.deploy.mergekit import writer as mergekit_writer
from sae_moo.deploy.packing import Packer, unpack
from sae_moo.deploy.shrink import Shrunk, speed_up
from sae_moo.deploy.stream import Stream
from sae_moo.deploy.surroundings import (
    CARD_FILE,
    RECIPE_FILE,
    deployed_config,
    tokenizer_of,
    write_origin,
    write_surroundings,
)
from sae_moo.deploy.tensor_files import SHARD_BYTES, Entry, in_bytes, raw, write_shards
from sae_moo.errors import InputError, Interrupted, RunError, nearest
from sae_moo.experts.checkpoint import Checkpoint
from sae_moo.explore.run import Run
from sae_moo.files.whole import check_free, scratch_folder, whole_file, whole_folder
from sae_moo.jobs import verify as verification
from sae_moo.jobs.bench import Bench, resolve_device, versions
from sae_moo.jobs.judge import bench_of
from sae_moo.jobs.merge import MERGEKIT, merge
from sae_moo.objectives import objective_scores
from sae_moo.objectives.scores import Score, Split, summary
from sae_moo.recipe import BASE
from sae_moo.study.storage import TrialRecord

MERGEKIT_FILE = f"mergekit{MERGEKIT[0]}"
LONGEST_PROMPT = 100  # characters
Scored = dict[Split, dict[str, Score]]


@dataclass(frozen=True, slots=True)
class Exported:
    """What came of an export.

    Args:
        scores: split -> task -> score, as found by verifying; empty without.
        prompt: what one may ask the model to see that it works: a short prompt of the search split, if there is one.
        base: where the base was taken from.
    """

    scores: Scored
    prompt: str
    base: str


@dataclass(frozen=True, slots=True)
class _Order:
    """What is to be written: a trial's weights as a stream, and what goes beside them.

    Args:
        run: the run.
        record: the trial.
        stream: its weights.
        card: its model card.
        tokenizer: what is written as the tokenizer.
        settings: name of the expert that settings of generation come from.
        shard_bytes: size that the tensors of one file may have together.
        verify: whether to verify.
        tell: is told what the user should know.
        stage: is told what is being done.
    """

    run: Run
    record: TrialRecord
    stream: Stream
    card: Card
    tokenizer: Any
    settings: str
    shard_bytes: int
    verify: bool
    tell: Callable[[str], None]
    stage: Callable[[str], None]

    def passing(self, entries: Sequence[Entry]) -> Iterator[Entry]:
        """Yield entries, and say which one's turn it is."""
        for i, entry in enumerate(entries):
            self.stage(f"tensor {i + 1} of {len(entries)}")
            yield entry

    def content(self, weights: Stream | Shrunk) -> Callable[[Entry], Iterator[memoryview]]:
        """Return what gives the bytes of an entry, and says which one's turn it is."""
        turns = self.passing(weights.entries)

        def content(entry: Entry) -> Iterator[memoryview]:
            next(turns)
            return weights.content(entry)

        return content

    def surround(self, folder: Path, changes: Mapping[str, Any] | None = None) -> None:
        """Write what lies beside the weights, once these have passed; the sparsity must be the trial's.

        Args:
            folder: to write into.
            changes: to the base's ``config.json``.
        """
        _check_sparsity(self.stream, self.record)
        config = deployed_config(self.stream.pool, self.stream.entries[0].dtype, changes)
        write_surroundings(folder, self.stream.pool, config, self.tokenizer, self.settings)
        write_origin(folder, self.stream, self.card)

    def verified(self, folder: Path, digests: Mapping[str, str] | None = None, exact: bool = True) -> Scored:
        """Return the scores of a folder, every tensor and instance of which is as it should be.

        Args:
            folder: with the weights.
            digests: of what was to be written; None: of the trial's own tensors.
            exact: see `verify.same_scores`.
        """
        self.stage("loaded and scored again in a fresh process")
        written = self.stream.digests if digests is None else digests
        return verification.verify(self.run, self.record.number, folder, written, exact, self.tell)

    def scored_card(self, scores: Scored) -> str:
        """Return the card with the scores found by verifying."""
        told = {split: objective_scores(tasks, self.run.objectives) | tasks for split, tasks in scores.items()}
        return self.card.of(self.stream).scored(told).text(self.stream.pool)


def export(
    run: Run,
    record: TrialRecord,
    why: str,
    output: str | Path,
    verify: bool = False,
    form: str = "hf",
    tokenizer_from: str = BASE,
    shard_bytes: int = SHARD_BYTES,
    tell: Callable[[str], None] = lambda note: None,
    stage: Callable[[str], None] = lambda what: None,
) -> Exported:
    """Write a trial, in the memory of a few tensors.

    Args:
        run: the run.
        record: one of its complete trials.
        why: why this one, for the model card.
        output: the folder to make; for `packed`, `delta` and `mergekit` the file.
        verify: in a fresh process, compare every tensor's digest, load the folder (unpacked or merged from what was
            written) and compare every score with the trial's; also scores the test split.
        form: ``hf``, a folder of dense weights; ``packed``, one file of what is not zero; ``delta``, one file of what
            is not the base's; ``recipe``, a folder of the recipe and the digests of the tensors it gives; ``mergekit``,
            a configuration for mergekit, verified by merging it as `merge` does; ``structured``, a folder of dense
            weights without the neurons and heads that are zero as a whole.
        tokenizer_from: name of the expert whose tokenizer, chat template and settings of generation are written.
        shard_bytes: size that the tensors of one file may have together.
        tell: is told what the user should know, a sentence each.
        stage: is told what is being done, a few words each.

    Returns:
        Scores, a prompt to try, and where the base was taken from.

    Raises:
        InputError: if the output is taken, the experts are not those of the study, or mergekit cannot say the recipe.
        RunError: if verifying finds any difference; nothing is left behind then.
        Interrupted: on Ctrl-C; nothing is left behind either.
    """
    if form not in FORMATS:
        raise InputError(f"format: expected {', '.join(FORMATS)}, got {form!r}{nearest(form, FORMATS)}")
    output, wanted = Path(output), FORMATS[form]
    if wanted.endings and output.suffix not in wanted.endings:
        raise InputError(f"{output}: expected a name that ends in {' or '.join(wanted.endings)} for format {form}")
    if not wanted.loads and tokenizer_from != BASE:
        raise InputError(f"tokenizer: format {form} holds none; expected {BASE}, got {tokenizer_from!r}")
    check_free(output, folder=wanted.folder)
    bench = bench_of(run, any_device=not verify)
    tokenizer = tokenizer_of(bench.pool, tokenizer_from)
    stream = _stream(run, record, bench)
    title = output.name if wanted.folder else output.stem
    card = _card(run, record, why, title, bench, tokenizer_from, wanted.loads)
    order = _Order(run, record, stream, card, tokenizer, tokenizer_from, shard_bytes, verify, tell, stage)
    prompt = _prompt(bench, tokenizer, record)
    try:
        scores = wanted.write(order, output)
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted: nothing was left at {output}, the same command begins anew") from None
    return Exported(scores, prompt, bench.pool.checkpoints[BASE].origin)


def estimate(run: Run, record: TrialRecord) -> list[Estimate]:
    """Return what a trial would take in every format, and who gains by it; nothing is written.

    Raises:
        InputError: if the experts are not those of the study.
        RunError: if the trial gives another sparsity here.
    """
    stream = _stream(run, record, bench_of(run, any_device=True))
    found = estimates(stream)
    _check_sparsity(stream, record)
    return found


def _stream(run: Run, record: TrialRecord, bench: Bench) -> Stream:
    return Stream(record.recipe, bench.pool, getattr(torch, run.config.models.dtype), bench.device)


def _folder(order: _Order, output: Path) -> Scored:
    scores: Scored = {}
    with whole_folder(output) as partial:
        write_shards(partial, order.stream.entries, order.content(order.stream), order.shard_bytes)
        order.surround(partial)
        if order.verify:
            scores = order.verified(partial)
            (partial / CARD_FILE).write_text(order.scored_card(scores), encoding="utf-8")
    return scores


def _packed(order: _Order, output: Path) -> Scored:
    return _pack(order, output, delta=False)


def _delta(order: _Order, output: Path) -> Scored:
    return _pack(order, output, delta=True)


def _pack(order: _Order, output: Path, delta: bool) -> Scored:
    scores: Scored = {}
    stream, base = order.stream, order.stream.pool.checkpoints[BASE]
    named = {"source": base.origin, "fingerprint": stream.pool.fingerprints[BASE]} if delta else None
    with whole_file(output) as partial, Packer(partial, order.shard_bytes, named) as packer:
        for entry in order.passing(stream.entries):
            tensor = stream.tensor(entry.name)
            stream.hashed(tensor, entry.name)
            reference = base.load(entry.name).to(entry.dtype) if delta else None
            packer.add(entry, tensor, stream.digests[entry.name], reference)
        with scratch_folder(output) as folder:
            order.surround(folder)
            files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
        packer.seal(files)
        if order.verify:
            with scratch_folder(output) as folder:
                unpack(partial, folder / "unpacked", base.origin if delta else None)
                scores = order.verified(folder / "unpacked")
            packer.seal(files | {CARD_FILE: order.scored_card(scores).encode()})
        size, dense = partial.stat().st_size, sum(entry.nbytes for entry in stream.entries)
        order.tell(f"{output}: {in_bytes(size)}, {size / dense:.3f} of the {in_bytes(dense)} of the dense weights")
    return scores


def _recipe(order: _Order, output: Path) -> Scored:
    scores: Scored = {}
    stream = order.stream
    with whole_folder(output) as partial:
        for entry in order.passing(stream.entries):
            stream.hashed(stream.tensor(entry.name), entry.name)
        _check_sparsity(stream, order.record)
        write_origin(partial, stream, order.card)
        if order.verify:
            with scratch_folder(output) as folder:
                merge(partial / RECIPE_FILE, folder / "merged")
                scores = order.verified(folder / "merged")
            (partial / CARD_FILE).write_text(order.scored_card(scores), encoding="utf-8")
        size = (partial / RECIPE_FILE).stat().st_size
    order.tell(f"{output}: {in_bytes(size)}; whoever has the experts makes the model of it by sae-moo merge")
    return scores


def _mergekit(order: _Order, output: Path) -> Scored:
    scores: Scored = {}
    try:
        text, notes = mergekit_writer.write(order.record.recipe, order.stream.pool)
    except InputError as error:
        raise InputError(
            f"format mergekit: {error}; the formats recipe, hf, packed and delta hold any model"
        ) from error
    for note in notes:
        order.tell(note)
    with whole_file(output) as partial:
        partial.write_text(text, encoding="utf-8")
        if order.verify:
            with scratch_folder(output) as folder:
                shutil.copyfile(partial, folder / MERGEKIT_FILE)
                merge(folder / MERGEKIT_FILE, folder / "merged")
                digests = _against_trial(order, folder / "merged")
                scores = order.verified(folder / "merged", digests, exact=digests == order.stream.digests)
    return scores


def _against_trial(order: _Order, folder: Path) -> dict[str, str]:
    """Tell how the tensors of a folder differ from the trial's, and return their names and SHA-256 digests."""
    stream, written = order.stream, Checkpoint(str(folder))
    digests: dict[str, str] = {}
    worst, where, count = 0.0, "", 0
    for entry in order.passing(stream.entries):
        ours, theirs = stream.tensor(entry.name), written.load(entry.name).contiguous()
        stream.hashed(ours, entry.name)
        digests[entry.name] = sha256(raw(theirs)).hexdigest()
        if digests[entry.name] == stream.digests[entry.name]:
            continue
        count += 1
        far = (ours.float() - theirs.float()).abs()
        if (most := float(far.max())) >= worst:
            worst, where = most, f"{entry.name}, where the trial has {float(ours.flatten()[far.argmax()]):.3g}"
    _check_sparsity(stream, order.record)
    same = "all" if not count else f"{len(digests) - count} of"
    said = f"read and merged by sae-moo, {same} {len(digests)} tensors are bit for bit the trial's"
    order.tell(said + (f"; the largest difference is {worst:.3g}, in {where}" if count else ""))
    return digests


def _structured(order: _Order, output: Path) -> Scored:
    scores: Scored = {}
    stream = order.stream
    assert order.record.evaluation is not None
    order.stage("what is zero as a whole is looked for")
    small = Shrunk(stream)
    gone = " and ".join(f"{count} of {units} {what}" for what, (count, units) in small.removed.items())
    gone = gone.replace("heads", "key/value groups of heads")
    size, dense = (sum(entry.nbytes for entry in each.entries) for each in (small, stream))
    said = f"{gone} dropped from every block: {in_bytes(size)} of weights, {size / dense:.3f} of {in_bytes(dense)}"
    note = (
        f"{said}. All of them were zero, so that the model computes what the evaluated one does, but for the rounding "
        "of smaller sums. Whatever loads this folder is faster by it."
    )
    facts = {
        "sparsity": f"{order.record.evaluation.sparsity:.4f} of the 2-D weights in blocks were exact zeros before "
        f"{gone} of every block were dropped"
    }
    card = replace(
        order.card,
        facts={**order.card.facts, **facts},
        notes=(*order.card.notes, note),
        again=f"{order.card.again}  # whole, with zeros in place of what was dropped",
    )
    order = replace(order, card=card)
    order.tell(f"{output}: {said}")
    with whole_folder(output) as partial:
        write_shards(partial, small.entries, order.content(small), order.shard_bytes)
        order.surround(partial, small.config)
        if order.verify:
            scores = order.verified(partial, small.digests, exact=False)
            (partial / CARD_FILE).write_text(order.scored_card(scores), encoding="utf-8")
            dtype, device = stream.entries[0].dtype, resolve_device(order.run.config.models.device)
            order.stage("timed beside the dense model")
            faster = speed_up(partial, stream.pool.checkpoints[BASE].folder, dtype, device)
            order.tell(f"a forward pass over 4 x 64 tokens on {device} is {faster:.2f} times as fast as dense")
    return scores


@dataclass(frozen=True, slots=True)
class _Format:
    """A format that a trial is written in.

    Args:
        write: writes it, and returns the scores found by verifying.
        folder: whether it is a folder; else one file.
        loads: whether it holds, or is unpacked to, a model with its tokenizer.
        endings: what the file's name may end in; anything if empty.
    """

    write: Callable[[_Order, Path], Scored]
    folder: bool = True
    loads: bool = True
    endings: tuple[str, ...] = ()


FORMATS = {
    "hf": _Format(_folder),
    "packed": _Format(_packed, folder=False),
    "delta": _Format(_delta, folder=False),
    "recipe": _Format(_recipe, loads=False),
    "mergekit": _Format(_mergekit, folder=False, loads=False, endings=MERGEKIT),
    "structured": _Format(_structured),
}


def _check_sparsity(stream: Stream, record: TrialRecord) -> None:
    assert record.evaluation is not None
    sparsity = stream.sparsity()
    if sparsity != record.evaluation.sparsity:
        raise RunError(
            f"trial {record.number} gives sparsity {sparsity} here and had {record.evaluation.sparsity}: the "
            "arithmetic of this machine or version differs; nothing was exported"
        )


def _prompt(bench: Bench, tokenizer: Any, record: TrialRecord) -> str:
    """Return a short prompt of the search split on one line, one that the trial answers rightly if it does any."""
    assert record.evaluation is not None
    found = "Once upon a time", -1.0
    for task in bench.tasks:
        row = record.evaluation.scores[task.name]
        for request, owner in zip(task.requests("search"), task.owners("search"), strict=True):
            if row[owner] <= found[1]:
                continue
            text = str(tokenizer.decode(request.context, skip_special_tokens=True))
            if 0 < len(text) <= LONGEST_PROMPT and text.isprintable():
                found = text, row[owner]
                if row[owner] >= 1:
                    return text
    return found[0]


def _card(run: Run, record: TrialRecord, why: str, title: str, bench: Bench, tokenizer_from: str, loads: bool) -> Card:
    """Return the card of a trial, with the scores of the search split."""
    evaluation = record.evaluation
    assert evaluation is not None
    facts = {
        "study": run.name,
        "trial": str(record.number),
        "sparsity": f"{evaluation.sparsity:.4f} of the 2-D weights in blocks are exact zeros",
        "dtype": run.config.models.dtype,
        "digest of the recipe": f"`{record.digest}`",
        "tokenizer, chat template, settings of generation": tokenizer_from,
        "made with": versions(),
        **{f"searched on {task.name}": task.source("search") for task in bench.tasks},
    }
    known = summary(evaluation.scores)
    return Card(title, why, facts, {"search": objective_scores(known, run.objectives) | known}, loads=loads)
