"""Merge methods: a row each, which says all that others need to know of one without merging anything.

What a method computes is a function of `materialization.ops` (or of a guest's package) that the row names as ``step``.
It looks at one tensor of every input and returns the elementwise step that merges it (`ops.steps.Step`).

A few settings mean the same in every row that has them, and others rely on it: ``scale`` stretches the distance from
the base, ``normalize`` divides by the weights' sum, ``relative`` works on differences from the base, ``seed`` draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sae_moo.errors import nearest
from sae_moo.recipe.catalogue import Catalogue, Row, resolved
from sae_moo.recipe.rows import Param, Scalar

LARGEST = 3.4e38
"""Arithmetic is float32; larger numbers would be infinite."""
EXACT = 2**53
"""Largest whole number that a recipe holds exactly."""
SEED = "seed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One setting of a method.

    Args:
        default: what holds where a recipe says nothing. Its type is the type expected: a truth value, a text, a whole
            number, or a number.
        about: what it does, in a line.
        least: smallest number allowed; None: any.
        most: largest number allowed; None: any.
        above: what a number must be above; None: anything.
        choices: the texts allowed.
        per_input: whether each input may have its own.
    """

    default: Scalar
    about: str
    least: float | None = None
    most: float | None = None
    above: float | None = None
    choices: tuple[str, ...] = ()
    per_input: bool = False

    @property
    def whole(self) -> bool:
        """Whether it is a whole number."""
        return type(self.default) is int

    @property
    def numeric(self) -> bool:
        """Whether it is a number, whole or not: such settings may differ by parameter group and tensor."""
        return not isinstance(self.default, (bool, str))

    def fault(self, value: object) -> str | None:
        """Return what is wrong with one value, None if nothing is."""
        if isinstance(value, bool) != isinstance(self.default, bool) or isinstance(value, str) != isinstance(
            self.default, str
        ):
            return f"expected {type(self.default).__name__}, got {value!r}"
        if self.choices and value not in self.choices:
            return f"expected one of {', '.join(self.choices)}, got {value!r}"
        return self._out_of_range(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None

    def _out_of_range(self, value: float) -> str | None:
        if (self.least, self.most) == (0, 1) and not 0 <= value <= 1:
            return f"expected a share in [0, 1], got {value}"
        if self.least is not None and value < self.least:
            return f"expected a number of at least {self.least:g}, got {value}"
        if self.most is not None and value > self.most:
            return f"expected a number of at most {self.most:g}, got {value}"
        if abs(value) > (EXACT if self.whole else LARGEST):
            return f"expected a smaller number, got {value}"
        if self.whole and value != int(value):
            return f"expected a whole number, got {value}"
        if self.above is not None and value <= self.above:
            return f"expected a number above {self.above:g}, got {value}"
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeModel:
    """A setting that only whole models tell: it is measured once and written into the recipe (`resolve`).

    Args:
        setting: its name; nobody has to give it.
        measure: ``module:function`` that is called with, for each input in turn, a function from `TensorInfo` to its
            tensor; with the pool; and with the device. Returns a row for each of the pool's tensors, of one number for
            each input.
    """

    setting: str
    measure: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairing:
    """A usual way to merge two models by a method.

    Args:
        name: how configurations call it: the method's own name, or one of its own.
        weights: of the first model and of the second.
        settings: of the method, where they are not its defaults.
        usual: whether it is tried where nobody says which are.
    """

    name: str
    weights: tuple[float, float]
    settings: Mapping[str, Scalar] = field(default_factory=dict)
    usual: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Method(Row):
    """One merge method.

    Args:
        step: ``module:function`` that is called with operands, weights and place for each tensor, and returns the step
            (`materialization.ops.operands`, `materialization.ops.steps`), or is a generator that yields questions about
            whole tensors first (`materialization.ops.questions`).
        summary: what it does, in a line.
        source: who has thought of it.
        inputs: smallest and largest number of inputs (None: any).
        settings: by name, in the order that is shown.
        fixed: settings that make the row what it is; not the user's.
        weights: what the weights must satisfy: ``any``, ``sum`` (not 0, unless ``normalize`` is off), ``mixing``
            (none negative, sum above 0) or ``unused``.
        reads_base: whether the base's tensor is needed, or a function of the settings that says so.
        adds_to_base: whether weights say how much of each difference from the base is added to it, unless
            ``normalize`` is on; if not, they are shares of a mean. What `mixing_weights` goes by.
        weighted_sum: whether the result is a weighted sum of the inputs and the base, and no more.
        whole_model: a setting that is measured on whole models before anything is merged.
        pairings: usual ways to merge two models by it.
        faults: yields what is wrong with settings together, given one value of each, defaults filled in; None: nothing
            beyond what every `Setting` says of its own.
    """

    step: str
    summary: str
    source: str = ""
    inputs: tuple[int, int | None] = (1, None)
    settings: Mapping[str, Setting] = field(default_factory=dict)
    fixed: Mapping[str, Param] = field(default_factory=dict)
    weights: Literal["any", "sum", "mixing", "unused"] = "any"
    reads_base: bool | Callable[[Mapping[str, Param]], bool] = False
    adds_to_base: bool = False
    weighted_sum: bool = False
    whole_model: WholeModel | None = None
    pairings: tuple[Pairing, ...] = ()
    faults: Callable[[Mapping[str, Any]], Iterator[str]] | None = None

    @property
    def function(self) -> Callable[..., Any]:
        """The implementation; imported on first use."""
        return resolved(self.step)

    @property
    def random(self) -> bool:
        """Whether it draws random numbers: it has a seed then."""
        return SEED in self.settings

    @property
    def defaults(self) -> dict[str, Scalar]:
        """Setting -> what holds where nothing is said."""
        return {name: setting.default for name, setting in self.settings.items()}

    def filled(self, params: Mapping[str, Param] | tuple[tuple[str, Param], ...]) -> dict[str, Param]:
        """Return settings as a recipe gives them, defaults filled in."""
        return {**self.defaults, **dict(params)}

    def takes(self, inputs: int) -> bool:
        """Say whether so many inputs can be merged by it."""
        least, most = self.inputs
        return least <= inputs and (most is None or inputs <= most)

    def pairing(self) -> Pairing:
        """Return how two models are merged by it where nothing else is said: evenly, unless the row knows better."""
        even = (1.0, 1.0) if self.adds_to_base else (0.5, 0.5)
        own = next((each for each in self.pairings if each.name == self.name), None)
        return Pairing(name=self.name, weights=even, usual=False) if own is None else own

    def unknown(self, setting: str) -> str:
        """Return why a setting's name finds none: what came, the nearest name, and what there is."""
        known = ", ".join(self.settings) or "none"
        return f"no setting {setting!r}{nearest(setting, self.settings)}; there are: {known}"

    def weights_fault(self, row: Sequence[float], normalized: bool) -> str | None:
        """Return what is wrong with one weight for each input, None if nothing is.

        Args:
            row: the weights.
            normalized: whether they are divided by their sum, as far as the method leaves it open.
        """
        if max(map(abs, row)) > LARGEST:
            return f"expected weights that float32 can hold, got {row}"
        if self.weights == "sum" and normalized and sum(row) == 0:
            return f"expected weights whose sum is not 0, got {row}"
        if self.weights == "mixing" and (min(row) < 0 or sum(row) <= 0):
            return f"expected weights of at least 0 with a sum above 0, got {row}"
        return None

    def needs_base(self, params: Mapping[str, Param]) -> bool:
        """Say whether the base's tensor is needed under some settings, defaults filled in."""
        return self.reads_base if isinstance(self.reads_base, bool) else self.reads_base(params)


def _chances(params: Mapping[str, Any]) -> Iterator[str]:
    """Of DELLA: chances to stay run from ``density - epsilon`` to ``density + epsilon``, where not all or none stay."""
    density, epsilon = params["density"], params["epsilon"]
    if 0 < density < 1 and not 0 < density - epsilon <= density + epsilon < 1:
        yield f"expected density - epsilon and density + epsilon in (0, 1), got {density}, {epsilon}"


def _relative(params: Mapping[str, Param]) -> bool:
    return bool(params["relative"])


_MERGE = "sae_moo.materialization.ops.merge"
_SPHERICAL = "sae_moo.materialization.ops.spherical"
_TASK_VECTORS = "sae_moo.materialization.ops.task_vectors"

_SUM_OF_TWO = 0.6  # of two task vectors, half-way between one of them and both whole
_USUAL = ("ties", "dare_ties", "breadcrumbs")  # of their family, those that are tried where nobody says which are

_SCALE = Setting(default=1.0, about="factor of the merged difference from the base")
_RELATIVE = Setting(default=False, about="work on differences from the base")
_SEED = Setting(default=0, about="of the random masks")
_EPSILON = Setting(
    default=0.15, least=0, most=1, per_input=True, about="how far the chance to stay runs from the density, either way"
)
_GAMMA = Setting(default=0.01, least=0, most=1, per_input=True, about="share of the largest differences to drop")


def _normalize(default: bool) -> Setting:
    return Setting(default=default, about="divide by the sum of the weights")


def _thinned(
    name: str,
    step: str,
    *,
    elect: bool,
    normalize: bool,
    rescale: str,
    summary: str,
    source: str,
    pairings: tuple[Pairing, ...] = (),
    **own: Setting,
) -> Method:
    """A row of the TIES, DARE, DELLA and breadcrumbs family.

    Two models are merged with half of each difference from the base, of breadcrumbs with all but a tenth; where they
    are added up, at the scale that sums of two task vectors are usual at.
    """
    density = {"density": 0.9 if "gamma" in own else 0.5}
    usual = Pairing(
        name=name,
        weights=(0.5, 0.5) if normalize else (1.0, 1.0),
        settings=density if normalize else density | {"scale": _SUM_OF_TWO},
        usual=name in _USUAL,
    )
    common = {
        "density": Setting(
            default=1.0, least=0, most=1, per_input=True, about="share of each difference from the base that stays"
        ),
        "scale": _SCALE,
        "normalize": _normalize(normalize),
        "rescale": Setting(
            default=rescale,
            choices=("none", "l1", "density"),
            about="what is left grows to the L1 norm it had, or by 1 / density",
        ),
    }
    return Method(
        name=name,
        step=f"{_TASK_VECTORS}:{step}",
        settings=common | own,
        fixed={"elect": elect},
        reads_base=True,
        adds_to_base=not normalize,
        faults=_chances if "epsilon" in own else None,
        pairings=(usual, *pairings),
        summary=summary,
        source=source,
    )


_TIES = "Yadav et al. 2023, arXiv 2306.01708"
_DARE = "Yu et al. 2024, arXiv 2311.03099"
_DELLA = "Deep et al. 2024, arXiv 2406.11617"
_CHANGED = Setting(default=1e-5, above=0, about="differences from the base of at most this are none")
_RAM = "arXiv 2601.13572"
_BREADCRUMBS = "Davari & Belilovsky 2024, arXiv 2312.06795"

METHODS: Catalogue[Method] = Catalogue(
    "merge method",
    "sae_moo.methods",
    Method,
    [
        Method(
            name="linear",
            step=f"{_MERGE}:linear",
            settings={"normalize": _normalize(True)},
            weights="sum",
            weighted_sum=True,
            pairings=(
                Pairing(name="linear", weights=(0.5, 0.5)),
                Pairing(name="linear-0.7", weights=(0.7, 0.3)),
            ),
            summary="weighted mean",
            source="Wortsman et al. 2022, arXiv 2203.05482",
        ),
        Method(
            name="slerp",
            step=f"{_SPHERICAL}:slerp",
            inputs=(2, 2),
            weights="sum",
            pairings=(Pairing(name="slerp", weights=(0.5, 0.5)),),
            summary="along the arc between two tensors",
            source="Shoemake 1985",
        ),
        Method(
            name="nuslerp",
            step=f"{_SPHERICAL}:nuslerp",
            inputs=(2, 2),
            settings={"relative": _RELATIVE},
            reads_base=_relative,
            summary="along the arc between two tensors, or between their differences from the base",
            source="mergekit",
        ),
        Method(
            name="multislerp",
            step=f"{_SPHERICAL}:multislerp",
            settings={"relative": _RELATIVE, "normalize": _normalize(True)},
            weights="sum",
            reads_base=_relative,
            summary="weighted mean of directions, times the weighted mean of lengths",
            source="mergekit",
        ),
        Method(
            name="karcher",
            step=f"{_SPHERICAL}:karcher",
            settings={
                "max_iter": Setting(default=10, above=0, about="most steps towards the mean"),
                "tol": Setting(default=1e-5, above=0, about="length of a step that ends it"),
            },
            weights="mixing",
            summary="Riemannian mean of directions, times the weighted mean of lengths",
            source="arXiv 2603.04972",
        ),
        Method(
            name="split_slerp",
            step=f"{_SPHERICAL}:split_slerp",
            inputs=(2, 2),
            settings={
                "split": Setting(
                    default=0.5, least=0, most=1, about="share of the model's elements before the weights are exchanged"
                )
            },
            weights="sum",
            summary="along the arc, the weights exchanged behind a point of the model",
            source="M2N2, Abrantes et al. 2025",
        ),
        Method(
            name="model_stock",
            step=f"{_SPHERICAL}:model_stock",
            inputs=(2, None),
            weights="mixing",
            reads_base=True,
            summary="between base and average, by the mean angle of the differences from the base",
            source="Jang et al. 2024, arXiv 2403.19522",
        ),
        Method(
            name="task_arithmetic",
            step=f"{_MERGE}:task_arithmetic",
            settings={"scale": _SCALE, "normalize": _normalize(False)},
            reads_base=True,
            adds_to_base=True,
            weighted_sum=True,
            pairings=(Pairing(name="task_arithmetic", weights=(1.0, 1.0), settings={"scale": _SUM_OF_TWO}),),
            summary="weighted differences from the base, added to it",
            source="Ilharco et al. 2023, arXiv 2212.04089",
        ),
        _thinned(
            "ties",
            "ties",
            elect=True,
            normalize=True,
            rescale="none",
            pairings=(Pairing(name="ties-0.7", weights=(0.7, 0.3), settings={"density": 0.5}),),
            summary="trim each difference from the base by magnitude, elect a sign, mean of what agrees",
            source=_TIES,
        ),
        _thinned(
            "dare_linear",
            "dare",
            elect=False,
            normalize=False,
            rescale="l1",
            seed=_SEED,
            summary="drop elements of each difference from the base at random, rescale, add",
            source=_DARE,
        ),
        _thinned(
            "dare_ties",
            "dare",
            elect=True,
            normalize=False,
            rescale="l1",
            seed=_SEED,
            summary="drop at random, rescale, elect a sign, add what agrees",
            source=_DARE,
        ),
        _thinned(
            "della",
            "della",
            elect=True,
            normalize=True,
            rescale="l1",
            seed=_SEED,
            epsilon=_EPSILON,
            summary="drop at random, the larger of a row the less likely, rescale, elect a sign, mean of what agrees",
            source=_DELLA,
        ),
        _thinned(
            "della_linear",
            "della",
            elect=False,
            normalize=False,
            rescale="l1",
            seed=_SEED,
            epsilon=_EPSILON,
            summary="drop at random, the larger of a row the less likely, rescale, add",
            source=_DELLA,
        ),
        _thinned(
            "breadcrumbs",
            "breadcrumbs",
            elect=False,
            normalize=False,
            rescale="none",
            gamma=_GAMMA,
            summary="drop the largest and the smallest of each difference from the base, add",
            source=_BREADCRUMBS,
        ),
        _thinned(
            "breadcrumbs_ties",
            "breadcrumbs",
            elect=True,
            normalize=False,
            rescale="none",
            gamma=_GAMMA,
            summary="drop the largest and the smallest, elect a sign, add what agrees",
            source=_BREADCRUMBS,
        ),
        Method(
            name="sce",
            step=f"{_TASK_VECTORS}:sce",
            settings={
                "select_topk": Setting(
                    default=1.0, least=0, most=1, about="share of the elements of largest variance that stay"
                ),
                "scale": _SCALE,
            },
            weights="mixing",
            reads_base=True,
            summary="select by variance over the inputs, calculate weights, elect signs",
            source="Wan et al. 2024, arXiv 2408.07990",
        ),
        Method(
            name="arcee_fusion",
            step=f"{_TASK_VECTORS}:arcee_fusion",
            inputs=(1, 1),
            weights="unused",
            reads_base=True,
            summary="take over from one model only what changed much",
            source="mergekit",
        ),
        Method(
            name="nearswap",
            step=f"{_MERGE}:nearswap",
            inputs=(1, 1),
            settings={"t": Setting(default=0.001, least=0, about="distance up to which an element is the model's")},
            weights="unused",
            reads_base=True,
            summary="where one model is near the base its element, elsewhere a step of fixed length towards it",
            source="mergekit",
        ),
        Method(
            name="ram",
            step=f"{_TASK_VECTORS}:ram",
            settings={"epsilon": _CHANGED},
            fixed={"r": 0.0, "alpha": 0.0},
            weights="unused",
            reads_base=True,
            summary="mean of those differences from the base that are any, element by element",
            source=_RAM,
        ),
        Method(
            name="ramplus_tl",
            step=f"{_TASK_VECTORS}:ram",
            settings={
                "r": Setting(default=0.1, least=0, about="how much what one model alone changes grows"),
                "alpha": Setting(default=0.2, least=0, about="largest ratio of shared changes to own ones that counts"),
                "epsilon": _CHANGED,
            },
            weights="unused",
            reads_base=True,
            summary="the same, what one model alone changes the larger the more of its changes others share",
            source=_RAM,
        ),
        Method(
            name="rankmean",
            step=f"{_MERGE}:rankmean",
            weights="mixing",
            reads_base=True,
            whole_model=WholeModel(setting="ranks", measure="sae_moo.materialization.ranks:ranks"),
            summary="weights by how much each model changed a tensor, compared within the model",
            source="Perin et al. 2024",
        ),
        Method(
            name="zero_aware",
            step=f"{_MERGE}:zero_aware",
            settings={"scale": _SCALE},
            weights="mixing",
            reads_base=lambda params: params["scale"] != 1.0,
            summary="where some inputs are exactly zero, the others take the place undiluted",
            source="after Zhang, Zhang et al. 2026, arXiv 2602.08218",
        ),
    ],
)
"""The house's methods; one of an installed package is found as ``package/name``."""
