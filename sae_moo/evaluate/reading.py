"""How a model may be read: whether tokens of several requests stand side by side, found out on a few of them.

What is found out holds for an architecture, whatever its weights: it is what its layers say they are; what exactly no
gradient passes through; and what float32 shows, whatever the model's own dtype.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sae_moo.errors import InputError, out_of_memory
from sae_moo.evaluate.passes import Head, Pass, Unfit, laid_out, logits_of, readers_of, takes, tokens_read
from sae_moo.evaluate.precision import in_single
from sae_moo.evaluate.task import Request
from sae_moo.evaluate.trie import LEAST_SHARED

log = logging.getLogger(__name__)

ATTENTION = frozenset(
    [
        *("full_attention", "attention", "global", "sliding_attention", "chunked_attention", "local"),
        *("moe", "mlp", "dense", "sparse"),  # these read no other token
    ]
)
"""Words for layers whose tokens see others through a mask of attention only."""
SPREAD = 8.0
"""How many times the difference between two batch shapes another difference in float32 may be."""
LEAST_SPREAD = 2e-5
"""The least difference in float32 that is allowed, as a part of the largest logit."""
MOST_SPREAD = 1e-3
"""The largest difference that rounding in float32 makes: beyond it, what stands in a pass has to do with another."""
RAISED = (ArithmeticError, AssertionError, AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError)
FAULTS = (*RAISED, ValueError)
"""Whatever an architecture may raise when it is asked as it cannot be."""


class Layout(Enum):
    """What stands side by side in a forward pass."""

    SHARED = "requests that begin alike share rows"
    PADDED = "a row for each sequence, padded on the right"
    ALONE = "one sequence a pass"


@dataclass(frozen=True, slots=True)
class Reading:
    """How a model is read.

    Args:
        layout: what stands side by side.
        head: what of the hidden states goes through the head.
    """

    layout: Layout
    head: Head


class Undecided(Exception):
    """The model's logits are not finite: they tell nothing of its architecture."""


def reading_of(
    model: Any, requests: Sequence[Request], batches: Sequence[Pass], most: int, device: torch.device | str
) -> Reading:
    """Find out how a model may be read.

    Args:
        model: a transformers causal LM on the device.
        requests: what it will be asked.
        batches: the requests laid out with shared rows.
        most: tokens of a pass.
        device: the model's.

    Raises:
        Undecided: if logits are not finite.
        InputError: if it cannot be read at all.
    """
    begin_alike = any(batch.end is not None for batch in batches)
    company, telling = _telling(batches, requests)
    made_up = _made_up(company) if begin_alike else []
    telling += range(len(company), len(company) + len(made_up))
    trial = _Trial(model, [*company, *made_up], telling, most, device)
    if not reads_in_single(model, company[0], device):
        log.info("%s: %s", type(model).__name__, Layout.ALONE.value)
        return Reading(Layout.ALONE, Head.ALL)
    with in_single(model):
        plain = trial.plain()
        head = trial.head(plain)
        allowed = trial.spread(plain)
        layouts = [Layout.PADDED] if begin_alike and not attends_only(model) else [Layout.SHARED, Layout.PADDED]
        agreeing = (layout for layout in layouts if trial.agrees(plain, layout, head, allowed))
        layout = next(agreeing, Layout.ALONE)
    if layout is Layout.SHARED and begin_alike and not trial.unseen(head):
        layout = Layout.PADDED
    if layout is not Layout.SHARED:
        how = "requests" if layout is Layout.ALONE else "prompts that begin alike"
        log.info("%s: %s are read one by one", type(model).__name__, how)
    return Reading(layout, head)


def attends_only(model: Any) -> bool:
    """Say whether all that mixes tokens is attention, as far as the architecture tells by itself."""
    if getattr(model, "_is_stateful", False) or not isinstance(model, nn.Module):
        return False
    config: Any = getattr(model, "config", None)
    texts = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    for name in ("layer_types", "layers_block_type", "block_types", "attention_layers", "attn_layers"):
        kinds = getattr(texts, name, None)
        if isinstance(kinds, (list, tuple)) and not set(map(str, kinds)) <= ATTENTION:
            return False
    decoder: Any = getattr(model, "get_decoder", None)  # of several parts the one that writes
    body = model if decoder is None else decoder()
    parts = (body if isinstance(body, nn.Module) else model).modules()
    return not any(isinstance(part, nn.Conv1d) for part in parts)


def plainly(model: Any, request: Request, device: torch.device | str, copies: int = 1) -> Tensor:
    """Return the logits that a request asks for from a pass of its own, float32, shape (asked, vocabulary).

    Args:
        model: a transformers causal LM on the device.
        request: what is asked.
        device: the model's.
        copies: how often it stands in the pass; the first one's logits are returned.

    Raises:
        InputError: if the model cannot be read.
    """
    tokens = torch.tensor([tokens_read(request)] * copies, device=device)
    asked = tokens.shape[1] - len(request.context) + 1  # the last context token predicts the first continuation token
    how = {"logits_to_keep": asked} if takes(model, "logits_to_keep") else {}  # all of them may not fit into memory
    try:
        logits = model(input_ids=tokens, use_cache=False, **how).logits
    except FAULTS as error:
        if out_of_memory(error):
            raise
        raise InputError(
            f"{type(model).__name__} does not read tokens alone: {type(error).__name__}: {error}"
        ) from error
    if logits.dim() != 3 or len(logits) != copies or not asked <= logits.shape[1] <= tokens.shape[1]:
        raise InputError(
            f"{type(model).__name__}: expected logits for each of {tuple(tokens.shape)} tokens, got shape "
            f"{tuple(logits.shape)}"
        )
    own: Tensor = logits[0, -asked:].float()
    return own


def spread_of(model: Any, request: Request, plain: Tensor, most: int, device: torch.device | str) -> float:
    """Return by which part of the largest logit others may differ: a few times what another batch shape makes of it.

    Args:
        model: a transformers causal LM on the device.
        request: what is asked.
        plain: the logits from a pass of its own.
        most: tokens of a pass.
        device: the model's.
    """
    copies = min(3, most // len(tokens_read(request)))
    if copies < 2:
        return LEAST_SPREAD
    return min(max(LEAST_SPREAD, SPREAD * apart_by(plainly(model, request, device, copies), plain)), MOST_SPREAD)


def reads_in_single(model: Any, request: Request, device: torch.device | str) -> bool:
    """Say whether a model whose dtype is narrow can also be read in float32.

    Raises:
        InputError: if it cannot be read in its own dtype either.
    """
    try:
        with in_single(model):
            plainly(model, request, device)
    except InputError:
        plainly(model, request, device)
        return False
    return True


def _telling(batches: Sequence[Pass], requests: Sequence[Request]) -> tuple[list[Request], list[int]]:
    """Return requests to try, whole rows of them, and which of them by number are held against plain passes.

    Of rows with one sequence, and of those that several share, the shortest, a middle one, the widest and the one with
    the longest sequence are taken: what a window of attention does is seen in long or in wide rows only.
    """
    company: list[int] = []
    telling: list[int] = []
    for shared in (False, True):
        rows = []
        for batch in batches:
            if (batch.end is not None) is shared:
                row_of, column = batch.places
                for row in range(len(batch.inputs)):
                    own = np.unique(batch.request[row_of == row]).tolist()
                    rows.append((int(column[row_of == row].max()), _longest(requests, own), own))
        rows.sort(key=lambda row: row[0])
        for _, longest, own in [rows[0], rows[len(rows) // 2], rows[-1], max(rows, key=lambda r: r[1])] if rows else []:
            own.sort(key=lambda i: tokens_read(requests[i]))  # as they stand in the row
            company += own
            telling += [own[0], own[-1], next(i for i in own if len(tokens_read(requests[i])) == longest)]
    company = list(dict.fromkeys(company))
    return [requests[i] for i in company], [company.index(i) for i in dict.fromkeys(telling)]


def _longest(requests: Sequence[Request], chosen: Sequence[int]) -> int:
    return max(len(tokens_read(requests[i])) for i in chosen)


def _made_up(requests: Sequence[Request]) -> list[Request]:
    """Return requests of random tokens that begin alike, none longer than the longest of those given."""
    tokens = sorted({token for request in requests for token in tokens_read(request)})
    draw = np.random.default_rng(0)
    room = max(len(tokens_read(request)) for request in requests)
    prompt = tuple(draw.choice(tokens, size=min(12, room - 4)).tolist())
    if len(prompt) < LEAST_SHARED:
        return []
    return [Request(prompt, tuple(draw.choice(tokens, size=length).tolist())) for length in (4, 2, 5, 3)]


class _Trial:
    """A few requests on which ways to read a model are held against plain passes.

    Args:
        model: the model.
        company: the requests that are read together.
        telling: numbers of those that are also read plainly; the first, the last and the longest tell what batch
            shapes do.
        most: tokens of a pass.
        device: the model's.
    """

    def __init__(
        self,
        model: Any,
        company: Sequence[Request],
        telling: Sequence[int],
        most: int,
        device: torch.device | str,
    ) -> None:
        self._model = model
        self._company = company
        self._telling = telling
        self._most = most
        self._device = device
        longest = max(telling, key=lambda i: len(tokens_read(company[i])))
        self._ends = sorted({telling[0], telling[-1], longest})

    def plain(self) -> dict[int, Tensor]:
        """Return the logits of a pass of its own for each telling request, by number.

        Raises:
            Undecided: if they are not finite.
        """
        found = {i: plainly(self._model, self._company[i], self._device) for i in self._telling}
        if any(tells_nothing(logits) for logits in found.values()):
            raise Undecided
        return found

    def head(self, plain: Mapping[int, Tensor]) -> Head:
        """Return the least that the head may be given without changing logits.

        Raises:
            InputError: if not even everything gives the same logits again.
        """
        for head in Head:
            for index in self._ends:
                (batch,) = laid_out(self._company, [index], shares=False, most=1, device=self._device)
                logits = self._logits(batch, head)
                # the same tokens in the same shape: only how much the head multiplies at once differs
                if logits is None or not within(logits[batch.prediction], plain[index], LEAST_SPREAD):
                    break
            else:
                return head
        raise InputError(f"{type(self._model).__name__} gives other logits each time that it reads the same tokens")

    def spread(self, plain: Mapping[int, Tensor]) -> float:
        """Return by which part of the largest logit others may differ."""
        return max(spread_of(self._model, self._company[i], plain[i], self._most, self._device) for i in self._ends)

    def agrees(self, plain: Mapping[int, Tensor], layout: Layout, head: Head, allowed: float) -> bool:
        """Say whether logits are the same side by side."""
        for batch in self._side_by_side(layout):
            logits = self._logits(batch, head)
            if logits is None:
                return False
            for index in plain.keys() & {*batch.request.tolist()}:
                own = batch.prediction[torch.from_numpy(batch.request == index).to(batch.prediction.device)]
                if not within(logits[own], plain[index], allowed):
                    return False
        return True

    @torch.inference_mode(mode=False)  # what is made in it has no gradients
    def unseen(self, head: Head) -> bool:
        """Say whether other sequences of a shared row move nothing: the gradients at their tokens are exactly zero."""
        for batch in self._side_by_side(Layout.SHARED):
            if batch.end is None:
                continue
            last = _last_of_rows(batch)
            try:
                gradient = self._gradient(batch, head, last)
            except (Unfit, *FAULTS) as error:
                if out_of_memory(error):
                    raise
                log.info("%s: no gradients tell what its tokens see: %s", type(self._model).__name__, error)
                return False
            seen = readers_of(batch.end)[batch.row[last], batch.column[last]]
            if gradient.shape[:2] != batch.inputs.shape or not bool((gradient[batch.row[last]][~seen] == 0).all()):
                return False
        return True

    def _gradient(self, batch: Pass, head: Head, predictions: Tensor) -> Tensor:
        """Return how embedded tokens move the logits of predictions; shape (rows, length, features)."""
        embedded: list[Tensor] = []

        def leaf(_: Any, __: Any, output: Tensor) -> Tensor:
            embedded.append(output.detach().requires_grad_())
            return embedded[-1]

        hook = self._model.get_input_embeddings().register_forward_hook(leaf)
        try:
            with torch.enable_grad():
                logits = logits_of(self._model, batch, head)[predictions]
                weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0)).to(logits.device)
                (gradient,) = torch.autograd.grad((logits * weights).sum(), embedded)
        finally:
            hook.remove()
        return gradient

    def _side_by_side(self, layout: Layout) -> list[Pass]:
        every, shares = range(len(self._company)), layout is Layout.SHARED
        return laid_out(self._company, every, shares=shares, most=self._most, device=self._device)

    def _logits(self, batch: Pass, head: Head) -> Tensor | None:
        """Return the logits of a pass, None if the architecture cannot be asked for them so."""
        try:
            return logits_of(self._model, batch, head)
        except (Unfit, *FAULTS) as error:
            if out_of_memory(error):
                raise
            log.info("%s cannot be asked so: %s", type(self._model).__name__, error)
            return None


def tells_nothing(logits: Tensor) -> bool:
    """Say whether logits are not finite; minus infinity is how a model rules tokens out."""
    return bool((torch.isnan(logits) | torch.isposinf(logits)).any())


def within(found: Tensor, wanted: Tensor, allowed: float) -> bool:
    """Say whether logits in float32 are the same but for rounding, up to a part of the largest."""
    return found.shape == wanted.shape and apart_by(found, wanted) <= allowed  # NaN is not


def apart_by(found: Tensor, wanted: Tensor) -> float:
    """Return the largest difference of any logit of any token of the vocabulary, over the largest logit."""
    finite = torch.isfinite(wanted)
    if not bool((finite == torch.isfinite(found)).all()):
        return float("inf")
    difference = torch.where(finite, found - wanted, 0.0).abs().max()
    return float(difference / torch.where(finite, wanted, 0.0).abs().max().clamp(min=1e-6))


def _last_of_rows(batch: Pass) -> Tensor:
    """Return which predictions belong to the last place that is asked for in each row."""
    places = zip(batch.row.tolist(), batch.column.tolist(), range(len(batch.row)), strict=True)
    last: dict[int, tuple[int, int]] = {}
    for row, column, prediction in places:
        last[row] = max(last.get(row, (-1, -1)), (column, prediction))
    return torch.tensor([prediction for _, prediction in last.values()], device=batch.row.device)
