"""The suffix wavefront: many interventions on one batch, advanced together layer by layer.

The intact batch runs once and leaves its residual stream, keys and values. Each intervention is a *branch* that starts
at the first layer it touches and at the first column it touches, since everything before is the intact run's. All
branches of a chunk pass through a layer in one call, packed without padding, so weights are read once a layer; a branch
joins when its layer comes. Where nothing before the output projection is edited, the first layer runs only the edited
columns, after its attention. The last layer runs only the columns whose logits are read.

The rule is that of Meng et al. 2022 (arXiv 2202.05262) and of every ablation loop; only work that cannot change the
result is left out, so the numbers are those of one run each up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Float
from torch import nn

from interp.errors import EngineError
from interp.intervene.base import Intervention, lower_conditions
from interp.models.engines.attention import AttentionCall, tapped_attention
from interp.models.engines.base import Frame
from interp.models.engines.hooks import Session
from interp.models.engines.resume import replaced_forward
from interp.models.sites import KERNEL_KINDS, Site
from interp.models.subject import CausalLM
from interp.trace.branches import LATE, Base, Branch
from interp.trace.packing import Edited, Packed, edit_kernel, joined
from interp.trace.ragged import Group, Prefix, attend, keys_of


class _Enough(Exception):
    """Ends a block's call once its keys and values are known."""


@dataclass
class _Late:
    """Tokens of a branch that are edited in its first layer, after the attention."""

    number: int
    hidden: Float[torch.Tensor, "n d"]
    packed: Packed

    def since(self, column: int) -> _Late:
        """Those from a column on."""
        where = self.packed.column >= column
        return _Late(self.number, self.hidden[where.to(self.hidden.device)], self.packed.pick(where))


class Wave(Session):
    """A chunk of branches on its way through the layers."""

    def __init__(
        self,
        subject: CausalLM,
        base: Base,
        branches: Sequence[Branch],
        conditions: Mapping[int, Intervention],
    ):
        self.base = base
        self.branches = branches
        self.conditions = conditions
        self.first = min(b.layer for b in branches)
        self.device = base.batch.ids.device
        self.offsets = list(accumulate((len(b.rows) for b in branches), initial=0))
        self.all_rows = torch.cat([b.rows for b in branches])
        self.edited, self.kernel_taps, self.instant = self._lowered(subject)
        super().__init__(
            subject, {site: [lambda value: None] for site in self.edited}, None, Frame(base.batch)
        )
        self.token_layers = 0
        self._called: set[int] = set()
        self.groups: list[Group] = []
        self._groups: dict[tuple[int, tuple[int, ...]], Group] = {}
        self._indices: dict[tuple[int, int, int], Packed] = {}
        self._packed: Packed
        self._gathered_for: Packed | None = None
        self._gathered: dict[int, torch.Tensor] = {}
        self._call: Callable[[AttentionCall, Callable[..., Any]], torch.Tensor] = _no_call

    # -- edits -------------------------------------------------------------------------------------------------------

    def _lowered(
        self, subject: CausalLM
    ) -> tuple[dict[Site, Edited], dict[tuple[int, Site], Edited], dict[int, Edited]]:
        """Taps of every edited site, for the rows that are edited there.

        Returns:
            those that are met on the way; those of the kernel, by branch; those that instant branches begin with, by
            layer.
        """
        by_site: dict[Site, list[int]] = {}
        at_once: dict[int, list[int]] = {}
        applied = {s for e in subject._edits for s in e.lower(subject, self.base.batch)}
        for i, branch in enumerate(self.branches):
            inherited = {s for s in applied if s.layer is not None and s.layer >= branch.layer}
            if branch.instant:
                at_once.setdefault(branch.layer, []).append(i)
            for site in branch.sites | inherited:
                if not (branch.instant and site.layer == branch.layer):
                    by_site.setdefault(site, []).append(i)
        edited = {s: self._edit(subject, s, who) for s, who in by_site.items() if s.kind not in KERNEL_KINDS}
        kernel = {
            (i, s): self._edit(subject, s, [i])
            for s, who in by_site.items()
            if s.kind in KERNEL_KINDS
            for i in who
        }
        # What leaves the layer in the intact run has been through the edits that are applied to the subject.
        instant = {
            i: self._edit(subject, Site("resid_post", i), who, inherit=False) for i, who in at_once.items()
        }
        return edited, kernel, instant

    def _edit(self, subject: CausalLM, site: Site, who: list[int], inherit: bool = True) -> Edited:
        chosen = [self.branches[i] for i in who]
        sub = self.base.batch.select(torch.cat([b.rows for b in chosen]))
        numbers = sorted({b.condition for b in chosen})
        of = torch.cat([torch.full((len(b.rows),), numbers.index(b.condition)) for b in chosen])
        taps = [t for e in subject._edits if inherit for t in e.lower(subject, sub).get(site, [])]
        lowered = lower_conditions(subject, sub, [self.conditions[n].part_at(site) for n in numbers], of)
        if unsaid := set(lowered) - set().union(*(b.sites for b in chosen)):
            raise EngineError(
                f"an intervention edits {min(unsaid)}, which its `touches` does not name: name every site it lowers to"
            )
        taps += lowered.get(site, [])
        local = torch.full((len(self.all_rows),), -1, dtype=torch.long, device=self.device)
        owners = torch.cat(
            [torch.arange(len(b.rows)) + self.offsets[i] for i, b in zip(who, chosen, strict=True)]
        )
        local[owners.to(self.device)] = torch.arange(len(owners), device=self.device)
        past = min(b.start for b in chosen)
        frame = Frame(sub, past, self.base.batch.width - past, 1)
        return Edited(local, frame, taps)

    def visit(self, site: Site, value: torch.Tensor) -> torch.Tensor:
        """The edits of a site, for the tokens of the present call that they are about."""
        self.fired[site] += 1
        return self.edited[site].edit(site, value, self._packed)

    def check_fired(self) -> None:
        """A tap fires in each call of its layer; the last layer is not called where none of its columns is read."""
        if silent := [s for s, n in self.fired.items() if not n and s.layer in self._called]:
            told = ", ".join(map(str, silent))
            raise EngineError(
                f"edits at {told} never ran: this model does not use the module that the site names"
            )

    def _kernel_layers(self) -> set[int]:
        return set()  # attention is computed here, see `_attend`

    # -- layers ------------------------------------------------------------------------------------------------------

    def run(self) -> dict[int, tuple[int, torch.Tensor]]:
        """Advance all branches to the end.

        Returns:
            for each branch the first column that is read of it, and the residual stream from there, r m d.
        """
        subject, n = self.subject, self.subject.n_layers
        modules = {i: subject.module(i, subject.family.attention) for i in range(self.first, n)}

        def compute(
            kernel: Any, module: nn.Module, call: AttentionCall, kwargs: dict[str, Any]
        ) -> torch.Tensor:
            def through(q: Any, k: Any, v: Any, mask: Any) -> torch.Tensor:
                return kernel(module, q, k, v, mask, **kwargs)[0]

            return self._call(call, through)

        try:
            with self.installed(), tapped_attention(subject.hf, modules, compute=compute), torch.no_grad():
                for layer in range(self.first, n - 1):
                    self._layer(layer)
                if any(site.layer == n - 1 for _, site in self.kernel_taps):
                    # Keys may be edited at columns that are not read, so the last layer runs whole.
                    self._layer(n - 1)
                    return self._ends()
                return self._last(n - 1)
        finally:
            # The last call's function holds the wave: without the cycle its tensors go when the wave does.
            self._call = _no_call

    def _join(self, number: int, hidden: Float[torch.Tensor, "r m d"]) -> None:
        """A branch takes its place, with the residual stream of its suffix."""
        branch = self.branches[number]
        key = (branch.start, tuple(branch.rows.tolist()))
        if key in self._groups:
            self._groups[key].join(number, hidden)
            return
        self._groups[key] = Group(branch.start, branch.rows, [number], hidden[None])
        self.groups.append(self._groups[key])

    def _layer(self, layer: int) -> None:
        late = self._enter(layer)
        tokens = [g.hidden.flatten(0, 2) for g in self.groups] + [t.hidden for t in late]
        out = self._block(layer, tokens, [self._tokens(g) for g in self.groups], late)
        parts = out.split([len(t) for t in tokens])
        for group, part in zip(self.groups, parts, strict=False):
            group.hidden = part.view(group.hidden.shape)
        for tokens_of, part in zip(late, parts[len(self.groups) :], strict=True):
            self._join(tokens_of.number, self._left(layer, tokens_of, part))
        for tokens_of in self._instant(layer):
            self._join(tokens_of.number, self._left(layer, tokens_of, tokens_of.hidden))

    def _left(self, layer: int, late: _Late, hidden: torch.Tensor) -> Float[torch.Tensor, "r m d"]:
        """The intact stream leaving a layer, for a branch's suffix, with the tokens that differ."""
        branch = self.branches[late.number]
        out = self.base.suffix(self.base.resid[layer + 1], branch.rows, branch.start)
        local = (late.packed.owner - self.offsets[late.number]).to(out.device)
        out[local, (late.packed.column - branch.start).to(out.device)] = hidden.to(out.device)
        return out

    def _instant(self, layer: int) -> list[_Late]:
        """Branches that begin with an edit of what leaves this layer: nothing is computed for them in it."""
        out = [
            self._edited_tokens(number, self.base.resid[layer + 1])
            for number, branch in enumerate(self.branches)
            if branch.layer == layer and branch.instant
        ]
        if out:
            hidden = torch.cat([t.hidden for t in out])
            packed = Packed.join([t.packed for t in out])
            hidden = self.instant[layer].edit(Site("resid_post", layer), hidden[None], packed)[0]
            for tokens_of, part in zip(out, hidden.split([len(t.hidden) for t in out]), strict=True):
                tokens_of.hidden = part
        return out

    def _ends(self) -> dict[int, tuple[int, torch.Tensor]]:
        read = self.base.batch.width - self.base.keep
        ends = {}
        for group in self.groups:
            group.settle()
            first = max(group.start, read)
            hidden = group.hidden[:, :, first - group.start :]
            ends.update({n: (first, h) for n, h in zip(group.branches, hidden, strict=True)})
        return ends

    def _last(self, layer: int) -> dict[int, tuple[int, torch.Tensor]]:
        """The last layer: keys and values of all columns, the rest only where logits are read."""
        late = self._enter(layer)
        read = self.base.batch.width - self.base.keep
        kept: list[tuple[torch.Tensor, torch.Tensor]] = []
        if any(g.start < read for g in self.groups):
            tokens = [g.hidden.flatten(0, 2) for g in self.groups]

            def capture(call: AttentionCall, kernel: Any) -> torch.Tensor:
                kept.append((call.k, call.v))
                raise _Enough

            with suppress(_Enough):
                self._block(layer, tokens, [self._tokens(g) for g in self.groups], [], capture)
        wanted = [(g, max(g.start, read)) for g in self.groups]
        late = [t.since(read) for t in late]
        tokens = [g.hidden[:, :, first - g.start :].flatten(0, 2) for g, first in wanted]
        tokens += [t.hidden for t in late]
        own = kept[0] if kept else None
        out = self._block(layer, tokens, [self._tokens(g, first) for g, first in wanted], late, own=own)
        parts = out.split([len(t) for t in tokens])
        done: dict[int, tuple[int, torch.Tensor]] = {}
        for (group, first), part in zip(wanted, parts, strict=False):
            hidden = part.view(*group.hidden.shape[:2], -1, part.shape[-1])
            done.update({number: (first, h) for number, h in zip(group.branches, hidden, strict=True)})
        ends = [*zip(late, parts[len(wanted) :], strict=True)]
        ends += [(tokens_of, tokens_of.hidden) for tokens_of in self._instant(layer)]
        for tokens_of, part in ends:
            start = self.branches[tokens_of.number].start
            first = max(start, read)
            done[tokens_of.number] = first, self._left(layer, tokens_of, part)[:, first - start :]
        return done

    def _enter(self, layer: int) -> list[_Late]:
        """Early branches of this layer join; of late ones the tokens that are edited in it are given back."""
        late = []
        for number, branch in enumerate(self.branches):
            if branch.layer != layer or branch.instant:
                continue
            if branch.late:
                late.append(self._edited_tokens(number, self.base.resid[layer]))
            else:
                stream = self.base.resid[layer]
                self._join(number, self.base.suffix(stream, branch.rows, branch.start))
        for group in self.groups:
            group.settle()
        return late

    def _edited_tokens(self, number: int, stream: torch.Tensor) -> _Late:
        branch = self.branches[number]
        local, column = branch.columns.nonzero(as_tuple=True)
        packed = Packed(branch.rows[local], column, local + self.offsets[number])
        return _Late(number, self.base.pick(stream, packed.row, column), packed)

    def _tokens(self, group: Group, first: int | None = None) -> Packed:
        """Tokens of a group from a column on, in the order in which they are packed: branch, row, column."""
        begin = group.start if first is None else first
        key = (id(group), len(group.branches), begin)
        if key not in self._indices:
            columns = torch.arange(begin, self.base.batch.width, device=self.device)
            rows = len(group.rows)
            owner = torch.tensor([self.offsets[i] for i in group.branches], device=self.device)[:, None]
            owner = (owner + torch.arange(rows, device=self.device)).flatten()
            owners = owner.repeat_interleave(len(columns))
            self._indices[key] = Packed(self.all_rows[owners], columns.repeat(len(owner)), owners)
        return self._indices[key]

    def _block(
        self,
        layer: int,
        tokens: list[torch.Tensor],
        packed: list[Packed],
        late: list[_Late],
        attention: Any = None,
        own: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """One call of a block on packed tokens; those of late branches come last and keep the intact run's z."""
        if not any(map(len, tokens)):
            return self.base.logits.new_empty(0, self.subject.d_model)
        self._packed = Packed.join([*packed, *(t.packed for t in late)])
        hidden = joined([t.to(tokens[0].device) for t in tokens])
        n_late = sum(len(t.hidden) for t in late)
        if attention is None:
            self.token_layers += len(hidden)
            self._called.add(layer)

        def usual(call: AttentionCall, kernel: Any) -> torch.Tensor:
            return self._attend(layer, call, kernel, n_late, own)

        self._call = attention or usual
        given = self.base.kwargs[layer]
        kwargs = {k: self._at_tokens(v) for k, v in given.items()}
        kwargs |= {k: None for k in ("past_key_values", "layer_past", "attention_mask") if k in given}
        if "use_cache" in given:
            kwargs["use_cache"] = False
        with self._intact_attention(layer) if n_late == len(hidden) else nullcontext():
            out = self.subject.blocks[layer](hidden[None], **kwargs)
        return (out[0] if isinstance(out, tuple) else out)[0]

    def _intact_attention(self, layer: int) -> AbstractContextManager[None]:
        """The attention module only projects the intact run's z, where nothing before z is edited in the layer."""
        if any(s.layer == layer and s.kind not in LATE for s in self.edited):
            return nullcontext()
        project = self.subject.module(layer, self.subject.family.out_proj)
        z = self._intact_z(layer, len(self._packed.row)).flatten(-2)[None]
        attention = self.subject.module(layer, self.subject.family.attention)
        return replaced_forward(attention, lambda *args, **kwargs: (project(z), None))

    def _intact_z(self, layer: int, n: int) -> Float[torch.Tensor, "n h d"]:
        """Head outputs of the intact run for the last tokens of the call."""
        return self.base.pick(self.base.z[layer], self._packed.row[-n:], self._packed.column[-n:])

    def _at_tokens(self, value: Any) -> Any:
        """What the model gave to a block for whole rows, for packed tokens."""
        if isinstance(value, tuple):
            return tuple(map(self._at_tokens, value))
        width = self.base.batch.width - self.base.first
        if not isinstance(value, torch.Tensor) or value.ndim < 2 or value.shape[1] != width:
            return value
        # Layers share rotations and positions, and between two joins their tokens.
        key = id(value)
        if self._gathered_for is not self._packed:
            self._gathered_for, self._gathered = self._packed, {}
        if key not in self._gathered:
            column = self._packed.column
            row = self._packed.row if len(value) > 1 else torch.zeros_like(column)
            self._gathered[key] = self.base.pick(value, row, column)[None]
        return self._gathered[key]

    # -- attention ---------------------------------------------------------------------------------------------------

    def _attend(
        self, layer: int, call: AttentionCall, kernel: Any, n_late: int, own: Any
    ) -> Float[torch.Tensor, "1 n h d"]:
        keys, values = (call.k, call.v) if own is None else own
        prefix = Prefix(
            self.base.keys[layer].to(call.q.device),
            self.base.values[layer].to(call.q.device),
            self.base.kwargs[layer].get("attention_mask"),
            self.base.batch.pad,
            self.base.first,
        )
        done, used, used_own = [], 0, 0
        for group in self.groups:
            g, r, m, _ = group.hidden.shape
            mq = m if own is None else min(m, self.base.keep)
            q = _block_of(call.q, used, g, r, mq)
            k, v = (_block_of(t, used_own, g, r, m) for t in (keys, values))
            used, used_own = used + g * r * mq, used_own + g * r * m
            done.append(self._group(layer, group, q, k, v, prefix, kernel, call).flatten(0, 2))
        if n_late:
            done.append(self._intact_z(layer, n_late).to(call.q.device, call.q.dtype))
        return joined(done)[None]

    def _group(
        self,
        layer: int,
        group: Group,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        prefix: Prefix,
        kernel: Any,
        call: AttentionCall,
    ) -> torch.Tensor:
        sites = {s for _, s in self.kernel_taps if s.layer == layer}
        tapped = {
            g: found
            for g, number in enumerate(group.branches)
            if (found := [s for s in sorted(sites) if (number, s) in self.kernel_taps])
        }
        if not tapped:
            return attend(group, q, k, v, prefix, kernel, call)
        out = attend(group, q, k, v, prefix, kernel, call)
        for g, found in tapped.items():
            out[g] = self._tapped(group, g, found, q[g], k[g], v[g], prefix, kernel, call)
        return out

    def _tapped(
        self,
        group: Group,
        g: int,
        sites: list[Site],
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        prefix: Prefix,
        kernel: Any,
        call: AttentionCall,
    ) -> torch.Tensor:
        """Attention of one branch whose kernel is edited, over all columns of its rows."""
        rows, end = group.rows.to(q.device), self.base.batch.width
        before = slice(0, group.start)
        k, v = (keys_of(p, own[None], rows, before)[0] for p, own in ((prefix.k, k), (prefix.v, v)))
        columns = slice(end - q.shape[2], end)
        mask = prefix.kernel_mask(rows, columns, slice(0, end))
        call = call.with_(q=q, k=k, v=v, mask=mask)
        for site in sites:
            edited = self.kernel_taps[group.branches[g], site]
            frame = Frame(edited.frame.batch, columns.start, columns.stop - columns.start, 1)
            call = edit_kernel(site, call, edited.taps, frame)
        return kernel(call.q, call.k, call.v, call.mask)


def _no_call(call: AttentionCall, kernel: Any) -> torch.Tensor:
    raise EngineError("attention was computed outside of a wave's block")


def _block_of(x: torch.Tensor, first: int, g: int, r: int, m: int) -> Float[torch.Tensor, "g r h m d"]:
    """Tokens of a group out of `1 h n d`."""
    part = x[0, :, first : first + g * r * m]
    return part.unflatten(1, (g, r, m)).permute(1, 2, 0, 3, 4)
