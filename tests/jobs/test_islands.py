"""Islands that are there only in part."""

from __future__ import annotations

import pytest
from commands import config_for

from sae_moo.config.document import Config
from sae_moo.errors import InputError
from sae_moo.explore.run import Run
from sae_moo.jobs.bench import Bench
from sae_moo.jobs.islands import Islands
from sae_moo.study.folder import StudyHeader
from sae_moo.study.journal import create_or_load, describe, open_storage

HEADER = StudyHeader(config={}, directory="/there", fingerprints={"base": "f"}, identity={}).attributes()


@pytest.fixture(scope="module")
def bench(tiny_folders):
    tasks = [{"name": "zoo_math", "search": 6, "test": 4}]
    study = {
        "name": "east",
        "storage": "sqlite:///isles.db",
        "islands": {"names": ["east", "west"], "every": 4, "migrants": 2},
    }
    changes = {"tasks": tasks, "objectives": ["zoo_math", "sparsity"], "study": study}
    return Bench.open(Config.from_dict(config_for(tiny_folders, **changes)))


@pytest.mark.parametrize("described", range(len(HEADER)))
def test_a_study_that_another_process_is_making_is_no_island_yet(bench, tmp_path, described):
    storage = open_storage(f"sqlite:///{tmp_path}/isles.db", write=True)
    objectives = bench.config.objective_list()
    create_or_load(storage, "east", objectives)
    study = create_or_load(storage, "west", objectives)
    describe(study, {key: HEADER[key] for key in list(HEADER)[:described]})
    islands = Islands(bench, storage, tmp_path)
    assert islands.arrivals((), whole=True) == []
    with pytest.raises(InputError, match="study 'west' has not begun"):
        Run(storage, "west", tmp_path)
    study.ask()
    with pytest.raises(InputError, match="study 'west' was not made by sae-moo"):
        islands.arrivals((), whole=True)
    storage.engine.dispose()
