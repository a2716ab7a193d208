"""The commands that help to decide: pick, diff."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from sae_moo.cli.choice import PickOptions, with_pick_options
from sae_moo.cli.frame import (
    SET,
    AsJson,
    Overrides,
    RunName,
    SplitName,
    called,
    make_console,
    open_run,
    print_json,
    quiet,
    reported,
    staged,
    suggest,
)
from sae_moo.errors import InputError


@reported
@with_pick_options
def pick(
    run: RunName,
    choice: PickOptions,
    test: Annotated[bool, typer.Option("--test", help="Also score it, and what to hold it against, on test.")] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Also repair it: what pruning left is moved to make up for the zeros.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Pick one trade-off from the front and say why, and what its neighbours would cost or gain.

    Example: sae-moo pick quickstart --where "sparsity>=0.4"

    Example: sae-moo pick quickstart --wish "accuracy=0.7,sparsity=0.5" --test
    """
    opened = open_run(run)
    from sae_moo.cli import deciding
    from sae_moo.cli.display import say, trial_json

    view = opened.view()
    record, why = choice.pick(view)
    beside = view.neighbours(record)
    tested = None
    mended = None
    if repair:
        from sae_moo.jobs.judge import bench_of
        from sae_moo.jobs.repair import repair_trial

        with staged() as stage:
            mended = repair_trial(opened, record, bench_of(opened, any_device=True), test, stage).record
    if test:
        from sae_moo.jobs.judge import on_both_splits

        tested = on_both_splits(opened, view, [record, *([] if mended is None else [mended])])
    if as_json:
        print_json(
            {
                "trial": trial_json(record),
                "why": why,
                "cautions": view.cautions(record),
                "test": None if tested is None else deciding.tested_json(tested, view.objectives),
                "neighbours": deciding.neighbours_json(beside),
                "repaired": None if mended is None else trial_json(mended),
            }
        )
        return
    console = make_console()
    if mended is not None:
        deciding.show_repaired(console, record, mended, view.objectives)
    deciding.show_pick(console, view, record, why, beside, tested)
    if view.unfinished:
        say(console, f"The search is not finished: this is {view.unfinished}.\n")
    number = record.number
    name = shlex.quote(called(opened.name, opened.folder))
    export = f"sae-moo export {name} --trial {number} --output exported-{number} --verify"
    export += " --repair" * repair
    suggest(console, {export: "a Hugging Face folder, loaded and scored again"})


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
    set_: Overrides = [],  # noqa: B006  # typer copies it
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
        opened = open_run(targets[0])
        from sae_moo.jobs.diff import of_trials

        view = opened.view()
        records = view.trial(int(targets[1])), view.trial(int(targets[2]))
        found = of_trials(opened, *records, (split or SplitName.search).value)
    else:
        quiet()
        from sae_moo.config.document import Config

        parsed = Config.load(config, set_, SET)
        from sae_moo.jobs.diff import of_models

        found = of_models(targets[0], targets[1], parsed, (split or SplitName.test).value)
    from sae_moo.cli import deciding
    from sae_moo.cli.display import say
    from sae_moo.explore.decide.significance import HOW_TESTED

    if as_json:
        print_json(deciding.diff_json(found))
        return
    console = make_console()
    for table in deciding.diff_tables(found):
        console.print(table)
    say(console, " ".join(filter(None, (HOW_TESTED + ".", found.unlike))))
