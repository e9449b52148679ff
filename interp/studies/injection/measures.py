"""What an edit leaves of a memory, and of what should stay: cells of single sequences, and what they come to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from interp.measure.memorization.recite import recite
from interp.measure.stats import bootstrap_ci, proportion_ci, sign_flip
from interp.tasks.base import stable_seed

if TYPE_CHECKING:
    from interp.models.subject import CausalLM
    from interp.studies.injection.spec import InjectionSpec
    from interp.tasks.memorized import TextItem

CELL = ["item", "group", "variant", "exact", "accuracy", "similarity", "hits", "nll", "run"]
"""Columns of a cell: a sequence under an edit."""
EDIT = ["edit", "family", "control", "asked", "dose", "norm"]
"""Columns that say which edit."""
NONE: dict[str, Any] = {
    "edit": "none", "family": "none", "control": False, "asked": 0.0, "dose": 0.0, "norm": 0.0, "draw": 0,
}  # fmt: skip
"""The model before."""
WITHOUT: dict[str, Any] = NONE | {"edit": "without"}
"""The model before the memory was put into it; of one that recites as it comes it is the same."""
MEASURES = (
    "targeted",
    "held_out",
    "targeted_hits",
    "held_out_hits",
    "accuracy",
    "similarity",
    "never",
    "prose",
    "prose_without",
    "perplexity",
)


def cells(
    subject: CausalLM, items: Sequence[TextItem], *, generate: bool = False, variant: str = "given"
) -> pd.DataFrame:
    """What the subject, as it is now, makes of sequences."""
    rows = recite(subject, items, generate=generate).rename(columns={"name": "item"})
    return rows.assign(variant=variant)[CELL]


def summary(
    table: pd.DataFrame, keys: Sequence[str] = ("subject", "memory"), *, seed: int = 0
) -> pd.DataFrame:
    """Measures of each edit and dose, from cells in which the model before is the edit `none`.

    The edit `without` is the model before the memory was put in; of it there is only the perplexity of prose.

    Returns:
        keys, the columns of `EDIT`, measure, value, ci_lo, ci_hi (95 %, sequences or passages resampled), n. A measure
        that no cell tells of is left out.
    """
    out: list[dict[str, Any]] = []
    for key, own in _grouped(table[table["variant"] == "given"], keys):
        before = {e: own[own["edit"] == e].set_index(["group", "item"])["nll"] for e in ("none", "without")}
        for about, rows in _grouped(own, ["edit", "asked"]):
            head = {
                **key,
                **{name: rows[name].mean() if name == "norm" else rows[name].iloc[0] for name in EDIT},
            }
            for measure in MEASURES if about["edit"] != "without" else ("perplexity",):
                if (found := _measure(measure, rows, before)) is not None:
                    values, names, how = found
                    told = how(values, names, stable_seed(measure, seed, *key.values(), *about.values())[0])
                    out.append({**head, "measure": measure, **told, "n": _count(rows, measure)})
    return pd.DataFrame(out)


def cluster(group: str, item: str) -> str:
    """What is resampled together: passages of a topic, and injections of a sequence."""
    return item.rsplit(" ", 1)[0] if group == "prose" else item.split(", seed ")[0]


def _count(rows: pd.DataFrame, measure: str) -> int:
    """Sequences or passages that a measure is of."""
    group = _of(measure)[0]
    return int(rows.loc[rows["group"] == group, "item"].nunique())


def _grouped(table: pd.DataFrame, keys: Sequence[str]) -> list[tuple[dict[str, Any], pd.DataFrame]]:
    found = table.groupby(list(keys), sort=False, dropna=False)
    return [(dict(zip(keys, key, strict=True)), rows) for key, rows in found]


Told = Callable[[np.ndarray, list[str], int], dict[str, float]]


def _of(measure: str) -> tuple[str, str]:
    """Group and column of a measure."""
    return {
        "targeted": ("targeted", "exact"),
        "held_out": ("held_out", "exact"),
        "targeted_hits": ("targeted", "hits"),
        "held_out_hits": ("held_out", "hits"),
        "accuracy": ("targeted", "accuracy"),
        "similarity": ("targeted", "similarity"),
        "never": ("never", "nll"),
        "prose": ("prose", "nll"),
        "prose_without": ("prose", "nll"),
        "perplexity": ("prose", "nll"),
    }[measure]


def _measure(
    name: str, rows: pd.DataFrame, before: dict[str, pd.Series]
) -> tuple[np.ndarray, list[str], Told] | None:
    """Values of a measure, what they are of, and how they are averaged."""
    group, column = _of(name)
    own = rows[rows["group"] == group]
    own = own[own[column].notna()]
    if own.empty or (name in ("accuracy", "similarity") and len(own) < (rows["group"] == group).sum()):
        return None
    values = own[column].to_numpy(float)
    if column == "nll" and name != "perplexity":
        base = before["without" if name == "prose_without" else "none"]
        if base.empty:
            return None
        values = values - base.loc[list(zip(own["group"], own["item"], strict=True))].to_numpy(float)
    how = {"targeted": _share, "held_out": _share}.get(name, _ratio if group == "prose" else _mean)
    return values, [cluster(group, name) for name in own["item"]], how


def _share(values: np.ndarray, names: list[str], seed: int) -> dict[str, float]:
    low, high = proportion_ci(values, names)
    return {"value": float(values.mean()), "ci_lo": low, "ci_hi": high}


def _mean(values: np.ndarray, names: list[str], seed: int) -> dict[str, float]:
    low, high = bootstrap_ci(values, names, seed=seed)
    return {"value": float(values.mean()), "ci_lo": low, "ci_hi": high}


def _ratio(values: np.ndarray, names: list[str], seed: int) -> dict[str, float]:
    return {name: float(np.exp(value)) for name, value in _mean(values, names, seed).items()}


HELD = 0.5
"""Of a memory at least so much has to be recited before anything can be deleted of it."""

AGAINST = {"units": "random"}
"""The control of a family: as many neurons. Other edits have controls of their own, see `controls_of`."""

DRAWN = ("random, ", "equal norm, ")
"""How controls of one edit are called, before its name: as many weights of each row, or weights that go as far."""


def controls_of(edit: str, family: str) -> list[str]:
    """Names of the controls that an edit can be held against."""
    shared = [AGAINST[family]] if family in AGAINST else []
    return [*shared, *(head + edit for head in DRAWN)]


CONTRASTS = (("targeted", "hits"), ("held_out", "hits"), ("never", "nll"), ("prose", "nll"))
"""What is contrasted, and in which column."""


def contrasts(
    table: pd.DataFrame, keys: Sequence[str] = ("subject", "memory"), *, seed: int = 0
) -> pd.DataFrame:
    """Each edit less the mean draw of its controls at the same dose, sequence by sequence.

    Returns:
        keys, edit, asked, against, measure (targeted, held_out: hits; never, prose: nats a token; specific: nats a
        token that held-out sequences rise, less those that sequences never seen rise), value, ci_lo, ci_hi (95 %,
        sequences or topics and draws resampled), p (signs of sequences flipped; NaN of specific), n (sequences), draws.
    """
    out: list[dict[str, Any]] = []
    for key, own in _grouped(table[table["variant"] == "given"], keys):
        at = {(about["edit"], about["asked"]): rows for about, rows in _grouped(own, ["edit", "asked"])}
        for (edit, asked), rows in at.items():
            for against in controls_of(edit, str(rows["family"].iloc[0])):
                if (against, asked) not in at:
                    continue
                about = {**key, "edit": edit, "asked": asked, "against": against}
                other = at[against, asked]
                entropy = stable_seed("contrast", seed, *map(str, about.values()))[0]
                for measure, column in CONTRASTS:
                    delta = _less(rows, other, measure, column)
                    if len(delta):
                        each = delta.mean(axis=1).to_numpy()
                        p = sign_flip(each, delta.index.to_numpy(), seed=entropy)
                        out.append({**about, "measure": measure, **jointly([(delta, 1)], entropy), "p": p})
                sides = [
                    (_less(rows, other, group, "nll"), sign)
                    for group, sign in (("held_out", 1), ("never", -1))
                ]
                if all(len(delta) for delta, _ in sides):
                    out.append({**about, "measure": "specific", **jointly(sides, entropy), "p": np.nan})
    return pd.DataFrame(out)


def _less(rows: pd.DataFrame, other: pd.DataFrame, group: str, column: str) -> pd.DataFrame:
    """What an edit gives less what each draw of a control does: clusters x draws."""
    own, drawn = rows[rows["group"] == group], other[other["group"] == group]
    if own.empty:
        return pd.DataFrame()
    wide = drawn.pivot_table(index="item", columns="draw", values=column, sort=False)
    delta = wide.mul(-1).add(own.groupby("item", sort=False)[column].mean(), axis=0)
    return delta.groupby([cluster(group, str(item)) for item in delta.index], sort=False).mean()


def jointly(sides: Sequence[tuple[pd.DataFrame, int]], seed: int, resamples: int = 2000) -> dict[str, Any]:
    """A signed sum of means over clusters and draws; clusters of each table are resampled, and draws of all at once.

    Args:
        sides: tables of clusters x draws, and their signs.

    Returns:
        value, ci_lo, ci_hi (NaN where a table has fewer than two clusters), n (clusters of the first), draws.
    """
    rng = np.random.default_rng(seed)
    draws = sides[0][0].shape[1]
    of_draws = rng.multinomial(draws, np.full(draws, 1 / draws), resamples) / draws
    total, value = np.zeros(resamples), 0.0
    for table, sign in sides:
        values, n = table.to_numpy(float), len(table)
        of_rows = rng.multinomial(n, np.full(n, 1 / n), resamples) / n
        total += sign * np.einsum("rn,nd,rd->r", of_rows, values, of_draws)
        value += sign * float(values.mean())
    few = min(len(table) for table, _ in sides) < 2
    low, high = (np.nan, np.nan) if few else np.percentile(total, [2.5, 97.5])
    return {"value": value, "ci_lo": float(low), "ci_hi": float(high), "n": len(sides[0][0]), "draws": draws}


NOTHING: dict[str, Any] = {"value": np.nan, "ci_lo": np.nan, "ci_hi": np.nan, "n": 0}
"""What is told of no rows."""


def elsewhere(items: pd.DataFrame, edit: str, *, seed: int = 0) -> dict[str, Any]:
    """Of what was recited behind prefixes written otherwise before an edit: the share that still is.

    No dose was chosen on it. A sequence and a variant are a trial; sequences are the clusters.
    """
    now = _trials(items, items[items["edit"] == edit])
    if now.empty:
        return NOTHING
    return {**_share(now["exact"].to_numpy(float), now["item"].tolist(), seed), "n": now["item"].nunique()}


def _trials(items: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Of rows, those of sequences and other prefixes that elicited them before any edit."""
    was = items[(items["edit"] == "none") & (items["exact"] == 1)]
    was = was[(was["group"] == "targeted") & (was["variant"] != "given")][["item", "variant"]]
    return rows.merge(was, on=["item", "variant"])


def beyond(
    items: pd.DataFrame, controls: pd.DataFrame, edit: str, *, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """What each control of an edit leaves recited behind other prefixes, less what the edit does.

    Args:
        items: of edits at their chosen doses. controls: of random ones at the dose of this edit, all draws.

    Returns:
        by control value, ci_lo, ci_hi (95 %, sequences and draws resampled), n, draws; above 0 the edit takes more.
    """
    own = _trials(items, items[items["edit"] == edit]).groupby("item", sort=False)["exact"].mean()
    out = {}
    for name, rows in controls.groupby("edit", sort=False):
        left = _trials(items, rows).pivot_table(index="item", columns="draw", values="exact", sort=False)
        delta = left.sub(own, axis=0).dropna()
        entropy = stable_seed("beyond", seed, edit, name)[0]
        out[str(name)] = jointly([(delta, 1)], entropy) if len(delta) else NOTHING
    return out


def chosen(doses: pd.DataFrame, spec: InjectionSpec) -> pd.DataFrame:
    """The dose that each edit is measured at: the least that erases what was located, else that which comes nearest.

    Nothing is erased of a memory of which less than half was recited before.

    Returns:
        subject, memory, edit, family, control, asked, dose, before, targeted, prose, erases.
    """
    wide = doses[doses["measure"].isin(["targeted", "prose"]) & (doses["edit"] != "without")]
    head = ["subject", "memory", *EDIT]
    wide = wide.pivot_table(index=head, columns="measure", values="value", sort=False).reset_index()
    out = []
    was = wide[wide["edit"] == "none"].set_index(["subject", "memory"])["targeted"]
    for (subject, memory, _), rows in wide[wide["edit"] != "none"].groupby(
        ["subject", "memory", "edit"], sort=False
    ):
        rows = rows.sort_values("dose", kind="stable")
        enough = rows[rows["targeted"] <= spec.erased]
        before = float(was.loc[(subject, memory)])
        erases = bool(len(enough)) and before >= HELD
        best = enough.iloc[0] if len(enough) else rows.iloc[int(np.argmin(rows["targeted"].to_numpy()))]
        out.append({**best.drop(labels=["norm"]).to_dict(), "before": before, "erases": erases})
    return pd.DataFrame(out)


def best(choice: pd.DataFrame) -> str | None:
    """The edit that a memory's deletion is judged by: of those that erase it the one that costs prose least.

    Neurons that are known to hold it are no edit that anyone could make.
    """
    able = choice[~choice["control"] & choice["erases"] & (choice["family"] != "known")]
    return None if able.empty else str(able.sort_values("prose", kind="stable")["edit"].iloc[0])


def to_attack(choice: pd.DataFrame, spec: InjectionSpec) -> list[str]:
    """Edits that erase what was located, those first that keep prose best; controls are never among them."""
    able = choice[choice["erases"] & ~choice["control"]]
    return able.sort_values("prose", kind="stable")["edit"].head(spec.attacks).tolist()


def prefixes(table: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """What is recited after prefixes that are written otherwise.

    Returns:
        subject, memory, edit, variant, measure (exact, hits), value, ci_lo, ci_hi, n; of the located sequences.
    """
    out: list[dict[str, Any]] = []
    own = table[table["group"] == "targeted"]
    for key, rows in _grouped(own, ["subject", "memory", "edit", "variant"]):
        names = rows["item"].tolist()
        for measure, how in (("exact", _share), ("hits", _mean)):
            entropy = stable_seed("prefixes", seed, *key.values(), measure)[0]
            told = how(rows[measure].to_numpy(float), names, entropy)
            out.append({**key, "measure": measure, **told, "n": len(names)})
    return pd.DataFrame(out)
