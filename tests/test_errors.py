from __future__ import annotations

import ast
import pickle
import re
from pathlib import Path

import pytest

import sae_moo
from sae_moo.cli.frame import ADVICE
from sae_moo.errors import MOST_FAULTS, Hint, InputError, RunError, first_few, itemized


def test_a_hint_is_told_behind_the_message_and_can_be_told_in_other_words():
    error = InputError("a: wrong", Hint.RENAME)
    assert str(error) == "a: wrong; use another study.name"
    assert error.advising("use --name") == "a: wrong; use --name"
    assert str(InputError("wrong:\n  - a", Hint.RENAME)) == "wrong:\n  - a\n  use another study.name"
    assert (str(RunError("a")), RunError("a").hint) == ("a", None)


def test_errors_with_a_hint_travel_between_processes_with_their_message():
    error = pickle.loads(pickle.dumps(InputError("a", Hint.ANEW)))
    assert (type(error), error.message, error.hint) == (InputError, "a", Hint.ANEW)


@pytest.mark.parametrize("hint", Hint)
def test_the_library_speaks_of_arguments_and_the_command_line_of_flags(hint):
    assert "--" not in hint.value
    assert ("fresh=True" in hint.value) == ("--fresh" in ADVICE[hint])


SPOKEN = {
    "deploy/formats.py": "a row names the commands to go on with",
    "deploy/card.py": "a model card ends in commands that its reader types",
    "explore/words.py": "a report names the commands that score a model on the test split",
    "explore/pages/notes.py": "a note ends in commands that its reader types",
    "explore/pages/report.py": "so does a report",
    "zoo/train.py": "a command of its own",
}
"""Files below the command line whose texts may name its flags, and why."""


def test_below_the_command_line_nobody_names_its_flags():
    package = Path(sae_moo.__file__).parent
    naming = set()
    for file in package.rglob("*.py"):
        tree = ast.parse(file.read_text())
        prose = {id(node.body[0].value) for node in ast.walk(tree) if is_documented(node)}
        texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        if any(re.search(r"(?<![-\w])--[a-z]", node.value) for node in texts if id(node) not in prose):
            naming.add(str(file.relative_to(package)))
    assert {name for name in naming if not name.startswith("cli/")} == set(SPOKEN)


def is_documented(node: ast.AST) -> bool:
    scopes = (ast.Module, ast.ClassDef, ast.FunctionDef)
    return isinstance(node, scopes) and bool(node.body) and isinstance(node.body[0], ast.Expr)


def test_faults_stand_under_their_title_and_deeper_within_another_list():
    assert itemized("wrong", ["a", 2]) == "wrong:\n  - a\n  - 2"
    assert itemized("outer", [itemized("inner", ["a"], within=True)]) == "outer:\n  - inner:\n      a"


def test_of_many_faults_a_few_are_told_and_how_many_more_there_are():
    many = [str(i) for i in range(MOST_FAULTS + 2)]
    assert first_few(many[:MOST_FAULTS]) == many[:MOST_FAULTS]
    assert first_few(many) == [*many[:MOST_FAULTS], "... and 2 more like this"]
