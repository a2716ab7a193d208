"""What a study teaches, and which studies teach nothing."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from configurations import load

from sae_moo.errors import InputError
from sae_moo.jobs.bench import Bench
from sae_moo.jobs.lessons import lesson_of
from sae_moo.jobs.namesakes import asked_of, asked_otherwise
from sae_moo.objectives import Evaluation, Stopped
from sae_moo.recipe.operators import chained, named
from sae_moo.study.record import Ended

OPERATORS = named("linear")


@pytest.fixture
def asked(tmp_path, tiny_folders):
    """Open tasks that are asked in some way, from a folder with files of items."""
    items = [{"prompt": f"{i} is", "answer": " one", "choices": [" one", " two"], "label": i % 2} for i in range(12)]
    for name, some in {"facts": items, "same": items, "others": [{**each, "label": 0} for each in items]}.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, some)))
    experts = ", ".join(f"{name}: {tiny_folders[name]}" for name in ("math", "code"))
    models = f"models: {{base: {tiny_folders['base']}, experts: {{{experts}}}}}"

    def opened(**changes):
        facts = {"name": "facts", "data": "facts.jsonl", "kind": "multiple_choice", "search": 4, "test": 2} | changes
        math = {"name": "zoo_math", "search": changes.get("search", 4), "test": 2}
        return Bench.open(
            load(tmp_path, f"{models}\ntasks: {json.dumps([facts, math])}\nobjectives: [facts, zoo_math]\n")
        )

    return opened


def trial(number, **evaluation):
    recipe = chained(OPERATORS, ("math", "code"))
    return Ended(
        number=number,
        asked=recipe,
        asked_digest="",
        asked_after=number,
        operator="",
        generation=0,
        parents=(),
        recipe=recipe,
        digest="",
        evaluation=Evaluation(recipe, **evaluation),
        values={},
        stderr={},
        feasible=True,
        told=number,
    )


def run_of(bench, *trials, **changes):
    facts = {
        "name": "earlier",
        "tasks": tuple(task.name for task in bench.tasks),
        "config": bench.config,
        "identity": bench.identity(),
        "fingerprints": bench.pool.fingerprints,
        "anchors": {},
        "trials": lambda: trials,
    }
    return SimpleNamespace(**facts | changes)


TASKS = ("facts", "zoo_math")
SCORED = trial(0, scores={"facts": [1.0, 0.0], "zoo_math": [0.5]})


def learned(run, bench):
    return lesson_of(run, bench, TASKS, OPERATORS)


def test_trials_that_were_stopped_in_a_race_teach_nothing_and_are_counted(asked):
    bench, stopped = asked(), trial(1, reason="stopped", stopped=Stopped("", {"facts": 1}, {}, {}))
    lesson = learned(run_of(bench, SCORED, stopped), bench)
    assert (lesson.trials, lesson.pairs, lesson.stopped) == (1, 1, 1)
    assert "1 that were stopped in races teach nothing" in str(lesson)


def test_scores_of_chosen_instances_are_refused(asked):
    bench = asked()
    with pytest.raises(InputError, match=r"earlier: .* chosen instances \(evaluation.anchors\)"):
        learned(run_of(bench, SCORED, anchors={"facts": [0]}), bench)


def test_a_task_of_the_same_name_may_ask_another_number_of_its_items_and_no_other_ones(asked, tmp_path):
    bench = asked()
    run = run_of(bench, SCORED)
    for same in ({}, {"search": 5}, {"test": 3, "data": "same.jsonl"}):
        assert learned(run, asked(**same)).pairs == 1
    for changes, told in (
        (
            {"data": "others.jsonl"},
            "items of facts: it has those of facts.jsonl, which holds something else than others",
        ),
        ({"data": "others.jsonl", "search": 5}, "items of facts: it has those of facts.jsonl"),
        ({"kind": "likelihood"}, "tasks.facts.kind: it has 'multiple_choice', here it is 'likelihood'"),
    ):
        with pytest.raises(InputError, match=r"earlier: .* tasks of the same name are others") as refused:
            learned(run, asked(**changes))
        assert told in str(refused.value)
        assert "zoo_math" not in str(refused.value)
    (tmp_path / "others.jsonl").replace(tmp_path / "facts.jsonl")  # where the study's were
    for changes, told in (({}, "it has others"), ({"search": 5}, "does not hold what it held")):
        with pytest.raises(InputError, match=told):
            learned(run, asked(**changes))
    other_base = run_of(bench, SCORED, fingerprints={"base": "", "math": "", "code": ""})
    assert learned(other_base, asked(data="facts.jsonl")).pairs == 1, "its own bench is opened for its experts"
    (tmp_path / "facts.jsonl").unlink()
    with pytest.raises(InputError, match=r"cannot be told: .*facts.jsonl: No such file"):
        learned(other_base, asked(data="same.jsonl", search=5))


def test_what_is_kept_of_tasks_tells_them_from_others_and_not_how_many_items_they_ask(asked):
    kept = asked_of(asked(), TASKS)
    for same in ({"search": 5}, {"test": 3, "data": "same.jsonl"}):
        assert asked_of(asked(**same), TASKS) == kept
    for changes, key in (({"data": "others.jsonl"}, "data"), ({"kind": "likelihood"}, "kind")):
        here = asked_of(asked(**changes), TASKS)
        assert [told.partition(":")[0] for told in asked_otherwise(kept, here, "facts")] == [f"tasks.facts.{key}"]
        assert asked_otherwise(kept, here, "zoo_math") == []
