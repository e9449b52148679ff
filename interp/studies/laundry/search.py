"""Edits that could help: which there are, which is best on train, with which size on validation, and their controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from interp.locate.channels.channels import Channel
from interp.models.sites import Head, Site
from interp.models.subject import CausalLM
from interp.studies.laundry.carriers import parts_of
from interp.studies.laundry.edits import (
    Directions,
    Edit,
    Moved,
    Part,
    Pushed,
    Scaled,
    other_heads,
    random_components,
)
from interp.studies.laundry.screen import written
from interp.studies.laundry.spec import LaundrySpec
from interp.studies.laundry.tables import by_condition
from interp.tasks.base import Example

UNCHANGED = 0.02
"""A learned factor no further than this from 1 is left out."""
LEARNED = (0.5, 1.0, 1.5)
"""Shares of what was learned that are tried."""


def candidates(
    subject: CausalLM,
    spec: LaundrySpec,
    heads: Sequence[Head],
    components: pd.DataFrame,
    found: Sequence[Channel],
    learned: Mapping[str, Float[np.ndarray, "layers heads"]],
    examples: Sequence[Example],
) -> list[Edit]:
    """Edits to try, each with a size: of channels, of components, of whole heads, of coordinates, and the learned one.

    Args:
        heads: that inhibit, the most needed first.
        components: of `screen_components`.
        found: channels, the one that carries most first.
        learned: changes of the heads' factors, by kind of edit.
        examples: train prompts, for means and deviations of coordinates.
    """
    edits: list[Edit] = []
    for channel in found[: spec.cut]:
        edits += [Scaled("channel", parts_of(channel), size) for size in spec.sizes]
    ranked = [(Head(*map(int, name[1:].split("H"))), int(i)) for name, i in _needed(components)]
    for k in spec.counts:
        by_head: dict[Head, list[int]] = {}
        for head, number in ranked[:k]:
            by_head.setdefault(head, []).append(number)
        parts = tuple(Part(h, tuple(sorted(numbers))) for h, numbers in sorted(by_head.items()))
        if parts:
            edits += [Scaled("components", parts, size) for size in spec.sizes]
    for k in sorted({min(k, len(heads)) for k in spec.counts if heads}):
        parts = tuple(Part(h) for h in heads[:k])
        edits += [Scaled("heads", parts, size) for size in spec.sizes]
    for channel in found[:1]:
        values = channel.space.coordinates(
            written(subject, examples, [channel.space.site])[channel.space.site]
        )
        mean, deviation = values.mean(0).tolist(), values.std(0).tolist()
        for axis in range(channel.rank):
            for shifted in (False, True):
                edits += [
                    Moved(
                        "coordinates",
                        repr(channel),
                        channel.space,
                        tuple(mean),
                        tuple(deviation),
                        axis,
                        step,
                        shifted,
                    )
                    for step in spec.steps
                ]
    for kind, change in learned.items():
        changes = {
            Head(*map(int, at)): float(change[tuple(at)]) for at in np.argwhere(np.abs(change) > UNCHANGED)
        }
        parts = tuple(
            Part(h, weight=round(w, 4)) for h, w in sorted(changes.items(), key=lambda p: -abs(p[1]))
        )
        for k in sorted({min(k, len(parts)) for k in (*spec.kept, len(parts))} - {0}):
            edits += [Scaled(kind, parts[:k], 1 + share) for share in LEARNED]
    return edits


def _needed(components: pd.DataFrame) -> list[tuple[str, int]]:
    """Components whose cut costs the answer, worst first."""
    own = components[components["nll"] > 0].sort_values("nll", ascending=False, kind="stable")
    return list(zip(own["head"], own["number"], strict=True))


def ranked(rows: pd.DataFrame, edits: Mapping[str, Edit]) -> pd.DataFrame:
    """Edits by accuracy, then by the loss among the listed things, the best first, with the intact model (`clean`).

    Returns:
        condition, kind, edit, size, dims, right, full, nll, margin.
    """
    table = by_condition(rows)
    about = {
        name: {"kind": e.kind, "edit": e.name, "size": e.size if isinstance(e.size, float | int) else np.nan}
        | {"dims": float(e.dims) if e.dims is not None else np.nan}
        for name, e in edits.items()
    }
    about["clean"] = {"kind": "clean", "edit": "", "size": np.nan, "dims": 0.0}
    more = pd.DataFrame([about[c] for c in table["condition"]])
    whole = pd.concat([table[["condition"]], more, table.drop(columns="condition")], axis=1)
    return whole.sort_values(["right", "nll"], ascending=[False, True], kind="stable", ignore_index=True)


def best_of_kinds(table: pd.DataFrame, edits: Mapping[str, Edit]) -> dict[str, Edit]:
    """The best edit of each kind."""
    first = table[table["kind"] != "clean"].drop_duplicates("kind")
    return {kind: edits[name] for kind, name in zip(first["kind"], first["condition"], strict=True)}


def around(edits: Mapping[str, Edit], shares: Sequence[float]) -> dict[str, Edit]:
    """Each edit with sizes around its own."""
    out: dict[str, Edit] = {}
    for kind, edit in edits.items():
        for share in shares:
            size = round(edit.finer(share), 6)
            out[f"{kind}, size {size:g}"] = edit.resized(size)
    return out


def by_length(rows: pd.DataFrame, edits: Mapping[str, Edit], kind: str) -> dict[int, float]:
    """The best size of a kind of edit for each length of list, by accuracy and then by loss."""
    own = rows[rows["condition"].isin([name for name, e in edits.items() if e.kind == kind])]
    means = own.groupby(["items", "condition"])[["right", "nll"]].mean().reset_index()
    order = means.sort_values(["right", "nll"], ascending=[False, True], kind="stable")
    first = order.drop_duplicates("items")
    sizes = {}
    for items, name in zip(first["items"], first["condition"], strict=True):
        size = edits[name].size
        assert isinstance(size, float | int)
        sizes[int(items)] = float(size)
    return dict(sorted(sizes.items()))


def lengths(
    subject: CausalLM, edit: Scaled, examples: Sequence[Example], directions: Directions
) -> dict[int, dict[int, float]]:
    """Mean length of what an edit changes in each layer's attention at the last token, for each length of list.

    As if it were the only edit: that a layer's input is another one behind the first edit is left out.
    """
    items = np.array([e.meta["items"] for e in examples])
    layers = sorted({p.head.layer for p in edit.parts})
    z = written(subject, examples, [Site("z", i) for i in layers])
    out: dict[int, dict[int, float]] = {int(n): {} for n in sorted(set(items))}
    for layer in layers:
        write = subject.out_weight(layer).detach().float().cpu()
        for n in out:
            own = z[Site("z", layer)][torch.from_numpy(items == n)]
            change = torch.zeros(len(own), write.shape[-1])
            for part, factor in zip(edit.parts, edit.factors(n), strict=True):
                if part.head.layer != layer:
                    continue
                output = own[:, part.head.head] @ write[part.head.head]
                if part.components:
                    basis = directions.along(part).basis.float()
                    output = (output @ basis.T) @ basis
                change += (factor - 1) * output
            out[n][layer] = float(change.norm(dim=-1).mean())
    return out


def controls(
    subject: CausalLM,
    edit: Edit,
    spec: LaundrySpec,
    avoid: Mapping[Head, Sequence[int]],
    examples: Sequence[Example],
    directions: Directions,
) -> dict[str, Scaled | Pushed]:
    """Edits of the same size elsewhere: other components of the same heads, other heads, and random directions.

    Args:
        avoid: components (and heads) that are found to matter; controls draw none of them.
        examples: train prompts, for the length of the edit's change.
    """
    if not isinstance(edit, Scaled):
        return {}
    out: dict[str, Scaled | Pushed] = {}
    size = lengths(subject, edit, examples, directions)
    for draw in range(spec.draws):
        if edit.dims is not None:
            other = random_components(edit, avoid, subject.d_head, draw, spec.seed)
            out[f"{edit.kind}: other components, draw {draw}"] = other
        elsewhere = other_heads(edit, list(avoid), subject.n_heads, subject.n_layers, draw, spec.seed)
        out[f"{edit.kind}: other heads, draw {draw}"] = elsewhere
        pushed = Pushed(f"{edit.kind}: random directions", edit, size, draw, spec.seed)
        out[f"{edit.kind}: random directions, draw {draw}"] = pushed
    return out
