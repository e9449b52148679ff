"""Attention set by hand: rows of chosen heads look at given tokens, whatever their queries ask for.

This is the repair of heads in the circuit-reuse paper (Merullo et al. 2024, arXiv 2310.08744): heads that do a job in
one task and idle in another are made to attend, from the last token, to what the job needs. What they write follows
from their own values, and everything after them is computed anew.

The edit goes through the kernel: a query of zero scores every key alike, and what is added to the mask is then the
logarithm of the weights. Keys that a row cannot see (later ones, those behind a sliding window, padding) stay unseen,
the rest of the row is renormalised, and a row that sees none of the tokens keeps the attention it has. The mask of a
layer that is edited is made for each head: heads x queries x keys numbers for the queries that run.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int

from interp.errors import UsageError
from interp.intervene.base import Atom, Scope, scope_name
from interp.intervene.knockout import check_kernel, mask_of, visible_in
from interp.intervene.where import Units
from interp.models.batch import Batch
from interp.models.engines.attention import AttentionCall
from interp.models.engines.base import Frame, Tap
from interp.models.sites import Component, Head, Site, components
from interp.models.subject import CausalLM

How = Literal["uniform", "keep", "scale", "weights"]
HOWS: tuple[str, ...] = get_args(How)


@dataclass(frozen=True)
class SetAttention(Atom):
    """Heads whose attention is set, in which rows, onto which tokens; see `set_attention`.

    Attributes:
        heads: query heads; each once.
        to: span roles, token positions, `all` or `answer`.
        at: the rows: `all`, `answer`, span roles or token positions.
        how: `uniform`, `keep`, `scale` or `weights`.
        factor: of `scale`.
        weights: of `weights`, one for each name in `to`.
    """

    heads: tuple[Head, ...]
    to: Scope
    at: Scope = "answer"
    how: How = "uniform"
    factor: float = 1.0
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if other := [h for h in self.heads if not isinstance(h, Head)]:
            raise UsageError(f"set_attention: {other[0]!r} is no head; only heads attend")
        if self.how not in HOWS:
            raise UsageError(f"set_attention: how={self.how!r}; write uniform, keep or scale")
        if not self.to:
            raise UsageError("set_attention: to is empty; name a span role or a token position")
        if not (self.factor > 0 and math.isfinite(self.factor)):
            raise UsageError(
                f"set_attention: factor={self.factor}; take a number above 0, or ablate(..., 'knockout') for none"
            )
        if self.how == "scale" and self.factor == 1:
            raise UsageError("set_attention: how='scale' needs a factor other than 1")
        if self.how != "scale" and self.factor != 1:
            raise UsageError(f"set_attention: how={self.how!r} takes no factor; write how='scale'")
        if bool(self.weights) != (self.how == "weights"):
            raise UsageError("set_attention: give weights as a mapping, to={'value': 0.7, 'key': 0.3}")
        if bad := [w for w in self.weights if not (w > 0 and math.isfinite(w))]:
            raise UsageError(f"set_attention: a weight is {bad[0]}; take numbers above 0")

    @property
    def components(self) -> tuple[Head, ...]:
        """The heads, as cuts call them."""
        return self.heads

    def with_components(self, items: Iterable[Component]) -> SetAttention:
        """The same edit of other heads: a control."""
        heads: tuple[Any, ...] = tuple(items)
        return replace(self, heads=heads)

    @property
    def scope(self) -> Scope:
        """The rows, as cuts call them."""
        return self.at

    @property
    def mode(self) -> How:
        """How the attention is set, as cuts call it."""
        return self.how

    @property
    def reference(self) -> None:
        """None: nothing is taken from other data."""
        return None

    @property
    def reference_name(self) -> str:
        """Empty."""
        return ""

    @property
    def keys_name(self) -> str:
        """The tokens, as cuts call them; the factor of `scale` with them."""
        return f"{self.to_name} x{_exactly(self.factor)}" if self.how == "scale" else self.to_name

    @property
    def to_name(self) -> str:
        """Names of the tokens, with their weights where they have some."""
        if not self.weights:
            return scope_name(self.to)
        return "+".join(f"{name}:{_exactly(w)}" for name, w in zip(self.to, self.weights, strict=True))

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "set_attention",
            "components": [repr(h) for h in self.heads],
            "mode": self.how,
            "scope": scope_name(self.at),
            "keys": self.keys_name,
            "reference": self.reference_name,
        }

    def __repr__(self) -> str:
        heads = " ".join(map(repr, self.heads)) or "nothing"
        factor = f", factor={_exactly(self.factor)}" if self.how == "scale" else ""
        return f"set_attention({heads}, to={self.to_name}, at={scope_name(self.at)}, how={self.how}{factor})"

    def group(self) -> tuple[Any, ...]:
        return self.to, self.at, self.how, self.factor, self.weights

    def touches(self, subject: CausalLM, batch: Batch) -> dict[Site, Bool[torch.Tensor, "b t"]]:
        # Rows before the first of the tokens see none of them.
        reached = _weights(self, batch, batch.width).cumsum(1) > 0
        columns = batch.scope_columns(self.at, 0, batch.width) & reached
        return {Site("attention", head.layer): columns for head in self.heads}

    @classmethod
    def lower_group(
        cls,
        subject: CausalLM,
        batch: Batch,
        atoms: Sequence[tuple[int, Any]],
        of: Int[torch.Tensor, " b"],
        n: int,
    ) -> dict[Site, list[Tap]]:
        first: SetAttention = atoms[0][1]
        check_kernel(subject, "set_attention")
        # A head that a condition names twice is scaled twice: what is named again is of the next tap.
        named: Counter[tuple[int, Head]] = Counter()
        members: dict[int, list[torch.Tensor]] = {}
        for number, atom in atoms:
            for head in atom.heads:
                subject.check(head)
                again, every = named[number, head], members.setdefault(head.layer, [])
                named[number, head] += 1
                if again == len(every):
                    every.append(torch.zeros(n, subject.n_heads, dtype=torch.bool, device=batch.ids.device))
                every[again][number, head.head] = True
        return {
            Site("attention", layer): [_Set(first, Units(batch, member, of, first.at)) for member in every]
            for layer, every in members.items()
        }


def _exactly(number: float) -> str:
    """A number in six digits if these are all of it, so that no two have one name."""
    short = f"{number:g}"
    return short if float(short) == number else repr(number)


def _weights(edit: SetAttention, batch: Batch, end: int) -> Float[torch.Tensor, "b s"]:
    """What each of the first `end` columns weighs; a role's weight is spread evenly over its tokens."""
    if not edit.weights:
        return batch.scope_columns(edit.to, 0, end).float()
    out = torch.zeros(len(batch), end, device=batch.ids.device)
    for name, weight in zip(edit.to, edit.weights, strict=True):
        here = batch.scope_columns((name,), 0, end).float()
        out += weight * here / here.sum(1, keepdim=True).clamp(min=1)
    return out


@dataclass(frozen=True)
class _Set:
    """A tap at `attention`."""

    how: SetAttention
    where: Units

    def edit(self, call: AttentionCall, frame: Frame) -> AttentionCall:
        how, device, dtype = self.how, call.q.device, call.q.dtype
        # A cache may have dropped the first keys of a window, so columns are counted from the end.
        weight = self._of(frame)[:, -call.k.shape[2] :].to(device)[:, None, None]
        mask = mask_of(call)
        visible = visible_in(mask)
        aim = visible & (weight > 0)  # b 1|h t s
        rows = self.where.mask(frame).to(device).transpose(1, 2) & aim.any(-1)  # b h t
        nothing = torch.finfo(dtype).min
        plain = torch.zeros((), dtype=dtype, device=device)
        given = torch.where(visible, plain, nothing) if mask.dtype == torch.bool else mask
        if how.how == "scale":
            new = torch.where(aim, given + math.log(how.factor), given)
        else:
            score = given if how.how == "keep" else weight.log().to(dtype)
            new = torch.where(aim, score, nothing)
        q = call.q if how.how in ("keep", "scale") else call.q.masked_fill(rows[..., None], 0.0)
        return call.with_(q=q, mask=torch.where(rows[..., None], new, given))

    def _of(self, frame: Frame) -> Float[torch.Tensor, "b s"]:
        """Weights of the columns up to the end of a pass; found once a pass."""
        key = "attention set to", self.how.to, self.how.weights, frame.past, frame.width
        if key not in frame.memo:
            frame.memo[key] = _weights(self.how, self.where.batch, frame.past + frame.width)
        found: torch.Tensor = frame.memo[key]
        return found


def set_attention(
    heads: str | Component | Iterable[str | Component],
    to: str | int | Iterable[str | int] | Mapping[str | int, float],
    at: str | int | Iterable[str | int] = "answer",
    how: Literal["uniform", "keep", "scale"] = "uniform",
    factor: float = 1.0,
) -> SetAttention:
    """Set the attention of heads onto given tokens; nothing runs until it is applied or measured.

    Args:
        heads: query heads or their names.
        to: the tokens: span roles (`value`, `distractor_value.1`), positions, or a mapping of these to weights. A
            role's weight is spread evenly over its tokens, and weights are normalised over what a row sees of them.
        at: the rows whose attention is set: `answer`, `all`, or span roles and token positions.
        how: `uniform` over the tokens; `keep` the weights that the row has on them, the rest removed; `scale` those
            weights by `factor` and leave the rest. All are renormalised.
        factor: of `scale`: above 1 more attention, below 1 less.

    Raises:
        UsageError: a component is no head; no tokens; weights or factors that are not positive.

    >>> set_attention("L9H6 L10H0", to="distractor_value")
    set_attention(L9H6 L10H0, to=distractor_value, at=answer, how=uniform)
    >>> set_attention("L9H6", to={"value": 3, 0: 1}, at="end")
    set_attention(L9H6, to=value:3+0:1, at=end, how=weights)
    """
    chosen: tuple[Any, ...] = components(heads)
    if isinstance(to, Mapping):
        if how != "uniform":
            raise UsageError(f"set_attention: weights say all, how={how!r} goes with roles or positions")
        weights = tuple(map(float, to.values()))
        return SetAttention(chosen, tuple(to), _scope(at), "weights", factor, weights)
    return SetAttention(chosen, _scope(to), _scope(at), how, factor)


def _scope(given: str | int | Iterable[str | int]) -> Scope:
    return given if isinstance(given, str) else (given,) if isinstance(given, int) else tuple(given)


__all__ = ["SetAttention", "set_attention"]
