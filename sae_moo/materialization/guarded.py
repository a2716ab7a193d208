"""Code of guests at work: it may be anybody's, so what it raises ends one evaluation, with its name, not the search."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from sae_moo.errors import SaeMooError, WeightsError, out_of_memory
from sae_moo.recipe.catalogue import Catalogue, Row

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
        Does the work, and raises WeightsError for whatever a guest raises, but for our own errors and for want of
        memory.
    """
    if row.guest is None:
        return work

    @functools.wraps(work)
    def safely(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        try:
            return work(*args, **kwargs)
        except SaeMooError:
            raise
        except Exception as error:  # anybody's code
            if out_of_memory(error):
                raise
            raise WeightsError(
                f"{catalogue.kind} {row.name} ({row.guest}) raised {type(error).__name__}: {error}"
            ) from error

    return safely
