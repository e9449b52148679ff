"""Path patching, exact and batched: what one component tells another directly, with all other attention as it was.

The rule is that of Wang et al. 2022 (arXiv 2211.00593). Pass 1: the clean prompt, the sender's output taken from the
corrupt one, every other head frozen to the clean run, MLPs recomputed (or frozen too); what the receivers then read is
kept. Pass 2: the clean prompt with the receivers' inputs replaced by that, all else recomputed.

In pass 1 all attention is frozen, so tokens do not mix: a sender at a token is one residual vector that goes through
the blocks on its own, and only tokens at which a receiver is replaced are run. All senders are advanced together, each
as its difference to the clean stream, from its own layer to the last receiver's. Pass 2 is `subject.each`. A path that
ends in the logits needs no second pass. Numbers equal those of two full passes a sender up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float

from interp.errors import EngineError, UsageError
from interp.intervene.base import Compose, Scope
from interp.models.batch import Batch
from interp.models.sites import Component, Neuron, Site
from interp.models.subject import CausalLM
from interp.trace.each import Spent
from interp.trace.streams import SCOPES, Walk, reaches


@dataclass
class PathSpent(Spent):
    """What path patching ran, beside what a loop of full passes would have run.

    Attributes:
        naive: tokens times blocks of two passes a sender (one where the logits receive) and the two runs that they
            start from; padding left out, as in `token_layers`.
    """

    naive: int = 0


def paths(
    subject: CausalLM,
    clean: Batch,
    corrupt: Batch,
    senders: Sequence[Component],
    receivers: Sequence[Site],
    *,
    scope: Scope | None = None,
    freeze_mlps: bool = False,
    keep: int | None = None,
    budget: int | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    spent: PathSpent | None = None,
) -> Paths:
    """Logits of the clean batch with the path from each sender to the receivers patched.

    Args:
        clean: what is run.
        corrupt: the same answers behind prompts of the same lengths: where senders take their output from.
        senders: heads and MLPs, each a condition of its own.
        receivers: sites at which paths end, patched together: `q`, `k` or `v` with a head or KV group, `mlp_out` for
            what an MLP reads, or `logits` alone.
        scope: tokens at which the path is patched: the sender is corrupt there, and the receivers are replaced there;
            default by input, see `interp.trace.streams.SCOPES`. Receivers at other tokens are computed as usual.
        freeze_mlps: keep MLPs as in the clean run in pass 1, so that only the direct edge is left.
        keep: logits of this many last columns; default those that predict answers.
        budget: tokens in flight at once, as in `subject.each`.
        progress: told about senders done.
        spent: counts what is run.

    Returns:
        the two runs, and on iteration the number of each sender with its logits.

    Raises:
        UsageError: the batches do not fit each other, a receiver or a sender cannot be one, a sender reaches no
            receiver, or interventions are applied to the subject.
        EngineError: the engine cannot resume runs.
    """
    _check(subject, clean, corrupt, senders, receivers)
    spent = spent if spent is not None else PathSpent()
    real = int(clean.mask.sum()) * subject.n_layers
    passes = 1 if receivers[0].layer is None else 2
    spent.naive += real * (2 + len(senders) * passes)
    spent.token_layers += 2 * real
    keep = clean.keep if keep is None else keep
    walk = Walk(subject, clean, corrupt, senders, receivers, scope, freeze_mlps, keep, budget)
    return Paths(walk, progress, spent)


@dataclass
class Paths:
    """Senders over one batch: iterate for `(number, logits)` of each, in the order of their layers.

    Attributes:
        walk: pass 1, with the logits of the clean and of the corrupt run.
    """

    walk: Walk
    progress: Callable[[int, int, str], None] | None
    spent: PathSpent

    def __iter__(self) -> Iterator[tuple[int, Float[torch.Tensor, "b keep v"]]]:
        walk, done = self.walk, 0
        for chunk in walk.chunks():
            for number, logits in self._chunk(chunk):
                yield number, logits
                done += 1
                if self.progress:
                    self.progress(done, len(walk.senders), "senders")

    def _chunk(self, chunk: list[int]) -> Iterator[tuple[int, torch.Tensor]]:
        walk = self.walk
        before = walk.token_layers
        arrived = walk.run(chunk)
        self.spent.token_layers += walk.token_layers - before
        for number, delta in arrived.last.items():
            yield number, walk.unembedded(delta)
        if arrived.last:
            return
        items = [Compose(tuple(arrived.at[n])) if arrived.at[n] else None for n in chunk]
        found = walk.subject.each(items, walk.batch, keep=walk.keep, budget=walk.budget, spent=self.spent)
        for i, logits in found:
            yield chunk[i], logits


def _check(
    subject: CausalLM,
    clean: Batch,
    corrupt: Batch,
    senders: Sequence[Component],
    receivers: Sequence[Site],
) -> None:
    if clean.ids.shape != corrupt.ids.shape or not torch.equal(clean.mask, corrupt.mask):
        raise UsageError("path patching needs a corrupt prompt of as many tokens as each clean one")
    if subject._edits:
        raise UsageError(
            "path patching compares with the intact model: leave `apply` first, or edit the weights"
        )
    if missing := {"resume", "weights"} - subject.engine.capabilities:
        raise EngineError(
            f"engine '{subject.engine.name}' cannot patch paths (capability '{min(missing)}'): use engine 'hooks'"
        )
    for site in receivers:
        subject.check(site)
        if site.kind not in SCOPES or (site.index is None) != (site.kind in ("mlp_out", "logits")):
            raise UsageError(f"no path ends at {site}: write q[9].6, k[5].1, v[5].1, mlp_out[7] or logits")
    if not receivers or (len(receivers) > 1 and any(r.kind == "logits" for r in receivers)):
        raise UsageError("a path needs a receiver, and the logits are one of their own")
    for sender in senders:
        subject.check(sender)
        if isinstance(sender, Neuron):
            raise UsageError(f"{sender} cannot send: senders are heads and MLPs")
        if not any(reaches(subject, sender, r) for r in receivers):
            raise UsageError(f"{sender} lies behind every receiver ({', '.join(map(repr, receivers))})")
