"""LinUCB as Li et al. 2010 have it: held against their coefficients."""

from __future__ import annotations

import numpy as np
import pytest

from sae_moo.searchers.linucb import LinUcb

RNG = np.random.default_rng(0)
KINDS = [0, 1, 0, 2, 1, 0]
CONTEXTS = RNG.normal(size=(6, 3))
REWARDS = RNG.normal(size=6)
ASKED = RNG.normal(size=(4, 3))


def learned(**settings):
    model = LinUcb(**settings)
    for kind, context, reward in zip(KINDS, CONTEXTS, REWARDS, strict=True):
        model.learn(kind, context, reward)
    return model


def coefficients(contexts, rewards, asked, ridge):
    """Li et al.'s algorithm 1: A = ridge I + X'X, theta = A^-1 X'r, width = sqrt(x' A^-1 x)."""
    inverse = np.linalg.inv(ridge * np.eye(contexts.shape[1]) + contexts.T @ contexts)
    return asked @ inverse @ contexts.T @ rewards, np.sqrt(np.einsum("ij,jk,ik->i", asked, inverse, asked))


@pytest.mark.parametrize("kind", [0, 1, 2, 3])
def test_nothing_shared_is_a_model_for_each_kind(kind):
    mine = [i for i, each in enumerate(KINDS) if each == kind]
    found = learned(ridge=0.7, shared=0.0).bounds([kind] * 4, ASKED)
    np.testing.assert_allclose(found, coefficients(CONTEXTS[mine], REWARDS[mine], ASKED, 0.7), atol=1e-12)


def test_what_is_shared_is_coefficients_for_all_beside_those_of_each_kind():
    def spread(kinds, contexts):
        own = [np.where(kind == each, np.sqrt(0.6), 0.0) for kind in kinds for each in range(3)]
        return np.hstack(
            [np.sqrt(0.4) * contexts, *(np.array(own).reshape(len(kinds), 3)[:, [k]] * contexts for k in range(3))]
        )

    kinds = [0, 1, 2, 1]
    expected = coefficients(spread(KINDS, CONTEXTS), REWARDS, spread(kinds, ASKED), 0.7)
    np.testing.assert_allclose(learned(ridge=0.7, shared=0.4).bounds(kinds, ASKED), expected, atol=1e-12)


def test_before_anything_is_learned_nothing_is_expected_and_the_prior_is_the_width():
    means, widths = LinUcb(ridge=4.0).bounds([0, 1], np.array([[3.0, 4.0], [0.0, 0.0]]))
    assert means.tolist() == [0.0, 0.0]
    assert widths.tolist() == [2.5, 0.0]


def test_what_was_seen_often_is_certain():
    model = LinUcb(ridge=1.0)
    for _ in range(200):
        model.learn(0, np.array([1.0, 0.0]), 0.5)
    means, widths = model.bounds([0, 0], np.eye(2))
    assert means[0] == pytest.approx(0.5, abs=0.01)
    assert widths[0] < 0.1 < widths[1]


@pytest.mark.parametrize(("settings", "words"), [({"ridge": 0.0}, "ridge"), ({"shared": 1.0}, "shared")])
def test_what_is_out_of_range_is_refused(settings, words):
    with pytest.raises(ValueError, match=f"{words}: expected"):
        LinUcb(**settings)
