"""Every edit that is compared: what locates it, and at which dose.

The masks of all rules have in each row as many weights as the published rule takes at that share (fewer where a rule
has no more that count). A share that makes no weight of a row is taken of each part as a whole. Locators of units cut
whole columns, as large a share of all; NeMo cuts rows of value matrices; the subspace takes out directions, and K-FAC
components of low curvature: their dose is what they change.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from interp.studies.memorization.bench import Bench, Role

if TYPE_CHECKING:
    from interp.intervene.weights import PartEdit
    from interp.locate.memorization.masks import Masks
    from interp.locate.memorization.subspace import ContrastSubspace
    from interp.locate.memorization.wanda import WandaContrast
    from interp.models.pipeline import Pipeline

Family = Literal["none", "located", "control", "trained"]

NONE = "none"
"""The pipeline as it is, among edits."""
REFERENCE = "wanda reference"
"""The published rule."""
RULES: dict[str, tuple[str, str]] = {
    REFERENCE: ("reference", "empty"),
    "wanda corrected": ("corrected", "empty"),
    "wanda paired": ("corrected", "paired"),
    "wanda prompts": ("corrected", "prompts"),
}
"""Rule and null of each mask."""
UNITS = ("activation", "gradient", "integrated", "hard_concrete")
_LEAST_UNITS = 0.01
_TAU = ", tau "


def early(rule: str, tau: int) -> str:
    """The name of a rule over fewer steps."""
    return f"{rule}{_TAU}{tau}"


@dataclass(frozen=True)
class Cut:
    """An edit, and what it is called.

    Attributes:
        edit: name of its locator or control. asked: share, rank or mass; NaN for none.
        of: of a control, the edit that it stands beside; else its own name.
    """

    edit: str
    family: Family
    asked: float
    made: Callable[[], PartEdit]
    of: str


class Cuts:
    """Locators on A of one training seed; each is fitted when it is first asked for.

    Attributes:
        rows, seconds: of the UNet and of CPU time, that fitting each locator took.
    """

    def __init__(self, bench: Bench):
        self.bench = bench
        self.rows: dict[str, int] = {}
        self.seconds: dict[str, float] = {}
        self._every: dict[Role, WandaContrast] = {}

    def all(self, edits: Sequence[str]) -> Iterator[Cut]:
        """Every dose of these edits."""
        spec = self.bench.spec
        for name in edits:
            asked = {"subspace": spec.ranks, "flat": spec.masses}.get(name, spec.doses)
            for dose in asked:
                if name in (*UNITS, "nemo") and dose < _LEAST_UNITS:
                    continue
                yield self.cut(name, float(dose))

    def cut(self, name: str, asked: float) -> Cut:
        """One edit at one dose."""
        return Cut(name, "located", asked, lambda: self.made(name, asked), name)

    def made(self, name: str, asked: float) -> PartEdit:
        """The edit itself."""
        from interp.intervene.weights import pruned
        from interp.locate.memorization.masks import share_of

        if name.partition(_TAU)[0] in RULES:
            return pruned(self.bench.pipeline, self.mask(name, asked))
        if name == "nemo":
            return self.nemo.edit(share=asked)
        if name == "subspace":
            return self.subspace.edit(int(asked))
        if name == "flat":
            return self.flat.edit(mass=asked)
        share = share_of(self._reference(asked))
        if name == "contrastive":
            return self.contrastive.cut(share=share)
        if name == "balanced_subnet":
            return self.balanced(share).edit(share=share)
        return getattr(self, name).edit(share=share)

    def usable(self, name: str) -> bool:
        """Whether a locator found anything at all: NeMo skips prompts that do not look memorized to it."""
        return name != "nemo" or bool(self.nemo.prompts_["memorized"].any())

    # -- masks -------------------------------------------------------------------------------------------------------

    def mask(self, name: str, share: float) -> Masks:
        """A mask of weights, as many in each row as the published rule takes."""
        from interp.locate.memorization.masks import best_like

        rule, _, steps = name.partition(_TAU)
        tau = int(steps) if steps else None
        reference = self._reference(share, tau)
        if rule == REFERENCE:
            return reference
        how, null = RULES[rule]
        scores = self.wanda.weights(rule=how, null=null, tau=tau)  # type: ignore[arg-type]
        return {part: m & (scores[part] > 0) for part, m in best_like(scores, reference).items()}

    def _reference(self, share: float, tau: int | None = None) -> Masks:
        from interp.intervene.weights import top_masks

        scores = self.wanda.weights(rule="reference", tau=tau)
        if int(share * min(s.shape[1] for s in scores.values())) >= 1:
            return self.wanda.mask(share, rule="reference", tau=tau)
        return top_masks(scores, share, per="part", within={p: s > 0 for p, s in scores.items()})

    # -- locators ----------------------------------------------------------------------------------------------------

    def _fitted(self, name: str, locator: Any, data: Any, reference: Any = None) -> Any:
        """A locator fitted, and what that took."""
        from interp.models.cache import quiet

        with self.timed(name), self.bench.stage(f"locate {name} {self.bench.seed}") as report:
            return locator.fit(self.bench.pipeline, data, reference=reference, progress=report or quiet)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Keeps what finding an edit takes."""
        spent, start = self.bench.pipeline.spent, time.process_time()
        before = spent.rows
        yield
        self.rows[name], self.seconds[name] = spent.rows - before, time.process_time() - start

    def fit_wanda(self, name: str, data: Any, reference: Any = None) -> WandaContrast:
        """The contrast of some prompts."""
        from interp.locate.memorization.wanda import WandaContrast

        spec = self.bench.spec
        locator = WandaContrast("reference", null="empty", tau=spec.tau, steps=spec.steps)
        return self._fitted(name, locator, data, reference)

    @cached_property
    def targets(self) -> list[Any]:
        """The items that are located."""
        return list(self.bench.sets["targeted"])

    @cached_property
    def wanda(self) -> WandaContrast:
        """Of A, with all three nulls from one fit."""
        return self.fit_wanda("wanda", self.targets, list(self.bench.reference))

    def every(self, role: Role) -> WandaContrast:
        """Of A, B and control words, item by item in this order."""
        from interp.locate.memorization.wanda import WandaContrast

        if role not in self._every:
            bench = self.bench
            items = [item for name in ("targeted", "held_out", "control") for item in bench.sets[name]]
            locator = WandaContrast("reference", null="empty", tau=bench.spec.tau, steps=bench.spec.steps)
            self._every[role] = locator.fit(bench.subject(role), items)
        return self._every[role]

    @cached_property
    def nemo(self) -> Any:
        """Value units of cross-attention."""
        from interp.locate.memorization.nemo import NeMo

        # The more it knows of what is ordinary the better: words of their own are, where they were shown once.
        ordinary = [*self.bench.reference, *(i.prompt for i in self.bench.items if i.exposures == 1)]
        return self._fitted("nemo", NeMo(steps=self.bench.spec.steps), self.targets, ordinary)

    @cached_property
    def subspace(self) -> ContrastSubspace:
        """Directions against the unconditional half."""
        return self.fit_subspace("subspace", self.targets)

    def fit_subspace(self, name: str, data: Any) -> ContrastSubspace:
        """Directions of some prompts."""
        from interp.locate.memorization.subspace import ContrastSubspace

        spec = self.bench.spec
        locator = ContrastSubspace("paired", tau=spec.tau, steps=spec.steps, most=max(spec.ranks), draws=19)
        return self._fitted(name, locator, data)

    @cached_property
    def activation(self) -> Any:
        """Units by how much they write."""
        from interp.locate.memorization.activation import Activation

        locator = Activation(stop=self.bench.spec.tau, steps=self.bench.spec.steps)
        return self._fitted("activation", locator, self.targets, list(self.bench.reference))

    @cached_property
    def gradient(self) -> Any:
        """Units by gradient times activation, less that of ordinary pictures."""
        from interp.locate.memorization.gradients import GradientActivation

        return self._fitted("gradient", GradientActivation(), self.targets, list(self.bench.kept[:20]))

    @cached_property
    def integrated(self) -> Any:
        """Units by integrated gradients, less those of ordinary pictures."""
        from interp.locate.memorization.gradients import IntegratedGradients

        locator = IntegratedGradients(steps=4, draws=4)
        return self._fitted("integrated", locator, self.targets, list(self.bench.kept[:10]))

    @cached_property
    def hard_concrete(self) -> Any:
        """Units that still hold A when every other is shut."""
        from interp.locate.memorization.gates import LearnedGates

        return self._fitted("hard_concrete", LearnedGates(draws=4, steps=100), self.targets)

    def balanced(self, share: float) -> Any:
        """Weights of a mask that is learned at this share."""
        from interp.locate.memorization.supermask import BalancedSubnet

        locator = BalancedSubnet(share, draws=4)
        return self._fitted("balanced_subnet", locator, self.targets, list(self.bench.kept[:20]))

    @cached_property
    def contrastive(self) -> Any:
        """Weights by the gradient of A, over those of ordinary pictures."""
        from interp.locate.memorization.contrastive import ContrastiveGradients

        return self._fitted("contrastive", ContrastiveGradients(), self.targets, list(self.bench.kept[:30]))

    @cached_property
    def flat(self) -> Any:
        """Components of low curvature on ordinary pictures; nothing is known of A."""
        from interp.locate.memorization.kfac import FlatDirections

        return self._fitted("flat", FlatDirections(), None, list(self.bench.kept))

    def spent(self, name: str) -> dict[str, float]:
        """UNet rows and CPU seconds that finding an edit took; zero for those that need no locator."""
        key = "wanda" if name.partition(_TAU)[0] in RULES else name
        return {"rows": self.rows.get(key, 0), "seconds": self.seconds.get(key, 0.0)}


def dose_of(subject: Pipeline, edit: PartEdit) -> float:
    """Share of the weights that an edit changes, of all parts of its kinds, those that it leaves alone included."""
    from interp.models.parts import parts, weight_of

    budget = edit.budget(subject)
    every = {part for kind in {part.kind for part in edit.parts} for part in parts(subject, kind)}
    return budget.changed / (sum(weight_of(subject, part).numel() for part in every) or budget.weights)


def chosen(doses: pd.DataFrame, erased: float) -> pd.DataFrame:
    """The dose that each edit is measured on at, chosen on A alone, on samples that are not measured again.

    Of each the smallest that erases A; where none does, the one that leaves least of it, the smaller of equals.

    Args:
        doses: rows of `doses` of one training seed. erased: replication that counts as erased.

    Returns:
        edit, asked, dose, norm, targeted, erases.
    """
    rows = doses[(doses["measure"] == "targeted") & (doses["family"] == "located")]
    rows = rows[~rows["edit"].str.contains(_TAU, regex=False)].sort_values("dose", kind="stable")
    out = []
    for name, own in rows.groupby("edit", sort=False):
        gone = own[own["value"] <= erased]
        r = (gone if len(gone) else own[own["value"] == own["value"].min()]).iloc[0]
        told = {"asked": r["asked"], "dose": r["dose"], "norm": r["norm"], "targeted": r["value"]}
        out.append({"edit": name, **told, "erases": bool(r["value"] <= erased)})
    return pd.DataFrame(out)
