"""Searchers over the stand-in for models, every kind of state that is replayed among them."""

from __future__ import annotations

import numpy as np
from scripted_study import GROUND, LIMITS, OBJECTIVES, SPACE

from sae_moo.searchers.bandit import BanditSearcher, Contextual
from sae_moo.searchers.baselines import OneShotSearcher
from sae_moo.searchers.breeding import Operators
from sae_moo.searchers.evogm import EvogmSearcher
from sae_moo.searchers.generated import GeneratingNsga
from sae_moo.searchers.learning import Evogm, Generator
from sae_moo.searchers.nsga import NsgaSearcher
from sae_moo.searchers.optuna_samplers import OptunaSearcher
from sae_moo.searchers.prescreened import PrescreeningNsga
from sae_moo.searchers.prescreening import Prescreening
from sae_moo.searchers.sae import Sae, SaeSearcher
from sae_moo.searchers.scalar import CovarianceAdaptation, ParticleSwarm, ScalarSearcher
from sae_moo.searchers.schedule import Adaptive
from sae_moo.searchers.space import LineageSpace


def scalar(optimizer, **more):
    return lambda: ScalarSearcher(SPACE, OBJECTIVES, LIMITS, optimizer=optimizer(SPACE, 8, 0.6), name="moved", **more)


SEARCHERS = {
    "nsga2 pre-screened": lambda: PrescreeningNsga(
        LineageSpace(GROUND), OBJECTIVES, LIMITS, prescreening=Prescreening(factor=3), population=8
    ),
    "nsga2, merge methods by credit": lambda: NsgaSearcher(
        LineageSpace(GROUND), OBJECTIVES, LIMITS, settings=Operators(methods=["breadcrumbs"]), population=8
    ),
    "bandit": lambda: BanditSearcher(
        GROUND, OBJECTIVES, LIMITS, settings=Contextual(pairs=10, largest=3, chains=6, levels=[0.3])
    ),
    "sae": lambda: SaeSearcher(GROUND, OBJECTIVES, LIMITS, size=8, local=True),
    "sae by norms": lambda: SaeSearcher(
        GROUND, OBJECTIVES, LIMITS, settings=Sae(measure="hoyer"), size=8, schedule=Adaptive()
    ),
    "m2n2": lambda: SaeSearcher(
        GROUND, OBJECTIVES, LIMITS, settings=Sae(omega=1.0, beta=0.0), size=8, crossover="split-slerp"
    ),
    "adaptive": lambda: NsgaSearcher(LineageSpace(GROUND), OBJECTIVES, LIMITS, population=8, schedule=Adaptive()),
    "swarm": scalar(ParticleSwarm),
    "cma-es": scalar(CovarianceAdaptation),
    "evogm": lambda: EvogmSearcher(
        SPACE, OBJECTIVES, LIMITS, settings=Evogm(steps=3, widths=[8], repeats=False), name="evogm", population=5
    ),
    "generator": lambda: GeneratingNsga(
        LineageSpace(GROUND),
        OBJECTIVES,
        LIMITS,
        generator=Generator(share=0.5, adaptive=True, after=1, steps=3, widths=[8]),
        population=5,
    ),
    "tpe": lambda: OptunaSearcher(SPACE, OBJECTIVES, LIMITS, sampler="TPESampler", population=8),
    "optuna's nsga2": lambda: OptunaSearcher(SPACE, OBJECTIVES, LIMITS, sampler="NSGAIISampler", population=8),
    "one-shot": lambda: OneShotSearcher(
        GROUND,
        OBJECTIVES,
        LIMITS,
        merges=[
            ("task arithmetic", GROUND.task_arithmetic(np.full((GROUND.rows, len(GROUND.experts)), scale)))
            for scale in (0.3, 0.5, 0.8, 1)
        ],
        levels=[0.3, 0.5],
    ),
}
