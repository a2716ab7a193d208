"""Repair: against algorithm 1 of SparseGPT written plainly, its zeros counted, on every architecture it knows."""

from __future__ import annotations

import math
import weakref
from contextlib import contextmanager

import pytest
import torch
import transformers as hf
from random_pools import made_once, random_pool
from safetensors.torch import load_file, save_file
from stand_ins import weights_of

from sae_moo.errors import InputError, WeightsError
from sae_moo.experts.anatomy import anatomy, transposed
from sae_moo.experts.pool import ExpertPool
from sae_moo.materialization import blockwise
from sae_moo.materialization import repair as repairing
from sae_moo.materialization.blockwise import Block, hidden_states
from sae_moo.materialization.calibration import load_calibration, save_calibration
from sae_moo.materialization.into_model import materialize
from sae_moo.materialization.ops.reconstruct import Cheapest, CheapestOf, Fixed, add_moments, factorized, swept
from sae_moo.materialization.repair import _estimate
from sae_moo.materialization.texts import calibration_texts, texts_file
from sae_moo.recipe import Cast, Expert, Merge, Prune, Recipe, Repair
from sae_moo.recipe.structure import chain, merged, unrepaired

MERGE = Merge("task_arithmetic", (Expert("math"),), (0.7,))
SMALL = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4}
GROUPED = SMALL | {"num_key_value_heads": 2, "head_dim": 4, "max_position_embeddings": 64}
TURNED = {"vocab_size": 32, "n_embd": 16, "n_inner": 24, "n_layer": 3, "n_head": 4, "n_positions": 64}
MAKES = {
    "llama": (hf.LlamaConfig, hf.LlamaForCausalLM, GROUPED | {"mlp_bias": True, "tie_word_embeddings": True}),
    "gpt2": (hf.GPT2Config, hf.GPT2LMHeadModel, TURNED),
    "gpt_neox": (  # attention's last matrix is as large as the MLP's
        hf.GPTNeoXConfig,
        hf.GPTNeoXForCausalLM,
        SMALL | {"max_position_embeddings": 64, "intermediate_size": 16},
    ),
    "gemma2": (hf.Gemma2Config, hf.Gemma2ForCausalLM, GROUPED | {"sliding_window": 8}),
    "qwen2": (hf.Qwen2Config, hf.Qwen2ForCausalLM, GROUPED),
    "phi3": (hf.Phi3Config, hf.Phi3ForCausalLM, GROUPED | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}),
}
SCATTERED = ("tensor", "group", "global", "row", "2:4")


@pytest.fixture(scope="module")
def pools(tmp_path_factory):
    """Return a function: model type -> pool of a base and one expert with random weights and biases, made once."""
    return made_once(tmp_path_factory, lambda folder, kind: pool_of(*MAKES[kind], folder))


def pool_of(config, model, settings, folder) -> ExpertPool:
    pool = random_pool(folder, lambda: model(config(**settings)), std=0.2)
    calibration_texts(pool, texts())
    return pool


def texts(seed: int = 0, count: int = 40) -> list[list[int]]:
    rows = torch.randint(3, 32, (count, 24), generator=torch.Generator().manual_seed(seed)).tolist()
    return [row[: 24 - (i % 3)] for i, row in enumerate(rows)]


def repair(pool: ExpertPool, pruning: Recipe, dtype: str = "float32") -> Cast:
    return Cast(Repair(pruning, next(iter(pool.texts))), dtype)


def distance(pool: ExpertPool, model, expected: torch.Tensor) -> float:
    return float((hidden(model) - expected).square().mean())


def hidden(model) -> torch.Tensor:
    tokens = torch.tensor([row[:20] for row in texts(seed=1, count=60)])
    return model.base_model(input_ids=tokens).last_hidden_state


def zeros_of(pool: ExpertPool, model) -> dict[str, torch.Tensor]:
    prunable = {info.name for info in pool.tensors if info.prunable}
    found = {name: weight == 0 for name, weight in weights_of(pool, model).items() if name in prunable}
    return {name: zeros.t() if transposed(pool) else zeros for name, zeros in found.items()}  # outputs x inputs


def published(weights: torch.Tensor, hessian: torch.Tensor, zeros: torch.Tensor) -> torch.Tensor:
    """Algorithm 1 of Frantar & Alistarh 2023 with given zeros, column by column, the last column first.

    Args:
        weights: outputs x inputs.
        hessian: inputs x inputs, damped.
        zeros: truth values like the weights.
    """
    order = torch.arange(weights.shape[1] - 1, -1, -1)
    w = weights[:, order].double().clone()
    inverse = torch.linalg.cholesky(torch.linalg.inv(hessian[order][:, order].double()), upper=True)
    for j in range(w.shape[1]):
        error = torch.where(zeros[:, order[j]], w[:, j], 0.0) / inverse[j, j]
        w[:, j:] -= error[:, None] * inverse[j, j:]
        w[zeros[:, order[j]], j] = 0.0
    return w[:, order]


@pytest.mark.parametrize("inputs", [1, 7, 128, 300])
def test_the_sweep_is_the_published_one(inputs):
    torch.manual_seed(0)
    features, weights = torch.randn(500, inputs) @ torch.randn(inputs, inputs), torch.randn(5, inputs)
    zeros = torch.rand(5, inputs) < 0.5
    moments = torch.zeros(inputs, inputs)
    for part in features.split(170):
        add_moments(moments, part)
    hessian = features.t() @ features
    torch.testing.assert_close(moments.tril(), hessian.tril(), rtol=1e-4, atol=1e-2)
    hessian.diagonal().add_(0.01 * hessian.diagonal().mean())
    found = swept(weights.t().contiguous(), factorized(moments, 0.01), Fixed(zeros.t())).t()
    torch.testing.assert_close(found.double(), published(weights, hessian, zeros), rtol=1e-3, atol=1e-3)
    assert torch.equal(found == 0, zeros)


def test_settled_columns_leave_the_least_squares_of_the_others():
    torch.manual_seed(0)
    features, weights = torch.randn(400, 12) @ torch.randn(12, 12), torch.randn(12, 3)
    moments = features.t() @ features
    found = swept(weights, factorized(moments, 1e-9), Cheapest(0, 8), settled=4)
    expected = torch.linalg.lstsq(features[:, :8], features @ weights).solution
    torch.testing.assert_close(found[:8], expected, rtol=1e-3, atol=1e-3)
    assert not found[8:].any()


@pytest.mark.parametrize("inputs", [3, 128, 129, 300])
def test_counts_are_exact_however_columns_divide(inputs):
    torch.manual_seed(0)
    weights, factor = torch.randn(inputs, 6), torch.eye(inputs)
    for count in (0, 1, inputs * 3, inputs * 6 - 1, inputs * 6):
        found = swept(weights, factor, Cheapest(count, inputs))
        assert int((found == 0).sum()) == count
    rows = torch.tensor([0, 1, inputs // 2, inputs - 1, inputs, inputs // 3])
    assert torch.equal((swept(weights, factor, Cheapest(rows, inputs)) == 0).sum(dim=0), rows)


def test_where_inputs_say_nothing_of_each_other_the_smallest_go():
    torch.manual_seed(0)
    weights = torch.randn(64, 9)
    found = swept(weights, torch.eye(64), Cheapest(200, 64))
    assert torch.equal(found, weights.masked_fill(weights.abs() <= weights.abs().flatten().kthvalue(200).values, 0))
    found = swept(weights, torch.eye(64), CheapestOf(4, 2)).t().reshape(9, 16, 4)
    assert torch.equal(found == 0, weights.t().reshape(9, 16, 4).abs().argsort(dim=2).argsort(dim=2) < 2)


def test_moments_that_say_nothing_or_too_much():
    assert factorized(torch.zeros(3, 3), 0.01) is None
    one = torch.ones(3, 3)
    torch.testing.assert_close(factorized(one, 0.5), torch.linalg.cholesky(one + 0.5 * torch.eye(3)))
    assert torch.isfinite(factorized(-one + 2 * torch.eye(3), 0.01)).all(), "damped until it is positive definite"
    with pytest.raises(WeightsError, match="activations of the merged model are not finite"):
        factorized(torch.full((2, 2), torch.inf), 0.01)


@pytest.mark.parametrize("kind", MAKES)
@pytest.mark.parametrize("scope", SCATTERED)
def test_as_many_zeros_and_less_lost(pools, kind, scope):
    pool = pools(kind)
    model = pool.live_model()
    materialize(Cast(MERGE, "float32"), pool, model)
    dense = hidden(model)
    before = materialize(Cast(Prune(MERGE, 0.5, scope=scope), "float32"), pool, model)
    lost, zeros = distance(pool, model, dense), zeros_of(pool, model)
    report = materialize(repair(pool, Prune(MERGE, 0.5, scope=scope, rescale=True)), pool, model)
    assert distance(pool, model, dense) < 0.9 * lost
    assert (report.sparsity, report.group_sparsity) == (before.sparsity, before.group_sparsity)
    for name, gone in zeros_of(pool, model).items():
        assert gone.sum() == zeros[name].sum()
        if scope == "row":
            assert torch.equal(gone.sum(dim=1), zeros[name].sum(dim=1))
        if scope == "2:4":
            assert (gone.reshape(-1, 4).sum(dim=1) == 2).all()
    weights = weights_of(pool, model)
    again = materialize(report.recipe, pool, pool.live_model())
    assert again.recipe == report.recipe
    materialize(report.recipe, pool, model)
    assert all(torch.equal(weights[name], weight) for name, weight in weights_of(pool, model).items())


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_each_block_reads_what_the_repaired_ones_before_it_make(pools, kind):
    pool = pools(kind)
    model = pool.live_model()
    materialize(repair(pool, Prune(MERGE, 0.5)), pool, model)
    stem = {"llama": "layers.2.self_attn.q_proj", "gpt2": "h.2.attn.c_attn"}[kind]
    teacher = pool.live_model()
    materialize(MERGE, pool, teacher)
    layers = [each.base_model.get_submodule(stem) for each in (model, teacher)]
    read: list[list[torch.Tensor]] = [[], []]
    for layer, features in zip(layers, read, strict=True):
        layer.register_forward_pre_hook(lambda _, args, features=features: features.append(args[0].flatten(0, 1)))
    for row in texts():
        for each in (model, teacher):
            each.base_model(input_ids=torch.tensor([row]))
    ours, theirs = (torch.cat(features) for features in read)
    moments = torch.zeros(16, 16)
    add_moments(moments, ours)
    after, before = (layer.weight if kind == "gpt2" else layer.weight.t() for layer in layers)
    moved = before + _estimate(ours.t() @ (theirs - ours), moments, 0.1) @ before
    expected = swept(moved.contiguous(), factorized(moments, 0.01), Cheapest(before.numel() // 2, 16))
    torch.testing.assert_close(after, expected, rtol=1e-3, atol=1e-4)
    alone = swept(before.contiguous(), factorized(moments, 0.01), Cheapest(before.numel() // 2, 16))
    assert not torch.allclose(after, alone, atol=1e-3), "the teacher reads something else"


@pytest.mark.parametrize("kind", MAKES)
@pytest.mark.parametrize("scope", ["neurons", "heads"])
def test_what_is_removed_stays_removed(pools, kind, scope):
    pool = pools(kind)
    model = pool.live_model()
    materialize(Cast(MERGE, "float32"), pool, model)
    dense = hidden(model)
    pruning = Prune(MERGE, 0.34, scope=scope)
    before = materialize(Cast(pruning, "float32"), pool, model)
    lost, pruned = distance(pool, model, dense), weights_of(pool, model)
    report = materialize(repair(pool, pruning), pool, model)
    for name, weight in weights_of(pool, model).items():
        assert torch.equal(weight == 0, pruned[name] == 0), name
    assert report.sparsity == before.sparsity
    readers = {part.info.name for part in anatomy(pool, scope).parts if part.output}
    moved = changed(pool, model, pruned)
    writer = WRITERS[kind] or "none"
    assert {name for name in moved if ".0." in name} == {name for name in readers if ".0." in name} | {
        name for name in pruned if f".0.{writer}.weight" in name
    }, "of the first block nothing is made up for but what its own units leave"
    assert readers <= moved
    assert distance(pool, model, dense) < lost


PARTS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
WRITERS = {
    "llama": "mlp.down_proj", "gpt2": "mlp.c_proj", "gpt_neox": "mlp.dense_4h_to_h", "gemma2": None,
    "qwen2": "mlp.down_proj", "phi3": "mlp.down_proj",
}  # fmt: skip


@pytest.mark.parametrize("kind", MAKES)
@pytest.mark.parametrize("gone", [(0,), (1,), (1, 2), (0, 2)])
def test_the_block_before_a_removed_stretch_takes_over_what_it_can(pools, kind, gone):
    """Of Gemma 2 a norm comes behind the last matrix: nobody takes over."""
    pool = pools(kind)
    model = pool.live_model()
    materialize(Cast(MERGE, "float32"), pool, model)
    dense = hidden(model)
    units = tuple((0,) if block in gone else () for block in range(3))
    pruning = Prune(MERGE, 0.34, scope="blocks", units=units)
    before = materialize(Cast(pruning, "float32"), pool, model)
    lost, pruned = distance(pool, model, dense), weights_of(pool, model)
    report = materialize(repair(pool, pruning), pool, model)
    assert report.sparsity == before.sparsity
    later = [block for block in range(3) if block not in gone and block + 1 >= min(gone)]  # the last before, and behind
    expected = {f".{block}.{WRITERS[kind]}.weight" for block in later if WRITERS[kind]}
    assert {name[name.index(f".{name.split('.')[-4]}.") :] for name in changed(pool, model, pruned)} == expected
    if expected and 0 not in gone:  # else nothing that blocks read is the merge's own
        assert distance(pool, model, dense) < 0.9 * lost
    scattered = materialize(repair(pool, Prune(pruning, (0.5,) * len(pool.tensors))), pool, model)
    assert scattered.group_sparsity == {
        group: 1.0 if group in {f"block.{block}" for block in gone} else 0.5 if group.startswith("block") else 0.0
        for group in pool.groups
    }


def test_a_stretch_that_adds_what_its_reader_can_say_is_replaced_exactly(pools):
    """Of blocks that add a linear function of what the layer before them reads, nothing is lost."""
    inputs, added = torch.randn(200, 6), torch.randn(4, 6)
    moments = torch.zeros(6, 6)
    add_moments(moments, inputs)
    missing = inputs.t() @ (inputs @ added.t())
    torch.testing.assert_close(_estimate(missing, moments, 1e-7), added.t(), rtol=1e-3, atol=1e-3)
    assert not _estimate(missing, torch.zeros(6, 6), 1e-7).any()


def changed(pool: ExpertPool, model, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, weight in weights_of(pool, model).items() if not torch.equal(weight, before[name])}


def test_a_chain_of_prunings(pools):
    pool = pools("llama")
    model = pool.live_model()
    for scope in SCATTERED:
        whole = Prune(Prune(Prune(MERGE, 0.34, scope="blocks"), 0.5, scope="neurons"), 0.5, scope=scope)
        before = materialize(Cast(whole, "float32"), pool, model)
        zeros = zeros_of(pool, model)
        report = materialize(repair(pool, whole), pool, model)
        assert report.sparsity == before.sparsity
        for name, gone in zeros_of(pool, model).items():
            assert gone.sum() == zeros[name].sum()
            assert gone[:, zeros[name].all(dim=0)].all(), "inputs of which nothing was left"
            assert gone[zeros[name].all(dim=1)].all()
        assert chain(report.recipe) == chain(unrepaired(report.recipe))
        assert merged(report.recipe) == MERGE


def test_a_block_without_matrices_still_adds_its_biases(tmp_path):
    """Its matrices are so small that none is left; the blocks behind it are told what it makes of its inputs."""

    def change(model):
        for name, parameter in model.named_parameters():
            if ".h.1." in name and parameter.dim() == 2:
                torch.nn.init.normal_(parameter, std=1e-6)

    config, model, settings = MAKES["gpt2"]
    pool = random_pool(tmp_path, lambda: model(config(**settings)), 0.3, change=change)
    calibration_texts(pool, texts())
    live, dense, pruning = pool.live_model(), Expert("math"), Prune(Expert("math"), 0.4, scope="global")
    materialize(dense, pool, live)
    expected = hidden(live)
    before = materialize(Cast(pruning, "float32"), pool, live)
    lost = distance(pool, live, expected)
    report = materialize(repair(pool, pruning), pool, live)
    assert report.group_sparsity["block.1"] == before.group_sparsity["block.1"] == 1.0
    assert distance(pool, live, expected) < 0.1 * lost


def test_zeros_beside_a_pattern_stay(pools):
    pool = pools("llama")
    model = pool.live_model()
    whole = Prune(Prune(MERGE, 0.8), 0.5, scope="2:4")
    before = materialize(Cast(whole, "float32"), pool, model)
    assert materialize(repair(pool, whole), pool, model).sparsity == before.sparsity >= 0.8


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounded_models(pools, dtype):
    pool = pools("qwen2")
    model = pool.live_model(dtype)
    report = materialize(repair(pool, Prune(MERGE, 0.5), dtype), pool, model)
    assert report.sparsity == pytest.approx(0.5, abs=1e-3)
    wide = pool.live_model()
    other = repair(pool, Prune(MERGE, 0.5), dtype)
    materialize(other, pool, wide)
    for name, weight in weights_of(pool, wide).items():
        assert torch.equal(weight, weight.to(model.dtype).float()), name


def test_forward_tokens_are_what_blocks_have_read(pools, monkeypatch):
    pool = pools("llama")
    model, lengths = pool.live_model(), [len(row) for row in texts()]
    read, first = sum(lengths), 22 * lengths.count(22)
    report = materialize(repair(pool, Prune(MERGE, 0.5)), pool, model)
    sizes = {info.name: info.numel for info in pool.tensors if ".0." in info.name and info.prunable}
    shares = {part: sum(sizes[name] for name in sizes if part in name) / sum(sizes.values()) for part in PARTS}
    before = [sum(list(shares.values())[:i]) for i in (0, 3, 4, 6)]  # of a block: what is run before each set of layers
    passes = 3 * read + 3 * first  # the model as it is, and the blocks of the first batch alone
    tried = 3 * first  # which layers read the same, and which writes straight to the stream: the largest is tried first
    each = read + tried + sum(before[1:3]) * read + read  # the teacher's, and to the end for the last set alone
    assert report.tokens == math.ceil((passes + 3 * each + 2 * read) / 3), "all blocks but the last are run anew"
    each = tried + read  # nothing but the last layer has something to make up for, behind what is lost and just before
    for gone, making_up in ((1, 2), (2, 1)):
        units = tuple((0,) if block == gone else () for block in range(3))
        report = materialize(repair(pool, Prune(MERGE, 1 / 3, scope="blocks", units=units)), pool, model)
        assert report.tokens == math.ceil((passes + first + 3 * read + making_up * each + read) / 3), (
            "a block that is gone is run as the teacher's alone, once it is known that it is"
        )
    monkeypatch.setattr(blockwise, "BATCH_TOKENS", 48)
    report = materialize(repair(pool, Prune(MERGE, 0.5)), pool, model)
    assert report.tokens < 6.8 * read, "batches of one shape are not read twice to begin with"
    assert materialize(Cast(Prune(MERGE, 0.5), "float32"), pool, model).tokens == 0


def test_of_what_layers_read_in_the_teacher_one_block_is_kept(pools, monkeypatch):
    kept, pool, hearing = [], pools("llama"), repairing._hearing

    @contextmanager
    def watched(block, layers):
        with hearing(block, layers) as heard:
            yield heard
        assert not any(each() is not None for each in kept)
        kept.extend(weakref.ref(features) for read in heard.values() for features in read)

    monkeypatch.setattr(repairing, "_hearing", watched)
    materialize(repair(pool, Prune(MERGE, 0.5)), pool, pool.live_model())
    assert len(kept) == 3 * 3 * 3, "of each block, for all sets of layers but the last, a batch of every length"


def test_what_the_model_held_before_is_not_read(tmp_path):
    pool_of(*MAKES["llama"], tmp_path)
    for name in ("base", "math"):
        file = tmp_path / name / "model.safetensors"
        tensors = {key: tensor.bfloat16() for key, tensor in load_file(file).items()}
        tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].float()  # the model rounds it
        save_file(tensors, file, {"format": "pt"})
    pool = ExpertPool.open(str(tmp_path / "base"), {"math": str(tmp_path / "math")})
    calibration_texts(pool, texts())
    recipe, models = repair(pool, Prune(MERGE, 0.5), "stored"), [pool.live_model("bfloat16") for _ in range(2)]
    materialize(Cast(Merge("linear", (Expert("math"),), (3.0,), {"normalize": False}), "stored"), pool, models[1])
    materialize(recipe, pool, models[0])
    materialize(recipe, pool, models[1])
    first, second = (weights_of(pool, model) for model in models)
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())


class Told(torch.nn.Module):
    """Blocks that are given hidden states and, or not, something of the tokens.

    Args:
        tell: whether they are.
        naming: whether hidden states are given by their name, behind something else.
        pack: what of hidden states a block returns.
        hand_on: whether the second thing a block returns is given to the next.
    """

    def __init__(self, tell=False, naming=False, pack=lambda hidden: hidden, hand_on=False) -> None:
        super().__init__()
        self.hand_on = hand_on
        self.blocks, self.tell, self.naming = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(2)), tell, naming
        for block in self.blocks:
            block.forward = (
                (lambda beside, hidden_states: pack(hidden_states + beside / 1000))
                if naming
                else lambda hidden, beside: pack(hidden + beside / 1000)
            )

    def forward(self, input_ids, use_cache):
        hidden = input_ids[..., None].float().repeat(1, 1, 4)
        beside = hidden if self.tell else torch.ones(1)
        for block in self.blocks:
            made = block(beside, hidden_states=hidden) if self.naming else block(hidden, beside)
            hidden = made if torch.is_tensor(made) else made[0]
            beside = made[1] if self.hand_on else beside
        return hidden

    @property
    def base_model(self):
        return self

    def hidden_states(self, sequences):
        blocks = [Block(str(i), block, (), {}) for i, block in enumerate(self.blocks)]
        return hidden_states(self, blocks, sequences, torch.device("cpu"))


@pytest.mark.parametrize("naming", [False, True])
def test_blocks_that_are_told_of_the_tokens_are_refused(naming, monkeypatch):
    """However little it changes what they read."""
    monkeypatch.setattr(blockwise, "BATCH_TOKENS", 3)
    sequences = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    with pytest.raises(InputError, match="blocks, run one after another, do not compute what the model does"):
        Told(True, naming).hidden_states(sequences)
    for pack in (lambda hidden: hidden, lambda hidden: [hidden, None], lambda hidden: (hidden,)):
        batches = Told(False, naming, pack).hidden_states(sequences)
        assert [batch.hidden[0, :, 0].tolist() for batch in batches] == sequences


def test_blocks_that_hand_on_more_or_less_than_hidden_states_are_refused():
    for naming in (False, True):
        with pytest.raises(InputError, match="blocks hand on more than hidden states"):
            Told(False, naming, lambda hidden: (hidden, hidden.mean()), hand_on=True).hidden_states([[1, 2, 3]])
    with pytest.raises(
        InputError, match=r"expected blocks that read and return hidden states.*has dict in their place"
    ):
        Told(pack=lambda hidden: {0: hidden}).hidden_states([[1, 2, 3]])


def test_texts_travel_beside_a_recipe(pools, tmp_path, monkeypatch):
    pool = pools("llama")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "none"))
    recipe = repair(pool, Prune(MERGE, 0.5))
    digest = recipe.input.calibration
    save_calibration(recipe, pool, tmp_path)
    other = ExpertPool(pool.checkpoints)
    with pytest.raises(InputError, match=rf"Repair: the pool holds no texts {digest}; it holds none"):
        materialize(recipe, other, other.live_model())
    load_calibration(recipe, other, tmp_path)
    assert other.texts == pool.texts
    model = pool.live_model()
    materialize(recipe, pool, model)
    first = weights_of(pool, model)
    materialize(recipe, other, model)
    assert all(torch.equal(first[name], weight) for name, weight in weights_of(pool, model).items())
    (tmp_path / texts_file(digest)).write_text("[[1, 2]]")
    with pytest.raises(InputError, match=f"expected the token sequences {digest}, it holds others"):
        load_calibration(recipe, ExpertPool(pool.checkpoints), tmp_path)
    again = ExpertPool(pool.checkpoints)
    assert calibration_texts(again, texts()) == digest
    load_calibration(recipe, ExpertPool(pool.checkpoints), tmp_path / "elsewhere")


def test_a_repair_stands_under_the_cast_only(pools):
    pool = pools("llama")
    inner = repair(pool, Prune(MERGE, 0.5))
    for recipe in (inner.input, Merge("linear", (inner,), (1,)), Cast(inner, "float32"), Prune(inner, 0.6)):
        with pytest.raises(InputError, match="expected it directly under the outermost Cast"):
            materialize(recipe, pool, pool.live_model())


def test_mixtures_are_refused(tmp_path):
    settings = GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2}
    pool = pool_of(hf.MixtralConfig, hf.MixtralForCausalLM, settings, tmp_path)
    with pytest.raises(InputError, match=r"experts.* is an expert of a mixture"):
        materialize(repair(pool, Prune(MERGE, 0.5)), pool, pool.live_model())


def test_activations_that_are_not_finite(pools):
    pool = pools("llama")
    broken = Merge("task_arithmetic", (Expert("math"),), (1e30,))
    with pytest.raises(WeightsError, match="activations of the merged model are not finite"):
        materialize(repair(pool, Prune(broken, 0.5)), pool, pool.live_model())
    last = Merge(
        "task_arithmetic", (Expert("math"),), tuple((1e30 if group == "block.2" else 0.7,) for group in pool.groups)
    )
    with pytest.raises(WeightsError, match="activations of the unpruned merge are not finite"):
        materialize(repair(pool, Prune(last, 0.34, scope="blocks", units=((), (), (0,)))), pool, pool.live_model())
