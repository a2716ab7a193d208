"""The flags that choose a trial, as every command has them."""

from __future__ import annotations

import inspect

import pytest
from typer import Typer
from typer.testing import CliRunner

from sae_moo.cli.choice import PICK_FLAGS, PickOptions, with_pick_options
from sae_moo.cli.commands.decide import pick
from sae_moo.cli.commands.deploy import export
from sae_moo.errors import InputError
from sae_moo.explore.decide.rules import Knee, Lexicographic, PseudoWeighted, WeightedSum, Wish


def given(*arguments: str) -> PickOptions:
    """What a command with these flags is told."""
    told = []
    app = Typer()

    def command(run: str, *, choice: PickOptions, last: bool = False) -> None:
        told.append((run, choice, last))

    app.command()(with_pick_options(command))
    result = CliRunner().invoke(app, ["tiny", "--last", *arguments])
    assert result.exit_code == 0, result.output
    ((run, choice, last),) = told
    assert (run, last) == ("tiny", True), "the command's own arguments are as they were"
    return choice


def test_without_flags_nothing_is_given():
    assert given() == PickOptions()
    assert not given().given


@pytest.mark.parametrize(
    ("flags", "field", "value"),
    [
        (("--knee",), "knee", True),
        (("--weights", "a=1,b=2"), "weights", "a=1,b=2"),
        (("--pseudo", "a=1"), "pseudo", "a=1"),
        (("--wish", "a=0.5"), "wish", "a=0.5"),
        (("--order", "a,b"), "order", "a,b"),
        (("--tolerance", "0"), "tolerance", 0.0),
        (("--where", "a>=1", "--where", "b<=2"), "where", ["a>=1", "b<=2"]),
    ],
)
def test_a_flag_is_told_and_counts_as_given(flags, field, value):
    choice = given(*flags)
    assert choice == PickOptions(**{field: value})
    assert choice.given
    assert field == "tolerance" or flags[0] in PICK_FLAGS


def test_pick_and_export_have_every_one_of_them():
    for command in (pick, export):
        assert PickOptions.__annotations__.keys() < inspect.signature(command).parameters.keys()
        assert "choice" not in inspect.signature(command).parameters


@pytest.mark.parametrize(
    ("flags", "rule"),
    [
        ({}, Knee()),
        ({"weights": "accuracy=2, sparsity = 1"}, WeightedSum({"accuracy": 2.0, "sparsity": 1.0})),
        ({"pseudo": "x=1"}, PseudoWeighted({"x": 1.0})),
        ({"wish": "x=.5"}, Wish({"x": 0.5})),
        ({"order": "x, y", "tolerance": 0.1}, Lexicographic(("x", "y"), 0.1)),
    ],
)
def test_flags_say_a_rule(flags, rule):
    assert PickOptions(**flags).rule == rule


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"weights": "accuracy"}, "--weights 'accuracy': expected NAME=NUMBER,..., got 'accuracy'"),
        ({"pseudo": "x=1,x=5"}, "--pseudo 'x=1,x=5': expected every quantity once, 'x' comes again"),
        ({"wish": ""}, "--wish '': expected NAME=NUMBER"),
        ({"knee": True, "weights": "x=1"}, "knee and weights choose differently"),
    ],
)
def test_flags_that_say_none(flags, message):
    with pytest.raises(InputError, match=message):
        _ = PickOptions(**flags).rule
