"""Pass 1 of path patching: senders on their way to the receivers, token by token, past attention that stays.

Every other head is frozen, so no token reads another one: a sender at a token is one residual vector. The streams of
all senders go through a block in one call, the block's own forward pass with the result of its attention module given,
so that parallel attention, post-norms and the like are the model's own. A sender joins at its layer; a receiver reads
what has joined below it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import nn

from interp.intervene.arrive import Arrive, Tokens
from interp.intervene.base import Scope
from interp.models.batch import Batch
from interp.models.engines.base import Frame, Reduce, Tap
from interp.models.engines.resume import replaced_forward
from interp.models.engines.visits import cut
from interp.models.sites import MLP, Component, Head, Site
from interp.models.subject import CausalLM
from interp.trace.branches import recorded_kwargs
from interp.trace.each import BUDGET, UNEMBEDDED, tail

BYTES = 2**28
"""What the streams and arrivals of the senders that run together may take."""

SCOPES: dict[str, Scope] = {"q": "answer", "k": "all", "v": "all", "mlp_out": "all", "logits": "answer"}
"""Where a path can end, by kind of site, and the tokens at which it is patched unless a scope is given: queries and
logits where the answer is predicted. `mlp_out` stands for what an MLP reads, since nothing else depends on it."""


def reaches(subject: CausalLM, sender: Component, receiver: Site) -> bool:
    """Whether what a sender writes is read at a receiver."""
    if receiver.layer is None:
        return True
    # An MLP reads the heads of its own layer, unless the two are parallel.
    same = receiver.kind == "mlp_out" and isinstance(sender, Head) and not subject.family.parallel
    return sender.layer < receiver.layer or (same and sender.layer == receiver.layer)


@dataclass
class Arrived:
    """What comes out of pass 1.

    Attributes:
        at: by sender, what arrives at the receivers.
        last: by sender, the change of the stream that leaves the last block, where the logits receive.
    """

    at: dict[int, list[Arrive]]
    last: dict[int, torch.Tensor]


@dataclass
class _Streams:
    """Senders on their way: the change of the residual stream at each token, in fp32."""

    who: list[int]
    delta: Float[torch.Tensor, "s n d"]

    def join(self, who: list[int], delta: Float[torch.Tensor, "j n d"]) -> None:
        self.who = self.who + who
        self.delta = torch.cat([self.delta, delta.to(self.delta.device)])


class Walk:
    """Pass 1 of many senders over one batch.

    Attributes:
        tokens: those at which a receiver is replaced, from the first token on in which clean and corrupt differ: at
            the ones before, the sender says the same in both.
        token_layers: tokens times blocks run since it was last set to 0; one that is left after its projections counts
            as a whole.
        clean_logits, corrupt_logits: of the two runs that all senders start from.
    """

    def __init__(
        self,
        subject: CausalLM,
        clean: Batch,
        corrupt: Batch,
        senders: Sequence[Component],
        receivers: Sequence[Site],
        scope: Scope | None,
        freeze_mlps: bool,
        keep: int,
        budget: int | None = None,
    ):
        self.subject, self.batch, self.senders, self.frozen = subject, clean, senders, freeze_mlps
        self.budget = budget or BUDGET.get(subject.device.type, 32768)
        self.token_layers = 0
        self.keep = keep
        n = subject.n_layers
        self.first = min((s.layer for s in senders), default=n)
        self.last = max(n if r.layer is None else r.layer for r in receivers)
        live = _differing(clean, corrupt)
        if self.last == n:
            live &= torch.arange(clean.width, device=live.device) >= clean.width - keep
        masks = {r: live & clean.scope_columns(scope or SCOPES[r.kind], 0, clean.width) for r in receivers}
        self.row, self.column = torch.stack(list(masks.values())).any(0).nonzero(as_tuple=True)
        self.reading = _readings(receivers, masks, clean, self.row, self.column)
        self.mlp_layers = {s.layer for s in self.reading if s.kind == "mlp_out"}
        self._record(corrupt)

    # -- the runs that all senders start from ------------------------------------------------------------------------

    def _record(self, corrupt: Batch) -> None:
        subject, n = self.subject, self.subject.n_layers
        heads = {s.layer for s in self.senders if isinstance(s, Head)}
        mlps = {s.layer for s in self.senders if isinstance(s, MLP)}
        passed = range(self.first, min(self.last + 1, n))
        taps: dict[Site, Tap] = {Site("resid_pre", i): self._tap() for i in passed}
        if self.last == n:
            taps[Site("resid_post", n - 1)] = self._tap()
        taps |= {Site("z", i): self._tap() for i in passed}
        taps |= {Site("mlp_out", i): self._tap() for i in mlps}
        self.kwargs: dict[int, dict[str, Any]] = {}
        with recorded_kwargs(subject, self.kwargs):
            trace = subject.run(self.batch, taps, keep=self.keep)
        self.clean_logits = trace.logits
        self.resid = {i: trace[Site("resid_pre", i)] for i in passed}
        if self.last == n:
            self.resid[n] = trace[Site("resid_post", n - 1)]
        self.z = {i: trace[Site("z", i)] for i in passed}
        taps = {Site("z", i): self._tap() for i in heads}
        taps |= {Site("mlp_out", i): self._tap() for i in mlps}
        other = subject.run(corrupt, taps, keep=self.keep)
        self.corrupt_logits = other.logits
        self.corrupt_z = {i: other[Site("z", i)] for i in heads}
        self.mlp_delta = {
            i: other[Site("mlp_out", i)].float() - trace[Site("mlp_out", i)].float() for i in mlps
        }
        self._attention: dict[int, torch.Tensor] = {}

    def _tap(self) -> Reduce:
        def pick(value: torch.Tensor, frame: Frame) -> torch.Tensor:
            return value[self.row.to(value.device), self.column.to(value.device)].detach()

        return Reduce(pick)

    def _projected(
        self, layer: int, z: Float[torch.Tensor, "*s n h d_head"]
    ) -> Float[torch.Tensor, "*s n d"]:
        """What the attention module gives for these head outputs."""
        out: torch.Tensor = self.subject.module(layer, self.subject.family.out_proj)(z.flatten(-2))
        return out

    def _clean_attention(self, layer: int) -> Float[torch.Tensor, "n d"]:
        if layer not in self._attention:
            self._attention[layer] = self._projected(layer, self.z[layer])
        return self._attention[layer]

    def _patched_z(self, layer: int, who: list[int]) -> Float[torch.Tensor, "j n h d_head"]:
        """The clean head outputs with one sender's from the corrupt run, for each sender."""
        z = self.z[layer].repeat(len(who), 1, 1, 1)
        for i, number in enumerate(who):
            head = self.senders[number].head  # type: ignore[union-attr]
            z[i, :, head] = self.corrupt_z[layer][:, head]
        return z

    # -- pass 1 ------------------------------------------------------------------------------------------------------

    def chunks(self) -> Iterator[list[int]]:
        """Numbers of senders that run together, neighbours in depth, as many as `BYTES` allow."""
        width = 4 * self.subject.d_model + self.subject.n_heads * self.subject.d_head
        for r in self.reading.values():
            width += self.subject.d_model if not r.heads else len(r.heads) * self.subject.d_head
        size = max(1, BYTES // max(1, 4 * width * len(self.row)))
        order = sorted(range(len(self.senders)), key=lambda i: self.senders[i].layer)
        for i in range(0, len(order), size):
            yield order[i : i + size]

    @torch.no_grad()
    def run(self, chunk: list[int]) -> Arrived:
        """Advance some senders to the receivers."""
        arrived = Arrived({n: [] for n in chunk}, {})
        empty = torch.empty(0, len(self.row), self.subject.d_model, device=self.row.device)
        streams = _Streams([], empty)
        if not len(self.row):
            arrived.last = {n: empty.new_zeros(0, self.subject.d_model) for n in chunk}
            return arrived
        for layer in range(min(self.senders[n].layer for n in chunk), self.last + 1):
            self._read(layer, streams, arrived)
            if layer == self.subject.n_layers or (layer == self.last and layer not in self.mlp_layers):
                break
            mine = [n for n in chunk if self.senders[n].layer == layer]
            heads = [n for n in mine if isinstance(self.senders[n], Head)]
            self._advance(layer, streams, heads, arrived)
            mlps = [n for n in mine if isinstance(self.senders[n], MLP)]
            if mlps:
                streams.join(mlps, self.mlp_delta[layer].expand(len(mlps), -1, -1))
        if self.last == self.subject.n_layers:
            arrived.last = dict(zip(streams.who, streams.delta, strict=True))
        return arrived

    def _advance(self, layer: int, streams: _Streams, heads: list[int], arrived: Arrived) -> None:
        """Through a layer, in which these heads begin to send."""
        moving = len(streams.who)
        if not moving and not heads:
            return
        family = self.subject.family
        before = torch.cat([streams.delta, streams.delta.new_zeros(len(heads), *streams.delta.shape[1:])])
        sent = self._projected(layer, self._patched_z(layer, heads)) if heads else None
        after = None
        if not self.frozen or layer in self.mlp_layers:
            attention = self._clean_attention(layer).expand(moving, -1, -1)
            if sent is not None:
                attention = torch.cat([attention, sent])
            after, written = self._block(layer, before, attention)
            if written is not None:
                # A head of this layer is not read by its MLP where the two are parallel.
                read = moving if family.parallel else moving + len(heads)
                self._arrive(Site("mlp_out", layer), [*streams.who, *heads][:read], written[:read], arrived)
        if self.frozen:
            if sent is not None:
                norm = self.subject.module(layer, family.writes[0]) if family.writes[0] else nn.Identity()
                streams.join(heads, norm(sent).float() - norm(self._clean_attention(layer)).float())
        elif layer < self.last:
            assert after is not None
            streams.who = streams.who + heads
            streams.delta = after.float() - self.resid[layer + 1].float()

    def _block(
        self, layer: int, delta: Float[torch.Tensor, "s n d"], attention: Float[torch.Tensor, "s n d"]
    ) -> tuple[Float[torch.Tensor, "s n d"], Float[torch.Tensor, "s n d"] | None]:
        """The block's own forward pass on streams of single tokens, whose attention is given.

        Returns:
            the stream that leaves it, and what its MLP writes where a receiver asks for it.
        """
        block = self.subject.blocks[layer]
        module = self.subject.module(layer, self.subject.family.attention)
        hidden = self._hidden(layer, delta).flatten(0, 1)
        given = attention.flatten(0, 1)
        written: list[torch.Tensor] = []
        handle = None
        if layer in self.mlp_layers:
            place = self.subject.family.sites["mlp_out"].module

            def keep(module: nn.Module, args: Any, output: Any) -> None:
                written.append((output[0] if isinstance(output, tuple) else output)[0])

            handle = self.subject.module(layer, place).register_forward_hook(keep)
        out = []
        try:
            for part, result in zip(hidden.split(self.budget), given.split(self.budget), strict=True):
                with replaced_forward(module, lambda *args, result=result, **kwargs: (result[None], None)):
                    left = block(part[None], **self.kwargs[layer])
                out.append((left[0] if isinstance(left, tuple) else left)[0])
        finally:
            if handle is not None:
                handle.remove()
        self.token_layers += len(hidden)
        shape = delta.shape
        return torch.cat(out).view(shape), torch.cat(written).view(shape) if written else None

    def _hidden(self, layer: int, delta: Float[torch.Tensor, "s n d"]) -> Float[torch.Tensor, "s n d"]:
        resid = self.resid[layer]
        return (resid.float() + delta.to(resid.device)).to(resid.dtype)

    # -- receivers ---------------------------------------------------------------------------------------------------

    def _read(self, layer: int, streams: _Streams, arrived: Arrived) -> None:
        """Queries, keys and values that the receivers of a layer make of the streams."""
        sites = [s for s in self.reading if s.layer == layer and s.kind != "mlp_out"]
        if not sites or not streams.who:
            return
        subject, family = self.subject, self.subject.family
        hidden = self._hidden(layer, streams.delta).flatten(0, 1)
        norm = subject.module(layer, family.reads[0]) if family.reads[0] else nn.Identity()
        made: dict[str, torch.Tensor] = {}
        for site in sites:
            place = family.sites[site.kind]
            if place.module not in made:
                project = subject.module(layer, place.module)
                made[place.module] = torch.cat([project(norm(h)) for h in hidden.split(self.budget)])
            whole = cut(place.part, made[place.module], subject.n_heads, subject.n_kv_heads, subject.d_head)
            values = whole[:, list(self.reading[site].heads)]
            self._arrive(site, streams.who, values.unflatten(0, streams.delta.shape[:2]), arrived)
        self.token_layers += len(hidden)

    def _arrive(self, site: Site, who: list[int], values: torch.Tensor, arrived: Arrived) -> None:
        if site not in self.reading:
            return
        reading = self.reading[site]
        for number, value in zip(who, values, strict=True):
            name = repr(self.senders[number])
            arrived.at[number].append(
                Arrive(site, reading.heads, reading.tokens, value[reading.at.to(value.device)], name)
            )

    def unembedded(self, delta: Float[torch.Tensor, "n d"]) -> Float[torch.Tensor, "b keep v"]:
        """Logits of the clean run with the stream that leaves the last block changed."""
        out = self.clean_logits.clone()
        if len(delta):
            hidden = self._hidden(self.subject.n_layers, delta[None])[0]
            limit = max(1, UNEMBEDDED // out.shape[-1])
            found = torch.cat([tail(self.subject, h) for h in hidden.split(limit)])
            row, column = self.row.to(out.device), self.column.to(out.device)
            out[row, column - (self.batch.width - out.shape[1])] = found.to(out.device)
        return out


@dataclass(frozen=True)
class _Reading:
    """What is replaced at a site: which heads (none: all of it), at which tokens, and which of the walk's they are."""

    heads: tuple[int, ...]
    tokens: Tokens
    at: Int[torch.Tensor, " m"]


def _readings(
    receivers: Sequence[Site],
    masks: dict[Site, Bool[torch.Tensor, "b t"]],
    batch: Batch,
    row: torch.Tensor,
    column: torch.Tensor,
) -> dict[Site, _Reading]:
    """Receivers by the site at which they are replaced."""
    out: dict[Site, _Reading] = {}
    for site in receivers:
        if site.layer is None:
            continue
        heads = () if site.index is None else (site.index,)
        if site.whole in out:
            known = out[site.whole]
            out[site.whole] = replace(known, heads=(*known.heads, *heads))
            continue
        at = masks[site][row, column].nonzero()[:, 0]
        out[site.whole] = _Reading(heads, Tokens(batch, row[at], column[at]), at)
    return out


def _differing(clean: Batch, corrupt: Batch) -> Bool[torch.Tensor, "b t"]:
    """Tokens from the first one on in which the two prompts of a row differ; none where they are the same."""
    differ = (clean.ids != corrupt.ids) & clean.mask.bool()
    return differ.int().cumsum(1) > 0
