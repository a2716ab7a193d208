"""Numbers that order the points of a front, by pymoo: nearness to a wish, pseudo-weights. Larger values are better."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from pymoo.decomposition.aasf import AASF

from sae_moo.objectives import flipped

Array = NDArray[np.float64]
AUGMENTATION = 1e-6
"""Share of the sum of all shortfalls: it only decides between points whose largest shortfall is the same."""


def achievement(values: Array, wish: Array) -> Array:
    """Return how far points fall short of a wish: an augmented Chebyshev achievement function (Wierzbicki 1980).

    The largest shortfall of any quantity counts, each scaled to the range of the points, plus `AUGMENTATION` times the
    sum of all.

    Args:
        values: shape (points, quantities).
        wish: shape (quantities,); may be out of reach, or within.

    Returns:
        Shape (points,); smaller is nearer, and below 0 is beyond the wish in every quantity.
    """
    function = AASF(rho=AUGMENTATION)
    found: Array = function.do(flipped(values), scale(values), _type="many_to_one", utopian_point=flipped(wish))
    return found


def pseudo_weights(values: Array) -> Array:
    """Return the weights that each point of a front stands for (Deb 2001, section 8.5.1).

    A point's weight of a quantity is its distance from the worst value on the front, scaled to the front's range, as a
    share of the sum of these over all quantities.

    Args:
        values: of a whole front, shape (points, quantities).

    Returns:
        The same shape; rows sum to 1. A quantity that is the same everywhere has weight 0, unless all are: then every
        weight is the same.
    """
    with warnings.catch_warnings():
        # pymoo 0.6.2 imports a deprecated name of SciPy there
        warnings.filterwarnings("ignore", message=".*scipy.spatial.ckdtree", category=DeprecationWarning)
        from pymoo.mcdm.pseudo_weights import PseudoWeights
    varying = np.ptp(values, axis=0) > 0
    if varying.sum() < 2:
        shares = np.where(varying.any(), varying, True)
        return np.tile(shares / shares.sum(), (len(values), 1))
    found = np.zeros(values.shape)
    weigh = PseudoWeights(np.zeros(varying.sum()))
    _, found[:, varying] = weigh.do(flipped(values[:, varying]), return_pseudo_weights=True)
    return found


def scale(values: Array) -> Array:
    """Return the range of each quantity over the points, shape (quantities,); 1 where all are the same."""
    span = np.ptp(values, axis=0)
    return np.where(span > 0, span, 1.0)
