from __future__ import annotations

from types import SimpleNamespace

import pytest

from sae_moo.deploy.mergekit.document import Filtered
from sae_moo.deploy.mergekit.reading import parse
from sae_moo.deploy.mergekit.translate import translate, value_for
from sae_moo.errors import InputError
from sae_moo.experts.pool import TensorInfo
from sae_moo.recipe import Cast, Expert, Merge

KINDS = ("self_attn.q_proj", "mlp.up_proj")
LAYERS = 4


@pytest.fixture(scope="module")
def pool():
    """What translating looks at: four layers of two tensors, embeddings, norm and head."""
    groups = ("embeddings", *(f"block.{i}" for i in range(LAYERS)), "head")
    named = [(0, "model.embed_tokens.weight")]
    named += [(i + 1, f"model.layers.{i}.{kind}.weight") for i in range(LAYERS) for kind in KINDS]
    named += [(LAYERS + 1, "lm_head.weight"), (LAYERS + 1, "model.norm.weight")]
    tensors = tuple(TensorInfo(name, (2, 2), group, True) for group, name in named)
    return SimpleNamespace(groups=groups, tensors=tensors, main_dtype="bfloat16", rounding=lambda dtype: dtype)


def merge(text: str, pool) -> Merge:
    recipe = translate(parse(text, "m.yaml"), pool)
    assert isinstance(recipe, Cast)
    assert isinstance(recipe.input, Merge)
    return recipe.input


def refused(text: str, pool) -> str:
    with pytest.raises(InputError) as caught:
        translate(parse(text, "m.yaml"), pool)
    return str(caught.value)


def two(a: str, b: str = "1", more: str = "") -> str:
    return (
        f"merge_method: linear\nmodels:\n  - {{model: a, parameters: {{weight: {a}}}}}\n"
        f"  - {{model: b, parameters: {{weight: {b}}}}}\n{more}"
    )


@pytest.mark.parametrize(
    ("values", "t", "expected"),
    [
        ((0.7,), 0.3, 0.7),
        ((0.0, 1.0), 0.25, 0.25),
        ((0.0, 1.0), 1.0, 1.0),
        ((0.0, 4.0, 0.0), 0.25, 2.0),
        ((0.0, 4.0, 0.0), 0.75, 2.0),
        ((0.0, 4.0, 1.0), 1.0, 1.0),
        ((True, False), 0.99, True),
        ((True, False), 1.0, False),
    ],
)
def test_gradients(values, t, expected):
    assert value_for((Filtered(None, values),), "any", t) == expected


def test_the_first_condition_that_a_name_meets():
    setting = (Filtered("mlp", (1.0,)), Filtered("up", (2.0,)), Filtered("norm", (3.0,)))
    assert [value_for(setting, name, 0) for name in ("mlp.up", "up", "q")] == [1.0, 2.0, None]


def test_numbers_that_are_the_same_everywhere_are_one_row(pool):
    found = merge(two("0.25", "[0.5, 0.5]"), pool)
    assert found == Merge("linear", (Expert("base"), Expert("b")), (0.25, 0.5))


def test_a_gradient_over_the_layers_becomes_rows_per_group_and_its_first_value_holds_outside(pool):
    found = merge(two("[0, 3]"), pool)
    assert [row[0] for row in found.weights] == [0, 0, 1, 2, 3, 0]
    assert {row[1] for row in found.weights} == {1}


def test_filters_become_rows_per_tensor(pool):
    found = merge(two("[{filter: mlp, value: [0, 3]}, {filter: lm_head, value: 9}, {value: 0.5}]"), pool)
    assert [row[0] for row in found.weights] == [0.5, 0.5, 0, 0.5, 1, 0.5, 2, 0.5, 3, 9, 0.5]


def test_what_no_filter_meets_is_looked_up_further_out(pool):
    found = merge(two("[{filter: mlp, value: 2}]", more="parameters: {weight: 0.5}\n"), pool)
    assert {row[0] for row in found.weights} == {0.5, 2.0}
    message = refused(two("[{filter: mlp, value: 2}]"), pool)
    assert (
        "m.yaml:3: models[0]: expected a value of weight for a for every tensor, model.embed_tokens.weight" in message
    )


def test_a_source_counts_more_than_its_slice_than_the_whole(pool):
    def slices(first: str, second: str) -> str:
        return (
            f"merge_method: linear\nslices:\n  - {{sources: [{{model: a, layer_range: [0, 3]{first}}}]}}\n"
            f"  - {{sources: [{{model: a, layer_range: [3, 4]}}]{second}}}\nparameters: {{weight: 7, normalize: false}}\n"
        )

    found = merge(slices(", parameters: {weight: [1, 2]}", ", parameters: {weight: [5, 6]}"), pool)
    assert [row[0] for row in found.weights] == [1, 1, 1.5, 2, 6, 5], "a lone layer is at the gradient's end"
    assert merge(slices("", ""), pool).weights == (7.0,)


def test_models_absent_from_a_slice_weigh_nothing_there(pool):
    text = (
        "merge_method: ties\nbase_model: o\nslices:\n"
        "  - {sources: [{model: o, layer_range: [0, 2]}, {model: a, layer_range: [0, 2]}]}\n"
        "  - {sources: [{model: b, layer_range: [2, 4]}, {model: o, layer_range: [2, 4]}]}\n"
        "parameters: {weight: 0.5, density: [0.2, 0.4]}\n"
    )
    found = merge(text, pool)
    assert found.inputs == (Expert("a"), Expert("b"))
    assert found.weights == ((0.5, 0),) * 3 + ((0, 0.5),) * 3
    assert dict(found.params)["density"] == ((0.2, 1), (0.2, 1), (0.4, 1), (1, 0.2), (1, 0.4), (1, 0.2))


def test_slices_that_do_not_cover_the_layers(pool):
    text = "merge_method: passthrough\nslices:\n  - sources: [{model: a, layer_range: [0, 3]}]\n"
    assert refused(text, pool).endswith(
        "m.yaml:3: slices[0]: the slices hold 3 layers, the models have 4 in the order in which they lie"
    )


def test_slerp_runs_from_the_base_to_the_other(pool):
    for order in ("{model: a}, {model: b}", "{model: b}, {model: a}", "{model: b}"):
        text = f"merge_method: slerp\nbase_model: a\nmodels: [{order}]\nparameters: {{t: 0.3}}\n"
        assert merge(text, pool) == Merge("slerp", (Expert("base"), Expert("b")), (0.7, 0.3))
    found = merge("merge_method: slerp\nbase_model: a\nmodels: [{model: b}]\nparameters: {t: [0, 0.6]}\n", pool)
    assert found.weights == ((1, 0), (1, 0), (0.8, 0.2), (0.6, 0.4), (0.4, 0.6), (1, 0))


def test_settings_by_our_names_where_they_are_not_the_default(pool):
    text = (
        "merge_method: della\nbase_model: o\nmodels:\n  - {model: a, parameters: {weight: 1, density: 0.5}}\n"
        "  - {model: b, parameters: {weight: 2, epsilon: 0.1}}\n"
        "parameters: {lambda: 0.7, rescale: false, normalize: true, int8_mask: true, density: 0.6}\n"
    )
    params = {"density": (0.5, 0.6), "epsilon": (0.15, 0.1), "scale": 0.7, "rescale": "none"}
    assert merge(text, pool) == Merge("della", (Expert("a"), Expert("b")), (1, 2), tuple(params.items()))


@pytest.mark.parametrize("method", ["nuslerp", "multislerp"])
def test_with_a_base_on_task_vectors(pool, method):
    text = f"merge_method: {method}\nmodels: [{{model: a}}, {{model: b}}]\nparameters: {{weight: 1}}\n"
    assert merge(text, pool) == Merge(method, (Expert("base"), Expert("b")), (1, 1))
    assert merge(text + "base_model: o\n", pool) == Merge(
        method, (Expert("a"), Expert("b")), (1, 1), (("relative", True),)
    )


def test_truth_and_whole_numbers_are_the_same_for_all(pool):
    assert "normalize: expected one truth value for all layers" in refused(
        two("1", more="parameters: {normalize: [true, false]}"), pool
    )
    karcher = "merge_method: karcher\nmodels: [{model: a}, {model: b}]\nparameters: {max_iter: [1, %s]}\n"
    assert "max_iter: expected whole numbers at every layer" in refused(karcher % 3, pool)
    assert dict(merge(karcher % 4, pool).params)["max_iter"] == ((1,), (1,), (2,), (3,), (4,), (1,))


def test_passthrough(pool):
    one = "merge_method: passthrough\nmodels: [{model: a%s}]\n"
    assert translate(parse(one % "", "m.yaml"), pool) == Cast(Expert("base"), "bfloat16"), "as the base is stored"
    found = merge(one % ", parameters: {scale: [{filter: mlp, value: 0.5}]}", pool)
    assert (found.method, dict(found.params), set(found.weights)) == ("linear", {"normalize": False}, {(1.0,), (0.5,)})
    turns = "merge_method: passthrough\nslices:\n"
    turns += "".join(
        f"  - sources: [{{model: {m}, layer_range: [{2 * i}, {2 * i + 2}]}}]\n" for i, m in enumerate("ab")
    )
    assert merge(turns, pool).weights == ((1, 0),) * 3 + ((0, 1),) * 3


def test_nothing_but_the_base(pool):
    text = "merge_method: ties\nbase_model: a\nmodels: [{model: a}]\nout_dtype: float16\n"
    assert translate(parse(text, "m.yaml"), pool) == Cast(Expert("base"), "float16")


def test_a_model_listed_twice_is_two_inputs(pool):
    text = "merge_method: linear\nmodels: [{model: a, parameters: {weight: 1}}, {model: a, parameters: {weight: 2}}]"
    assert merge(text, pool) == Merge("linear", (Expert("base"), Expert("base")), (1, 2))
