"""The flags that choose one trial of a front, the same for every command that takes one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from sae_moo.errors import InputError

if TYPE_CHECKING:
    from sae_moo.explore.decide.rules import Rule
    from sae_moo.explore.view import View
    from sae_moo.study.record import Ended

PICK_FLAGS = "--knee, --weights, --pseudo, --wish, --order and --where"


@dataclass(frozen=True, kw_only=True)
class PickOptions:
    """How one trial of a front is chosen, as the flags say it; a command has them by `with_pick_options`."""

    knee: Annotated[bool, typer.Option("--knee", help="The knee of the front (the default).")] = False
    weights: Annotated[str | None, typer.Option("--weights", metavar="A=w,B=w", help="Largest weighted sum.")] = None
    pseudo: Annotated[
        str | None, typer.Option("--pseudo", metavar="A=w,B=w", help="Nearest pseudo-weights of objectives.")
    ] = None
    wish: Annotated[str | None, typer.Option("--wish", metavar="A=x,B=y", help="Nearest to these values.")] = None
    order: Annotated[
        str | None,
        typer.Option("--order", metavar="A,B", help="The best in B among those about as good as the best in A."),
    ] = None
    tolerance: Annotated[
        float | None,
        typer.Option(metavar="x", help="What is about as good for --order; one standard error by default."),
    ] = None
    where: Annotated[list[str], typer.Option("--where", metavar="'A>=x'", help="Keep a limit; may be given again.")] = (
        field(default_factory=list)
    )

    @property
    def given(self) -> bool:
        """Whether any of them was given."""
        return self != PickOptions()

    @property
    def rule(self) -> Rule:
        """The rule that the flags say.

        Raises:
            InputError: if one does not read as it should, or they do not say one rule.
        """
        from sae_moo.explore.decide.rules import rule_of  # needs numpy; help texts do not

        return rule_of(
            knee=self.knee,
            weights=_numbers("--weights", self.weights),
            pseudo=_numbers("--pseudo", self.pseudo),
            wish=_numbers("--wish", self.wish),
            order=None if self.order is None else [name.strip() for name in self.order.split(",")],
            tolerance=self.tolerance,
        )

    def pick(self, view: View) -> tuple[Ended, str]:
        """Return the trial that is chosen, and why it is."""
        from sae_moo.explore.decide.rules import Condition

        rule = self.rule
        return view.pick([Condition.parse(text) for text in self.where], rule)


def _numbers(flag: str, text: str | None) -> dict[str, float] | None:
    """Read ``accuracy=2,sparsity=1``."""
    if text is None:
        return None
    numbers: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = (piece.strip() for piece in part.partition("="))
        if name in numbers:
            raise InputError(f"{flag} {text!r}: expected every quantity once, {name!r} comes again")
        try:
            numbers[name] = float(number)
        except ValueError:
            raise InputError(f"{flag} {text!r}: expected NAME=NUMBER,..., got {part!r}") from None
    return numbers


def with_pick_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the flags of `PickOptions` in the place of its argument `choice`."""
    hints = get_type_hints(PickOptions, include_extras=True)
    by_name = inspect.Parameter.KEYWORD_ONLY
    flags = [
        inspect.Parameter(each.name, by_name, default=_default(each), annotation=hints[each.name])
        for each in fields(PickOptions)
    ]
    signature = inspect.signature(command, eval_str=True)
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        parameters += flags if parameter.name == "choice" else [parameter.replace(kind=by_name)]

    @functools.wraps(command)
    def wrapped(**arguments: Any) -> None:
        choice = PickOptions(**{each.name: arguments.pop(each.name) for each in fields(PickOptions)})
        command(choice=choice, **arguments)

    wrapped.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {each.name: each.annotation for each in parameters}
    return wrapped


def _default(option: Field[Any]) -> Any:
    return option.default if option.default_factory is MISSING else option.default_factory()
