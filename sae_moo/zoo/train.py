"""Rebuild the zoo: ``python -m sae_moo.zoo.train [--output DIR]``, or train one like it on another architecture.

Trains one base on mostly easy items of all skills, then fine-tunes three experts from it, each on the hard items of one
skill only. The experts differ on purpose in how far they were driven (`EXPERTS`): one scale for all of their task
vectors then suits none of them, which is what a search over merges is for.
"""

from __future__ import annotations

import argparse
import bisect
import itertools
import json
import logging
import math
import random
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from sae_moo.zoo import MODELS, TASKS, held_out
from sae_moo.zoo.architectures import ARCHITECTURES, EMBEDDED
from sae_moo.zoo.batches import Batch, Example, accuracy, answer_logits, collate, encode
from sae_moo.zoo.draws import pick
from sae_moo.zoo.items import HELD_OUT, training_items
from sae_moo.zoo.tokenizer import build, save

log = logging.getLogger(__name__)

SEED = 1
BATCH = 64
WARMUP = 20
LAST_RATE = 0.05
"""Learning rate of the last step, as a share of the peak."""
FROZEN = ("embed_tokens", "embed_in", "wte", "wpe", "norm", "ln_")
"""Parameters that fine-tuning leaves alone, embeddings and norms: tensors whose name contains one of these."""


@dataclass(frozen=True)
class Course:
    """One training: what on, how long, how hard.

    Attributes:
        name: The model that comes out, by which batches are drawn: one of ``MODELS``, or another one with a `seed`.
        diet: Per task its weight in a batch and the share of hard items.
        steps: Optimizer steps.
        rate: Peak learning rate.
        frozen: Parameters left alone: those whose name contains one of these.
        pool: Training items drawn per skill; batches are drawn from them with replacement.
        seed: Which items those are, from 0; None: the name's place in ``MODELS``.
    """

    name: str
    diet: Mapping[str, tuple[float, float]]
    steps: int
    rate: float
    frozen: tuple[str, ...] = ()
    pool: int = 24_000
    seed: int | None = None

    def scaled(self, scale: float) -> Course:
        """Return the course with `scale` times the steps and items, at least one batch of them."""
        return replace(self, steps=max(1, round(self.steps * scale)), pool=max(BATCH, round(self.pool * scale)))


BASE_COURSE = Course(
    "base", {"zoo_math": (1.2, 0.1), "zoo_lingua": (0.5, 0.05), "zoo_logic": (1.2, 0.1)}, steps=1000, rate=1.5e-3
)
# Long and gentle makes a short task vector, brief and hard a long one. That of lingua is by far the longest: whole, it
# ruins the other skills; a third of it costs them little and keeps more than half of lingua's own gain (.38 to .65, of
# .81). That of math is driven hard enough to cost lingua something. So no one scale suits all three.
EXPERTS = (
    Course("math", {"zoo_math": (1.0, 0.85)}, steps=600, rate=7e-4, frozen=FROZEN),
    Course("lingua", {"zoo_lingua": (1.0, 0.9)}, steps=150, rate=4e-3, frozen=FROZEN),
    Course("logic", {"zoo_logic": (1.0, 0.9)}, steps=600, rate=3e-4, frozen=FROZEN),
)


def _batches(tokenizer: Tokenizer, course: Course) -> Iterator[Batch]:
    """Endless training batches of a course; every draw comes from the course's own seed."""
    rng = random.Random(f"{SEED} {course.name}")
    number = MODELS.index(course.name) if course.seed is None else course.seed
    pools: list[tuple[float, list[Example]]] = []
    for task, (weight, hard_share) in course.diet.items():
        seed = 1000 * SEED + 10 * number + TASKS.index(task)
        items = list(itertools.islice(training_items(task, seed, hard_share), course.pool))
        pools.append((weight, encode(tokenizer, items, end=True)))
    ends = list(itertools.accumulate(weight for weight, _ in pools))
    while True:
        chosen = (bisect.bisect_right(ends, rng.random() * ends[-1]) for _ in range(BATCH))
        yield collate([pick(rng, pools[i][1]) for i in chosen])


def rate_at(step: int, steps: int) -> float:
    """Learning rate as a share of the peak: linear warm-up, then half a cosine down to `LAST_RATE`.

    Args:
        step: Step, from 0.
        steps: Steps in all, more than `WARMUP`.

    Returns:
        A share in (0, 1].
    """
    if step < WARMUP:
        return (step + 1) / WARMUP
    cosine = 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (steps - WARMUP)))
    return LAST_RATE + (1 - LAST_RATE) * cosine


def train_(model: PreTrainedModel, tokenizer: Tokenizer, course: Course) -> None:
    """Train a model in place.

    Args:
        model: Changed.
        tokenizer: The zoo's tokenizer.
        course: What on, how long, how hard.
    """
    model.train()
    trained: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not any(part in name for part in course.frozen))
        if parameter.requires_grad:
            trained.append(parameter)
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": 0.01},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=course.rate, betas=(0.9, 0.98))
    started = time.monotonic()
    for step, batch in enumerate(itertools.islice(_batches(tokenizer, course), course.steps)):
        for group in optimizer.param_groups:
            group["lr"] = course.rate * rate_at(step, course.steps)
        logits, wanted, _ = answer_logits(model, batch)
        loss = torch.nn.functional.cross_entropy(logits, wanted)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        if (step + 1) % 100 == 0:
            seconds = time.monotonic() - started
            log.info("%s: step %d of %d, loss %.3f, %.0f s", course.name, step + 1, course.steps, loss.item(), seconds)
    model.requires_grad_(True)


def rounded_(model: PreTrainedModel) -> None:
    """Round the weights to bfloat16 values, still held in float32: what is scored and built upon is what is shipped.

    Args:
        model: Changed.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16().float())


def fresh_model(config: Mapping[str, Any]) -> PreTrainedModel:
    """Make a model with random weights in float32, drawn from torch's global generator.

    Args:
        config: Its ``config.json``, which names the class.

    Returns:
        The model.
    """
    kind = getattr(transformers, config["architectures"][0])
    model: PreTrainedModel = kind(kind.config_class.from_dict(dict(config)))
    return model


def as_read(tokenizer: Tokenizer, config: Mapping[str, Any]) -> Tokenizer:
    """Return a tokenizer as transformers reads it from a model's folder.

    For some architectures it splits texts by rules of its own, whatever the file says (Qwen2: it gives a number and the
    blank before it a token each). Who is to be asked so should be trained so.

    Args:
        tokenizer: What is written.
        config: The model's ``config.json``.

    Returns:
        What encodes the texts that the model reads.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _describe(tokenizer, folder, config)
        read: Tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True).backend_tokenizer
    return read


def _describe(tokenizer: Tokenizer, folder: Path, config: Mapping[str, Any]) -> None:
    """Write all of a model's folder but the weights."""
    (folder / "config.json").write_text(json.dumps(dict(config), indent=2) + "\n", encoding="utf-8")
    save(tokenizer, folder)


def write_checkpoint(model: PreTrainedModel, tokenizer: Tokenizer, folder: Path, config: Mapping[str, Any]) -> None:
    """Write a model folder: config, bfloat16 weights (tied ones once) and tokenizer.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        folder: Made if missing; files of the same names are replaced.
        config: The model's ``config.json``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Under the names that checkpoints have: transformers renames some heads as it loads them.
    saved = revert_weight_conversion(model, dict(model.named_parameters()))
    weights = {name: p.detach().bfloat16().contiguous() for name, p in sorted(saved.items())}
    path = folder / "model.safetensors"
    save_file(weights, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors makes it readable by its owner alone
    _describe(tokenizer, folder, config)


def rebuild(
    output: Path,
    architecture: str = EMBEDDED,
    steps_scale: float = 1.0,
    items: int = HELD_OUT,
    experts: Sequence[Course] = EXPERTS,
) -> dict[str, dict[str, float]]:
    """Train and write all models of the zoo, or of one like it on another architecture.

    Seeds torch's global generator for the first weights, inside a fork that gives it back as it was.

    Args:
        output: Folder that gets one folder per model.
        architecture: One of `ARCHITECTURES`.
        steps_scale: Steps, and items to draw batches from, as a multiple of those of the courses; above 0.
        items: Held-out items per task to score on, at least 1.
        experts: What is fine-tuned from the base; none: the base alone.

    Returns:
        Per model, per task: accuracy on the held-out items.
    """
    texts = (
        prompt + answer for task in TASKS for prompt, answer in itertools.islice(training_items(task, 99, 0.5), 4000)
    )
    config = ARCHITECTURES[architecture]
    tokenizer = build(texts)
    read = as_read(tokenizer, config)
    asked = {
        task: encode(read, [(str(i["prompt"]), str(i["answer"])) for i in held_out(task, items)], end=False)
        for task in TASKS
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = fresh_model(config)
    scores: dict[str, dict[str, float]] = {}
    start: dict[str, torch.Tensor] = {}
    for course in (BASE_COURSE, *experts):
        if start:
            model.load_state_dict(start)
        train_(model, read, course.scaled(steps_scale))
        rounded_(model)
        if not start:
            start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        write_checkpoint(model, tokenizer, output / course.name, config)
        scores[course.name] = {task: accuracy(model, rows) for task, rows in asked.items()}
        log.info("%s: %s", course.name, ", ".join(f"{task} {score:.3f}" for task, score in scores[course.name].items()))
    return scores


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        arguments: Words after the command; None: those of the process.
    """
    parser = argparse.ArgumentParser(description="Rebuild the zoo's tokenizer, base and experts (minutes on a CPU).")
    parser.add_argument("--output", type=Path, help="folder for the four model folders; default: the embedded zoo's")
    parser.add_argument("--architecture", choices=list(ARCHITECTURES), default=EMBEDDED)
    parser.add_argument("--steps-scale", type=float, default=1.0, help="train for this multiple of the usual steps")
    parser.add_argument("--items", type=int, default=HELD_OUT, help="held-out items per task to score on")
    options = parser.parse_args(arguments)
    if not 0 < options.steps_scale < math.inf:
        parser.error(f"--steps-scale: expected a number above 0, got {options.steps_scale}")
    if options.items < 1:
        parser.error(f"--items: expected at least 1, got {options.items}")
    if options.output is None and (options.architecture, options.steps_scale) != (EMBEDDED, 1.0):
        parser.error("--output: name a folder; only the embedded zoo, trained in full, goes where it is shipped")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # Sums are split by thread, so the last bits depend on their number; a second gains little on so small a model.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    output = options.output or Path(__file__).parent / "checkpoints"
    scores = rebuild(output, options.architecture, options.steps_scale, options.items)
    log.info("%-8s %s", "model", " ".join(f"{task:>10}" for task in TASKS))
    for name, by_task in scores.items():
        log.info("%-8s %s", name, " ".join(f"{by_task[task]:10.3f}" for task in TASKS))


if __name__ == "__main__":
    main()
