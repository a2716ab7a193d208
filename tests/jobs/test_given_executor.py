"""A search by what evaluates for it, given by its caller."""

from __future__ import annotations

from sae_moo.config.document import Config
from sae_moo.jobs.search import search
from sae_moo.objectives import Evaluation
from sae_moo.study.local import LocalExecutor


class Known(LocalExecutor):
    """Knows what every candidate scores, and whether it was closed."""

    def __init__(self, bench):
        super().__init__(self.evaluation)
        self.groups, self.closed = len(bench.pool.groups), 0

    def evaluation(self, recipe, _rivals):
        return Evaluation(recipe, {"zoo_math": (1.0, 0.0)}, 0.25, (0.25,) * self.groups)

    def close(self):
        self.closed += 1


def test_a_search_takes_what_evaluates_for_it(tmp_path):
    config = Config.from_dict(
        {
            "study": {"name": "s"},
            "models": {"base": "zoo:base", "experts": {"math": "zoo:math", "lingua": "zoo:lingua"}},
            "tasks": [{"name": "zoo_math", "search": 2, "test": 2}],
            "objectives": ["zoo_math", "sparsity"],
            "search": {"population": 4, "evaluations": 6},
        }
    )
    made = []

    def executor(bench):
        made.append(Known(bench))
        return made[-1]

    trials = search(config, root=tmp_path, executor=executor).trials()
    assert [trial.values for trial in trials] == [{"zoo_math": 0.5, "sparsity": 0.25}] * 6
    assert [each.closed for each in made] == [1]
