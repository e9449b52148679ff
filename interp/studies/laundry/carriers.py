"""Channels from heads that inhibit to heads that look at the list: found in the weights, judged by cutting them.

Only queries matter at the last token, so a channel is what components of inhibiting heads write and the query side of
a later head reads. All pairs are tested exactly (`null.reading_p`), and the q-values are over all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from scipy import stats

from interp.intervene.subspace import Subspace
from interp.locate.channels.channels import Channel
from interp.locate.channels.composition import rotates
from interp.locate.channels.factors import Factors
from interp.locate.channels.null import benjamini_hochberg, reading_p
from interp.locate.channels.validation import attention_change
from interp.locate.channels.weights import Weights
from interp.models.sites import Head, Site
from interp.studies.laundry.edits import Part, Scaled
from interp.tasks.base import Example


def readings(weights: Weights, writers: Sequence[Head], readers: Sequence[Head]) -> pd.DataFrame:
    """How much of each reader's queries lies along each component of each earlier writer.

    Returns:
        best first: writer, component, reader, writer_layer, reader_layer, value (||v^T W_Q|| / ||W_Q||; of QK where
            positions rotate nothing), p, q.
    """
    full = not rotates(weights.subject)
    factors = {i: Factors(weights.layer(i)) for i in sorted({h.layer for h in (*writers, *readers)})}
    out = []
    for reader in readers:
        own = factors[reader.layer]
        if full:
            s, read = own.qk.s[reader.head], own.qk.read[reader.head]
        else:
            u, s, _ = torch.linalg.svd(own.side("Q")[reader.head], full_matrices=False)
            read = u.mT
        share = (s.double().square() / s.double().square().sum()).cpu()
        for writer in writers:
            if writer.layer >= reader.layer:
                continue
            write = factors[writer.layer].ov.write[writer.head]
            square = (write @ read.mT).double().square().cpu() @ share
            p = reading_p(square.numpy(), share.expand(len(square), -1).numpy(), write.shape[1])
            out.append(
                pd.DataFrame(
                    {
                        "writer": repr(writer),
                        "component": range(len(square)),
                        "reader": repr(reader),
                        "writer_layer": writer.layer,
                        "reader_layer": reader.layer,
                        "value": square.sqrt().numpy(),
                        "p": p,
                    }
                )
            )
    if not out:
        return pd.DataFrame(
            columns=["writer", "component", "reader", "writer_layer", "reader_layer", "value", "p", "q"]
        )
    frame = pd.concat(out, ignore_index=True)
    order = frame.sort_values(["p", "value"], ascending=[True, False], kind="stable", ignore_index=True)
    order["q"] = benjamini_hochberg(order["p"].to_numpy(), len(order))
    return order


def carriers(
    weights: Weights,
    found: pd.DataFrame,
    heads: dict[str, Head],
    *,
    level: float,
    rank: int,
) -> list[Channel]:
    """Channels of all readers: their outlying components, one to `rank` of them; each set of components once.

    Args:
        found: of `readings`.
        heads: writers by name.
        level: components up to this q-value are outliers.
    """
    out: list[Channel] = []
    seen: set[frozenset[tuple[Head, int]]] = set()
    for reader, rows in found[found["q"] <= level].groupby("reader", sort=False):
        for r in range(1, min(rank, len(rows)) + 1):
            own = rows.head(r)
            parts = tuple((heads[w], int(i)) for w, i in zip(own["writer"], own["component"], strict=True))
            if frozenset(parts) in seen:
                continue
            seen.add(frozenset(parts))
            vectors = [Factors(weights.layer(h.layer)).ov.write[h.head][i].float().cpu() for h, i in parts]
            site = Site("resid_pre", int(own["reader_layer"].iloc[0]))
            out.append(Channel(str(reader), "Q", parts, Subspace.spanned(site, torch.stack(vectors)), own))
    return sorted(out, key=lambda c: (c.scores["p"].iloc[-1], -c.scores["value"].iloc[-1]))


def parts_of(channel: Channel) -> tuple[Part, ...]:
    """The components of a channel, head by head."""
    by_head: dict[Head, list[int]] = {}
    for head, number in channel.components:
        by_head.setdefault(head, []).append(number)
    return tuple(Part(head, tuple(sorted(numbers))) for head, numbers in sorted(by_head.items()))


def cut_of(channel: Channel) -> Scaled:
    """A channel deleted at the last token."""
    return Scaled("cut", parts_of(channel), 0.0)


def seen_by_reader(weights: Weights, channel: Channel, examples: Sequence[Example]) -> dict[str, float]:
    """What a channel's reader looks at when the channel is cut in the weights: change of attention, by role."""
    frame = attention_change(weights, channel, examples)
    change = frame.groupby("role")["change"].mean()
    return {
        f"attention_{role}": float(change.get(role, np.nan))
        for role in ("value", "distractor_value", "again")
    }


def agreement(found: pd.DataFrame, components: pd.DataFrame) -> dict[str, float]:
    """Whether what weights say of components is what cutting them does.

    Returns:
        spearman and p over all components of the heads: the largest share of a later reader's queries along a
            component, against how much the answer's loss changes when it is cut, either way.
    """
    best = found.groupby(["writer", "component"])["value"].max()
    keyed = components.set_index(["head", "number"])
    value = best.reindex(keyed.index)
    ok = value.notna().to_numpy()
    if ok.sum() < 3:
        return {"spearman": float("nan"), "p": float("nan"), "n": int(ok.sum())}
    result = stats.spearmanr(value.to_numpy()[ok], keyed["nll"].abs().to_numpy()[ok])
    return {"spearman": float(result.statistic), "p": float(result.pvalue), "n": int(ok.sum())}
