"""Tasks of one name in a study and here: whether they ask the same, if not the same items of it."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sae_moo.errors import InputError
from sae_moo.evaluate.asking import TaskSection
from sae_moo.explore.run import Run
from sae_moo.files.marked_yaml import dotted
from sae_moo.files.places import located
from sae_moo.jobs.bench import Bench
from sae_moo.jobs.tasks import open_tasks
from sae_moo.recipe import BASE

SIZES = ("search", "test")
"""Keys of a task that say how many of its items are asked."""
OWN = ("data", "include")
"""Keys of a task that name files of the user's own."""


def strangers(run: Run, bench: Bench, tasks: Sequence[str]) -> Iterator[str]:
    """Yield in what tasks of a study differ from ours of the same names, for each that is another task.

    Another number of its items may be asked, and other ones of them, by another tokenizer: that is the same task still.
    All that says how it is asked and scored must be the same, and so must be what the user's own files hold.

    Args:
        run: the study.
        bench: our experts and tasks.
        tasks: names of tasks that both have.
    """
    before, here = run.identity, bench.identity()
    theirs, ours = ({each.name: each for each in config.tasks} for config in (run.config, bench.config))
    for task in tasks:
        items = f"items of {task}"
        if before.get(items) == here[items]:
            continue
        changed = asked_otherwise(before, here, task, but=SIZES)
        if changed:
            yield "; ".join(changed)
        else:
            fault = _other_items(run, bench, theirs[task], ours[task])
            if fault is not None:
                yield f"{items}: {fault}"


def asked_otherwise(
    before: Mapping[str, Any], here: Mapping[str, Any], task: str, but: Collection[str] = ()
) -> list[str]:
    """Return what is said differently of a task, in words; its items are not looked at.

    Args:
        before: identity of a study, see `bench.Bench.identity`.
        here: ours.
        task: name of the task in both.
        but: keys of the task that may differ.
    """
    keys = dict.fromkeys((*_keys(before, task, but), *_keys(here, task, but)))
    changed = sorted(key for key in keys if before.get(key) != here.get(key))
    return [f"{key}: it has {before.get(key)!r}, here it is {here.get(key)!r}" for key in changed]


def asked_of(bench: Bench, tasks: Sequence[str]) -> dict[str, str]:
    """Return what tells tasks from others of the same names, as `asked_otherwise` compares it; no numbers of items.

    Args:
        bench: our tasks.
        tasks: names of some of them.
    """
    identity, sections = bench.identity(), {each.name: each for each in bench.config.tasks}
    asked = {key: str(identity[key]) for task in tasks for key in _keys(identity, task, SIZES)}
    for task in tasks:
        for key in OWN:
            name = getattr(sections[task], key)
            if name is not None:
                content = _content(located(name, bench.config.directory))
                asked[f"{_within(task)}{key}"] = f"of digest {content[:16]}"
    return asked


def _keys(identity: Mapping[str, Any], task: str, but: Collection[str]) -> list[str]:
    """Return the keys of an identity that say how a task is asked, but some."""
    within = _within(task)
    left = {f"{within}{key}" for key in but}
    return [key for key in identity if (key.startswith(within) and key not in left) or key == f"kind of {task}"]


def _within(task: str) -> str:
    return f"{dotted(('tasks', task))}."


def _other_items(run: Run, bench: Bench, theirs: TaskSection, ours: TaskSection) -> str | None:
    """Return why a task that is asked in the same way is of other items, if that can be told."""
    for key in OWN:
        files = [
            (getattr(section, key), config.directory)
            for section, config in ((theirs, run.config), (ours, bench.config))
        ]
        try:
            same = len({None if name is None else _content(located(name, folder)) for name, folder in files}) == 1
        except OSError as error:
            return f"whether they are these cannot be told: {error.filename}: {error.strerror}"
        if not same:
            there, name = (name or "the harness" for name, _ in files)
            return f"it has those of {there}, which holds something else than {name}"
    if run.fingerprints.get(BASE) != bench.pool.fingerprints[BASE]:
        return None  # read by another tokenizer; its own bench is opened for its experts, and looks at them
    if all(getattr(theirs, key) == getattr(ours, key) for key in SIZES):
        return "it has others under this name"
    if all(getattr(theirs, key) is None for key in OWN):
        return None
    try:
        (task,) = open_tasks(run.config.model_copy(update={"tasks": [theirs]}), bench.pool)
    except InputError as error:
        return f"whether they are these cannot be told: {str(error).splitlines()[0]}"
    changed = task.fingerprint != run.identity.get(f"items of {theirs.name}")
    return "its file does not hold what it held when the study was made" if changed else None


def _content(path: Path) -> str:
    """Return a digest of what a file holds, or the files of a folder, with their names."""
    found = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    parts = [(each.relative_to(path).as_posix(), hashlib.sha256(each.read_bytes()).hexdigest()) for each in found]
    return hashlib.sha256(repr(parts).encode()).hexdigest()
