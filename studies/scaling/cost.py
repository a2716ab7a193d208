"""What 1,000 evaluations cost on GPUs, on paper: ``python studies/scaling/cost.py [--price 3] [--driver-ms 10]``.

Nothing here was run at these sizes. Every number says what it is: *measured* (by which study), *vendor* (a data sheet),
*assumed* (a guess, to be replaced by one's own), *goal* (what studies/gpu asks for and has not measured yet); the rest
is computed from these.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

BYTES = 2  # of a weight in bfloat16


@dataclass(frozen=True, slots=True)
class Known:
    """A number and where it is from."""

    value: float
    unit: str
    what: str
    origin: str


COPY_LINEAR = 0.194 / 47  # seconds; linear of three experts at 1.54B is four times the weights, read or written
KNOWN = {
    "flops": Known(989e12, "FLOP/s", "dense bfloat16 of an H100 SXM", "vendor"),
    "mfu": Known(0.40, "", "share of that which passes over whole prompts reach", "assumed"),
    "memory": Known(4 * 1.54e9 * BYTES / COPY_LINEAR, "B/s", "memory of the card, as a copy moves it", "measured: studies/gpu, the copy beside `linear`"),
    "link": Known(3 * 1.54e9 * BYTES / (0.449 / 2.7), "B/s", "pinned host memory to one card", "measured: studies/gpu, the copy beside streamed `linear`"),
    "host": Known(400e9, "B/s", "what the host's memory gives all cards together", "assumed"),
    "merge": Known(6, "copies", "a merge that is pruned, over the copy of its bytes", "goal: studies/gpu"),
    "plain": Known(0.690 / 1.54e9, "s a weight", "the same by the plain path", "measured: studies/gpu, linear then magnitude"),
    "beside": Known(1.07, "", "an evaluation over its bare passes", "measured: studies/evaluation, on a CPU"),
    "block": Known(0.0008, "s", "launching one block's kernels for one step of writing, eager", "assumed"),
    "reduce": Known(15e-6, "s", "adding up one activation over 8 cards", "assumed"),
    "disk": Known(2e9, "B/s", "reading checkpoints, each node for itself", "assumed"),
    "choices": Known(1000 * (300 + 4 * 20), "tokens", "1,000 questions with four answers", "assumed"),
    "texts": Known(500, "", "prompts that are answered in writing, 200 tokens each", "assumed"),
    "written": Known(200, "tokens", "longest answer of a batch", "assumed"),
    "batch": Known(64, "", "prompts that are written to at a time", "assumed"),
    "operands": Known(3, "", "models that a candidate is merged of, from the host's memory all of them", "assumed"),
    "busy": Known(0.97, "", "share of their time that workers evaluate", "the goal of utilisation.py"),
}  # fmt: skip
GPUS_OF_NODE = 8
FIRST = 24  # the first population, which is waited for
SLOWEST = 3.4  # of 24 log-normal evaluations (sigma 0.7) the longest, over the mean: exp(0.7 z - 0.245), z = 2.1


def known(name: str) -> float:
    return KNOWN[name].value


@dataclass(frozen=True, slots=True)
class Model:
    """A model as it lies on cards.

    Args:
        name: what tables call it.
        weights: how many.
        blocks: how many transformer blocks.
        cards: how many hold one model.
        together: whether all of its cards compute at once (tensors are split); else one after another (blocks are).
    """

    name: str
    weights: float
    blocks: int
    cards: int = 1
    together: bool = True

    @property
    def size(self) -> float:
        return self.weights * BYTES

    def terms(self, plain: bool) -> dict[str, float]:
        """Return seconds of an evaluation, by what takes them."""
        work = self.cards if self.together else 1
        operands = known("operands")
        link = min(known("link") * self.cards, known("host") * self.cards / GPUS_OF_NODE)  # all workers stream at once
        copy = (operands + 1) * self.size / (known("memory") * self.cards)
        merging = known("plain") * self.weights / self.cards if plain else known("merge") * copy
        reduced = 2 * self.blocks * known("reduce") if self.together and self.cards > 1 else 0.0
        step = max(self.size / (work * known("memory")), self.blocks * known("block")) + reduced
        batches = -(-known("texts") // known("batch"))
        prompts = known("choices") + known("texts") * 200
        return {
            "merging": max(merging, operands * self.size / link),
            "reading questions and prompts": known("beside") * 2 * self.weights * prompts / (known("mfu") * known("flops") * work),
            "writing": known("beside") * batches * known("written") * step,
        }  # fmt: skip


MODELS = (
    Model("7B", 7e9, 32),
    Model("70B over 8, tensors split", 70e9, 80, 8),
    Model("70B over 8, block after block", 70e9, 80, 8, together=False),
)


def row(model: Model, gpus: int, evaluations: int, price: float, driver: float, plain: bool) -> str:
    """Return what so many evaluations cost, as a row."""
    terms = model.terms(plain)
    each, workers = sum(terms.values()), gpus // model.cards
    opening = 4 * model.size / known("disk")
    by_driver = evaluations * driver
    by_workers = FIRST / min(workers, FIRST) * each + (evaluations - FIRST) * each / (workers * known("busy"))
    ends = 2 * SLOWEST * each if workers > 1 else 0.0  # the last of the first population, and of all
    seconds = opening + max(by_driver, by_workers + ends)
    largest = max(terms, key=lambda name: terms[name])
    limit = (
        "the driver" if by_driver > by_workers + ends else f"{largest}, {terms[largest] / each:.0%} of an evaluation"
    )
    return (
        f"| {model.name} | {gpus} | {workers} | {each:.0f} | {opening / 60:.1f} min | {seconds / 3600:.2f} h | "
        f"{gpus * seconds / 3600 * price:,.0f} | {workers * driver / each:.2%} | {limit} |"
    )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="What 1,000 evaluations cost on GPUs, on paper.")
    parser.add_argument("--price", type=float, default=3.0, help="of a GPU, an hour")
    parser.add_argument("--driver-ms", type=float, default=10.0, help="of an evaluation, by overhead.py")
    parser.add_argument("--evaluations", type=int, default=1000)
    parser.add_argument("--plain", action="store_true", help="merging as measured by plain torch, not as the goals say")
    given = parser.parse_args()
    print("| number | what | origin |\n| --- | --- | --- |")
    for each in KNOWN.values():
        print(f"| {each.value:.3g} {each.unit} | {each.what} | {each.origin} |")
    print("\n| an evaluation, s | " + " | ".join(MODELS[0].terms(given.plain)) + " | merging, plain torch |")
    print("| --- |" + " --- |" * 4)
    for model in MODELS:
        seconds = [*model.terms(given.plain).values(), model.terms(True)["merging"]]
        print(f"| {model.name} | " + " | ".join(f"{value:.1f}" for value in seconds) + " |")
    print(
        f"\n| {given.evaluations:,} evaluations | GPUs | workers | each, s | opening | time | price | driver busy | most of it |"
    )
    print("| --- |" + " --- |" * 8)
    for model in MODELS:
        for gpus in (8, 64):
            print(row(model, gpus, given.evaluations, given.price, given.driver_ms / 1e3, given.plain))


if __name__ == "__main__":
    main()
