"""Head repair: heads whose attention is set by hand, chosen on train, sized on validation, measured once on test.

After Merullo et al. (arXiv 2310.08744), who set the attention of four heads, from the last token, to the wrong colors:
heads that inhibit what they attend to. Which heads those are is not known of another model, so every head is tried on
its own, on every role asked for. To set attention to the right value takes the answer as known, and to the wrong ones
what they are: a repair shows what heads would do if they looked there, and is no way to answer questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from interp.intervene.attention import SetAttention, set_attention
from interp.measure.effects import COLUMNS, DRAWS_FOR_P, contrast, effect_rows
from interp.measure.metrics import score_at
from interp.measure.outcomes import TOKENS, Outcomes, evaluate
from interp.measure.plans import CLEAN, Condition, with_controls
from interp.measure.stats import bootstrap_ci, sign_flip
from interp.models.batch import plan
from interp.models.cache import Progress
from interp.models.sites import Head
from interp.tasks.base import Example

if TYPE_CHECKING:
    from interp.models.subject import CausalLM

METRICS = ("choice", "accuracy", "logit_diff")
SURE = 4
"""Classes of equal size that test examples are split into, by how sure the clean model was."""

MECHANISM = "head repair"

Sets = Mapping[str, tuple[str, Sequence[Head]]]
"""Name of a repair -> role that attention is set to, and heads."""


def tried(
    subject: CausalLM, examples: Sequence[Example], roles: Sequence[str], progress: Progress | None = None
) -> pd.DataFrame:
    """Every head alone, its attention from the answer's rows set to each role.

    Returns:
        one row a role and head: to, component, layer, head, gain and choice (mean change of the logit difference, and
        of the choice among candidates).
    """
    items = {(role, head): set_attention(head, role) for role in roles for head in subject.heads()}
    conditions = {CLEAN: None, **{_name(item): item for item in items.values()}}
    values = evaluate(subject, examples, conditions, progress=progress).values
    rows = [
        {
            "to": role,
            "component": repr(head),
            "layer": head.layer,
            "head": head.head,
            "gain": _change(values, _name(item), "logit_diff"),
            "choice": _change(values, _name(item), "choice"),
        }
        for (role, head), item in items.items()
    ]
    return pd.DataFrame(rows)


def _name(item: SetAttention) -> str:
    """Unique; what stands before the last space is shown while it runs."""
    return f"{len(item.heads)} heads to {item.to_name} {item.key()}"


def _change(values: Mapping[str, Mapping[str, np.ndarray]], name: str, metric: str) -> float:
    return float(np.mean(values[name][metric] - values[CLEAN][metric]))


def best(search: pd.DataFrame, role: str, k: int, among: Sequence[Head] | None = None) -> list[Head]:
    """The k heads, of all or of some, that gain most when they look at a role."""
    own = search[search["to"] == role]
    if among is not None:
        own = own[own["component"].isin([repr(h) for h in among])]
    own = own.sort_values(["gain", "layer", "head"], ascending=[False, True, True], kind="stable")
    return [Head(int(r.layer), int(r.head)) for r in own.head(k).itertuples()]


def sized(
    subject: CausalLM,
    examples: Sequence[Example],
    search: pd.DataFrame,
    sizes: Sequence[int],
    progress: Progress | None = None,
) -> pd.DataFrame:
    """The best heads together, for each role and number of them.

    Returns:
        one row a role and number: to, k, components, choice, logit_diff, clean_choice, clean_logit_diff, and `chosen`:
        the row of highest choice, of equal ones that of highest logit difference.
    """
    n = len(subject.heads())
    asked = [(role, k) for role in dict.fromkeys(search["to"]) for k in sizes if k <= n]
    items = {(role, k): set_attention(best(search, role, k), role) for role, k in asked}
    conditions = {CLEAN: None, **{_name(item): item for item in items.values()}}
    values = evaluate(subject, examples, conditions, progress=progress).values
    rows = []
    for (role, k), item in items.items():
        row: dict[str, Any] = {"to": role, "k": k, "components": " ".join(map(repr, item.components))}
        for metric in ("choice", "logit_diff"):
            row[metric] = float(values[_name(item)][metric].mean())
            row[f"clean_{metric}"] = float(values[CLEAN][metric].mean())
        rows.append(row)
    frame = pd.DataFrame(rows)
    first = frame.sort_values(["choice", "logit_diff"], ascending=False, kind="stable").index[0]
    return frame.assign(chosen=frame.index == first)


def tested(
    subject: CausalLM,
    examples: Sequence[Example],
    sets: Sets,
    *,
    controls: int,
    seed: int,
    progress: Progress | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Repairs on the test examples, beside random heads of the same layers that are made to look at the same tokens.

    Returns:
        effects, one row a repair (column `locator`), condition and metric, as `interp.measure` tells them; and `split`,
        see `by_confidence`.
    """
    plans = {
        name: with_controls(subject, set_attention(heads, role), controls=controls, seed=seed)
        for name, (role, heads) in sets.items()
    }
    clean = Condition(None, "clean")
    conditions = {c.name: c.intervention for p in ([clean], *plans.values()) for c in p}
    outcomes = evaluate(subject, examples, conditions, progress=progress)
    # A repair may lift a model from chance, so it is told there too.
    rows = [{**row, "locator": ""} for row in effect_rows(outcomes, clean, METRICS, "ok", seed)]
    for name, conditions_of in plans.items():
        for c in conditions_of:
            rows += [{**row, "locator": name} for row in effect_rows(outcomes, c, METRICS, "ok", seed)]
    labels: dict[str, Any] = {
        "subject": subject.name,
        "task": examples[0].task,
        "role": "target",
        "seed": seed,
    }
    effects = pd.DataFrame(rows).assign(mechanism=MECHANISM, **labels)[COLUMNS]
    sure = confidence(subject, examples)
    split = pd.concat(
        [by_confidence(outcomes, p, sure, seed).assign(set=n) for n, p in plans.items()], ignore_index=True
    )
    return effects, split


def against_random(effects: pd.DataFrame) -> pd.DataFrame:
    """Each repair against its random heads, as `contrast` tells it; but `rank` 1 is a gain above that of every draw."""
    found = contrast(effects)
    higher = []
    for row in found.itertuples():
        own = (effects["locator"] == row.locator) & (effects["metric"] == row.metric)
        drawn = effects.loc[own & (effects["condition"] == "control"), "delta"]
        higher.append(1 + int((drawn >= row.delta).sum()))
    n = found["n_controls"]
    p = np.where(n >= DRAWS_FOR_P, np.array(higher) / (n + 1), np.nan)
    return found.assign(rank=higher, p_control=p)


def confidence(subject: CausalLM, examples: Sequence[Example]) -> np.ndarray:
    """How sure the intact model is: the probability of its first candidate among all candidates."""
    out = np.full(len(examples), np.nan)
    for group in plan([len(e.full_ids) for e in examples], TOKENS):
        batch = subject.batch([examples[i] for i in group])
        logits = subject.run(batch).logits
        first = batch.width - logits.shape[1]
        for row, i in enumerate(group):
            place = score_at(examples[i])
            tokens = sorted({c[place] for c in examples[i].candidates if len(c) > place})
            at = logits[row, batch.answer_columns(row)[place] - first].float()
            out[i] = float(torch.softmax(at[tokens], -1).max())
    return out


def by_confidence(
    outcomes: Outcomes, conditions: Sequence[Condition], sure: np.ndarray, seed: int
) -> pd.DataFrame:
    """The effect of a repair in classes of examples, by how sure the clean model was.

    Returns:
        one row a class (0: least sure) and metric: sure_lo and sure_hi (its range), n, metric, clean, value, delta,
        ci_lo, ci_hi, p (over clusters), control_mean (mean delta of the controls) and excess beyond it, excess_lo,
        excess_hi, p_excess.
    """
    classes = np.argsort(np.argsort(sure, kind="stable"), kind="stable") * SURE // len(sure)
    rows = []
    for number in range(SURE):
        at = classes == number
        if not at.any():
            continue
        clusters = outcomes.clusters[at]
        for metric in METRICS:
            clean = outcomes.values[CLEAN][metric][at]
            delta = outcomes.values[conditions[0].name][metric][at] - clean
            drawn = np.stack([outcomes.values[c.name][metric][at] - clean for c in conditions[1:]])
            excess = delta - drawn.mean(0)
            ends, excess_ends = (bootstrap_ci(x, clusters, seed=seed) for x in (delta, excess))
            rows.append(
                {
                    "class": number,
                    "sure_lo": float(sure[at].min()),
                    "sure_hi": float(sure[at].max()),
                    "n": int(at.sum()),
                    "metric": metric,
                    "clean": float(clean.mean()),
                    "value": float((clean + delta).mean()),
                    "delta": float(delta.mean()),
                    "ci_lo": ends[0],
                    "ci_hi": ends[1],
                    "p": sign_flip(delta, clusters, seed=seed),
                    "control_mean": float(drawn.mean()),
                    "excess": float(excess.mean()),
                    "excess_lo": excess_ends[0],
                    "excess_hi": excess_ends[1],
                    "p_excess": sign_flip(excess, clusters, seed=seed),
                }
            )
    return pd.DataFrame(rows)
