"""In how much memory, and how fast, is a large merge written and packed?

    python studies/deploy/measure.py --size 1.5B --folder /tmp/deploy

Writes a base and two experts of random bf16 weights (Llama layout, tied) into --folder unless they are there, then,
each in a process of its own: the folder of dense weights, a packed file, a delta, and the packed file unpacked. The
memory is the peak of anonymous pages, sampled every 5 ms: mapped inputs are the page cache's. 1.5B needs 15 GB of disk.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

# vocabulary, width, feed-forward width, layers, heads
SIZES = {"60M": (8000, 768, 2048, 8, 12), "250M": (32000, 1024, 2816, 16, 16), "1.5B": (32000, 2048, 8192, 22, 16)}
STEPS = ("hf", "packed", "delta", "unpack")


def checkpoints(folder: Path, size: str) -> None:
    """Write what is not there, a tensor at a time."""
    import torch

    from sae_moo import zoo
    from sae_moo.deploy.tensor_files import SHARD_BYTES, Entry, raw, write_shards
    from sae_moo.experts.vocabulary import load_tokenizer

    vocabulary, width, wide, layers, heads = SIZES[size]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": wide,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
    }
    shapes = {"model.embed_tokens.weight": (vocabulary, width), "model.norm.weight": (width,)}
    for i in range(layers):
        block = f"model.layers.{i}."
        shapes |= {f"{block}self_attn.{name}_proj.weight": (width, width) for name in "qkvo"}
        shapes |= {f"{block}mlp.{name}_proj.weight": (wide, width) for name in ("gate", "up")}
        shapes |= {f"{block}mlp.down_proj.weight": (width, wide)}
        shapes |= {f"{block}{name}_layernorm.weight": (width,) for name in ("input", "post_attention")}
    entries = [Entry(name, shape, torch.bfloat16) for name, shape in shapes.items()]
    for seed, name in enumerate(("base", "math", "code")):
        if (folder / name / "config.json").is_file():
            continue
        (folder / name).mkdir(parents=True, exist_ok=True)

        def content(entry: Entry, seed: int = seed) -> list[memoryview]:
            generator = torch.Generator().manual_seed(entries.index(entry))
            tensor = torch.empty(entry.shape).normal_(0, 0.02, generator=generator)
            if seed:  # experts are a few percent away from the base
                own = torch.Generator().manual_seed(seed * 10_000 + entries.index(entry))
                tensor += torch.empty(entry.shape).normal_(0, 0.001, generator=own)
            return [raw(tensor.bfloat16())]

        write_shards(folder / name, entries, content, SHARD_BYTES)
        load_tokenizer(zoo.checkpoint("base")).save_pretrained(folder / name)
        (folder / name / "config.json").write_text(json.dumps(config))


class Peak:
    """The most anonymous memory this process has while entered, in bytes; `before` is what it had."""

    def __enter__(self) -> Peak:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed and is kept would hide what comes next
        self.before = self.most = self._now()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.005):
            self.most = max(self.most, self._now())

    @staticmethod
    def _now() -> int:
        text = Path("/proc/self/status").read_text()
        return 1024 * sum(int(text.split(f"{key}:")[1].split()[0]) for key in ("RssAnon", "RssShmem"))


def step(folder: Path, name: str) -> None:
    """Do one thing in this process and print what it took as JSON."""
    import torch

    from sae_moo.deploy.packing import Packer, unpack
    from sae_moo.deploy.stream import Stream
    from sae_moo.deploy.surroundings import recipe_document
    from sae_moo.experts.pool import ExpertPool
    from sae_moo.jobs.merge import merge
    from sae_moo.recipe import Cast, Expert, Merge, Prune

    out = folder / f"out-{name}"
    shutil.rmtree(out, ignore_errors=True)
    merged = Merge("task_arithmetic", (Expert("math"), Expert("code")), (0.6, 0.5))
    recipe = Cast(Prune(merged, 0.5), "bfloat16")
    pool = ExpertPool.open(str(folder / "base"), {each: str(folder / each) for each in ("math", "code")})
    (folder / "recipe.json").write_text(json.dumps(recipe_document(recipe, pool)))
    with Peak() as peak:
        start = time.perf_counter()
        if name == "hf":
            merge(folder / "recipe.json", out)
        elif name == "unpack":
            unpack(folder / "packed.saepack", out)
        else:
            stream, base = Stream(recipe, pool, torch.bfloat16), pool.checkpoints["base"]
            named = {"source": "base", "fingerprint": pool.fingerprints["base"]} if name == "delta" else None
            with Packer(folder / f"{name}.saepack", base=named) as packer:
                for entry in stream.entries:
                    tensor = stream.tensor(entry.name)
                    stream.hashed(tensor, entry.name)
                    reference = base.load(entry.name).to(entry.dtype) if named else None
                    packer.add(entry, tensor, stream.digests[entry.name], reference)
                packer.seal({})
        seconds = time.perf_counter() - start
    written = sum(path.stat().st_size for path in out.glob("*")) if out.is_dir() else 0
    written = written or (folder / f"{name}.saepack").stat().st_size
    dense = 2 * sum(info.numel for info in pool.tensors)
    largest = 4 * max(info.numel for info in pool.tensors)
    shutil.rmtree(out, ignore_errors=True)
    facts = {"seconds": seconds, "written": written, "dense": dense, "largest": largest}
    print(json.dumps(facts | {"peak": peak.most, "before": peak.before}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="250M")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    folder = asked.folder / asked.size
    if asked.step:
        step(folder, asked.step)
        return
    checkpoints(folder, asked.size)
    print("| | seconds | written, GB | of dense | peak memory, GiB | beyond what the libraries take |")
    print("|---|---|---|---|---|---|")
    for name in STEPS:
        command = [sys.executable, __file__, "--size", asked.size, "--folder", str(asked.folder), "--step", name]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        peak, beyond = found["peak"] / 2**30, (found["peak"] - found["before"]) / 2**30
        size, share = found["written"] / 1e9, found["written"] / found["dense"]
        print(f"| {name} | {found['seconds']:.1f} | {size:.3f} | {share:.3f} | {peak:.2f} | {beyond:.2f} |", flush=True)


if __name__ == "__main__":
    main()
