"""Components of a head deleted or scaled: edits of its own W_O and W_Q, exact, and found in folded coordinates.

With OV = sum s_i u_i v_i^T, W_O (I + (c - 1) v_i v_i^T) scales component i by c and leaves the others alone. So does
(I + (c - 1) u_i u_i^T) W_Q for QK. Both belong to one query head; what is shared by a KV group is not touched.
Constants stay: of what a head writes the part that its value bias makes, of its queries their bias, those of the folded
norm included.

Components are those of folded weights, edits are of the raw ones. The gain of a norm behind attention is divided out of
what an edit writes, that of a norm of queries on both sides; a norm before the head stands on the other side of an edit
of W_Q, W_Q' (I + a b) with W_Q' a = u_i, and is in its way nowhere. What a norm behind an edit divides by still belongs
to the token and changes with the edit: with norms of queries, what is left of the scores is rescaled, and behind
attention, what the layer writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float, Int

from interp.errors import EngineError, UsageError
from interp.intervene.edit import WeightEdit
from interp.intervene.query import QueryEdit
from interp.locate.channels.composition import rotates
from interp.locate.channels.factors import Factors
from interp.locate.channels.weights import Weights
from interp.models.sites import Head


def ov_edit(weights: Weights, head: Head, scales: Mapping[int, float]) -> WeightEdit:
    """Scale OV components of a head.

    Args:
        weights: of the model; components are of these, folded or not.
        head: the query head.
        scales: factor of each component by its number, strongest first; 0 deletes it.

    Raises:
        UsageError: no such head or component, or one without weight.
        EngineError: a gain behind attention is zero, so that the edit cannot be mapped to the raw weights.

    Example:
        with model.apply(ov_edit(Weights(model), Head(8, 10), {1: 0.0})): ...
    """
    subject, h = weights.subject, head.head
    subject.check(head)
    factors = Factors(weights.layer(head.layer))
    numbers, change = _chosen(scales, factors.ov.s[h], head)
    write = factors.ov.write[h][numbers]
    a = (factors.heads.o[h] @ write.mT) * change
    gain = weights.gain_behind(head.layer) if weights.fold else None
    b = write if gain is None else write / _divisor(gain, head, "behind attention")
    constant = factors.heads.b_v[subject.kv_head(h)]
    shift = -(constant @ a) @ b
    return WeightEdit.of_head(subject, head, a, b, shift if bool(constant.abs().max() > 0) else None)


def qk_edit(
    weights: Weights,
    head: Head,
    scales: Mapping[int, float],
    *,
    score: Literal["full", "side"] | None = None,
) -> QueryEdit:
    """Scale QK components of a head on the side of its queries, which holds at every offset of positions.

    Args:
        weights: of the model; components are of these, folded or not.
        head: the query head.
        scales: factor of each component by its number, strongest first; 0 deletes it.
        score: components of QK (`full`) or of W_Q alone (`side`); default as in `component_scores`.

    Raises:
        UsageError: no such head or component, or one without weight.
        EngineError: queries are normed over all heads at once, so that an edit of one would rescale the others; or a
            gain of that norm is zero.
    """
    subject, h = weights.subject, head.head
    subject.check(head)
    gain = weights.gain_of_heads(head.layer, "q_norm")
    if gain is not None and len(gain) > 1:
        raise EngineError(
            f"{head}: queries of {subject.name} ({subject.family.name}) are normed over all heads at once, so an edit "
            "of one head's would rescale all others'; edit what it writes (ov_edit)"
        )
    factors = Factors(weights.layer(head.layer))
    q = factors.heads.q[h]
    if (score or ("side" if rotates(subject) else "full")) == "full":
        s, read = factors.qk.s[h], factors.qk.read[h]
    else:
        u, s, _ = torch.linalg.svd(q, full_matrices=False)
        read = u.mT
    numbers, change = _chosen(scales, s, head)
    read = read[numbers]
    # By the SVD: solvers that take full rank for granted, or pivot, fail silently on heads of lower rank.
    a = (torch.linalg.pinv(q) @ read.mT) * change
    b = read @ q
    constant = factors.heads.b_q[h]
    if gain is not None and weights.fold:
        own = _divisor(gain[0], head, "of queries")
        a, b, constant = own[:, None] * a, b / own, constant / own
    return QueryEdit(head, a, b, constant)


def _chosen(
    scales: Mapping[int, float], s: Float[torch.Tensor, " k"], head: Head
) -> tuple[Int[torch.Tensor, " r"], Float[torch.Tensor, " r"]]:
    """Numbers of the components, and by how much each changes."""
    numbers = sorted(scales)
    kept = s > len(s) * 10 * torch.finfo(s.dtype).eps * s[0]
    if not numbers or not all(0 <= i < len(s) and bool(kept[i]) for i in numbers):
        raise UsageError(
            f"components {numbers} of {head}: those with weight are numbered 0 to {int(kept.sum()) - 1}"
        )
    return torch.tensor(numbers), s.new_tensor([scales[i] - 1 for i in numbers])


def _divisor(gain: Float[torch.Tensor, " d"], head: Head, where: str) -> Float[torch.Tensor, " d"]:
    if bool((gain.abs() < 1e-6 * gain.abs().max()).any()):
        raise EngineError(
            f"{head}: the norm {where} has gains of zero, so an edit cannot be mapped behind it"
        )
    return gain
