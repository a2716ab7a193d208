"""The composition root: from a configuration to objects. Here experts, tasks and searcher meet."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sae_moo import __version__
from sae_moo.config.consistency import MOST_SPARSE
from sae_moo.config.document import Config
from sae_moo.errors import InputError
from sae_moo.evaluate.anchors import anchored, anchors
from sae_moo.evaluate.asking import ProbesSection
from sae_moo.evaluate.costs import CostTable
from sae_moo.evaluate.evaluator import Evaluator
from sae_moo.evaluate.expert_scores import ExpertScores
from sae_moo.evaluate.hardware import name_of
from sae_moo.evaluate.kinds import KINDS
from sae_moo.evaluate.probes import probes_of
from sae_moo.evaluate.scorer import Scorer
from sae_moo.evaluate.screening import Screening
from sae_moo.evaluate.sizes import BatchSizes
from sae_moo.evaluate.task import Prompt, Task
from sae_moo.evaluate.timing import cost_table, measured_by
from sae_moo.evaluate.vllm import Engine, VllmWriter
from sae_moo.evaluate.writing import decoding
from sae_moo.experts.anatomy import anatomy
from sae_moo.experts.pool import ExpertPool
from sae_moo.jobs.features import features_of
from sae_moo.jobs.tasks import open_tasks
from sae_moo.jobs.texts import calibrated, repaired_on, screened_on
from sae_moo.materialization.check import check
from sae_moo.materialization.parents import WeightCache
from sae_moo.materialization.texts import texts_digest
from sae_moo.objectives import Evaluation, Sparsity
from sae_moo.objectives.front import Front
from sae_moo.objectives.scores import SPLITS
from sae_moo.prediction.table import FeatureTable
from sae_moo.recipe import BASE, BLOCKS, MOE_EXPERTS, Cast, Expert, Prune, Repair
from sae_moo.recipe.catalogue import Guest, release
from sae_moo.recipe.groups import in_block
from sae_moo.searchers.finishing import Finishing
from sae_moo.searchers.ground import Ground
from sae_moo.searchers.searcher import Assignment, Searcher

log = logging.getLogger(__name__)

VERSIONED = ("torch", "transformers", "pymoo", "optuna")
"""Packages whose versions are kept with every trial."""
_NO_TEXTS = "0" * 64
"""Stands for the digest of texts where it is asked what can be repaired, on whatever texts."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What evaluating needs, opened and checked once.

    Args:
        config: the configuration.
        pool: the experts.
        tasks: the tasks, tokenised.
        device: where models live.
        calibration: digest of the activation norms that pruning weighs by, or None.
        screened: texts that allocations are screened on, as token ids; empty where they are not.
        batches: how many tokens its study computes at once, by what is computed (`sizes.BatchSizes`); empty where that
            is not known yet.
        costs: what a token costs, by which the speed of candidates is modelled; None: it is not measured yet, or
            nothing asks for it.
        earlier: what its study has taken over from an earlier one, as `Inheritance.facts` says it; empty: nothing.
    """

    config: Config
    pool: ExpertPool
    tasks: tuple[Task, ...]
    device: str
    calibration: str | None = None
    screened: tuple[tuple[int, ...], ...] = ()
    batches: Mapping[str, int] = field(default_factory=dict)
    costs: CostTable | None = None
    earlier: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, config: Config) -> Bench:
        """Open experts and tasks; everything that can be wrong is found here, before the first evaluation.

        Args:
            config: the configuration; where it asks for anchors, see `anchored`.

        Raises:
            InputError: listing what cannot be opened or does not fit; for anything else than a configuration.
        """
        check_config(config)
        models = config.models
        pool = ExpertPool.open(
            models.base,
            models.experts,
            relative_to=config.directory,
            roots=models.roots,
            vocabulary=models.vocabulary,
            pruned=config.pruning.submodels,
        )
        tasks, device = open_tasks(config, pool), resolve_device(models.device)
        scorer_of(config, pool, tasks, device, sizes=BatchSizes(device))  # refused here if it cannot be; nothing is run
        calibration = calibrated(config, pool, tasks, device)
        bench = cls(config, pool, tasks, device, calibration, screened_on(config, pool, tasks))
        bench.check()
        pool.further_texts = bench.repairing
        return bench

    def configured(self, config: Config) -> Bench:
        """Return a bench for another configuration of the same models, tasks and evaluation; neither is opened again.

        Raises:
            ValueError: if the configuration has others; how allocations are screened may differ.
        """
        for section in ("models", "tasks"):
            if getattr(config, section) != getattr(self.config, section):
                raise ValueError(f"{section}: expected those that were opened")
        alike = [each.evaluation.model_copy(update={"screening": None}) for each in (config, self.config)]
        if alike[0] != alike[1]:
            raise ValueError("evaluation: expected that which was opened")
        if config.pruning.submodels != self.config.pruning.submodels:
            raise ValueError("pruning.submodels: expected those that the models were opened with")
        calibration = self.calibration
        if config.pruning != self.config.pruning:
            calibration = calibrated(config, self.pool, self.tasks, self.device)
        screened = self.screened
        if config.evaluation.screening != self.config.evaluation.screening:
            screened = screened_on(config, self.pool, self.tasks)
        bench = replace(self, config=config, calibration=calibration, screened=screened)
        bench.check()
        bench.pool.further_texts = bench.repairing
        return bench

    def check(self) -> None:
        """Raise InputError if the experts cannot be pruned, or their speed not be measured, as configured."""
        ground = self.ground()
        prunings = [ground.pruned(Expert(BASE), np.full(ground.groups, ground.most))]
        for scope in ground.structured:
            prunings.append(Prune(Expert(BASE), 0.0, ground.criterion, scope, calibration=ground.calibration))
        for pruning in prunings:
            check(pruning, self.pool)
            if self.config.search.finish and isinstance(pruning, Prune):
                check(Cast(Repair(pruning, _NO_TEXTS), self.rounding), self.pool, texts=False)
        count, kept = len(ground.blocks), sum(ground.protected)
        if BLOCKS in ground.structured and kept >= count:
            raise InputError(f"pruning.protect: expected fewer than the {count} blocks there are, got {kept}")
        self._origin()

    def tell_twins(self) -> None:
        """Warn of experts that are the same model as another or as the base: nothing can come of merging them."""
        seen: dict[str, str] = {}
        for name, fingerprint in self.pool.fingerprints.items():
            if fingerprint in seen:
                log.warning("%s and %s are the same model", seen[fingerprint], name)
            seen.setdefault(fingerprint, name)

    def anchors(self) -> dict[str, list[int]]:
        """Choose the instances that stand for all, by what the experts and the base answer to whole tasks.

        Returns:
            Task name -> numbers of instances, ascending; empty if no anchors are configured. They are chosen once, at
            the start of a study: scores that differ in their last digits on another machine would choose others.

        Raises:
            InputError: if an expert cannot be evaluated.
        """
        share = self.config.evaluation.anchors
        if share is None:
            return {}
        found = self.unmerged()
        broken = [f"evaluation.anchors: {name}: {each.reason}" for name, each in found.items() if not each.ok]
        if broken:
            raise InputError("\n".join(broken))
        counts = {task.name: task.instances("search") for task in self.tasks}
        return {
            name: anchors(np.array([each.scores[name] for each in found.values()]), max(1, round(share * n))).tolist()
            for name, n in counts.items()
        }

    def unmerged(self) -> dict[str, Evaluation]:
        """Evaluate the base and each expert by itself, on the search split; what this machine kept is not made anew.

        Returns:
            Name -> evaluation, one that failed among them, in the pool's order.
        """
        sizes = sizes_of(self.config, self.pool, self.tasks, self.device)
        writer = self.config.evaluation.generation
        known = ExpertScores(self.pool, self.tasks, self.device, writer=writer, sizes=sizes)
        whole = scorer_of(self.config, self.pool, self.tasks, self.device, sizes=sizes)
        evaluator = Evaluator(self.pool, self.live_model(), whole, known=known)
        return {name: evaluator.evaluate(Cast(Expert(name), self.rounding)) for name in self.pool.names}

    def anchored(self, chosen: Mapping[str, Sequence[int]]) -> Bench:
        """Return a bench whose searches ask the chosen instances only; see `anchors`."""
        return replace(self, tasks=anchored(self.tasks, chosen))

    def sized(self, batches: Mapping[str, int]) -> Bench:
        """Return a bench that computes as many tokens at once as a study did so far."""
        return replace(self, batches=batches)

    def extending(self, earlier: Mapping[str, Any]) -> Bench:
        """Return a bench whose study has taken over what an earlier one has evaluated."""
        return replace(self, earlier=earlier)

    def cost_table(self) -> CostTable | None:
        """Return what a token costs here, by the table that is at hand, else measured: a study begins with it.

        Returns:
            None if the configuration asks for no speed.

        Raises:
            InputError: if it cannot be measured.
        """
        work = self.config.modelled
        if work is None or self.costs is not None:
            return None if work is None else self.costs
        return cost_table(self.pool, self.config.models.dtype, self.device, versions(), **work.model_dump())

    def costed(self, costs: CostTable | None) -> Bench:
        """Return a bench that models the speed of candidates by a table; by none where nothing asks for speed."""
        return replace(self, costs=None if self.config.modelled is None else costs)

    def tell_other_costs(self) -> None:
        """Warn if speed is modelled by what was measured elsewhere, or by other versions: it is of there, not here."""
        here = self._origin()
        if self.costs is None:
            return
        changed = [
            f"{name} {was}, not {here[name]}" for name, was in self.costs.origin.items() if was != here.get(name)
        ]
        if changed:
            log.warning("speed is that of where the study began, which had: %s", "; ".join(changed))

    def _origin(self) -> dict[str, str]:
        """Return what a table of costs would be measured by here; empty if nothing asks for speed."""
        work = self.config.modelled
        if work is None:
            return {}
        return measured_by(self.pool, self.config.models.dtype, self.device, versions(), **work.model_dump())

    def repairing(self) -> str:
        """Give the pool the texts that a repair reads; return their digest.

        Raises:
            InputError: if there are none, or too short ones.
        """
        return repaired_on(self.config, self.pool, self.tasks)

    def finishing(self) -> Finishing:
        """Return what asks for repaired members of the front once a search is over."""
        config = self.config
        return Finishing(config.search.finish, self.repairing, config.objective_list(), config.constraint_list())

    def live_model(self) -> Any:
        """Return the live model in the configured dtype, on the device."""
        return self.pool.live_model(self.config.models.dtype, self.device)

    def scorer(self) -> Scorer:
        """Return a scorer of the tasks."""
        return self._scorer(self._sizes())

    def _scorer(self, sizes: BatchSizes) -> Scorer:
        return scorer_of(self.config, self.pool, self.tasks, self.device, self._blocks, sizes)

    def _sizes(self, tell: Callable[[Mapping[str, int]], None] = lambda batches: None) -> BatchSizes:
        return sizes_of(self.config, self.pool, self.tasks, self.device, self._blocks, self.batches, tell)

    @property
    def _blocks(self) -> int:
        racing = self.config.evaluation.racing
        return 1 if racing is None else racing.blocks

    def rivals(self) -> Front[Evaluation] | None:
        """Return what candidates race for, with nobody in front yet; None if they do not race."""
        if self.config.evaluation.racing is None:
            return None
        return Front(self.config.objective_list(), self.config.constraint_list())

    def evaluator(self, tell: Callable[[Mapping[str, int]], None] = lambda batches: None) -> Evaluator:
        """Return an evaluator over a live model of its own.

        Args:
            tell: told how many tokens are computed at once whenever that changes.
        """
        needs = self.config.algorithm.needs(self.assignment())
        cache = WeightCache(self.cache_bytes)
        held = cache.max_bytes // self.model_bytes
        wanted = 2 * self.config.population  # the population, and as many children on their way
        if held < wanted and needs.parents:
            log.warning(
                "models.cache_gib: %g GiB of memory hold %d candidates of %.2g GiB each; parents that are not held are "
                "recomputed from the experts, slower with each generation. "
                "Room for %d, twice the population, takes %.2g GiB",
                self.config.models.cache_gib,
                held,
                self.model_bytes / 2**30,
                wanted,
                self.model_bytes * wanted / 2**30,
            )
        writer = self.config.evaluation.generation
        sizes = self._sizes(tell)
        known = ExpertScores(self.pool, self.tasks, self.device, blocks=self._blocks, writer=writer, sizes=sizes)
        model, section = self.live_model(), self.config.evaluation.screening
        return Evaluator(
            self.pool,
            model,
            self._scorer(sizes),
            cache=cache,
            racing=self.config.evaluation.racing,
            known=known,
            measure=needs.sparseness,
            screening=None if section is None else Screening(section, self.pool, model, self.screened, cache),
            speed=None if self.costs is None else self.costs.speed,
        )

    @property
    def rounding(self) -> str:
        """What candidates are cast to: the configured dtype, each tensor's own where the base mixes it with others."""
        return self.pool.rounding(self.config.models.dtype)

    @property
    def model_bytes(self) -> int:
        """Size of one candidate's weights."""
        return sum(info.numel * info.cast(self.rounding).itemsize for info in self.pool.tensors)

    @property
    def cache_bytes(self) -> int:
        """Most bytes of candidates' weights that are held: as configured, none where nothing reads parents' weights."""
        reads = self.config.algorithm.needs(self.assignment()).parents
        return int(self.config.models.cache_gib * 2**30) if reads else 0

    def ground(self) -> Ground:
        """Return what the configured space stands on."""
        config = self.config
        highest = [
            limit.high
            for limit in config.constraint_list()
            if isinstance(limit.objective, Sparsity) and limit.high is not None
        ]
        prunable = {info.group for info in self.pool.tensors if info.prunable}
        structured, protect = config.structured, config.pruning.protect
        return Ground(
            experts=tuple(name for name in self.pool.names if name != BASE),
            prunable=tuple(i in prunable for i in range(len(self.pool.groups))),
            dtype=self.rounding,
            granularity=config.space.granularity,
            criterion=config.pruning.criterion,
            scope=config.pruning.scattered if structured else config.pruning.scopes[0],
            calibration=self.calibration,
            rescale=config.rescale,
            submodels=self.pool.pruned,
            most=min([MOST_SPARSE, *highest, *self._most_experts()]),
            tensors=self.pool.prunable_sizes,
            structured=structured,
            blocks=tuple(i for i, group in enumerate(self.pool.groups) if in_block(group)),
            protected=(0, 0) if protect is None else (protect.first, protect.last),
            units=tuple((scope, anatomy(self.pool, scope).units) for scope in structured if scope != BLOCKS),
            staying=tuple((scope, anatomy(self.pool, scope).least) for scope in structured if scope == MOE_EXPERTS),
        )

    def _most_experts(self) -> list[float]:
        """Return the largest share of a mixture's experts that may go, where nothing else does."""
        if self.config.pruning.scope != MOE_EXPERTS:
            return []
        whole = anatomy(self.pool, MOE_EXPERTS)
        return [(whole.units - whole.least) / whole.units]

    def assignment(self) -> Assignment:
        """Return what the configured algorithm is to search."""
        config, schedule = self.config, self.config.schedule
        return Assignment(
            algorithm=config.search.algorithm,
            ground=self.ground(),
            space=config.space_kind,
            sparsity=config.space.sparsity,
            objectives=config.objective_list(),
            constraints=config.constraint_list(),
            weights=config.search.weights,
            schedule=schedule.learning() if schedule.adapts else schedule,
            pace=config.pace,
            allocations=1 if config.evaluation.screening is None else config.evaluation.screening.candidates,
            population=config.population,
            seed=config.study.seed,
            settings=config.search.settings,
        )

    @property
    def _featured(self) -> bool:
        """Whether the searcher reads features of pairs of experts."""
        return self.config.algorithm.features(self.config.search.settings)

    def searcher(self) -> Searcher:
        """Return a fresh searcher; where it reads features of pairs that this machine does not know, they are made.

        Raises:
            InputError: if there are no texts for them.
        """
        assignment = self.assignment()
        if self._featured:
            assignment = replace(assignment, features=self.features())
        return self.config.algorithm.searcher(assignment)

    def check_searcher(self) -> None:
        """Raise InputError if there is no searcher as configured.

        Of the features that it reads, nothing but their texts is looked at: to make them takes forward passes.
        """
        self._probes()
        self.config.algorithm.searcher(self.assignment())

    def features(self, probes: ProbesSection | None = None, experts: Sequence[str] | None = None) -> FeatureTable:
        """Return the features of all ordered pairs of experts on all tasks; see `features_of`.

        Args:
            probes: which texts; None: those of ``predict.probes``.
            experts: names; None: all but the base.
        """
        section = self.config.predict.probes if probes is None else probes
        return features_of(self.config, self.pool, self.tasks, self.device, section, experts)

    def _probes(self) -> dict[str, str]:
        """Return task name -> digest of the texts that its features are of; empty where none are read."""
        if not self._featured:
            return {}
        read = probes_of(self.tasks, self.pool, self.config.predict.probes, self.config.directory)
        return {f"probes of {probes.task}": probes.digest for probes in read}

    def _guests(self) -> Iterator[tuple[str, Guest]]:
        """Yield the tasks whose kind an installed package offers, and which."""
        for section in self.config.tasks:
            guest = None if section.kind is None else KINDS.find(section.kind).guest
            if guest is not None:
                yield section.name, guest

    def identity(self) -> dict[str, Any]:
        """Return what a study must not change while it is resumed: settings, experts, tasks, device."""
        base = self.pool.checkpoints[BASE].config
        shape = {key: value for key, value in base.items() if key not in ("_name_or_path", "transformers_version")}
        return {
            **self.config.identity(),
            **{f"weights of {name}": fingerprint for name, fingerprint in self.pool.fingerprints.items()},
            "order of experts": list(self.pool.names),
            "config.json of base": hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest(),
            **{f"items of {task.name}": task.fingerprint for task in self.tasks},
            **{f"kind of {name}": str(guest) for name, guest in self._guests()},
            "generation_config.json of base": json.dumps(decoding(self.pool.checkpoints[BASE].folder), sort_keys=True),
            **({} if self.calibration is None else {"activation norms": self.calibration}),
            **({} if not self.screened else {"texts screened on": texts_digest(self.screened)}),
            **self._probes(),
            **self.earlier,
            "device": torch.device(self.device).type,
        }


def sizes_of(
    config: Config,
    pool: ExpertPool,
    tasks: Sequence[Task],
    device: str,
    blocks: int = 1,
    chosen: Mapping[str, int] | None = None,
    tell: Callable[[Mapping[str, int]], None] = lambda batches: None,
) -> BatchSizes:
    """Return how many tokens are computed at once of tasks by models like those of a pool.

    Args:
        config: the configuration.
        pool: the experts.
        tasks: the tasks.
        device: where models live.
        blocks: in how many parts the search split is asked.
        chosen: what was chosen before; None or empty: what this machine chose for such models and tasks, if it did.
        tell: told of all that is chosen whenever that changes.
    """
    facts = [
        pool.checkpoints[BASE].config,
        config.models.dtype,
        name_of(device),
        [task.fingerprint for task in tasks],
        blocks,
        versions(),
    ]
    name = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
    return BatchSizes(device, chosen, tell=tell, name=name)


def scorer_of(
    config: Config,
    pool: ExpertPool,
    tasks: Sequence[Task],
    device: str,
    blocks: int = 1,
    sizes: BatchSizes | None = None,
) -> Scorer:
    """Return a scorer of tasks for models like those of a pool.

    Raises:
        InputError: if the configuration asks for vLLM and it is not installed.
    """
    tokenizer = pool.tokenizer()
    sizes = sizes_of(config, pool, tasks, device, blocks) if sizes is None else sizes
    if config.evaluation.generation == "transformers":
        return Scorer(tasks, device, tokenizer, blocks=blocks, sizes=sizes)
    prompts = [each for task in tasks for split in SPLITS for each in task.requests(split)]
    longest = max((len(each.context) + each.tokens for each in prompts if isinstance(each, Prompt)), default=0)
    if not longest:
        return Scorer(tasks, device, tokenizer, blocks=blocks, sizes=sizes)
    engine = _engine(pool.checkpoints[BASE].folder, config.models.dtype, device, longest + 1)
    return Scorer(
        tasks,
        device,
        tokenizer,
        blocks=blocks,
        writer=lambda prompts: VllmWriter(prompts, tokenizer, engine),
        sizes=sizes,
    )


@cache
def _engine(folder: Path, dtype: str, device: str, length: int) -> Engine:
    """Return the engine of this process: it lives as long, and memory holds one. Weights are loaded before each use."""
    return Engine(folder, dtype, device, length)


def check_config(config: object) -> None:
    """Raise InputError for anything else than a configuration, as a program may hand in."""
    if not isinstance(config, Config):
        raise InputError(f"config: expected a Config, as Config.load(path) reads it, got {type(config).__name__}")


def resolve_device(name: str) -> str:
    """Return a torch device name; ``auto`` is CUDA where there is one, else the CPU.

    Raises:
        InputError: if torch does not know it, or the machine has none.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"models.device: torch has no device {name!r} here: {str(error).splitlines()[0]}") from error
    return name


def versions(*packages: str) -> str:
    """Return the versions of this package and others, as one text; of what says none, that it is unknown.

    Args:
        packages: the others; none: all that a study's results may depend on.
    """
    others = (f"{name} {release(name) or 'unknown'}" for name in packages or VERSIONED)
    return ", ".join((f"sae-moo {__version__}", *others))
