from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from sae_moo.errors import InputError
from sae_moo.recipe import (
    Cast,
    Expert,
    Merge,
    Prune,
    Recipe,
    Repair,
    decode,
    digest,
    dumps,
    encode,
    experts_of,
    pattern,
    pattern_sparsity,
    walk,
)

FINGERPRINTS = {"base": "00", "math": "11", "code": "22"}


def example() -> Recipe:
    merged = Merge("task_arithmetic", (Expert("math"), Expert("code")), ((0.6, 0.4), (0.1, 1 / 3)), {"scale": 0.8})
    return Cast(Prune(merged, (0.3, 0.5), scope="group", counts=(3, 4)), "bfloat16")


def lineage(depth: int) -> Recipe:
    recipe: Recipe = Cast(Expert("math"), "float32")
    for i in range(depth):
        recipe = Cast(Prune(Merge("linear", (recipe, Expert("code")), (0.5, 0.25 + i / 4096)), 0.1), "float32")
    return recipe


@pytest.mark.parametrize("damping", [0.01, 0.5])
def test_repairs_travel_as_json(damping):
    recipe = Cast(Repair(Prune(Expert("a"), 0.5), "ab" * 32, damping), "float32")
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert recipe.input.damping == damping
    others = {Cast(Repair(recipe.input.input, "cd" * 32, damping), "float32"), Cast(recipe.input.input, "float32")}
    assert len({recipe, *others}) == 3
    assert list(walk(recipe))[1:] == [recipe.input.input, recipe.input, recipe]
    assert repr(recipe) == "Cast(Repair(Prune(Expert('a'), sparsity=0.5)), 'float32')"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input": Expert("a")}, r"Repair: expected a pruning as input, got Expert\('a'\)"),
        ({"calibration": None}, "Repair: expected 64 hexadecimal digits as calibration, got None"),
        ({"damping": 0.0}, r"Repair: expected a damping in \(0, 1\], got 0.0"),
        ({"damping": 1.5}, r"Repair: expected a damping in \(0, 1\], got 1.5"),
    ],
)
def test_repairs_that_cannot_be(arguments, message):
    with pytest.raises(InputError, match=message):
        Repair(**({"input": Prune(Expert("a"), 0.5), "calibration": "ab" * 32} | arguments))


def test_json_round_trip_is_the_same_recipe():
    recipe = example()
    again = Recipe.from_json(recipe.to_json())
    assert again == recipe
    assert hash(again) == hash(recipe)
    assert again.to_json() == recipe.to_json()
    assert digest(again, FINGERPRINTS) == digest(recipe, FINGERPRINTS)


def test_canonical_json_is_pinned():
    recipe = Prune(Merge("linear", (Expert("a"), Expert("a")), (1, 0.5)), 0.25)
    assert recipe.to_json() == (
        '{"nodes":[{"name":"a","node":"expert"},{"inputs":[0,0],"method":"linear","node":"merge","weights":[1.0,0.5]},'
        '{"criterion":"magnitude","inputs":[1],"node":"prune","scope":"tensor","sparsity":0.25}],"schema":1}'
    )


def test_digests_of_earlier_recipes_do_not_change():
    """What a pruning holds since (calibration, units) is only written where it is set."""
    assert example().key == "b8163f2d9c8c7edc3dec0ad2a30a6c2e51d8a6adec3ef4e1378cbd02cbbd497b"
    assert digest(example(), FINGERPRINTS) == "4d7b876fde28d7fa7536cce998e0a59fd17dd97712e199eb0b68b99b28ee2878"


def test_rescaling_round_trips_and_is_another_recipe():
    recipe = Prune(Expert("a"), 0.5, rescale=True)
    assert json.loads(recipe.to_json())["nodes"][1]["rescale"] is True
    assert Recipe.from_json(recipe.to_json()) == recipe != Prune(Expert("a"), 0.5)
    assert Prune(Expert("a"), 0.5, rescale=False) == Prune(Expert("a"), 0.5)
    assert "rescale=True" in repr(recipe)


def test_calibration_and_units_round_trip():
    norms = "ab" * 32
    recipe = Prune(Prune(Expert("a"), 0.5, "wanda", "2:4", calibration=norms), 0.25, scope="heads")
    resolved = Prune(recipe.input, 0.25, scope="heads", units=((), (0, 3, 64), (9,)))
    assert len({recipe, resolved, recipe.input, Prune(Expert("a"), 0.5, "wanda", "2:4")}) == 4
    for each in (recipe, resolved):
        again = Recipe.from_json(each.to_json())
        assert again == each
        assert (again.units, again.input.calibration) == (each.units, norms)
    document = json.loads(resolved.to_json())
    assert document["nodes"][1]["calibration"] == norms
    assert document["nodes"][2]["units"] == ["0", "10000000000000009", "200"]
    long = Prune(Expert("a"), 0.5, scope="neurons", units=(tuple(range(1, 20_000, 2)),))
    assert Recipe.from_json(long.to_json()).units == long.units


@pytest.mark.parametrize(("scope", "expected"), [("2:4", (2, 4)), ("4:8", (4, 8)), ("1:2", (1, 2)), ("row", None)])
def test_patterns(scope, expected):
    assert pattern(scope) == expected
    assert pattern_sparsity(scope) == (None if expected is None else 1 - expected[0] / expected[1])


def test_a_pattern_has_its_own_sparsity():
    assert Prune(Expert("a"), 2 / 3, scope="1:3").sparsity == pattern_sparsity("1:3") == 0.666666667
    assert Prune(Expert("a"), (0, 0.5, 0.5, 0), scope="2:4").sparsity == (0, 0.5, 0.5, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"scope": "rows"},
            "among tensor, group, global, row, neurons, heads, moe-experts, blocks, or N:M with N < M such as 2:4, got 'rows'",
        ),
        ({"scope": "4:2"}, "N:M with N < M such as 2:4, got '4:2'"),
        ({"scope": "0:4"}, "got '0:4'"),
        ({"scope": 124}, "got 124"),
        ({"scope": "2:4", "sparsity": 0.3}, "scope '2:4' has sparsity 0.5, got 0.3"),
        ({"scope": "2:4", "sparsity": 0.0}, "scope '2:4' has sparsity 0.5, got 0.0"),
        ({"scope": "2:4", "sparsity": (0.5, 0.4)}, "scope '2:4' has sparsity 0.5, got 0.4"),
        ({"scope": "row", "counts": (1,)}, "counts belong to the scopes tensor, group, global, got them with 'row'"),
        ({"units": ((1,),)}, "units belong to the scopes neurons, heads, moe-experts, blocks, got them with 'tensor'"),
        (
            {"scope": "heads", "units": ((2, 1),)},
            r"expected ascending whole numbers from 0 as units of a block, got \(2, 1\)",
        ),
        ({"scope": "heads", "units": ((1, 1),)}, r"got \(1, 1\)"),
        ({"scope": "blocks", "sparsity": (0.5, 0.5)}, "scope 'blocks' takes one sparsity, the share of blocks, got 2"),
        ({"scope": "heads", "units": ((-1,),)}, r"got \(-1,\)"),
        ({"rescale": 1}, "expected true or false as rescale, got 1"),
        (
            {"rescale": True, "scope": "heads"},
            "scope 'heads' cannot be rescaled; tensor, group, global, row and N:M can",
        ),
        ({"calibration": "abc"}, "expected 64 hexadecimal digits as calibration, got 'abc'"),
    ],
)
def test_prunings_that_cannot_be(arguments, message):
    with pytest.raises(InputError, match=message):
        Prune(**({"input": Expert("a"), "sparsity": 0.5} | arguments))


def test_units_that_are_no_hexadecimal_numbers():
    text = Prune(Expert("a"), 0.5, scope="heads", units=((1,),)).to_json()
    with pytest.raises(
        InputError, match="recipe node 1: expected the units of a block as a hexadecimal number, got 'x'"
    ):
        Recipe.from_json(text.replace('["2"]', '["x"]'))


def test_shared_subtrees_are_stored_once():
    shared = Prune(Expert("math"), 0.5)
    tree: Recipe = shared
    for _ in range(40):  # 2**40 leaves as a tree
        tree = Merge("linear", (tree, tree), (0.5, 0.5))
    assert len(json.loads(tree.to_json())["nodes"]) == 42
    assert len(list(walk(tree))) == 42


def test_walk_gives_inputs_before_users():
    seen = []
    for node in walk(lineage(5)):
        for child in getattr(node, "inputs", ()) or ((node.input,) if hasattr(node, "input") else ()):
            assert child in seen
        seen.append(node)


def test_numbers_are_rounded_once_and_equal_values_are_equal_recipes():
    a = Merge("linear", (Expert("a"), Expert("b")), (np.float32(0.5), 1))
    b = Merge("linear", [Expert("a"), Expert("b")], [0.5, 1.0])
    assert a == b
    assert Prune(Expert("a"), 0.1 + 0.2) == Prune(Expert("a"), 0.3)
    assert Merge("linear", (Expert("a"),), (-0.0,)) == Merge("linear", (Expert("a"),), (0.0,))
    assert Merge("m", (Expert("a"),), (1,), {"x": 1.0, "a": True}) == Merge(
        "m", (Expert("a"),), (1,), {"a": True, "x": 1.0}
    )
    assert Merge("linear", (Expert("a"), Expert("b")), np.ones((3, 2))).weights == ((1.0, 1.0),) * 3


def test_different_recipes_differ():
    base = Prune(Expert("a"), 0.3)
    others = [
        Prune(Expert("b"), 0.3),
        Prune(Expert("a"), 0.31),
        Prune(Expert("a"), (0.3,)),
        Prune(Expert("a"), 0.3, scope="global"),
        Prune(Expert("a"), 0.3, counts=(1,)),
        Cast(Expert("a"), "float32"),
        Merge("linear", (Expert("a"), Expert("b")), (1, 2)),
        Merge("linear", (Expert("b"), Expert("a")), (1, 2)),
        Merge("linear", (Expert("b"), Expert("a")), (1, 2), {"normalize": False}),
    ]
    assert len({base, *others}) == len(others) + 1


def test_recipes_are_frozen():
    with pytest.raises(AttributeError):
        example().dtype = "float32"


@pytest.mark.parametrize("seed", ["0", "1", "random"])
def test_digest_is_the_same_in_every_process(seed):
    code = (
        "from sae_moo.recipe.nodes import *; import json, sys; d = json.load(sys.stdin);"
        "print(digest(decode(d[0]), d[1]), decode(d[0]).to_json())"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps([encode(example()), FINGERPRINTS]),
        env={**os.environ, "PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.split(" ", 1) == [digest(example(), FINGERPRINTS), example().to_json() + "\n"]


def test_digest_is_pinned_across_machines():
    pinned = "d467aeddc677c6037b4cb0ed449c53a2ac6ac0ce88fa8ca5d1b6dbb28b1d6c50"
    assert digest(Expert("math"), {"math": "11"}) == pinned


def test_digest_is_bound_to_the_experts_read_and_to_the_base():
    recipe = Cast(Expert("math"), "float32")
    whole = digest(recipe, FINGERPRINTS)
    assert digest(recipe, FINGERPRINTS | {"code": "changed"}) == whole
    assert digest(recipe, FINGERPRINTS | {"math": "changed"}) != whole
    assert digest(recipe, FINGERPRINTS | {"base": "changed"}) != whole
    with pytest.raises(InputError, match="names 'law', but the experts at hand are: base, code, math"):
        digest(Expert("law"), FINGERPRINTS)


@pytest.mark.parametrize("depth", [500, 3000])
def test_deep_lineages_need_no_recursion(depth):
    recipe = lineage(depth)
    again = Recipe.from_json(recipe.to_json())
    assert again == recipe
    assert pickle.loads(pickle.dumps(recipe)) == recipe
    assert copy.deepcopy(recipe) is recipe
    assert len(digest(recipe, FINGERPRINTS)) == 64
    assert len(repr(recipe)) < 300
    assert experts_of(recipe) == ("code", "math")


def test_a_child_stores_its_own_nodes_and_refers_to_its_parents():
    parent, other = lineage(200), lineage(3)
    child = Cast(Merge("linear", (parent, other), (1, 1)), "float32")
    known = {parent: "digest of parent", other: "digest of other"}
    document = encode(child, known)
    assert len(document["nodes"]) == 4
    assert decode(json.loads(dumps(document)), {text: recipe for recipe, text in known.items()}) == child
    with pytest.raises(InputError, match="'digest of parent', which is not at hand"):
        decode(document, {})


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Expert(""), "expected a non-empty name"),
        (lambda: Merge("linear", (), ()), "expected one or more recipes"),
        (lambda: Merge("linear", (Expert("a"),), (1, 2)), "expected 1 weights"),
        (lambda: Merge("linear", (Expert("a"), Expert("b")), ((1, 2), (1,))), "expected 2 weights"),
        (lambda: Merge("linear", (Expert("a"),), (float("nan"),)), "expected a finite number, got nan"),
        (lambda: Merge("linear", (Expert("a"),), ("x",)), "expected a number, got 'x'"),
        (lambda: Merge("linear", (Expert("a"),), (1,), {"x": None}), "expected a number, truth value or text"),
        (lambda: Prune(Expert("a"), 1.0), r"expected a sparsity in \[0, 1\), got 1.0"),
        (lambda: Prune(Expert("a"), -0.1), r"expected a sparsity in \[0, 1\), got -0.1"),
        (lambda: Prune(Expert("a"), ()), "expected one sparsity, or one per group or tensor"),
        (lambda: Prune(Expert("a"), 0.5, scope="layer"), "expected a scope among tensor, group, global"),
        (lambda: Prune(Expert("a"), 0.5, counts=(-1,)), "expected whole numbers from 0"),
        (lambda: Prune("a", 0.5), "expected a recipe as input"),
        (lambda: Cast(Expert("a"), "int8"), "expected a dtype among float32"),
    ],
)
def test_bad_nodes_are_refused_at_construction(build, message):
    with pytest.raises(InputError, match=message):
        build()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "text that is not JSON"),
        ("[]", 'an object with "schema" and a non-empty list "nodes"'),
        ('{"schema":2,"nodes":[{"node":"expert","name":"a"}]}', "expected recipe schema 1, got 2"),
        ('{"schema":1,"nodes":[{"node":"leaf"}]}', "node 0: expected a node among expert"),
        ('{"schema":1,"nodes":[{"node":"expert"}]}', "node 0: missing 'name'"),
        ('{"schema":1,"nodes":[{"node":"expert","name":"a","nmae":1}]}', "unknown fields for expert: nmae"),
        ("[" * 100_000, "text that is not JSON"),
        ('{"schema":1,"nodes":[3]}', "node 0: expected an object, got 3"),
        ('{"schema":1,"nodes":[{"node":["cast"]}]}', "node 0: expected a node among expert"),
        (
            '{"schema":1,"nodes":[{"node":"expert","name":"a"},{"node":"merge","method":"linear","inputs":[0],"weights":[1],"params":[]}]}',
            "expected an object as params",
        ),
        ('{"schema":1,"nodes":[{"node":"cast","inputs":[0],"dtype":"float32"}]}', "inputs among the 0 nodes before it"),
        (
            '{"schema":1,"nodes":[{"node":"expert","name":"a"},{"node":"cast","inputs":[-1],"dtype":"float32"}]}',
            "inputs",
        ),
    ],
)
def test_bad_documents_name_the_node_and_the_fault(text, message):
    with pytest.raises(InputError, match=message):
        Recipe.from_json(text)


@pytest.mark.parametrize("odd", ["3", '"0"', '{"0": 0}'])
@pytest.mark.parametrize("name", ["inputs", "counts", "units", "submodels"])
def test_what_is_no_list_is_refused_where_a_list_belongs(name, odd):
    node = {"node": "prune", "inputs": [0], "sparsity": 0.5, "criterion": "magnitude", "scope": "neurons"}
    document = {"schema": 1, "nodes": [{"node": "expert", "name": "a"}, node | {name: json.loads(odd)}]}
    with pytest.raises(InputError, match=f"node 1: expected a list as {name}, got"):
        Recipe.from_json(json.dumps(document))


@pytest.mark.parametrize(
    "build",
    [
        lambda text: Prune(Expert("a"), text),
        lambda text: Prune(Expert("a"), (text, 0.5)),
        lambda text: Merge("linear", (Expert("a"),), (text,)),
        lambda text: Merge("dare", (Expert("a"),), (1.0,), {"density": (text,)}),
        lambda text: Repair(Prune(Expert("a"), 0.5), "0" * 64, text),
    ],
)
@pytest.mark.parametrize("text", ["0.5", "1e-1", " 0 ", "nan"])
def test_a_text_is_no_number_even_if_it_reads_like_one(build, text):
    with pytest.raises(InputError, match="expected a number, got"):
        build(text)


@pytest.mark.parametrize("odd", ["1" * 1_000_000, "1" + "0" * 400, "1e999", "NaN", "[[" * 50_000, "[]", '"\\ud800"'])
@pytest.mark.parametrize(
    "fields",
    [
        '"node": "merge", "method": "linear", "inputs": [0], "weights": [%s]',
        '"node": "merge", "method": "linear", "inputs": [%s], "weights": [1]',
        '"node": "prune", "inputs": [0], "sparsity": %s, "criterion": "magnitude", "scope": "tensor"',
        '"node": "cast", "inputs": [0], "dtype": %s',
        '"node": %s',
    ],
)
def test_a_number_that_no_recipe_can_hold_is_an_input_error(fields, odd):
    document = '{"schema": 1, "nodes": [{"node": "expert", "name": "a"}, {' + fields.replace("%s", odd) + "}]}"
    with pytest.raises(InputError) as caught:
        Recipe.from_json(document)
    assert len(str(caught.value)) < 1000
