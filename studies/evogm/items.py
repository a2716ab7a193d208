"""Write the items of the EvoGM authors' bench as `paper.yaml` reads them.

    git clone https://github.com/JiangTao97/evogm elsewhere/evogm
    cd studies/evogm
    python items.py elsewhere/evogm/data/swarm_eval           # into data/, beside paper.yaml

Their files hold a `dev` and a `test` split each; the search takes `dev`. Items with choices become a prompt that ends
before a letter, and the letters; items without become a prompt and what its answer must contain. `mmlu_abstain` has the
items of `mmlu`. The example of how to answer (`WITH_EXAMPLE`) is that of their configuration, else that of the file.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

WITH_EXAMPLE = ("knowledge_crosswords",)  # whatever others have, theirs does not show it
CHOICES = ("mmlu", "mmlu_pro", "hellaswag", "knowledge_crosswords", "truthfulqa")
WRITTEN = ("gsm8k", "nlgraph")
ASKED = {
    "knowledge_crosswords": "",
    "hellaswag": "Please choose an option that best completes the sentence.\n",
}
"""What stands before a question; of other tasks `ASKED_ELSE`."""
ASKED_ELSE = "Please choose an option that best answers the question.\n"


def with_choices(item: Mapping[str, Any], before: str) -> dict[str, Any]:
    """Return an item as a prompt, letters to choose from, and the place of the right one."""
    letters = list(item["choices"])
    options = "".join(f"{letter}: {item['choices'][letter]}\n" for letter in letters)
    return {
        "prompt": f"{before}Question: {item['question']}\n{options}The answer is",
        "letters": [f" {letter}" for letter in letters],
        "label": letters.index(item["answer"]),
    }


def configured(path: Path) -> dict[str, str]:
    """Return the examples of how to answer that their configuration has, by task; none where there is no such file."""
    tasks = yaml.safe_load(path.read_text("utf-8"))["tasks"] if path.is_file() else []
    return {task["name"]: task["icl_prompt"] for task in tasks if task.get("icl_prompt")}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description="Write the items of the EvoGM authors' bench as paper.yaml reads them."
    )
    parser.add_argument("source", type=Path, help="their folder data/swarm_eval")
    parser.add_argument("--output", type=Path, default=Path("data"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    examples = configured(options.source.resolve().parents[1] / "config/taskpool/qwen_eval.yaml")
    for task in (*CHOICES, *WRITTEN):
        whole = json.loads((options.source / f"{task}.json").read_text("utf-8"))
        before = ASKED.get(task, ASKED_ELSE)
        if task in WITH_EXAMPLE and (example := examples.get(task) or whole.get("icl_prompt")):
            before = f"{example}\n{before}"
        for split in ("dev", "test"):
            rows = [
                with_choices(item, before)
                if task in CHOICES
                else {"prompt": item["question"], "answer": str(item["answer"])}
                for item in whole[split]
            ]
            path = options.output / f"{task}.{split}.jsonl"
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
            print(f"{path}: {len(rows)} items")


if __name__ == "__main__":
    main()
