"""Which heads and which of their components move the answer, each cut alone at the last token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from interp.intervene.ablate import ablate
from interp.intervene.base import Intervention
from interp.intervene.coordinates import scale_coordinates
from interp.measure.stats import bootstrap_ci, cluster_se
from interp.models.batch import plan, role_tokens
from interp.models.cache import Progress
from interp.models.engines.base import Record, Rows
from interp.models.sites import Head, Site
from interp.models.subject import CausalLM
from interp.studies.laundry.edits import Directions, Part
from interp.studies.laundry.tables import TOKENS, answers
from interp.tasks.base import Example

LEAST = 0.1
"""Share of attention that a head gives to what it attends to, at least."""


def screen_heads(
    subject: CausalLM, examples: Sequence[Example], *, seed: int, progress: Progress | None = None
) -> pd.DataFrame:
    """Every head cut (to zero) at the last token, and what it looks at there.

    Returns:
        one row a head, the most needed first: component, layer, head, change, se, ci_lo, ci_hi (of the margin of the
        answer when the head is cut; the interval is over templates), nll (change of the loss among the listed things),
        right (change of accuracy), listed (attention on the list's things), again (on what is listed again), answer
        (on the answer's place in the list, its share of `listed`), n.
    """
    heads = subject.heads()
    cuts: dict[str, Intervention | None] = {"clean": None}
    cuts |= {repr(h): ablate([h], "zero", "answer") for h in heads}
    rows = answers(subject, examples, cuts, progress)
    changes = changed(rows, "clean", seed=seed)
    seen = attention(subject, examples)
    found = seen.merge(changes, left_on="component", right_on="condition").drop(columns="condition")
    return found.sort_values(["change", "layer", "head"], kind="stable", ignore_index=True)


def changed(rows: pd.DataFrame, base: str, *, seed: int) -> pd.DataFrame:
    """Every condition against another one, prompt by prompt: condition, change, se, ci_lo, ci_hi, nll, right, n."""
    before = rows[rows["condition"] == base].set_index("example")
    out = []
    for condition, own in rows[rows["condition"] != base].groupby("condition", sort=False):
        own = own.set_index("example").loc[before.index]
        margin = (own["margin"] - before["margin"]).to_numpy()
        clusters = own["template"].to_numpy()
        low, high = bootstrap_ci(margin, clusters, seed=seed)
        out.append(
            {
                "condition": condition,
                "change": margin.mean(),
                "se": float(cluster_se(margin, clusters)),
                "ci_lo": low,
                "ci_hi": high,
                "nll": (own["nll"] - before["nll"]).mean(),
                "right": (own["right"] - before["right"]).mean(),
                "n": len(own),
            }
        )
    return pd.DataFrame(out)


def attention(subject: CausalLM, examples: Sequence[Example]) -> pd.DataFrame:
    """What each head attends to from the last token, on average: component, layer, head, listed, again, answer."""
    sums = np.zeros((subject.n_layers, subject.n_heads, 3))
    for group in plan([len(e.ids) for e in examples], TOKENS):
        batch = subject.batch([examples[i] for i in group], forced=False)
        columns = torch.full((len(group), 1), batch.width - 1)
        found = subject.run(batch, rows=Rows(columns), keep=1).rows
        for row, i in enumerate(group):
            places = [role_tokens(examples[i], role) for role in ("value", "distractor_value", "again")]
            for layer in range(subject.n_layers):
                seen = [
                    found[layer][row, :, 0, torch.tensor(p) + int(batch.pad[row])].sum(-1) for p in places
                ]
                value, rest, again = (s.float().cpu().numpy() for s in seen)
                share = value / np.maximum(value + rest, 1e-9)
                sums[layer] += np.stack([value + rest, again, share], axis=1)
    means = sums / len(examples)
    return pd.DataFrame(
        {"component": repr(h), "layer": h.layer, "head": h.head}
        | dict(zip(("listed", "again", "answer"), means[h.layer, h.head].tolist(), strict=True))
        for h in subject.heads()
    )


def inhibitors(heads: pd.DataFrame, k: int) -> list[Head]:
    """Heads that attend to what is listed again, more than to the list, and whose cut costs the answer; worst first."""
    own = heads[(heads["again"] > heads["listed"]) & (heads["again"] >= LEAST) & (heads["ci_hi"] < 0)]
    return [Head(int(r.layer), int(r.head)) for r in own.head(k).itertuples()]


def movers(heads: pd.DataFrame, above: int, k: int) -> list[Head]:
    """Heads of layers above one that attend to the list the most."""
    own = heads[heads["layer"] > above].nlargest(k, "listed")
    return [Head(int(r.layer), int(r.head)) for r in own.itertuples()]


def screen_components(
    subject: CausalLM,
    examples: Sequence[Example],
    heads: Sequence[Head],
    directions: Directions,
    *,
    seed: int,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Every OV component of some heads cut at the last token.

    Returns:
        head, number, change, se, ci_lo, ci_hi, nll, right, n (as in `screen_heads`), share (of the head's squared
        output at the last token).
    """
    parts = {f"{h}.{i}": Part(h, (i,)) for h in heads for i in range(subject.d_head)}
    cuts: dict[str, Intervention | None] = {"clean": None}
    cuts |= {name: scale_coordinates(directions.along(p), 0.0, "answer") for name, p in parts.items()}
    found = changed(answers(subject, examples, cuts, progress), "clean", seed=seed)
    energy = energies(subject, examples, heads, directions)
    found.insert(0, "head", [repr(parts[c].head) for c in found["condition"]])
    found.insert(1, "number", [parts[c].components[0] for c in found["condition"]])
    found["share"] = [energy[parts[c].head][parts[c].components[0]] for c in found["condition"]]
    return found.drop(columns="condition")


def written(
    subject: CausalLM, examples: Sequence[Example], sites: Sequence[Site]
) -> dict[Site, torch.Tensor]:
    """What is at some sites at the last token of each prompt, in the order of the prompts; b and what a token has."""
    kept: dict[Site, list[tuple[int, torch.Tensor]]] = {site: [] for site in sites}
    for group in plan([len(e.ids) for e in examples], TOKENS):
        batch = subject.batch([examples[i] for i in group], forced=False)
        columns = torch.full((len(group), 1), batch.width - 1)
        trace = subject.run(batch, {site: Record(columns) for site in sites}, keep=1)
        for site in sites:
            kept[site] += zip(group, trace[site][:, 0].float().cpu(), strict=True)
    return {
        site: torch.stack([v for _, v in sorted(found, key=lambda p: p[0])]) for site, found in kept.items()
    }


def energies(
    subject: CausalLM, examples: Sequence[Example], heads: Sequence[Head], directions: Directions
) -> dict[Head, np.ndarray]:
    """Share of each OV component in the squared length of what a head writes at the last token."""
    sites = [Site("head_out", h.layer, h.head) for h in heads]
    out = {}
    for head, found in zip(heads, written(subject, examples, sites).values(), strict=True):
        squares = (found @ directions.of(head).float().cpu().T).square().mean(0)
        out[head] = (squares / squares.sum()).numpy()
    return out
