"""Rebuild a catalogue, ten experts of one base: ``python studies/catalogue/rebuild.py [--architecture NAME]``.

The base is the embedded zoo's, or one of another architecture, which is trained first as the zoo's was. Each expert is
fine-tuned by the zoo's trainer on items of one skill or two. They differ in skills, shares of hard items, steps, learning
rates and seeds, as checkpoints do that one finds: some are good, some pay with other skills, one learned little, one is
ruined.

One thread and seeds make the same bits on the same machine and release of torch.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from sae_moo.zoo import TASKS, checkpoint, held_out
from sae_moo.zoo.architectures import ARCHITECTURES, EMBEDDED
from sae_moo.zoo.batches import accuracy, encode
from sae_moo.zoo.train import FROZEN, Course, as_read, rounded_, train_, write_checkpoint
from sae_moo.zoo.train import rebuild as rebuild_zoo

log = logging.getLogger(__name__)

MATH, LINGUA, LOGIC = TASKS


def _course(seed: int, name: str, diet: dict[str, tuple[float, float]], steps: int, rate: float) -> Course:
    return Course(name, diet, steps, rate, FROZEN, seed=seed)


# Of each: the share of every skill in its batches with that skill's share of hard items, steps, peak learning rate. Seeds
# go on after those of the zoo's own four models.
COURSES = (
    _course(10, "math_long", {MATH: (1.0, 0.85)}, 400, 7e-4),
    _course(11, "math_brief", {MATH: (1.0, 0.85)}, 150, 2e-3),
    _course(12, "math_easy", {MATH: (1.0, 0.3)}, 200, 5e-4),  # on items that the base can do: learns little
    _course(13, "lingua_brief", {LINGUA: (1.0, 0.9)}, 150, 4e-3),
    _course(14, "lingua_long", {LINGUA: (1.0, 0.9)}, 300, 1.5e-3),
    _course(15, "logic_long", {LOGIC: (1.0, 0.9)}, 400, 3e-4),
    _course(16, "logic_brief", {LOGIC: (1.0, 0.9)}, 150, 2e-3),
    _course(17, "math_logic", {MATH: (1.0, 0.85), LOGIC: (1.0, 0.9)}, 300, 5e-4),
    _course(18, "lingua_logic", {LINGUA: (1.0, 0.9), LOGIC: (1.0, 0.9)}, 250, 1e-3),
    _course(19, "math_hot", {MATH: (1.0, 0.85)}, 100, 4e-3),  # driven too far: ruins the other skills
)


def folder_of(architecture: str) -> Path:
    """Return where the catalogue of an architecture is built unless told otherwise."""
    return Path(__file__).with_name("checkpoints" if architecture == EMBEDDED else f"checkpoints-{architecture}")


def base_of(architecture: str, output: Path, items: int, scale: float = 1.0) -> Path:
    """Return the base's folder: the embedded one, or `output`'s own, trained by the zoo's course if it is not there."""
    if architecture == EMBEDDED:
        return checkpoint("base")
    if not (output / "base" / "tokenizer_config.json").exists():  # what is written last
        rebuild_zoo(output, architecture, scale, items, experts=())
    return output / "base"


def rebuild(
    base: Path, courses: Sequence[Course], output: Path, items: int, scale: float = 1.0
) -> dict[str, dict[str, float]]:
    """Train and write experts of one base.

    Args:
        base: folder of the zoo's base, or of one like it.
        courses: what each expert is trained by.
        output: folder that gets one folder for each.
        items: held-out items of each task to score on, at least 1.
        scale: steps, and items to draw batches from, as a multiple of the courses'; above 0.

    Returns:
        Of each, and of the base before them, accuracy on the held-out items of each task.
    """
    config = json.loads((base / "config.json").read_text("utf-8"))
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    read = as_read(tokenizer, config)
    asked = {
        task: encode(read, [(str(i["prompt"]), str(i["answer"])) for i in held_out(task, items)], end=False)
        for task in TASKS
    }
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    scores = {"base": {task: accuracy(model, rows) for task, rows in asked.items()}}
    for course in courses:
        model.load_state_dict(start)
        train_(model, read, course.scaled(scale))
        rounded_(model)
        write_checkpoint(model, tokenizer, output / course.name, config)
        scores[course.name] = {task: accuracy(model, rows) for task, rows in asked.items()}
        log.info("%s: %s", course.name, scores[course.name])
    return scores


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Rebuild a catalogue of ten experts (minutes on a CPU).")
    parser.add_argument("--architecture", choices=list(ARCHITECTURES), default=EMBEDDED)
    parser.add_argument("--output", type=Path, help="folder for the model folders; default: beside this script")
    parser.add_argument("--only", nargs="+", choices=[course.name for course in COURSES], help="these experts alone")
    parser.add_argument("--steps-scale", type=float, default=1.0, help="train for this multiple of the steps")
    parser.add_argument("--items", type=int, default=1000, help="held-out items of each task to score on")
    options = parser.parse_args(arguments)
    if not options.steps_scale > 0 or options.items < 1:
        parser.error("--steps-scale and --items: expected numbers above 0")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)  # sums are split by thread: their last bits depend on how many there are
    torch.use_deterministic_algorithms(True)
    courses = [course for course in COURSES if not options.only or course.name in options.only]
    output = options.output or folder_of(options.architecture)
    base = base_of(options.architecture, output, options.items, options.steps_scale)
    scores = rebuild(base, courses, output, options.items, options.steps_scale)
    print("| expert | " + " | ".join(TASKS) + " | mean |\n| --- |" + " --- |" * (len(TASKS) + 1))
    for name, row in scores.items():
        values = [*row.values(), sum(row.values()) / len(row)]
        print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in values) + " |")


if __name__ == "__main__":
    main()
