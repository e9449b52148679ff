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

SCOPES = ("subject", "answer", "all")
"""Tokens at which MLPs are cut: those of the question's subject, the last one, all."""
PROMPT, ANSWER = 64, 32
"""Tokens of a passage that are read, and that are predicted."""


def windows(subject: CausalLM, width: int) -> dict[int, tuple[MLP, ...]]:
    """MLPs of the window around each layer, cut off at the ends of the model."""
    return {c: tuple(MLP(i) for i in window_of(c, width, subject.n_layers)) for c in range(subject.n_layers)}


def cut_windows(
    subject: CausalLM,
    prompts: Mapping[str, Sequence[Example]],
    width: int,
    mode: str,
    *,
    seed: int,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """What each window's cut does to memory and context, by scope.

    Args:
        prompts: `conflict` and `closed`, of the same facts.
        mode: `zero`, or the `mean` over the prompts.

    Returns:
        question, scope, layer (the window's centre), components, margin_lost (nats; positive: the memory's answer falls
        behind), ci_lo, ci_hi (95 %, over subjects), p, q (adjusted within question and scope), memory_lost and
        context_lost (of each answer's log-probability), n.
    """
    rows = []
    for question, examples in prompts.items():
        reference = Reference(examples) if mode == "mean" else None
        plan: dict[str, Intervention | None] = {"": None}
        about = []
        for scope in SCOPES:
            for centre, parts in windows(subject, width).items():
                at = scope if scope in ("all", "answer") else (scope,)
                plan[f"{scope} {centre}"] = Ablate(parts, mode, at, reference)  # type: ignore[arg-type]
                about.append({"scope": scope, "layer": centre, "components": " ".join(map(repr, parts))})
        found = taken(subject, examples, plan, progress=progress)
        lost = {name: v[:, :1] - v[:, 1:] for name, v in _values(found.margin, found.memory, found.context)}
        for j, row in enumerate(about):
            margin = lost["margin_lost"][:, j]
            lo, hi = bootstrap_ci(margin, found.clusters, seed=seed)
            p = sign_flip(margin, found.clusters, seed=seed)
            means = {name: float(v[:, j].mean()) for name, v in lost.items()}
            rows.append(
                {"question": question, **row, **means, "ci_lo": lo, "ci_hi": hi, "p": p, "n": len(margin)}
            )
    return fdr(pd.DataFrame(rows), within=["question", "scope"])


def _values(*arrays: np.ndarray) -> list[tuple[str, np.ndarray]]:
    return list(zip(("margin_lost", "memory_lost", "context_lost"), arrays, strict=True))


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
    """Centre of the window whose cut costs the memory most behind the statement.

    Where the context is ahead, general damage is not it: it brings the two answers closer to each other. Controls and
    costs of the cut on other facts say the rest.
    """
    own = table[(table["question"] == "conflict") & (table["scope"] == scope)]
    return int(own.loc[own["margin_lost"].idxmax(), "layer"])
