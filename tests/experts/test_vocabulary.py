from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_moo.config.document import Config
from sae_moo.deploy.surroundings import recipe_document
from sae_moo.errors import InputError
from sae_moo.experts.checkpoint import Checkpoint
from sae_moo.experts.live import load_model
from sae_moo.experts.pool import ExpertPool
from sae_moo.experts.vocabulary import TokenRow, Vocabulary, policy_of
from sae_moo.jobs.bench import Bench
from sae_moo.jobs.merge import merge
from sae_moo.materialization.into_model import materialize
from sae_moo.recipe import BASE, Expert, Merge

WORDS = [f"w{i}" for i in range(10)]
PADDED = 12  # rows of the base: ten tokens and two that no token uses
EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture
def saved(tmp_path):
    """Return a function that writes a model with a list of tokens."""

    def written(name, tokens, rows=PADDED, tied=False, seed=0, dtype=torch.float32):
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=rows,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            tie_word_embeddings=tied,
        )
        LlamaForCausalLM(config).to(dtype).save_pretrained(tmp_path / name)
        if tokens is not None:
            vocabulary = tokens if isinstance(tokens, dict) else {token: i for i, token in enumerate(tokens)}
            words = Tokenizer(models.WordLevel(vocabulary, unk_token=next(iter(vocabulary))))
            words.pre_tokenizer = pre_tokenizers.Whitespace()
            PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return written


def fault(base, experts, policy="refuse"):
    with pytest.raises(InputError) as caught:
        ExpertPool.open(base, experts, vocabulary=policy)
    return str(caught.value).splitlines()[1:]


ADVICE = (
    "models.vocabulary: intersection, base or union (ExpertPool.open(..., vocabulary=...); tokenizer_source in a "
    "mergekit configuration) matches rows by token"
)


def test_other_vocabularies_are_refused_by_default_naming_the_option(saved):
    base = saved("base", WORDS)
    experts = {
        "longer": saved("longer", [*WORDS, "<chat>", "<end>", "<tool>"], rows=13),
        "turned": saved("turned", WORDS[::-1]),
        "renamed": saved("renamed", [*WORDS[:9], "<chat>"]),
        "fine": saved("fine", WORDS),
    }
    assert fault(base, experts) == [
        f"  - longer: vocabulary size is 13, the base's is 12; {ADVICE}",
        f"  - turned: 10 tokens of the base ('w0', 'w1', 'w2') elsewhere or missing in its tokenizer; {ADVICE}",
        f"  - renamed: one token of the base ('w9') elsewhere or missing in its tokenizer; {ADVICE}",
    ]


def test_tokens_added_in_unused_rows_are_no_fault(saved):
    pool = ExpertPool.open(saved("base", WORDS), {"chat": saved("chat", [*WORDS, "<chat>"], seed=1)})
    assert torch.equal(
        pool.load("chat", EMBEDDINGS), load_file(pool.checkpoints["chat"].folder / "model.safetensors")[EMBEDDINGS]
    )


def test_models_without_a_tokenizer_are_compared_by_size_alone(saved):
    base, expert = saved("base", None), saved("expert", None, seed=1)
    ExpertPool.open(base, {"expert": expert})
    missing = f"models.vocabulary: base needs a tokenizer, there is none in {base}"
    assert fault(base, {"expert": expert}, "base") == [f"  - base: {missing}"]
    named = saved("named", WORDS)
    pool = ExpertPool.open(named, {"expert": expert}, vocabulary="base")
    assert torch.equal(pool.load("expert", EMBEDDINGS), load_file(f"{expert}/model.safetensors")[EMBEDDINGS])


def test_a_base_without_a_tokenizer_has_the_tokens_of_the_first_that_has_one(saved):
    base = saved("base", None)
    experts = {"one": saved("one", WORDS), "same": saved("same", WORDS), "turned": saved("turned", WORDS[::-1])}
    shown = "10 tokens of one ('w0', 'w1', 'w2') elsewhere or missing in its tokenizer"
    assert fault(base, experts) == [f"  - turned: {shown}; {ADVICE}"]


def test_rows_as_they_lie_where_asked_for(saved):
    base, turned = saved("base", WORDS), saved("turned", WORDS[::-1], seed=1)
    pool = ExpertPool.open(base, {"turned": turned}, vocabulary="position")
    assert torch.equal(pool.load("turned", HEAD), load_file(f"{turned}/model.safetensors")[HEAD])
    longer = saved("longer", WORDS, rows=13)
    assert fault(base, {"longer": longer}, "position") == [
        f"  - longer: vocabulary size is 13, the base's is 12; {ADVICE}"
    ]


@pytest.mark.parametrize("tied", [False, True])
def test_a_union_has_every_token_and_its_row_from_who_knows_it(saved, tied, tmp_path):
    folders = {
        "base": saved("base", WORDS, tied=tied),
        "one": saved("one", [*WORDS[:9], "<chat>", "<one>"], rows=11, tied=tied, seed=1),
        "two": saved("two", ["<chat>", *WORDS[::-1]], rows=16, tied=tied, seed=2),
    }
    rows = {name: load_file(f"{folder}/model.safetensors")[EMBEDDINGS] for name, folder in folders.items()}
    pool = ExpertPool.open(folders["base"], {n: f for n, f in folders.items() if n != "base"}, vocabulary="union")
    tokens = pool.tokenizer().get_vocab()
    assert tokens == {**{word: i for i, word in enumerate(WORDS)}, "<chat>": 10, "<one>": 11} == pool.tokens()
    loaded = {name: pool.load(name, EMBEDDINGS) for name in pool.names}
    for i in range(len(WORDS)):  # the base's rows stand in for w9, which `one` does not know
        assert torch.equal(loaded["base"][i], rows["base"][i])
        assert torch.equal(loaded["one"][i], rows["one" if i < 9 else "base"][i])
        assert torch.equal(loaded["two"][i], rows["two"][10 - i])
    mean = (rows["one"][9] + rows["two"][0]) / 2  # the base does not know it, two do
    assert torch.equal(loaded["base"][10], mean)
    assert torch.equal(loaded["one"][10], rows["one"][9])
    assert torch.equal(loaded["two"][10], rows["two"][0])
    for name in pool.names:  # one knows it
        assert torch.equal(loaded[name][11], rows["one"][10])
    model = pool.live_model()
    materialize(Expert("two"), pool, model)
    assert model.config.vocab_size == 12
    assert torch.equal(model.get_input_embeddings().weight, loaded["two"])
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(recipe_document(Expert("two"), pool)))
    merge(file, tmp_path / "merged")
    again = load_model(tmp_path / "merged", torch.float32, "cpu")
    assert torch.equal(again.get_input_embeddings().weight, loaded["two"])


@pytest.mark.parametrize("base_first", [True, False])
def test_a_vocabulary_that_is_put_together(saved, base_first):
    base, one = saved("base", WORDS), saved("one", [*WORDS[1:], "<chat>"], rows=11, seed=1)
    theirs, ours = load_file(f"{one}/model.safetensors")[HEAD], load_file(f"{base}/model.safetensors")[HEAD]
    tokens = {
        "<new>": TokenRow(),
        "<like w3>": TokenRow(model="one", token="w3"),
        "<row 5>": TokenRow(model="base", row=5),
        "w2": TokenRow(model="one", force=True),
    }
    wanted = Vocabulary(source="one", tokens=tokens, multiple=8, base_first=base_first)
    pool = ExpertPool.open(base, {"one": one}, vocabulary=policy_of(wanted.document()))
    listed = pool.tokenizer().get_vocab()
    assert [token for token, _ in sorted(listed.items(), key=lambda pair: pair[1])] == [
        *WORDS[1:], "<chat>", "<new>", "<like w3>", "<row 5>",
    ]  # fmt: skip
    for name, own in {"base": ours, "one": theirs}.items():
        rows = pool.load(name, HEAD)
        assert rows.shape == (16, 8)
        assert torch.equal(rows[listed["w1"]], own[1 if name == "base" else 0])
        assert torch.equal(rows[listed["w2"]], theirs[1])
        assert torch.equal(rows[listed["<new>"]], torch.zeros(8))
        assert torch.equal(rows[listed["<like w3>"]], theirs[2])
        assert torch.equal(rows[listed["<row 5>"]], ours[5])
        torch.testing.assert_close(rows[13:], rows[:13].mean(0).expand(3, 8))
    with pytest.raises(InputError, match=r"tokens: '<a>': expected a row of one of base, one"):
        ExpertPool.open(base, {"one": one}, vocabulary=Vocabulary(tokens={"<a>": TokenRow(model="one", token="zz")}))


def test_an_unknown_policy_is_refused(saved):
    with pytest.raises(
        InputError, match=r"vocabulary: expected refuse, intersection, base, union, position, got 'bas'.*base"
    ):
        ExpertPool.open(saved("base", WORDS), {"a": saved("a", WORDS)}, vocabulary="bas")


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("policy", ["base", "intersection"])
def test_rows_are_matched_by_token(saved, policy, tied):
    base = saved("base", WORDS, tied=tied)
    shuffled = ["<chat>", *WORDS[5:], *WORDS[:5], "<end>", "<tool>"]  # 13 tokens in 16 rows
    expert = saved("expert", shuffled, rows=16, tied=tied, seed=1)
    pool = ExpertPool.open(base, {"expert": expert}, vocabulary=policy)
    theirs, ours = load_file(f"{expert}/model.safetensors"), load_file(f"{base}/model.safetensors")
    for name in [EMBEDDINGS] if tied else [EMBEDDINGS, HEAD]:
        rows = pool.load("expert", name)
        assert rows.shape == (PADDED, 8)
        for i, word in enumerate(WORDS):
            assert torch.equal(rows[i], theirs[name][shuffled.index(word)])
        assert torch.equal(rows[10:], ours[name][10:])  # there the expert holds tokens of its own
        assert not pool.stored("expert", name), "put together anew: it counts into what is bounded"
    assert pool.stored("expert", next(info.name for info in pool.tensors if info.prunable))
    model = pool.live_model()
    materialize(Expert("expert"), pool, model)
    assert model.config.vocab_size == PADDED
    ids = torch.tensor([[3, 1, 4]])
    as_the_expert_reads = torch.tensor([[shuffled.index(WORDS[i]) for i in ids[0].tolist()]])
    expected = load_model(pool.checkpoints["expert"].folder, torch.float32, "cpu")(as_the_expert_reads).logits
    order = [shuffled.index(word) for word in WORDS]
    torch.testing.assert_close(model(ids).logits[..., :10], expected[..., order])


def test_the_policies_differ_where_one_expert_lacks_what_another_has(saved):
    base = saved("base", WORDS)
    full = saved("full", WORDS, seed=1)
    lacking = saved("lacking", [*WORDS[:9], "<chat>"], seed=2)
    experts = {"full": full, "lacking": lacking}
    one, two, three = (load_file(f"{folder}/model.safetensors")[HEAD] for folder in (base, full, lacking))
    mean = Merge("linear", (Expert("full"), Expert("lacking")), weights=(0.5, 0.5))
    results = {}
    for policy in ("base", "intersection"):
        pool = ExpertPool.open(base, experts, vocabulary=policy)
        assert torch.equal(pool.load("lacking", HEAD)[9], one[9])
        assert torch.equal(pool.load("lacking", HEAD)[:9], three[:9])
        model = pool.live_model()
        materialize(mean, pool, model)
        results[policy] = pool.parameters(model)[HEAD].detach()
    torch.testing.assert_close(results["base"][9], (two[9] + one[9]) / 2)
    assert torch.equal(results["intersection"][9], one[9])
    assert torch.equal(results["base"][:9], results["intersection"][:9])
    assert torch.equal(results["base"][10:], results["intersection"][10:])
    torch.testing.assert_close(results["base"][10:], (two[10:] + three[10:]) / 2)  # padding, by position


def test_rows_the_expert_does_not_have_are_the_bases(saved):
    base = saved("base", WORDS)
    short = saved("short", WORDS[:6], rows=6, seed=1)
    for policy in ("base", "intersection"):
        pool = ExpertPool.open(base, {"short": short}, vocabulary=policy)
        rows = pool.load("short", EMBEDDINGS)
        assert torch.equal(rows[:6], load_file(f"{short}/model.safetensors")[EMBEDDINGS])
        assert torch.equal(rows[6:], pool.load(BASE, EMBEDDINGS)[6:])
    alien = saved("alien", ["x", "y"], rows=2, seed=1)
    pool = ExpertPool.open(base, {"alien": alien}, vocabulary="base")
    assert torch.equal(pool.load("alien", EMBEDDINGS), pool.load(BASE, EMBEDDINGS))
    assert pool.shares_base("alien", EMBEDDINGS)
    assert not pool.shares_base("alien", "model.norm.weight")


def test_rows_of_other_dtypes_lose_nothing(saved):
    base = saved("base", WORDS, dtype=torch.float16)
    expert = saved("expert", [*WORDS, "<chat>"], rows=13, dtype=torch.bfloat16, seed=1)
    pool = ExpertPool.open(base, {"expert": expert}, vocabulary="base")
    rows = pool.load("expert", HEAD)
    assert rows.dtype == torch.float32
    assert torch.equal(rows[:10], load_file(f"{expert}/model.safetensors")[HEAD][:10].float())
    assert torch.equal(rows[10], pool.load(BASE, HEAD)[10].float())
    whole = ExpertPool.open(base, {"expert": expert}, vocabulary="union")
    assert (whole.load("expert", HEAD).dtype, whole.load(BASE, HEAD).dtype) == (torch.float32, torch.float16)
    theirs = load_file(f"{expert}/model.safetensors")[HEAD][10]
    assert torch.equal(whole.load("expert", HEAD)[10], theirs.float())
    assert torch.equal(whole.load(BASE, HEAD)[10], theirs.half())


def test_an_adapter_that_brings_its_own_embeddings(saved, tmp_path):
    base = saved("base", WORDS)
    chat = saved("chat", [*WORDS, "<chat>"], rows=13, seed=1)
    theirs = load_file(f"{chat}/model.safetensors")
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 1, "modules_to_save": ["lm_head"]})
    )
    (folder / "tokenizer.json").write_bytes((tmp_path / "chat" / "tokenizer.json").read_bytes())
    save_file(
        {f"base_model.model.{name}": theirs[name] for name in (EMBEDDINGS, HEAD)}, folder / "adapter_model.safetensors"
    )
    assert fault(base, {"chat": str(folder)}) == [f"  - chat: vocabulary size is 13, the base's is 12; {ADVICE}"]
    pool = ExpertPool.open(base, {"chat": str(folder)}, vocabulary="base")
    assert torch.equal(pool.load("chat", HEAD)[:10], theirs[HEAD][:10])
    assert pool.shares_base("chat", "model.norm.weight")


def test_identity_knows_the_policy(saved, tmp_path):
    base = saved("base", WORDS)
    experts = {"full": saved("full", WORDS, seed=1), "lacking": saved("lacking", [*WORDS[:9], "<chat>"], seed=2)}
    pools = {policy: ExpertPool.open(base, experts, vocabulary=policy) for policy in ("base", "intersection")}
    plain = ExpertPool.open(base, {"full": experts["full"]})
    assert pools["base"].fingerprints["full"] == plain.fingerprints["full"]  # as it is
    for name, distinct in {"full": 2, "lacking": 1}.items():  # equal weights have equal fingerprints
        assert len({pool.fingerprints[name] for pool in pools.values()}) == distinct
    assert pools["base"].fingerprints["lacking"] != Checkpoint(experts["lacking"]).fingerprint
    recipe = Merge("linear", (Expert("full"), Expert("lacking")), weights=(0.5, 0.5))
    for policy, pool in pools.items():
        file = tmp_path / f"{policy}.json"
        file.write_text(json.dumps(recipe_document(recipe, pool)))
        merge(file, tmp_path / f"merged by {policy}")
        model = pool.live_model()
        materialize(recipe, pool, model)
        written = load_file(tmp_path / f"merged by {policy}" / "model.safetensors")
        assert torch.equal(written[HEAD], pool.parameters(model)[HEAD])


def test_the_configuration_names_the_policy(saved, tmp_path):
    (tmp_path / "items.jsonl").write_text(
        "".join(json.dumps({"prompt": WORDS[i], "answer": f" {WORDS[i + 1]}"}) + "\n" for i in range(8))
    )
    raw = {
        "models": {
            "base": saved("base", WORDS),
            "experts": {"longer": saved("longer", [*WORDS, "<chat>", "<end>", "<tool>"], rows=13)},
        },
        "tasks": [{"name": "t", "data": "items.jsonl", "kind": "likelihood", "search": 2, "test": 2}],
        "objectives": ["t", "sparsity"],
    }
    with pytest.raises(InputError, match="vocabulary size is 13"):
        Bench.open(Config.from_dict(raw, tmp_path))
    raw["models"]["vocabulary"] = "intersection"
    bench = Bench.open(Config.from_dict(raw, tmp_path))
    assert bench.pool.vocabulary == bench.identity()["models.vocabulary"] == "intersection"
    raw["models"]["vocabulary"] = "onion"
    with pytest.raises(InputError, match=r"models\.vocabulary: expected 'refuse', .* got 'onion'"):
        Config.from_dict(raw, tmp_path)
