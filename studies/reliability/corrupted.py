"""Does a damaged weight file ever end in a traceback, or in a merge of it without a word?

    python studies/reliability/corrupted.py --files 500
    python studies/reliability/corrupted.py --files 20000 --seed 1

A small model is written as one file, in shards, packed, and as an adapter; each copy is damaged in one way, drawn
at random, then opened as an expert or as the base, fingerprinted and merged. Counted by the kind of damage:

* refused: one message of the library's own, of few lines;
* unharmed: the merge is bit for bit that of the undamaged file;
* other numbers: a whole file of other weights, which nothing in it betrays; safetensors has no checksum, a packed model
  has;
* traceback: any other exception, or a message that goes on for pages. Each is printed, and the command fails.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import shutil
import struct
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

OUTCOMES = ("refused", "unharmed", "other numbers", "traceback")
LONGEST = 2000  # characters of a message
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER, PACKED = "adapter_model.safetensors", "model.packed"
Damage = Callable[[Path, random.Random], None]


def shard(folder: Path, draw: random.Random) -> Path:
    return draw.choice(sorted(folder.glob("*.safetensors")))


def parts(file: Path) -> tuple[dict, bytes]:
    content = file.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write(file: Path, header: dict | bytes, data: bytes, length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def flipped(content: bytes, draw: random.Random, first: int, last: int) -> bytes:
    """Flip one to four bits, or put other bytes, between two places."""
    changed = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(first, max(first + 1, min(last, len(changed))))
        changed[at] = changed[at] ^ (1 << draw.randrange(8)) if draw.random() < 0.5 else draw.randrange(256)
    return bytes(changed)


def header_bytes(folder: Path, draw: random.Random) -> None:
    file = shard(folder, draw)
    content = file.read_bytes()
    file.write_bytes(flipped(content, draw, 8, 8 + struct.unpack("<Q", content[:8])[0]))


def data_bytes(folder: Path, draw: random.Random) -> None:
    file = shard(folder, draw)
    content = file.read_bytes()
    file.write_bytes(flipped(content, draw, 8 + struct.unpack("<Q", content[:8])[0], len(content)))


def length_bytes(folder: Path, draw: random.Random) -> None:
    file = shard(folder, draw)
    header, data = parts(file)
    write(file, header, data, draw.choice([0, 1, 2**63, 2**64 - 1, draw.randrange(2**16), draw.randrange(2**64)]))


def cut(folder: Path, draw: random.Random) -> None:
    file = shard(folder, draw)
    content = file.read_bytes()
    file.write_bytes(content[: draw.choice([0, 1, 7, 8, 9, draw.randrange(len(content)), len(content) - 1])])


def lengthened(folder: Path, draw: random.Random) -> None:
    file = shard(folder, draw)
    file.write_bytes(file.read_bytes() + draw.randbytes(draw.randint(1, 4096)))


def emptied(folder: Path, draw: random.Random) -> None:
    file = shard(folder, draw)
    kinds = [
        b"\0" * 4096,
        b"PK\3\4" + draw.randbytes(200),
        b"\x80\x02cos\nsystem\n.",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        b"<html></html>",
        b"{}",
        draw.randbytes(999),
    ]
    file.write_bytes(draw.choice(kinds))


def facts(folder: Path, draw: random.Random) -> None:
    """Change offsets, shape, dtype or name of one tensor in the header."""
    file = shard(folder, draw)
    header, data = parts(file)
    name = draw.choice([each for each in header if each != "__metadata__"])
    described = header[name]
    numbers = [0, -1, 1, 2**31, 2**63, 2**64, 10**30, 0.5, None, True, "1", [], draw.randrange(10**6)]
    match draw.randrange(8):
        case 0:
            described["data_offsets"][draw.randrange(2)] = draw.choice(numbers)
        case 1:
            described["data_offsets"] = draw.choice([[], [0], [1, 2, 3], "0", None, described["data_offsets"][::-1]])
        case 2:
            described["shape"] = draw.choice(
                [
                    [],
                    [0],
                    [-4],
                    [2**32, 2**32],
                    described["shape"][::-1],
                    described["shape"] + [1],
                    [draw.choice(numbers)],
                ]
            )
        case 3:
            described["dtype"] = draw.choice(
                ["F64", "F16", "BF16", "I32", "I64", "U8", "BOOL", "F8_E4M3", "C64", "F4", "f32", "", None, 3]
            )
        case 4:
            header[draw.choice(["", "a\nb", "../x", name + "x", "model." + name, "\u0000"])] = header.pop(name)
        case 5:
            del header[name]
        case 6:
            del described[draw.choice(list(described))]
        case 7:
            other = draw.choice([each for each in header if each != "__metadata__"])
            described["data_offsets"] = header[other]["data_offsets"]
    write(file, header, data)


def twice(folder: Path, draw: random.Random) -> None:
    file = shard(folder, draw)
    header, data = parts(file)
    name = draw.choice([each for each in header if each != "__metadata__"])
    other = dict(header[draw.choice([name, *[each for each in header if each != "__metadata__"]])])
    text = json.dumps(header)[:-1] + f", {json.dumps(name)}: {json.dumps(other)}" + "}"
    write(file, text.encode(), data)


def index_bytes(folder: Path, draw: random.Random) -> None:
    file = folder / INDEX
    content = file.read_bytes()
    file.write_bytes(flipped(content, draw, 0, len(content)))


def index_entries(folder: Path, draw: random.Random) -> None:
    file = folder / INDEX
    document = json.loads(file.read_text())
    named = document["weight_map"]
    name, shards = draw.choice(list(named)), sorted(set(named.values()))
    match draw.randrange(6):
        case 0:
            named[name] = draw.choice(shards)
        case 1:
            named[name] = draw.choice(
                [
                    "",
                    ".",
                    "..",
                    "../" + shards[0],
                    "/dev/zero",
                    "gone.safetensors",
                    "config.json",
                    "a\0b",
                    None,
                    3,
                    [],
                    {},
                ]
            )
        case 2:
            del named[name]
        case 3:
            named[name + "x"] = named.pop(name)
        case 4:
            document["weight_map"] = draw.choice([{}, [], None, list(named), "x", 3, {name: {}}])
        case 5:
            del document["weight_map"]
    file.write_text(json.dumps(document))


def shards_moved(folder: Path, draw: random.Random) -> None:
    one, two = draw.sample(sorted(folder.glob("*.safetensors")), 2)
    match draw.randrange(4):
        case 0:
            one.unlink()
        case 1:
            shutil.copy(two, one)
        case 2:
            content = one.read_bytes()
            one.write_bytes(two.read_bytes())
            two.write_bytes(content)
        case 3:
            one.unlink()
            one.mkdir()


def config_bytes(folder: Path, draw: random.Random) -> None:
    file = folder / ("adapter_config.json" if (folder / "adapter_config.json").exists() else "config.json")
    content = file.read_bytes()
    file.write_bytes(flipped(content, draw, 0, len(content)))


def packed_bytes(folder: Path, draw: random.Random) -> None:
    file = folder / PACKED
    content = file.read_bytes()
    first = draw.choice([0, 8, max(0, len(content) - 3000), len(content) - 56])
    file.write_bytes(flipped(content, draw, first, len(content)))


def packed_cut(folder: Path, draw: random.Random) -> None:
    file = folder / PACKED
    content = file.read_bytes()
    file.write_bytes(draw.choice([content[: draw.randrange(len(content))], content + b"x", b"", content[8:]]))


ONE_FILE: dict[str, Damage] = {
    "bytes of the header": header_bytes,
    "bytes of the weights": data_bytes,
    "length of the header": length_bytes,
    "truncated": cut,
    "lengthened": lengthened,
    "another file": emptied,
    "shape, offsets, dtype, name": facts,
    "a name twice": twice,
    "bytes of the settings": config_bytes,
}
SHARDS: dict[str, Damage] = {
    "bytes of the index": index_bytes,
    "entries of the index": index_entries,
    "shards moved": shards_moved,
}
FORMS: dict[str, dict[str, Damage]] = {
    "one file": ONE_FILE,
    "shards": {**SHARDS, **ONE_FILE},
    "adapter": ONE_FILE,
    "packed": {"bytes of a packed model": packed_bytes, "a packed model cut": packed_cut},
}


def undamaged(root: Path) -> dict[str, Path]:
    """Write the small models: the base, and an expert in every form."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    from sae_moo.deploy.packing import Packer
    from sae_moo.deploy.tensor_files import Entry
    from sae_moo.experts.layout import content_digest

    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )
    for seed, name in enumerate(("base", "one file")):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        model.save_pretrained(root / name)
    model.save_pretrained(root / "shards", max_shard_size="15KB")
    weights = load_file(root / "one file" / WEIGHTS)
    (root / "packed").mkdir()
    with Packer(root / "packed" / PACKED) as packer:
        for name, tensor in weights.items():
            packer.add(Entry(name, tuple(tensor.shape), tensor.dtype), tensor, content_digest(tensor))
        packer.seal({"config.json": (root / "one file" / "config.json").read_bytes()})
    (root / "adapter").mkdir()
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"], "bias": "none"}
    (root / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    factors = {}
    for layer in range(2):
        module = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        factors |= {f"{module}.lora_A.weight": torch.randn(2, 16), f"{module}.lora_B.weight": torch.randn(16, 2)}
    save_file(factors, root / "adapter" / ADAPTER)
    return {name: root / name for name in ("base", *FORMS)}


def merged(base: Path, expert: Path, scratch: Path, live: bool = False) -> dict[str, str]:
    """Return the digests of the tensors of a merge; a live model of the base is built before, if asked."""
    import torch

    from sae_moo.deploy.packing import unpack
    from sae_moo.deploy.stream import Stream
    from sae_moo.experts.pool import ExpertPool
    from sae_moo.recipe import Expert, Merge

    if (expert / PACKED).exists():
        unpack(expert / PACKED, scratch / "unpacked")
        expert = scratch / "unpacked"
    pool = ExpertPool.open(str(base), {"a": str(expert)})
    if live:
        pool.live_model()
    stream = Stream(Merge("task_arithmetic", (Expert("a"),), (0.5,)), pool, torch.float32)
    for entry in stream.entries:
        stream.hashed(stream.tensor(entry.name), entry.name)
    stream.sparsity()
    return dict(stream.digests)


def tried(
    places: dict[str, Path], form: str, damage: Damage, draw: random.Random, scratch: Path, as_base: bool
) -> tuple[str, str]:
    """Damage a copy and merge it; return the outcome and what was told."""
    from sae_moo.errors import SaeMooError

    copy = shutil.copytree(places[form], scratch / "copy")
    intact = places["one file"] if form == "packed" else places[form]
    pair = (lambda folder: (folder, places["one file"])) if as_base else (lambda folder: (places["base"], folder))
    expected = merged(*pair(intact), scratch)
    try:
        damage(copy, draw)
        found = merged(*pair(copy), scratch, live=as_base)
    except SaeMooError as error:
        told = str(error)
        return ("refused", told) if len(told) < LONGEST else ("traceback", told)
    except Exception:
        return "traceback", traceback.format_exc()
    return ("unharmed" if found == expected else "other numbers"), ""


def counted(files: int, seed: int) -> tuple[dict[str, Counter[str]], list[str]]:
    """Return outcomes by form and kind of damage, and what was told of each traceback."""
    draw = random.Random(seed)
    counts: dict[str, Counter[str]] = {}
    faults = []
    with tempfile.TemporaryDirectory() as root:
        os.environ["XDG_CACHE_HOME"] = root  # fingerprints of these files are of no use to anyone
        places = undamaged(Path(root))
        for number in range(files):
            form = list(FORMS)[number % len(FORMS)]
            kind = draw.choice(list(FORMS[form]))
            scratch = Path(root) / "scratch"
            scratch.mkdir()
            as_base = form in ("one file", "shards") and draw.random() < 0.5
            outcome, told = tried(places, form, FORMS[form][kind], draw, scratch, as_base)
            shutil.rmtree(scratch)
            counts.setdefault(f"{form}: {kind}", Counter())[outcome] += 1
            if outcome == "traceback":
                faults.append(f"file {number}, {form}, {kind}:\n{told}")
    return counts, faults


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    counts, faults = counted(asked.files, asked.seed)
    width = max(map(len, counts))
    print(f"{'damage':{width}}  " + "  ".join(f"{outcome:>13}" for outcome in OUTCOMES))
    for kind, row in [*sorted(counts.items()), ("all", sum(counts.values(), Counter[str]()))]:
        print(f"{kind:{width}}  " + "  ".join(f"{row[outcome]:>13}" for outcome in OUTCOMES))
    for fault in faults:
        print(fault)
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
