"""Which MLPs carry the memory: windows of layers cut, behind the single statement and without a context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from interp.intervene.ablate import Ablate
from interp.intervene.base import Intervention
from interp.intervene.reference import Reference
from interp.intervene.tracing.cells import window_of
from interp.measure.conflict import taken
from interp.measure.outcomes import evaluate
from interp.measure.stats import bootstrap_ci, fdr, sign_flip
from interp.models.cache import Progress
from interp.models.sites import MLP
from interp.models.subject import CausalLM
from interp.tasks.base import Example
from interp.tasks.prose import Prose

SCOPES = ("subject", "answer")
"""Tokens at which MLPs are cut: those of the question's subject, and the last one."""
PROMPT, ANSWER = 64, 32
"""Tokens of a passage that are read, and that are predicted."""


def windows(subject: CausalLM, width: int) -> dict[int, tuple[MLP, ...]]:
    """MLPs of the window around each layer, cut off at the ends of the model."""
    return {c: tuple(MLP(i) for i in window_of(c, width, subject.n_layers)) for c in range(subject.n_layers)}


def cut_windows(
    subject: CausalLM,
    examples: Sequence[Example],
    width: int,
    mode: str,
    *,
    seed: int,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """What each window's cut does to the answer and the foil of some prompts, by scope.

    Args:
        mode: `zero`, or the `mean` over the prompts.

    Returns:
        scope, layer (the window's centre), components, margin (of the intact model: answer less foil, in nats),
        margin_lo (lower end of its interval), margin_lost (by the cut; positive: the answer falls behind), ci_lo, ci_hi
        (95 %, over subjects), p, q (adjusted within the scope), memory_lost and context_lost (of the log-probabilities
        of answer and foil), n.
    """
    reference = Reference(examples) if mode == "mean" else None
    plan: dict[str, Intervention | None] = {"": None}
    about = []
    for scope in SCOPES:
        for centre, parts in windows(subject, width).items():
            at = scope if scope == "answer" else (scope,)
            plan[f"{scope} {centre}"] = Ablate(parts, mode, at, reference)  # type: ignore[arg-type]
            about.append({"scope": scope, "layer": centre, "components": " ".join(map(repr, parts))})
    found = taken(subject, examples, plan, progress=progress)
    clean = found.margin[:, 0]
    low, _ = bootstrap_ci(clean, found.clusters, seed=seed)
    rows = []
    for j, row in enumerate(about, start=1):
        lost = clean - found.margin[:, j]
        lo, hi = bootstrap_ci(lost, found.clusters, seed=seed)
        rows.append(
            {
                **row,
                "margin": float(clean.mean()),
                "margin_lo": low,
                "margin_lost": float(lost.mean()),
                "ci_lo": lo,
                "ci_hi": hi,
                "p": sign_flip(lost, found.clusters, seed=seed),
                "memory_lost": float((found.memory[:, 0] - found.memory[:, j]).mean()),
                "context_lost": float((found.context[:, 0] - found.context[:, j]).mean()),
                "n": len(lost),
            }
        )
    return fdr(pd.DataFrame(rows), within=["scope"])


def scored(table: pd.DataFrame) -> pd.DataFrame:
    """The table with `spared` and `score`, for the rows of the question `conflict`.

    spared is the share of the margin that the same cut leaves of the question `told`, which needs the subject's tokens
    and the context but no memory; score is margin_lost x spared. Layers without which no subject can be told from
    another lose both margins, and are no stores of facts. Where the intact model is at chance on `told` (the interval
    of its margin includes zero) spared is 1.
    """
    told = table[table["question"] == "told"].set_index(["scope", "layer"])
    out = table.assign(spared=np.nan, score=np.nan)
    here = out["question"] == "conflict"
    if len(told) and (told["margin_lo"] > 0).all():
        left = (1 - told["margin_lost"] / told["margin"]).clip(0, 1)
        out.loc[here, "spared"] = [left[r.scope, r.layer] for r in out[here].itertuples()]
    else:
        out.loc[here, "spared"] = 1.0
    out["score"] = out["margin_lost"] * out["spared"]
    return out


def prose_cost(
    subject: CausalLM,
    plan: Mapping[str, Intervention | None],
    n: int,
    *,
    seed: int,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Loss of natural prose under each condition.

    Args:
        plan: by name, with the intact model under the name ''.
        n: passages.

    Returns:
        condition, nll (nats a token), d_nll (from the intact model), d_nll_lo, d_nll_hi (95 %, over topics), n.
    """
    examples = Prose(prompt=PROMPT, answer=ANSWER, n=n, seed=seed).examples(subject)
    found = evaluate(subject, examples, plan, progress=progress)
    rows = []
    for name in plan:
        change = found.values[name]["nll"] - found.values[""]["nll"]
        lo, hi = bootstrap_ci(change, found.clusters, seed=seed)
        about = {
            "condition": name,
            "nll": float(found.values[name]["nll"].mean()),
            "d_nll": float(change.mean()),
        }
        rows.append(about | {"d_nll_lo": lo, "d_nll_hi": hi, "n": len(examples)})
    return pd.DataFrame(rows)


def best_window(table: pd.DataFrame, scope: str) -> int:
    """Centre of the window of the largest score, see `scored`."""
    own = table[(table["question"] == "conflict") & (table["scope"] == scope)]
    return int(own.loc[own["score"].idxmax(), "layer"])
