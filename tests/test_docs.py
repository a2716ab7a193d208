"""README and docs say what the code does: tables are current, links lead somewhere, every block runs or is read.

A block is checked by its language; a comment in the line above says what else it is: ``<!-- yaml: harness -->``, or
``<!-- no-run: REASON -->`` for one that cannot be run here. Python blocks of a page follow one another in one session.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from commands import call
from typer.main import get_command

import sae_moo as sm
from sae_moo import zoo
from sae_moo.cli.main import app
from sae_moo.searchers.algorithms import ALGORITHMS

ROOT = Path(__file__).parents[1]
FENCE = re.compile(
    r"(?:^<!-- (?P<mark>[\w-]+): (?P<words>[^\n]+) -->\n)?^```(?P<info>[^\n]*)\n(?P<text>.*?)^```$", re.M | re.S
)
LINK = re.compile(r"\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)\)")
LANGUAGES = {"python", "yaml", "sh", "text"}
MOST_BYTES = 9000
LIGHT = {"search": 12, "test": 8}  # instances a task; what a search finds is tested elsewhere
MINIMAL = {  # what fragments are put into
    "models": {"base": "zoo:base", "experts": {"math": "zoo:math", "lingua": "zoo:lingua"}},
    "tasks": [{"name": "qa", "data": "qa.jsonl", "kind": "likelihood"}, {"name": "zoo_math"}],
    "objectives": [{"mean": ["qa", "zoo_math"], "name": "accuracy"}, "sparsity"],
}


def load_tables():
    spec = importlib.util.spec_from_file_location("tables", ROOT / "docs" / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tables = load_tables()
PAGES = {str(page.relative_to(ROOT)): page for page in [*tables.pages(), *ROOT.glob("C*.md")]}


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    mark: str | None
    words: str | None
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(name: str, text: str) -> list[Block]:
    return [
        Block(
            name,
            text.count("\n", 0, fence.start("info")) + 1,
            fence["info"],
            fence["mark"],
            fence["words"],
            fence["text"],
        )
        for fence in FENCE.finditer(text)
    ]


BLOCKS = [block for name, page in PAGES.items() for block in blocks_of(name, page.read_text(encoding="utf-8"))]


def blocks(language: str, mark: str | None = None) -> list[Block]:
    return [block for block in BLOCKS if (block.language, block.mark) == (language, mark)]


def anchors_of(page: Path) -> set[str]:
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", prose, re.M)
    return {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder like a checkout with the quickstart, asked little, and models at the paths that docs speak of."""
    light = yaml.safe_load((ROOT / "configs" / "quickstart.yaml").read_text())
    light["search"]["evaluations"] = 30
    for task in light["tasks"]:
        task |= LIGHT
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "quickstart.yaml").write_text(yaml.safe_dump(light, sort_keys=False))
    (tmp_path / "path" / "to").mkdir(parents=True)
    for name, source in {"base": "base", "math": "math", "code": "logic"}.items():
        (tmp_path / "path" / "to" / name).symlink_to(zoo.checkpoint(source))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_generated_tables_are_current():
    assert [name for name, page in PAGES.items() if tables.filled(page) != page.read_text(encoding="utf-8")] == []


def test_a_stale_table_is_told_and_written_anew(tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    page.write_text("above\n<!-- generated: task kinds -->\n| old |\n<!-- end -->\nbelow\n")
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.setattr(tables, "pages", lambda: [page])
    assert tables.main(["--check"]) == 1
    assert "page.md: stale" in capsys.readouterr().out
    assert "| old |" in page.read_text()
    assert tables.main([]) == 0
    assert page.read_text().startswith("above\n<!-- generated: task kinds -->\n| `kind` |")
    assert page.read_text().endswith("<!-- end -->\nbelow\n")
    assert tables.main(["--check"]) == 0


def test_every_section_of_a_configuration_has_its_table():
    def sections(path: str, properties: dict, schema: dict) -> list[str]:
        found = []
        for key, value in properties.items():
            for name in re.findall(r"#/\$defs/(\w+)", str(value)):
                inner = f"{path}{key}"
                found += [inner, *sections(f"{inner}.", schema["$defs"][name]["properties"], schema)]
        return found

    schema = sm.Config.model_json_schema()
    page = PAGES["docs/configuration.md"].read_text(encoding="utf-8")
    expected = {*sections("", schema["properties"], schema)}
    expected |= {f"search.{key}" for row in ALGORITHMS.values() for key in row.settings}
    assert set(re.findall(r"<!-- generated: keys: (.+?) -->", page)) == expected


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_bytes()) <= MOST_BYTES


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    page = PAGES[name]
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    broken = []
    for link in LINK.findall(prose):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors_of(target)):
            broken.append(link)
    assert broken == []


def test_the_citation_and_the_package_name_this_version():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == sm.__version__
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == sm.__version__


def test_every_page_is_in_the_navigation():
    listed = re.findall(r"^ +- (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)
    assert sorted(f"docs/{page}" for page in listed) == sorted(name for name in PAGES if name.startswith("docs/"))


def test_every_public_name_is_in_the_reference():
    pages = [page.read_text() for page in (ROOT / "docs" / "api").glob("*.md")]
    assert sorted(re.findall(r"^::: sae_moo\.(\w+)$", "\n".join(pages), re.M)) == sorted(sm.__all__)


def test_every_block_says_its_language_and_what_is_not_run_says_why():
    assert [str(block) for block in BLOCKS if block.language not in LANGUAGES] == []
    known = {("no-run", language) for language in LANGUAGES} | {("yaml", "yaml")}
    assert [str(block) for block in BLOCKS if block.mark and (block.mark, block.language) not in known] == []
    fences = sum(len(re.findall(r"^```", page.read_text(encoding="utf-8"), re.M)) for page in PAGES.values())
    assert fences == 2 * len(BLOCKS)


@pytest.mark.parametrize("page", sorted({block.page for block in blocks("python")}))
def test_python_blocks_run(page, here):
    session: dict = {"__name__": "session"}
    for block in blocks("python"):
        if block.page == page:
            source = "\n" * block.line + block.text  # a traceback then has the page's lines
            exec(compile(source, str(ROOT / page), "exec"), session)


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_yaml_blocks_are_configurations_or_parts_of_one(block, here):
    raw = yaml.safe_load(block.text)
    if "models" in raw and "tasks" in raw:
        (here / "whole.yaml").write_text(block.text)
        sm.Config.load(here / "whole.yaml")
    else:
        (here / "part.yaml").write_text(yaml.safe_dump(MINIMAL | raw, sort_keys=False))
        sm.Config.load(here / "part.yaml")


def test_the_harness_task_of_the_docs_is_built_and_judged(here):
    (block,) = (block for block in blocks("yaml", "yaml") if block.words == "harness")
    (here / "yamls").mkdir()
    (here / "yamls" / "my_task.yaml").write_text(block.text)
    (here / "data").mkdir()
    item = json.loads(re.search(r"\{\"question.*\}", block.text)[0])
    for split in ("dev", "test"):
        items = [item | {"question": f"{item['question']} {split} {i}"} for i in range(4)]
        (here / "data" / f"{split}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in items))
    task = {"name": "my_task", "include": "yamls", "search": 4, "test": 4}
    bench = sm.Bench.open(sm.Config.from_dict(MINIMAL | {"tasks": [task], "objectives": ["my_task", "sparsity"]}))
    assert [bench.tasks[0].instances(split) for split in ("search", "test")] == [4, 4]


def test_the_mergekit_configuration_of_the_docs_is_merged(here):
    (block,) = (block for block in blocks("yaml", "yaml") if block.words == "mergekit")
    (here / "mergekit.yaml").write_text(block.text)
    call("merge", "mergekit.yaml", "--output", "merged")
    assert (here / "merged" / "config.json").is_file()


def command_lines() -> list[str]:
    lines = [part for block in blocks("sh") for line in block.text.splitlines() for part in line.split("&&")]
    return sorted(
        {shlex.join(shlex.split(line, comments=True)) for line in lines if line.strip().startswith("sae-moo")}
    )


@pytest.mark.parametrize("line", command_lines())
def test_command_lines_are_understood(line):
    words = shlex.split(line)
    command = get_command(app).commands[words[1]]
    command.make_context(words[1], words[2:])


def test_commands_in_sentences_exist():
    named = {
        word for page in PAGES.values() for word in re.findall(r"`sae-moo ([a-z]\w*)", page.read_text(encoding="utf-8"))
    }
    assert named <= {*get_command(app).commands}
    assert {"search", "validate"} <= named
