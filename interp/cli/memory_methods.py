"""The locators of `interp memorization locate`: one row a method, from the options to a fitted locator and its edit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from interp.cli.console import say
from interp.errors import UsageError

if TYPE_CHECKING:
    from interp.cli.memory_items import Case
    from interp.intervene.weights import PartEdit
    from interp.models.cache import Progress


@dataclass(frozen=True)
class Options:
    """What the options of the command say: share and rank of the cut, the null, and the runs of a pipeline.

    `given` are the names of those that were written.
    """

    share: float
    rank: int | None
    null: str | None
    tau: int
    steps: int
    guidance: float
    seed: int
    given: frozenset[str] = frozenset()

    @property
    def runs(self) -> dict[str, Any]:
        """Options of locators that denoise."""
        return {"tau": self.tau, "steps": self.steps, "guidance": self.guidance}


class Method(NamedTuple):
    """A locator as the command has it.

    Attributes:
        make: the unfitted locator of the options; told whether there are ordinary items.
        cut: the edit of the fitted locator.
        says: what it looks at.
        pictures: it reads the items' pictures (in a pipeline). ordinary: it needs ordinary items.
        of_pipelines: it is of pipelines alone.
        uses: options that it looks at, of those that not all methods do.
        targets: it looks at the items that are to be taken out.
    """

    make: Callable[[Options], Any]
    cut: Callable[[Any, Options], PartEdit]
    says: str
    pictures: bool = False
    ordinary: bool = False
    of_pipelines: bool = False
    uses: tuple[str, ...] = ("share",)
    targets: bool = True


def _wanda(rule: str) -> Callable[[Options], Any]:
    def make(options: Options) -> Any:
        from interp.locate.memorization.wanda import WandaContrast

        null = options.null or ("empty" if rule == "reference" else None)
        return WandaContrast(rule, null, share=options.share, seeds=(options.seed,), **options.runs)  # type: ignore[arg-type]

    return make


def _nemo(options: Options) -> Any:
    from interp.locate.memorization.nemo import NeMo

    return NeMo(steps=options.steps)


def _subspace(options: Options) -> Any:
    from interp.locate.memorization.subspace import ContrastSubspace

    return ContrastSubspace(options.null, seeds=(options.seed,), seed=options.seed, **options.runs)  # type: ignore[arg-type]


def _activation(options: Options) -> Any:
    from interp.locate.memorization.activation import Activation

    return Activation(steps=options.steps, stop=options.tau, guidance=options.guidance)


def _gradient(options: Options) -> Any:
    from interp.locate.memorization.gradients import GradientActivation

    return GradientActivation(seed=options.seed)


def _integrated(options: Options) -> Any:
    from interp.locate.memorization.gradients import IntegratedGradients

    return IntegratedGradients(seed=options.seed)


def _gates(rule: str) -> Callable[[Options], Any]:
    def make(options: Options) -> Any:
        from interp.locate.memorization.gates import LearnedGates

        return LearnedGates(rule, seed=options.seed)  # type: ignore[arg-type]

    return make


def _balanced(options: Options) -> Any:
    from interp.locate.memorization.supermask import BalancedSubnet

    return BalancedSubnet(share=options.share, seed=options.seed)


def _contrastive(options: Options) -> Any:
    from interp.locate.memorization.contrastive import ContrastiveGradients

    return ContrastiveGradients(share=options.share, seed=options.seed)


def _flat(options: Options) -> Any:
    from interp.locate.memorization.kfac import FlatDirections

    return FlatDirections(seed=options.seed)


def _share(found: Any, options: Options) -> PartEdit:
    return cast("PartEdit", found.edit(share=options.share))


def _rank(found: Any, options: Options) -> PartEdit:
    return cast("PartEdit", found.edit(options.rank))


def _own(found: Any, options: Options) -> PartEdit:
    return cast("PartEdit", found.edit())


def _cut(found: Any, options: Options) -> PartEdit:
    return cast("PartEdit", found.cut(options.share))


_RUNS = ("tau", "steps", "guidance")

METHODS: dict[str, Method] = {
    "wanda": Method(
        _wanda("corrected"),
        _share,
        "weights whose columns are stronger on the items, by how much",
        uses=("share", "null", *_RUNS),
    ),
    "reference": Method(
        _wanda("reference"),
        _share,
        "the published rule of Wanda contrast",
        of_pipelines=True,
        uses=("share", "null", *_RUNS),
    ),
    "nemo": Method(
        _nemo,
        _own,
        "value units of cross-attention that hold single prompts",
        ordinary=True,
        of_pipelines=True,
        uses=("steps",),
    ),
    "subspace": Method(
        _subspace, _rank, "directions in which the items have more energy", uses=("rank", "null", *_RUNS)
    ),
    "activation": Method(_activation, _share, "units by what they write", uses=("share", *_RUNS)),
    "gradient": Method(_gradient, _share, "units by gradient times activation", True),
    "integrated": Method(_integrated, _share, "units by integrated gradients", True),
    "hard-concrete": Method(_gates("hard_concrete"), _share, "units by learned gates", True),
    "slimming": Method(_gates("slimming"), _share, "units by gates with a price", True),
    "balanced-subnet": Method(_balanced, _share, "weights by a learned mask", True, True),
    "contrastive": Method(
        _contrastive, _cut, "weights by gradients of the items over those of others", True, True
    ),
    "kfac": Method(
        _flat,
        _own,
        "directions of low curvature on ordinary items; no labels",
        True,
        True,
        uses=(),
        targets=False,
    ),
}
"""Every method by its name."""

_SPECIAL = ("share", "rank", "null")
"""Options that change the edit: given to a method that has none, they are refused; others are told."""


class Found(NamedTuple):
    """A fitted locator, the edit that it asks for, and the items that it read."""

    locator: Any
    edit: PartEdit
    targets: tuple[Any, ...]
    reference: tuple[Any, ...]


def fitted(case: Case, name: str, options: Options, progress: Progress) -> Found:
    """A locator fitted on the targeted items, and the edit that it asks for.

    Raises:
        UsageError: no such method, one that this subject or these items do not do for, or options that it has not.
    """
    if name not in METHODS:
        raise UsageError(f"no method '{name}'; write one of {', '.join(METHODS)}")
    method, ordinary = METHODS[name], tuple(case.groups.get("ordinary", ()))
    if method.of_pipelines and not case.pipeline:
        raise UsageError(f"method '{name}' is of pipelines, and {case.subject.name} is a language model")
    if method.ordinary and not ordinary:
        raise UsageError(f"method '{name}' compares with ordinary prompts: give --reference FILE")
    if not case.pipeline and not ordinary:
        raise UsageError(
            "every passage is recited, and there is none to compare with: give more with --prompts"
        )
    _used(name, options.given, case.pipeline)
    if not 0 < options.share <= 1:
        raise UsageError(f"--share {options.share}: write a share above 0 and at most 1")
    null = options.null or ("empty" if name == "reference" else None)
    reference = () if null in ("paired", "empty") else ordinary
    targets = case.targets if method.targets else ()
    if method.pictures and case.pipeline:
        if not all(hasattr(item, "image") for item in targets):
            raise UsageError(f"method '{name}' reads the pictures: give --images, or a column 'image'")
        if not all(hasattr(item, "image") for item in ordinary):
            if method.ordinary:
                raise UsageError(f"method '{name}' reads pictures of ordinary prompts: give a column 'image'")
            reference = ()
    locator = method.make(options)
    locator.fit(case.subject, targets or None, reference=reference or None, progress=progress)
    return Found(locator, method.cut(locator, options), targets, reference)


def _used(name: str, given: frozenset[str], pipeline: bool) -> None:
    """Refuses options of the cut that a method has not, and tells others that change nothing."""
    for option in _SPECIAL:
        if option in given and option not in METHODS[name].uses:
            those = ", ".join(other for other, method in METHODS.items() if option in method.uses)
            raise UsageError(f"--{option} is of {those}; '{name}' has none: leave it away")
    idle = [o for o in _RUNS if o in given and not (pipeline and o in METHODS[name].uses)]
    if idle:
        where = "" if pipeline else " of a language model"
        say("not used", f"{', '.join('--' + o for o in idle)}: '{name}'{where} does not look at them")
