from __future__ import annotations

from pathlib import Path

import pytest
from configurations import faults, load

from sae_moo.config.document import Config, differences
from sae_moo.errors import InputError
from sae_moo.objectives import Sparsity, TaskMean
from sae_moo.searchers.algorithms import ALGORITHMS
from sae_moo.searchers.breeding import Operators

GOOD = """\
study: {name: good}
models:
  base: zoo:base
  experts: {math: zoo:math}
tasks:
  - {name: zoo_math, search: 10, test: 10}
  - {name: mine, data: mine.jsonl, kind: likelihood}
objectives: [{mean: [zoo_math, mine], name: accuracy}, sparsity]
constraints: {sparsity: {max: 0.9}, mine: {min: 0.2}}
"""


def test_a_good_one(tmp_path):
    config = load(tmp_path, GOOD)
    assert config.directory == tmp_path
    assert config.objective_list() == (TaskMean("accuracy", ("zoo_math", "mine")), Sparsity())
    assert [label for c in config.constraint_list() for label in c.labels] == ["sparsity max", "mine min"]
    assert (config.population, config.annealing.period) == (24, 8)
    assert Config.from_dict(config.model_dump(mode="json"), tmp_path) == config


ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "path", [*ROOT.glob("configs/*.yaml"), *ROOT.glob("studies/*/*.yaml")], ids=lambda path: "/".join(path.parts[-2:])
)
def test_the_configurations_we_ship_are_good(path):
    config = Config.load(path)
    assert config.compare is None or config.smoke().compare.seeds == 1


def test_null_settings_of_another_algorithm_say_nothing(tmp_path):
    config = load(tmp_path, GOOD + "search: {algorithm: pso, sae: null, operators: null, one_shot: null}\n")
    assert config == load(tmp_path, GOOD + "search: {algorithm: pso}\n")
    assert "search.sea: no such key" in faults(tmp_path, GOOD + "search: {algorithm: pso, sea: null}\n")[0]


def test_every_fault_at_once_with_line_key_and_nearest_name(tmp_path):
    text = """\
study: {name: "a/b", sed: 1}
models:
  base: zoo:base
  experts: {}
  dtype: flot32
tasks:
  - {name: zoo_mth, search: 0}
  - {name: mine, data: x.jsonl}
objectives: [{mean: [zoo_lgic], nme: accuracy}, sparsty]
constraints: {sparsity: {max: 1.5}}
annealing: {low: 0.7, high: 0.2, shedule: x}
search: {algorithm: nsga4, population: two}
serch: 3
"""
    found = faults(tmp_path, text)
    expected = [
        "c.yaml:1: study.name: expected letters, digits, '.', '_' and '-', beginning with a letter or digit, got 'a/b'",
        "c.yaml:1: study.sed: no such key (did you mean 'seed'?); expected one of name, seed, storage, extends, islands",
        "c.yaml:4: models.experts: expected at least one expert, got none",
        "c.yaml:5: models.dtype: expected 'float32', 'bfloat16' or 'float16', got 'flot32' (did you mean 'float32'?)",
        "c.yaml:7: tasks[0].search: expected greater than or equal to 1, got 0",
        "c.yaml:7: tasks[0].name: no built-in task 'zoo_mth' (did you mean 'zoo_math'?); there are zoo_math, "
        "zoo_lingua, zoo_logic",
        "c.yaml:8: tasks[1].kind: expected multiple_choice, exact_match, likelihood beside data",
        "c.yaml:9: objectives[0].nme: no such key (did you mean 'name'?); expected one of mean, name",
        "c.yaml:9: objectives[0].mean[0]: expected a task, got 'zoo_lgic' (did you mean 'zoo_mth'?)",
        "c.yaml:9: objectives[1]: expected a task, 'sparsity' or 'speed', got 'sparsty' (did you mean 'sparsity'?)",
        "c.yaml:10: constraints.sparsity.max: expected less than or equal to 1, got 1.5",
        "c.yaml:11: annealing.high: expected low <= high, got 0.7 > 0.2",
        "c.yaml:11: annealing.shedule: no such key (did you mean 'schedule'?); expected one of schedule, low, high, "
        "period, growth",
        f"c.yaml:12: search.algorithm: expected a search algorithm, one of {', '.join(ALGORITHMS)}; got 'nsga4' (did you "
        "mean 'nsga3'?)",
        "c.yaml:12: search.population: expected integer, got 'two'",
        "c.yaml:13: serch: no such key (did you mean 'search'?); expected one of study, models, tasks, objectives, "
        "constraints, speed, space, pruning, annealing, search, evaluation, executor, compare, predict",
    ]
    assert found == expected


RACES = "evaluation: {racing: {}}"


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (("models:", "study: {seed: 1}\nmodels:"), "c.yaml:2: study: expected every key once, it came before"),
        (("experts: {math", "experts: {base"), "models.experts: 'base' names the base model"),
        (("name: mine", "name: zoo_math"), "tasks[1].name: expected every task once, 'zoo_math' came before"),
        (("name: mine", "name: sparsity"), "tasks[1].name: 'sparsity' is an objective of its own"),
        (("name: mine", "name: speed"), "tasks[1].name: 'speed' is an objective of its own"),
        (("}, sparsity]", "}, speed]"), "objectives[1]: 'speed' is 1 of every candidate with pruning.scope: tensor"),
        (("sparsity: {max: 0.9}", "speed: {min: 2}"), "constraints.speed: 'speed' is 1 of every candidate"),
        (("sparsity: {max: 0.9}", "speed: {min: 0.9}"), "constraints.speed.min: expected 1, as fast as the base, or"),
        (
            ("constraints:", "speed: {mode: both}\nconstraints:"),
            "speed.mode: expected 'decode' or 'prompt', got 'both'",
        ),
        (("zoo_math, search", "zoo_math, kind: likelihood, search"), "tasks[0].kind: a built-in task has its own kind"),
        (("name: accuracy", "name: mine"), "objectives[0].name: expected a name of its own, 'mine' is taken"),
        (
            ("}, sparsity]", "}, sparsity, sparsity]"),
            "objectives: expected every objective once, 'sparsity' comes 2 times",
        ),
        (("{max: 0.9}", "{min: 0.95, max: 0.9}"), "constraints.sparsity: expected min <= max, got 0.95 > 0.9"),
        (
            ("mine: {min", "mien: {min"),
            "constraints.mien: expected a task, an objective, 'sparsity' or 'speed', got 'mien'",
        ),
        (("  base: zoo:base\n", ""), "models.base: expected this key, it is missing"),
        (("search: 10", "search: 10.5"), "tasks[0].search: expected integer, got 10.5"),
        (("mean: [zoo_math, mine]", "mean: [mine, mine]"), "mean[1]: expected every task once, 'mine' came before"),
        (("name: zoo_math,", "name: arc_easy, multiturn: true,"), "tasks[0].multiturn: is for chat_template: true"),
        (
            ("objectives: [{mean: [zoo_math, mine], name: accuracy}, sparsity]", f"objectives: [sparsity]\n{RACES}"),
            "evaluation.racing: expected an objective that is scored on instances; sparsity is not",
        ),
        (
            ("constraints:", "evaluation: {anchors: 0.5, generation: vllm}\nconstraints:"),
            "evaluation.anchors: not with generation: vllm",
        ),
    ],
)
def test_single_faults(tmp_path, change, fault):
    assert change[0] in GOOD
    found = faults(tmp_path, GOOD.replace(*change))
    assert any(fault in each for each in found), found


@pytest.mark.parametrize("text", ["", "- 1\n", "hello\n"])
def test_what_is_no_mapping(tmp_path, text):
    with pytest.raises(InputError, match="expected a mapping with the keys study, models"):
        load(tmp_path, text)


def test_what_is_no_yaml_or_no_file(tmp_path):
    with pytest.raises(InputError, match="not YAML"):
        load(tmp_path, "a: [1")
    with pytest.raises(InputError, match=r"cannot read the configuration .*gone.yaml: No such file"):
        Config.load(tmp_path / "gone.yaml")


def test_the_first_population_has_room_for_every_expert(tmp_path):
    text = GOOD.replace("{math: zoo:math}", "{" + ", ".join(f"e{i}: zoo:math" for i in range(5)) + "}")
    (found,) = faults(tmp_path, text, "search.population=5")
    assert "search.population: expected at least 6, room for the base and every expert" in found
    load(tmp_path, text, "search.population=6")


def test_a_first_population_that_does_not_begin_at_the_base_has_room_for_the_experts(tmp_path):
    text = GOOD.replace("{math: zoo:math}", "{" + ", ".join(f"e{i}: zoo:math" for i in range(5)) + "}")
    evogm = ("search.algorithm=evogm", "space.kind=coefficients")
    (found,) = faults(tmp_path, text, *evogm, "search.population=4")
    assert "search.population: expected at least 5, room for every expert in the first population; got 4" in found
    load(tmp_path, text, *evogm, "search.population=5")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("search: &a [*a]\n", "an alias that refers to itself"),
        ("study: " + "[" * 5000, "nested too deeply"),
        ("study: !!int x\n", "a value that cannot be read"),
        ("".join(f"a{i}: &a{i} [{f'*a{i - 1}, ' * 9 if i else '1'}]\n" for i in range(9)), "at most 20000 values"),
    ],
)
def test_hostile_yaml_is_one_message(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        load(tmp_path, text)


@pytest.mark.parametrize("storage", ["foo", "sqlite://", "sqlite:///:memory:"])
def test_storages_that_would_lose_everything(tmp_path, storage):
    (found,) = faults(tmp_path, GOOD, f"study.storage='{storage}'")
    assert "study.storage: expected an Optuna URL that outlives the process" in found


def test_an_empty_section_means_its_defaults(tmp_path):
    assert load(tmp_path, GOOD + "search:\n").search == load(tmp_path, GOOD).search


def test_odd_keys_and_numbers(tmp_path):
    assert "constraints" in faults(tmp_path, GOOD.replace("mine: {min", "1: {min"))[0]
    (found,) = faults(tmp_path, GOOD + "annealing: {low: 1e-3}\n")
    assert "expected a number; YAML reads 1e-3 as text, write 0.001" in found
    assert "less than or equal to 100000" in faults(tmp_path, GOOD, "search.population=99999999999999999999")[0]
    assert "override a.b=1: a: no such key" in faults(tmp_path, GOOD, "a.b=1")[0]
    assert "models.cache_gib" in faults(tmp_path, GOOD, "models.cache_gib=.inf")[0]


def test_overrides(tmp_path):
    config = load(
        tmp_path, GOOD, "search.population=32", "tasks.0.search=20", "annealing.low=0.1", "space={kind: coefficients}"
    )
    assert (config.search.population, config.tasks[0].search, config.annealing.low) == (32, 20, 0.1)
    assert config.space.kind == "coefficients"


def test_faults_of_overrides_name_them(tmp_path):
    found = faults(tmp_path, GOOD, "search.populaton=3", "x", "tasks.9.search=1", "search.evaluations=many", "a=[")
    assert sorted(found) == [
        "override a=[: the value is not YAML: while parsing a flow node",
        "override search.evaluations=many: search.evaluations: expected integer, got 'many'",
        "override search.populaton=3: search.populaton: no such key (did you mean 'population'?); expected one of "
        "algorithm, population, evaluations, tokens, finish, pace, weights, operators, ablation, generator, prescreening",
        "override tasks.9.search=1: tasks[9]: tasks has 2 entries, number 0 to 1",
        "override x: expected key.path=value, e.g. search.population=32",
    ]


def test_identity_leaves_out_what_changes_no_result(tmp_path):
    first = load(tmp_path, GOOD).identity()
    same = load(
        tmp_path,
        GOOD,
        "search.evaluations=7",
        "models.cache_gib=0",
        "models.base=elsewhere",
        "study.storage=sqlite:///x.db",
    )
    assert differences(first, same.identity()) == []
    (found,) = differences(first, load(tmp_path, GOOD, "pruning.scope=global").identity())
    assert str(found) == "pruning.scope: the study has 'tensor', now it is 'global'"


@pytest.mark.parametrize(
    ("written", "scope"),
    [("row", "row"), ("neurons", "neurons"), ("'2:4'", "2:4"), ("2:4", "2:4"), ("4:8", "4:8"), ("1:4", "1:4")],
)
def test_pruning_scopes_with_or_without_quotes(tmp_path, written, scope):
    assert load(tmp_path, GOOD + f"pruning: {{scope: {written}}}\n").pruning.scope == scope
    assert load(tmp_path, GOOD, f"pruning.scope={written}").pruning.scope == scope


@pytest.mark.parametrize(
    ("section", "fault"),
    [
        (
            "{scope: neuron}",
            "pruning.scope: expected tensor, group, global, row, neurons, heads, moe-experts, blocks, or N:M with N < M such as 2:4, got "
            "'neuron' (did you mean 'neurons'?)",
        ),
        (
            "{scope: 4:2}",
            "pruning.scope: expected tensor, group, global, row, neurons, heads, moe-experts, blocks, or N:M with N < M",
        ),
        (
            "{criterion: wnda}",
            "expected a pruning criterion, one of magnitude, wanda; got 'wnda' (did you mean 'wanda'?)",
        ),
        (
            "{criterion: wanda, calibration: {model: maths}}",
            "pruning.calibration.model: expected one of base, math, got 'maths' (did you mean 'math'?)",
        ),
        ("{rescale: true, scope: heads}", "pruning.rescale: scope: heads is not rescaled; leave it out"),
        ("{rescale: 1.5}", "pruning.rescale: expected"),
        ("{criterion: wanda, calibration: {tokens: 1}}", "calibration.tokens: expected greater than or equal to 2"),
        ("{criterion: wanda, calibration: {paragraphs: a.txt}}", "no such key; expected one of data, tokens, model"),
    ],
)
def test_faults_of_pruning(tmp_path, section, fault):
    found = faults(tmp_path, GOOD + f"pruning: {section}\n")
    assert len(found) == 1
    assert fault in found[0]


SEVERAL = "[blocks, neurons, row]"


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        (["pruning.scope=[blocks, blok]"], "pruning.scope[1]: expected tensor, group, global, row, neurons, heads, moe-experts, blocks, or N:M with N < M such as 2:4, got 'blok'"),
        (["pruning.scope=[blocks, 3]"], "pruning.scope[1]: expected tensor, "),
        (["pruning.scope={blocks: 1}"], "pruning.scope: expected tensor, "),
        (["pruning.scope=[]"], "pruning.scope: expected at least one entry, got an empty list"),
        (["pruning.scope=[neurons, row, neurons]"], "pruning.scope[2]: expected every scope once, 'neurons' came before"),
        (["pruning.scope=[row, row]"], "pruning.scope[1]: expected every scope once, 'row' came before"),
        (["pruning.scope=[row, blocks, 2:4]"], "pruning.scope[2]: expected one scope of scattered zeros at most, 'row' came before; together go neurons, heads, moe-experts, blocks, and one of the others"),
        (["pruning.scope=[blocks, heads]", "pruning.rescale=true"], "pruning.rescale: scope: blocks, heads is not rescaled; leave it out"),
        (["pruning.protect={first: 1}"], "pruning.protect: is for scope: blocks; leave it out"),
        (["pruning.scope=[neurons, row]", "pruning.protect={}"], "pruning.protect: is for scope: blocks; leave it out"),
        (["pruning.scope=blocks", "pruning.protect.first=-1"], "pruning.protect.first: expected greater than or equal to 0, got -1"),
        (["pruning.scope=blocks", "pruning.protect.frist=1"], "pruning.protect.frist: no such key (did you mean 'first'?)"),
        ([f"pruning.scope={SEVERAL}", "search.algorithm=sae-local"], "pruning.scope: expected one scope; several are for nsga2, nsga3, pso, "),
        ([f"pruning.scope={SEVERAL}", "search.algorithm=ties"], "pruning.scope: expected one scope; several are for nsga2, "),
        (["pruning.scope=blocks", "pruning.protect={last: 1}", "search.algorithm=ties"], "pruning.protect: is for nsga2, nsga3, pso, cmaes, evogm, random, optuna:TPESampler"),
        ([f"pruning.scope={SEVERAL}", "search.algorithm=pso", "space.sparsity=0.3"], "space.sparsity: is for one scope; of blocks, neurons, row each has its own"),
        (["search.operators.edit=0.5"], "search.operators.edit: is for pruning.scope: blocks"),
        (["search.operators.narrow=0.7", "pruning.scope=blocks"], "search.operators.narrow: is for a list of scopes with neurons, heads, moe-experts"),
        (["search.operators.narrow=0.7", "pruning.scope=neurons"], "search.operators.narrow: is for a list of scopes with neurons, heads, moe-experts"),
        (["search.operators.restructure=0.7"], "search.operators.restructure: is for pruning.scope: blocks, or a list"),
        (["search.operators.tensors=true"], "search.operators.tensors: is for switch above 0"),
        (["search.operators={tensors: true, switch: 0.2}", "pruning.scope=group"], "search.operators.tensors: is for scope: tensor or row, and space.granularity: block"),
        (["search.operators.switch=0.2", "pruning.scope=global"], "search.operators.switch: scope: global has one level for all blocks; there is none to switch"),
        (["search.operators.switch=0.2", "space.granularity=model"], "search.operators.switch: is for space.granularity: block"),
        (["search.ablation.ladder=3", "pruning.scope=[blocks, heads]"], "search.ablation.ladder: is for a scope of scattered zeros"),
        (["search.operators.drop=0.2", "space.granularity=model"], "search.operators.drop: is for space.granularity: block"),
    ],
)  # fmt: skip
def test_faults_of_scopes_that_are_searched_together(tmp_path, changes, fault):
    found = faults(tmp_path, GOOD, *changes)
    assert len(found) == 1, found
    assert fault in found[0]


def test_several_scopes_are_taken_in_the_order_of_pruning(tmp_path):
    config = load(tmp_path, GOOD + "pruning: {scope: [2:4, heads, neurons, blocks]}\n")
    assert config.pruning.scopes == ("blocks", "neurons", "heads", "2:4")
    assert config.structured == ("blocks", "neurons", "heads")
    assert config.pruning.scattered == "2:4"
    assert config.rescale, "what is scattered keeps the norms"
    assert not load(tmp_path, GOOD, "pruning.scope=[blocks, heads]").rescale
    assert load(tmp_path, GOOD, "pruning.scope=blocks").structured == ("blocks",)
    assert load(tmp_path, GOOD, "pruning.scope=blocks", "search.algorithm=ties").structured == ()
    assert load(tmp_path, GOOD, "pruning.scope=neurons").structured == (), "as many in every block, as ever"
    assert load(tmp_path, GOOD, "pruning.scope=[neurons]").structured == ("neurons",)
    load(tmp_path, GOOD, "pruning.scope=neurons", "search.ablation.ladder=3")
    load(tmp_path, GOOD, "pruning.scope=[neurons, global]", "search.operators.switch=0.2")
    load(tmp_path, GOOD, f"pruning.scope={SEVERAL}", "search.algorithm=pso", "space.sparsity=0")


def test_what_studies_before_do_not_know_is_no_part_of_them_while_it_is_the_default(tmp_path):
    plain = load(tmp_path, GOOD).identity()
    assert plain["pruning.scope"] == "tensor"
    assert not any("protect" in key for key in plain)
    told = load(tmp_path, GOOD, "search.operators.keep=0.5").identity()
    assert "search.operators.noise" in told
    assert not {f"search.operators.{key}" for key in Operators.later} & told.keys()
    (found,) = differences(told, load(tmp_path, GOOD, "search.operators={keep: 0.5, switch: 0.3}").identity())
    assert str(found) == "search.operators.switch: the study has None, now it is 0.3"
    assert differences(plain, load(tmp_path, GOOD, "search.generator={share: 0, steps: 200}").identity()) == []
    assert differences(plain, load(tmp_path, GOOD, "search.prescreening={factor: 4, after: 2}").identity()) == []
    as_they_come = load(tmp_path, GOOD, "search.prescreening.factor=1").identity()
    assert not any("prescreening" in key for key in as_they_come), "as studies have it that know of no such thing"
    (found,) = differences(as_they_come, plain)
    assert str(found) == "search.prescreening.factor: the study has None, now it is 4"
    (found,) = differences(as_they_come, load(tmp_path, GOOD, "search.generator.share=0.5").identity())
    assert str(found) == "search.generator.share: the study has None, now it is 0.5"
    blocks = load(tmp_path, GOOD, "pruning.scope=[row, blocks]").identity()
    assert blocks["pruning.scope"] == "blocks, row"
    assert blocks == load(tmp_path, GOOD, "pruning.scope=[blocks, row]").identity()
    kept = load(tmp_path, GOOD, "pruning.scope=[blocks, row]", "pruning.protect={first: 1}").identity()
    assert [str(each) for each in differences(blocks, kept)] == [
        "pruning.protect.first: the study has None, now it is 1",
        "pruning.protect.last: the study has None, now it is 0",
    ]


def test_children_are_pre_screened_where_that_was_found_to_pay(tmp_path):
    def factor(*changes):
        return load(tmp_path, GOOD, *changes).search.settings["prescreening"].factor

    assert factor() == factor("search.pace=generational") == factor("space.kind=coefficients") == 4
    assert factor("search.prescreening.explore=0.5") == factor("search.prescreening=null") == 4
    assert factor("search.prescreening={}") == factor("search.prescreening.factor=null") == 4
    assert factor("search.generator={}") == factor("search.generator.share=0") == 4
    assert factor("search.prescreening.factor=2", "search.pace=steady-state", "search.algorithm=nsga3") == 2
    others = ["search.algorithm=nsga3"], ["search.pace=steady-state"], ["search.generator.share=0.5"]
    for changes in (*others, ["search.prescreening.factor=1"]):
        assert factor(*changes) is None


def test_methods_of_others_are_as_published_and_our_own_as_measured(tmp_path):
    def ratios(*changes):
        config = load(tmp_path, GOOD, *changes)
        return config.schedule.schedule, config.schedule.high

    assert ratios() == ratios("search.algorithm=nsga3") == ("constant", 0.8)
    assert ratios("search.algorithm=sae-local") == ("cosine", 0.6)
    assert ratios("annealing.schedule=sine", "annealing.high=0.5") == ("sine", 0.5)
    load(tmp_path, GOOD, "annealing.low=0.7")
    found = faults(tmp_path, GOOD, "annealing.low=0.7", "search.algorithm=sae-local")
    assert len(found) == 1
    assert "annealing.low: expected low <= high, got 0.7 > 0.6" in found[0]

    def asked(*changes):
        return load(tmp_path, GOOD, *changes).rescale

    assert asked()
    assert asked("search.algorithm=nsga3", "space.kind=coefficients", "pruning.scope=2:4")
    assert not asked("pruning.rescale=false")
    assert not asked("pruning.scope=neurons")
    assert not any(asked(f"search.algorithm={name}") for name in ("sae-local", "pso", "task-arithmetic", "cmaes"))
    assert asked("search.algorithm=sae-local", "pruning.rescale=true")
    stored = load(tmp_path, GOOD).identity()
    assert differences(stored, load(tmp_path, GOOD, "pruning.rescale=true").identity()) == []
    (found,) = differences(stored, load(tmp_path, GOOD, "pruning.rescale=false").identity())
    assert str(found) == "pruning.rescale: the study has True, now it is False"


def test_what_calibration_changes_of_a_study(tmp_path):
    plain = load(tmp_path, GOOD).identity()
    assert not any("calibration" in key for key in plain)
    wanda = load(tmp_path, GOOD + "pruning: {criterion: wanda}\n").identity()
    assert {key: value for key, value in wanda.items() if "calibration" in key} == {
        "pruning.calibration.tokens": 4096,
        "pruning.calibration.model": "base",
    }
    written = "pruning: {criterion: wanda, calibration: {data: texts.txt}}\n"
    assert load(tmp_path, GOOD + written).identity() == wanda, "the place of texts is no part of it; their norms are"


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        (["search.algorithm=pso", "space.kind=lineage"], "space.kind: algorithm: pso searches coefficients; leave it out"),
        (["search.algorithm=ties", "space.kind=lineage"], "space.kind: algorithm: ties has no space"),
        (["search.algorithm=pso", "search.pace=generational"], "search.pace: is for nsga2, nsga3; algorithm: pso does not read it"),
        (["search.sae.omega=1"], "search.sae: is for sae-global, sae-local, m2n2; algorithm: nsga2 does not read it"),
        (["search.operators.stretch=0", "space.kind=coefficients"], "search.operators: is for space.kind: lineage"),
        (["space.sparsity=0.3"], "space.sparsity: is for coefficients; lineages draw the sparsity of every child"),
        (["annealing.schedule=adaptive", "space.kind=coefficients"], "annealing.schedule: expected a fixed one; algorithm: nsga2 has no cycles that could adapt"),
        (["annealing.schedule=adaptive", "search.algorithm=m2n2"], "annealing.schedule: expected a fixed one; algorithm: m2n2 has no cycles that could adapt"),
        (["evaluation.racing={}", "search.algorithm=cmaes"], "evaluation.racing: is for nsga2, nsga3, sae-global, sae-local, m2n2, random; algorithm: cmaes needs the scores of every candidate"),
        (["search.weights.sparsity=1", "search.algorithm=sae-local"], "search.weights: is for what works on one number (pso, "),
        (["search.weights.sparsty=1", "search.algorithm=pso"], "search.weights.sparsty: expected an objective, got 'sparsty' (did you mean 'sparsity'?)"),
        (["search.weights.sparsity=0", "search.algorithm=pso"], "search.weights: expected at least one weight above 0"),
        (["objectives=[sparsity]", "search.algorithm=pso"], "objectives: algorithm: pso needs one that is scored on tasks, or search.weights"),
        (["models.experts={math: zoo:math}", "search.algorithm=slerp"], "search.algorithm: slerp merges pairs of experts; there is one expert"),
        (["search.ablation.split=0", "space.kind=coefficients"], "search.ablation: is for space.kind: lineage"),
        (["search.operators.split=0"], "search.operators.split: no such key here; it is search.ablation.split"),
        (["search.operators.zero_awre=true"], "search.operators.zero_awre: no such key; expected one of remerge, keep"),
        (["search.pso={own: 0, swarm: 0}", "search.algorithm=pso"], "search.pso.swarm: expected own or swarm above 0, got 0 for both"),
        (["search.sae.metric=l1", "search.algorithm=sae-local"], "search.sae.metric: no such key; expected one of alpha, matchmaker, omega, beta, tau, measure"),
        (["search.sae={omega: 0, beta: 0}", "search.algorithm=sae-local"], "search.sae.beta: expected omega or beta above 0, got 0 for both"),
        (["search.sae.beta=0.2", "search.algorithm=m2n2"], "search.sae.beta: no such key; expected one of alpha, matchmaker"),
        (["space.sparsity=0.4", "search.algorithm=pso", "pruning.scope='2:4'"], "space.sparsity: expected 0 or 0.5, what scope: 2:4 prunes to, got 0.4"),
        (["search.weights.sparsity=1", "search.algorithm=random"], "search.weights: is for what works on one number (pso, cmaes, "),
        (["space.sparsity=0.92", "search.algorithm=pso"], "space.sparsity: expected at most 0.9, got 0.92"),
        (["search.pso.flavour=pso-merging", "search.algorithm=pso", "search.population=4", "models.experts.a=zoo:lingua"], "search.population: expected at least 5: base, experts and sparsified experts; got 4"),
        (["search.weights.sparsity=1", "search.algorithm=evogm", "search.evogm.selection=front"], "search.weights: is for what works on one number (pso, cmaes, evogm, "),
        (["objectives=[sparsity]", "search.algorithm=evogm"], "objectives: algorithm: evogm needs one that is scored on tasks, or search.weights"),
        (["search.evogm={low: 0.5, high: 0.5}", "search.algorithm=evogm"], "search.evogm.high: expected low < high, got 0.5 >= 0.5"),
        (["search.evogm={mode: single, pull: 0}", "search.algorithm=evogm"], "search.evogm.pull: expected above 0, as nothing else is learned, got 0"),
        (["search.generator.adaptive=true"], "search.generator.adaptive: expected a share above 0 and below 1 to begin with, got 0"),
        (["search.generator={share: 0.5, adaptive: true}", "pruning.scope=neurons"], "search.generator.share: over lineages it is for one scope of scattered zeros, not for neurons"),
        (["search.generator.share=0.2", "search.prescreening.factor=4"], "search.prescreening.factor: expected 1 where search.generator makes children (share above 0), got 4; use one of them"),
        (["models.experts={math: zoo:math}", "search.prescreening={factor: 4, features: true}"], "search.prescreening.features: features are of pairs of experts; there is one expert"),
        (["search.generator.share=0.2", "pruning.scope=[row, blocks]"], "search.generator.share: over lineages it is for one scope of scattered zeros, not for blocks, row"),
        (["search.evogm.widths=[]", "search.algorithm=evogm"], "search.evogm.widths: expected at least one entry, got an empty list"),
        (["predict.operators=[{method: ties, weights: [1]}]"], "predict.operators[0].weights: expected at least 2 entries, got a list of 1"),
        (["predict.operators=[{method: ties, weights: [.nan, 1]}]"], "predict.operators[0].weights: expected finite numbers, got nan"),
        (["predict.operators=[{method: ties, name: ''}]"], "predict.operators[0].name: expected at least one character, got ''"),
        (["search.one_shot.scales=[]", "search.algorithm=ties"], "search.one_shot.scales: expected at least one entry, got an empty list"),
        (["search.one_shot.levels=[1.0]", "search.algorithm=ties"], "search.one_shot.levels[0]: expected less than 1, got 1.0"),
    ],
)  # fmt: skip
def test_what_an_algorithm_does_not_read_is_refused(tmp_path, changes, fault):
    found = faults(tmp_path, GOOD, *changes)
    assert any(fault in line for line in found), found


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_can_be_asked_for_and_what_is_stored_is_read_again(tmp_path, algorithm, monkeypatch):
    monkeypatch.setattr("sae_moo.searchers.algorithms.find_spec", lambda name: True)  # as if all extras were installed
    config = load(tmp_path, GOOD, f"search.algorithm={algorithm}", "models.experts.lingua=zoo:lingua")
    assert Config.from_dict(config.model_dump(mode="json"), tmp_path) == config


def test_a_population_is_as_large_as_the_algorithm_has_it_unless_it_is_said(tmp_path):
    experts = {f"expert{i}": "zoo:math" for i in range(10)}
    text = GOOD.replace("{math: zoo:math}", str(experts).replace("'", ""))

    def population(*changes):
        config = load(tmp_path, text, *changes)
        assert config.identity()["search.population"] == config.population
        return config.population

    assert population() == 24, "as in studies that were begun when it was always said"
    assert population("search.algorithm=evogm") == 20
    assert population("search.algorithm=evogm", "search.population=14") == 14
    assert load(tmp_path, GOOD, "search.algorithm=evogm").population == 4, "no search has less"
    (found,) = faults(
        tmp_path,
        text.replace("expert9", "expert9: zoo:math, " + ", ".join(f"e{i}: zoo:math" for i in range(14)) + ", e"),
    )
    assert "search.population: expected at least 26, room for the base and every expert" in found


def test_weights_of_a_comparison_are_for_methods_that_work_on_one_number(tmp_path):
    weights = "search: {weights: {accuracy: 1, sparsity: 0.3}, algorithm: pso}\n"
    methods = "compare: {methods: [evogm, {name: front, search: {algorithm: evogm, evogm: {selection: front}}}]}\n"
    config = load(tmp_path, GOOD + weights + methods)
    one, front = (config.cell(method, 0).search for method in config.compare.named)
    assert one.weights == {"accuracy": 1, "sparsity": 0.3}
    assert front.weights is None


def test_optunas_cma_es_says_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.setattr("sae_moo.searchers.algorithms.find_spec", lambda name: None)
    (fault,) = faults(tmp_path, GOOD, "search.algorithm=optuna:CmaEsSampler")
    assert fault.endswith("Optuna's CMA-ES needs a package that is not installed: pip install cmaes")


def test_keys_that_are_called_like_what_pydantic_adds(tmp_path):
    text = GOOD.replace("{math: zoo:math}", '{str: {a: 1}, "[key]": 3, MeanSection: zoo:math}')
    text = text.replace("mine: {min: 0.2}", "str: {min: 2.0}, MethodSection: {low: 1}")
    found = faults(tmp_path, text)
    assert [line for line in found if "a task, an objective" not in line] == [
        "c.yaml:4: models.experts.str: expected string, got a mapping",
        "c.yaml:4: models.experts[key]: expected string, got 3",
        "c.yaml:9: constraints.MethodSection.low: no such key; expected one of min, max",
        "c.yaml:9: constraints.str.min: expected less than or equal to 1, got 2.0",
    ]
    (found,) = faults(tmp_path, GOOD.replace("{math: zoo:math}", "{1: zoo:math}"))
    assert found == "c.yaml:4: models.experts[1]: expected string, got 1"
    found = faults(tmp_path, GOOD.replace("{math: zoo:math}", "{null: zoo:math, 1.5: zoo:math}"))
    assert not any("[key]" in line for line in found)


@pytest.mark.parametrize(
    ("right", "wrong", "fault"),
    [
        ("tasks:", "task:", "task: no such key (did you mean 'tasks'?)"),
        ("  base:", "  bse:", "models.bse: no such key (did you mean 'base'?)"),
        ("name: mine,", "nam: mine,", "tasks[1].nam: no such key (did you mean 'name'?)"),
    ],
)
def test_a_misspelt_key_is_told_once(tmp_path, right, wrong, fault):
    text = GOOD.replace(right, wrong, 1)
    (found,) = faults(tmp_path, text)
    assert fault in found


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("{kind: coefficients, sparsity: 0.3}", [("coefficients", 0.3), ("coefficients", 0.3), (None, None)]),
        ("{kind: lineage}", [("lineage", None), (None, None), ("lineage", None)]),
        ("{sparsity: 0.3}", [(None, None), (None, 0.3), (None, None)]),
    ],
)
def test_a_space_of_a_comparison_holds_for_the_methods_that_search_it(tmp_path, base, expected):
    methods = "[{name: ours, search: {algorithm: nsga2}}, pso, sae-local]"
    whole = f"compare: {{reference: ours, methods: {methods}}}\n"
    changes = [f"space={base}"] if "kind" in base else [f"space={base}", "search.algorithm=pso"]
    config = load(tmp_path, GOOD + whole, *changes)
    spaces = [config.cell(method, 0).space for method in config.compare.named]
    assert [(space.kind, space.sparsity) for space in spaces] == expected


@pytest.mark.parametrize(
    ("algorithm", "kind", "space", "anneals"),
    [
        ("nsga2", None, "lineage", True),
        ("nsga2", "coefficients", "coefficients", False),
        ("sae-local", None, "lineage", True),
        ("m2n2", None, "lineage", False),
        ("pso", None, "coefficients", False),
        ("ties", None, None, False),
    ],
)
def test_ratios_are_annealed_where_children_of_a_lineage_are_pruned(tmp_path, algorithm, kind, space, anneals):
    changes = [] if kind is None else [f"space.kind={kind}"]
    config = load(tmp_path, GOOD, f"search.algorithm={algorithm}", *changes)
    assert (config.space_kind, config.anneals) == (space, anneals)
    changes += [f"search.algorithm={algorithm}", "annealing.schedule=adaptive"]
    if anneals:
        load(tmp_path, GOOD, *changes)
    else:
        assert "has no cycles that could adapt" in faults(tmp_path, GOOD, *changes)[0]


def test_calibration_texts_of_repairs_change_no_identity_and_a_method_may_leave_them_unread(tmp_path):
    plain = load(tmp_path, GOOD)
    texts = "pruning: {calibration: {data: texts.txt, tokens: 64}}\n"
    for finish in (0, 3):
        config = load(tmp_path, GOOD + texts, f"search.finish={finish}")
        assert config.search.trials == config.search.evaluations + finish
        assert config.pruning.calibration.tokens == 64
        assert config.identity() == plain.identity()
    methods = "compare: {methods: [{name: weighed, pruning: {criterion: wanda}}, nsga2]}\n"
    compared = load(tmp_path, GOOD + texts + methods)
    weighed, other = (compared.cell(method, 0).identity() for method in compared.compare.named)
    assert weighed["pruning.calibration.tokens"] == 64
    assert not any("calibration" in key for key in other)


@pytest.mark.parametrize("address", ["nonsense", "head:0", "head:99999", "a b:6379", ":6379", "AUTO"])
def test_what_is_no_address_of_a_cluster_is_told_with_what_is(tmp_path, address):
    text = GOOD + f"executor: {{kind: ray, workers: 2, address: '{address}'}}\n"
    assert faults(tmp_path, text) == [
        f"c.yaml:10: executor.address: expected 'auto', or HOST:PORT with a port from 1 to 65535, got {address!r}"
    ]


@pytest.mark.parametrize("address", ["auto", "head:6379", "10.0.0.1:65535", "[::1]:1"])
def test_addresses_of_clusters_are_taken_as_they_are(tmp_path, address):
    assert (
        load(tmp_path, GOOD + f"executor: {{kind: ray, workers: 2, address: '{address}'}}\n").executor.address
        == address
    )
