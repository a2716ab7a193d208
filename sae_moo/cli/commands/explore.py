"""The commands that show a run: front, trials, figures, report, dashboard, doctor."""

from __future__ import annotations

import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sae_moo.cli.frame import AsJson, Output, RunName, make_console, open_run, print_json, quiet, reported
from sae_moo.errors import InputError


@reported
def front(
    run: RunName,
    figure: Annotated[Path | None, typer.Option(help="Also draw it, picks marked: a .png, .svg or .pdf.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the non-dominated trials with scores, standard errors and sparsity (search split).

    Example: sae-moo front quickstart --figure front.png
    """
    from sae_moo.files.whole import check_free

    if figure is not None:
        check_free(figure, folder=False)
    opened = open_run(run)
    from sae_moo.cli.display import front_table, trials_json

    view = opened.view()
    records = view.front
    if figure is not None:
        from sae_moo.explore.pages.figures import draw_front

        draw_front(figure, view)
    if as_json:
        print_json(trials_json(opened.name, records, opened.objectives))
    elif not records:
        print(view.nothing, file=sys.stderr)
    else:
        told = "; ".join(filter(None, ("search split, mean ± standard error", view.unfinished)))
        title = f"front of {opened.name} ({told})"
        make_console().print(front_table(records, opened.objectives, opened.tasks, title))
    if figure is not None and not as_json:
        print(f"written: {figure}", file=sys.stderr)


@reported
def trials(run: RunName, as_json: AsJson = False) -> None:
    """Show every trial: number, state, values, digest, and the reason if it failed.

    Example: sae-moo trials quickstart --json
    """
    opened = open_run(run)
    from sae_moo.cli.display import trial_table, trials_json

    records = opened.trials()
    if as_json:
        print_json(trials_json(opened.name, records, opened.objectives))
    else:
        make_console().print(trial_table(records, opened.objectives, opened.config.constraint_list()))


class FigureType(StrEnum):
    """How pictures are written."""

    png = "png"
    svg = "svg"
    pdf = "pdf"


@reported
def figures(
    run: RunName,
    output: Output,
    trial: Annotated[int | None, typer.Option(metavar="N", help="The trial to look into; the knee by default.")] = None,
    against: Annotated[
        int | None,
        typer.Option(metavar="M", help="A trial to hold its answers against; else the uniform average, or the base."),
    ] = None,
    type_: Annotated[FigureType, typer.Option("--type", help="What the pictures are.")] = FigureType.png,
    as_json: AsJson = False,
) -> None:
    """Draw a run without a browser: front, hypervolume, generations; blocks, lineage and answers of a trial.

    Where a learned generator was at work, also how it learned and where it moves candidates.

    Example: sae-moo figures quickstart --output figures --trial 57 --against 4 --type svg
    """
    from sae_moo.files.whole import check_free

    check_free(output)
    view = open_run(run).view()
    from sae_moo.explore.pages.figures import write_figures

    written = write_figures(view, output, trial, against, f".{type_.value}")
    if as_json:
        files = {what: str(output / name) for what, name in written.files.items()}
        print_json({"output": str(output), "trial": written.trial, "figures": files, "without": written.without})
        return
    for what, name in written.files.items():
        print(f"{what:<12} {output / name}")
    for what, why in written.without.items():
        print(f"{what:<12} none: {why}")


@reported
def report(
    run: RunName,
    output: Annotated[Path, typer.Option("--output", "-o", help="The .html file to make; it must not exist yet.")],
    as_json: AsJson = False,
) -> None:
    """Write one self-contained HTML page: summary, front, progress, and a section for each pick.

    Example: sae-moo report quickstart --output report.html
    """
    from sae_moo.files.whole import check_creatable

    if output.suffix not in (".html", ".htm"):
        raise InputError(f"{output}: expected a name that ends in .html")
    check_creatable(output)
    start = time.perf_counter()
    view = open_run(run).view()
    from sae_moo.explore.pages.report import write_report

    size = write_report(view, output, run)
    seconds = time.perf_counter() - start
    if as_json:
        print_json({"output": str(output), "trials": len(view.records), "bytes": size, "seconds": seconds})
        return
    make_console().print(
        f"{output}: {len(view.records)} trials, {size / 1e6:.1f} MB, {seconds:.1f} s; open it in a browser",
        soft_wrap=True,
    )


@reported
def dashboard(
    run: RunName, port: Annotated[int, typer.Option(min=0, max=65535, help="TCP port; 0 takes a free one.")] = 8080
) -> None:
    """Serve optuna-dashboard for a run on 127.0.0.1, with notes and figures, until Ctrl-C; also while it is searched.

    Example: sae-moo dashboard quickstart --port 8080
    """
    opened = open_run(run)
    from sae_moo.explore.pages.dashboard import serve, shown_of, with_notes

    noted = with_notes(opened.storage, opened.name, lambda: shown_of(opened.view(), run))
    page = f"studies/{opened.storage.get_study_id_from_name(opened.name)}"
    try:
        serve(noted, port, lambda address: print(f"{address}/{page}  (Ctrl-C ends it)", file=sys.stderr))
    except KeyboardInterrupt:  # the usual end, nothing is cut short
        raise typer.Exit(130) from None


@reported
def doctor(
    run: RunName,
    fix: Annotated[bool, typer.Option("--fix", help="Mend what can be mended without losing anything.")] = False,
    as_json: AsJson = False,
) -> None:
    """Look a run folder over: whether everything in it is whole, what is wrong, and what of that can be mended.

    Example: sae-moo doctor quickstart --fix
    """
    quiet()
    from sae_moo.cli.display import checkup_json, checkup_lines, say
    from sae_moo.jobs.doctor import examine

    checkup = examine(run, fix)
    if as_json:
        print_json(checkup_json(checkup))
    else:
        console = make_console()
        for line in checkup_lines(checkup):
            say(console, line)
    if not checkup.whole:
        raise typer.Exit(1)
