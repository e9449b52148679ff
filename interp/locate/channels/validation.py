"""Is a channel used? How its reader's attention changes without it, beside cuts of other components of its writers.

Weights say that a reader would see what the components write, not that they ever write it, nor that the rest of the
query leaves it standing. So the components are deleted from what their heads write, or written more than once, and the
attention of the reader is compared at the last token of each prompt: how much each role's tokens gain or lose, and how
far the whole row moves (total variation). As many other components of the same heads, drawn at random and scaled
alike, say what such an edit does by itself.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from interp.errors import UsageError
from interp.intervene.base import Intervention
from interp.locate.channels.channels import Channel
from interp.locate.channels.factors import Factors
from interp.locate.channels.parts import writers
from interp.locate.channels.weights import Weights
from interp.measure.stats import cluster_se, fdr, sign_flip
from interp.models.batch import plan, role_tokens
from interp.models.engines.base import Rows
from interp.models.sites import Head
from interp.tasks.base import Example, stable_seed

TOKENS = 2048
"""Tokens of a batch."""
Components = tuple[tuple[Head, int], ...]
Progress = Callable[[int, int, str], None]


def attention_change(
    weights: Weights, channel: Channel, examples: Sequence[Example], factor: float = 0.0
) -> pd.DataFrame:
    """How the attention of a channel's reader changes when the channel is cut or scaled, at each prompt's last token.

    Args:
        weights: those that the channel was found in.
        channel: through queries or keys.
        examples: prompts.
        factor: of what is written along the channel: 0 removes it, 2 adds it once more, any number between or beyond.

    Returns:
        one row an example, reading head and span role: example, reader, role (`` for the whole row), before and after
        (attention on the role's tokens), change, moved (total variation distance of the two rows).

    Raises:
        UsageError: a channel through values, which attention does not show, or a factor that is no number.
    """
    before, (after,) = _rows(weights, channel, [channel.cut(weights, factor)], examples)
    return _changes(channel.readers(weights), examples, before, after)


def validate(
    weights: Weights,
    channels: Sequence[Channel],
    examples: Sequence[Example],
    *,
    factors: Sequence[float] = (0.0,),
    draws: int = 10,
    seed: int = 0,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Attention changes of channels that are cut or scaled, paired with those of control edits.

    Args:
        channels: through queries or keys; those through values are left out, which attention does not show.
        factors: of what is written along a channel, and along its controls: 0 removes it, 2 adds it once more.
        draws: sets of as many other components of the same heads; where fewer exist all of them are taken.
        progress: told about channels done.

    Returns:
        one row a channel, factor, reading head and span role (`` for the whole row):
        channel, factor, reader, mode, role, before, change and its se (clusters), control (mean change over draws),
        moved, control_moved, p (examples' differences from their mean control flipped in sign, cluster by cluster; of
        `moved` for the whole row, of `change` for a role), q (Benjamini and Hochberg over all rows), beyond (draws that
        change it as far), n_draws, n_distinct, share and control_share (of their heads' squared length that the
        components hold), n, n_clusters.

    Raises:
        UsageError: no examples, no channel through queries or keys, no factor, or one that is no number.
    """
    shown = [c for c in channels if c.mode != "V"]
    if not shown or not examples or draws < 1 or not factors:
        raise UsageError(
            f"{len(shown)} channels through queries or keys, {len(examples)} examples, {draws} draws, "
            f"{len(factors)} factors: validation takes at least one of each"
        )
    found = []
    for done, channel in enumerate(shown):
        found.append(_validated(weights, channel, examples, factors, draws, seed))
        if progress:
            progress(done + 1, len(shown), "channels")
    return fdr(pd.concat(found, ignore_index=True))


def others(weights: Weights, channel: Channel, draws: int, seed: int) -> tuple[list[Components], int]:
    """As many other components of each writing head, drawn at random, and how many such sets there are."""
    own: dict[Head, set[int]] = {}
    for head, number in channel.components:
        own.setdefault(head, set()).add(number)
    pools = []
    for head, taken in own.items():
        parts = writers(Factors(weights.layer(head.layer)))
        numbers = set(parts.number[parts.unit == head.head].tolist()) - taken
        pools.append((head, sorted(numbers), len(taken)))
    distinct = math.prod(math.comb(len(numbers), k) for _, numbers, k in pools)
    if distinct <= draws:
        each = [
            [[(head, i) for i in c] for c in itertools.combinations(numbers, k)] for head, numbers, k in pools
        ]
        return [tuple(itertools.chain(*parts)) for parts in itertools.product(*each)], distinct
    rng = np.random.default_rng(stable_seed("channel controls", repr(channel), seed))
    sets: dict[Components, None] = {}
    while len(sets) < draws:
        sets[
            tuple(
                (head, int(i))
                for head, numbers, k in pools
                for i in sorted(rng.choice(numbers, k, replace=False).tolist())
            )
        ] = None
    return list(sets), distinct


def _validated(
    weights: Weights,
    channel: Channel,
    examples: Sequence[Example],
    factors: Sequence[float],
    draws: int,
    seed: int,
) -> pd.DataFrame:
    controls, distinct = others(weights, channel, draws, seed)
    sets = [channel.components, *controls]
    edits = [replace(channel, components=c).cut(weights, factor) for factor in factors for c in sets]
    before, after = _rows(weights, channel, edits, examples)
    heads = channel.readers(weights)
    share, *shares = _shares(weights, sets)
    clusters = np.array([e.cluster or e.key() for e in examples])
    found = []
    for i, factor in enumerate(factors):
        mine = after[i * len(sets) : (i + 1) * len(sets)]
        own, *drawn = (_changes(heads, examples, before, rows) for rows in mine)
        beside = _beside(own, drawn, clusters, seed)
        beside.insert(0, "factor", factor)
        found.append(beside)
    out = pd.concat(found, ignore_index=True)
    out.insert(0, "channel", repr(channel))
    out.insert(3, "mode", channel.mode)
    return out.assign(
        n_draws=len(controls),
        n_distinct=distinct,
        share=share,
        control_share=float(np.mean(shares)) if shares else np.nan,
    )


def _beside(
    own: pd.DataFrame, drawn: Sequence[pd.DataFrame], clusters: np.ndarray, seed: int
) -> pd.DataFrame:
    """Changes by an edit against those by its controls, one row a reading head and role."""
    found = []
    for (reader, role), mine in own.groupby(["reader", "role"], sort=False):
        stat = "change" if role else "moved"
        other = (
            np.stack([d.loc[mine.index, stat].to_numpy() for d in drawn])
            if drawn
            else np.zeros((0, len(mine)))
        )
        moved = [float(d.loc[mine.index, "moved"].mean()) for d in drawn]
        value, names = mine[stat].to_numpy(), clusters[mine["example"]]
        nearer = np.abs(other.mean(1)) < abs(value.mean())
        found.append(
            {
                "reader": reader,
                "role": role,
                "before": mine["before"].mean(),
                "change": mine["change"].mean(),
                "se": float(cluster_se(mine["change"].to_numpy(), names)),
                "control": float(np.mean([d.loc[mine.index, "change"].mean() for d in drawn]))
                if drawn
                else np.nan,
                "moved": mine["moved"].mean(),
                "control_moved": float(np.mean(moved)) if drawn else np.nan,
                "p": sign_flip(value - other.mean(0), names, seed=seed) if drawn else np.nan,
                "beyond": int((~nearer).sum()),
                "n": len(mine),
                "n_clusters": len(set(names)),
            }
        )
    return pd.DataFrame(found)


def _shares(weights: Weights, sets: Sequence[Components]) -> list[float]:
    """Of each set, the squared length of a head that its components hold; mean over heads."""
    square = {
        layer: Factors(weights.layer(layer)).ov.s.double().square()
        for layer in {head.layer for head, _ in sets[0]}
    }
    found = []
    for components in sets:
        held: dict[Head, float] = {}
        for head, number in components:
            own = square[head.layer][head.head]
            held[head] = held.get(head, 0.0) + float(own[number] / own.sum())
        found.append(float(np.mean(list(held.values()))))
    return found


def _rows(
    weights: Weights, channel: Channel, cuts: Sequence[Intervention], examples: Sequence[Example]
) -> tuple[list[Float[torch.Tensor, "h _"]], list[list[Float[torch.Tensor, "h _"]]]]:
    """Attention of the reading heads at the last token of each prompt: intact, and under each cut.

    Only the layers from the first writer up to the reader are run again for a cut.
    """
    if channel.mode == "V":
        raise UsageError(
            f"{channel}: attention does not show what is read through values; measure the output"
        )
    subject = weights.subject
    heads = channel.readers(weights)
    layer, first = heads[0].layer, min(head.layer for head, _ in channel.components)
    prompts = [replace(e, answer_ids=()) for e in examples]
    before: list[torch.Tensor] = [torch.empty(0)] * len(examples)
    after: list[list[torch.Tensor]] = [list(before) for _ in cuts]
    for group in plan([len(e.ids) for e in examples], TOKENS):
        batch = subject.batch([prompts[i] for i in group], forced=False)
        start = subject.checkpoint(batch, first)
        rows = Rows(torch.full((len(group), 1), batch.width - 1), heads={layer: [h.head for h in heads]})
        for out, edits in zip((before, *after), ((), *((cut,) for cut in cuts)), strict=True):
            with subject.apply(*edits):
                seen = subject.run(batch, rows=rows, start=start, stop=layer + 1).rows[layer]
            for n, i in enumerate(group):
                out[i] = seen[n, :, 0, int(batch.pad[n]) :].double().cpu()
    return before, after


def _changes(
    heads: Sequence[Head],
    examples: Sequence[Example],
    before: Sequence[Float[torch.Tensor, "h _"]],
    after: Sequence[Float[torch.Tensor, "h _"]],
) -> pd.DataFrame:
    found = []
    for n, example in enumerate(examples):
        roles = {"": list(range(len(example.ids)))}
        roles |= {role: role_tokens(example, role) for role in sorted({span.role for span in example.spans})}
        for k, head in enumerate(heads):
            a, b = before[n][k], after[n][k]
            moved = float((a - b).abs().sum() / 2)
            for role, tokens in roles.items():
                low, high = float(a[tokens].sum()), float(b[tokens].sum())
                found.append(
                    {"example": n, "reader": repr(head), "role": role, "before": low, "after": high}
                    | {"change": high - low, "moved": moved}
                )
    return pd.DataFrame(found)
