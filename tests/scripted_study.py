"""Studies over the stand-in for models, by real searchers or by scripts."""

from __future__ import annotations

from stand_ins import Landscape

from sae_moo.objectives import Constraint, Sparsity, TaskMean
from sae_moo.searchers.finishing import Finishing
from sae_moo.searchers.ground import Ground
from sae_moo.searchers.nsga import NsgaSearcher
from sae_moo.searchers.searcher import Proposal
from sae_moo.searchers.space import CoefficientSpace, LineageSpace
from sae_moo.study.journal import create_or_load, open_storage
from sae_moo.study.local import LocalExecutor
from sae_moo.study.loop import Study
from sae_moo.study.trials import TrialStorage

OBJECTIVES = (TaskMean("accuracy", ("a", "b")), Sparsity())
LIMITS = (Constraint(Sparsity(), high=0.5),)
GROUND = Ground(("math", "code", "law"), Landscape.prunable)
SPACE = CoefficientSpace(GROUND)
LANDSCAPE = {"fingerprints": Landscape.fingerprints, "groups": Landscape.groups}


class Setup:
    """A study over the stand-in for models; `after` interrupts at the n-th evaluation, before or after it is stored."""

    def __init__(self, path, pace="generational", space=LineageSpace, where=None, searcher=None):
        self.path, self.pace, self.space, self.where = path, pace, space, where
        self.searcher = searcher
        self.landscape = Landscape()
        self.rivals = None
        self.by_generation = False
        self.finish = 0
        self.migration = None

    def storage(self) -> TrialStorage:
        opened = open_storage(self.where or self.path, write=True)
        create_or_load(opened, "s", OBJECTIVES)
        return TrialStorage(opened, "s", OBJECTIVES, LIMITS, Landscape.fingerprints)

    def run(self, evaluations=40, evaluate=None, seed=0, listener=lambda event: None, executor=None):
        storage = self.storage()
        if self.searcher is not None:
            searcher = self.searcher()
        else:
            searcher = NsgaSearcher(self.space(GROUND), OBJECTIVES, LIMITS, population=8, seed=seed, pace=self.pace)
        if executor is None:
            executor = LocalExecutor(evaluate or self.landscape)
        rest = {"evaluations": evaluations, "versions": "v", "listener": listener, "rivals": self.rivals}
        rest |= {"by_generation": self.by_generation, "migration": self.migration}
        finishing = Finishing(self.finish, lambda: "ab" * 32, OBJECTIVES, LIMITS)
        Study(storage, searcher, executor, **LANDSCAPE, **rest, finishing=finishing).run()
        return self.facts()

    def facts(self):
        return facts_of(self.storage().records())


def facts_of(records):
    """What every trial that has ended says of itself."""
    return [
        (
            r.number,
            r.state,
            r.asked,
            r.recipe,
            r.digest,
            r.evaluation,
            dict(r.values),
            r.operator,
            r.generation,
            r.parents,
            r.asked_after,
            r.told,
            r.repeats,
            dict(r.params),
            r.vector,
        )
        for r in records
    ]


def interrupting(landscape, at: int):
    """Evaluate as a landscape does, until so many were evaluated."""

    def evaluate(recipe, rivals=None):
        if len(landscape.evaluated) == at:
            raise KeyboardInterrupt
        return landscape(recipe, rivals)

    return evaluate


class Script:
    """A searcher that asks for given recipes, one after another."""

    def __init__(self, recipes):
        self.recipes, self.told = list(recipes), []

    def ask(self, n):
        return [Proposal(self.recipes.pop(0), operator="script")] if self.recipes else []

    def tell(self, proposal, evaluation):
        self.told.append((proposal.recipe, evaluation))


def scripted(tmp_path, recipes, evaluate, evaluations=None, listener=lambda event: None):
    setup = Setup(tmp_path / "s")
    storage, searcher = setup.storage(), Script(recipes)
    budget = len(recipes) if evaluations is None else evaluations
    rest = {"evaluations": budget, "versions": "v", "listener": listener}
    Study(storage, searcher, LocalExecutor(evaluate), **LANDSCAPE, **rest).run()
    return storage.records(), searcher, setup
