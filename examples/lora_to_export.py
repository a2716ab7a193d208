"""From LoRA adapters, as PEFT saves them, to a verified export: ``python examples/lora_to_export.py``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

import sae_moo as sm
from sae_moo import export

MODULES = ("q_proj", "v_proj", "up_proj", "down_proj")
TASKS = {"math": "zoo_math", "lingua": "zoo_lingua", "logic": "zoo_logic"}


def adapter(pool: sm.ExpertPool, name: str, rank: int, folder: Path) -> Path:
    """Write an adapter that is as near as its rank allows to an expert of the zoo, in PEFT's files; yours were trained.

    Each matrix's difference from the base is cut to its largest singular values.
    """
    factors = {}
    for info in pool.tensors:
        module = info.name.removesuffix(".weight")
        if module.endswith(MODULES):
            difference = pool.load(name, info.name).float() - pool.load("base", info.name).float()
            left, sizes, right = torch.linalg.svd(difference, full_matrices=False)
            factors[f"base_model.model.{module}.lora_A.weight"] = right[:rank].contiguous()
            factors[f"base_model.model.{module}.lora_B.weight"] = (left[:, :rank] * sizes[:rank]).contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(factors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": list(MODULES)}
    (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def main(arguments: Sequence[str] | None = None) -> None:
    """Write adapters, search over them, export the knee, verify it in a fresh process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--evaluations", type=int, default=40)
    parser.add_argument("--items", type=int, default=100, help="instances of each task and split")
    options = parser.parse_args(arguments)
    zoo = sm.ExpertPool.open(base="zoo:base", experts={name: f"zoo:{name}" for name in TASKS})
    config = sm.Config.from_dict(
        {
            "study": {"name": "lora"},
            "models": {
                "base": "zoo:base",
                "experts": {name: str(adapter(zoo, name, options.rank, Path("adapters", name))) for name in TASKS},
            },
            "tasks": [{"name": task, "search": options.items, "test": options.items} for task in TASKS.values()],
            "objectives": [{"mean": list(TASKS.values()), "name": "accuracy"}, "sparsity"],
            "search": {"population": 12, "evaluations": options.evaluations},
        }
    )
    run = sm.search(config)
    record, why = run.pick()
    exported = export(run, record, why, "exported-lora", verify=True, tell=print)
    for split, scores in exported.scores.items():
        print(split, {task: round(score.score, 3) for task, score in scores.items()})


if __name__ == "__main__":
    main()
