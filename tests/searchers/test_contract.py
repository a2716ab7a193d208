"""What every search algorithm promises: each row of the catalogue, as it comes, and in the forms that it takes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sae_moo.objectives import Sparsity, TaskMean
from sae_moo.prediction.regressions import TREES
from sae_moo.searchers.algorithms import ALGORITHMS
from sae_moo.searchers.schedule import Adaptive, Schedule
from sae_moo.testing.searchers import GROUND, SearcherContract

THREE = (TaskMean("a", ("a",)), TaskMean("b", ("b",)), Sparsity())
BOTH = {"accuracy": 1.0, "sparsity": 0.5}
SLOW = ("optuna:GPSampler",)  # a second a candidate: few candidates, of few numbers each
SCREENED = ("nsga2",)  # by default; a form is of something else unless it says so
LONG = ("optuna:TPESampler",)  # what a candidate takes grows with those before it
SMALL = {"steps": 20, "widths": [32], "rate": 3e-3}  # networks that learn something in no time
LEARNED = {"evogm": {"evogm": SMALL}}
KNOWN = 1 + len(GROUND.experts)  # a round begins at models that are known


@pytest.mark.parametrize("algorithm", ALGORITHMS)
class TestEveryAlgorithm(SearcherContract):
    @pytest.fixture(autouse=True)
    def chosen(self, algorithm, monkeypatch):
        monkeypatch.setitem(TREES, "n_estimators", 5)
        self.algorithm = algorithm
        if algorithm in SLOW:
            self.evaluations, self.population = 11, 5  # it draws its first ten
            self.changes = {"ground": replace(GROUND, granularity="model")}
        if algorithm in LONG:
            self.evaluations = 30
        if algorithm in LEARNED:
            self.settings, self.repeats = LEARNED[algorithm], KNOWN


FORMS = {
    "nsga2, one ratio": ("nsga2", {}, {"ground": replace(GROUND, granularity="model")}),
    "nsga2, global scope": ("nsga2", {}, {"ground": replace(GROUND, scope="global")}),
    "nsga2, whole neurons": ("nsga2", {}, {"ground": replace(GROUND, scope="neurons")}),
    "nsga2, a pattern": ("nsga2", {}, {"ground": replace(GROUND, scope="2:4")}),
    "nsga2 over coefficients, whole heads": (
        "nsga2",
        {},
        {"space": "coefficients", "ground": replace(GROUND, scope="heads")},
    ),
    "nsga2, steady-state": ("nsga2", {}, {"pace": "steady-state"}),
    "nsga2 of pruned weights": ("nsga2", {"operators": {"remerge": 0.0}}, {}),
    "nsga2, all that is off by default": (
        "nsga2",
        {
            "operators": {"remerge": 0.5},
            "ablation": {"founders": 0.2, "split": 0.3, "prune_before": True, "zero_aware": False, "attraction": False},
        },
        {},
    ),
    "nsga2, adaptive": ("nsga2", {}, {"schedule": Adaptive()}),
    "nsga2, cosine": ("nsga2", {}, {"schedule": Schedule(schedule="cosine", period=2)}),
    "nsga2, merge methods by credit": ("nsga2", {"operators": {"methods": ["dare_linear", "breadcrumbs_ties"]}}, {}),
    "nsga3 of three": ("nsga3", {}, {"objectives": THREE}),
    "nsga3 of three, steady-state": ("nsga3", {}, {"objectives": THREE, "pace": "steady-state"}),
    "nsga2 over coefficients": ("nsga2", {}, {"space": "coefficients"}),
    "nsga3 over coefficients": ("nsga3", {}, {"space": "coefficients", "objectives": THREE}),
    "nsga2 over coefficients, steady-state": ("nsga2", {}, {"space": "coefficients", "pace": "steady-state"}),
    "nsga2 with a generator": ("nsga2", {"generator": {**SMALL, "share": 0.5, "adaptive": True, "after": 1}}, {}),
    "nsga2 over coefficients with a generator": (
        "nsga2",
        {"generator": {**SMALL, "share": 0.5, "mode": "single", "after": 1}},
        {"space": "coefficients", "ground": replace(GROUND, granularity="model")},
    ),
    "nsga3 with a generator, steady-state": (
        "nsga3",
        {"generator": {**SMALL, "share": 0.5, "adaptive": True}},
        {"objectives": THREE, "pace": "steady-state", "space": "coefficients"},
    ),
    "nsga3 of three, pre-screened, whole neurons": (
        "nsga3",
        {"prescreening": {"factor": 2, "after": 1}},
        {"objectives": THREE, "ground": replace(GROUND, scope="neurons", granularity="model")},
    ),
    "sae by norms, no matchmaker": ("sae-local", {"sae": {"measure": "hoyer", "matchmaker": False}}, {}),
    "sae, adaptive": ("sae-global", {}, {"schedule": Adaptive(high=0.4)}),
    "model swarms of two": ("pso", {}, {"weights": BOTH}),
    "model swarms, one sparsity": ("pso", {}, {"sparsity": 0.25}),
    "pso merging": ("pso", {"pso": {"flavour": "pso-merging"}}, {}),
    "evogm, all that is off by default": (
        "evogm",
        {
            "evogm": {
                **SMALL,
                "mode": "single",
                "target": "nearest",
                "retrain": "iteration",
                "selection": "front",
                "repeats": False,
                "collapse": 1.0,
            }
        },
        {},
    ),
    "cma-es of two": ("cmaes", {}, {"weights": BOTH}),
    "one-shot of a method that draws": (
        "one-shot",
        {"merge": {"method": "dare_linear", "settings": {"density": [0.5]}}},
        {},
    ),
    "tpe, one number": ("optuna:TPESampler", {}, {"weights": BOTH}),
}


@pytest.mark.parametrize("form", FORMS)
class TestEveryForm(SearcherContract):
    @pytest.fixture(autouse=True)
    def chosen(self, form, monkeypatch):
        monkeypatch.setitem(TREES, "n_estimators", 5)
        self.algorithm, self.settings, self.changes = FORMS[form]
        if "prescreening" in self.settings:
            self.evaluations, self.population = 24, 8  # regressions take tens of milliseconds
        elif self.algorithm in SCREENED:
            self.settings = {"prescreening": {"factor": 1}, **self.settings}
