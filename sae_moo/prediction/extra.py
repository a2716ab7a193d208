"""What the extra ``predict`` brings: scikit-learn enters by `estimators`, pandas by `frames`, both on first use."""

from __future__ import annotations

from sae_moo.errors import InputError


def absent(package: str, purpose: str) -> InputError:
    """Return what to raise where a package of the extra is not installed.

    Args:
        package: as pip knows it.
        purpose: what asked for it.
    """
    return InputError(f"{purpose} needs {package}, which is not installed: pip install 'sae-moo[predict]'")
