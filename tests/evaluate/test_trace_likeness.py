"""Laws of the features of two traces: a model is like itself, both orders agree, rotations are no difference."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sae_moo.evaluate import trace_likeness
from sae_moo.evaluate.trace_likeness import FUNCTIONAL, trace_likenesses
from sae_moo.materialization.likeness import turned

PLACES, VOCABULARY, LAYERS, WIDTH = 30, 20, 5, 8


def made(seed: int, half: bool = False, attention: bool = True) -> dict[str, torch.Tensor]:
    """A trace of no model."""
    seeded = torch.Generator().manual_seed(seed)

    def drawn(*shape):
        return torch.randn(*shape, generator=seeded)

    logs = (2 * drawn(PLACES, VOCABULARY)).log_softmax(-1)
    trace = {
        "argmax": logs.argmax(-1).int(),
        "entropy": -(logs.exp() * logs).sum(-1),
        "log_likelihood": logs[:-2, 0].clone(),
        "log_probabilities": logs.half() if half else logs,
        "hidden": (drawn(LAYERS, PLACES, WIDTH) + 1).to(torch.bfloat16 if half else torch.float32),
    }
    for i, (texts, length) in enumerate(((2, 3), (1, 5)) if attention else ()):
        scores = drawn(LAYERS, texts, 2, length, length)
        ruled_out = torch.ones(length, length, dtype=torch.bool).triu(1)
        trace[f"attention.{i}"] = scores.masked_fill(ruled_out, -math.inf).softmax(-1).half()
    return trace


def features(**traces):
    base = traces.pop("base", made(99))
    names = list(traces)
    pairs = [(one, other) for one in names for other in names]
    return trace_likenesses({"base": base, **traces}, pairs)


@pytest.mark.parametrize("half", [False, True])
def test_a_model_is_like_itself(half):
    found = features(a=made(1, half), b=made(1, half), base=made(99, half))["a", "b"]
    assert tuple(found) == FUNCTIONAL
    for name, value in found.items():
        if name.startswith("kl") or name.endswith("difference"):
            assert value == 0.0, name
        elif not name.endswith(("first", "second")):
            assert value == pytest.approx(1.0, abs=1e-6), name


def test_divergences_are_of_each_place_in_each_direction(monkeypatch):
    a, b, base = made(1), made(2), made(99)
    found = features(a=a, b=b, base=base)

    def kl(one, other):
        p, q = one["log_probabilities"].double().numpy(), other["log_probabilities"].double().numpy()
        return (np.exp(p) * (p - q)).sum(-1)

    for way, wanted in (("forward", kl(a, b)), ("backward", kl(b, a))):
        assert found["a", "b"][f"kl_{way}_mean"] == pytest.approx(wanted.mean(), rel=1e-4)
        assert found["a", "b"][f"kl_{way}_median"] == pytest.approx(np.median(wanted), rel=1e-4)
        assert found["a", "b"][f"kl_{way}_q90"] == pytest.approx(np.quantile(wanted, 0.9), rel=1e-4)
    assert found["a", "b"]["drift_first"] == pytest.approx(kl(base, a).mean(), rel=1e-4)
    assert found["a", "b"]["drift_second"] == pytest.approx(kl(base, b).mean(), rel=1e-4)
    agreement = (a["argmax"] == b["argmax"]).double().mean()
    assert found["a", "b"]["argmax_agreement"] == pytest.approx(float(agreement), rel=1e-4)
    for name in ("log_likelihood", "entropy"):
        assert found["a", "b"][f"{name}_first"] == pytest.approx(float(a[name].mean()), rel=1e-4)
        assert found["a", "b"][f"{name}_second"] == pytest.approx(float(b[name].mean()), rel=1e-4)
    monkeypatch.setattr(trace_likeness, "PART_BYTES", 1)
    assert features(a=a, b=b, base=base)["a", "b"] == pytest.approx(found["a", "b"], rel=1e-5), "in parts"


def test_tokens_that_are_ruled_out_give_numbers():
    """By both: they count for nothing. By one: a divergence larger than any other."""
    a, b, c = made(1), made(2), made(3)
    for each in (a, b):
        each["log_probabilities"] = each["log_probabilities"].clone()
        each["log_probabilities"][:, 3] = -math.inf
    found = features(a=a, b=b, c=c)
    assert 0 < found["a", "b"]["kl_forward_mean"] < 50
    assert found["c", "a"]["kl_forward_mean"] > 50 > found["a", "c"]["kl_forward_mean"] > 0
    assert all(math.isfinite(value) for row in found.values() for value in row.values())


def test_the_other_order_is_the_same_pair_turned():
    found = features(a=made(1), b=made(2))
    assert turned(found["a", "b"]) == found["b", "a"]
    assert list(turned(found["a", "b"])) == list(found["a", "b"])
    assert found["a", "b"]["kl_forward_mean"] == found["b", "a"]["kl_backward_mean"]
    assert found["a", "b"]["entropy_difference"] == -found["b", "a"]["entropy_difference"] != 0
    symmetrical = [name for name in FUNCTIONAL if found["a", "b"][name] == found["b", "a"][name]]
    assert len(symmetrical) == 1 + 3 * 4


def test_cosines_are_means_over_places_and_the_blocks_of_a_third():
    a, b = made(1), made(2)
    found = features(a=a, b=b)["a", "b"]
    cosines = torch.nn.functional.cosine_similarity(a["hidden"].double(), b["hidden"].double(), dim=-1).mean(-1)
    for region, layers in (("early", [0, 1]), ("middle", [1, 2, 3]), ("late", [3, 4]), ("all", range(5))):
        assert found[f"hidden_cosine_{region}"] == pytest.approx(float(cosines[list(layers)].mean()), rel=1e-4)
    rows = [
        torch.nn.functional.cosine_similarity(
            a[key][4, text, head, query].float(), b[key][4, text, head, query].float(), dim=0
        )
        for key, texts, length in (("attention.0", 2, 3), ("attention.1", 1, 5))
        for text in range(texts)
        for head in range(2)
        for query in range(1, length)
    ]
    last = features(
        **{
            name: {key: each[4:] if key.startswith("attention") else each for key, each in trace.items()}
            for name, trace in (("a", a), ("b", b), ("base", made(99)))
        }
    )
    assert last["a", "b"]["attention_cosine_late"] == pytest.approx(float(torch.stack(rows).mean()), rel=1e-4)


def test_cka_is_that_of_the_paper_and_does_not_change_with_rotation_and_scale(monkeypatch):
    a, b = made(1), made(2)
    found = features(a=a, b=b)["a", "b"]
    x, y = (each["hidden"].double() - each["hidden"].double().mean(1, keepdim=True) for each in (a, b))
    alike = [
        torch.linalg.norm(y[i].T @ x[i]) ** 2 / (torch.linalg.norm(x[i].T @ x[i]) * torch.linalg.norm(y[i].T @ y[i]))
        for i in range(LAYERS)
    ]
    assert found["cka_all"] == pytest.approx(float(torch.stack(alike).mean()), rel=1e-4)
    rotation = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(5))).Q
    turned_round = b | {"hidden": 3 * b["hidden"] @ rotation + 7}
    again = features(a=a, b=turned_round)["a", "b"]
    for region in ("early", "middle", "late", "all"):
        assert again[f"cka_{region}"] == pytest.approx(found[f"cka_{region}"], rel=1e-4)
        assert again[f"hidden_cosine_{region}"] != pytest.approx(found[f"hidden_cosine_{region}"], rel=1e-2)
    monkeypatch.setattr(trace_likeness, "ALIGNED", 10)
    part = a | {"hidden": a["hidden"][:, ::3]}
    monkeypatch.setattr(trace_likeness, "ALIGNED", 99)
    assert features(a=part, base=part)["a", "a"]["cka_all"] == 1.0


def test_what_models_do_not_have_is_missing_and_the_names_are_the_same():
    bare = {name: each for name, each in made(1, attention=False).items() if name != "hidden"}
    found = features(a=bare, b=bare, base=bare)["a", "b"]
    missing = {name for name, value in found.items() if math.isnan(value)}
    assert tuple(found) == FUNCTIONAL
    assert missing == {name for name in FUNCTIONAL if name.startswith(("hidden", "cka", "attention"))}
    with pytest.raises(ValueError, match="of the same probes"):
        features(a=bare, b=made(1), base=bare)
