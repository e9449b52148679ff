"""Two sides of a contrast: how strong each column is on the target items, and on what they are compared with.

The null is one of three. `empty`: the empty prompt from the same seeds, which is run once a seed, since all prompts
share it. `paired`: the unconditional half of the same runs, so the same latents, and no run at all. `prompts`: other
items, compared as two samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from scipy import stats

from interp.errors import UsageError
from interp.measure.stats import fdr
from interp.trace.moments import HALVES, ColumnMoments, Half, Norm
from interp.trace.passes import Corpus, Prompts, corpus_of

if TYPE_CHECKING:
    from interp.models.parts import Part
    from interp.models.pipeline import Pipeline
    from interp.models.subject import CausalLM

Null = Literal["empty", "paired", "prompts"]
NULLS: tuple[Null, ...] = ("empty", "paired", "prompts")


@dataclass(frozen=True, eq=False)
class Contrast:
    """Sums of the target items and of a null.

    Attributes:
        target: sums of the target items.
        null: which null it is. reference: its sums; the target's own where it is paired.
        shared: for the empty prompt, how many runs of each target item have each of its seeds; items x seeds.
        chosen: target items that count; None for all.
    """

    target: ColumnMoments
    null: Null
    reference: ColumnMoments
    shared: Float[torch.Tensor, "items seeds"] | None = None
    chosen: Bool[torch.Tensor, " items"] | None = None

    @property
    def n(self) -> int:
        """Target items that count."""
        return self.target.items if self.chosen is None else int(self.chosen.sum())

    def pooled(
        self, part: Part, step: int, norm: Norm = "unit"
    ) -> tuple[Float[torch.Tensor, " d"], Float[torch.Tensor, " d"]]:
        """Root mean square of each column over all tokens of the target, and of the null, as the reference pools them.

        Both halves of guidance count on both sides, unless the null is the unconditional one. The reference compares
        sums: that is the same where both sides have as many tokens, and means nothing where they have not.
        """
        halves: tuple[Half, ...] = ("conditional",)
        if self.null != "paired":
            halves = tuple(h for h in HALVES if h in self.target.halves)
        at = self._chosen(self.target.items)
        target = _rms([self._pair(self.target, part, step, h, norm) for h in halves], at)
        if self.null == "paired":
            return target, _rms([self._pair(self.target, part, step, "unconditional", norm)], at)
        if self.null == "empty":
            # Both halves of the empty prompt's runs are one and the same.
            assert self.shared is not None
            weight = self.shared.to(at.device)[at].sum(0)
            sums, tokens = self._pair(self.reference, part, step, "conditional", norm)
            weight = weight.to(sums)
            return target, ((weight @ sums) / (weight @ tokens).clamp(min=1)).sqrt()
        halves = tuple(h for h in halves if h in self.reference.halves)
        every = torch.ones(self.reference.items, dtype=torch.bool)
        return target, _rms([self._pair(self.reference, part, step, h, norm) for h in halves], every)

    def each(
        self, part: Part, steps: Sequence[int], norm: Norm = "raw"
    ) -> tuple[Float[torch.Tensor, "n d"], Float[torch.Tensor, "m d"]]:
        """Root mean square of each column in each item: of the target, and of the null; as many where they are pairs.

        Of the conditional half; steps weigh the same.
        """
        at = self._chosen(self.target.items)
        target = self.target.rms(part, steps, "conditional", norm)[at.to(self._device(part))]
        if self.null == "paired":
            return target, self.target.rms(part, steps, "unconditional", norm)[at.to(target.device)]
        if self.null == "prompts":
            return target, self.reference.rms(part, steps, "conditional", norm)
        assert self.shared is not None
        weight = self.shared[at.to(self.shared.device)].to(target)
        means = []
        for step in steps:
            sums, tokens = self._pair(self.reference, part, step, "conditional", norm)
            means.append((weight @ sums) / (weight @ tokens).clamp(min=1)[:, None])
        return target, torch.stack(means).mean(0).sqrt()

    def table(self, parts: Sequence[Part], steps: Sequence[int], norm: Norm = "raw") -> pd.DataFrame:
        """One row a column: part, unit, target, null, diff, se, t, p, q, n.

        The test is of items: of their differences where they are pairs, of two samples of unequal variance where they
        are not (Welch 1947); one-sided, for a column that is stronger on the target. q is p adjusted for the false
        discovery rate over all columns of all parts. With a single item there is no error and no test. Against the
        empty prompt all items of a seed share one run, and the test is given that run.
        """
        frames = []
        for part in parts:
            a, b = (side.cpu().numpy() for side in self.each(part, steps, norm))
            se, t, p = _test(a, b, self.null != "prompts")
            frames.append(
                pd.DataFrame(
                    {
                        "part": repr(part),
                        "unit": np.arange(a.shape[1]),
                        "target": a.mean(0),
                        "null": b.mean(0),
                        "diff": a.mean(0) - b.mean(0),
                        "se": se,
                        "t": t,
                        "p": p,
                        "n": len(a),
                    }
                )
            )
        return fdr(pd.concat(frames, ignore_index=True))

    def _chosen(self, items: int) -> torch.Tensor:
        return torch.ones(items, dtype=torch.bool) if self.chosen is None else self.chosen

    def _device(self, part: Part) -> torch.device:
        return self.target.tokens(part, self.target.steps[0]).device

    @staticmethod
    def _pair(
        moments: ColumnMoments, part: Part, step: int, half: Half, norm: Norm
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return moments.sums(part, step, half, norm), moments.tokens(part, step, half)


def _rms(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], items: torch.Tensor) -> torch.Tensor:
    """Root of the sums of all items over their tokens."""
    at = items.to(pairs[0][0].device)
    squares = torch.stack([sums[at].sum(0) for sums, _ in pairs]).sum(0)
    tokens = torch.stack([tokens[at].sum() for _, tokens in pairs]).sum()
    return (squares / tokens.clamp(min=1)).sqrt()


def _test(a: np.ndarray, b: np.ndarray, paired: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Standard error, t and one-sided p of each column's difference; NaN where there is one item, or none varies."""
    d = a.shape[1]
    if len(a) < 2 or len(b) < 2:
        return np.full(d, np.nan), np.full(d, np.nan), np.full(d, np.nan)
    if paired:
        diff = a - b
        se = diff.std(0, ddof=1) / np.sqrt(len(diff))
        mean, df = diff.mean(0), np.full(d, float(len(diff) - 1))
    else:
        va, vb = a.var(0, ddof=1) / len(a), b.var(0, ddof=1) / len(b)
        se, mean = np.sqrt(va + vb), a.mean(0) - b.mean(0)
        with np.errstate(divide="ignore", invalid="ignore"):
            df = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(se > 0, mean / se, np.nan)
    return se, t, stats.t.sf(t, df)


def null_of(
    subject: CausalLM | Pipeline, asked: Null | None, reference: bool, known: Sequence[Null] = NULLS
) -> Null:
    """The null that is asked for; by default `prompts` where there are reference items, else `paired`.

    Raises:
        UsageError: there is no such null, or not of this subject or without reference items.
    """
    if asked is not None and asked not in known:
        raise UsageError(f"null={asked!r}: write one of {', '.join(known)}")
    null = asked or ("paired" if not reference and subject.kind == "pipeline" else "prompts")
    if null == "prompts" and not reference:
        raise UsageError("null='prompts' needs other items to compare with: fit(..., reference=other_items)")
    if null != "prompts" and subject.kind != "pipeline":
        raise UsageError(f"null={null!r} is of pipelines; a language model takes reference=other_items")
    return null


def seeded(
    subject: CausalLM | Pipeline, data: Corpus | Sequence[Any], seeds: Sequence[int], **options: Any
) -> tuple[Corpus, Int[torch.Tensor, " runs"]]:
    """A corpus in which each prompt runs from each of the seeds, and the item that each run is of.

    A corpus is taken as it is, each run an item.

    Args:
        options: of a pipeline's runs, see `Prompts`.
    """
    corpus = corpus_of(subject, data, **(options if subject.kind == "pipeline" else {}))
    items = torch.arange(len(corpus))
    if isinstance(data, Prompts) or not isinstance(corpus, Prompts):
        return corpus, items
    texts = tuple(text for text in corpus.texts for _ in seeds)
    runs = replace(corpus, texts=texts, seeds=tuple(seeds) * len(corpus))
    return runs, items.repeat_interleave(len(seeds))
