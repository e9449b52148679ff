"""Which heads talk to which, and through what: channels as a locator.

The weights alone say it. Every OV component of a head is held against every later reader, outliers are taken as
channels, and a head scores what the best of its components scores. A task is only asked whether the channels are used:
how the readers' attention changes when one is removed or doubled (`validation`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Self

import numpy as np
import pandas as pd

from interp.errors import UsageError
from interp.locate.base import Locator
from interp.locate.channels.channels import Channel, channels
from interp.locate.channels.components import ComponentScores, component_scores
from interp.locate.channels.factors import MODES, Mode
from interp.locate.channels.parts import Score
from interp.locate.channels.validation import validate
from interp.locate.channels.weights import Weights
from interp.models.sites import Component
from interp.models.subject import CausalLM
from interp.tasks.base import Task

LEAST = 1e-300
"""P-values below this are told as this."""


class Channels(Locator):
    """Finds low-rank channels between heads in the weights of a model.

    Args:
        modes: through the reader's query, key or value.
        score: read components of QK (`full`) or of its side; default `side` where the model rotates queries and keys.
        level: components up to this q-value are outliers.
        by: q-values of random directions (`q`), or of anti-causal pairs of the same weights (`q_null`).
        rank: dimensions of a channel, at most 3.
        hubs: take out what a component scores with all readers, and a reader with all components.
        kept: components of each mode that are kept as candidates.
        fold: fold norms into readers; False takes the weights as they are.
        validate: channels through queries and keys that a task is asked about, the first ones.
        factors: what a task is asked: 0 removes a channel, 2 adds what is written along it once more.
        draws: control cuts of each.
        seed: of the control cuts.

    Attributes:
        scores_: component (a head), method (`writes`, `reads`), layer, head, kv_head, score, se (NaN: nothing is
            sampled), n (tests that its mode and kind had), and of the best component: mode, partner (who reads, or
            writes, it), number (of the component), value, p, q, p_null, q_null, apart, q_apart. The score is -log10 of
            its p-value, of `p_apart` with `hubs`. A KV group reads for all its query heads.
        channels_: the channels, best first.
        pairs_, readers_, kernel_: tables of `ComponentScores`.
        components_: the whole `ComponentScores`.
        weights_: access to the weights that they were made of, for `Channel.cut`.
        validation_: with a task, the frame of `validation.validate`.

    Example:
        found = Channels().fit(model, interp.task("ioi", n=64))
        found.channels_[0], found.top(5), found.validation_
    """

    mechanism = "channels"

    def __init__(
        self,
        modes: Sequence[Mode] = MODES,
        *,
        score: Score | None = None,
        level: float = 0.05,
        by: Literal["q", "q_null"] = "q",
        rank: int = 3,
        hubs: bool = True,
        kept: int = 2000,
        fold: bool = True,
        validate: int = 10,
        factors: Sequence[float] = (0.0, 2.0),
        draws: int = 10,
        seed: int = 0,
    ):
        self.modes = modes
        self.score = score
        self.level = level
        self.by = by
        self.rank = rank
        self.hubs = hubs
        self.kept = kept
        self.fold = fold
        self.validate = validate
        self.factors = factors
        self.draws = draws
        self.seed = seed

    def fit(
        self,
        subject: CausalLM,
        data: Task | None = None,
        *,
        reference: Any = None,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> Self:
        """Find channels in the weights; with a task, ask its prompts whether they are used.

        Raises:
            UsageError: unknown modes, `by` or `rank`, fewer than two layers.
        """
        if not self.modes or set(self.modes) - set(MODES) or len(set(self.modes)) < len(self.modes):
            raise UsageError(f"modes={self.modes!r}: write some of {', '.join(MODES)}, each once")
        if self.by not in ("q", "q_null"):
            raise UsageError(f"by={self.by!r}: write q or q_null")
        self.__dict__.pop("validation_", None)  # of an earlier fit
        self.weights_ = Weights(subject, self.fold)
        found = component_scores(
            subject, self.modes, top=self.kept, score=self.score, weights=self.weights_, progress=progress
        )
        self.components_: ComponentScores = found
        self.pairs_, self.readers_, self.kernel_ = found.pairs, found.readers, found.kernel
        self.channels_: list[Channel] = channels(
            self.weights_, found, level=self.level, by=self.by, rank=self.rank, hubs=self.hubs
        )
        self.scores_ = pd.concat(
            [self._heads(subject, end) for end in ("writer", "reader")], ignore_index=True
        )
        asked = [c for c in self.channels_ if c.mode != "V"][: self.validate]
        if data is not None and asked:
            self.validation_ = validate(
                self.weights_,
                asked,
                data.examples(subject),
                factors=self.factors,
                draws=self.draws,
                seed=self.seed,
                progress=progress,
            )
        return self

    def select(self, threshold: float | None = None, method: str | None = None) -> tuple[Component, ...]:
        """The heads that score at least `threshold`, best first; default the writers of the channels."""
        if threshold is not None:
            return super().select(threshold, method)
        self.ranking(method)
        return tuple(dict.fromkeys(head for c in self.channels_ for head, _ in c.components))

    def _heads(self, subject: CausalLM, end: Literal["writer", "reader"]) -> pd.DataFrame:
        """The best row of each head as a writer, or as a reader."""
        other = "reader" if end == "writer" else "writer"
        p = "p_apart" if self.hubs else "p"
        best = self.readers_.sort_values([p, "value"], ascending=[True, False]).drop_duplicates(end)
        rows = {row[end]: row for _, row in best.iterrows()}
        out = []
        for head in subject.heads():
            names = (repr(head), f"L{head.layer}KV{subject.kv_head(head.head)}")
            own = [rows[name] for name in names if name in rows]
            if end == "writer":
                own = own[:1]
            if not own:
                continue  # of the last layer nobody reads, in the first nothing is read
            row = min(own, key=lambda r: r[p])
            out.append(
                {
                    "component": repr(head),
                    "method": "writes" if end == "writer" else "reads",
                    "layer": head.layer,
                    "head": head.head,
                    "kv_head": subject.kv_head(head.head),
                    "score": -np.log10(max(row[p], LEAST)),
                    "se": np.nan,
                    "n": self.components_.tests["readers"],
                    "mode": row["mode"],
                    "partner": row[other],
                    "number": row["component"],
                    **{c: row[c] for c in ("value", "p", "q", "p_null", "q_null", "apart", "q_apart")},
                }
            )
        return pd.DataFrame(out)
