"""NeMo: the value units of cross-attention that have to be blocked for a prompt to lose its picture.

What the values of cross-attention read is the prompt's embedding, so how active their units are needs no UNet: the text
encoder and one product of matrices. A prompt counts as memorized where different seeds are pushed the same way at the
first step. Its units are those far off their mean over ordinary prompts, more and more of them until what the prompt
pushes to is gone; then each layer and each unit is unblocked again wherever that does not bring it back. Source:
Hintersdorf et al. 2024 (NeMo); the rule is theirs, the search runs all prompts and many decisions in one batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from interp.errors import UsageError
from interp.locate.memorization.base import ItemLocator
from interp.locate.memorization.blocking import WIDEST, Ask, Blocker, Found, Search, drive, refine, widen
from interp.locate.memorization.values import RUNGS, activity, initial_sets
from interp.measure.memorization.detection import Pushed
from interp.measure.memorization.similarity import Similarity, pairwise, pearson
from interp.measure.stats import proportion_ci
from interp.models.cache import Progress
from interp.models.parts import Part, parts, weight_of
from interp.models.subject import CausalLM

if TYPE_CHECKING:
    from interp.intervene.weights.base import Stack
    from interp.models.pipeline import Pipeline

FIRST_HALF = ("down_blocks", "mid_block")
"""Blocks of the UNet whose values NeMo looks at."""


class NeMo(ItemLocator[Sequence[Any]]):
    """Value units of cross-attention that hold single prompts' pictures.

    Args:
        similarity: of where two runs are pushed, see `interp.measure.memorization.similarity`.
        threshold: above it two runs are pushed the same way; default: mean and one standard deviation over pairs
            of seeds of the reference prompts, as in NeMo. By that rule most ordinary prompts pass as memorized, for of
            many pairs of seeds the highest is compared with it.
        level: in place of it, the share of the reference prompts that may pass: the threshold is that quantile of their
            highest similarity.
        blocks: of the UNet, whose cross-attention is searched; None for all.
        seeds: that are compared.
        steps: of the schedule. at: number of the step at which they are compared. The paper's text takes the
            first (0), its code the second (1).
        of: what is compared: `noise`, the published noise differences, or `data`, the predicted pictures, which tell
            more at later steps.
        rungs: of the initial set.
        ahead: decisions of one prompt that are asked for at once, at most; 1 is the sequential search, with the same
            result.
        batch: rows of one pass of the UNet.

    After `fit(pipeline, prompts, reference=ordinary_prompts)`:
        threshold_: the similarity in use.
        stats_: of each unit, mean and standard deviation of its activity over the reference: part, unit, mean, sd.
        prompts_: one row a prompt: item, prompt, memorized (some pair of seeds is above the threshold; the others are
            skipped), seeds (that are), rung, theta, k, initial (units blocked at first), initial_similarity, units
            (those that stay), similarity, reached (the initial set brought the similarity down to the threshold; else
            what it reached is the threshold of the refinement).
        units_: one row a prompt and unit that stays blocked: item, component, part, unit, z, activity.
        scores_: method `blocked` (share of the memorized prompts for which the unit stays blocked) and `z` (mean |z|
            over them): component, part, unit, method, score, se, n.

    There have to be two ordinary prompts at least; many are better, for units are judged by their scatter.

    Example:
        found = NeMo().fit(pipe, memorized, reference=ordinary)
        with found.edit().applied(pipe): ...                    # the units of all prompts
        with found.edit(items=[0]).applied(pipe): ...           # of one
        found.coverage(held_out, ks=(1, 4, 16))                 # do they stand for prompts they were not found on?

    Raises:
        UsageError: no prompts, fewer than two reference prompts, fewer than two seeds or no rungs.
    """

    subject_: Pipeline

    def __init__(
        self,
        similarity: Similarity = pearson,
        threshold: float | None = None,
        level: float | None = None,
        blocks: tuple[str, ...] | None = FIRST_HALF,
        seeds: tuple[int, ...] = tuple(range(10)),
        steps: int = 50,
        at: int = 0,
        of: Pushed = "noise",
        rungs: tuple[tuple[float, int], ...] = RUNGS,
        ahead: int = WIDEST,
        batch: int = 64,
    ):
        self.similarity = similarity
        self.threshold = threshold
        self.level = level
        self.blocks = blocks
        self.seeds = seeds
        self.steps = steps
        self.at = at
        self.of = of
        self.rungs = rungs
        self.ahead = ahead
        self.batch = batch

    def _check(self, subject: CausalLM | Pipeline) -> None:
        if isinstance(subject, CausalLM):
            raise UsageError(
                f"NeMo looks at cross-attention with a prompt, and {subject.name} is a language model"
            )
        if self.level is not None and (self.threshold is not None or not 0 < self.level < 1):
            raise UsageError(f"level={self.level}: write a share between 0 and 1, and no threshold beside it")
        if len(self.seeds) < 2 or not self.rungs or self.at < 0 or self.at >= self.steps:
            raise UsageError(
                "NeMo compares two or more seeds at one of the steps, and needs at least one rung"
            )

    def _sides(
        self, data: Sequence[Any] | None, reference: Sequence[Any] | None
    ) -> tuple[list[str], list[str]]:
        prompts, ordinary = _prompts(data), _prompts(reference)
        if not prompts or len(ordinary) < 2:
            raise UsageError(
                "NeMo learns from prompts and from two or more ordinary ones: fit(pipe, items, reference=ordinary)"
            )
        return prompts, ordinary

    def _parts(self, subject: CausalLM | Pipeline) -> tuple[Part, ...]:
        found = parts(subject, "cross_v")
        chosen = tuple(p for p in found if self.blocks is None or any(b in p.path for b in self.blocks))
        if not chosen:
            raise UsageError(
                f"no cross-attention in {', '.join(self.blocks or ())}; blocks=None takes all there is"
            )
        return chosen

    def _learn(self, sides: tuple[Sequence[Any], ...], progress: Progress) -> None:
        """Find the units of each prompt."""
        prompts, ordinary = sides
        progress(0, 3, "reference")
        known = activity(self.subject_, self.parts_, ordinary)
        self._mean, self._sd = known.mean(0), known.std(0)
        self.threshold_ = self._same(ordinary) if self.threshold is None else self.threshold
        progress(1, 3, "search")
        self._search(prompts)
        progress(3, 3, "done")
        self.stats_ = self._places().assign(mean=self._mean.numpy(), sd=self._sd.numpy())
        self.scores_ = self._scores()

    def _blocker(self, prompts: Sequence[str]) -> Blocker:
        return Blocker(
            self.subject_,
            self.parts_,
            self.subject_.embed(list(prompts)),
            steps=self.steps,
            at=self.at,
            of=self.of,
            similarity=self.similarity,
            batch=self.batch,
        )

    def _whole(self, blocker: Blocker, n: int) -> Float[torch.Tensor, "n s c h w"]:
        runs = [(item, seed) for item in range(n) for seed in self.seeds]
        return blocker.whole(runs).unflatten(0, (n, len(self.seeds)))

    def _same(self, ordinary: Sequence[str]) -> float:
        """The threshold that ordinary prompts set."""
        pairs = pairwise(self._whole(self._blocker(ordinary), len(ordinary)), self.similarity)
        if self.level is not None:
            most = pairs.nan_to_num(-torch.inf).flatten(1).amax(1)
            return float(most.double().quantile(1 - self.level))
        told = pairs[:, *torch.triu_indices(len(self.seeds), len(self.seeds), 1)]
        return float(told.mean() + told.std())

    def _gate(self, blocker: Blocker, n: int) -> list[list[int]]:
        """Of each prompt, the seeds that are pushed the same way as some other."""
        most = pairwise(self._whole(blocker, n), self.similarity).nan_to_num(-torch.inf).amax(2)
        above = (most > self.threshold_).tolist()
        return [[s for s, yes in zip(self.seeds, row, strict=True) if yes] for row in above]

    def _search(self, prompts: Sequence[str]) -> None:
        blocker = self._blocker(prompts)
        gated = self._gate(blocker, len(prompts))
        own = activity(self.subject_, self.parts_, prompts)
        self._z = ((own - self._mean).abs() / self._sd).nan_to_num(0.0, posinf=torch.inf)
        kept = [i for i, seeds in enumerate(gated) if seeds]
        rungs = [initial_sets(self._z[i], own[i], blocker.widths, self.rungs) for i in kept]
        started = drive(
            blocker,
            [
                widen(i, gated[i], [units for units, _ in rung], self.threshold_, ahead=self.ahead)
                for i, rung in zip(kept, rungs, strict=True)
            ],
        )
        searches, marks = [], {}
        for i, rung, start in zip(kept, rungs, started, strict=True):
            number = next(r for r, (units, _) in enumerate(rung) if units is start.blocked)
            reached = start.similarity <= self.threshold_
            marks[i] = number, start, reached
            limit = self.threshold_ if reached else start.similarity
            searches.append(self._refine(i, gated[i], start, rung[number][1], limit))
        refined = dict(zip(kept, drive(blocker, searches), strict=True))
        self._blocked = {i: found.blocked for i, found in refined.items()}
        self.prompts_ = pd.DataFrame(
            [self._row(i, prompt, gated[i], marks.get(i), refined.get(i)) for i, prompt in enumerate(prompts)]
        )
        places = self._places()
        found = [
            places[units.numpy()].assign(item=i, z=self._z[i][units].numpy(), activity=own[i][units].numpy())
            for i, units in self._blocked.items()
        ]
        names = ["item", "component", "part", "unit", "z", "activity"]
        self.units_ = pd.concat(found, ignore_index=True)[names] if found else pd.DataFrame(columns=names)

    def _refine(
        self, item: int, seeds: Sequence[int], start: Found, layers: list[list[int]], limit: float
    ) -> Search:
        """Layers first and then units, both from the last layer on."""
        deep = [layer for layer in reversed(layers) if layer]
        rough = yield from refine(item, seeds, start, deep, limit, ahead=self.ahead)
        left = [[u] for layer in deep for u in layer if rough.blocked[u]]
        return (yield from refine(item, seeds, rough, left, limit, ahead=self.ahead))

    def _row(
        self,
        item: int,
        prompt: str,
        seeds: list[int],
        mark: tuple[int, Found, bool] | None,
        found: Found | None,
    ) -> dict[str, Any]:
        row: dict[str, Any] = {"item": item, "prompt": prompt, "memorized": bool(seeds), "seeds": len(seeds)}
        if mark is None or found is None:
            nothing = {"rung": -1, "theta": np.nan, "k": 0, "initial": 0, "initial_similarity": np.nan}
            return row | nothing | {"units": 0, "similarity": np.nan, "reached": False}
        number, start, reached = mark
        theta, k = self.rungs[number]
        row |= {"rung": number, "theta": theta, "k": k, "initial": int(start.blocked.sum())}
        row |= {"initial_similarity": start.similarity, "units": int(found.blocked.sum())}
        return row | {"similarity": found.similarity, "reached": reached}

    def _places(self) -> pd.DataFrame:
        """One row a unit: component, part, unit."""
        rows = [(repr(p), u) for p in self.parts_ for u in range(weight_of(self.subject_, p).shape[0])]
        out = pd.DataFrame(rows, columns=["part", "unit"])
        return out.assign(component=out["part"] + "." + out["unit"].astype(str))[
            ["component", "part", "unit"]
        ]

    def _scores(self) -> pd.DataFrame:
        places, kept = self._places(), sorted(self._blocked)
        n = len(kept)
        sets = (
            torch.stack([self._blocked[i] for i in kept]).double()
            if n
            else torch.zeros(0, len(places)).double()
        )
        frames = []
        for method, values in (("blocked", sets), ("z", self._z[kept].double())):
            score = values.mean(0) if n else torch.zeros(len(places))
            se = values.std(0) / n**0.5 if n > 1 else torch.full((len(places),), torch.nan)
            frames.append(places.assign(method=method, score=score.numpy(), se=se.numpy(), n=n))
        return pd.concat(frames, ignore_index=True)

    # -- sets and edits ----------------------------------------------------------------------------------------------

    def blocked(
        self,
        *,
        items: Sequence[int] | None = None,
        least: float = 0.0,
        k: int | None = None,
        share: float | None = None,
    ) -> dict[Part, tuple[int, ...]]:
        """Units of a set of prompts.

        Args:
            items: numbers of the prompts; default all memorized ones. Of several, every unit of any of them.
            least: leave out units that stay blocked for a smaller share of these prompts.
            k, share: take so many units, or this share of all, by how many of these prompts need them, then by z.

        Raises:
            UsageError: it is not fitted, a prompt that was skipped, or both k and share.
        """
        ranked = self._ranked(items, least)
        if k is not None and share is not None:
            raise UsageError("say how many units with k or with share, not with both")
        if share is not None:
            k = max(1, round(share * len(self._mean)))
        chosen = ranked if k is None else self._ranked(items, None)[:k]
        out: dict[Part, tuple[int, ...]] = {}
        places = self._places()
        for part in self.parts_:
            own = sorted(int(places["unit"][u]) for u in chosen if places["part"][u] == repr(part))
            if own:
                out[part] = tuple(own)
        return out

    def _ranked(self, items: Sequence[int] | None, least: float | None) -> list[int]:
        """Units by the share of the prompts that need them, then by mean z; None for `least` ranks all units."""
        if not hasattr(self, "scores_"):
            raise UsageError("NeMo is not fitted yet; call fit(pipe, prompts, reference=ordinary) first")
        kept = sorted(self._blocked) if items is None else list(items)
        if wrong := [i for i in kept if i not in self._blocked]:
            raise UsageError(f"prompt {wrong[0]} has no units: it was skipped, or there is no such prompt")
        if not kept:
            raise UsageError(
                "no prompt was found to be memorized, so there are no units; lower the threshold"
            )
        needed = torch.stack([self._blocked[i] for i in kept]).double().mean(0).numpy()
        order = np.lexsort((-self._z[kept].mean(0).numpy(), -needed))
        return [int(u) for u in order if least is None or (needed[u] > 0 and needed[u] >= least)]

    def edit(
        self,
        *,
        items: Sequence[int] | None = None,
        least: float = 0.0,
        k: int | None = None,
        share: float | None = None,
    ) -> Stack:
        """The units' rows of the value matrices set to zero; arguments as of `blocked`.

        Raises:
            UsageError: no unit is left.
        """
        from interp.intervene.weights import Prune, Stack

        chosen = self.blocked(items=items, least=least, k=k, share=share)
        if not chosen:
            raise UsageError(f"no unit is needed by {least:.0%} of the prompts: lower `least`")
        return Stack(tuple(Prune.units(self.subject_, part, units, "out") for part, units in chosen.items()))

    def coverage(
        self, prompts: Sequence[Any], ks: Sequence[int], *, items: Sequence[int] | None = None
    ) -> pd.DataFrame:
        """Whether the first k units, found on some prompts, also take the picture from others.

        Args:
            prompts: memorized prompts, best those it was not fitted on. Those that are not found to be memorized are
                left out.
            ks: sizes of the set. items: prompts of the fit whose units are ranked; default all.

        Returns:
            one row a k: k, covered (share of the prompts whose similarity is at or below the threshold with the k units
            blocked), ci_lo, ci_hi, similarity (mean over prompts of the highest), n.
        """
        texts = _prompts(prompts)
        ranked = self._ranked(items, None)
        blocker = self._blocker(texts)
        gated = self._gate(blocker, len(texts))
        runs = [(i, seed) for i, seeds in enumerate(gated) for seed in seeds]
        if not runs:
            raise UsageError("none of these prompts is found to be memorized: nothing can be covered")
        rows, of = [], np.array([i for i, _ in runs])
        for k in ks:
            units = torch.zeros(blocker.n, dtype=torch.bool)
            units[ranked[:k]] = True
            found = blocker.similar([Ask(i, seed, units) for i, seed in runs]).numpy()
            most = np.array([found[of == i].max() for i in np.unique(of)])
            covered = (most <= self.threshold_).astype(float)
            low, high = proportion_ci(covered, np.arange(len(covered)))
            row = {"k": int(k), "covered": covered.mean(), "ci_lo": low, "ci_hi": high}
            rows.append(row | {"similarity": most.mean(), "n": len(most)})
        return pd.DataFrame(rows)


def _prompts(items: Sequence[Any] | None) -> list[str]:
    """The prompts of prompts or items."""
    out = [item if isinstance(item, str) else getattr(item, "prompt", None) for item in items or ()]
    if any(not isinstance(p, str) for p in out):
        raise UsageError("NeMo takes prompts, or items that have a `prompt`")
    return [str(p) for p in out]
