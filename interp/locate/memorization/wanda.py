"""Weights that are strong on target items and not on a null: the Wanda contrast, as published and corrected.

The published rule (Chavhan et al. 2024, arXiv 2406.18566 and 2405.19237; after Wanda, Sun et al. 2023) takes, in each
row and at each denoising step, the weights of highest |W_ij| a_j, where a_j is the norm of input column j over the
target's tokens, each brought to length one; of them those that score higher on the target than on the empty prompt; and
of the first tau steps the union. Since |W| is on both sides, its contrast is but the sign of a difference of columns:
how large it is, and whether it is one, plays no part. The other rules score the difference itself, of tokens as they
are, pool the steps so that a share is a share, and know from the scatter of the items what is chance.

All rules, nulls, shares and numbers of steps come from the sums of one pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float

from interp.errors import UsageError
from interp.locate.memorization.base import ItemLocator
from interp.locate.memorization.contrast import Contrast, Null, null_of, seeded
from interp.locate.memorization.masks import count_of, top_per_row
from interp.locate.memorization.units import top_units
from interp.models.cache import Progress
from interp.models.parts import Part, weight_of
from interp.models.subject import CausalLM
from interp.trace.moments import ColumnMoments, Norm
from interp.trace.passes import ROWS, Corpus, Prompts, stream

if TYPE_CHECKING:
    from interp.intervene.weights import Stack
    from interp.models.pipeline import Pipeline

Rule = Literal["reference", "corrected", "log_ratio", "welch", "target"]
RULES: tuple[Rule, ...] = get_args(Rule)
_TINY = 1e-12


@dataclass(frozen=True)
class _Chosen:
    """What one call asks for."""

    contrast: Contrast
    rule: Rule
    steps: tuple[int, ...]
    level: float | None


class WandaContrast(ItemLocator[Corpus | Sequence[Any]]):
    """Weights, and the units whose columns they are in, that serve the target items.

    Args:
        rule: the score of a weight; a is how strong its column is on the target and b on the null (root mean square
            over tokens): `corrected` |W| (a - b), `log_ratio` |W| log(a / b), `welch` |W| t of the items, `target`
            |W| a (Wanda itself, no contrast), `reference` as published. Of all but the last two a weight counts only
            where its score is positive.
        null: `paired` (the unconditional half of the same runs: no further run), `empty` (the empty prompt from the
            same seeds) or `prompts` (the reference items). Default: `prompts` where there are some, else `paired`.
        kind: of the parts, see `interp.models.parts.parts`.
        share: of each row that is taken.
        tau: first denoising steps that count; a language model has but one.
        steps, guidance: of the runs. seeds: each prompt runs from each of them.
        level: where given, only columns count that are stronger on the target at this false discovery rate.
        batch: items of one pass.

    After `fit(subject, items, reference=others)`:
        scores_: one row a unit (input column) and rule, the chosen rule first: component, part, unit, method, score
            (that of its column, without |W|), target, null, diff, se, t, p, q, n (see `Contrast.table`).
        parts_, nulls_: what was read, and the nulls that there are sums of.
        contrasts_: by null, the sums (`Contrast`). rows_: sample-forwards of the UNet, by what they were for.

    Example:
        found = WandaContrast("reference", null="empty").fit(pipe, memorized)
        with found.edit(share=0.01).applied(pipe): ...

    Raises:
        UsageError: no such rule or null, or a null that this subject has not.
    """

    def __init__(
        self,
        rule: Rule = "corrected",
        null: Null | None = None,
        kind: str = "ff_out",
        share: float = 0.01,
        tau: int = 10,
        steps: int = 25,
        guidance: float = 1.5,
        seeds: tuple[int, ...] = (0,),
        level: float | None = None,
        batch: int = ROWS,
    ):
        self.rule = rule
        self.null = null
        self.kind = kind
        self.share = share
        self.tau = tau
        self.steps = steps
        self.guidance = guidance
        self.seeds = seeds
        self.level = level
        self.batch = batch

    def _check(self, subject: CausalLM | Pipeline) -> None:
        _check_rule(self.rule)

    def _learn(self, sides: tuple[Corpus | Sequence[Any], ...], progress: Progress) -> None:
        """Sum what enters the parts, on the items and on the null."""
        subject = self.subject_
        null = null_of(subject, self.null, len(sides) > 1)
        self.rows_ = dict[str, int]()
        target, corpus = self._sums(sides[0], "target", progress)
        self.contrasts_: dict[str, Contrast] = {}
        if "unconditional" in target.halves:
            self.contrasts_["paired"] = Contrast(target, "paired", target)
        elif null == "paired":
            raise UsageError(
                "the unconditional half did not run: write both=True in Prompts, or another null"
            )
        if null == "empty":
            assert isinstance(corpus, Prompts)
            seeds = tuple(dict.fromkeys(corpus.seeds))
            # Guidance between two halves that are equal is none: the conditional one alone is the same run.
            nothing = replace(corpus, texts=("",) * len(seeds), seeds=seeds, guidance=1.0, both=False)
            empty, _ = self._sums(nothing, "null", progress)
            shared = torch.zeros(target.items, len(seeds), dtype=torch.float64)
            for row, seed in enumerate(corpus.seeds):
                shared[int(target.of[row]), seeds.index(seed)] += 1
            self.contrasts_["empty"] = Contrast(target, "empty", empty, shared)
        for reference in sides[1:]:
            other, _ = self._sums(reference, "null", progress)
            self.contrasts_["prompts"] = Contrast(target, "prompts", other)
        self._default: str = null
        self.nulls_ = tuple(self.contrasts_)
        self._asked(self.tau if subject.kind == "pipeline" else 1, None, None, None, None)
        self.scores_ = pd.concat([self.table(rule=r) for r in self._rules()], ignore_index=True)

    def _sums(
        self, data: Corpus | Sequence[Any], what: str, progress: Progress
    ) -> tuple[ColumnMoments, Corpus]:
        corpus, of = seeded(
            self.subject_,
            data,
            self.seeds,
            steps=self.steps,
            stop=self.tau,
            guidance=self.guidance,
            both=True,
        )
        moments = ColumnMoments(int(of[-1]) + 1, of)
        spent = getattr(self.subject_, "spent", None)
        before = spent.rows if spent is not None else 0
        stream(self.subject_, corpus, self.parts_, moments, batch=self.batch, progress=progress)
        rows = spent.rows - before if spent is not None else len(corpus)
        self.rows_[what] = self.rows_.get(what, 0) + rows
        return moments, corpus

    # -- scores ------------------------------------------------------------------------------------------------------

    def _rules(self) -> tuple[Rule, ...]:
        """The chosen rule first; those that need more than one item only where there are."""
        few = self.contrasts_[self._default].n < 2
        every = [self.rule, *(r for r in RULES if r != self.rule)]
        return tuple(r for r in every if not (few and r == "welch"))

    def _asked(
        self,
        tau: int | None,
        rule: Rule | None,
        null: Null | None,
        items: Sequence[int] | None,
        level: float | None,
    ) -> _Chosen:
        """Arguments of a call, filled up with those of the locator."""
        if not hasattr(self, "contrasts_"):
            raise UsageError("WandaContrast is not fitted yet; call fit(subject, items) first")
        self._unchanged()
        which = null or self._default
        if which not in self.contrasts_:
            raise UsageError(f"no sums of the null '{which}'; there are {', '.join(self.contrasts_)}")
        contrast = self.contrasts_[which]
        steps = contrast.target.steps
        if tau is None:
            tau = min(self.tau, len(steps))
        if not 1 <= tau <= len(steps):
            raise UsageError(f"tau={tau}: sums are of {len(steps)} steps; fit with tau={tau}, or write less")
        if items is not None:
            chosen = torch.zeros(contrast.target.items, dtype=torch.bool)
            if not len(items) or not all(0 <= i < contrast.target.items for i in items):
                raise UsageError(f"items={list(items)}: write some of 0 to {contrast.target.items - 1}")
            chosen[list(items)] = True
            contrast = replace(contrast, chosen=chosen)
        rule = rule or self.rule
        _check_rule(rule)
        if rule == "welch" and contrast.n < 2:
            raise UsageError("rule 'welch' needs at least two items; one has no scatter")
        return _Chosen(contrast, rule, steps[:tau], self.level if level is None else level)

    def table(
        self,
        *,
        tau: int | None = None,
        rule: Rule | None = None,
        null: Null | None = None,
        items: Sequence[int] | None = None,
    ) -> pd.DataFrame:
        """Rows of `scores_` for another number of steps, rule or null, or for some of the items alone."""
        asked = self._asked(tau, rule, null, items, None)
        return self._table(asked)

    def _table(self, asked: _Chosen) -> pd.DataFrame:
        norm: Norm = "unit" if asked.rule == "reference" else "raw"
        out = asked.contrast.table(self.parts_, asked.steps, norm)
        out["score"] = np.concatenate([self._column(part, asked).cpu().numpy() for part in self.parts_])
        out["method"] = asked.rule
        out["component"] = out["part"] + "." + out["unit"].astype(str)
        names = [
            "component",
            "part",
            "unit",
            "method",
            "score",
            "target",
            "null",
            "diff",
            "se",
            "t",
            "p",
            "q",
        ]
        return out[[*names, "n"]]

    def _column(self, part: Part, asked: _Chosen) -> Float[torch.Tensor, " d"]:
        """Score of each column; 0 where the contrast does not count."""
        if asked.rule == "reference":
            each = [asked.contrast.pooled(part, step) for step in asked.steps]
            return torch.stack([a * (a > b) for a, b in each]).mean(0)
        a, b = asked.contrast.each(part, asked.steps, "raw")
        if asked.rule == "target":
            return a.mean(0)
        if asked.rule == "corrected":
            return (a.mean(0) - b.mean(0)).clamp(min=0)
        if asked.rule == "log_ratio":
            least = _TINY * a.max().clamp(min=torch.finfo(a.dtype).tiny)
            return (a.clamp(min=least).log().mean(0) - b.clamp(min=least).log().mean(0)).clamp(min=0)
        t = asked.contrast.table([part], asked.steps, "raw")["t"].to_numpy()
        return torch.from_numpy(np.nan_to_num(t, nan=0.0)).to(a.device).clamp(min=0)

    def weights(
        self,
        *,
        tau: int | None = None,
        rule: Rule | None = None,
        null: Null | None = None,
        items: Sequence[int] | None = None,
    ) -> dict[Part, Float[torch.Tensor, "out in"]]:
        """Score of each weight: |W| times that of its column."""
        asked = self._asked(tau, rule, null, items, None)
        return {part: self._size(part) * self._column(part, asked) for part in self.parts_}

    def _size(self, part: Part) -> Float[torch.Tensor, "out in"]:
        return weight_of(self.subject_, part).abs().double()

    # -- masks -------------------------------------------------------------------------------------------------------

    def mask(
        self,
        share: float | None = None,
        *,
        tau: int | None = None,
        rule: Rule | None = None,
        null: Null | None = None,
        items: Sequence[int] | None = None,
        level: float | None = None,
    ) -> dict[Part, Bool[torch.Tensor, "out in"]]:
        """The chosen weights: of each row the best `share`, as far as they count at all.

        With the rule `reference` that share is taken at each of the first `tau` steps, and the union is larger.

        Args:
            items: numbers of the target items that count; default all.

        Raises:
            UsageError: a share that makes no weight, more steps than were summed, a null that was not run, an item
                that does not exist, or a subject that was changed since.
        """
        share = self.share if share is None else share
        asked = self._asked(tau, rule, null, items, level)
        sure = self._sure(asked)
        out = {}
        for part in self.parts_:
            size = self._size(part)
            count = count_of(share, size.shape[1])
            if asked.rule == "reference":
                found = torch.zeros_like(size, dtype=torch.bool)
                for step in asked.steps:
                    a, b = asked.contrast.pooled(part, step)
                    target = size * a
                    found |= top_per_row(target, count) & (target > size * b)
            else:
                score = size * self._column(part, asked)
                found = top_per_row(score, count) & (score > 0)
            out[part] = found & sure[repr(part)].to(found.device) if sure else found
        return out

    def _sure(self, asked: _Chosen) -> dict[str, torch.Tensor]:
        """Columns that are stronger on the target at the level; nothing where no level is set."""
        if asked.level is None:
            return {}
        table = self._table(asked)
        return {
            str(part): torch.from_numpy((own["q"] <= asked.level).to_numpy(bool, copy=True))
            for part, own in table.groupby("part", sort=False)
        }

    def edit(self, share: float | None = None, **options: Any) -> Stack:
        """The chosen weights set to zero; options as of `mask`."""
        from interp.intervene.weights import Prune, Stack

        masks = self.mask(share, **options)
        return Stack(tuple(Prune(part, mask, self.fingerprint_) for part, mask in masks.items()))

    def units(self, k: int, method: str | None = None) -> tuple[tuple[Part, int], ...]:
        """The k units whose columns score highest, over all parts.

        Raises:
            UsageError: there are fewer, or no such rule.
        """
        return top_units(self.ranking(method), self.parts_, k)


def _check_rule(rule: str) -> None:
    if rule not in RULES:
        raise UsageError(f"rule={rule!r}: write one of {', '.join(RULES)}")
