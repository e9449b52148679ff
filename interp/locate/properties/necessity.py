"""Causal: what is lost when the best heads are cut, and what is left when they alone see the needle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from interp.errors import UsageError
from interp.intervene.ablate import NEEDS_REFERENCE, Mode, ablate
from interp.intervene.reference import Reference
from interp.locate.base import Locator
from interp.locate.properties.base import Property, frame_of, ranged, row
from interp.measure.effects import contrast, dose, measure, sufficient
from interp.measure.outcomes import Progress
from interp.models.sites import Component
from interp.models.subject import CausalLM
from interp.tasks.base import Task

SIZES = (1, 2, 5, 10, 20)
HEADLINE = 10
"""The size that the sentence is about, where it was measured; else the largest."""


def causal(
    subject: CausalLM,
    task: Task,
    heads: Locator | Sequence[Component],
    *,
    sizes: Sequence[int] = SIZES,
    mode: Mode = "zero",
    scope: str = "answer",
    enough: Mode | None = "knockout",
    reference: Reference | None = None,
    controls: int = 20,
    metric: str = "accuracy",
    seed: int = 0,
    progress: Progress | None = None,
) -> Property:
    """Cut the best k heads, for each k, and as many layer-matched others; then cut all heads but these.

    The task should hold other needles than those that the heads were ranked on. Statistics: `clean`, the value of the
    intact model, and for each k `cut_k`, the change of the metric (its interval resamples clusters; p flips signs by
    cluster) with the mean and the middle 95 % of the changes under the control draws as its null; and `keep_k`, the
    change where all heads but the first k are cut, its null keeping as many others. `keep_0` cuts every head.

    Args:
        heads: a fitted locator, or heads, best first.
        sizes: numbers of heads cut; those beyond half of all heads are left out, for too few controls remain.
        mode: see `ablate`; `uniform` with scope `answer` is what the code of Wu et al. does.
        enough: mode in which all other heads are cut, at `scope`: with `knockout` the k heads are the only ones that
            may see the needle, and the others do the rest of their work; None leaves sufficiency out.
        controls: matched draws for each size.

    Returns:
        the property; tables `effects` (as of `measure`) and `contrast` (each cut against its controls).

    Raises:
        UsageError: no size is left.
        AtChance: the clean model is at chance on the task.
    """
    known = len(heads.ranking()) if isinstance(heads, Locator) else len(heads)
    most = min(known, subject.n_layers * subject.n_heads // 2)
    kept = sorted({k for k in sizes if 1 <= k <= most})
    if not kept:
        raise UsageError(
            f"sizes {list(sizes)}: take 1 to {most} (half of all heads, no more than are ranked)"
        )
    ranked = heads.top(kept[-1]) if isinstance(heads, Locator) else tuple(heads)[: kept[-1]]
    plan = dose(subject, ranked, kept, ablate([], mode, scope, reference, seed), controls=controls, seed=seed)
    if enough is not None:
        alone = ablate([], enough, scope, reference if enough in NEEDS_REFERENCE else None, seed)
        plan += sufficient(subject, ranked, [0, *kept], alone, controls=controls, seed=seed)
    effects = measure(
        subject, task, plan, metrics=dict.fromkeys(("accuracy", metric)), off_target=(),
        mechanism="retrieval heads", seed=seed, progress=progress,
    )  # fmt: skip
    told = contrast(effects)
    own = effects[effects["metric"] == metric]
    clean = own[own["condition"] == "clean"].iloc[0]
    rows = [_row("clean", clean, clean["value"])]
    for condition, control in (("cut", "control"), ("keep", "keep_control")):
        for _, cut in own[own["condition"] == condition].iterrows():
            drawn = own[(own["condition"] == control) & (own["k"] == cut["k"])]
            rows.append(_row(f"{condition}_{cut['k']}", cut, cut["delta"], drawn["delta"].to_numpy(float)))
    cuts = told[told["metric"] == metric].set_index("k")
    headline = cuts.loc[HEADLINE if HEADLINE in cuts.index else kept[-1]]
    frame = frame_of(rows)
    return Property("causal", _summary(clean, headline, frame), frame, {"effects": effects, "contrast": told})


def _row(name: str, effect: pd.Series, value: float, null: np.ndarray | None = None) -> dict[str, Any]:
    """A row of the frame; its p is the effect's own, for a few control draws give none."""
    made = row(
        name, value, (effect["ci_lo"], effect["ci_hi"]), null,
        subject=effect["subject"], n=effect["n"], n_clusters=effect["n_clusters"],
    )  # fmt: skip
    return made | {"p": effect["p_cluster"]}


def _summary(clean: pd.Series, cut: pd.Series, frame: pd.DataFrame) -> str:
    null = frame.set_index("statistic").loc[f"cut_{cut.name}"]
    others = (
        f"; {cut['n_controls']} matched draws change it by {null['null']:+.2f} ({null['null_lo']:+.2f} to "
        f"{null['null_hi']:+.2f}), rank {cut['rank']:.0f} of {1 + cut['n_controls']}"
        if cut["n_controls"]
        else ""
    )
    p = f", p = {cut['p_cluster']:.2g} by cluster" if np.isfinite(cut["p_cluster"]) else ""
    at = frame.set_index("statistic")
    left = ""
    if f"keep_{cut.name}" in at.index:
        kept, none = at.loc[f"keep_{cut.name}"], at.loc["keep_0"]
        others_kept = f" (as many others {kept['null']:+.2f})" if np.isfinite(kept["null"]) else ""
        left = (
            f"; with all others cut it changes by {ranged(kept['value'], kept['ci_lo'], kept['ci_hi'])}{others_kept}, "
            f"with every head cut by {none['value']:+.2f}"
        )
    return (
        f"{cut['subject']}: cutting the first {cut.name} heads ({cut['mode']}, scope {cut['scope']}) changes "
        f"{cut['metric']} on {cut['task']} from {clean['value']:.2f} by "
        f"{ranged(cut['delta'], cut['ci_lo'], cut['ci_hi'])}{p}{others}{left} ({int(cut['n'])} instances)."
    )
