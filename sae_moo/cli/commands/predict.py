"""The command that ranks merges before they are made: predict."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from sae_moo.cli.frame import (
    SET,
    AsJson,
    ConfigFile,
    Overrides,
    make_console,
    print_json,
    quiet,
    reported,
    staged,
    suggest,
)
from sae_moo.errors import InputError


@reported
def predict(
    config: ConfigFile,
    learn: Annotated[
        list[str], typer.Option(metavar="RUN", help="A run whose trials are learned from; may be given again.")
    ] = [],  # noqa: B006  # typer copies it
    predictor: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What was learned before, as --save wrote it, instead of runs.")
    ] = None,
    save: Annotated[Path | None, typer.Option(metavar="FILE", help="Write what was learned.")] = None,
    features: Annotated[
        Path | None, typer.Option(metavar="FILE.csv", help="Write the features of all ordered pairs on all tasks.")
    ] = None,
    evaluate_top: Annotated[
        int | None,
        typer.Option("--evaluate-top", metavar="N", min=1, help="Make and score the N best, as the run NAME-predict."),
    ] = None,
    test: Annotated[bool, typer.Option("--test", help="Score these on the test split, too.")] = False,
    apply: Annotated[
        Path | None, typer.Option(metavar="RECIPE.json", help="Write the recipe of the best merge, as merge takes it.")
    ] = None,
    set_: Overrides = [],  # noqa: B006  # typer copies it
    as_json: AsJson = False,
) -> None:
    """Rank merges of the experts, operators and orders, by what they are predicted to score; none is made for it.

    Without --learn or --predictor no score is predicted: merges are ranked by untrained signals.

    Example: sae-moo predict configs/quickstart.yaml

    Example: sae-moo predict mine.yaml --learn mine-pairs --evaluate-top 5 --apply best.json
    """
    _check(learn, predictor, save, evaluate_top, test)
    quiet()
    from sae_moo.config.document import Config
    from sae_moo.files.whole import check_all_creatable

    check_all_creatable({"--save": save, "--features": features, "--apply": apply})
    parsed = Config.load(config, set_, SET)
    from sae_moo.cli.predicting import forecast_json, show_forecast
    from sae_moo.jobs.predict import predict
    from sae_moo.jobs.tried import tried

    with staged() as stage:
        forecast = predict(parsed, learn, predictor, stage=stage)
        if evaluate_top is not None:
            forecast = tried(forecast, evaluate_top, test, stage=stage)
    best, why = forecast.best(evaluate_top or 1)
    # at the end alone: a file that is there would refuse the command that goes on after Ctrl-C
    if features is not None:
        forecast.write_features(features)
    if save is not None:
        forecast.save_predictor(save)
    if apply is not None:
        forecast.write_recipe(best, apply)
    chains = forecast.first(max(evaluate_top or 0, parsed.predict.listed))
    if as_json:
        written = {"features": features, "save": save, "apply": apply}
        print_json(
            forecast_json(forecast, chains, str(config))
            | {"written": {name: None if file is None else str(file) for name, file in written.items()}}
        )
        return
    console = make_console()
    show_forecast(console, forecast, chains, str(config))
    for file, what in ((features, "features"), (save, "what was learned")):
        if file is not None:
            console.print(f"{what}: {file}", soft_wrap=True)
    following = {}
    if apply is not None:
        console.print(f"{apply}: {'; '.join(best.operators)} of {', '.join(best.experts)}, {why}", soft_wrap=True)
        following[f"sae-moo merge {shlex.quote(str(apply))} --output merged"] = "the model"
    for run in dict.fromkeys(forecast.measured[chain].run for chain in forecast.first(evaluate_top or 0)):
        following[f"sae-moo trials {shlex.quote(run)}"] = "where the merges are that were made"
    if following:
        console.print()
        suggest(console, following)


def _check(learn: list[str], predictor: Path | None, save: Path | None, evaluate_top: int | None, test: bool) -> None:
    if learn and predictor is not None:
        raise InputError("expected either --learn RUN or --predictor FILE, got both")
    if save is not None and not learn:
        raise InputError("--save keeps what was learned; expected --learn RUN beside it")
    if test and evaluate_top is None:
        raise InputError("--test scores the merges that are made; expected --evaluate-top N beside it")
