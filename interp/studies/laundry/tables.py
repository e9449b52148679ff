"""Answers of the laundry list under many conditions, and what they come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import torch

from interp.intervene.base import Intervention
from interp.measure.metrics import score_at
from interp.measure.stats import bootstrap_ci, mcnemar, proportion_ci, sign_flip
from interp.models.batch import plan
from interp.models.cache import Progress
from interp.models.subject import CausalLM
from interp.tasks.base import Example

TOKENS = 1024
"""Padded tokens of a batch."""


def answers(
    subject: CausalLM,
    examples: Sequence[Example],
    conditions: Mapping[str, Intervention | None],
    progress: Progress | None = None,
) -> pd.DataFrame:
    """What is answered under each condition.

    Returns:
        one row a condition and example: condition, example, items, position, template, chance, right (the answer has
        the highest logit of the listed things), full (of the vocabulary), nll (nats, among the listed things), margin
        (logit of the answer less the mean of the other things), place (of the thing with the highest logit, from 1).
    """
    names = list(conditions)
    found: list[dict[str, Any]] = []
    groups = plan([len(e.ids) for e in examples], TOKENS)
    for done, group in enumerate(groups):
        batch = subject.batch([examples[i] for i in group])
        for part, (number, logits) in enumerate(subject.each(conditions.values(), batch, keep=1), start=1):
            for row, i in enumerate(group):
                found.append(
                    {"condition": names[number], "example": i} | _answer(logits[row, -1], examples[i])
                )
            if progress:
                progress(done * len(names) + part, len(groups) * len(names), "conditions")
    frame = pd.DataFrame(found)
    order = {name: i for i, name in enumerate(names)}
    frame = frame.sort_values(
        ["condition", "example"], key=lambda c: c.map(order) if c.name == "condition" else c
    )
    return frame.reset_index(drop=True)


def asked(example: Example) -> Example:
    """The same prompt with what all candidates begin with in it, so that its last token is where they part."""
    place = score_at(example)
    if not place:
        return example
    return replace(
        example,
        ids=example.ids + example.answer_ids[:place],
        answer_ids=example.answer_ids[place : place + 1],
        candidates=tuple(c[place:] for c in example.candidates),
        foil_ids=(),
        corrupt={},
        offsets=None,
    )


def _answer(logits: torch.Tensor, example: Example) -> dict[str, Any]:
    own = logits[[c[0] for c in example.candidates]].float()
    best = int(own.argmax())
    return {
        "items": example.meta["items"],
        "position": example.meta["position"],
        "template": example.meta["template"],
        "chance": example.chance,
        "right": float(best == 0),
        "full": float(int(logits.argmax()) == example.answer_ids[0]),
        "nll": float(-own.log_softmax(0)[0]),
        "margin": float(own[0] - own[1:].mean()),
        "place": places(example)[best],
    }


def places(example: Example) -> list[int]:
    """Where in the list each candidate stands, from 1; the answer is the first candidate, the rest keep their order."""
    target = example.meta["position"]
    return [target, *(i for i in range(1, example.meta["items"] + 1) if i != target)]


def by_condition(rows: pd.DataFrame) -> pd.DataFrame:
    """Means of each condition; every length of list counts the same."""
    columns = ["right", "full", "nll", "margin"]
    each = rows.groupby(["condition", "items"], sort=False)[columns].mean()
    return each.groupby("condition", sort=False).mean().reset_index()


def accuracy(rows: pd.DataFrame, by: Sequence[str], *, seed: int) -> pd.DataFrame:
    """Accuracy with 95 % intervals over templates, beside chance.

    Args:
        rows: of one condition.
        by: columns that parts of it are named by: `items`, `position`, ...
    """
    out = []
    for key, part in rows.groupby(list(by)) if by else [((), rows)]:
        low, high = proportion_ci(part["right"].to_numpy(), part["template"].to_numpy())
        about = dict(zip(by, key if isinstance(key, tuple) else (key,), strict=True))
        means = {c: part[c].mean() for c in ("full", "nll", "margin", "chance")}
        out.append(
            {**about, "accuracy": part["right"].mean(), "ci_lo": low, "ci_hi": high, **means, "n": len(part)}
        )
    return pd.DataFrame(out)


def gains(rows: pd.DataFrame, *, seed: int, base: str = "clean") -> pd.DataFrame:
    """Every condition against the intact model and for each length of list and all of them, prompt by prompt.

    Returns:
        condition, items (0: all, each length weighted alike where they have as many prompts), templates (`all`, or
        `held`: those that nothing was chosen on), accuracy, ci_lo, ci_hi, full, nll, margin, chance, base (accuracy of
        the intact model), gain (percentage points / 100), gain_lo, gain_hi (bootstrap over templates), p (McNemar,
        exact), p_clusters (signs flipped template by template), n.
    """
    out = []
    lengths = [0, *sorted(rows["items"].unique())]
    templates = {"all": rows} | ({"held": rows[rows["held"]]} if rows["held"].any() else {})
    for name, part in templates.items():
        for items in lengths:
            own = part if items == 0 else part[part["items"] == items]
            intact = own[own["condition"] == base].set_index(["items", "example"])
            for condition, found in own.groupby("condition", sort=False):
                found = found.set_index(["items", "example"]).loc[intact.index]
                clusters = found["template"].to_numpy()
                after, before = found["right"].to_numpy(), intact["right"].to_numpy()
                low, high = proportion_ci(after, clusters)
                gain_lo, gain_hi = bootstrap_ci(after - before, clusters, seed=seed)
                out.append(
                    {
                        "condition": condition,
                        "items": items,
                        "templates": name,
                        "accuracy": after.mean(),
                        "ci_lo": low,
                        "ci_hi": high,
                        **{c: found[c].mean() for c in ("full", "nll", "margin", "chance")},
                        "base": before.mean(),
                        "gain": (after - before).mean(),
                        "gain_lo": gain_lo,
                        "gain_hi": gain_hi,
                        "p": mcnemar(before, after),
                        "p_clusters": sign_flip(after - before, clusters, seed=seed),
                        "n": len(found),
                    }
                )
    return pd.DataFrame(out)


def over_controls(rows: pd.DataFrame, kinds: Mapping[str, str], *, seed: int) -> pd.DataFrame:
    """Every edit against the mean of its controls' draws, prompt by prompt and kind by kind of control.

    Args:
        rows: of the test.
        kinds: of each condition; controls of `heads` are of kinds `heads: other heads` and so on.

    Returns:
        condition, control (its kind), draws, items (0: all), accuracy, control_accuracy, gain, gain_lo, gain_hi
        (bootstrap over templates), p_clusters (signs flipped template by template), n.
    """
    right = rows.pivot_table(index=["items", "example", "template"], columns="condition", values="right")
    out = []
    for condition, kind in kinds.items():
        every = sorted({k for k in kinds.values() if k.startswith(f"{kind}: ")}) if condition == kind else []
        for control in every:
            draws = [name for name, k in kinds.items() if k == control]
            for items in [0, *sorted(rows["items"].unique())]:
                own = right if items == 0 else right.loc[[items]]
                after, before = own[condition].to_numpy(), own[draws].mean(axis=1).to_numpy()
                clusters = own.index.get_level_values("template").to_numpy()
                low, high = bootstrap_ci(after - before, clusters, seed=seed)
                out.append(
                    {"condition": condition, "control": control, "draws": len(draws), "items": items}
                    | {"accuracy": after.mean(), "control_accuracy": before.mean()}
                    | {"gain": (after - before).mean(), "gain_lo": low, "gain_hi": high}
                    | {"p_clusters": sign_flip(after - before, clusters, seed=seed), "n": len(own)}
                )
    return pd.DataFrame(out)
