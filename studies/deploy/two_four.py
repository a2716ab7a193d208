"""Is a matrix in PyTorch's 2:4 form faster than a dense one?

    python studies/deploy/two_four.py                        # an NVIDIA card, a few minutes
    PYTHONPATH=. python studies/deploy/two_four.py --rows 1 8192 --shapes 4096x4096 --dtype float16     # of a checkout

Random matrices, two of every four consecutive inputs zero, are multiplied as they are and as what
`torch.sparse.to_sparse_semi_structured` makes of them, for several shapes (outputs x inputs) and numbers of rows at
once: called one by one (`eager`), inside `torch.compile`, and replayed as a CUDA graph, where calls cost nothing. Each
number is the time of the dense product over that of the sparse one: above 1 is faster. Products that differ by more
than rounding are told instead. Exits 2 where there is no CUDA card.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.sparse import SparseSemiStructuredTensor, to_sparse_semi_structured

from sae_moo.deploy.stream import is_two_four

SHAPES, ROWS = ("8192x4096", "4096x11008", "11008x4096"), (1, 256, 1024, 4096, 8192)
WARMING, ROUNDS, CALLS = 3, 15, 10
FAR = 0.02  # of the largest entry; bfloat16 keeps 8 bits


def product(rows: Tensor, matrix: Tensor) -> Tensor:
    """Return what a linear layer without biases gives; shape (rows, outputs)."""
    return torch.nn.functional.linear(rows, matrix)


def drawn(*shape: int, device: str) -> Tensor:
    """Return normal random numbers, the same for the same shape."""
    return torch.randn(*shape, generator=torch.Generator(device).manual_seed(0), device=device)


def two_four(outputs: int, inputs: int, device: str) -> Tensor:
    """Return a random matrix with the two smallest of every four consecutive inputs zero."""
    matrix = drawn(outputs, inputs, device=device) / inputs**0.5
    groups = matrix.reshape(-1, 4)
    groups.scatter_(1, groups.abs().argsort(dim=1)[:, :2], 0.0)
    assert is_two_four(matrix)
    return matrix


def eager(rows: Tensor, matrix: Tensor) -> Callable[[], object]:
    """Return calls of the product, one after another."""
    return lambda: [product(rows, matrix) for _ in range(CALLS)]


def compiled(rows: Tensor, matrix: Tensor) -> Callable[[], object]:
    """Return calls of the compiled product."""
    torch.compiler.reset()
    once = torch.compile(product, dynamic=False)
    return lambda: [once(rows, matrix) for _ in range(CALLS)]


def graphed(rows: Tensor, matrix: Tensor) -> Callable[[], object]:
    """Return the replay of a CUDA graph of the calls."""
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(WARMING):
            product(rows, matrix)
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            product(rows, matrix)
    return graph.replay


WAYS = {"eager": eager, "torch.compile": compiled, "CUDA graph": graphed}


def microseconds(calls: Callable[[], object]) -> float:
    """Return what one of the calls takes on the card, the median of rounds."""
    for _ in range(WARMING):
        calls()
    taken = []
    for _ in range(ROUNDS):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        calls()
        end.record()
        end.synchronize()
        taken.append(begin.elapsed_time(end) * 1000 / CALLS)
    return statistics.median(taken)


@dataclass(frozen=True)
class Cell:
    """One way at one shape and number of rows: microseconds of both products, or why there are none."""

    dense: float = 0.0
    sparse: float = 0.0
    why: str = ""

    def __str__(self) -> str:
        return self.why or f"{self.dense / self.sparse:.2f} ({self.dense:.0f} / {self.sparse:.0f})"


def measured(way: str, rows: Tensor, matrix: Tensor) -> Cell:
    """Return how the products compare in one way."""
    try:
        sparse = to_sparse_semi_structured(matrix)
        expected = product(rows, matrix)
        apart = float((product(rows, sparse) - expected).abs().max() / expected.abs().max())
        if not apart <= FAR:
            return Cell(why=f"wrong by {apart:.2g}")
        return Cell(microseconds(WAYS[way](rows, matrix)), microseconds(WAYS[way](rows, sparse)))
    except Exception as error:  # whatever the kernels of this card, or the compiler, refuse
        lines = str(error).strip().splitlines() or [""]
        return Cell(why=f"refused: {type(error).__name__}: {lines[0][:90]}".replace("|", "/"))


def tables(shapes: Sequence[str], rows: Sequence[int], dtype: torch.dtype, device: str = "cuda") -> list[str]:
    """Return a Markdown table of each way: a line a number of rows, a column a shape."""
    lines = []
    for way in WAYS:
        lines += [
            f"| {way} | {' | '.join(shape.replace('x', ' x ') for shape in shapes)} |",
            "|---" * (len(shapes) + 1) + "|",
        ]
        for count in rows:
            cells = []
            for shape in shapes:
                outputs, inputs = map(int, shape.split("x"))
                given = drawn(count, inputs, device=device).to(dtype)
                cells.append(str(measured(way, given, two_four(outputs, inputs, device).to(dtype))))
            lines.append(f"| {count} rows | {' | '.join(cells)} |")
        lines.append("")
    return lines


def libraries() -> str:
    """Return what computes."""
    known = torch.backends.cusparselt
    sparse = f"cuSPARSELt {known.version()}" if known.is_available() else "no cuSPARSELt"
    return f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}, {sparse}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="OUTPUTSxINPUTS")
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS)
    parser.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16")
    asked = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print(f"torch {torch.__version__} sees no CUDA card here: nothing was measured", file=sys.stderr)
        return 2
    dtype = getattr(torch, asked.dtype)
    print(f"{libraries()}, {asked.dtype}; dense over sparse time (microseconds of both)\n")
    with torch.no_grad():
        for cutlass in (False, True):
            SparseSemiStructuredTensor._FORCE_CUTLASS = cutlass
            print(f"kernels of {'CUTLASS' if cutlass else 'cuSPARSELt'}\n")
            # one product tells whether CUTLASS serves the card
            print(
                "\n".join(
                    tables(asked.shapes[:1], asked.rows[-1:], dtype)
                    if cutlass
                    else tables(asked.shapes, asked.rows, dtype)
                )
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
