"""From sections of a configuration to tasks, tokenized for a pool of experts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sae_moo.config.document import Config
from sae_moo.errors import InputError
from sae_moo.evaluate.asking import TaskSection
from sae_moo.evaluate.kinds import HARNESS, KINDS, OWN_ITEMS, Opening
from sae_moo.evaluate.task import Task
from sae_moo.evaluate.tasks import open_task, origin_of, read_items, split_items, zoo_items
from sae_moo.experts.code import only_code
from sae_moo.experts.layout import longest_input
from sae_moo.experts.pool import ExpertPool
from sae_moo.files.places import located
from sae_moo.recipe import BASE


def open_tasks(config: Config, pool: ExpertPool, tokenizer: Any = None) -> tuple[Task, ...]:
    """Build the configured tasks.

    Args:
        config: the configuration.
        pool: the experts; the base says how many tokens the model takes.
        tokenizer: None means the base's.

    Raises:
        InputError: listing the faults of every task; or if only code beside the base's weights could build the model.
    """
    unknown = only_code(pool.checkpoints[BASE].folder)
    if unknown is not None:
        raise InputError(unknown)
    tokenizer = pool.tokenizer() if tokenizer is None else tokenizer
    longest = longest_input(pool.checkpoints[BASE].config)
    tasks: list[Task] = []
    faults = []
    for section in config.tasks:
        try:
            tasks.append(_task(section, config.directory, tokenizer, pool.checkpoints[BASE].folder, longest))
        except InputError as error:
            faults.append(str(error))
    if faults:
        first, *more = (line for fault in faults for line in fault.splitlines())
        raise InputError("\n".join([first, *(line if line.startswith(" ") else f"  {line}" for line in more)]))
    return tuple(tasks)


def _task(section: TaskSection, directory: Path, tokenizer: Any, folder: Path, longest: int | None) -> Task:
    items: Sequence[Any] | None = None
    if section.of_harness:
        kind = HARNESS
    elif section.kind is None:
        items, name = zoo_items(section.name)
        kind = KINDS.find(name)
    else:
        assert section.kind is not None  # the configuration was checked
        kind = KINDS.find(section.kind)
    if section.data is not None:
        items = read_items(located(section.data, directory), kind.name)
    splits = {} if items is None else split_items(section.name, items, section.search, section.test)
    return open_task(
        Opening(
            name=section.name,
            kind=kind,
            search=section.search,
            test=section.test,
            tokenizer=tokenizer,
            folder=folder,
            longest=longest,
            directory=directory,
            splits=splits,
            origin=OWN_ITEMS if items is None else origin_of(items),
            settings=None if kind.settings is None else kind.settings.model_validate(section.settings),
            keys={key: getattr(section, key) for key in kind.keys},
        )
    )
