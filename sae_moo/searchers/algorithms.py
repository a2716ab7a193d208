"""Which search algorithms there are: the catalogue of ``search.algorithm``.

A row says what an algorithm reads of a configuration, what it can do, and which function makes its searcher; nothing
else in the house knows an algorithm by its name. An installed package offers rows of its own by the entry points of the
group ``sae_moo.algorithms``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec

from sae_moo.errors import nearest
from sae_moo.prediction.extra import absent
from sae_moo.recipe.catalogue import Catalogue, Row, resolved
from sae_moo.recipe.methods import METHODS, SEED
from sae_moo.recipe.section import Section, section_of
from sae_moo.searchers.bandit import Contextual
from sae_moo.searchers.baselines import AnyMethod, OneShot, grid
from sae_moo.searchers.breeding import Ablation, Operators
from sae_moo.searchers.learning import Evogm, Generator
from sae_moo.searchers.pairs import Pairs
from sae_moo.searchers.prescreening import Prescreening
from sae_moo.searchers.sae import M2n2, Sae
from sae_moo.searchers.scalar import Swarm
from sae_moo.searchers.schedule import PUBLISHED
from sae_moo.searchers.searcher import Assignment, Pace, Searcher, SpaceKind

USUAL_POPULATION = 24  # what measured best for our own search
Fault = tuple[tuple[str | int, ...], str]
"""A key of the configuration, and what is wrong with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What a configuration asks of an algorithm, as far as it could be read.

    Args:
        experts: names of the experts.
        objectives: names of the objectives.
        population: size of the population; None if it could not be read.
        settings: key of ``search`` -> the algorithm's own settings, defaults filled in; without those that could not be
            read.
    """

    experts: tuple[str, ...]
    objectives: tuple[str, ...]
    population: int | None
    settings: Mapping[str, Section]


@dataclass(frozen=True, slots=True)
class Needs:
    """What a searcher needs of those who evaluate for it.

    Args:
        parents: whether candidates are merged from the weights of earlier ones, so that these are worth keeping.
        sparseness: the measure of sparsity beside the share of zeros that it breeds by (``l1``, ``hoyer``), or None.
    """

    parents: bool = False
    sparseness: str | None = None


def _parents_of_lineages(assignment: Assignment) -> Needs:
    return Needs(parents=assignment.space == "lineage")


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithm(Row):
    """One value of ``search.algorithm``.

    Args:
        summary: what it is, in a line.
        make: ``module:function`` that makes the searcher of an `Assignment`; imported on first use.
        fixed: further arguments of that function, which make the row what it is; not the user's.
        source: where it is from; empty for our own.
        settings: further keys of ``search`` that it reads -> the class of each. A guest calls its key as it likes, by
            custom like its algorithm: ``search: {algorithm: acme/ants, ants: {...}}``. So a key is of one algorithm
            or family, and the settings of another are never taken for its own.
        breeding: those of `settings` that it reads over lineages only.
        spaces: kinds of space that it searches, the usual one first; empty for one-shot merges, which have none.
        scalar: whether it works on one number (the mean of the objectives scored on tasks, or ``search.weights``);
            None: on whatever ``search.weights`` says, else on all objectives. Or a function of its settings that says
            so; see `one_number`.
        population: how large its population is where nobody says so, by the number of experts.
        holds_base: whether a first population must have room for the base, beside every expert.
        paces: whether it reads ``search.pace``.
        waits: whether it asks for a generation at a time, at the usual pace: for the next one once all of it was told.
        anneals: whether it follows ``annealing`` beyond its first population.
        races: whether it can do with candidates that were given up in a race.
        screens: whether it can propose several allocations of a child's budget (`Assignment.allocations`).
        combines: whether it searches several scopes of pruning together.
        seeded: whether its seed changes anything, or a function of its settings that says so; see `draws`.
        features: whether it reads features of pairs of experts (`Assignment.features`), by its settings.
        inherits: whether its searcher takes over what an earlier study has evaluated (`Inheriting`).
        hosts: whether, over lineages, its searcher takes in what other searches evaluate meanwhile (`Hosting`).
        schedule: ``annealing.schedule`` unless the configuration says otherwise; for methods of others as published,
            for our own what measured best, like the following.
        high: ``annealing.high`` likewise.
        rescales: ``pruning.rescale`` likewise.
        settle: fills in those of its own settings that follow from others, and from ``search.pace``; None: none do.
        needs: what it needs of evaluations.
        faults: what is wrong with a configuration that asks for it, beyond what holds for every algorithm; None: no
            such thing.
    """

    summary: str
    make: str
    fixed: Mapping[str, object] = field(default_factory=dict)
    source: str = ""
    settings: Mapping[str, type[Section]] = field(default_factory=dict)
    breeding: tuple[str, ...] = ()
    spaces: tuple[SpaceKind, ...] = ()
    scalar: bool | Callable[[Mapping[str, Section]], bool | None] | None = False
    population: Callable[[int], int] = lambda experts: USUAL_POPULATION
    holds_base: bool = True
    paces: bool = False
    waits: bool = False
    anneals: bool = False
    races: bool = False
    screens: bool = False
    combines: bool = False
    seeded: bool | Callable[[Mapping[str, Section]], bool] = True
    features: Callable[[Mapping[str, Section]], bool] = lambda settings: False
    inherits: bool = False
    hosts: bool = False
    schedule: str = PUBLISHED[0]
    high: float = PUBLISHED[1]
    rescales: bool = False
    settle: Callable[[Mapping[str, Section], Pace], Mapping[str, Section]] | None = None
    needs: Callable[[Assignment], Needs] = _parents_of_lineages
    faults: Callable[[Draft], Iterator[Fault]] | None = None

    def searcher(self, assignment: Assignment) -> Searcher:
        """Return a fresh searcher."""
        made: Searcher = resolved(self.make)(assignment, **self.fixed)
        return made

    def space(self, asked: SpaceKind | None) -> SpaceKind | None:
        """Return the kind of space that is searched where `asked` is asked for: it, or else the usual one."""
        return asked or (*self.spaces, None)[0]

    def read(self, space: SpaceKind | None) -> dict[str, type[Section]]:
        """Return the settings that it reads over a kind of space."""
        return {key: kind for key, kind in self.settings.items() if space == "lineage" or key not in self.breeding}

    def settled(self, settings: Mapping[str, Section], pace: Pace) -> dict[str, Section]:
        """Return its own settings with what follows from others filled in; see `settle`."""
        return dict(settings if self.settle is None else self.settle(settings, pace))

    def draws(self, settings: Mapping[str, Section]) -> bool:
        """Say whether its seed changes anything under some settings."""
        return self.seeded if isinstance(self.seeded, bool) else self.seeded(settings)

    def by_generation(self, pace: Pace) -> bool:
        """Say whether it asks for a generation at a time, so that nothing depends on which of it ends first."""
        return self.waits and not (self.paces and pace == "steady-state")

    def one_number(self, settings: Mapping[str, Section]) -> bool | None:
        """Say whether it works on one number under some settings; see `scalar`."""
        return self.scalar(settings) if callable(self.scalar) else self.scalar

    def annealed(self, space: SpaceKind | None) -> bool:
        """Say whether it follows ``annealing`` over a kind of space: it is children of a lineage that are pruned."""
        return self.anneals and self.space(space) == "lineage"


def _needs_of_nsga(assignment: Assignment) -> Needs:
    anew = section_of(assignment.settings, Operators).remerge == 1.0
    return Needs(parents=assignment.space == "lineage" and not anew)


def _needs_of_sae(assignment: Assignment) -> Needs:
    measure = section_of(assignment.settings, Sae).measure
    return Needs(parents=True, sparseness=None if measure == "zeros" else measure)


def _room_for_experts(draft: Draft) -> Iterator[Fault]:
    """PSO-Merging begins at the base, the experts, and the experts sparsified."""
    merging = section_of(draft.settings, Swarm).flavour == "pso-merging"
    least = 2 * len(draft.experts) + 1
    if merging and draft.population is not None and draft.population < least:
        need = f"expected at least {least}: base, experts and sparsified experts"
        yield ("search", "population"), f"{need}; got {draft.population}"


def _twice_the_experts(experts: int) -> int:
    """EvoGM's population as published; not below what every search has."""
    return max(4, 2 * experts)


def _by_the_selection(settings: Mapping[str, Section]) -> bool:
    return section_of(settings, Evogm).selection == "fitness"


def _two_experts(name: str) -> Callable[[Draft], Iterator[Fault]]:
    """Return what finds fault with a single expert where an algorithm merges pairs."""

    def faults(draft: Draft) -> Iterator[Fault]:
        if len(draft.experts) == 1:
            yield ("search", "algorithm"), f"{name} merges pairs of experts; there is one expert"

    return faults


def _by_the_method(settings: Mapping[str, Section]) -> bool:
    asked = section_of(settings, AnyMethod)
    return METHODS[asked.method].random and SEED not in asked.settings


def _settings_of_the_method(draft: Draft) -> Iterator[Fault]:
    """What a merge method is tried with, and how many experts there are for it."""
    asked = section_of(draft.settings, AnyMethod)
    method, key = METHODS[asked.method], ("search", "merge")
    if 0 < len(draft.experts) < method.inputs[0]:
        yield (*key, "method"), f"{method.name} merges {method.inputs[0]} models; there is one expert"
    wrong = False
    for name, values in asked.settings.items():
        if name not in method.settings:
            wrong, has = True, f"{method.name} has {', '.join(method.settings) or 'none'}"
            yield (*key, "settings", name), f"expected a setting of the method{nearest(name, method.settings)}; {has}"
            continue
        for i, fault in enumerate(map(method.settings[name].fault, values)):
            if fault is not None:
                wrong = True
                yield (*key, "settings", name, i), fault
    if method.faults is not None and not wrong:
        together = (fault for choice in grid(asked.settings) for fault in method.faults(method.filled(choice)))
        yield from (((*key, "settings"), fault) for fault in dict.fromkeys(together))


def _package_of_cmaes(_: Draft) -> Iterator[Fault]:
    if find_spec("cmaes") is None:
        yield ("search", "algorithm"), "Optuna's CMA-ES needs a package that is not installed: pip install cmaes"


def _features_of_prescreening(settings: Mapping[str, Section]) -> bool:
    own = section_of(settings, Prescreening)
    return own.features and own.screens


def _settled_prescreening(usual: int) -> Callable[[Mapping[str, Section], Pace], Mapping[str, Section]]:
    """Return what fills in how many children are bred for each one that is evaluated; None for one, as they come.

    Args:
        usual: how many where nobody says so, a generation at a time and without a generator's share.
    """

    def settled(settings: Mapping[str, Section], pace: Pace) -> Mapping[str, Section]:
        own, generator = section_of(settings, Prescreening), section_of(settings, Generator)
        factor = own.factor
        if factor is None and pace == "generational" and not generator.unread and not generator.share:
            factor = usual
        return {**settings, "prescreening": own.model_copy(update={"factor": None if factor == 1 else factor})}

    return settled


def _what_is_prescreened(draft: Draft) -> Iterator[Fault]:
    """What is bred more often than evaluated cannot be what a generator makes: that learns for each child it makes."""
    own, key = section_of(draft.settings, Prescreening), ("search", "prescreening", "factor")
    if not own.screens:
        return
    if own.features and len(draft.experts) == 1:
        yield (*key[:2], "features"), "features are of pairs of experts; there is one expert"
    if section_of(draft.settings, Generator).share:
        yield (
            key,
            f"expected 1 where search.generator makes children (share above 0), got {own.factor}; use one of them",
        )
    if find_spec("sklearn") is None:
        yield key, absent("scikit-learn", "pre-screening").message


def _nsga(name: str, summary: str, source: str, *, directions: bool, prescreens: int) -> Algorithm:
    return Algorithm(
        name=name,
        summary=summary,
        source=source,
        make="sae_moo.searchers.own:make",
        fixed={"directions": directions},
        settings={"operators": Operators, "ablation": Ablation, "generator": Generator, "prescreening": Prescreening},
        breeding=("operators", "ablation"),
        spaces=("lineage", "coefficients"),
        paces=True,
        waits=True,
        anneals=True,
        races=True,
        screens=True,
        combines=True,
        hosts=True,
        schedule="constant",
        high=0.8,
        rescales=True,
        features=_features_of_prescreening,
        settle=_settled_prescreening(prescreens),
        needs=_needs_of_nsga,
        faults=_what_is_prescreened,
    )


def _sae(name: str, summary: str, *, local: bool) -> Algorithm:
    return Algorithm(
        name=name,
        summary=summary,
        source="Zhang, Zhang et al. 2026, arXiv 2602.08218",
        make="sae_moo.searchers.sae:make",
        fixed={"local": local},
        settings={"sae": Sae},
        spaces=("lineage",),
        anneals=True,
        races=True,
        needs=_needs_of_sae,
    )


def _optuna(sampler: str, summary: str, *, single: bool = False) -> Algorithm:
    return Algorithm(
        name=f"optuna:{sampler}",
        summary=summary,
        source="Optuna",
        make="sae_moo.searchers.optuna_samplers:make",
        fixed={"sampler": sampler, "single": single},
        spaces=("coefficients",),
        scalar=True if single else None,
        combines=True,
        faults=_package_of_cmaes if single else None,
    )


def _one_shot(
    name: str,
    summary: str,
    source: str = "",
    *,
    seeded: bool | Callable[[Mapping[str, Section]], bool] = False,
    settings: Mapping[str, type[Section]] | None = None,
    faults: Callable[[Draft], Iterator[Fault]] | None = None,
) -> Algorithm:
    return Algorithm(
        name=name,
        summary=summary,
        source=source,
        make=f"sae_moo.searchers.baselines:{name.replace('-', '_')}",
        settings=settings or {"one_shot": OneShot},
        scalar=True,
        waits=True,
        seeded=seeded,
        faults=faults,
    )


USUAL = "nsga2"
"""What searches unless another is named."""

PAIRS = "pairs"
"""What makes every merge of two experts, for predictors to learn from."""

ALGORITHMS: Catalogue[Algorithm] = Catalogue(
    "search algorithm",
    "sae_moo.algorithms",
    Algorithm,
    [
        _nsga(
            USUAL,
            "our own search: a population by rank and crowding, over lineages bred by attraction and annealed pruning",
            "Deb et al. 2002; operators ours",
            directions=False,
            prescreens=4,
        ),
        _nsga(
            "nsga3",
            "our own search by reference directions, for three objectives and more",
            "Deb and Jain 2014; operators ours",
            directions=True,
            prescreens=1,
        ),
        _sae(
            "sae-global",
            "an archive that competes for instances and sparsity; one share for a whole child",
            local=False,
        ),
        _sae(
            "sae-local",
            "an archive that competes for instances and sparsity; a share for every block of a child",
            local=True,
        ),
        Algorithm(
            name="m2n2",
            summary="an archive that competes for instances; children split two parents along an arc, dense",
            source="Abrantes et al. 2025, arXiv 2508.16204",
            make="sae_moo.searchers.sae:m2n2",
            settings={"sae": M2n2},
            spaces=("lineage",),
            races=True,
        ),
        Algorithm(
            name="pso",
            summary="a particle swarm over one number",
            source="Feng et al. 2024, arXiv 2410.11163; PSO-Merging",
            make="sae_moo.searchers.scalar:particle_swarm",
            settings={"pso": Swarm},
            spaces=("coefficients",),
            scalar=True,
            waits=True,
            combines=True,
            faults=_room_for_experts,
        ),
        Algorithm(
            name="cmaes",
            summary="CMA-ES over one number",
            source="Hansen 2016, arXiv 1604.00772",
            make="sae_moo.searchers.scalar:covariance_adaptation",
            spaces=("coefficients",),
            scalar=True,
            waits=True,
            combines=True,
        ),
        Algorithm(
            name="evogm",
            summary="a population that moves as learned generators say, round by round",
            source="Jiang et al. 2026, arXiv 2605.29295",
            make="sae_moo.searchers.evogm:make",
            settings={"evogm": Evogm},
            spaces=("coefficients",),
            scalar=_by_the_selection,
            population=_twice_the_experts,
            holds_base=False,
            waits=True,
            combines=True,
        ),
        Algorithm(
            name="random",
            summary="random draws: what a search must beat",
            make="sae_moo.searchers.scalar:random_draws",
            spaces=("coefficients",),
            races=True,
            waits=True,
            combines=True,
        ),
        _optuna("TPESampler", "Optuna's tree-structured Parzen estimator"),
        _optuna("GPSampler", "Optuna's Gaussian process; seconds a trial"),
        _optuna("NSGAIISampler", "Optuna's NSGA-II"),
        _optuna("NSGAIIISampler", "Optuna's NSGA-III"),
        _optuna("RandomSampler", "Optuna's random draws"),
        _optuna("QMCSampler", "Optuna's quasi-random sequence"),
        _optuna("CmaEsSampler", "Optuna's CMA-ES over one number; needs the package cmaes", single=True),
        _one_shot("weighted-average", "the uniform average of the experts", "Wortsman et al. 2022"),
        _one_shot("task-arithmetic", "task vectors summed at several scales", "Ilharco et al. 2023"),
        _one_shot("rankmean", "experts weighed by the ranks of their changes"),
        _one_shot("ties", "TIES at several densities and scales", "Yadav et al. 2023"),
        _one_shot("dare_ties", "DARE and TIES at several densities and scales", "Yu et al. 2024", seeded=True),
        _one_shot("slerp", "every pair of experts, halfway along the arc", faults=_two_experts("slerp")),
        _one_shot("single-experts", "every expert and the base, unmerged"),
        _one_shot(
            "one-shot",
            "any merge method, an installed package's too, over settings of it that you name",
            seeded=_by_the_method,
            settings={"merge": AnyMethod},
            faults=_settings_of_the_method,
        ),
        Algorithm(
            name=PAIRS,
            summary="every pair of experts by every operator, once: what predictions of merges are learned from",
            source="after Bolton et al. 2026, arXiv 2601.09473",
            make="sae_moo.searchers.pairs:make",
            settings={"pairs": Pairs},
            scalar=True,
            waits=True,
            seeded=False,
            inherits=True,
            faults=_two_experts(PAIRS),
        ),
        Algorithm(
            name="simmerge-bandit",
            summary="merges of two and three chosen by a contextual bandit, from what similar ones have scored",
            source="after Bolton et al. 2026, arXiv 2601.09473; Li et al. 2010",
            make="sae_moo.searchers.bandit:make",
            settings={"bandit": Contextual},
            scalar=True,
            seeded=False,
            features=lambda settings: section_of(settings, Contextual).features,
            inherits=True,
            faults=_two_experts("simmerge-bandit"),
        ),
    ],
)
"""Name -> what it is."""
