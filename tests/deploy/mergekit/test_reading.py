from __future__ import annotations

import pytest

from sae_moo.deploy.mergekit.reading import parse, parse_all, read_configuration
from sae_moo.deploy.mergekit.table import TABLE
from sae_moo.errors import InputError
from sae_moo.recipe.methods import METHODS

TIES = """\
merge_method: ties
base_model: org/base@v2
models:
  - model: org/math
    parameters: {weight: 1e-1, density: [1, 0.5]}
  - model: org/base@v2
  - model: other/math
    parameters: {weight: 0.5}
"""


def faults(text: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        parse(text, "m.yaml")
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


def test_models_become_experts_named_after_their_places():
    document = parse(TIES + "dtype: bfloat16\ntokenizer_source: other/math\n", "m.yaml")
    assert document.sources == {"base": "org/base@v2", "math": "org/math", "math-2": "other/math"}
    assert (document.dtype, document.tokenizer) == ("bfloat16", "math-2")
    (only,) = document.slices
    assert [source.model for source in only.sources] == ["org/math", "org/base@v2", "other/math"]
    assert only.sources[0].scope["weight"][0].values == (0.1,), "YAML reads 1e-1 as text"
    assert document.notes == (
        "dtype bfloat16: mergekit computes in it; here the arithmetic is float32, rounded once to bfloat16",
    )


@pytest.mark.parametrize(
    ("model", "name"),
    [("./x/base/", "base-2"), ("a b", "a_b"), ("..", "model"), ("zoo:math", "math"), ("o/n@r", "n")],
)
def test_names(model, name):
    document = parse(f"merge_method: karcher\nmodels: [{{model: first}}, {{model: {model!r}}}]", "m.yaml")
    assert list(document.sources) == ["base", name]


def test_a_model_as_mergekit_writes_it_itself():
    text = (
        "merge_method: passthrough\nmodels: [{model: {model: {path: org/a, revision: r1}, lora: null}}]\n"
        "base_model: {model: {path: org/a, revision: r1}}\n"
    )
    assert parse(text, "m.yaml").sources == {"base": "org/a@r1"}


@pytest.mark.parametrize("model", ["org/a+org/lora", "{model: org/a, lora: {path: org/lora}}"])
def test_an_adapter_of_the_base_is_an_expert(model):
    text = (
        f"merge_method: task_arithmetic\nbase_model: org/a\nparameters: {{weight: 1}}\nmodels: [{{model: {model}}}]\n"
    )
    document = parse(text, "m.yaml")
    assert (document.sources, list(document.names)) == (
        {"base": "org/a", "lora": "org/lora"},
        ["org/a", "org/a+org/lora"],
    )
    other = parse(text.replace("base_model: org/a", "base_model: org/b"), "m.yaml")
    assert other.sources == {"base": "org/b", "lora": "org/a+org/lora"}, "over its own model where that is not the base"
    on_one = parse(text.replace("base_model: org/a", "base_model: org/a+x"), "m.yaml")
    assert on_one.sources == {"base": "org/a+x", "lora": "org/a+org/lora"}


@pytest.mark.parametrize(
    ("written", "value"),
    [("true", True), ("'Yes'", True), ("1.0", True), ("'off'", False), ("0", False), ("'0'", False)],
)
def test_truth_values_are_read_as_mergekit_reads_them(written, value):
    document = parse(TIES + f"parameters: {{normalize: {written}, lambda: true}}\n", "m.yaml")
    assert document.scopes[1]["normalize"][0].values == (value,)
    assert document.scopes[1]["lambda"][0].values == (1.0,)


@pytest.mark.parametrize("model", ["a+b+c", "a+", "+b", "a++b"])
def test_what_is_no_model_with_an_adapter(model):
    (fault,) = faults(f"merge_method: karcher\nmodels: [{{model: {model}}}]")
    assert f"models[0].model: expected a model, or model+adapter, got {model!r}" in fault


def test_every_fault_at_once_with_line_key_and_nearest_name():
    text = """\
merge_method: ties
base_modl: base
dtype: float8
out_dtype: float64
tokenizer_source: other
chat_template: chatm
models:
  - model: a+adapter
    parameters: {weigt: 1}
  - model: b
    paramters: {weight: 1}
  - {parameters: {weight: high, density: [0.5, 2], gamma: 0.1}}
parameters:
  normalize: 2
  density: [{filter: mlp}, {filter: 3, value: []}]
  lambda: [0.1, {value: 1}]
"""
    assert faults(text) == [
        "m.yaml:1: merge_method: ties needs a base_model",
        "m.yaml:3: dtype: expected float32, bfloat16, float16, got 'float8'",
        "m.yaml:4: out_dtype: expected float32, bfloat16, float16, got 'float64'",
        "m.yaml:5: tokenizer_source: expected one of the models, got other",
        "m.yaml:6: chat_template: expected a Jinja template or one of auto, chatml, llama3, got 'chatm'",
        "m.yaml:12: models[2].model: expected a folder or a hub id, got None",
        "m.yaml:12: models[2].parameters.weight: expected a number, got 'high'",
        "m.yaml:12: models[2].parameters.density: expected a share in [0, 1], got 2",
        "m.yaml:14: parameters.normalize: expected true or false, got 2",
        "m.yaml:15: parameters.density[0]: expected {filter: TEXT, value: NUMBER}, got dict",
        "m.yaml:15: parameters.density[1].filter: expected part of a tensor's name, got 3",
        "m.yaml:15: parameters.density[1].value: expected a value, got an empty list",
        "m.yaml:16: parameters.lambda[0]: expected {filter: TEXT, value: NUMBER}, got 0.1",
    ]


TWO = "models: [{model: a}, {model: b}]\n"
WEIGHTED = "models: [{model: a, parameters: {weight: 1}}, {model: b}]\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: [{model: a}]", "merge_method: expected this key, it is missing"),
        ("merge_method: [ties]", "no merge method ['ties']"),
        ("merge_method: tie\n" + TWO, "no merge method 'tie' (did you mean 'ties'?)"),
        ("merge_method: nearswap\nbase_model: a\n" + TWO, "nearswap: expected a value of t, there is none"),
        ("merge_method: rum\n" + TWO, "no merge method 'rum' (did you mean 'ram'?)"),
        ("merge_method: linear\n", "exactly one of models, slices and modules, got none of them"),
        ("merge_method: linear\nslices: [1]\n" + WEIGHTED, "got models and slices"),
        ("merge_method: linear\n" + WEIGHTED, "m.yaml:2: models[1]: linear: expected a value of weight for b, there"),
        ("merge_method: linear\nbase_model: c\n" + TWO, "expected a value of weight for c"),
        ("merge_method: linear\nmodels: 3", "models: expected a list with at least one entry, got 3"),
        ("merge_method: linear\nmodels: [a]", "models[0]: expected a mapping with model, got 'a'"),
        ("merge_method: linear\nparameters: [1]\n" + TWO, "parameters: expected a mapping of parameters, got [1]"),
        ("merge_method: linear\nmodels: [{model: 3}]", "models[0].model: expected a folder or a hub id, got 3"),
        ("merge_method: slerp\nbase_model: a\n" + TWO, "slerp: expected a value of t, there is none"),
        ("merge_method: slerp\nbase_model: c\nparameters: {t: 0}\n" + TWO, "expected 1 models besides base_model, got 2"),
        ("merge_method: nuslerp\nbase_model: a\n" + WEIGHTED, "nuslerp: expected 2 models besides base_model, got 1"),
        ("merge_method: nuslerp\nparameters: {nuslerp_flatten: false}\n" + TWO, "here only as true, got False"),
        ("merge_method: model_stock\nbase_model: a\n" + TWO, "expected at least 2 models besides base_model, got 1"),
        ("merge_method: model_stock\nbase_model: c\nparameters: {filter_wise: true}\n" + TWO, "here only as false"),
        ("merge_method: passthrough\nbase_model: c\nmodels: [{model: a}]", "expected 1 models (base_model counts), got 2"),
        ("merge_method: karcher\nparameters: {max_iter: 1.5}\n" + TWO, "max_iter: expected a whole number, got 1.5"),
        ("merge_method: karcher\nparameters: {tol: .inf}\n" + TWO, "tol: expected a number, got inf"),
        ("merge_method: sce\nbase_model: a\nmodels: [{model: a}, {model: a}]", "base_model a once among the sources"),
        ("merge_method: karcher\nmodules: {a: {}, b: {}}", "modules: expected a mapping with one module"),
        ("merge_method: karcher\nmodules: {a: {}}", "modules.a: expected either models or slices"),
        ("merge_method: karcher\ntokenizer: 3\n" + TWO, "tokenizer: expected a mapping with source, got 3"),
        ("merge_method: karcher\ntokenizer: {tokens: [x]}\n" + TWO, "tokenizer.tokens: expected a mapping of tokens, got list"),
        ("merge_method: karcher\ntokenizer: {tokens: {x: 1}}\n" + TWO, "tokenizer.tokens.x: expected {source: MODEL} or a kind of it, got 1"),
        ("merge_method: karcher\ntokenizer: {tokens: {x: {source: c}}}\n" + TWO, "tokens.x.source: expected one of the models, got c"),
        ("merge_method: karcher\ntokenizer: {tokens: {x: {source: a, force: 2}}}\n" + TWO, "x.force: expected true or false, got 2"),
        ("merge_method: karcher\ntokenizer: {tokens: {x: {source: {kind: one}}}}\n" + TWO, "expected kind zero, or model_token"),
        ("merge_method: karcher\ntokenizer: {pad_to_multiple_of: 0}\n" + TWO, "expected a whole number above 0, got 0"),
        ("merge_method: karcher\ntokenizer_source: c\n" + TWO, "tokenizer_source: expected one of the models"),
        ("merge_method: karcher\ntokenizer_source: a\ntokenizer: {source: a}\n" + TWO, "got both"),
        ("merge_method: karcher\ndtype: float64\n" + TWO, "dtype: expected float32, bfloat16, float16, got 'float64'"),
        ("merge_method: karcher\nmerge_method: karcher\n" + TWO, "merge_method: expected every key once, it came before"),
    ],
)  # fmt: skip
def test_faults(text, message):
    found = faults(text)
    assert any(message in fault for fault in found), found


def sliced(*ranges: tuple[str, int, int]) -> str:
    entries = "".join(f"  - sources: [{{model: {m}, layer_range: [{a}, {b}]}}]\n" for m, a, b in ranges)
    return f"merge_method: passthrough\nslices:\n{entries}"


def test_a_range_of_layers_is_not_empty():
    assert faults(sliced(("a", 2, 2))) == [
        "m.yaml:3: slices[0].sources[0].layer_range: expected [first, after the last], got [2, 2]"
    ]


def test_slices_say_which_layers_of_which_model_the_result_has():
    document = parse(sliced(("a", 0, 2), ("b", 1, 4), ("a", 3, 4)), "m.yaml")
    assert [(part.start, part.stop) for part in document.slices] == [(0, 2), (2, 5), (5, 6)]
    assert document.layers == {"base": (0, 1, None, None, None, 3), "b": (None, None, 1, 2, 3, None)}
    assert parse("merge_method: karcher\n" + TWO, "m.yaml").layers == {}


def test_a_model_with_two_ranges_in_a_slice_is_two_experts():
    text = """\
merge_method: linear
slices:
  - sources:
      - {model: a, layer_range: [0, 2]}
      - {model: a, layer_range: [1, 3]}
      - {model: b, layer_range: [1, 3]}
      - {model: b, layer_range: [1, 3]}
parameters: {weight: 1}
"""
    document = parse(text, "m.yaml")
    assert document.layers == {"base": (0, 1), "base~1": (1, 2), "b": (1, 2)}
    assert document.sources == {"base": "a", "b": "b", "base~1": "a"}
    assert [document.named(*each) for each in [("a", 0), ("a", 1), ("b", 0), ("b", 1)]] == ["base", "base~1", "b", "b"]


def test_sources_of_a_slice_have_as_many_layers():
    text = (
        "merge_method: linear\nslices: [{sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 3]}]}]"
    )
    assert "expected as many layers from every source" in faults(text + "\nparameters: {weight: 1}")[0]


def test_the_same_models_in_every_slice_unless_no_weight_means_absent():
    one, two = (f"  - {{sources: [{{model: {m}, layer_range: [{n}, {n + 1}]}}]}}\n" for n, m in enumerate("ab"))
    text = f"slices:\n{one}{two}parameters: {{weight: 1}}\n"
    assert len(parse("merge_method: linear\n" + text, "m.yaml").slices) == 2
    assert faults("merge_method: multislerp\n" + text) == [
        "m.yaml:4: slices[1]: multislerp: expected the same models in every slice"
    ]
    assert (
        "expected base_model c once among the sources, got it 0 times"
        in faults("merge_method: ties\nbase_model: c\n" + text)[0]
    )


def test_a_base_given_by_the_slices():
    text = "merge_method: sce\nslices:\n  - {base_model: a, sources: [{model: a, layer_range: [0, 1]}]}\n"
    assert parse(text, "m.yaml").base == "a"
    assert "expected one base_model for all slices, got a, b" in faults(text + "base_model: b\n")[0]


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("merge_method: karcher\n" + TWO, "no base_model: a, the first model, gives the architecture"),
        ("merge_method: sce\nbase_model: a\nparameters: {int8_mask: true}\n" + TWO, "int8_mask changes mergekit's use of"),
        ("merge_method: karcher\nparameters: {density: 0.5}\n" + TWO, "density has no effect on karcher, as in mergekit"),
        ("merge_method: karcher\nparameters: {weight: 3}\n" + TWO, "weight has no effect on karcher"),
        ("merge_method: slerp\nbase_model: a\nparameters: {t: 1}\nmodels: [{model: b, parameters: {t: 0}}]", "models[0].parameters.t has no effect"),
        ("merge_method: karcher\nmodels: [{model: a}, {model: a}]", "a stands 2 times and is as many inputs"),
        ("merge_method: ties\nbase_model: a\nparameters: {weight: 1}\n" + WEIGHTED, "the parameters of a have no effect"),
        (sliced(("a", 0, 1)) + "    residual_weight: 0.5", "residual_weight has no effect"),
    ],
)  # fmt: skip
def test_notes(text, note):
    assert any(note in each for each in parse(text, "m.yaml").notes)


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("name: mine\narchitecture: LlamaForCausalLM\nmerge_method: karcher\n" + TWO, "name has no effect, as in mergekit"),
        ("architecture: x\nmerge_method: karcher\n" + TWO, "architecture has no effect, as in mergekit"),
        ("merge_method: karcher\nbase_modl: c\n" + TWO, "base_modl has no effect, as in mergekit (did you mean 'base_model'?)"),
        ("merge_method: karcher\nparameters: {dtype: bfloat16, 3: 1}\n" + TWO, "parameters.dtype has no effect, as in mergekit"),
        ("merge_method: ties\nbase_model: a\nparameters: {weigt: 1, weight: 1}\n" + TWO, "weigt has no effect, as in mergekit (did you mean 'weight'?)"),
        ("merge_method: karcher\nmodels: [{model: a, weight: 3}]", "models[0].weight has no effect, as in mergekit"),
        ("merge_method: karcher\ntokenizer: {source: base, mode: x}\n" + TWO, "tokenizer.mode has no effect"),
        ("merge_method: karcher\nchat_template: alpaca\n" + TWO, "mergekit's own alpaca is not here"),
    ],
)  # fmt: skip
def test_what_nobody_reads_is_a_note(text, note):
    assert any(note in each for each in parse(text, "m.yaml").notes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "base_model: a\ngate_mode: hidden\nexperts: [{source_model: b, positive_prompts: [x]}]",
            "a mergekit-moe config",
        ),
        ("base_model: a\nexperts: [{source_model: b}]", "a mergekit-moe configuration"),
        (
            "genome: {models: [a], merge_method: ties}\ntasks: [{name: x}]",
            "a mergekit-evolve configuration: it searches",
        ),
        ("layer_slices: [{model: a, start: 0, end: 2}]", "a bakllama configuration"),
        ("base_model: a\nfinetuned_model: b\nrank: 32", "settings of mergekit-extract-lora"),
        ("study: {name: s}\nmodels: {base: a, experts: {b: b}}\nobjectives: [t]", "a configuration of a search"),
    ],
)
def test_files_of_other_tools_are_called_so_in_one_line(text, message):
    with pytest.raises(InputError) as caught:
        parse(text, "m.yaml")
    assert str(caught.value).startswith(f"m.yaml: {message}")
    assert "\n" not in str(caught.value)


MANY = """\
name: last
merge_method: karcher
base_model: first
models: [{model: first+lora}, {model: second}]
---
# a comment
---
name: second
merge_method: karcher
models: [{model: first}, {model: c}]
---
name: first
merge_method: karcher
models: [{model: a}, {model: b}]
---
"""


def test_several_documents_are_merges_each_after_those_that_it_takes():
    merges = parse_all(MANY, "m.yaml")
    assert [document.name for document in merges] == ["first", "second", "last"]
    assert [document.takes for document in merges] == [("a", "b"), ("first", "c"), ("first", "first", "second")]
    assert len(parse_all("--- \nmerge_method: karcher\n" + TWO + "---\n", "m.yaml")) == 1
    with pytest.raises(InputError, match="expected one mergekit configuration, got 3 YAML documents"):
        parse(MANY, "m.yaml")


@pytest.mark.parametrize(
    ("was", "now", "message"),
    [
        ("name: second", "name: first", "m.yaml:12: name: expected letters, digits, dots and dashes, every name once, got 'first'"),
        ("name: second", "name: ../up", "m.yaml:8: name: expected letters"),
        ("name: second\n", "", "expected a name for every merge but one"),
        ("{model: a}", "{model: second}", "take each other for models"),
        ("{model: c}", "{model: 3}", "m.yaml:10: models[1].model: expected a folder or a hub id, got 3"),
        ("{model: a}, {model: b}", "a", "m.yaml:14: models[0]: expected a mapping with model, got 'a'"),
    ],
)  # fmt: skip
def test_faults_of_several_documents(was, now, message):
    text = MANY.replace(was, now) if now else MANY.replace(was, now).replace("name: first\n", "")
    with pytest.raises(InputError) as caught:
        parse_all(text, "m.yaml")
    assert message in str(caught.value)


def test_files(tmp_path):
    path = tmp_path / "m.yaml"
    with pytest.raises(InputError, match="cannot read the mergekit configuration"):
        read_configuration(path)
    path.write_text("a: [")
    with pytest.raises(InputError, match="not YAML"):
        read_configuration(path)
    path.write_text("- 1")
    with pytest.raises(InputError, match=r"expected a mapping with the keys merge_method, base_model, models"):
        read_configuration(path)
    path.write_text(TIES)
    assert read_configuration(path).method == "ties"


def test_the_table_fits_our_methods():
    for row in TABLE.values():
        ours = METHODS[row.ours]
        for name, parameter in row.parameters.items():
            if parameter.setting in (None, "weights") or parameter.required:
                continue
            default = ours.defaults[parameter.setting]
            expected = {True: "l1", False: "none"}[parameter.default] if name == "rescale" else parameter.default
            assert default == expected, (row.ours, name)
