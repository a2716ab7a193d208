"""Handing a trial on: which one, in which format, with what on its card, verified or not. Formats know the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sae_moo.deploy.card import Card
from sae_moo.deploy.estimate import Estimate, estimates
from sae_moo.deploy.formats import FORMATS, USUAL, Format
from sae_moo.deploy.order import Order
from sae_moo.deploy.pace import Pace
from sae_moo.deploy.stream import Stream, check_sparsity
from sae_moo.deploy.surroundings import missing_code, tokenizer_of
from sae_moo.deploy.tensor_files import SHARD_BYTES
from sae_moo.errors import InputError, Interrupted
from sae_moo.experts.layout import dtype_of
from sae_moo.explore.run import Run
from sae_moo.files.whole import check_free
from sae_moo.jobs.bench import Bench, versions
from sae_moo.jobs.judge import bench_of, trial_name
from sae_moo.jobs.merge import merge
from sae_moo.jobs.repair import repair_trial
from sae_moo.jobs.verify import verify_apart
from sae_moo.objectives import objective_scores
from sae_moo.objectives.scores import Score, Split, task_scores
from sae_moo.recipe import BASE
from sae_moo.recipe.structure import repair_of
from sae_moo.study.record import Ended

REPAIRED = "what pruning left was moved, block by block, to make up for the zeros (SparseGPT's sweep)"
LONGEST_PROMPT = 100  # characters
Scored = dict[Split, dict[str, Score]]


@dataclass(frozen=True, slots=True)
class Exported:
    """What came of an export.

    Args:
        format: the format's row.
        scores: split -> task -> score, as found by verifying; empty without.
        prompt: what one may ask the model to see that it works: a short prompt of the search split, if there is one.
        base: where the base was taken from.
        paces: how fast the written model is beside the base, as found by verifying; empty where that is not measured.
        repaired: the trial as it was written, where it was repaired first.
    """

    format: Format
    scores: Scored
    prompt: str
    base: str
    paces: Sequence[Pace] = ()
    repaired: Ended | None = None


def export(
    run: Run,
    record: Ended,
    why: str,
    output: str | Path,
    *,
    verify: bool = False,
    form: str = USUAL,
    tokenizer_from: str = BASE,
    shard_bytes: int = SHARD_BYTES,
    cautions: Sequence[str] | None = None,
    repair: bool = False,
    tell: Callable[[str], None] = lambda note: None,
    stage: Callable[[str], None] = lambda what: None,
) -> Exported:
    """Write a trial, in the memory of a few tensors.

    Args:
        run: the run.
        record: one of its complete trials.
        why: why this one, for the model card.
        output: the folder or file to make.
        verify: in a fresh process, compare every tensor's digest, load the folder (unpacked or merged from what was
            written) and compare every score with the trial's; also scores the test split.
        form: name of the format, one of `FORMATS`.
        tokenizer_from: name of the expert whose tokenizer, chat template and settings of generation are written.
        shard_bytes: size that the tensors of one file may have together.
        cautions: what to know of the trial, for the model card; None: what `View.cautions` says, for which all trials
            are read.
        repair: whether to repair the trial first (`repair_trial`): one live model is then in memory.
        tell: is told what the user should know, a sentence each.
        stage: is told what is being done, a few words each.

    Returns:
        Scores, a prompt to try, and where the base was taken from.

    Raises:
        InputError: if there is no such format, the output is taken, the experts are not those of the study, or the
            format cannot hold the model.
        RunError: if verifying finds any difference; nothing is left behind then.
        Interrupted: on Ctrl-C; nothing is left behind either.
    """
    row, output = FORMATS.find(form), Path(output)
    _check_asked(row, output, verify, tokenizer_from)
    bench = bench_of(run, any_device=not verify)
    tokenizer = tokenizer_of(bench.pool, tokenizer_from)
    for note in missing_code(bench.pool):
        tell(note)
    known = run.view().cautions(record) if cautions is None else cautions
    mended = repair_trial(run, record, bench, stage=stage) if repair else None
    if mended is not None:
        record, why = mended.record, f"{why}; repaired"
    stream = _stream(run, record, bench) if mended is None else mended.stream
    expected = None if mended is None else record.evaluation.scores
    prompt = _prompt(bench, bench.pool.tokenizer(), record)
    scores: Scored = {}
    paces: list[Pace] = []

    def check(folder: Path, digests: Mapping[str, str], exact: bool) -> Scored:
        scores.update(verify_apart(run, record.number, folder, digests, exact, tell, expected))
        return {split: objective_scores(tasks, run.objectives) | tasks for split, tasks in scores.items()}

    card = _card(run, record, why, row, output, bench, tokenizer_from, stream)
    order = Order(
        format=row,
        output=output,
        stream=stream,
        sparsity=_sparsity(record),
        whose=trial_name(record),
        card=replace(card, warnings=tuple(f"{caution}." for caution in known)),
        tokenizer=tokenizer,
        settings=tokenizer_from,
        shard_bytes=shard_bytes,
        device=bench.device,
        merge=merge,
        check=check if verify else None,
        tell=tell,
        stage=stage,
        timed=paces.extend,
    )
    try:
        order.write()
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted: nothing was left at {output}, the same command begins anew") from None
    repaired = record if repair else None
    return Exported(row, scores, prompt, bench.pool.checkpoints[BASE].origin, paces, repaired)


def _check_asked(row: Format, output: Path, verify: bool, tokenizer_from: str) -> None:
    """Raise InputError if a format cannot do what is asked of it, or the output is taken."""
    if row.endings and output.suffix not in row.endings:
        raise InputError(f"{output}: expected a name that ends in {' or '.join(row.endings)} for format {row.name}")
    if not row.tokenizer and tokenizer_from != BASE:
        raise InputError(f"tokenizer: format {row.name} holds none; expected {BASE}, got {tokenizer_from!r}")
    if verify and not row.verified:
        raise InputError(f"format {row.name} cannot be verified: no folder is made of it that could be scored again")
    check_free(output, folder=row.folder)


def estimate(run: Run, record: Ended) -> list[Estimate]:
    """Return what a trial would take in every format, and who gains by it; nothing is written.

    Formats of installed packages come last.

    Raises:
        InputError: if the experts are not those of the study, or a package's format cannot be used.
        RunError: if the trial gives another sparsity here, or a package's format fails.
    """
    stream = _stream(run, record, bench_of(run, any_device=True))
    found = estimates(stream, (*FORMATS.values(), *FORMATS.guests()))
    check_sparsity(stream, _sparsity(record), trial_name(record))
    return found


def _stream(run: Run, record: Ended, bench: Bench) -> Stream:
    return Stream(record.recipe, bench.pool, dtype_of(run.config.models.dtype), bench.device)


def _sparsity(record: Ended) -> float:
    assert record.evaluation is not None
    return record.evaluation.sparsity


def _prompt(bench: Bench, tokenizer: Any, record: Ended) -> str:
    """Return a short prompt of the search split on one line, one that the trial answers rightly if it does any."""
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


def _card(
    run: Run, record: Ended, why: str, row: Format, output: Path, bench: Bench, tokenizer_from: str, stream: Stream
) -> Card:
    """Return the card of a trial, with the scores of the search split."""
    evaluation = record.evaluation
    facts = {
        "study": run.name,
        "trial": str(record.number),
        "sparsity": f"{evaluation.sparsity:.4f} of the {bench.pool.counted_words} are exact zeros",
        "dtype": stream.dtype_words,
        "digest of the recipe": f"`{record.digest}`",
        **({} if repair_of(record.recipe) is None else {"repaired": REPAIRED}),
        "tokenizer, chat template, settings of generation": tokenizer_from,
        "made with": versions(),
        **({} if row.guest is None else {"format": f"{row.name} of {row.guest}, for {row.loads}"}),
        **{f"searched on {task.name}": task.source("search") for task in bench.tasks},
    }
    known = task_scores(evaluation.scores)
    title = output.name if row.folder else output.stem
    scores = objective_scores(known, run.objectives) | known
    return Card(title, why, facts, {"search": scores}, loads=row.transformers)
