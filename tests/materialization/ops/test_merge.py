from __future__ import annotations

import itertools

import numpy as np
import pytest
import reference
import torch

from sae_moo.errors import InputError, WeightsError
from sae_moo.experts.memory import Remembered
from sae_moo.materialization.ops import fused
from sae_moo.materialization.ops.operands import Operands, Place
from sae_moo.materialization.ops.questions import step_of
from sae_moo.materialization.ops.random import Draws, threshold
from sae_moo.materialization.ops.steps import by_rank
from sae_moo.materialization.ops.write import write
from sae_moo.recipe.methods import METHODS
from sae_moo.testing import MergeMethodContract, experts, merged

RANDOM = ("dare_linear", "dare_ties", "della", "della_linear")
FAMILY = ("ties", *RANDOM, "breadcrumbs", "breadcrumbs_ties")
SETTINGS = {
    "linear": [{}, {"normalize": False}],
    "slerp": [{}],
    "split_slerp": [{"split": 0.0}, {"split": 0.4}, {"split": 1.0}],
    "nuslerp": [{}, {"relative": True}],
    "multislerp": [{}, {"relative": True}, {"normalize": False}],
    "karcher": [{}, {"max_iter": 3}],
    "model_stock": [{}],
    "task_arithmetic": [{}, {"scale": 0.7}, {"normalize": True}],
    "ties": [{"density": 0.5}, {"density": 0.2, "scale": 1.5, "normalize": False}, {"rescale": "l1", "density": 0.3}],
    "dare_linear": [{"density": 0.5}, {"density": 0.3, "rescale": "density", "seed": 7}, {"rescale": "none"}],
    "dare_ties": [{"density": 0.5}, {"density": 0.3, "normalize": True}],
    "della": [{"density": 0.5}, {"density": 0.3, "epsilon": 0.1, "seed": 3}],
    "della_linear": [{"density": 0.5}],
    "breadcrumbs": [{"density": 0.5}, {"density": 0.3, "gamma": 0.1}, {"density": 0.95, "gamma": 0.2}],
    "breadcrumbs_ties": [{"density": 0.5, "gamma": 0.05}],
    "sce": [{}, {"select_topk": 0.3}, {"scale": 0.5}],
    "arcee_fusion": [{}],
    "nearswap": [{}, {"t": 0.05}],
    "ram": [{}, {"epsilon": 0.3}],
    "ramplus_tl": [{}, {"epsilon": 0.3, "r": 0.5, "alpha": 0.7}],
    "rankmean": [{"ranks": (2.0, 5.0, 1.0)}],
    "zero_aware": [{}, {"scale": 1.3}],
}
PLAIN = ("arcee_fusion", "nearswap", "ram", "ramplus_tl")
"""Methods without a faster form."""
CASES = [(method, settings) for method, rows in SETTINGS.items() for settings in rows]
SIZES = [(1,), (2,), (64,), (3, 5), (40, 33), (300, 301)]


def inputs_of(method: str) -> int:
    return METHODS[method].inputs[1] or 3


def expected(method, xs, weights, base, **params) -> np.ndarray:
    """The float64 reference; random masks are those of the streams, checked by themselves below."""
    arrays = [x.double().numpy() for x in xs]
    ground = base.double().numpy()
    if method == "rankmean":
        return reference.linear(arrays, [w * r for w, r in zip(weights, params["ranks"], strict=True)], ground)
    if method not in FAMILY:
        return getattr(reference, method)(arrays, weights, ground, **params)
    row = METHODS[method]
    settings = {**row.defaults, **params}
    density = settings["density"]
    deltas = [x - base for x in xs] if xs[0].dtype == torch.float32 else [x.float() - base.float() for x in xs]
    masks = []
    for i, delta in enumerate(deltas):
        if method == "ties":
            masks.append(reference.trimmed(delta.numpy(), density))
        elif method.startswith("breadcrumbs"):
            masks.append(reference.middle(delta.numpy(), density, settings["gamma"]))
        elif density >= 1:
            masks.append(np.ones(base.shape, bool))
        else:
            numbers = Draws.of(settings["seed"], "w", f"x{i}").draw(0, base.numel()).reshape(base.shape)
            drop = threshold(density)
            if method.startswith("della"):
                drop = by_rank(delta.abs().reshape(-1, base.shape[-1]), density, settings["epsilon"])
                drop = drop.reshape(base.shape)
            masks.append((numbers >= drop).numpy())
    rest = {name: settings[name] for name in ("normalize", "scale", "rescale", "density")}
    return reference.thinned(arrays, weights, ground, masks, row.fixed["elect"], **rest)


@pytest.fixture(params=["compiled", "plain"])
def path(request, monkeypatch):
    if request.param == "plain":
        monkeypatch.setattr(fused, "available", lambda: False)
    else:
        pytest.importorskip("numba", reason="numba is not installed: the plain path is the only one")


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("method", "settings"), CASES)
def test_agrees_with_the_formula_in_float64(method, settings, size):
    count = inputs_of(method)
    base, *xs = experts(count, size)
    weights = [0.5, 0.3, 0.9][:count]
    if method == "zero_aware":
        for x in xs:
            x[x.abs() < 0.5] = 0
    result = merged(method, xs, weights, base, **settings)
    wanted = torch.from_numpy(np.array(expected(method, xs, weights, base, **settings)))
    torch.testing.assert_close(result.double(), wanted, rtol=3e-6, atol=3e-6)


def ulps(result: torch.Tensor, wanted: torch.Tensor) -> int:
    """Most units in the last place of bfloat16 between two tensors."""
    words = [x.bfloat16().view(torch.int16).int() for x in (result, wanted)]
    ordered = [torch.where(word < 0, -(word & 0x7FFF), word) for word in words]
    return int((ordered[0] - ordered[1]).abs().max())


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize(("method", "settings"), [case for case in CASES if case[0] != "arcee_fusion"])
def test_bfloat16_is_the_reference_rounded(method, settings):
    count = inputs_of(method)
    base, *xs = experts(count, (64, 65), dtype=torch.bfloat16)
    weights = [0.5, 0.3, 0.9][:count]
    result = merged(method, xs, weights, base, out=torch.bfloat16, **settings)
    wanted = torch.from_numpy(np.array(expected(method, xs, weights, base, **settings)))
    # where terms cancel to almost nothing, float32 arithmetic itself is coarser than a bfloat16 there
    whole = wanted.abs() > 1e-3
    assert ulps(result[whole], wanted[whole]) <= 1
    torch.testing.assert_close(result[~whole].double(), wanted[~whole], rtol=0, atol=1e-5)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("dtypes", list(itertools.product([torch.float32, torch.bfloat16, torch.float16], repeat=2)))
@pytest.mark.parametrize(("method", "settings"), CASES)
def test_compiled_plain_and_any_number_of_threads_give_the_same_bits(method, settings, dtypes, threads, monkeypatch):
    pytest.importorskip("numba", reason="numba is not installed: the plain path is the only one")
    monkeypatch.setattr(fused, "GRAIN", 1 << 10)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    inner, out = dtypes
    count = inputs_of(method)
    base, *xs = experts(count, (70, 71), dtype=inner)
    for x in xs:
        x[x.abs() < 0.2] = 0
    weights = [0.5, 0.3, 0.9][:count]
    compiled = merged(method, xs, weights, base, out=out, **settings)
    monkeypatch.setattr(fused, "available", lambda: False)
    assert torch.equal(compiled, merged(method, xs, weights, base, out=out, **settings))


@pytest.mark.parametrize("size", [(5, 1), (1,), (3, 600), (130, 7), (2, 3000)])
@pytest.mark.parametrize("method", ["della", "della_linear"])
def test_rows_of_any_length_and_densities_by_input_drop_the_same(method, size, monkeypatch):
    pytest.importorskip("numba", reason="numba is not installed: the plain path is the only one")
    monkeypatch.setattr(fused, "GRAIN", 1 << 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    base, *xs = experts(3, size)
    xs[0][..., ::2] = base[..., ::2]  # equal magnitudes: ranks go by position
    settings = {"density": (0.5, 1.0, 0.0), "epsilon": (0.2, 0.1, 0.1)}
    compiled = merged(method, xs, (0.5, 0.3, 0.9), base, **settings)
    monkeypatch.setattr(fused, "available", lambda: False)
    assert torch.equal(compiled, merged(method, xs, (0.5, 0.3, 0.9), base, **settings))


@pytest.mark.usefixtures("path")
def test_what_sce_remembers_is_of_its_inputs_and_its_share():
    base, *xs = experts(3, (20, 30))
    memory = Remembered()

    def chosen(inputs, share, remembered):
        row = METHODS["sce"]
        keys = tuple(f"x{i}" for i in inputs)
        operands = Operands(tuple(xs[i].flatten() for i in inputs), base.flatten(), (20, 30), keys, keys)
        place = Place("w", True, {**row.defaults, "select_topk": share}, 0, 600, remembered)
        out = torch.empty(600)
        write(step_of(row.function, operands, [1.0] * len(inputs), place), operands, out)
        return out

    for inputs, share in [((0, 1), 0.5), ((0, 1), 0.2), ((1, 2), 0.5), ((0, 1, 2), 1.0), ((0, 1), 0.5)]:
        assert torch.equal(chosen(inputs, share, memory), chosen(inputs, share, Remembered()))


def test_ties_of_variances_go_by_position_wherever_they_stand(monkeypatch):
    pytest.importorskip("numba", reason="numba is not installed: the plain path is the only one")
    base = torch.zeros(3, 1000)
    xs = [torch.ones(3, 1000), torch.full((3, 1000), 2.0)]
    xs[1][0, :400] = 1.0  # no variance there
    for share in (0.25, 0.6, 1.0):
        compiled = merged("sce", xs, (1.0, 1.0), base, select_topk=share)
        with monkeypatch.context() as patch:
            patch.setattr(fused, "available", lambda: False)
            assert torch.equal(compiled, merged("sce", xs, (1.0, 1.0), base, select_topk=share))
        assert int((compiled != 0).sum()) == (int(2600 * share) if share < 1 else 3000)


@pytest.mark.usefixtures("path")
def test_an_overflow_among_the_inputs_is_named():
    base, *xs = experts(3, (10, 10))
    xs[0][3], xs[1][3] = torch.inf, -torch.inf
    with pytest.raises(WeightsError, match="NaN"):
        merged("sce", xs, (1.0, 1.0, 1.0), base, select_topk=0.05)


def test_random_numbers_go_on_beyond_four_billion_elements():
    kernels = pytest.importorskip("sae_moo.materialization.ops.kernels", reason="numba is not installed")
    stream = Draws((123, 456))
    for begin in (2**32 - 700, 2**32 - 1, 2**32, 3 * 2**32 - 5):
        words = np.empty(1000, np.uint32)
        kernels._draw(words, begin, 1000, np.array([*stream.keys, 7]))
        assert words.tolist() == stream.draw(begin, 1000).tolist()


@pytest.mark.parametrize(("method", "settings"), CASES)
def test_every_method_but_fusion_has_a_compiled_form(method, settings, monkeypatch):
    pytest.importorskip("numba", reason="numba is not installed: the plain path is the only one")
    base, *xs = experts(inputs_of(method), (8, 8), dtype=torch.bfloat16)
    monkeypatch.setattr(Operands, "chunks", lambda *_: pytest.fail("the plain path was taken"))
    weights = [0.5, 0.3, 0.9][: len(xs)]
    if method in PLAIN:
        with pytest.raises(pytest.fail.Exception):
            merged(method, xs, weights, base, **settings)
    else:
        merged(method, xs, weights, base, **settings)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_identical_experts_give_the_expert(method, dtype):
    base, x = experts(1, (20, 30), dtype=dtype)
    count = inputs_of(method)
    settings = {"ranks": (3.0, 1.0, 2.0)} if method == "rankmean" else {}
    settings |= {"normalize": True} if "normalize" in METHODS[method].defaults else {}
    settings |= {"t": 10.0} if method == "nearswap" else {}  # further than any element is from the base
    result = merged(method, [x] * count, [0.1, 0.2, 0.6][:count], base, out=dtype, **settings)
    if method in (
        *FAMILY,
        "sce",
        "arcee_fusion",
        "ram",
        "ramplus_tl",
    ):  # b + (x - b) rounds once more; fusion takes over a part
        part = torch.where(result == base, base, x) if method == "arcee_fusion" else x
        torch.testing.assert_close(result, part, rtol=1e-6 if dtype == torch.float32 else 2**-8, atol=1e-6)
    else:
        assert torch.equal(result, x)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("method", ["linear", "slerp", "nuslerp", "multislerp", "split_slerp", "task_arithmetic"])
def test_one_weight_alone_gives_that_expert(method):
    base, *xs = experts(inputs_of(method), (20, 30))
    for i in range(len(xs)):
        weights = [float(j == i) for j in range(len(xs))]
        result = merged(method, xs, weights, base, **({"split": 1.0} if method == "split_slerp" else {}))
        if method in ("linear", "slerp", "task_arithmetic", "split_slerp"):
            assert torch.equal(result, xs[i])
        else:
            torch.testing.assert_close(result, xs[i], rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("count", [2, 3])
def test_zero_aware_without_zeros_is_linear(count):
    base, *xs = experts(count, (64, 65))
    weights = [0.5, 0.3, 0.9][:count]
    assert torch.equal(merged("zero_aware", xs, weights, base), merged("linear", xs, weights, base))


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("scale", [1.0, 0.5, 1.3])
def test_zero_aware_keeps_what_all_have_pruned_and_takes_survivors_undiluted(count, scale):
    base, *xs = experts(count, (50, 60))
    for seed, x in enumerate(xs):
        x[torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < 0.6] = 0
    result = merged("zero_aware", xs, [1.0 + i for i in range(count)], base, scale=scale)
    present = torch.stack([x != 0 for x in xs])
    assert torch.equal(result == 0, ~present.any(dim=0))
    alone = present[0] & (present.sum(dim=0) == 1)
    assert alone.sum() > 50
    torch.testing.assert_close(result[alone], (base + scale * (xs[0] - base))[alone])


def test_zero_aware_outside_prunable_weights_is_plain():
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([5.0, 6.0])
    assert merged("zero_aware", [a, b], [0.25, 0.75], torch.zeros(2), prunable=False).tolist() == [4.0, 4.5]


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("method", METHODS)
def test_scaling_all_weights_of_the_model_scales_the_result(method):
    """No hidden absolute threshold: tiny differences are merged as large ones are."""
    if method in PLAIN:
        pytest.skip("softmax over weights, or a difference of fixed length, is not free of scale, by its definition")
    base, *xs = experts(inputs_of(method), (30, 40))
    settings = {"ranks": (1.0, 2.0, 3.0)} if method == "rankmean" else {}
    settings |= {"density": 0.5} if method in FAMILY else {}
    weights = [0.5, 0.3, 0.9][: len(xs)]
    whole = merged(method, xs, weights, base, **settings)
    small = merged(method, [x * 2.0**-20 for x in xs], weights, base * 2.0**-20, **settings)
    torch.testing.assert_close(small * 2.0**20, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("method", ["slerp", "split_slerp"])
@pytest.mark.parametrize("b", [torch.tensor([2.0, 4.0]), torch.tensor([-1.0, -2.0]), torch.zeros(2)])
def test_spheres_of_parallel_or_zero_tensors_are_linear(method, b):
    a = torch.tensor([1.0, 2.0])
    settings = {"split": 1.0} if method == "split_slerp" else {}
    result = merged(method, [a, b], (0.25, 0.75), torch.zeros(2), **settings)
    torch.testing.assert_close(result, 0.25 * a + 0.75 * b)


def test_directions_that_cancel_are_refused_by_name():
    a = torch.tensor([1.0, 0.0])
    b, c = (torch.tensor([np.cos(t), np.sin(t)], dtype=torch.float32) for t in (2 * np.pi / 3, 4 * np.pi / 3))
    with pytest.raises(InputError, match=r"multislerp: w: the inputs' directions cancel out under weights"):
        merged("multislerp", [a, b, c], (1.0, 1.0, 1.0), a)
    assert merged("multislerp", [a, -2 * a], (0.5, 0.5), a).tolist() == pytest.approx([-0.5, 0.0])


@pytest.mark.parametrize("method", RANDOM)
def test_random_masks_are_those_of_seed_tensor_and_input(method):
    base, a, b = experts(2, (90, 100))
    first = merged(method, [a, b], (1.0, 1.0), base, density=0.5, seed=1)
    assert torch.equal(first, merged(method, [a, b], (1.0, 1.0), base, density=0.5, seed=1))
    assert not torch.equal(first, merged(method, [a, b], (1.0, 1.0), base, density=0.5, seed=2))
    assert not torch.equal(first, merged(method, [a, b], (1.0, 1.0), base, density=0.5, seed=1, keys=("p", "q")))


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("method", RANDOM)
@pytest.mark.parametrize("density", [0.2, 0.5, 0.8])
def test_random_methods_keep_about_the_density_and_the_l1_norm(method, density):
    base, x = experts(1, (300, 400))
    base = torch.zeros_like(base)
    result = merged(method, [x], (1.0,), base, density=density)
    assert (result != 0).float().mean().item() == pytest.approx(density, abs=0.01)
    assert result.abs().sum().item() == pytest.approx(x.abs().sum().item(), rel=1e-4)
    if method.startswith("della"):
        rows = result != 0
        ranked = x.abs().argsort(dim=1)
        small, large = ranked[:, :100], ranked[:, -100:]
        assert rows.gather(1, large).float().mean() > rows.gather(1, small).float().mean() + 0.1


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("size", [1, 2, 64, 1000])
@pytest.mark.parametrize("density", [0.01, 0.5, 0.75])
def test_trimming_keeps_the_right_count_even_of_equal_values(size, density):
    base = torch.zeros(size)
    for x in (torch.randn(size, generator=torch.Generator().manual_seed(0)), torch.full((size,), 0.5)):
        result = merged("ties", [x], (1.0,), base, density=density)
        assert int((result != 0).sum()) == max(1, int(density * size))


def test_settings_may_differ_by_input():
    base, a, b = experts(2, (30, 40))
    both = merged("ties", [a, b], (1.0, 1.0), base, density=(0.2, 0.9), normalize=False)
    alone = [merged("ties", [x], (1.0,), base, density=d, normalize=False) - base for x, d in ((a, 0.2), (b, 0.9))]
    agree = torch.where((alone[0] + alone[1] >= 0), 1.0, -1.0)
    wanted = base + sum(torch.where(torch.sign(d) == agree, d, 0.0) for d in alone)
    torch.testing.assert_close(both, wanted)


def test_every_method_has_cases():
    assert set(SETTINGS) == set(METHODS)


for name, rows in SETTINGS.items():
    contract = {"method": name, "settings": rows}
    globals()[f"Test_{name}"] = type(f"Test_{name}", (MergeMethodContract,), contract)
