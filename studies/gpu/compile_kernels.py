"""Compile every kernel for a GPU on a machine that has none, and say what came out.

    python studies/gpu/compile_kernels.py [--capability 90] [NAME ...]

Kernels run in Triton's interpreter first, on small tensors, to learn with which types and constants they are launched;
each such launch is then compiled. Triton brings along what that takes (ptxas); no driver is needed. Printed per kernel:
registers, spilled bytes, how wide global memory is read and written, and whether a product was fused with a sum
(it must not be) or anything is rounded otherwise than IEEE says (nor that).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
TYPES = {"torch.int64": "*i64", "torch.int32": "*i32", "torch.float64": "*fp64", "torch.float32": "*fp32"}


def recorded() -> list[dict]:
    """Run the kernels' tests with launches written down."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "launches.json"
        code = (
            "import json, sys, pytest, torch\n"
            "from sae_moo.materialization.ops.device import tables\n"
            "seen = {}\n"
            "launch = tables.Card.launch\n"
            "def recording(self, kernel, programs, *given, **constants):\n"
            "    kinds = [str(x.dtype) if isinstance(x, torch.Tensor) else 'i32' for x in given]\n"
            "    constants = dict(constants, **({'BLOCK': 2048} if 'BLOCK' in constants else {}))\n"
            "    key = json.dumps([kernel.fn.__module__, kernel.fn.__name__, kinds, constants])\n"
            "    seen[key] = seen.get(key, 0) + 1\n"
            "    return launch(self, kernel, programs, *given, **constants_of(constants, self))\n"
            "def constants_of(constants, card):\n"
            "    return dict(constants, **({'BLOCK': card.tile} if 'BLOCK' in constants else {}))\n"
            "tables.Card.launch = recording\n"
            "status = pytest.main(['-x', '-n0', '-p', 'no:cacheprovider', 'tests/materialization/ops/test_device.py', *sys.argv[2:]])\n"
            "open(sys.argv[1], 'w').write(json.dumps(list(seen)))\n"
            "sys.exit(status)\n"
        )
        environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
        selected = ["-k", os.environ["SAE_MOO_KERNEL_TESTS"]] if "SAE_MOO_KERNEL_TESTS" in os.environ else []
        subprocess.run([sys.executable, "-c", code, str(path), *selected], cwd=ROOT, env=environment, check=True)
        found = []
        for key in json.loads(path.read_text()):
            module, name, kinds, constants = json.loads(key)
            found.append({"module": module, "name": name, "kinds": kinds, "constants": constants})
        return found


def compiled(launch: dict, capability: int) -> dict:
    import importlib

    import triton
    from triton.backends.compiler import GPUTarget

    kernel = getattr(importlib.import_module(launch["module"]), launch["name"])
    constants = dict(launch["constants"])
    options = {"num_warps": constants.pop("num_warps", 4), "enable_fp_fusion": False}
    names = kernel.arg_names
    signature, attributes = {}, {}
    given = iter(launch["kinds"])
    for i, name in enumerate(names):
        if name in constants:
            signature[name] = "constexpr"
        else:
            kind = next(given)
            signature[name] = TYPES.get(kind, kind)
            if kind in TYPES:
                attributes[(i,)] = [["tt.divisibility", 16]]
    source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    start = time.perf_counter()
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    ptx = made.asm["ptx"]
    widths = Counter(
        f"{kind}{'.' + vector if vector else ''}.{bits}"
        for kind, vector, bits in re.findall(r"\b(ld|st)\.global(?:\.\w+)*?(?:\.(v[248]))?\.b(\d+)", ptx)
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        usage = (
            subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True).stdout
            if tool.exists()
            else ""
        )
    registers = re.findall(r"REG:(\d+) STACK:(\d+)", usage)
    return {
        "seconds": time.perf_counter() - start,
        "registers": int(registers[0][0]) if registers else None,
        "spilled": int(registers[0][1]) if registers else None,
        "memory": dict(widths),
        "fused": len(re.findall(r"\bfma\.rn\.f(?:32|64)", ptx)),
        "inexact": len(re.findall(r"\.ftz|\b(?:div|sqrt|rcp)\.(?:full|approx)", ptx)),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="kernels to compile; all by default")
    parser.add_argument("--capability", type=int, default=90, help="of the card, such as 80 or 90")
    parser.add_argument("--launches", type=Path, help="read launches from this file; write them if it is not there")
    given = parser.parse_args()
    if given.launches and given.launches.exists():
        launches = json.loads(given.launches.read_text())
    else:
        launches = recorded()
        if given.launches:
            given.launches.write_text(json.dumps(launches))
    failed = 0
    for launch in launches:
        if given.names and launch["name"] not in given.names:
            continue
        shown = f"{launch['name']} {launch['constants']}"
        try:
            print(shown, compiled(launch, given.capability), flush=True)
        except Exception as error:  # every kernel is tried, whatever is wrong with one
            failed += 1
            print(shown, "FAILED", type(error).__name__, str(error)[:2000], flush=True)
    print(f"{failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
