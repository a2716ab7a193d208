"""Code of guests at work: it may be anybody's, so what it raises ends one evaluation, with its name, not the search."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from sae_moo.errors import WeightsError
from sae_moo.recipe.catalogue import Catalogue, Row, blamed

Given = ParamSpec("Given")
Result = TypeVar("Result")
R = TypeVar("R", bound=Row)


def guarded(catalogue: Catalogue[R], row: R, work: Callable[Given, Result]) -> Callable[Given, Result]:
    """Return a function that does the work of a row; that of the house's is returned as it is.

    Args:
        catalogue: of the row.
        row: whose code is called.
        work: calls it.

    Returns:
        Does the work, and raises WeightsError for whatever a guest raises; see `blamed`.
    """
    if row.guest is None:
        return work

    @functools.wraps(work)
    def safely(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        with blamed(row, f"{catalogue.kind} {row.name}", WeightsError):
            return work(*args, **kwargs)

    return safely
