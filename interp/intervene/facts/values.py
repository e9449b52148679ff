"""What has to be added to the residual stream at a fact's subject, so that the model says something else.

The vector is searched by gradient descent (Meng et al. 2022, section 3.1): the target's negative log-likelihood,
averaged over contexts, plus a divergence that keeps what the model thinks the subject is, plus a weight decay, with the
weights of their code. The divergence differs from theirs: it is KL(before || after) of the token that follows
"<subject> is a"; their code has KL(after || before), of the token that follows the subject itself in that prompt, and
their paper (equation 4) KL(after || before) behind the whole of it. The length of a step differs too (`Search`).
Only what lies after the subject's last token depends on the vector, so that the columns before are run once and kept as
keys and values.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import nn

from interp.errors import EngineError, UsageError
from interp.intervene.facts.requests import Prefixes, Rewrite
from interp.models.batch import Batch, plan
from interp.models.engines.base import Frame, Record
from interp.models.sites import Site
from interp.models.subject import CausalLM
from interp.tasks.base import Example

TOKENS = 2048
"""Padded tokens of a batch of prompts."""


@dataclass(frozen=True)
class Search:
    """How a value is searched; the defaults are those of Meng et al. for GPT-2 XL, but for `step`.

    Attributes:
        steps: steps of Adam, at most; the last one is not followed by an update.
        step: length of Adam's first step, as a multiple of |v|. The reference's 0.5 is of each coordinate, so its step
            has one length in models whose values are long and in such where they are short.
        kl: weight of KL(before || after) of what follows "<subject> is a", in nats; not the reference's divergence.
        decay: weight of |delta| / |v|^2, with v what is there before.
        clamp: the longest delta, as a multiple of |v|.
        stop: the loss at which the search ends.
    """

    steps: int = 20
    step: float = 0.5
    kl: float = 0.0625
    decay: float = 0.5
    clamp: float = 4.0
    stop: float = 0.05

    def __post_init__(self) -> None:
        if self.steps < 1 or self.step <= 0 or self.clamp <= 0 or min(self.kl, self.decay) < 0:
            raise UsageError("a search needs steps >= 1, step > 0, clamp > 0, kl and decay >= 0")

    def about(self) -> dict[str, float]:
        """JSON-able description."""
        return asdict(self)


@dataclass(frozen=True)
class Found:
    """The end of a search.

    Attributes:
        delta: what is added, d.
        value: what was there before, the mean over contexts, d.
        history: one entry a step: loss, nll (nats a token), kl (nats), decay, norm (of delta).
    """

    delta: Float[torch.Tensor, " d"]
    value: Float[torch.Tensor, " d"]
    history: tuple[dict[str, float], ...]


def mean_at(
    subject: CausalLM, rewrites: Sequence[Rewrite], sites: Sequence[Site], prefixes: Prefixes
) -> dict[Site, Float[torch.Tensor, "n _"]]:
    """What is at sites at the last token of each fact's subject, averaged over contexts; fp64."""
    placed = [(ids, at) for r in rewrites for ids, at in prefixes.before(r)]
    out: dict[Site, list[Any]] = {site: [None] * len(placed) for site in sites}
    stop = max(int(s.layer or 0) for s in sites) + 1
    options: dict[str, Any] = {"stop": stop} if "resume" in subject.engine.capabilities else {"keep": 1}
    for group in plan([len(ids) for ids, _ in placed], TOKENS):
        batch = subject.batch([Example("edit", placed[i][0], ()) for i in group], forced=False)
        at = batch.pad + torch.tensor([placed[i][1] for i in group], device=batch.pad.device)
        trace = subject.run(batch, {site: Record(at[:, None]) for site in sites}, **options)
        for site in sites:
            for i, value in zip(group, trace[site][:, 0].double().cpu(), strict=True):
                out[site][i] = value
    return {site: torch.stack(rows).unflatten(0, (len(rewrites), -1)).mean(1) for site, rows in out.items()}


def search_delta(
    subject: CausalLM, rewrite: Rewrite, site: Site, prefixes: Prefixes, search: Search, *, share: bool = True
) -> Found:
    """The vector that, added at `site` at the last token of the subject, makes the model say the target.

    Args:
        site: `down` (it is added to what the projection gives) or a site of the residual stream's width.
        share: run the columns before the subject's last token once; False runs whole prompts at every step.

    Raises:
        EngineError: the engine keeps no graph.
    """
    needed = {"grad", "cache"} if share else {"grad"}
    if missing := needed - subject.engine.capabilities:
        raise EngineError(
            f"engine '{subject.engine.name}' cannot search values (no '{min(missing)}'); use 'hooks'"
        )
    goal = _Goal(subject, rewrite, site, prefixes, search, share)
    delta = torch.zeros(subject.d_model, device=subject.device, requires_grad=True)
    adam = torch.optim.Adam([delta])
    history: list[dict[str, float]] = []
    for step in range(search.steps):
        terms = goal(delta)
        history.append({name: float(term.detach()) for name, term in terms.items()})
        if history[-1]["loss"] < search.stop or step + 1 == search.steps:
            break
        length = float(goal.value.norm())
        # Adam's first step moves every coordinate by the learning rate.
        adam.param_groups[0]["lr"] = search.step * length / math.sqrt(len(delta))
        (delta.grad,) = torch.autograd.grad(terms["loss"], [delta])
        adam.step()
        with torch.no_grad():
            delta *= min(1.0, search.clamp * length / (float(delta.norm()) or 1.0))
    return Found(delta.detach(), goal.value, tuple(history))


class _Goal:
    """What a search makes small: the loss of a delta and its terms.

    Rows are the prompt in each context with the target forced after it, and the essence. `value` and the essence's
    distribution are those of the first delta that is tried, which is 0.
    """

    def __init__(
        self,
        subject: CausalLM,
        rewrite: Rewrite,
        site: Site,
        prefixes: Prefixes,
        search: Search,
        share: bool,
    ):
        self.subject, self.site, self.search = subject, site, search
        placed = prefixes.before(rewrite)
        self.n = len(placed)
        rows = [Example("edit", ids, rewrite.target) for ids, _ in placed]
        self.batch = subject.batch([*rows, Example("edit", rewrite.essence, rewrite.target[:1])])
        at = [at for _, at in placed] + [rewrite.essence_at]
        self.columns = self.batch.pad + torch.tensor(at, device=self.batch.pad.device)
        self.target = torch.tensor(rewrite.target, device=subject.device)
        # Nothing before the first subject's last token depends on delta.
        self.past = int(self.columns.min()) if share else 0
        self.prefill = _prefill(subject, self.batch, self.past) if self.past else None
        self.value: torch.Tensor
        self.essence: torch.Tensor | None = None

    def __call__(self, delta: Float[torch.Tensor, " d"]) -> dict[str, torch.Tensor]:
        batch, search = self.batch, self.search
        tap = _Added(delta, self.columns)
        options: dict[str, Any] = {}
        if self.prefill is not None:
            options = {"cache": copy.deepcopy(self.prefill), "past": self.past}
        logits = self.subject.run(
            batch, {self.site: tap}, grad=True, keep=batch.keep, **options
        ).logits.float()
        first = batch.width - logits.shape[1]
        columns = [batch.answer_columns(i) for i in range(self.n)]
        spoken = torch.stack([logits[i, c.start - first : c.stop - first] for i, c in enumerate(columns)])
        nll = nn.functional.cross_entropy(spoken.flatten(0, 1), self.target.repeat(self.n))
        essence = logits[self.n, -1].log_softmax(-1)
        if self.essence is None:
            self.essence, self.value = essence.detach(), tap.seen[: self.n].float().mean(0)
        kl = (self.essence.exp() * (self.essence - essence)).sum()
        # |delta| is not smooth at 0; its gradient there is taken as 0.
        norm = delta.norm() if bool(delta.any()) else delta.sum() * 0.0
        decay = norm / self.value.norm() ** 2
        loss = nll + search.kl * kl + search.decay * decay
        return {"loss": loss, "nll": nll, "kl": kl, "decay": decay, "norm": norm}


class _Added:
    """A vector is added at one column of each row, to the residual stream or to what a projection gives."""

    def __init__(self, delta: torch.Tensor, columns: Int[torch.Tensor, " b"]):
        self.delta, self.columns = delta, columns
        self.seen: torch.Tensor

    def edit(self, value: torch.Tensor, frame: Frame) -> torch.Tensor:
        rows = torch.arange(len(value), device=value.device)
        at = self.columns.to(value.device) - frame.past
        d = len(self.delta)
        self.seen = value[rows, at, -d:].detach()
        more = nn.functional.pad(self.delta.to(value.device, value.dtype), (value.shape[-1] - d, 0))
        return value.index_put((rows, at), more.expand(len(value), -1), accumulate=True)


def _prefill(subject: CausalLM, batch: Batch, past: int) -> Any:
    """KV cache of the first columns of a batch."""
    cut = {name: getattr(batch, name)[:, :past] for name in ("ids", "mask", "positions")}
    start = torch.full_like(batch.answer_start, past - 1)
    part = replace(batch, answer_start=start, **cut)
    return subject.run(part, keep=1, use_cache=True).cache
