"""Contracts for what is added from outside: suites that a guest's author runs on a row, in a line each.

In a test of the package ``acme``, which offers a merge method, a pruning criterion and a search algorithm::

    from sae_moo.testing import CriterionContract, MergeMethodContract, SearcherContract

    class TestSoftmax(MergeMethodContract):
        method = "acme/softmax"
        settings = [{}, {"temperature": 0.5}]

    class TestRelative(CriterionContract):
        criterion = "acme/relative"

    class TestAnts(SearcherContract):
        algorithm = "acme/ants"

Task kinds and export formats have suites in `tasks` and `formats`. The house's own rows pass the same suites. They need
pytest, which nothing else in this package does.
"""

from sae_moo.testing.criteria import CriterionContract
from sae_moo.testing.merging import MergeMethodContract, experts, merged
from sae_moo.testing.searchers import SearcherContract

__all__ = ["CriterionContract", "MergeMethodContract", "SearcherContract", "experts", "merged"]
