"""Every edit that is compared: what locates it, at which dose, and the controls of as many weights a row.

The masks of all rules, and of all controls, have in each row as many weights as the published rule takes at that share
(fewer where a rule has no more that count). A share that makes no weight of a row is taken of each part as a whole.
Locators of units cut whole columns, as large a share of all; NeMo cuts rows of value matrices; the subspace takes out
directions, and K-FAC components of low curvature: their dose is what they change.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from interp.studies.memorization.bench import Bench

if TYPE_CHECKING:
    from interp.intervene.weights import PartEdit
    from interp.locate.memorization.masks import Masks
    from interp.locate.memorization.wanda import WandaContrast
    from interp.models.pipeline import Pipeline

Family = Literal["none", "located", "control"]

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
CONTROLS = ("random", "magnitude", "ordinary", "words")
"""Masks of as many weights a row: drawn, the largest, or by the rule on ordinary prompts or control words."""
UNITS = ("activation", "gradient", "integrated", "hard_concrete")
_LEAST_UNITS = 0.01


@dataclass(frozen=True)
class Cut:
    """An edit, and what it is called.

    Attributes:
        edit: name of its locator or control. asked: share, rank or mass; NaN for none.
    """

    edit: str
    family: Family
    asked: float
    made: Callable[[], PartEdit]


class Cuts:
    """Locators on A of one training seed; each is fitted when it is first asked for.

    Attributes:
        rows, seconds: of the UNet and of CPU time, that fitting each locator took.
    """

    def __init__(self, bench: Bench):
        self.bench = bench
        self.rows: dict[str, int] = {}
        self.seconds: dict[str, float] = {}

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
        return Cut(name, "control" if name in CONTROLS else "located", asked, lambda: self.made(name, asked))

    def made(self, name: str, asked: float) -> PartEdit:
        """The edit itself."""
        from interp.intervene.weights import pruned
        from interp.locate.memorization.masks import share_of

        if name in RULES or name in CONTROLS:
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
        from interp.locate.memorization.masks import best_like, magnitude_like, random_like

        reference = self._reference(share)
        if name == REFERENCE:
            return reference
        if name == "random":
            return random_like(reference, self.bench.spec.seed)
        if name == "magnitude":
            return magnitude_like(self.bench.pipeline, reference)
        if name in CONTROLS:
            return best_like(getattr(self, name).weights(rule="reference"), reference)
        rule, null = RULES[name]
        scores = self.wanda.weights(rule=rule, null=null)  # type: ignore[arg-type]
        return {part: m & (scores[part] > 0) for part, m in best_like(scores, reference).items()}

    def _reference(self, share: float) -> Masks:
        from interp.intervene.weights import top_masks

        scores = self.wanda.weights(rule="reference")
        if int(share * min(s.shape[1] for s in scores.values())) >= 1:
            return self.wanda.mask(share, rule="reference")
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

    def _wanda(self, name: str, data: Any, reference: Any = None) -> WandaContrast:
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
        return self._wanda("wanda", self.targets, list(self.bench.reference))

    @cached_property
    def ordinary(self) -> WandaContrast:
        """Of ordinary prompts, as many as A."""
        return self._wanda("ordinary", list(self.bench.reference[: len(self.targets)]))

    @cached_property
    def words(self) -> WandaContrast:
        """Of control words, which stand with many pictures."""
        return self._wanda("words", list(self.bench.sets["control"]))

    @cached_property
    def nemo(self) -> Any:
        """Value units of cross-attention."""
        from interp.locate.memorization.nemo import NeMo

        return self._fitted(
            "nemo", NeMo(steps=self.bench.spec.steps), self.targets, list(self.bench.reference)
        )

    @cached_property
    def subspace(self) -> Any:
        """Directions against the unconditional half."""
        from interp.locate.memorization.subspace import ContrastSubspace

        spec = self.bench.spec
        locator = ContrastSubspace("paired", tau=spec.tau, steps=spec.steps, most=max(spec.ranks), draws=19)
        return self._fitted("subspace", locator, self.targets)

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
        key = "wanda" if name in RULES else name
        return {"rows": self.rows.get(key, 0), "seconds": self.seconds.get(key, 0.0)}


def dose_of(subject: Pipeline, edit: PartEdit) -> float:
    """Share of the weights that an edit changes, of all parts of its kinds, those that it leaves alone included."""
    from interp.models.parts import parts, weight_of

    budget = edit.budget(subject)
    every = {part for kind in {part.kind for part in edit.parts} for part in parts(subject, kind)}
    return budget.changed / (sum(weight_of(subject, part).numel() for part in every) or budget.weights)


def chosen(doses: pd.DataFrame, erased: float) -> pd.DataFrame:
    """The dose that each edit is measured on at, chosen on A alone, on samples that are not measured again.

    The smallest at which any mask of the Wanda contrast erases A is that of all masks and units (equal budget; where
    none does, the largest). The others, whose doses are of other kinds, have the smallest that erases A, or else the
    one that leaves least of it.

    Args:
        doses: rows of `doses` of one training seed. erased: replication that counts as erased.

    Returns:
        edit, asked, dose, norm, targeted, erases, of.
    """
    rows = doses[(doses["measure"] == "targeted") & (doses["family"] != "none")].sort_values(
        "dose", kind="stable"
    )
    masks = rows[rows["edit"].isin(list(RULES))]
    enough = masks[masks["value"] <= erased]
    budget = float(enough["asked"].min() if len(enough) else masks["asked"].max())
    out = []
    for name, own in rows.groupby("edit", sort=False):
        alone = name in ("nemo", "subspace", "flat")
        if not alone:
            row = own[own["asked"] == budget]
        else:
            gone = own[own["value"] <= erased]
            row = gone.iloc[:1] if len(gone) else own[own["value"] == own["value"].min()].iloc[:1]
        if row.empty:
            continue
        r = row.iloc[0]
        out.append(
            {
                "edit": name,
                "asked": r["asked"],
                "dose": r["dose"],
                "norm": r["norm"],
                "targeted": r["value"],
                "erases": bool(r["value"] <= erased),
                "of": name if alone else "wanda",
            }
        )
    return pd.DataFrame(out)
