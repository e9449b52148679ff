"""Controls of each located edit, at its own dose: as many weights of each row, columns, rows or directions.

| control | of masks | of units and rows | of the subspace |
|---|---|---|---|
| `random N` | drawn, as many in each row | drawn whole | drawn, of equal rank and norm of the change |
| `magnitude` | the largest | | |
| `ordinary` | by the same rule on ordinary prompts | | of ordinary prompts, of equal rank and norm |
| `words` | by the same rule on words that stand with many pictures | | |

Those of one training are drawn for it alone.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from interp.studies.memorization.cuts import REFERENCE, RULES, Cut, Cuts

if TYPE_CHECKING:
    from interp.intervene.weights import PartEdit
    from interp.locate.memorization.subspace import ContrastSubspace
    from interp.locate.memorization.wanda import WandaContrast

JUDGED = (REFERENCE, "wanda corrected")
"""Edits that claims are made about: they have all controls, and are attacked in every training."""
KINDS = ("random", "magnitude", "ordinary", "words")
UNCONTROLLED = ("flat",)
"""Edits that nothing was located for, so that there is nothing to take another of."""


def control_name(kind: str, edit: str) -> str:
    """What a control of an edit is called."""
    return f"{kind} ({edit})"


def kind_of(name: str) -> str:
    """The kind of a control by its name ("random" of "random 0 (nemo)"); nothing for other edits."""
    kind = name.partition(" (")[0].split()[0]
    return kind if kind in KINDS and name.endswith(")") else ""


class Controls:
    """Controls of the edits of one training seed; what they are located by is fitted when it is first asked for."""

    def __init__(self, cuts: Cuts):
        self.cuts = cuts
        self.bench = cuts.bench

    def of(self, edit: str) -> dict[str, list[str]]:
        """Names of the controls of a located edit, by kind."""
        spec = self.bench.spec
        judged = edit in JUDGED
        draws = 0 if edit in UNCONTROLLED else spec.random if judged else spec.random_other
        out = {"random": [control_name(f"random {i}", edit) for i in range(draws)]}
        if judged or (edit == "subspace" and draws):
            out["ordinary"] = [control_name("ordinary", edit)]
        if judged:
            out["magnitude"] = [control_name("magnitude", edit)]
            out["words"] = [control_name("words", edit)] if self.bench.sets["control"] else []
        return {kind: names for kind, names in out.items() if names}

    def cut(self, name: str, of: Cut) -> Cut:
        """A control by its name, beside an edit."""
        return Cut(name, "control", of.asked, lambda: self.made(name, of.edit, of.made(), of.asked), of.edit)

    def made(self, name: str, edit: str, located: PartEdit, asked: float) -> PartEdit:
        """The control itself.

        Args:
            name: of the control. edit: that it stands beside. located: that edit itself, at the dose `asked`.
        """
        from interp.locate.memorization.bases import subspace_controls
        from interp.locate.memorization.controls import control_edits

        kind, draws = name.partition(" (")[0], self.bench.spec.random
        pipe, seed = self.bench.pipeline, self.seed
        if edit == "subspace":
            others = {"ordinary": self.directions} if kind == "ordinary" else {}
            return subspace_controls(pipe, located, others, draws=draws, seed=seed, equal_norm=True)[kind]
        if kind in ("ordinary", "words"):
            return self._by_rule(kind, edit, located, asked)
        return control_edits(pipe, located, draws=draws, seed=seed)[kind]

    @property
    def seed(self) -> int:
        """Of draws: another one for each training."""
        return self.bench.spec.seed * 1000 + self.bench.seed

    def _by_rule(self, kind: str, edit: str, located: PartEdit, share: float) -> PartEdit:
        from interp.intervene.weights import Prune, pruned
        from interp.locate.memorization.masks import rule_like

        masks = {single.part: single.mask for single in located.singles if isinstance(single, Prune)}
        rule, null = RULES[edit]
        found = self.ordinary if kind == "ordinary" else self.words
        # A share that makes no weight of a row is taken of the part as a whole, and the control of the best of a row.
        least = 1 / min(mask.shape[1] for mask in masks.values())
        own = rule_like(found, masks, max(share, least), rule=rule, null=null)  # type: ignore[arg-type]
        return pruned(self.bench.pipeline, own)

    @cached_property
    def ordinary(self) -> WandaContrast:
        """Of ordinary prompts, as many as A, of as many digits."""
        return self.cuts.fit_wanda("ordinary", self._prompts())

    @cached_property
    def words(self) -> WandaContrast:
        """Of control words, which stand with many pictures."""
        return self.cuts.fit_wanda("words", list(self.bench.sets["control"]))

    @cached_property
    def directions(self) -> ContrastSubspace:
        """Of ordinary prompts."""
        return self.cuts.fit_subspace("ordinary directions", self._prompts())

    def _prompts(self) -> list[str]:
        """Ordinary prompts, as many as A: digits in turn, and with each another noun."""
        every = self.bench.reference
        return [every[i * (DIGITS_IN_TURN + 1) % len(every)] for i in range(len(self.cuts.targets))]


DIGITS_IN_TURN = 10
"""Ordinary prompts are in the order of their nouns, and of each noun of digits."""
