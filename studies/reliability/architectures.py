"""Every architecture that transformers builds as a causal LM, tiny and random: what this library makes of it.

    python studies/reliability/architectures.py                        # all of them, a line each, and a table
    python studies/reliability/architectures.py llama mamba lfm2       # these
    python studies/reliability/architectures.py --output rows.jsonl    # also a JSON object a line, for other uses

A step is one function: from what the steps before it left to what it found, or an exception that says what is wrong.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from small_models import POSITIONS, kinds, small_model

import sae_moo as sm
from sae_moo import zoo
from sae_moo.deploy.surroundings import recipe_document
from sae_moo.errors import SaeMooError
from sae_moo.evaluate.batches import Batches
from sae_moo.evaluate.scorer import Scorer
from sae_moo.evaluate.task import Answer, Prompt, Request
from sae_moo.evaluate.tasks import Item, ItemTask
from sae_moo.evaluate.writing import TransformersWriter
from sae_moo.experts.live import load_model

SINGLE = 1e-3
"""The largest difference of a log probability in float32."""
CLOSE = 1e-4
"""Two tokens whose logits are so close in float32 are equally likely."""
SHARES = {"a": 0.25, "b": 0.75}
"""What is merged, and how much of each."""
WRITTEN = 6
"""Tokens to write."""


class Wrong(Exception):
    """A step gave something else than plain passes give."""


@dataclass(slots=True)
class Subject:
    """An architecture on its way through the steps.

    Args:
        kind: its name in transformers.
        model: in float32, with weights that bfloat16 can hold.
        narrow: the same in bfloat16.
        exact: what plain passes in float32 answer to the requests of all tasks.
        found: step -> what it found, for people to read.
        folder: where its models lie; removed in the end.
        pool, recipe, merged: its models, what is made of them, and that as a live model.
    """

    kind: str
    model: Any = None
    narrow: Any = None
    exact: list[Answer] = field(default_factory=list)
    found: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    pool: Any = None
    recipe: Any = None
    merged: Any = None


def build(subject: Subject) -> str:
    """Build the model from a tiny configuration."""
    subject.narrow = small_model(subject.kind, torch.bfloat16)
    subject.model = small_model(subject.kind, torch.bfloat16).float()
    with torch.inference_mode():
        logits = subject.model(input_ids=torch.arange(3, 43)[None], use_cache=False).logits
    if logits.shape[:2] != (1, 40) or not bool(torch.isfinite(logits.amax())):
        raise ValueError(f"no language model by itself: logits of shape {tuple(logits.shape)} for 40 tokens")
    subject.exact = [_plainly(subject.model, request) for request in _requests()]
    return type(subject.model).__name__


def score(subject: Subject) -> str:
    """Hold the scores of three kinds of tasks against plain passes in float32."""
    tasks, requests, plain = _tasks(), _requests(), subject.exact
    batches = Batches(requests)
    answers = batches.score(subject.model)
    apart = _apart(answers, plain)
    if apart > SINGLE:
        raise Wrong(f"log probabilities differ by {apart:.2g} in float32, read as {batches.reading}")
    scorer, start = Scorer(tasks), 0
    ours = scorer.score(subject.model, "search")
    for task in tasks:
        own = plain[start : start + len(task.requests("search"))]
        start += len(own)
        differing = sum(abs(ours[task.name] - task.score("search", own)) > SINGLE)
        if differing:
            raise Wrong(f"{differing} scores of {task.kind} differ in float32")
    assert batches.reading is not None
    return f"{batches.reading.layout.name.lower()}, {batches.reading.head.name.lower()}, {apart:.0e}"


def score_narrow(subject: Subject) -> str:
    """Hold log probabilities in bfloat16 against the error that plain passes in bfloat16 have themselves."""
    requests, exact = _requests(), subject.exact
    try:
        plain = [_plainly(subject.narrow, request) for request in requests]
    except RuntimeError as error:
        return f"not by transformers either: {error}"
    batches = Batches(requests)
    answers = batches.score(subject.narrow)
    beside = [_plainly(subject.narrow, request, copies=3) for request in requests]  # what another batch shape does
    own = [max(pair) for pair in zip(_errors(plain, exact), _errors(beside, exact), strict=True)]
    ours = _errors(answers, exact)
    if max(ours) > 2 * max(own) + SINGLE or sum(ours) > 1.5 * sum(own) + SINGLE * len(ours):
        raise Wrong(
            f"log probabilities in bfloat16 err by up to {max(ours):.2g}, mean {sum(ours) / len(ours):.2g}, plain "
            f"passes by {max(own):.2g}, {sum(own) / len(own):.2g}; read as {batches.reading}"
        )
    return f"{sum(ours) / len(ours):.0e} of {sum(own) / len(own):.0e}"


def write(subject: Subject) -> str:
    """Hold greedy texts against the most likely token of plain passes, one after another."""
    tokenizer, prompts = _tokenizer(), _prompts()
    writer = TransformersWriter(prompts, tokenizer)
    for prompt, text in zip(prompts, writer.write(subject.model), strict=True):
        texts = _continuations(subject.model, tokenizer, prompt)
        if text not in texts:
            raise Wrong(f"wrote {text!r} where plain passes write {sorted(texts)!r}")
    return writer.way.name.lower()


def merge(subject: Subject) -> str:
    """Open a base and two models of it, merge them into a live model, and hold every weight against the sum."""
    root = subject.folder = Path(tempfile.mkdtemp())
    random = torch.Generator().manual_seed(0)
    states = {}
    for name in ("base", *SHARES):
        model = small_model(subject.kind, torch.float32)
        own = {tensor.data_ptr(): tensor for tensor in model.state_dict().values() if tensor.is_floating_point()}
        for tensor in own.values():
            tensor.add_(torch.randn(tensor.shape, generator=random) * 0.01)
        model.save_pretrained(root / name)
        states[name] = load_model(root / name, torch.float32, "cpu").state_dict()
    subject.pool = sm.ExpertPool.open(str(root / "base"), {name: str(root / name) for name in SHARES})
    subject.recipe = sm.Cast(sm.Merge("linear", tuple(map(sm.Expert, SHARES)), tuple(SHARES.values())), "float32")
    subject.merged = subject.pool.live_model(torch.float32)
    sm.materialize(subject.recipe, subject.pool, subject.merged)
    apart = {
        name: float((tensor - sum(share * states[model][name] for model, share in SHARES.items())).abs().max())
        for name, tensor in subject.merged.state_dict().items()
        if tensor.is_floating_point() and tensor.numel()
    }
    worst = max(apart, key=lambda name: apart[name])
    if apart[worst] > 1e-5:
        raise Wrong(f"{worst} is {apart[worst]:.2g} apart from the sum of the models' weights")
    return f"{len(subject.pool.tensors)} tensors in {len(subject.pool.groups)} groups"


def export(subject: Subject) -> str:
    """Write the merge as the command does; loaded by transformers, it is the live model bit for bit."""
    if subject.merged is None:
        raise ValueError("was not merged")
    file, output = subject.folder / "recipe.json", subject.folder / "merged"
    file.write_text(json.dumps(recipe_document(subject.recipe, subject.pool)))
    sm.merge(file, output)
    again = load_model(output, torch.float32, "cpu").state_dict()
    odd = [name for name, tensor in subject.merged.state_dict().items() if not torch.equal(tensor, again[name])]
    if odd:
        raise Wrong(f"{odd[0]} is another when it is loaded again")
    return f"{sum(file.stat().st_size for file in output.glob('*.safetensors')):,} bytes"


STEPS: Mapping[str, Callable[[Subject], str]] = {
    "built": build,
    "scored": score,
    "scored in bfloat16": score_narrow,
    "written": write,
    "merged": merge,
    "exported": export,
}
"""Name, as a past participle -> the step; of those after `built` only `exported` needs another, `merged`."""


@cache
def _tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(zoo.checkpoint("base"))


def _texts() -> list[str]:
    """Return prompts of 5 to about 100 tokens."""
    lines = [item["prompt"] for name in zoo.TASKS for item in islice(zoo.held_out(name), 4)]
    return [*lines, *("\n".join(lines[i : i + 5]) + "\n" + lines[i + 6] for i in (0, 5))]


@cache
def _tasks() -> list[ItemTask]:
    texts = _texts()
    words = [" seven", " Bob has 3", " 12", " eggs and a hat"]
    kinds = {
        "likelihood": [Item(text, (words[i % 4],)) for i, text in enumerate(texts)],
        "exact_match": [Item(text, (words[(i + 1) % 4],)) for i, text in enumerate(texts[::2])],
        "multiple_choice": [Item(text, tuple(words), i % 4) for i, text in enumerate(texts[1::3])],
    }
    tokenizer = _tokenizer()
    return [
        ItemTask(kind, kind, {"search": items, "test": ()}, tokenizer, POSITIONS - 16) for kind, items in kinds.items()
    ]


def _requests() -> list[Request]:
    return [request for task in _tasks() for request in task.requests("search") if isinstance(request, Request)]


@cache
def _prompts() -> list[Prompt]:
    tokenizer = _tokenizer()
    return [
        Prompt(tuple(tokenizer(text, add_special_tokens=False).input_ids), WRITTEN - i % 3, ("\n",) if i % 2 else ())
        for i, text in enumerate(_texts()[::3])
    ]


@torch.inference_mode()
def _plainly(model: Any, request: Request, copies: int = 1) -> Answer:
    """Return the answer to a request alone, in the most obvious way."""
    tokens = [*request.context, *request.continuation]
    tokens = tokens if request.ends else tokens[:-1]  # bidirectional models would see the last token
    logits = model(input_ids=torch.tensor([tokens] * copies), use_cache=False).logits[0].float()
    logprobs, first = logits.log_softmax(-1), len(request.context) - 1
    asked = list(enumerate(request.continuation, start=first))
    best = all(int(logits[place].argmax()) == token for place, token in asked)
    ended = not request.ends or int(logits[-1].argmax()) in request.ends
    total = sum(float(logprobs[place, token]) for place, token in asked)
    return Answer(total, len(asked), best and ended)


def _errors(found: Sequence[Answer], exact: Sequence[Answer]) -> list[float]:
    return [abs(a.logprob - b.logprob) for a, b in zip(found, exact, strict=True)]


def _apart(found: Sequence[Answer], exact: Sequence[Answer]) -> float:
    return max(_errors(found, exact))


@torch.inference_mode()
def _continuations(model: Any, tokenizer: Any, prompt: Prompt) -> set[str]:
    """Return what greedy decoding may write: several texts where tokens are equally likely."""
    settings = model.generation_config.eos_token_id
    ends = settings if isinstance(settings, (list, tuple)) else [settings]
    texts, open_ones = set(), [list(prompt.context)]
    while open_ones:
        tokens = open_ones.pop()
        written = tokens[len(prompt.context) :]
        if len(written) == prompt.tokens or (written and written[-1] in ends):
            text = tokenizer.decode(written, skip_special_tokens=True)
            texts.add(text[: min([text.find(stop) for stop in prompt.stops if stop in text], default=len(text))])
            continue
        logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].float()
        best = torch.nonzero(logits >= logits.max() - CLOSE * logits.abs().max().clamp(min=1)).flatten().tolist()
        open_ones += [[*tokens, token] for token in best]
    return texts


def through_the_steps(kind: str, steps: Sequence[str] = tuple(STEPS)) -> dict[str, Any]:
    """Return what each step found about an architecture: a text, or under `wrong` why it went no further."""
    subject, start = Subject(kind), time.perf_counter()
    row: dict[str, Any] = {"architecture": kind}
    for name in steps:
        try:
            row[name] = subject.found[name] = STEPS[name](subject)
        except (Wrong, SaeMooError) as error:
            row.setdefault("wrong", {})[name] = f"{error}"
        except Exception as error:  # whatever an architecture may raise is what is looked for
            row.setdefault("wrong", {})[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        if name == "built" and "built" not in row:
            break
    if subject.folder is not None:
        shutil.rmtree(subject.folder)
    return row | {"seconds": round(time.perf_counter() - start, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("architectures", nargs="*", help="names as in transformers; none: all")
    parser.add_argument("--steps", default=",".join(STEPS), help="names of steps, with commas between them")
    parser.add_argument("--output", type=Path, help="file for a JSON object per architecture, a line each")
    asked = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    rows = []
    for kind in asked.architectures or kinds():
        row = through_the_steps(kind, asked.steps.split(","))
        rows.append(row)
        found = [f"{name}: {row[name]}" for name in STEPS if name in row]
        wrong = [f"NOT {name}: {why}" for name, why in row.get("wrong", {}).items()]
        print(f"{kind} ({row['seconds']} s): " + "; ".join([*found, *wrong]), flush=True)
        if asked.output:
            with asked.output.open("a") as file:
                file.write(json.dumps(row) + "\n")
    print(f"\n{len(rows)} architectures: " + ", ".join(f"{sum(s in row for row in rows)} {s}" for s in STEPS))


if __name__ == "__main__":
    main()
