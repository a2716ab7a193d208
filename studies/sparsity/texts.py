"""The texts of the language model's study: which lines train, calibrate, choose, and are scored.

The first 250 test problems of GSM8K are those of MGSM, in the same order, so that a problem that is scored in English
is none of them; a problem and its translations have one line number, and one part.

| part      | GSM8K             | MGSM (5 languages) | XCOPA (4 languages) | for                                        |
|-----------|-------------------|--------------------|---------------------|--------------------------------------------|
| train     | train 1-1200      | 1-150              | 1-60                | the two adapters                           |
| calibrate | train 1201-1350   | 151-170            | 61-70               | activation norms, Hessians                 |
| choose    | train 1351-1500   | 171-190            | 71-78               | the merge's scale, allocations, blocks     |
| score     | test 251-500      | 191-250            | 79-100              | every number in a table                    |
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

DATA = Path(os.environ.get("SAE_MOO_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
TASKS = ("gsm8k", "languages")
# lines of a part, from 0, in: GSM8K (its file and its lines), MGSM, XCOPA
PARTS = {
    "train": (("train_first1500", range(1200)), range(150), range(60)),
    "calibrate": (("train_first1500", range(1200, 1350)), range(150, 170), range(60, 70)),
    "choose": (("train_first1500", range(1350, 1500)), range(170, 190), range(70, 78)),
    "score": (("test_first500", range(250, 500)), range(190, 250), range(78, 100)),
}
ANSWER = {"de": "Antwort", "es": "Respuesta", "fr": "Réponse", "sw": "Jibu", "zh": "答案"}
BECAUSE = {
    "it": ("perché", "quindi"),
    "id": ("karena", "maka"),
    "sw": ("kwa sababu", "kwa hiyo"),
    "zh": ("因为", "所以"),
}


@dataclass(frozen=True, slots=True)
class Text:
    """A text with its gold answer at the end.

    Args:
        task: one of `TASKS`.
        prompt: what comes before the answer.
        answer: the gold answer, with the blank before it.
    """

    task: str
    prompt: str
    answer: str


def texts(task: str, part: str) -> list[Text]:
    """Return a part's texts of a task, in a fixed order that takes languages and sets in turn."""
    (file, problems), mgsm, xcopa = PARTS[part]
    if task == "gsm8k":
        rows = _json_lines(DATA / "gsm8k" / f"{file}.jsonl", problems)
        return [Text(task, f"Question: {row['question']}\nAnswer:", f" {row['answer']}") for row in rows]
    columns: list[list[Text]] = []
    for language, word in ANSWER.items():
        lines = (DATA / "mgsm" / f"mgsm_{language}.tsv").read_text(encoding="utf-8").splitlines()
        pairs = [lines[i].split("\t") for i in mgsm]
        columns.append([Text(task, f"{question}\n{word}:", f" {number}") for question, number in pairs])
    for language, words in BECAUSE.items():
        rows = _json_lines(DATA / "xcopa" / language / f"val.{language}.jsonl", xcopa)
        columns.append([_sentence(row, language, words) for row in rows])
    return [text for text in chain.from_iterable(zip_longest(*columns)) if text is not None]


def encoded(tokenizer: Any, given: Sequence[Text], tokens: int) -> list[tuple[list[int], int]]:
    """Return texts as token ids with the number of those of the answer: as many, in order, as `tokens` tokens take."""
    rows: list[tuple[list[int], int]] = []
    for text in given:
        before = tokenizer(text.prompt, add_special_tokens=False).input_ids
        after = tokenizer(text.answer, add_special_tokens=False).input_ids
        if tokens < len(before) + len(after):
            break
        rows.append(([*before, *after], len(after)))
        tokens -= len(before) + len(after)
    return rows


def _json_lines(path: Path, lines: range) -> list[dict[str, Any]]:
    content = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(content[i]) for i in lines]


def _sentence(row: dict[str, Any], language: str, words: tuple[str, str]) -> Text:
    word = words[row["question"] == "effect"]
    if language == "zh":
        return Text("languages", row["premise"].rstrip("。") + "\uff0c" + word, row[f"choice{row['label'] + 1}"])
    choice = row[f"choice{row['label'] + 1}"]
    return Text("languages", f"{row['premise'].rstrip('.')} {word}", f" {choice[0].lower()}{choice[1:]}")
