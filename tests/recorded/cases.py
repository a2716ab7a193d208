"""What is recorded: searches, recipes and exports. Written out here, so that a table in the product cannot shrink it.

Only keys of the configuration's YAML, names of recipes and formats of exports stand here: what users write.
"""

from __future__ import annotations

from typing import Any

EXPERTS = {"math": "zoo:math", "lingua": "zoo:lingua", "logic": "zoo:logic"}
TASKS = ("zoo_math", "zoo_lingua", "zoo_logic")

GROUND: dict[str, Any] = {
    "models": {"base": "zoo:base", "experts": EXPERTS, "device": "cpu"},
    "tasks": [{"name": name, "search": 24, "test": 4} for name in TASKS],
    "objectives": [{"mean": list(TASKS), "name": "accuracy"}, "sparsity"],
    "constraints": {"sparsity": {"max": 0.9}},
    "search": {"population": 7, "evaluations": 18},
}
"""Every search is this, changed section by section."""

ONE_SHOT = {"scales": [0.4, 0.8], "densities": [0.3, 0.7], "levels": [0.2, 0.5]}
OWN_KINDS = ("likelihood", "exact_match", "multiple_choice")


def _one_shot(name: str, reads: bool = True) -> dict[str, Any]:
    return {"search": {"algorithm": name, **({"one_shot": ONE_SHOT} if reads else {})}}


def _nsga(search: dict[str, Any] | None = None, **sections: Any) -> dict[str, Any]:
    return {"search": {"algorithm": "nsga2", "prescreening": {"factor": 1}, **(search or {})}, **sections}


SEARCHES: dict[str, dict[str, Any]] = {
    # every algorithm
    "nsga2": _nsga(),
    "nsga2 coefficients": _nsga(space={"kind": "coefficients"}),
    "nsga2 pre-screened": {"search": {"algorithm": "nsga2", "evaluations": 28}},
    "nsga3": {"search": {"algorithm": "nsga3", "population": 8}, "objectives": [*TASKS, "sparsity"]},
    "nsga3 coefficients": {
        "search": {"algorithm": "nsga3", "evaluations": 28},
        "space": {"kind": "coefficients"},
        "objectives": [*TASKS, "sparsity"],
    },
    "sae-global": {"search": {"algorithm": "sae-global"}},
    "sae-local": {"search": {"algorithm": "sae-local"}},
    "m2n2": {"search": {"algorithm": "m2n2"}},
    "pso": {"search": {"algorithm": "pso"}},
    "pso merging": {"search": {"algorithm": "pso", "pso": {"flavour": "pso-merging", "patience": 3}}},
    "cmaes": {"search": {"algorithm": "cmaes"}},
    "random": {"search": {"algorithm": "random"}},
    "TPESampler": {"search": {"algorithm": "optuna:TPESampler"}},
    "GPSampler": {"search": {"algorithm": "optuna:GPSampler"}},
    "NSGAIISampler": {"search": {"algorithm": "optuna:NSGAIISampler"}},
    "NSGAIIISampler": {
        "search": {"algorithm": "optuna:NSGAIIISampler", "evaluations": 28},
        "objectives": [*TASKS, "sparsity"],
    },
    "RandomSampler": {"search": {"algorithm": "optuna:RandomSampler"}},
    "QMCSampler": {"search": {"algorithm": "optuna:QMCSampler"}},
    "CmaEsSampler": {"search": {"algorithm": "optuna:CmaEsSampler"}},
    "weighted-average": _one_shot("weighted-average"),
    "task-arithmetic": _one_shot("task-arithmetic"),
    "rankmean": _one_shot("rankmean"),
    "ties": _one_shot("ties"),
    "dare_ties": _one_shot("dare_ties"),
    "slerp": _one_shot("slerp"),
    "single-experts": _one_shot("single-experts"),
    "one-shot": {
        "search": {
            "algorithm": "one-shot",
            "merge": {
                "method": "sce",
                "settings": {"select_topk": [0.5, 1.0], "scale": [0.7, 1.2]},
                "levels": [0.2, 0.5],
            },
        }
    },
    # settings of algorithms
    "nsga2 steady-state": _nsga({"pace": "steady-state"}),
    "nsga2 coefficients steady-state": _nsga({"pace": "steady-state"}, space={"kind": "coefficients"}),
    "nsga2 operators turned": _nsga(
        {
            "operators": {"remerge": 0.5, "stretch": 0.2, "reach": 0.3, "inherit": 0.2, "shape": 0.3, "tilt": 0.8},
            "ablation": {
                "attraction": False,
                "founders": 0.3,
                "zero_aware": False,
                "split": 0.4,
                "prune_before": True,
                "ladder": 2,
            },
        }
    ),
    "sae-local numbers": {
        "search": {
            "algorithm": "sae-local",
            "sae": {"omega": 0.7, "beta": 0.2, "alpha": 0.5, "tau": 2.0, "measure": "hoyer", "matchmaker": False},
        }
    },
    "sae-global l1": {"search": {"algorithm": "sae-global", "sae": {"measure": "l1"}}},
    "TPESampler weights": {
        "search": {"algorithm": "optuna:TPESampler", "weights": {"accuracy": 1.0, "sparsity": 0.3}},
    },
    "pso merging weights": {
        "search": {
            "algorithm": "pso",
            "pso": {"flavour": "pso-merging", "patience": 3},
            "weights": {"accuracy": 1.0, "sparsity": 3.0},
        }
    },
    "another seed": _nsga(study={"seed": 7}),
    # annealing
    "nsga2 adaptive": _nsga({"evaluations": 28}, annealing={"schedule": "adaptive", "high": 0.7}),
    **{
        f"nsga2 {schedule}": _nsga(annealing={"schedule": schedule, "low": 0.1, "high": 0.7, "period": 3})
        for schedule in ("cosine", "sine", "sawtooth", "sae-published")
    },
    # what is asked of a candidate
    "nsga2 racing": _nsga({"evaluations": 28}, evaluation={"racing": {"blocks": 4, "confidence": 0.6, "margin": 0.0}}),
    "sae-local racing": {
        "search": {"algorithm": "sae-local"},
        "evaluation": {"racing": {"blocks": 4, "confidence": 0.6, "margin": 0.0}},
    },
    "nsga2 anchors": _nsga(evaluation={"anchors": 0.5}),
    "own tasks": _nsga(
        tasks=[{"name": kind, "data": f"{kind}.jsonl", "kind": kind, "search": 16, "test": 4} for kind in OWN_KINDS],
        objectives=[{"mean": list(OWN_KINDS), "name": "accuracy"}, "sparsity"],
    ),
    "limits": _nsga(constraints={"sparsity": {"min": 0.1, "max": 0.6}, "zoo_math": {"min": 0.2}}),
    # space and pruning
    "granularity model": _nsga(space={"granularity": "model"}),
    "sparsity fixed": _nsga(space={"kind": "coefficients", "sparsity": 0.4}),
    **{
        f"scope {scope}": _nsga(pruning={"scope": scope})
        for scope in ("group", "global", "row", "2:4", "neurons", "heads")
    },
    "rescale off": _nsga(pruning={"rescale": False}),
    "wanda": _nsga(pruning={"criterion": "wanda", "scope": "row", "calibration": {"tokens": 256, "model": "math"}}),
    "bfloat16": _nsga(models={"dtype": "bfloat16"}),
}
"""Name -> what it changes of `GROUND`."""

NEEDS = {"CmaEsSampler": "cmaes"}
"""Name of a search -> the package without which it is refused."""

ROUNDED = frozenset({"wanda", "own tasks", "nsga2 pre-screened"})
"""Searches whose digests or values hold sums of floats (activation norms, likelihoods), or follow from some (what a
surrogate has learned): processors round them differently. The others were the same with other instructions of the
processor, digest for digest."""

MIXED: dict[str, Any] = {"weights": (0.5, 0.3, 0.4)}
PAIR: dict[str, Any] = {"weights": (0.6, 0.4), "inputs": ("math", "logic")}
THIN: dict[str, Any] = {"density": 0.4, "scale": 0.8}

MERGES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "linear": ("linear", MIXED, {}),
    "linear by group": ("linear", {"by group": True}, {}),
    "linear, bare sum": ("linear", MIXED, {"normalize": False}),
    "slerp": ("slerp", PAIR, {}),
    "nuslerp": ("nuslerp", PAIR, {}),
    "nuslerp relative": ("nuslerp", PAIR, {"relative": True}),
    "multislerp": ("multislerp", MIXED, {}),
    "multislerp relative": ("multislerp", MIXED, {"relative": True}),
    "karcher": ("karcher", MIXED, {}),
    "split_slerp": ("split_slerp", PAIR, {"split": 0.3}),
    "model_stock": ("model_stock", MIXED, {}),
    "task_arithmetic": ("task_arithmetic", MIXED, {"scale": 0.7}),
    "ties": ("ties", MIXED, THIN),
    "dare_linear": ("dare_linear", MIXED, {**THIN, "seed": 3}),
    "dare_ties": ("dare_ties", MIXED, {**THIN, "seed": 3}),
    "della": ("della", MIXED, {**THIN, "seed": 3, "epsilon": 0.2}),
    "della_linear": ("della_linear", MIXED, {**THIN, "seed": 3, "epsilon": 0.2}),
    "breadcrumbs": ("breadcrumbs", MIXED, {**THIN, "gamma": 0.05}),
    "breadcrumbs_ties": ("breadcrumbs_ties", MIXED, {**THIN, "gamma": 0.05}),
    "sce": ("sce", MIXED, {"select_topk": 0.5}),
    "arcee_fusion": ("arcee_fusion", {"weights": (1.0,), "inputs": ("math",)}, {}),
    "nearswap": ("nearswap", {"weights": (1.0,), "inputs": ("math",)}, {"t": 0.01}),
    "ram": ("ram", MIXED, {"epsilon": 0.01}),
    "ramplus_tl": ("ramplus_tl", MIXED, {"epsilon": 0.01}),
    "rankmean": ("rankmean", MIXED, {}),
    "zero_aware": ("zero_aware", MIXED, {"scale": 0.9}),
}
"""Name -> method, weights and inputs (all experts unless said), params."""

PRUNES: dict[str, dict[str, Any]] = {
    "tensor": {},
    "group": {"scope": "group"},
    "global": {"scope": "global"},
    "row": {"scope": "row"},
    "2:4": {"scope": "2:4", "sparsity": 0.5},
    "neurons": {"scope": "neurons"},
    "heads": {"scope": "heads", "sparsity": 0.5},
    "rescaled": {"rescale": True},
    "wanda row": {"criterion": "wanda", "scope": "row"},
    "wanda global": {"criterion": "wanda", "scope": "global"},
}
"""Name -> settings of a pruning of a linear merge; sparsity 0.4 unless said."""

EXPORTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "neurons": (_nsga(pruning={"scope": "neurons"}), ("hf", "packed", "delta", "recipe", "structured")),
    "unstructured": (_nsga(), ("hf", "packed", "delta", "recipe")),
    "wanda": (SEARCHES["wanda"], ("recipe",)),
    "dense bfloat16": (
        {
            "search": {"algorithm": "random", "evaluations": 9},
            "space": {"sparsity": 0.0},
            "models": {"dtype": "bfloat16"},
        },
        ("hf", "packed", "delta", "recipe", "mergekit"),
    ),
}
"""Name -> a search, and the formats that its last complete trial is exported in."""
