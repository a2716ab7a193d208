"""Files of items: JSON lines or a JSON list; whatever else is given is called by name in one line."""

from __future__ import annotations

import gzip
import json

import pytest

from sae_moo.errors import MOST_FAULTS, InputError
from sae_moo.evaluate.tasks import Item, read_items

ENTRIES = [{"prompt": f"{i} is", "choices": [" a", " b"], "label": i % 2} for i in range(3)]
ITEMS = [Item(f"{i} is", (" a", " b"), i % 2) for i in range(3)]
LINES = "\n".join(json.dumps(entry) for entry in ENTRIES)


@pytest.mark.parametrize(
    "text",
    [
        LINES,
        "\n\n" + LINES.replace("\n", "\n\n") + "\n",
        LINES.replace("\n", "\r\n"),
        "\ufeff" + LINES,
        json.dumps(ENTRIES),
        json.dumps(ENTRIES, indent=2),
        "\ufeff\r\n" + json.dumps(ENTRIES, indent=1) + "\r\n",
        LINES.replace('"label": 1', '"label": 1.0'),
    ],
)
def test_items_are_lines_or_a_list(text, tmp_path):
    path = tmp_path / "items.jsonl"
    path.write_bytes(text.encode())
    assert read_items(path, "multiple_choice") == ITEMS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"prompt,answer\n1 + 1 =,2\n",
            r":1: expected a JSON object a line.*got 'prompt,answer'; a table is read by pand",
        ),
        (b"prompt\tanswer\n1 + 1 =\t2\n", r"pandas.read_csv\('items.jsonl', sep='\\t'\).to_json\('items.jsonl', "),
        (b"PAR1\x15\x04", "this is a Parquet file"),
        (gzip.compress(LINES.encode(), mtime=0), "this is a gzip archive"),
        (b"PK\x03\x04....", "this is a zip archive or a spreadsheet"),
        (LINES.encode("utf-16"), "this is text in UTF-16"),
        (b'{"prompt": "\xe9"}', "expected text in UTF-8"),
        (b"- prompt: a\n  answer: b\n", ":1: expected a JSON object a line"),
        (b"'prompt': 'a'", ":1: expected a JSON object a line"),
        (json.dumps({"data": ENTRIES}, indent=1).encode(), "this is one object, with 'data'"),
        (json.dumps(ENTRIES).encode()[:-5], "the JSON list that begins it is not JSON"),
        (
            json.dumps(ENTRIES, indent=1).encode()[:-9] + b",,]",
            r"the JSON list that begins it is not JSON: .* in line \d+",
        ),
        (b"[" * 200_000, "nested too deeply"),
    ],
)
def test_a_file_of_another_kind_is_one_line(content, message, tmp_path):
    path = tmp_path / "items.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_items(path, "multiple_choice")
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ('"label": NaN', "label: expected a whole number from 0 to 1, got nan"),
        ('"label": true', "label: expected a whole number from 0 to 1, got True"),
        ('"label": null', "got None"),
        ('"label": -1', "got -1"),
        ('"label": 0.5', "got 0.5"),
        ('"label": "B"', r"got 'B' \(did you mean 1\?\)"),
        ('"label": "1"', r"got '1' \(did you mean 1\?\)"),
        ('"label": "b"', r"got 'b' \(did you mean 1\?\)"),
        (f'"label": 1{"0" * 4000}', "got 1000"),
        (f'"label": 1{"0" * 5000}', "a number of too many digits"),
        ('"label": 1e999', "got inf"),
        ('"label": 0, "choices": []', r"choices: expected two or more non-empty texts, got \[\]"),
        ('"label": 0, "choices": [" a", ""]', "choices: expected two or more non-empty texts"),
        ('"label": 1, "choices": [" a", " b", " b"]', "choices: expected the right choice once, ' b' comes again"),
        ('"label": 0, "choices": [1, 2]', r"got \[1, 2\]"),
        ('"label": 0, "choices": " a b"', "choices: expected two or more"),
        (f'"label": 0, "choices": ["{"x" * 10_000_000}"]', r"choices: expected .*x\.\.\. \(10000004 characters\)"),
        ('"label": 0, "prompt": 7', "prompt: expected text, got 7"),
        ('"label": 0, "prompt": "\\ud800"', "expected text, got half a character: surrogates not allowed"),
        ('"label": 0, "prompt": "a\x00b"', "not JSON: Invalid control character at"),
        ('"label": 0, "prompt": "a\rb"', "not JSON: Invalid control character at"),
        ('"label": ' + "[" * 100_000, "nested too deeply"),
        ('"label": 0} {"prompt": "b"', "not JSON: Extra data"),
        ('"labels": 0', "expected prompt, choices, label; missing label"),
    ],
)
def test_an_odd_value_is_one_line_with_its_place(changed, message, tmp_path):
    path = tmp_path / "items.jsonl"
    odd = '{"prompt": "1 is", "choices": [" a", " b"], ' + changed + "}"
    path.write_text(f"{LINES}\n{odd}\n", newline="")
    with pytest.raises(InputError, match=message) as caught:
        read_items(path, "multiple_choice")
    title, fault = str(caught.value).splitlines()
    assert title == "items for multiple_choice cannot be read:"
    assert fault.startswith(f"{path}:4: ")
    assert len(fault) < 500


def test_of_many_faults_the_first_are_told_and_their_number(tmp_path):
    path = tmp_path / "items.jsonl"
    path.write_text("\n".join(['{"prompt": 1, "answer": " a"}', "{", *['{"prompt": "a"}'] * 5000]))
    with pytest.raises(InputError) as caught:
        read_items(path, "likelihood")
    told = str(caught.value).splitlines()
    assert len(told) == MOST_FAULTS + 2
    assert told[1].startswith(f"{path}:1: prompt: expected text")
    assert told[2].startswith(f"{path}:2: not JSON")
    assert told[-1] == f"... and {5002 - MOST_FAULTS} more like this"
    path.write_text(json.dumps([{"prompt": "a", "answer": " b"}, {"prompt": "a"}, 7]))
    with pytest.raises(
        InputError, match=r"items\.jsonl, entry 2: expected prompt, answer(.|\n)*entry 3: expected an object"
    ):
        read_items(path, "likelihood")


def test_what_is_odd_and_right_is_read_as_it_stands(tmp_path):
    path = tmp_path / "items.jsonl"
    odd = ["", " ", "\x00", "\u2028", "\ufeff", "\U0001f600", "a" * 100_000]
    path.write_text("\n".join(json.dumps({"prompt": text, "answer": " b", "id": 1}) for text in odd))
    assert read_items(path, "exact_match") == [Item(text, (" b",)) for text in odd]
