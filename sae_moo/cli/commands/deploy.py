"""The commands that write or score a model: export, unpack, merge, evaluate."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sae_moo.cli.choice import PICK_FLAGS, PickOptions, with_pick_options
from sae_moo.cli.frame import (
    SET,
    AsJson,
    Output,
    Overrides,
    RunName,
    SplitName,
    make_console,
    open_run,
    print_json,
    quiet,
    reported,
    staged,
    suggest,
)
from sae_moo.deploy.formats import FORMATS, USUAL
from sae_moo.errors import InputError

if TYPE_CHECKING:
    from sae_moo.explore.run import Run
    from sae_moo.explore.view import View
    from sae_moo.jobs.export import Exported
    from sae_moo.study.record import Ended


FORMAT_NAMES = "|".join((*FORMATS, "PACKAGE/NAME"))
FORMAT_HELP = "; ".join(f"{name}: {row.summary}" for name, row in FORMATS.items()) + "."


@reported
@with_pick_options
def export(
    run: RunName,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The folder (or file) to make; it must not exist yet.")
    ] = None,
    trial: Annotated[int | None, typer.Option(help="Number of the trial; without it the pick flags choose.")] = None,
    *,
    choice: PickOptions,
    format_: Annotated[str, typer.Option("--format", metavar=f"<{FORMAT_NAMES}>", help=FORMAT_HELP)] = USUAL,
    tokenizer_from: Annotated[
        str, typer.Option(metavar="NAME", help="Whose tokenizer, chat template and generation settings to write.")
    ] = "base",
    max_shard_size: Annotated[str, typer.Option(metavar="SIZE", help="Of a file of weights, e.g. 800MB.")] = "5GB",
    verify: Annotated[
        bool, typer.Option("--verify", help="In a fresh process, compare every tensor and every score.")
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Move what pruning left to make up for the zeros, then score and write it.")
    ] = False,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Only tell what each format would take and which runtimes gain.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write one trial as a Hugging Face folder, or smaller, whole or not at all.

    Example: sae-moo export quickstart --knee --output exported --verify

    Example: sae-moo export quickstart --knee --output exported --repair

    Example: sae-moo export quickstart --knee --estimate

    Example: sae-moo export quickstart --knee --format packed --output model.saepack (back by: sae-moo unpack)
    """
    if (output is None) != estimate:
        raise InputError("expected either --output DIR or --estimate")
    idle = {
        "--verify": verify,
        "--repair": repair,
        "--format": format_ != USUAL,
        "--tokenizer-from": tokenizer_from != "base",
        "--max-shard-size": max_shard_size != "5GB",
    }
    if estimate and any(idle.values()):
        given = ", ".join(flag for flag, said in idle.items() if said)
        raise InputError(f"--estimate tells of every format and writes nothing; leave out {given}")
    opened = open_run(run)
    view = opened.view()
    record, why = _chosen(view, trial, choice)
    if output is None:
        _estimate(opened, record, as_json)
        return
    from sae_moo.cli import deciding
    from sae_moo.cli.display import say, trial_json
    from sae_moo.deploy.tensor_files import shard_bytes
    from sae_moo.jobs.export import export

    notes: list[str] = []
    cautions = view.cautions(record)
    size = shard_bytes(max_shard_size)
    with staged() as stage:
        done = export(
            opened,
            record,
            why,
            output,
            verify=verify,
            form=format_,
            tokenizer_from=tokenizer_from,
            shard_bytes=size,
            cautions=cautions,
            repair=repair,
            tell=notes.append,
            stage=stage,
        )
    if as_json:
        document = _exported_json(opened, done, trial=record, why=why, output=output, verified=verify)
        mended = None if done.repaired is None else trial_json(done.repaired)
        print_json(document | {"format": done.format.name, "notes": notes, "cautions": cautions, "repaired": mended})
        return
    console = make_console()
    chosen = "chosen by number" if trial is not None else why[0].lower() + why[1:]
    say(console, f"trial {record.number} lies in {output}; {chosen}")
    for note in (*(f"{caution}." for caution in cautions), *notes):
        say(console, note)
    if done.repaired is not None:
        console.print()
        deciding.show_repaired(console, record, done.repaired, opened.objectives)
    if not done.scores:
        console.print()
    deciding.show_export(console, done.scores, opened.objectives)
    if done.format.next_step:
        suggest(console, _next(output, done))


def _chosen(view: View, trial: int | None, choice: PickOptions) -> tuple[Ended, str]:
    """Return the trial that is chosen by its number, or else by the pick flags, and why, as a sentence begins."""
    if trial is None:
        record, why = choice.pick(view)
        return record, why[0].upper() + why[1:]
    if choice.given:
        raise InputError(f"--trial names the model; {PICK_FLAGS} choose one: give one or the other")
    return view.trial(trial), f"Trial {trial}, chosen by number"


def _exported_json(run: Run, done: Exported, *, trial: Ended, why: str, output: Path, verified: bool) -> dict[str, Any]:
    """Return the JSON shape of an export."""
    from sae_moo.cli import deciding
    from sae_moo.cli.display import scores_json, trial_json
    from sae_moo.objectives import objective_scores

    scores = done.scores
    means = {split: objective_scores(tasks, run.objectives) for split, tasks in scores.items()}
    return {
        "trial": trial_json(trial),
        "why": why,
        "output": str(output),
        "verified": verified,
        "scores": {split: scores_json(tasks) for split, tasks in scores.items()},
        "objectives": {split: scores_json(tasks) for split, tasks in means.items()},
        "optimism": deciding.optimism_json(scores),
        "speed": [asdict(pace) | {"times": pace.times} for pace in done.paces],
    }


def _next(output: Path, done: Exported) -> dict[str, str]:
    """Return what to type once a model is written."""
    ask = f'from transformers import pipeline; m = pipeline("text-generation", {_python(str(output))}); '
    ask += f'print(m({_python(done.prompt)}, max_new_tokens=20, do_sample=False)[0]["generated_text"])'
    words = {
        "output": str(output),
        "base": done.base,
        "unpacked": f"{output.with_suffix('')}-unpacked",
        "merged": f"{output.with_suffix('')}-merged",
        "ask": ask,
    }
    quoted = {word: shlex.quote(text) for word, text in words.items()}
    return {command.format(**quoted): what for command, what in done.format.next_step}


def _python(text: str) -> str:
    """Return a Python literal of a text in double quotes, which a shell's single ones leave alone."""
    return json.dumps(text, ensure_ascii=False)


def _estimate(run: Run, record: Ended, as_json: bool) -> None:
    """Show what a trial would take in every format."""
    from sae_moo.cli.display import estimate_table, trial_json
    from sae_moo.jobs.export import estimate

    found = estimate(run, record)
    if as_json:
        print_json({"trial": trial_json(record), "formats": [asdict(each) for each in found]})
        return
    title = f"trial {record.number}, sparsity {record.evaluation.sparsity:.4f}; sizes are of the weights alone"
    make_console().print(estimate_table(found, title))


@reported
def unpack(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A packed model or delta, as export writes it.")],
    output: Output,
    base: Annotated[str | None, typer.Option(help="Where the base of a delta is: a folder or hub id.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make the Hugging Face folder that was packed, bit for bit.

    Example: sae-moo unpack model.saepack --output model

    Example: sae-moo unpack delta.saepack --base path/to/base --output model
    """
    quiet()
    from sae_moo.deploy.packing import unpack

    tensors = unpack(file, output, base)
    if as_json:
        print_json({"output": str(output), "tensors": tensors})
        return
    make_console().print(f"{output}: {tensors} tensors, each with the digest it had", soft_wrap=True)


@reported
def evaluate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL_OR_RECIPE", help="A HF folder, hub id, zoo:NAME, or recipe.json.")
    ],
    config: Annotated[Path, typer.Option("--config", help="Configuration with the tasks (and experts, for a recipe).")],
    split: Annotated[SplitName, typer.Option(help="Which items to score on.")] = SplitName.test,
    samples: Annotated[
        Path | None, typer.Option(metavar="FILE.jsonl", help="Also write what happened in every instance, a line each.")
    ] = None,
    set_: Overrides = [],  # noqa: B006  # typer copies it
    as_json: AsJson = False,
) -> None:
    """Score a model or a recipe with the evaluator of the search.

    Example: sae-moo evaluate zoo:math --config configs/quickstart.yaml --split test
    """
    quiet()
    from sae_moo.files.whole import check_creatable

    if samples is not None:
        check_creatable(samples)
    from sae_moo.config.document import Config

    parsed = Config.load(config, set_, SET)
    from sae_moo.cli.display import metrics_json, score_table, scores_json
    from sae_moo.jobs.evaluate import evaluate
    from sae_moo.objectives import objective_scores

    found = evaluate(model, parsed, split.value)
    means = objective_scores(found.scores, parsed.objective_list())
    if as_json:
        tasks = scores_json(found.scores)
        for name, metrics in found.metrics.items():
            if metrics:
                tasks[name] = {**tasks[name], "metrics": metrics_json(metrics)}
        print_json({"split": split.value, "tasks": tasks, "objectives": scores_json(means), "sparsity": found.sparsity})
        _write_samples(samples, found.samples)
        return
    console = make_console()
    console.print(score_table({**means, **found.scores}, f"{model} on the {split.value} split (mean ± standard error)"))
    for name, metrics in found.metrics.items():
        for key, each in metrics.items():
            error = "" if each.stderr is None else f" ± {each.stderr:.4f}"
            console.print(f"{name}: {key} {each.value:.4f}{error}")
    console.print(f"sparsity {found.sparsity:.4f}")
    _write_samples(samples, found.samples)


def _write_samples(file: Path | None, samples: Sequence[Mapping[str, Any]]) -> None:
    """Write a line for each instance, if a file was asked for; whole or not at all."""
    if file is None:
        return
    from sae_moo.files.whole import whole_file

    with (
        whole_file(file, replace=True) as partial,
        partial.open("w", encoding="utf-8", errors="backslashreplace") as lines,
    ):
        lines.writelines(json.dumps(each, ensure_ascii=False) + "\n" for each in samples)  # \\ud800 is JSON as well


@reported
def merge(
    recipe: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="A recipe with its experts, as export writes it, or a mergekit configuration (.yaml)."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The model folder to make; it must not exist yet.")
    ] = None,
    to_mergekit: Annotated[
        Path | None, typer.Option("--to-mergekit", metavar="FILE.yaml", help="Write the recipe for mergekit instead.")
    ] = None,
    expert: Annotated[
        list[str], typer.Option(metavar="NAME=SOURCE", help="Where an expert (or base) is now; may be given again.")
    ] = [],  # noqa: B006  # typer copies it
    as_json: AsJson = False,
) -> None:
    """Write the model of a recipe or of a mergekit configuration, without any search.

    Example: sae-moo merge exported/recipe.json --output again

    Example: sae-moo merge mergekit.yaml --output merged (paths in it start from the current folder, as in mergekit)

    Example: sae-moo merge exported/recipe.json --to-mergekit mergekit.yaml
    """
    quiet()
    moved = dict(part.partition("=")[::2] for part in expert)
    if not all(moved.values()):
        raise InputError(f"--expert: expected NAME=SOURCE, got {', '.join(expert)}")
    if (output is None) == (to_mergekit is None):
        raise InputError("expected either --output DIR or --to-mergekit FILE.yaml")
    from sae_moo.jobs.merge import merge, write_mergekit

    if output is not None:
        merged = merge(recipe, output, moved)
        notes, told = merged.notes, [*merged.notes, *merged.proof]
        document: dict[str, Any] = {"output": str(output), "sparsity": merged.sparsity, "notes": told}
        done = "; ".join((f"{output}: sparsity {merged.sparsity:.4f}", *merged.proof))
    else:
        assert to_mergekit is not None
        notes = write_mergekit(recipe, to_mergekit, moved)
        document = {"output": str(to_mergekit), "notes": list(notes)}
        done = f"{to_mergekit}: written for mergekit"
    if as_json:
        print_json(document)
        return
    for note in notes:
        print(f"sae-moo: {note}", file=sys.stderr)
    make_console().print(done, soft_wrap=True)
