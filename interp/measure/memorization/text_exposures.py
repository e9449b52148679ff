"""Memory over exposures and over later training: recognised, recalled, retained.

A small model goes on training on text while sequences are shown to it, each so often as it says, spread over the first
phase; then on text alone. On the way it is asked of every sequence what the objective says and whether it is recited.
Sequences of the same kind that are never shown are asked too: *recognition* is how surely a sequence is told from them
by how much its likelihood rose. What is trained is a copy.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from interp.errors import UsageError
from interp.measure.memorization.recite import recite
from interp.measure.stats import bootstrap_ci
from interp.models.cache import Progress, quiet
from interp.models.subject import CausalLM
from interp.models.zoo.small_lm import Recipe, train
from interp.tasks.base import stable_seed
from interp.tasks.memorized import TextItem

MEASURES = ("recognition", "recall", "hits")
"""What `exposure_curves` averages; all are shares."""


def schedule(
    items: Sequence[TextItem], steps: int, rows: int, *, seed: int = 0
) -> dict[int, list[tuple[int, ...]]]:
    """When each sequence is shown: as often as its `exposures` say, at steps drawn without another of its own.

    Args:
        steps: of the phase.
        rows: most sequences that are shown at one step.

    Raises:
        UsageError: more exposures than steps, or than all steps have rows.
    """
    out: dict[int, list[tuple[int, ...]]] = {}
    for item in sorted(items, key=lambda i: -i.exposures):
        free = [s for s in range(steps) if len(out.get(s, ())) < rows]
        if item.exposures > len(free):
            raise UsageError(
                f"{item.name}: {item.exposures} exposures and {len(free)} steps with room; take more steps or rows"
            )
        rng = np.random.default_rng(stable_seed("exposures", seed, item.name))
        for step in rng.choice(free, item.exposures, replace=False) if item.exposures else ():
            out.setdefault(int(step), []).append(item.ids)
    return out


def text_exposures(
    subject: CausalLM,
    items: Sequence[TextItem],
    texts: Sequence[str],
    *,
    recipe: Recipe,
    steps: int = 200,
    later: int = 200,
    every: int = 50,
    lr: float | None = None,
    rows: int | None = None,
    seed: int = 0,
    progress: Progress = quiet,
) -> pd.DataFrame:
    """Show sequences to a copy of a small model, then train it on text alone, and ask for them on the way.

    Args:
        subject: a model of `small_lm`, trained already; it is left as it is.
        items: sequences with their `exposures`; at least two with 0 are the never-seen ones.
        texts: what it reads besides.
        recipe: windows and rows of a batch.
        steps: of the phase in which sequences are shown. later: steps of text alone.
        every: steps between two times of asking; the ends of the phases are always asked.
        lr: a fixed learning rate; default a third of the recipe's highest.
        rows: most sequences at one step; default half of a batch.

    Returns:
        one row a sequence and time: step (0 is before), phase (`before`, `shown`, `later`), name, exposures, nll, gain
        (nats a token that it fell since step 0), recognition (share of never-seen sequences that gained less, ties as
        halves), recall (1 where the suffix is recited whole) and hits.

    Raises:
        UsageError: fewer than two never-seen sequences, or no room for the exposures.
    """
    if sum(i.exposures == 0 for i in items) < 2:
        raise UsageError(
            "recognition needs sequences that are never shown: give two or more with exposures=0"
        )
    shown = schedule(items, steps, rows or max(1, recipe.rows // 2), seed=seed)
    model = CausalLM(copy.deepcopy(subject.hf), subject.tokens, name=subject.name, family=subject.family)
    rate = recipe.lr / 3 if lr is None else lr
    ask = {0, steps, steps + later, *range(0, steps + later, every)}
    frames: list[pd.DataFrame] = []

    def look(step: int) -> None:
        if step not in ask or (frames and frames[-1]["step"].iloc[0] == step):
            return
        phase = "before" if step == 0 else "shown" if step <= steps else "later"
        found = recite(model, items, generate=False)
        table = found[["name", "group", "exposures", "nll", "hits"]].assign(
            step=step, phase=phase, recall=found["exact"]
        )
        frames.append(_recognised(table, frames[0] if frames else table))

    optimizer = train(
        model,
        texts,
        steps=steps,
        recipe=recipe,
        shown=shown,
        constant=rate,
        watch=look,
        seed=seed,
        progress=progress,
    )
    if later:
        train(
            model,
            texts,
            steps=later,
            recipe=recipe,
            constant=rate,
            watch=lambda step: look(steps + step),
            seed=seed + 1,
            progress=progress,
            optimizer=optimizer,
        )
    return pd.concat(frames, ignore_index=True)


def _recognised(table: pd.DataFrame, first: pd.DataFrame) -> pd.DataFrame:
    gain = first["nll"].to_numpy() - table["nll"].to_numpy()
    never = np.flatnonzero(table["exposures"].to_numpy() == 0)
    share = []
    for i, g in enumerate(gain):
        others = gain[never[never != i]]
        share.append(float((others < g).mean() + 0.5 * (others == g).mean()))
    return table.assign(gain=gain, recognition=share)


def exposure_curves(frame: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Means over the sequences of each number of exposures, with intervals; and what is retained.

    Args:
        frame: of `text_exposures`.

    Returns:
        one row a step, number of exposures and measure of `MEASURES`, or `retention`: of the sequences that were
        recited when the showing ended, the share that still is (from that step on). Columns step, phase, exposures,
        measure, value, ci_lo, ci_hi (95 %, sequences resampled; of recognition those that were never shown too), n.
    """
    end = frame.loc[frame["phase"] == "shown", "step"].max()
    held = set(frame.loc[(frame["step"] == end) & (frame["recall"] == 1), "name"])
    out: list[dict[str, Any]] = []
    for (step, phase, count), rows in frame.groupby(["step", "phase", "exposures"], sort=True):
        about = {"step": step, "phase": phase, "exposures": count}
        told = [(measure, rows[measure], rows["name"]) for measure in MEASURES]
        kept = rows[rows["name"].isin(held)]
        if step >= end and len(kept):
            told.append(("retention", kept["recall"], kept["name"]))
        for measure, values, names in told:
            entropy = stable_seed("exposure curves", seed, int(step), int(count), measure)[0]
            low, high = bootstrap_ci(values.to_numpy(float), names.to_numpy(), seed=entropy)
            if measure == "recognition" and count:
                never = frame[(frame["step"] == step) & (frame["exposures"] == 0)]
                low, high = _both_resampled(rows["gain"].to_numpy(), never["gain"].to_numpy(), entropy)
            out.append(
                {
                    **about,
                    "measure": measure,
                    "value": values.mean(),
                    "ci_lo": low,
                    "ci_hi": high,
                    "n": len(values),
                }
            )
    return pd.DataFrame(out)


def _both_resampled(shown: np.ndarray, never: np.ndarray, seed: int) -> tuple[float, float]:
    """Interval (95 %) of how often what was shown gained more, ties as halves, with both sides resampled."""
    if min(len(shown), len(never)) < 2:
        return float("nan"), float("nan")
    wins = (shown[:, None] > never) + 0.5 * (shown[:, None] == never)
    rng = np.random.default_rng(seed)
    rows, columns = (rng.multinomial(n, np.full(n, 1 / n), 2000) / n for n in wins.shape)
    low, high = np.percentile(np.einsum("rn,nm,rm->r", rows, wins, columns), [2.5, 97.5])
    return float(low), float(high)
