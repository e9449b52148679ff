"""Curves of recall: a metric over what an example is asked at (position, set size, length, updates, depth).

`curve` reduces the frame of `Outcomes.frame` to one row a point, with intervals over clusters. What curves are summed
up by: `slope` (the cost of one more thing to hold) and `ends` (primacy and recency). `recovery` says how much of what
a corruption took an intervention gives back.

    >>> import pandas as pd
    >>> frame = pd.DataFrame({"items": [2, 2, 4, 4], "accuracy": [1.0, 1, 1, 0], "chance": [0.5, 0.5, 0.25, 0.25]})
    >>> curve(frame.assign(cluster=list("abcd")), by="items")[["x", "value", "n", "chance"]].values.tolist()
    [[2.0, 1.0, 2.0, 0.5], [4.0, 0.5, 2.0, 0.25]]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from interp.errors import UsageError
from interp.measure.metrics import BINARY
from interp.measure.stats import LEVEL, bootstrap_ci, proportion_ci

POINTS = 16
"""Values of x up to which each is a point of its own; with more, they are put into bins."""
BINS = 8
DRAWS = 2000


def curve(
    frame: pd.DataFrame,
    by: str = "position",
    metric: str = "accuracy",
    *,
    within: str | Sequence[str] = (),
    bins: int | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """A metric over a quantity of the examples.

    Args:
        frame: rows of `Outcomes.frame`; where it holds several conditions, they must be told apart by `within`.
        by: column of numbers: `position`, `items`, `length`, `updates`, `depth`, `distance`, ...
        metric: column of the metric.
        within: columns whose combinations have curves of their own; all curves share their bins.
        bins: bins of equally many rows; None takes the values themselves, if there are `POINTS` or fewer, else `BINS`.
        seed: of the resampling.

    Returns:
        one row a point: the columns of `within`, x (of a bin: the mean of its rows), value, ci_lo, ci_hi (95 %, over
        clusters: of proportions exact, else bootstrapped and NaN for a single cluster), n, n_clusters, chance (of a
        uniform guess; NaN for metrics that are no proportion) and x_lo, x_hi (least and largest x of the rows). Rows
        without x or metric are left out.

    Raises:
        UsageError: a column is missing or holds no numbers, no row is left, or conditions would be mixed.
    """
    inside = [within] if isinstance(within, str) else list(within)
    kept = _rows(frame, by, metric, inside)
    cells = _cells(kept["_x"].to_numpy(), bins)
    rows = []
    for rows_of, about in _groups(kept.assign(_cell=cells), [*inside, "_cell"]):
        low, high = _interval(metric, rows_of, seed)
        x = rows_of["_x"]
        rows.append(
            {
                **{name: about[name] for name in inside},
                "x": float(x.mean()),
                "value": float(rows_of[metric].mean()),
                "ci_lo": low,
                "ci_hi": high,
                "n": len(rows_of),
                "n_clusters": rows_of["cluster"].nunique(),
                "chance": float(rows_of["chance"].mean()) if metric in BINARY else np.nan,
                "x_lo": float(x.min()),
                "x_hi": float(x.max()),
            }
        )
    return pd.DataFrame(rows)


def slope(
    frame: pd.DataFrame,
    by: str = "items",
    metric: str = "accuracy",
    *,
    within: str | Sequence[str] = (),
    seed: int = 0,
) -> pd.DataFrame:
    """Change of a metric a unit of `by`, by least squares: of `items`, the cost of one more thing to hold.

    Args:
        frame, by, metric, within, seed: as for `curve`.

    Returns:
        one row a combination of `within`: its columns, slope, ci_lo, ci_hi (95 %, whole clusters resampled; NaN for a
        single cluster), n, n_clusters. The slope is NaN where all rows have one x.

    Raises:
        UsageError: as for `curve`.
    """
    inside = [within] if isinstance(within, str) else list(within)

    def fitted(weight: Float[np.ndarray, "d n"], x: np.ndarray, y: np.ndarray) -> Float[np.ndarray, " d"]:
        mean = weight @ x / weight.sum(1)
        apart = weight * (x[None] - mean[:, None])
        spread = (apart * x).sum(1)
        told = spread > 1e-12
        return np.where(told, (apart @ y) / np.where(told, spread, 1.0), np.nan)

    return _statistic(_rows(frame, by, metric, inside), "slope", metric, inside, fitted, seed)


def ends(
    frame: pd.DataFrame,
    metric: str = "accuracy",
    *,
    by: str = "position",
    of: str = "items",
    within: str | Sequence[str] = (),
    seed: int = 0,
) -> pd.DataFrame:
    """Primacy and recency: the first, or last, third of the positions against the middle one.

    Args:
        frame, metric, within, seed: as for `curve`.
        by: column of the position, from 1.
        of: column of how many positions there are.

    Returns:
        two rows a combination of `within`: its columns, effect (`primacy`, `recency`), value (mean of that third minus
        mean of the middle), ci_lo, ci_hi (95 %, whole clusters resampled), n, n_clusters. NaN where a third is empty.

    Raises:
        UsageError: as for `curve`.
    """
    inside = [within] if isinstance(within, str) else list(within)
    kept = _rows(frame, by, metric, [*inside, of])
    # The middle of a place among n lies at (p - 1/2) / n, so that lists of all lengths have three thirds.
    place = (kept["_x"] - 0.5) / kept[of].astype(float)
    parts = []
    for effect, outer in (("primacy", place < 1 / 3), ("recency", place > 2 / 3)):
        middle = place.between(1 / 3, 2 / 3)
        rows = kept.assign(_x=outer.astype(float))[outer | middle]
        if rows.empty:
            continue
        found = _statistic(rows, "value", metric, inside, _difference, seed)
        found.insert(len(inside), "effect", effect)
        parts.append(found)
    return pd.concat(parts, ignore_index=True).sort_values([*inside, "effect"], ignore_index=True)


def recovery(
    clean: Sequence[float] | np.ndarray,
    corrupt: Sequence[float] | np.ndarray,
    patched: Sequence[float] | np.ndarray,
    *,
    least: float = 1e-3,
) -> pd.DataFrame:
    """What an intervention gives back of what a corruption took: (patched - corrupt) / (clean - corrupt).

    Zero: as corrupt as before; one: as clean; beyond both is possible.

    Args:
        clean, corrupt, patched: a metric of the same examples.
        least: smallest difference between clean and corrupt that is divided by.

    Returns:
        one row an example: clean, corrupt, patched, recovery and reason, which says why recovery is NaN and is empty
        where it is a number.

    Raises:
        UsageError: they have not as many values, or `least` is not above 0.
    """
    columns = {"clean": clean, "corrupt": corrupt, "patched": patched}
    given = {name: np.asarray(values, dtype=float) for name, values in columns.items()}
    if len({v.shape for v in given.values()}) > 1:
        sizes = ", ".join(f"{len(v)} {name}" for name, v in given.items())
        raise UsageError(f"recovery: {sizes} values; give the metric of the same examples three times")
    if not least > 0:
        raise UsageError(f"recovery: least={least}; take a difference above 0")
    out = pd.DataFrame(given)
    gap = out["clean"] - out["corrupt"]
    out["recovery"] = ((out["patched"] - out["corrupt"]) / gap).where(gap.abs() >= least)
    out["reason"] = ""
    out.loc[gap.abs() < least, "reason"] = f"clean and corrupt do not differ by {least:g}"
    for name in given:
        out.loc[out[name].isna(), "reason"] = f"{name} has no value"
    return out


def _rows(frame: pd.DataFrame, by: str, metric: str, inside: Sequence[str]) -> pd.DataFrame:
    """The rows that have x and metric, with x as numbers in `_x`."""
    for name in (by, metric, "cluster", "chance", *inside):
        if name not in frame:
            numbers = [c for c in frame if pd.api.types.is_numeric_dtype(frame[c])]
            raise UsageError(
                f"curve: the frame has no column '{name}'; those of numbers are {', '.join(numbers)}"
            )
    for name in (by, metric):
        if not pd.api.types.is_numeric_dtype(frame[name]):
            raise UsageError(f"curve: column '{name}' holds no numbers; give it as `within`")
    conditions = frame["condition"].unique() if "condition" in frame and "condition" not in inside else []
    if len(conditions) > 1:
        raise UsageError(
            f"curve: the frame holds the conditions {', '.join(map(str, conditions))}; take one of them, or "
            "within='condition'"
        )
    kept = frame.assign(_x=frame[by].astype(float)).dropna(subset=["_x", metric, *inside])
    if kept.empty:
        raise UsageError(f"curve: no row has both {by} and {metric}")
    return kept


def _cells(x: Float[np.ndarray, " n"], bins: int | None) -> np.ndarray:
    """Number of the point that each x belongs to."""
    values, at = np.unique(x, return_inverse=True)
    if bins is None and len(values) <= POINTS:
        return np.asarray(at)
    edges = np.quantile(x, np.linspace(0, 1, (bins or BINS) + 1)[1:-1], method="higher")
    return np.searchsorted(np.unique(edges), x, side="right")


def _groups(frame: pd.DataFrame, by: Sequence[str]) -> Iterator[tuple[pd.DataFrame, dict[str, Any]]]:
    if not by:
        yield frame, {}
        return
    for key, rows in frame.groupby(list(by)):
        yield rows, dict(zip(by, key, strict=True))


def _interval(metric: str, rows: pd.DataFrame, seed: int) -> tuple[float, float]:
    values, clusters = rows[metric].to_numpy(float), rows["cluster"].to_numpy()
    return proportion_ci(values, clusters) if metric in BINARY else bootstrap_ci(values, clusters, seed=seed)


def _difference(weight: Float[np.ndarray, "d n"], x: np.ndarray, y: np.ndarray) -> Float[np.ndarray, " d"]:
    """Mean of y where x is 1 minus that where it is 0, under each row of weights; NaN where one of them is empty."""
    out: np.ndarray = np.full(len(weight), 0.0)
    for sign, chosen in ((1, x == 1), (-1, x == 0)):
        total = weight[:, chosen].sum(1)
        out += sign * np.where(total > 0, weight[:, chosen] @ y[chosen] / np.maximum(total, 1), np.nan)
    return out


_Fit = Callable[[Float[np.ndarray, "d n"], np.ndarray, np.ndarray], Float[np.ndarray, " d"]]


def _statistic(
    kept: pd.DataFrame, name: str, metric: str, inside: Sequence[str], fit: _Fit, seed: int
) -> pd.DataFrame:
    """A statistic of x and metric, with its percentile interval when whole clusters are resampled."""
    rows = []
    for part, about in _groups(kept, inside):
        x, y = part["_x"].to_numpy(float), part[metric].to_numpy(float)
        codes, clusters = pd.factorize(part["cluster"])
        value = float(fit(np.ones((1, len(part))), x, y)[0])
        low = high = np.nan
        if len(clusters) > 1 and not np.isnan(value):
            picks = np.random.default_rng(seed).multinomial(
                len(clusters), np.full(len(clusters), 1 / len(clusters)), size=DRAWS
            )
            drawn = fit(picks[:, codes].astype(float), x, y)
            low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        rows.append({**about, name: value, "ci_lo": low, "ci_hi": high, "n": len(part)})
        rows[-1]["n_clusters"] = len(clusters)
    return pd.DataFrame(rows)
