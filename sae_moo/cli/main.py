"""The commands of `sae-moo`."""

from __future__ import annotations

import errno
import functools
import io
import json
import logging
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec

import typer

from sae_moo.errors import InputError, SaeMooError

if TYPE_CHECKING:
    from rich.console import Console

    from sae_moo.run import Run
    from sae_moo.storage import TrialRecord

# Everything heavy is imported inside the commands: `sae-moo --help` must answer at once.

P = ParamSpec("P")
app = typer.Typer(
    name="sae-moo",
    help="Search merges of fine-tuned language models for the Pareto front of accuracy against sparsity.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)


class SplitName(StrEnum):
    """Which items to score on."""

    search = "search"
    test = "test"


class FormatName(StrEnum):
    """How a model is written."""

    hf = "hf"
    packed = "packed"
    recipe = "recipe"
    delta = "delta"
    structured = "structured"


ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="The configuration, a YAML file.")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run folder, or a name under runs/.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else there.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="The folder to make; it must not exist yet.")]
Settings = Annotated[
    list[str], typer.Option("--set", metavar="KEY.PATH=VALUE", help="Change a value of the configuration.")
]
Knee = Annotated[bool, typer.Option("--knee", help="The knee of the front (the default).")]
Weights = Annotated[str | None, typer.Option("--weights", metavar="A=w,B=w", help="Largest weighted sum.")]
Pseudo = Annotated[
    str | None, typer.Option("--pseudo", metavar="A=w,B=w", help="Nearest pseudo-weights of objectives.")
]
Wish = Annotated[str | None, typer.Option("--wish", metavar="A=x,B=y", help="Nearest to these values.")]
Order = Annotated[
    str | None, typer.Option("--order", metavar="A,B", help="The best in B among those about as good as the best in A.")
]
Tolerance = Annotated[
    float | None, typer.Option(metavar="x", help="What is about as good for --order; one standard error by default.")
]
Where = Annotated[list[str], typer.Option("--where", metavar="'A>=x'", help="Keep a limit; may be given again.")]


def reported(command: Callable[P, None]) -> Callable[P, None]:
    """Turn our errors into one message on stderr and the promised exit code."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except SaeMooError as error:
            print(f"sae-moo: {error}", file=sys.stderr)
            raise typer.Exit(error.exit_code) from None
        except BrokenPipeError:
            _let_go_of_stdout()
            raise typer.Exit(0) from None
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            kept = "; what was finished before is kept" if error.errno == errno.ENOSPC else ""
            print(f"sae-moo: {where}{error.strerror or error}{kept}", file=sys.stderr)
            raise typer.Exit(2 if error.errno == errno.ENAMETOOLONG else 1) from None
        except KeyboardInterrupt:
            print("sae-moo: interrupted", file=sys.stderr)
            raise typer.Exit(130) from None

    return wrapped


@app.command()
@reported
def search(
    config: ConfigFile,
    evaluations: Annotated[int | None, typer.Option(help="Budget of trials, earlier ones counted.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the search.")] = None,
    set_: Settings = [],  # noqa: B006  # typer copies it
    fresh: Annotated[bool, typer.Option("--fresh", help="Put an earlier run of that name aside; start anew.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run a search, or go on with one; everything lies under runs/NAME/.

    Example: sae-moo search configs/quickstart.yaml --evaluations 100 --set search.population=16
    """
    overrides = list(set_)
    overrides += [] if evaluations is None else [f"search.evaluations={evaluations}"]
    overrides += [] if seed is None else [f"study.seed={seed}"]
    _quiet()
    from sae_moo.config import Config

    parsed = Config.load(config, overrides)
    from sae_moo import jobs
    from sae_moo.cli.display import SearchView, front_table, trial_json

    console = _console(as_json)
    with SearchView(parsed, console, show=not as_json) as view:
        run = jobs.search(parsed, view, fresh=fresh)
        seconds = view.seconds
    front = run.front()
    if as_json:
        _print_json(
            {
                "study": run.name,
                "run": str(run.folder),
                "evaluations": len(run.trials()),
                "seconds": seconds,
                "hypervolume": run.hypervolume(),
                "front": [trial_json(record) for record in front],
            }
        )
        return
    title = f"front of {run.name} (search split, mean ± standard error)"
    console.print(front_table(front, run.objectives, run.tasks, title))
    console.print(
        f"\n{view.evaluated} evaluations in {seconds:.0f} s{view.earlier}; hypervolume {run.hypervolume():.4f}\n"
        f"the study lies in {run.folder}\n",
        highlight=False,
    )
    if front:
        console.print(_next_commands(run), highlight=False, soft_wrap=True, markup=False)


@app.command()
@reported
def compare(
    config: ConfigFile,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Searches at a time, each in its own process.")] = 1,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="The smallest that runs everything once, as NAME-smoke.")
    ] = False,
    set_: Settings = [],  # noqa: B006  # typer copies it
    as_json: AsJson = False,
) -> None:
    """Compare methods over seeds at one budget, judged on the test split; everything lies under runs/NAME/.

    Example: sae-moo compare configs/compare.yaml --workers 2
    """
    _quiet()
    from sae_moo.config import Config

    parsed = Config.load(config, list(set_))
    if smoke and parsed.compare is not None:
        parsed = parsed.smoke()
    from sae_moo import compare as comparing
    from sae_moo.cli.display import CompareView, comparison_tables
    from sae_moo.errors import RunError

    console = _console(as_json)
    view = CompareView(console, show=not as_json)
    found = comparing.run(parsed, view, workers=workers)
    if as_json:
        _print_json(comparing.document_of(found))
    else:
        for table in comparison_tables(found):
            console.print(table)
        console.print("written: " + ", ".join(map(str, found.files)), highlight=False, soft_wrap=True)
    if found.failed:
        raise RunError("; ".join(f"{job}: {why}" for job, why in found.failed.items()))


@app.command()
@reported
def front(
    run: RunName,
    figure: Annotated[Path | None, typer.Option(help="Also draw it, picks marked: a .png, .svg or .pdf.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the non-dominated trials with scores, standard errors and sparsity (search split).

    Example: sae-moo front quickstart --figure front.png
    """
    opened = _open(run)
    from sae_moo.cli.display import front_table, trials_json

    view = opened.view()
    records = view.front
    if figure is not None:
        from sae_moo.explore.figures import draw_front

        draw_front(figure, view.records, records, view.objectives, view.picks, view.references)
    if as_json:
        _print_json(trials_json(opened.name, records, opened.objectives))
    elif not records:
        print("the front is empty: no evaluation so far is feasible", file=sys.stderr)
    else:
        title = f"front of {opened.name} (search split, mean ± standard error)"
        _console().print(front_table(records, opened.objectives, opened.tasks, title))


@app.command()
@reported
def trials(run: RunName, as_json: AsJson = False) -> None:
    """Show every trial: number, state, values, digest, and the reason if it failed.

    Example: sae-moo trials quickstart --json
    """
    opened = _open(run)
    from sae_moo.cli.display import trial_table, trials_json

    records = opened.trials()
    if as_json:
        _print_json(trials_json(opened.name, records, opened.objectives))
    else:
        _console().print(trial_table(records, opened.objectives))


@app.command()
@reported
def pick(
    run: RunName,
    knee: Knee = False,
    weights: Weights = None,
    pseudo: Pseudo = None,
    wish: Wish = None,
    order: Order = None,
    tolerance: Tolerance = None,
    where: Where = [],  # noqa: B006  # typer copies it
    test: Annotated[bool, typer.Option("--test", help="Also score it, and what to hold it against, on test.")] = False,
    as_json: AsJson = False,
) -> None:
    """Pick one trade-off from the front and say why, and what its neighbours would cost or gain.

    Example: sae-moo pick quickstart --where "sparsity>=0.4"

    Example: sae-moo pick quickstart --wish "accuracy=0.7,sparsity=0.5" --test
    """
    opened = _open(run)
    record, why = opened.pick(where, weights, pseudo=pseudo, wish=wish, order=order, tolerance=tolerance, knee=knee)
    from sae_moo.cli import deciding
    from sae_moo.cli.display import trial_json

    beside = opened.neighbours(record)
    tested = None
    if test:
        from sae_moo.judging import on_both_splits

        tested = on_both_splits(opened, [record])
    if as_json:
        _print_json(
            {
                "trial": trial_json(record),
                "why": why,
                "test": None if tested is None else deciding.tested_json(tested, opened.objectives),
                "neighbours": deciding.neighbours_json(beside),
            }
        )
        return
    console = _console()
    deciding.show_pick(console, opened, record, why, beside, tested)
    number = record.number
    console.print(
        f"next:\n  sae-moo export {shlex.quote(run)} --trial {number} --output exported-{number} --verify",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )


@app.command()
@reported
def export(
    run: RunName,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The folder (or file) to make; it must not exist yet.")
    ] = None,
    trial: Annotated[int | None, typer.Option(help="Number of the trial; without it the pick flags choose.")] = None,
    knee: Knee = False,
    weights: Weights = None,
    pseudo: Pseudo = None,
    wish: Wish = None,
    order: Order = None,
    tolerance: Tolerance = None,
    where: Where = [],  # noqa: B006  # typer copies it
    format_: Annotated[
        FormatName,
        typer.Option(
            "--format",
            help="hf: a folder of dense weights; packed: one file of what is not zero; delta: one file of what is not "
            "the base's; recipe: no weights; structured: a folder without neurons and heads that are zero as a whole.",
        ),
    ] = FormatName.hf,
    tokenizer_from: Annotated[
        str, typer.Option(metavar="NAME", help="Whose tokenizer, chat template and generation settings to write.")
    ] = "base",
    max_shard_size: Annotated[str, typer.Option(metavar="SIZE", help="Of a file of weights, e.g. 800MB.")] = "5GB",
    verify: Annotated[
        bool, typer.Option("--verify", help="In a fresh process, compare every tensor and every score.")
    ] = False,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Only tell what each format would take and which runtimes gain.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write one trial as a Hugging Face folder, or smaller, whole or not at all.

    Example: sae-moo export quickstart --knee --output exported --verify

    Example: sae-moo export quickstart --knee --estimate

    Example: sae-moo export quickstart --knee --format packed --output model.saepack (back by: sae-moo unpack)
    """
    if (output is None) != estimate:
        raise InputError("expected either --output DIR or --estimate")
    opened = _open(run)
    if trial is not None and (knee or weights or pseudo or wish or order or tolerance is not None or where):
        raise InputError(
            "--trial names the model; --knee, --weights, --pseudo, --wish, --order and --where choose one: "
            "give one or the other"
        )
    if trial is not None:
        record, why = opened.trial(trial), f"Trial {trial}, chosen by number"
    else:
        record, why = opened.pick(where, weights, pseudo=pseudo, wish=wish, order=order, tolerance=tolerance, knee=knee)
        why = why[0].upper() + why[1:]
    from sae_moo import jobs
    from sae_moo.cli import deciding
    from sae_moo.cli.display import scores_json, trial_json
    from sae_moo.deploy.tensor_files import shard_bytes

    if output is None:
        _estimate(opened, record, as_json)
        return

    notes: list[str] = []
    size = shard_bytes(max_shard_size)
    scores = jobs.export(opened, record, why, output, verify, format_.value, tokenizer_from, size, notes.append)
    if as_json:
        found = {split: scores_json(tasks) for split, tasks in scores.items()}
        _print_json(
            {
                "trial": trial_json(record),
                "why": why,
                "output": str(output),
                "verified": verify,
                "scores": found,
                "optimism": deciding.optimism_json(scores),
            }
            | {"format": format_.value, "notes": notes}
        )
        return
    console = _console()
    console.print(
        f"trial {record.number} lies in {output}; {why[0].lower() + why[1:]}", highlight=False, soft_wrap=True
    )
    for note in notes:
        console.print(note, highlight=False, soft_wrap=True, markup=False)
    deciding.show_export(console, scores)


def _estimate(run: Run, record: TrialRecord, as_json: bool) -> None:
    """Show what a trial would take in every format."""
    from sae_moo import jobs
    from sae_moo.cli.display import estimate_table, trial_json

    found = jobs.estimate(run, record)
    if as_json:
        _print_json({"trial": trial_json(record), "formats": [asdict(each) for each in found]})
        return
    title = f"trial {record.number}, sparsity {record.values.get('sparsity', record.evaluation.sparsity):.4f}"  # type: ignore[union-attr]
    _console().print(estimate_table(found, title))


@app.command()
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
    _quiet()
    from sae_moo.deploy.packing import unpack

    tensors = unpack(file, output, base)
    if as_json:
        _print_json({"output": str(output), "tensors": tensors})
        return
    _console().print(f"{output}: {tensors} tensors, each with the digest it had", highlight=False, soft_wrap=True)


@app.command()
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
    set_: Settings = [],  # noqa: B006  # typer copies it
    as_json: AsJson = False,
) -> None:
    """Score a model or a recipe with the evaluator of the search.

    Example: sae-moo evaluate zoo:math --config configs/quickstart.yaml --split test
    """
    _quiet()
    if samples is not None:
        from sae_moo.errors import InputError

        if not samples.parent.is_dir():
            raise InputError(f"--samples {samples}: there is no folder {samples.parent}")
        if samples.exists() or samples.is_symlink():
            raise InputError(f"--samples {samples}: exists already")
        if not os.access(samples.parent, os.W_OK):
            raise InputError(f"--samples {samples}: the folder {samples.parent} cannot be written to")
    from sae_moo.config import Config

    parsed = Config.load(config, set_)
    from sae_moo import jobs
    from sae_moo.cli.display import metrics_json, score_table, scores_json

    found = jobs.evaluate(model, parsed, split.value)
    if as_json:
        tasks = scores_json(found.scores)
        for name, metrics in found.metrics.items():
            if metrics:
                tasks[name] = {**tasks[name], "metrics": metrics_json(metrics)}
        _print_json({"split": split.value, "tasks": tasks, "sparsity": found.sparsity})
        _write_samples(samples, found.samples)
        return
    console = _console()
    console.print(score_table(found.scores, f"{model} on the {split.value} split (mean ± standard error)"))
    for name, metrics in found.metrics.items():
        for key, each in metrics.items():
            error = "" if each.stderr is None else f" ± {each.stderr:.4f}"
            console.print(f"{name}: {key} {each.value:.4f}{error}", highlight=False)
    console.print(f"sparsity {found.sparsity:.4f}", highlight=False)
    _write_samples(samples, found.samples)


def _write_samples(file: Path | None, samples: Sequence[Mapping[str, Any]]) -> None:
    """Write a line for each instance, if a file was asked for; whole or not at all."""
    if file is None:
        return
    try:
        file.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in samples), "utf-8")
    except OSError:
        file.unlink(missing_ok=True)
        raise


@app.command()
@reported
def diff(
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN N M | A B", help="A run and two of its trials; or two models, as evaluate has them."
        ),
    ],
    config: Annotated[
        Path | None, typer.Option("--config", help="For two models: configuration with the tasks (and experts).")
    ] = None,
    split: Annotated[
        SplitName | None, typer.Option(help="Which scores; of trials search by default, of models test.")
    ] = None,
    set_: Settings = [],  # noqa: B006  # typer copies it
    as_json: AsJson = False,
) -> None:
    """Hold two models against each other: scores, instances won and lost, distance of the weights, sparsity.

    Example: sae-moo diff quickstart 12 40

    Example: sae-moo diff exported-12 exported-40/recipe.json --config configs/quickstart.yaml
    """
    if len(targets) != (3 if config is None else 2):
        raise InputError(
            f"expected RUN and two numbers of trials, or two models and --config CONFIG; got {' '.join(targets)}"
            + ("" if config is None else f" --config {config}")
        )
    if config is None:
        if set_:
            raise InputError("--set changes a configuration; trials are scored as their run says")
        if not all(number.isascii() and number.isdigit() for number in targets[1:]):
            raise InputError(f"expected two numbers of trials behind {targets[0]}, got {' '.join(targets[1:])}")
        opened = _open(targets[0])
        from sae_moo import diff as differing

        found = differing.of_trials(opened, int(targets[1]), int(targets[2]), (split or SplitName.search).value)
    else:
        _quiet()
        from sae_moo.config import Config

        parsed = Config.load(config, set_)
        from sae_moo import diff as differing

        found = differing.of_models(targets[0], targets[1], parsed, (split or SplitName.test).value)
    from sae_moo.cli import deciding

    if as_json:
        _print_json(deciding.diff_json(found))
        return
    console = _console()
    for table in deciding.diff_tables(found):
        console.print(table)
    console.print(deciding.HOW_TESTED, highlight=False, soft_wrap=True, markup=False)


@app.command()
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
    _quiet()
    moved = dict(part.partition("=")[::2] for part in expert)
    if not all(moved.values()):
        raise InputError(f"--expert: expected NAME=SOURCE, got {', '.join(expert)}")
    if (output is None) == (to_mergekit is None):
        raise InputError("expected either --output DIR or --to-mergekit FILE.yaml")
    from sae_moo import jobs

    if output is not None:
        merged = jobs.merge(recipe, output, moved)
        notes = merged.notes
        document: dict[str, Any] = {"output": str(output), "sparsity": merged.sparsity, "notes": list(notes)}
        done = f"{output}: sparsity {merged.sparsity:.4f}"
    else:
        assert to_mergekit is not None
        notes = jobs.to_mergekit(recipe, to_mergekit, moved)
        document = {"output": str(to_mergekit), "notes": list(notes)}
        done = f"{to_mergekit}: written for mergekit"
    if as_json:
        _print_json(document)
        return
    for note in notes:
        print(f"sae-moo: {note}", file=sys.stderr)
    _console().print(done, highlight=False, soft_wrap=True)


@app.command()
@reported
def validate(config: ConfigFile, set_: Settings = [], as_json: AsJson = False) -> None:  # noqa: B006  # typer copies it
    """Check everything that search would check before its first evaluation; write nothing.

    Example: sae-moo validate configs/quickstart.yaml
    """
    _quiet()
    from sae_moo.config import Config

    parsed = Config.load(config, set_)
    from sae_moo.build import Bench
    from sae_moo.jobs import check_resumable

    bench = Bench.open(parsed)
    bench.live_model()
    check_resumable(parsed, bench)
    facts: dict[str, Any] = {
        "study": parsed.study.name,
        "device": bench.device,
        "experts": list(bench.pool.names),
        "groups": list(bench.pool.groups),
        "parameters": sum(info.numel for info in bench.pool.tensors),
        "prunable": sum(info.numel for info in bench.pool.tensors if info.prunable),
        "calibration": bench.calibration,
        "tasks": {task.name: {s: task.instances(s) for s in ("search", "test")} for task in bench.tasks},
        "sources": {task.name: {s: task.source(s) for s in ("search", "test")} for task in bench.tasks},
    }
    if as_json:
        _print_json(facts)
        return
    print(f"{config}: fine")
    print(f"  experts     {', '.join(facts['experts'])} on {bench.device}")
    groups = len(bench.pool.groups)
    print(f"  parameters  {facts['parameters']:,}, {facts['prunable']:,} of them prunable, in {groups} groups")
    if bench.calibration is not None:
        print(f"  norms       {bench.calibration}")
    for name, counts in facts["tasks"].items():
        print(f"  task        {name}: {counts['search']} search and {counts['test']} test instances")
        sources = facts["sources"][name]
        if sources["search"] != sources["test"]:
            print(f"              searched on {sources['search']}, tested on {sources['test']}")


@app.command()
@reported
def report(
    run: RunName,
    output: Annotated[Path, typer.Option("--output", "-o", help="The .html file to make; it must not exist yet.")],
    as_json: AsJson = False,
) -> None:
    """Write one self-contained HTML page: summary, front, progress, and a section for each pick.

    Example: sae-moo report quickstart --output report.html
    """
    from sae_moo.files import check_new

    check_new(output)
    start = time.perf_counter()
    view = _open(run).view()
    from sae_moo.explore.report import write_report

    size = write_report(view, output, run)
    seconds = time.perf_counter() - start
    if as_json:
        _print_json({"output": str(output), "trials": len(view.records), "bytes": size, "seconds": seconds})
        return
    _console().print(
        f"{output}: {len(view.records)} trials, {size / 1e6:.1f} MB, {seconds:.1f} s; open it in a browser",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )


@app.command()
@reported
def dashboard(
    run: RunName, port: Annotated[int, typer.Option(min=0, max=65535, help="TCP port; 0 takes a free one.")] = 8080
) -> None:
    """Serve optuna-dashboard for a run on 127.0.0.1, with notes in words, until Ctrl-C; also while it is searched.

    Example: sae-moo dashboard quickstart --port 8080
    """
    opened = _open(run)
    from sae_moo.explore.dashboard import serve, with_notes
    from sae_moo.explore.notes import notes_of

    noted = with_notes(opened.storage, opened.name, lambda: notes_of(opened.view(), run))
    serve(noted, port, lambda address: print(f"{address}  (Ctrl-C ends it)", file=sys.stderr))


def _open(run: str) -> Run:
    _quiet()
    from sae_moo.run import Run

    return Run.open(run)


def _next_commands(run: Run) -> str:
    name = shlex.quote(str(run.folder))
    record, _ = run.pick()
    return (
        "next:\n"
        f"  sae-moo front {name}\n"
        f"  sae-moo pick {name} --knee\n"
        f"  sae-moo export {name} --trial {record.number} --output exported-{record.number} --verify\n"
        f"  sae-moo dashboard {name}"
    )


def _console(stderr: bool = False) -> Console:
    from rich.console import Console

    class Piped(Console):
        def on_broken_pipe(self) -> None:
            _let_go_of_stdout()
            raise typer.Exit(0)

    console = Piped(stderr=stderr)
    if not console.is_terminal:
        console.width = max(console.width, 400)  # a pipe has no width to fit; a folded table is hard to read
    return console


def _let_go_of_stdout() -> None:
    """Forget a reader that has what it wanted (e.g. head): the interpreter flushes stdout once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_json(document: Any) -> None:
    print(json.dumps(document, indent=1, allow_nan=False))


def _quiet() -> None:
    """Keep other libraries' chatter off the screen; our own warnings stay."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.basicConfig(level=logging.WARNING, format="sae-moo: %(message)s", stream=sys.stderr)


def main() -> None:
    """Run the command line."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # an exit cleans up, a death does not
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a plain-ASCII terminal shows ? for ±
    try:
        app()
    except KeyboardInterrupt:  # before the command itself began
        print("sae-moo: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
