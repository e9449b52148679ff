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
    "edit": "none", "family": "none", "control": False, "asked": 0.0, "dose": 0.0, "norm": 0.0,
}  # fmt: skip
"""The model before."""
MEASURES = (
    "targeted",
    "held_out",
    "targeted_hits",
    "held_out_hits",
    "accuracy",
    "similarity",
    "never",
    "prose",
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

    Returns:
        keys, the columns of `EDIT`, measure, value, ci_lo, ci_hi (95 %, sequences or passages resampled), n. A measure
        that no cell tells of is left out.
    """
    out: list[dict[str, Any]] = []
    for key, own in _grouped(table[table["variant"] == "given"], keys):
        before = own[own["edit"] == "none"].set_index(["group", "item"])["nll"]
        for about, rows in _grouped(own, ["edit", "asked"]):
            head = {
                **key,
                **{name: rows[name].mean() if name == "norm" else rows[name].iloc[0] for name in EDIT},
            }
            for measure in MEASURES:
                if (found := _measure(measure, rows, before)) is not None:
                    values, names, how = found
                    told = how(values, names, stable_seed(measure, seed, *key.values(), *about.values())[0])
                    out.append({**head, "measure": measure, **told, "n": len(set(names))})
    return pd.DataFrame(out)


def _grouped(table: pd.DataFrame, keys: Sequence[str]) -> list[tuple[dict[str, Any], pd.DataFrame]]:
    found = table.groupby(list(keys), sort=False, dropna=False)
    return [(dict(zip(keys, key, strict=True)), rows) for key, rows in found]


Told = Callable[[np.ndarray, list[str], int], dict[str, float]]


def _measure(name: str, rows: pd.DataFrame, before: pd.Series) -> tuple[np.ndarray, list[str], Told] | None:
    """Values of a measure, what they are of, and how they are averaged."""
    group, column = {
        "targeted": ("targeted", "exact"),
        "held_out": ("held_out", "exact"),
        "targeted_hits": ("targeted", "hits"),
        "held_out_hits": ("held_out", "hits"),
        "accuracy": ("targeted", "accuracy"),
        "similarity": ("targeted", "similarity"),
        "never": ("never", "nll"),
        "prose": ("prose", "nll"),
    }[name]
    own = rows[rows["group"] == group]
    own = own[own[column].notna()]
    if own.empty or (name in ("accuracy", "similarity") and len(own) < (rows["group"] == group).sum()):
        return None
    values = own[column].to_numpy(float)
    if column == "nll":
        values = values - before.loc[list(zip(own["group"], own["item"], strict=True))].to_numpy(float)
    how = {"targeted": _share, "held_out": _share, "prose": _ratio}.get(name, _mean)
    return values, own["item"].tolist(), how


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

AGAINST = {"units": "random", "weights": "random weights"}
"""The control of a family: as many neurons, or as many weights of each row."""


def contrasts(
    table: pd.DataFrame, keys: Sequence[str] = ("subject", "memory"), *, seed: int = 0
) -> pd.DataFrame:
    """Each edit less the control of its family at the same dose, sequence by sequence.

    Returns:
        keys, edit, asked, against, measure (targeted, held_out: hits; never, prose: nats a token), value, ci_lo, ci_hi,
        p (signs of sequences flipped), n.
    """
    out: list[dict[str, Any]] = []
    for key, own in _grouped(table[table["variant"] == "given"], keys):
        at = {
            (about["edit"], about["asked"]): rows.set_index(["group", "item"])
            for about, rows in _grouped(own, ["edit", "asked"])
        }
        for (edit, asked), rows in at.items():
            against = AGAINST.get(str(rows["family"].iloc[0]))
            if against is None or (against, asked) not in at:
                continue
            other = at[against, asked]
            for measure, column in (
                ("targeted", "hits"),
                ("held_out", "hits"),
                ("never", "nll"),
                ("prose", "nll"),
            ):
                if measure not in rows.index:
                    continue
                delta = rows.loc[measure, column] - other.loc[measure, column]
                values, names = delta.to_numpy(float), [str(name) for name in delta.index]
                entropy = stable_seed("contrast", seed, *key.values(), edit, asked, measure)[0]
                told = _mean(values, names, entropy)
                p = sign_flip(values, names, seed=entropy)
                about = {"edit": edit, "asked": asked, "against": against, "measure": measure}
                out.append({**key, **about, **told, "p": p, "n": len(values)})
    return pd.DataFrame(out)


def chosen(doses: pd.DataFrame, spec: InjectionSpec) -> pd.DataFrame:
    """The dose that each edit is measured at: the least that erases what was located, else that which comes nearest.

    Nothing is erased of a memory of which less than half was recited before.

    Returns:
        subject, memory, edit, family, control, asked, dose, before, targeted, prose, erases.
    """
    wide = doses[doses["measure"].isin(["targeted", "prose"])]
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
