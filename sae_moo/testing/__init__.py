"""Contracts for what is added from outside: suites that a guest's author runs on a row, in a line each.

In a test of the package ``acme``, which offers a merge method and a pruning criterion::

    from sae_moo.testing import CriterionContract, MergeMethodContract

    class TestSoftmax(MergeMethodContract):
        method = "acme/softmax"
        settings = [{}, {"temperature": 0.5}]

    class TestRelative(CriterionContract):
        criterion = "acme/relative"

The house's own rows pass the same suites. Needs pytest, which nothing else in this package does.
"""

from sae_moo.testing.criteria import CriterionContract
from sae_moo.testing.merging import MergeMethodContract, experts, merged

__all__ = ["CriterionContract", "MergeMethodContract", "experts", "merged"]
