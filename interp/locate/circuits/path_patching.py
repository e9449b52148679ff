"""Path patching: how much of an answer goes from each component straight to chosen readers.

A path's effect is the share of the way from the clean to the corrupt metric that the model goes when that path alone
carries the corrupt value: 0 leaves the answer as it was, 1 costs as much as the corrupt prompt, a negative effect means
that the sender works against the answer. Exact, after Wang et al. 2022 (arXiv 2211.00593); the sign is that of Merullo
et al. 2024 (arXiv 2310.08744). See `interp.trace.paths` for the rule and for how all senders run at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float

from interp.errors import NoAcceptedExample, UsageError
from interp.intervene.base import Scope
from interp.locate.circuits.graph import KV, Reader, reader
from interp.locate.circuits.streams import Pairs, questions
from interp.measure.stats import LEVEL, cluster_se, cluster_sums, sign_flip
from interp.models.sites import MLP, Component, Head, Site, components
from interp.models.subject import CausalLM
from interp.tasks.base import Example, Task, stable_seed
from interp.trace.paths import PathSpent, paths
from interp.trace.streams import reaches

TOKENS = {"cpu": 2048}
"""Padded tokens of a batch, by type of device; elsewhere 16384."""

DRAWS = 2000
"""Resamples of clusters for an interval."""

Senders = Literal["heads", "mlps", "all"] | str | Component | Iterable[str | Component]
Receivers = str | Reader | Iterable[str | Reader]
Progress = Callable[[int, int, str], None]


def path_patch(
    subject: CausalLM,
    task: Task | Sequence[Example],
    receivers: Receivers,
    *,
    senders: Senders = "heads",
    corruption: str | None = None,
    scope: Scope | None = None,
    freeze_mlps: bool = False,
    metric: str = "logit_diff",
    n: int | None = None,
    tokens: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Effect of the path from each sender to the receivers, with intervals over clusters.

    Args:
        receivers: readers that are patched together: `logits`, or any of `L9H6.q`, `L5KV1.k`, `L5KV1.v`, `M7`. Keys and
            values belong to KV groups; `L5H3.k` means those of the head's group.
        senders: `heads`, `mlps` or `all` that lie before a receiver, or components, each of which must.
        corruption: which corrupt twin; default the first that all examples have.
        scope: tokens at which the path is patched; default where the answer is predicted for queries and logits, and
            all tokens for keys, values and MLPs.
        freeze_mlps: count the direct edge alone; by default a path may pass MLPs, as in the original.
        metric: of `interp.measure.metrics`.
        n: use at most so many examples.
        tokens: padded tokens of a batch at most.

    Returns:
        one row a sender, see `path_effects`. `attrs` holds `token_layers` (tokens times blocks that were run) and
        `naive_token_layers` (of a loop of full passes).

    Raises:
        UsageError: a sender or receiver does not exist or no sender lies before a receiver, an example lacks the
            corruption or the metric, or interventions are applied.

    Example:
        movers = path_patch(model, interp.task("ioi", n=48), "logits", corruption="abc").nlargest(5, "effect")
    """
    values = path_values(
        subject,
        task,
        receivers,
        senders=senders,
        corruption=corruption,
        scope=scope,
        freeze_mlps=freeze_mlps,
        metric=metric,
        n=n,
        tokens=tokens,
        progress=progress,
    )
    return path_effects(values, seed=seed)


def path_values(
    subject: CausalLM,
    task: Task | Sequence[Example],
    receivers: Receivers,
    *,
    senders: Senders = "heads",
    corruption: str | None = None,
    scope: Scope | None = None,
    freeze_mlps: bool = False,
    metric: str = "logit_diff",
    n: int | None = None,
    tokens: int | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """The metric of every example with each path patched; arguments and errors are those of `path_patch`.

    Returns:
        one row a sender and example: sender, layer, head (-1 for an MLP), receivers, example (its number), cluster,
        value, clean, corrupt.
    """
    examples, twin = questions(subject, task, corruption)
    examples = examples[:n]
    if not examples:
        raise NoAcceptedExample(f"n={n}: there is no example to patch")
    read = readers_of(receivers, subject)
    sites = [_site(r) for r in read]
    every = senders_of(senders, sites, subject)
    spent = PathSpent()
    values = np.full((len(every), len(examples)), np.nan)
    ends = np.full((2, len(examples)), np.nan)
    budget = tokens or TOKENS.get(subject.device.type, 16384)
    done = 0
    for group, pairs in Pairs.of(subject, examples, twin, budget):
        options = {"scope": scope, "freeze_mlps": freeze_mlps, "spent": spent}
        run = paths(subject, pairs.clean, pairs.corrupt, every, sites, **options)  # type: ignore[arg-type]

        ends[0, group] = pairs.scores(run.walk.clean_logits, metric)
        ends[1, group] = pairs.scores(run.walk.corrupt_logits, metric)
        for number, logits in run:
            values[number, group] = pairs.scores(logits, metric)
            if progress:
                part = done + len(group) * int((~np.isnan(values[:, group[0]])).sum()) // len(every)
                progress(part, len(examples), "examples")
        done += len(group)
    out = _long(every, read, examples, values, ends)
    out.attrs.update(token_layers=spent.token_layers, naive_token_layers=spent.naive, corruption=twin)
    return out


def path_effects(values: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Effects of the paths of a frame of `path_values`, averaged over its examples.

    Returns:
        one row a sender (and set of receivers): sender, layer, head, receivers, value, clean, corrupt, effect (ratio of
        means, (value - clean) / (corrupt - clean); NaN where clean and corrupt are alike), se (robust to clusters),
        ci_lo, ci_hi (95 %, whole clusters resampled; NaN for fewer than two), p (of no change of the metric: signs
        flipped cluster by cluster, two-sided), n, n_clusters.
    """
    rows = []
    for (receivers, sender), mine in values.groupby(["receivers", "sender"], sort=False):
        change = (mine["value"] - mine["clean"]).to_numpy()
        gap = (mine["corrupt"] - mine["clean"]).to_numpy()
        clusters = mine["cluster"].to_numpy()
        mean = float(gap.mean())
        effect = float(change.mean()) / mean if abs(mean) > 1e-9 else np.nan
        # The linearised ratio: what each example adds to it.
        se = float(cluster_se((change - effect * gap) / mean, clusters)) if abs(mean) > 1e-9 else np.nan
        lo, hi = ratio_ci(change, gap, clusters, seed)
        rows.append(
            {
                "sender": sender,
                "layer": int(mine["layer"].iloc[0]),
                "head": int(mine["head"].iloc[0]),
                "receivers": receivers,
                "value": float(mine["value"].mean()),
                "clean": float(mine["clean"].mean()),
                "corrupt": float(mine["corrupt"].mean()),
                "effect": effect,
                "se": se,
                "ci_lo": lo,
                "ci_hi": hi,
                "p": sign_flip(change, clusters, seed=seed),
                "n": len(mine),
                "n_clusters": len(np.unique(clusters)),
            }
        )
    out = pd.DataFrame(rows)
    out.attrs.update(values.attrs)
    return out


def readers_of(items: Receivers, subject: CausalLM) -> tuple[Reader, ...]:
    """One or several readers (or their names), each once; keys and values of a head become those of its KV group.

    Raises:
        UsageError: one does not exist in the model.
    """
    if isinstance(items, str):
        items = items.replace(",", " ").split()
    elif isinstance(items, Reader):
        items = [items]
    found = tuple(dict.fromkeys(_reader(i, subject) for i in items))
    for r in found:
        subject.check(_site(r))
    return found


def _reader(item: str | Reader, subject: CausalLM) -> Reader:
    if isinstance(item, str):
        name, _, side = item.partition(".")
        if "H" not in name or side not in ("k", "v"):
            return reader(item)
        (head,) = components(name)
        item = Reader(head, side)  # type: ignore[arg-type]
    if isinstance(item.node, Head) and item.input in ("k", "v"):
        subject.check(item.node)
        return Reader(KV(item.node.layer, subject.kv_head(item.node.head)), item.input)
    return item


def _site(item: Reader) -> Site:
    match item.node:
        case Head(layer, head):
            return Site("q", layer, head)
        case KV(layer, group):
            return Site(item.input, layer, group)
        case MLP(layer):
            return Site("mlp_out", layer)
    return Site("logits")


def senders_of(items: Senders, receivers: Sequence[Site], subject: CausalLM) -> list[Component]:
    """The senders that are meant; of a whole kind those that lie before a receiver.

    Raises:
        UsageError: there is none.
    """
    if isinstance(items, str) and items in ("heads", "mlps", "all"):
        heads = subject.heads() if items != "mlps" else []
        mlps = [MLP(i) for i in range(subject.n_layers)] if items != "heads" else []
        every: list[Component] = sorted([*heads, *mlps], key=lambda c: (c.layer, isinstance(c, MLP)))
        found = [c for c in every if any(reaches(subject, c, r) for r in receivers)]
    else:
        found = list(components(items))
    if not found:
        raise UsageError(f"no sender lies before {', '.join(map(repr, receivers))}")
    return found


def _long(
    senders: Sequence[Component],
    receivers: Sequence[Reader],
    examples: Sequence[Example],
    values: Float[np.ndarray, "s n"],
    ends: Float[np.ndarray, "2 n"],
) -> pd.DataFrame:
    n = len(examples)
    return pd.DataFrame(
        {
            "sender": np.repeat([repr(s) for s in senders], n),
            "layer": np.repeat([s.layer for s in senders], n),
            "head": np.repeat([s.head if isinstance(s, Head) else -1 for s in senders], n),
            "receivers": " ".join(map(repr, receivers)),
            "example": np.tile(np.arange(n), len(senders)),
            "cluster": np.tile([e.cluster or e.key() for e in examples], len(senders)),
            "value": values.ravel(),
            "clean": np.tile(ends[0], len(senders)),
            "corrupt": np.tile(ends[1], len(senders)),
        }
    )


def ratio_ci(
    change: np.ndarray, gap: np.ndarray, clusters: Sequence[str] | np.ndarray, seed: int
) -> tuple[float, float]:
    """Percentile interval (95 %) of a ratio of means when whole clusters are resampled; NaN for fewer than two."""
    tops, _ = cluster_sums(change, clusters)
    bottoms, _ = cluster_sums(gap, clusters)
    g = len(tops)
    if g < 2:
        return np.nan, np.nan
    # All senders are resampled alike, so that their intervals can be compared.
    drawn = np.random.default_rng(stable_seed("paths", seed)).multinomial(g, np.full(g, 1 / g), size=DRAWS)
    below = drawn @ bottoms
    ratio = (drawn @ tops) / np.where(np.abs(below) > 1e-9, below, np.nan)
    tail = 100 * (1 - LEVEL) / 2
    lo, hi = np.nanpercentile(ratio, [tail, 100 - tail])
    return float(lo), float(hi)
