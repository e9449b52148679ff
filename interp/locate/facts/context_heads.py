"""Locator of the heads that decide between the context and the memory where these contradict each other.

The balance is the logit of the context's answer less that of the memory's, at the last token of a prompt whose context
states a false object of a known fact. A head counts by what the balance loses without it: it carries the context's
answer where the balance falls, the memory's where it rises. Beside the cut of the whole head stand the cut of single
edges (what it reads of the context's answer, and of the subject that is asked about) and its direct share of the
balance (what it writes itself; Ortu et al. 2024, arXiv 2402.11655): one head may carry both sides, and not all that it
does goes through what it reads of them. All is read at the last token; heads that prepare what
others read there are not found.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from interp.errors import NoAcceptedExample, UsageError
from interp.intervene.ablate import Ablate
from interp.intervene.reference import Reference
from interp.locate.base import Locator
from interp.locate.readout import Readout
from interp.measure.conflict import TOKENS, parted, taken
from interp.measure.stats import cluster_se, fdr, sign_flip
from interp.models.batch import plan, role_tokens
from interp.models.engines.base import Record
from interp.models.sites import Head, Site
from interp.models.subject import CausalLM
from interp.tasks.base import Example, Task
from interp.trace.each import Progress

CONTEXT, MEMORY, READ, RECALL, WRITE = "context", "memory", "read", "recall", "write"
_SCORES = ((CONTEXT, "cut", 1), (MEMORY, "cut", -1), (READ, READ, 1), (RECALL, RECALL, 1), (WRITE, WRITE, 1))
"""Methods, the measure that each is made of, and its sign."""


class ContextHeads(Locator):
    """Heads that carry the context's answer, and heads that carry the memory's.

    Args:
        mode: what stands in for a head that is cut: `zero`, or its `mean` at the last token of the examples.
        keys: role of the tokens that hold the context's answer.
        about: role of those that name the subject in the question; where the statements name it, it can still be read.
        level: share of false discoveries among the heads that are said to carry something.
        n: use at most so many examples. seed: of the tests' random signs.

    After `fit(subject, examples)`, whose answers are the memory's and whose foils the context's (task `conflict`):
        heads_: one row a head: component, layer, head, kv_head; in logits, cut (what the balance loses when the head is
            cut), read (when only its edges to the context's answer are), recall (what the balance gains when only those
            to the subject are) and write (its own share of the balance); of each of the four also its standard error
            (`_se`), p-value (`_p`: signs flipped by cluster) and that adjusted over all heads (`_q`); context_lost and
            memory_lost (nats that each answer's log-probability loses by the cut); carries (`context`, `memory` or
            ``, by the cut at `level`); n.
        scores_: methods `context` (the cut), `memory` (the cut with its sign turned), `read`, `recall` and `write`:
            component, method, layer, head, kv_head, score, se, p, q, n.
        per_example_: cut, read, recall and write of each: examples x layers x heads. clusters_: of the examples.
        balance_: of each example, intact.

    Example:
        found = ContextHeads().fit(model, interp.task("conflict", n=64))
        found.top(4), found.top(4, "memory"), found.carriers("context")
    """

    mechanism = "context heads"

    def __init__(
        self,
        mode: Literal["zero", "mean"] = "zero",
        keys: str = "counter_value",
        about: str = "subject",
        level: float = 0.05,
        n: int | None = None,
        seed: int = 0,
    ):
        self.mode = mode
        self.keys = keys
        self.about = about
        self.level = level
        self.n = n
        self.seed = seed

    def fit(
        self,
        subject: CausalLM,
        data: Task | Sequence[Example] | None = None,
        *,
        reference: Reference | Task | Sequence[Example] | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Score all heads on examples in which context and memory disagree.

        Args:
            reference: what means are over; default the examples, at their last tokens.

        Raises:
            UsageError: no data, no such mode, or examples without a foil, or without a span of either role.
            NoAcceptedExample: there is no example.
        """
        if data is None:
            raise UsageError(
                "ContextHeads learns from conflicts: fit(model, interp.task('conflict', n=64)), best of known facts"
            )
        if self.mode not in ("zero", "mean"):
            raise UsageError(f"mode={self.mode!r}: write 'zero' or 'mean'")
        every = list(data.examples(subject) if isinstance(data, Task) else data)[: self.n]
        if not every:
            raise NoAcceptedExample("there is no conflict to learn from")
        examples = [parted(e) for e in every]
        for option, role in (("keys", self.keys), ("about", self.about)):
            if not all(role_tokens(e, role) for e in examples):
                raise UsageError(
                    f"{examples[0].task}: an example has no '{role}' span; name the role with {option}="
                )
        heads = subject.heads()
        source = self._reference(examples, reference)
        cuts = {f"cut {h!r}": Ablate((h,), self.mode, "answer", source) for h in heads}
        blind = {
            f"{role} {h!r}": Ablate((h,), "knockout", "answer", keys=(role,))
            for role in (self.keys, self.about)
            for h in heads
        }
        found = taken(subject, examples, {"": None, **cuts, **blind}, progress=progress)
        # The balance is the margin with its sign turned: what it loses, the margin gains.
        shape = len(examples), 3, subject.n_layers, subject.n_heads
        gained = (found.margin[:, 1:] - found.margin[:, :1]).reshape(shape)
        self.balance_ = -found.margin[:, 0]
        self.clusters_ = found.clusters
        self.per_example_ = {
            "cut": gained[:, 0],
            READ: gained[:, 1],
            RECALL: -gained[:, 2],
            WRITE: written(subject, examples),
        }
        self.heads_ = self._table(subject, heads)
        for name, values in (("context_lost", found.context), ("memory_lost", found.memory)):
            self.heads_[name] = (values[:, :1] - values[:, 1 : 1 + len(heads)]).mean(0)
        self.scores_ = self._scores()
        return self

    def _reference(
        self, examples: Sequence[Example], given: Reference | Task | Sequence[Example] | None
    ) -> Reference | None:
        if self.mode == "zero":
            if given is not None:
                raise UsageError("mode 'zero' takes no reference; write mode='mean'")
            return None
        if isinstance(given, Reference):
            return given
        return Reference(examples if given is None else given)

    def _table(self, subject: CausalLM, heads: Sequence[Head]) -> pd.DataFrame:
        """One row a head: means over examples, with errors and tests over clusters."""
        out = pd.DataFrame(
            {
                "component": [repr(h) for h in heads],
                "layer": [h.layer for h in heads],
                "head": [h.head for h in heads],
                "kv_head": [subject.kv_head(h.head) for h in heads],
            }
        )
        for name, values in self.per_example_.items():
            flat = values.reshape(len(values), -1)
            out[name] = flat.mean(0)
            out[f"{name}_se"] = cluster_se(flat, self.clusters_)
            out[f"{name}_p"] = [sign_flip(column, self.clusters_, seed=self.seed) for column in flat.T]
            out[f"{name}_q"] = fdr(out, f"{name}_p")["q"]
        sure = out["cut_q"] <= self.level
        out["carries"] = np.where(
            sure & (out["cut"] > 0), CONTEXT, np.where(sure & (out["cut"] < 0), MEMORY, "")
        )
        out["n"] = len(self.clusters_)
        return out

    def _scores(self) -> pd.DataFrame:
        own = self.heads_
        parts = []
        for method, of, sign in _SCORES:
            part = own[["component", "layer", "head", "kv_head", "n"]].assign(
                method=method, score=sign * own[of]
            )
            parts.append(part.assign(se=own[f"{of}_se"], p=own[f"{of}_p"], q=own[f"{of}_q"]))
        names = ["component", "method", "layer", "head", "kv_head", "score", "se", "p", "q", "n"]
        return pd.concat(parts, ignore_index=True)[names]

    def carriers(self, side: str) -> tuple[Head, ...]:
        """The heads that carry the `context` or the `memory` at the level of the test, best first.

        Raises:
            UsageError: it is not fitted, or there is no such side.
        """
        if side not in (CONTEXT, MEMORY):
            raise UsageError(f"side is {side!r}; write 'context' or 'memory'")
        ranked = self.ranking(side)
        told = ranked[(ranked["q"] <= self.level) & (ranked["score"] > 0)]
        return tuple(Head(int(r.layer), int(r.head)) for r in told.itertuples())


def written(subject: CausalLM, examples: Sequence[Example]) -> Float[np.ndarray, "n l h"]:
    """Direct share of each head in the balance: logit of the foil's token less that of the answer's, at the last token.

    With the gains and scales of the final norm, so that shares of all parts sum to the balance (`Readout`).

    Args:
        examples: as `interp.measure.conflict.parted` has them.
    """
    readout = Readout(subject)
    out = np.zeros((len(examples), subject.n_layers, subject.n_heads))
    for group in plan([len(e.ids) for e in examples], TOKENS):
        members = [examples[i] for i in group]
        batch = subject.batch(members)
        last = batch.answer_start[:, None]
        sites = [Site("z", layer) for layer in range(subject.n_layers)]
        trace = subject.run(batch, {**{s: Record(last) for s in sites}, **readout.taps(last)}, keep=1)
        scale = readout.scales(trace, (len(members), 1))
        pairs = torch.tensor([[e.foil_ids[0], e.answer_ids[0]] for e in members], device=batch.ids.device)
        vectors = readout.vectors(pairs)
        for site in sites:
            assert site.layer is not None
            along = readout.directions(site.layer, vectors)  # b h 2 k
            z = trace[site][:, 0].float().to(along.device)
            share = torch.einsum("bhk,bhk->bh", z, along[:, :, 0] - along[:, :, 1]).cpu()
            out[group, site.layer] = (share * scale[site.layer]).numpy()
    return out


__all__ = ["ContextHeads", "written"]
