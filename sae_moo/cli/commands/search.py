"""The commands that search: search, compare, validate."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sae_moo.cli.frame import (
    SET,
    AsJson,
    ConfigFile,
    Overrides,
    called,
    make_console,
    print_json,
    quiet,
    reported,
    suggest,
)
from sae_moo.errors import Interrupted, RunError

if TYPE_CHECKING:
    from sae_moo.config.document import Config


@reported
def search(
    config: ConfigFile,
    evaluations: Annotated[int | None, typer.Option(help="Budget of trials, earlier ones counted.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the search.")] = None,
    set_: Overrides = [],  # noqa: B006  # typer copies it
    fresh: Annotated[bool, typer.Option("--fresh", help="Put an earlier run of that name aside; start anew.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run a search, or go on with one; everything lies under runs/NAME/.

    Example: sae-moo search configs/quickstart.yaml --evaluations 100 --set search.population=16
    """
    shorthands = {} if evaluations is None else {f"search.evaluations={evaluations}": f"--evaluations {evaluations}"}
    shorthands |= {} if seed is None else {f"study.seed={seed}": f"--seed {seed}"}
    quiet()
    from sae_moo.config.document import Config

    parsed = Config.load(config, set_, SET, shorthands)
    _check_extra(parsed)
    from sae_moo.cli.display import front_table, say, trial_json
    from sae_moo.cli.progress import SearchView
    from sae_moo.explore.words import count
    from sae_moo.jobs.search import search
    from sae_moo.study.record import own

    console = make_console(as_json, goes_on=True)
    with SearchView(parsed, console, show=not as_json) as view:
        try:
            run = search(parsed, view, fresh=fresh)
        except Interrupted as error:
            raise Interrupted(f"{error}, the same command{' without --fresh' if fresh else ''} goes on") from None
        seconds = view.seconds
    found = run.view()
    front = found.front
    if as_json:
        print_json(
            {
                "study": run.name,
                "run": str(run.folder),
                "evaluations": len(own(found.records)),
                "seconds": seconds,
                "hypervolume": found.hypervolume,
                "front": [trial_json(record) for record in front],
            }
        )
        return
    if front:
        title = f"front of {run.name} (search split, mean ± standard error)"
        console.print(front_table(front, found.objectives, found.tasks, title))
        volume = f"; hypervolume {found.hypervolume:.4f}"
    else:
        say(console, found.nothing)
        volume = ""
    console.print(
        f"\n{count(view.evaluated, 'evaluation')} in {seconds:.0f} s{view.earlier}{volume}\n"
        f"the study lies in {run.folder}\n",
    )
    name = shlex.quote(called(run.name, run.folder))
    if not front:
        if found.records:
            suggest(console, {f"sae-moo trials {name}": "every trial, and why it is not on the front"})
    else:
        record, _ = found.pick()
        export = f"sae-moo export {name} --trial {record.number} --output exported-{record.number} --verify"
        suggest(
            console,
            {
                f"sae-moo pick {name}": "a trade-off, why, and what others would cost",
                export: "it as a Hugging Face folder, scored again",
                f"sae-moo report {name} --output report.html": "one page to read and to pass on",
                f"sae-moo dashboard {name}": "every trial in optuna-dashboard",
            },
        )


@reported
def compare(
    config: ConfigFile,
    workers: Annotated[
        int | None,
        typer.Option(min=1, max=10_000, help="Searches at a time, each in its own process, or as `executor` says."),
    ] = None,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="The smallest that runs everything once, as NAME-smoke.")
    ] = False,
    set_: Overrides = [],  # noqa: B006  # typer copies it
    as_json: AsJson = False,
) -> None:
    """Compare methods over seeds at one budget, judged on the test split; everything lies under runs/NAME/.

    Example: sae-moo compare configs/compare.yaml --workers 2
    """
    quiet()
    from sae_moo.config.document import Config

    parsed = Config.load(config, list(set_), SET)
    if smoke and parsed.compare is not None:
        parsed = parsed.smoke()
    from sae_moo.cli.display import comparison_tables
    from sae_moo.cli.progress import CompareView
    from sae_moo.jobs.compare.comparison import compare
    from sae_moo.jobs.compare.tables import document_of

    console = make_console(as_json, goes_on=True)
    with CompareView(parsed, console, show=not as_json) as view:
        comparison = compare(parsed, view, workers=workers)
    if as_json:
        print_json(document_of(comparison))
    else:
        for table in comparison_tables(comparison):
            console.print(table)
        console.print("written: " + ", ".join(map(str, comparison.files)), soft_wrap=True)
    if comparison.failed:
        raise RunError("; ".join(f"{cell}: {why}" for cell, why in comparison.failed.items()))


@reported
def validate(config: ConfigFile, set_: Overrides = [], as_json: AsJson = False) -> None:  # noqa: B006  # typer copies it
    """Check everything that search would check before its first evaluation; write nothing.

    Example: sae-moo validate configs/quickstart.yaml
    """
    quiet()
    from sae_moo.config.document import Config

    parsed = Config.load(config, set_, SET)
    _check_extra(parsed)
    from sae_moo.jobs.bench import Bench
    from sae_moo.jobs.executors import check_workers, words_of
    from sae_moo.jobs.memory import takings
    from sae_moo.jobs.search import check_resumable
    from sae_moo.materialization.forms import form

    check_workers(parsed)
    bench = Bench.open(parsed)
    bench.live_model()
    bench.check_searcher()
    check_resumable(parsed, bench)
    bench.tell_twins()
    merging = form(bench.device)
    facts: dict[str, Any] = {
        "study": parsed.study.name,
        "device": bench.device,
        "merging": merging.words,
        "evaluating": words_of(bench),
        "memory": [taking.words for taking in takings(bench)],
        "experts": list(bench.pool.names),
        "groups": list(bench.pool.groups),
        "parameters": sum(info.numel for info in bench.pool.tensors),
        "prunable": sum(info.numel for info in bench.pool.tensors if info.prunable),
        "submodels": {"pruned": list(bench.pool.pruned), "left alone": list(bench.pool.left_alone)},
        "calibration": bench.calibration,
        "tasks": {task.name: {s: task.instances(s) for s in ("search", "test")} for task in bench.tasks},
        "sources": {task.name: {s: task.source(s) for s in ("search", "test")} for task in bench.tasks},
    }
    if as_json:
        print_json(facts)
        return
    from sae_moo.evaluate.kinds import OWN_ITEMS
    from sae_moo.explore.words import SPACES, count, limit_words, objective_words

    print(f"{config}: fine")
    search, space = parsed.search, SPACES[parsed.space_kind]
    budget = count(search.evaluations, "evaluation")
    after = f", then {search.finish} repaired" if search.finish else ""
    print(f"  search      {parsed.study.name}: {budget} by {search.algorithm}{space}{after}")
    print(f"  objectives  {'; '.join(map(objective_words, parsed.objective_list()))}")
    for limit in limit_words(parsed.constraint_list()):
        print(f"  limit       {limit}")
    print(f"  models      {', '.join(facts['experts'])} on {bench.device}")
    print(f"  merging     {merging.words}")
    print(f"  evaluating  {facts['evaluating']}")
    for taken in facts["memory"]:
        print(f"  memory      {taken}")
    groups = len(bench.pool.groups)
    print(f"  parameters  {facts['parameters']:,}, {facts['prunable']:,} of them prunable, in {groups} groups")
    if bench.pool.left_alone:
        print(f"  left alone  {', '.join(bench.pool.left_alone)}: merged, neither pruned nor counted in the sparsity")
    if bench.calibration is not None:
        print(f"  norms       {bench.calibration}")
    for name, counts in facts["tasks"].items():
        print(f"  task        {name}: {counts['search']} search and {counts['test']} test instances")
        sources = facts["sources"][name]
        if sources["search"] != sources["test"]:
            print(f"              searched on {sources['search']}, tested on {sources['test']}")
        elif sources["search"] != OWN_ITEMS:
            print(f"              {sources['search']}")


def _check_extra(config: Config) -> None:
    """Raise InputError if an extra that workers need is not installed: told before torch is imported."""
    if config.executor.kind == "ray":
        from sae_moo.study.cluster import check_installed

        check_installed()
