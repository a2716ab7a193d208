"""Packages that come in on first use: scikit-learn by `estimators`, pandas, of the extra ``predict``, by `frames`."""

from __future__ import annotations

from sae_moo.errors import InputError


def absent(package: str, purpose: str) -> InputError:
    """Return what to raise where such a package is not installed.

    Args:
        package: as pip knows it.
        purpose: what asked for it.
    """
    return InputError(f"{purpose} needs {package}, which is not installed: pip install {package}")
