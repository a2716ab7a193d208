"""Mixtures of experts: which tensors of a block belong to which expert, and which settings tell how many there are.

The router chooses experts by its logits. An expert that is removed has nothing but zeros, its row of the router too;
that alone does not keep the router from choosing it (a logit of 0 is above a negative one), so live models are told
(`removed_experts`), and exports leave such experts out or are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from sae_moo.errors import InputError
from sae_moo.experts.blocks import by_block
from sae_moo.experts.live import parsed_config
from sae_moo.experts.pool import ExpertPool, TensorInfo
from sae_moo.recipe import BASE

# The number of experts in config.json, by the names that architectures and releases have for it; of some, what the
# router chooses for each token.
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_CHOSEN = ("num_experts_per_tok", "moe_k", "moe_topk")
_PAIRS = ("deepseek_v3", "dots1", "glm4_moe", "solar_open")
"""Architectures whose router looks at the best two of a group: as many have to be there."""
KNOWN = (
    *_PAIRS, "deepseek_v2", "ernie4_5_moe", "flex_olmo", "gpt_oss", "granitemoe", "granitemoeshared", "hunyuan_v1_moe",
    "lfm2_moe", "minimax_m2", "mixtral", "olmoe", "phimoe", "qwen2_moe", "qwen3_moe", "qwen3_next",
)  # fmt: skip
"""Architectures whose mixtures were tried, by ``model_type``."""
_MODULE = r"(?:mlp|block_sparse_moe|feed_forward)"
_ROUTER = re.compile(rf"{_MODULE}\.(?:gate|gate\.wg|router|router\.layer)\.weight")
# What the router has beside its matrix: a number for every expert.
_BESIDE = re.compile(
    rf"{_MODULE}\.(?:(?:(?:gate|moe_statics)\.)?e_score_correction_bias|expert_bias|(?:gate|router)\.bias)"
)
_OWN = re.compile(rf"{_MODULE}\.experts\.(\d+)\..+")
_STACKED = re.compile(rf"{_MODULE}\.(?:experts\.(?:gate_up_proj|down_proj)(?:_bias)?|(?:input|output)_linear\.weight)")


@dataclass(frozen=True, slots=True)
class Held:
    """A tensor that holds experts, or what belongs to one.

    Args:
        info: the tensor.
        expert: whose it is; None: it has an index for each expert along an axis.
        axis: that axis.
    """

    info: TensorInfo
    expert: int | None = None
    axis: int = 0


@dataclass(frozen=True, slots=True)
class Mixture:
    """The mixtures of a model.

    Args:
        experts: how many each of them has.
        least: how many have to stay in each: what the router chooses for each token.
        settings: names in ``config.json`` of the number of experts.
        routers: block -> the router's matrix, a row for each expert; dense blocks have none.
        held: block -> all that belongs to its experts, router and all, in the pool's order.
        blocks: number of blocks, dense ones among them.
    """

    experts: int
    least: int
    settings: tuple[str, ...]
    routers: Mapping[int, TensorInfo]
    held: Mapping[int, tuple[Held, ...]]
    blocks: int


def mixture(pool: ExpertPool) -> Mixture:
    """Return the mixtures of a pool's architecture.

    Raises:
        InputError: for an architecture that is none, or not known to be like the others; for a router that chooses
            groups of experts first; for tensors that do not add up to as many experts in every mixture.
    """
    return pool.remembered.get("mixture", lambda: _mixture(pool))


def known_mixture(pool: ExpertPool) -> Mixture | None:
    """Return what `mixture` does, None where it raises an error: of such models no experts are removed."""

    def found() -> Mixture | None:
        try:
            return mixture(pool)
        except InputError:
            return None

    return pool.remembered.get("known mixture", found)


def _mixture(pool: ExpertPool) -> Mixture:
    kind = str(pool.checkpoints[BASE].config.get("model_type"))
    if kind not in KNOWN:
        raise InputError(
            f"scope 'moe-experts' knows the architectures {', '.join(sorted(KNOWN))}; the base is {kind!r}"
        )
    written = pool.checkpoints[BASE].config
    config = {**(parsed_config(pool.checkpoints[BASE].folder) or {}), **written}  # defaults filled in
    settings = tuple(key for key in _EXPERTS if key in written) or tuple(key for key in _EXPERTS if key in config)
    chosen = next((config[key] for key in _CHOSEN if key in config), None)
    if not settings or type(chosen) is not int:
        raise InputError(
            f"scope 'moe-experts': expected one of {', '.join(_EXPERTS)} and a whole number as one of "
            f"{', '.join(_CHOSEN)} in config.json of the base, got {chosen!r} for the latter"
        )
    if kind in _PAIRS or config.get("topk_method", "greedy") != "greedy":
        _check_one_group(config)
    routers, held = {}, {}
    blocks = list(by_block(pool).values())
    for block, own in enumerate(blocks):
        router = next((info for name, info in own.items() if _ROUTER.fullmatch(name)), None)
        if router is not None:
            routers[block] = router
            held[block] = tuple(_held(own, router.shape[0]))
    said = {config[key] for key in settings}
    found = {router.shape[0] for router in routers.values()}
    if len(found) != 1 or said != found:
        raise InputError(
            f"scope 'moe-experts': expected as many experts in every mixture as config.json of the base says "
            f"({', '.join(map(str, sorted(said, key=str)))}), got {', '.join(map(str, sorted(found))) or 'no router'}"
        )
    least = max(chosen, 2) if kind in _PAIRS else chosen
    return Mixture(found.pop(), least, settings, routers, held, len(blocks))


def _check_one_group(config: Mapping[str, object]) -> None:
    groups = config.get("n_group")
    if groups not in (None, 1):
        raise InputError(
            f"scope 'moe-experts': the router of the base chooses among {groups} groups of experts first (n_group); "
            "known are routers without groups"
        )


def _held(own: Mapping[str, TensorInfo], experts: int) -> Iterator[Held]:
    """Yield what of a block's tensors belongs to the experts of its mixture."""
    counts = dict.fromkeys(range(experts), 0)
    for name, info in own.items():
        whose = _OWN.fullmatch(name)
        if whose is not None:
            expert = int(whose[1])
            counts[expert] = counts.get(expert, 0) + 1
            yield Held(info, expert)
        elif _ROUTER.fullmatch(name) or _STACKED.fullmatch(name) or _BESIDE.fullmatch(name):
            axis = len(info.shape) - 1 if _BESIDE.fullmatch(name) else 0
            if info.shape[axis] != experts:
                raise InputError(
                    f"scope 'moe-experts': expected {experts} along dimension {axis} of {info.name}, one for each "
                    f"expert, got shape {info.shape}"
                )
            yield Held(info, axis=axis)
        elif ".experts." in name:
            raise InputError(f"scope 'moe-experts': {info.name}: not known how it belongs to the experts")
    if len(counts) != experts or len(set(counts.values())) != 1:
        raise InputError(
            f"scope 'moe-experts': expected as many tensors of each of {experts} experts, got {len(counts)} experts "
            f"with {min(counts.values())} to {max(counts.values())}, {next(iter(own.values())).name} among the block's"
        )
