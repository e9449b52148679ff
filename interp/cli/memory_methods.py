"""The locators of `interp memorization locate`: one row a method, from the options to a fitted locator and its edit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from interp.errors import UsageError

if TYPE_CHECKING:
    from interp.cli.memory_items import Case
    from interp.intervene.weights import PartEdit
    from interp.models.cache import Progress


@dataclass(frozen=True)
class Options:
    """What the options of the command say: share and rank of the cut, the null, and the runs of a pipeline."""

    share: float
    rank: int | None
    null: str | None
    tau: int
    steps: int
    guidance: float
    seed: int

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
    """

    make: Callable[[Options], Any]
    cut: Callable[[Any, Options], PartEdit]
    says: str
    pictures: bool = False
    ordinary: bool = False
    of_pipelines: bool = False


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
    return found.edit(share=options.share)  # type: ignore[no-any-return]


def _rank(found: Any, options: Options) -> PartEdit:
    return found.edit(options.rank)  # type: ignore[no-any-return]


def _own(found: Any, options: Options) -> PartEdit:
    return found.edit()  # type: ignore[no-any-return]


def _cut(found: Any, options: Options) -> PartEdit:
    return found.cut(options.share)  # type: ignore[no-any-return]


METHODS: dict[str, Method] = {
    "wanda": Method(
        _wanda("corrected"), _share, "weights whose columns are stronger on the items, by how much"
    ),
    "reference": Method(
        _wanda("reference"), _share, "the published rule of Wanda contrast", of_pipelines=True
    ),
    "nemo": Method(_nemo, _own, "value units of cross-attention that hold single prompts", False, True, True),
    "subspace": Method(_subspace, _rank, "directions in which the items have more energy"),
    "activation": Method(_activation, _share, "units by what they write"),
    "gradient": Method(_gradient, _share, "units by gradient times activation", True),
    "integrated": Method(_integrated, _share, "units by integrated gradients", True),
    "hard-concrete": Method(_gates("hard_concrete"), _share, "units by learned gates", True),
    "slimming": Method(_gates("slimming"), _share, "units by gates with a price", True),
    "balanced-subnet": Method(_balanced, _share, "weights by a learned mask", True, True),
    "contrastive": Method(
        _contrastive, _cut, "weights by gradients of the items over those of others", True, True
    ),
    "kfac": Method(_flat, _own, "directions of low curvature on ordinary items; no labels", True, True),
}
"""Every method by its name."""

_NULLS = ("wanda", "reference", "subspace")


def fitted(case: Case, name: str, options: Options, progress: Progress) -> tuple[Any, PartEdit]:
    """A locator fitted on the targeted items, and the edit that it asks for.

    Raises:
        UsageError: no such method, or one that this subject or these items do not do for.
    """
    if name not in METHODS:
        raise UsageError(f"no method '{name}'; write one of {', '.join(METHODS)}")
    method, ordinary = METHODS[name], case.groups.get("ordinary", ())
    if method.of_pipelines and not case.pipeline:
        raise UsageError(f"method '{name}' is of pipelines, and {case.subject.name} is a language model")
    if method.ordinary and not ordinary:
        raise UsageError(f"method '{name}' compares with ordinary prompts: give --reference FILE")
    if not case.pipeline and not ordinary:
        raise UsageError(
            "every passage is recited, and there is none to compare with: give more with --prompts"
        )
    if options.null is not None and name not in _NULLS:
        raise UsageError(f"--null is of {', '.join(_NULLS)}; '{name}' compares with the ordinary items")
    if not 0 < options.share <= 1:
        raise UsageError(f"--share {options.share}: write a share above 0 and at most 1")
    null = options.null or ("empty" if name == "reference" else None)
    reference = None if null in ("paired", "empty") or not ordinary else ordinary
    if method.pictures and case.pipeline:
        if not all(hasattr(item, "image") for item in (() if name == "kfac" else case.targets)):
            raise UsageError(f"method '{name}' reads the pictures: give --images, or a column 'image'")
        if not all(hasattr(item, "image") for item in ordinary):
            if method.ordinary:
                raise UsageError(f"method '{name}' reads pictures of ordinary prompts: give a column 'image'")
            reference = None
    locator = method.make(options)
    targets = None if name == "kfac" else case.targets
    locator.fit(case.subject, targets, reference=reference, progress=progress)
    return locator, method.cut(locator, options)
