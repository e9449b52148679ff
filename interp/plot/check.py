"""What a figure asks of the frame it is given; what is missing is named in one line."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

import numpy as np
import pandas as pd

from interp.errors import UsageError

SCORES = ("component", "method", "layer", "head", "kv_head", "score", "se", "n")
EFFECTS = (
    "subject", "task", "role", "mechanism", "locator", "condition", "draw", "k", "components", "mode", "scope",
    "reference", "metric", "value", "delta", "ci_lo", "ci_hi", "n", "status",
)  # fmt: skip
PATCH = ("kind", "direction", "layer", "position", "token", "role", "head", "recovery", "n")
INSTANCES = ("example", "accepted", "recall", "depth", "depth_asked", "length")


def need(frame: pd.DataFrame, columns: Sequence[str], what: str, numeric: Iterable[str] = ()) -> pd.DataFrame:
    """`frame`, once it has all `columns`, at least one row, and numbers where numbers are needed.

    Raises:
        UsageError: names the frame (`what`) and every missing or non-numeric column.
    """
    if not isinstance(frame, pd.DataFrame):
        raise UsageError(f"{what}: expected a pandas DataFrame, got {type(frame).__name__}")
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise UsageError(
            f"{what}: missing columns {', '.join(missing)}; it has {', '.join(map(str, frame.columns)) or 'none'}"
        )
    wrong = [name for name in numeric if not pd.api.types.is_numeric_dtype(frame[name])]
    if wrong:
        kinds = ", ".join(f"{name} ({frame[name].dtype})" for name in wrong)
        raise UsageError(f"{what}: columns that must hold numbers do not: {kinds}")
    if frame.empty:
        raise UsageError(f"{what}: the table has no rows, so there is nothing to draw")
    return frame


def choose(frame: pd.DataFrame, column: str, value: str | None, what: str) -> tuple[pd.DataFrame, str]:
    """Rows in which `column` is `value`, and the value; the first that occurs where None is asked for.

    Raises:
        UsageError: no row has it; the message lists what there is.
    """
    present = list(dict.fromkeys(frame[column].astype(str)))
    wanted = present[0] if value is None else value
    if wanted not in present:
        raise UsageError(f"{what}: no {column} {wanted!r}; the table has {', '.join(present)}")
    return frame[frame[column].astype(str) == wanted], wanted


def integers(frame: pd.DataFrame, columns: Iterable[str], what: str) -> None:
    """Raise `UsageError` unless the columns hold whole numbers that are not missing."""
    for name in columns:
        column = frame[name]
        if column.isna().any() or (column != column.round()).any():
            raise UsageError(f"{what}: column {name} must hold whole numbers")


def scale_of(panel: str, ratios: Collection[str], what: str) -> Callable[[Sequence[float]], np.ndarray]:
    """Where values of a panel stand on its axis: at their decimal logarithms in panels of ratios, else as they are.

    Raises:
        UsageError: by what is returned, where a ratio is not above 0.
    """

    def logarithms(values: Sequence[float]) -> np.ndarray:
        if (np.asarray(values, float) <= 0).any():
            raise UsageError(f"{what}: {panel!r} holds ratios that are not above 0; draw it on a plain scale")
        return np.log10(values)

    return logarithms if panel in ratios else np.asarray
