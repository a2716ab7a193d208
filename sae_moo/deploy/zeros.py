"""What zeros are good for where a model runs: said here once, for cards, estimates and the documentation.

Every claim stands on a measurement (`studies/deploy`), or names who reports it and within what limits.
"""

from __future__ import annotations

from types import MappingProxyType

MEASURED = MappingProxyType({1: 0.03, 256: 0.04, 1024: 0.11, 4096: 0.40, 8192: 1.24})
"""Rows at once -> the time of a dense matrix of 8192 x 4096 over that of its 2:4 form in PyTorch; above 1 is faster."""
OTHER_SHAPE = 0.92
"""The most that a matrix of 4096 x 11008 came to, at any number of rows."""

SCATTERED = (
    "transformers, vLLM and llama.cpp compute with scattered zeros as with any weight. Kernels made for such zeros "
    "gain: MACKO-SpMV (arXiv 2511.13061, MIT licence) reports 1.5 times the tokens per second and 1.5 times less "
    "memory at sparsity 0.5, within limits: float16, one sequence at a time, a consumer NVIDIA card, a format of its "
    "own; it was not tried here"
)
TWO_FOUR = (
    "runtimes compute with 2:4 zeros as with any weight; vLLM and llm-compressor dropped the pattern, torchao its "
    "sparsity module. Converting them by torch.sparse.to_sparse_semi_structured is not recommended: a matrix of "
    f"8192 x 4096 was then {', '.join(f'{factor:.2f}' for factor in MEASURED.values())} times as fast as dense at "
    f"{', '.join(map(str, MEASURED))} rows at once, one of 4096 x 11008 never more than {OTHER_SHAPE:.2f} times "
    "(NVIDIA H100 80GB, cuSPARSELt 0.8.0, bfloat16, eager; CUTLASS refuses that card; inside torch.compile and CUDA "
    "graphs it was not measured)"
)
STRUCTURED = (
    "there are fewer blocks or smaller matrices: less memory and arithmetic in every runtime; verifying an export "
    "times it"
)
