"""The tables of a run folder, as far as they are there."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from interp.errors import BrokenData, MissingResource

FRAMES = (
    "scores",
    "groups",
    "instances",
    "effects",
    "channels",
    "channel_spectrum",
    "channel_effects",
    "fact_census",
    "fact_profile",
    "fact_layers",
    "fact_effects",
    "patch",
    "recall",
    "recall_curves",
    "recall_ages",
)


@dataclass
class Tables:
    """What a run left behind; a table that is absent or empty is None."""

    folder: Path
    scores: pd.DataFrame | None = None
    groups: pd.DataFrame | None = None
    instances: pd.DataFrame | None = None
    effects: pd.DataFrame | None = None
    channels: pd.DataFrame | None = None
    channel_spectrum: pd.DataFrame | None = None
    channel_effects: pd.DataFrame | None = None
    fact_census: pd.DataFrame | None = None
    fact_profile: pd.DataFrame | None = None
    fact_layers: pd.DataFrame | None = None
    fact_effects: pd.DataFrame | None = None
    patch: pd.DataFrame | None = None
    recall: pd.DataFrame | None = None
    recall_curves: pd.DataFrame | None = None
    recall_ages: pd.DataFrame | None = None
    rows: dict[str, Any] | None = None
    spec: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def model(self) -> str:
        """Name of the model, from the spec, the provenance or the effects."""
        said = self.spec.get("model") or self.provenance.get("model")
        if not said and self.effects is not None and "subject" in self.effects:
            said = self.effects["subject"].iloc[0]
        return str(said or self.folder.name)

    @property
    def of_tasks(self) -> bool:
        """Whether the run asked tasks, and looked for no mechanism."""
        others = (name for name in (*FRAMES, "rows") if not name.startswith("recall"))
        return self.recall is not None and all(getattr(self, name) is None for name in others)

    @property
    def top_heads(self) -> list[str]:
        """The heads of the main cut, best first; ten where the spec does not say how many."""
        scores = self.scores
        if scores is None or not {"method", "score", "component"} <= set(scores.columns):
            return []
        own = scores[scores["method"] == scores["method"].iloc[0]]
        best = own.sort_values("score", ascending=False, kind="stable")["component"]
        return best.head(self.top or 10).tolist()

    @property
    def top(self) -> int | None:
        """How many components the run's main cut has, where its spec says so."""
        top = self.spec.get("top")
        return int(top) if isinstance(top, int) else None


def read(folder: str | Path) -> Tables:
    """Read a run folder.

    Raises:
        MissingResource: the folder is not there, or holds none of a run's files.
        BrokenData: a file in it cannot be read; the message names it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MissingResource(
            f"there is no run folder '{folder}'; make one with: interp atlas MODEL --out {folder}"
        )
    tables = Tables(folder)
    for name in FRAMES:
        path = folder / f"{name}.parquet"
        if path.exists():
            frame = _frame(path)
            setattr(tables, name, None if frame.empty else frame)
    tables.rows = _json(folder / "rows.json")
    tables.provenance = _json(folder / "provenance.json") or {}
    tables.spec = _yaml(folder / "spec.yaml")
    if not tables.spec and all(getattr(tables, name) is None for name in (*FRAMES, "rows")):
        raise MissingResource(
            f"'{folder}' holds no run (no spec.yaml, no {', '.join(f'{n}.parquet' for n in FRAMES)}); "
            "give the folder that interp atlas wrote"
        )
    return tables


def _frame(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as why:
        raise BrokenData(
            f"{path}: not a readable Parquet table ({' '.join(str(why).split())}); run again"
        ) from why


def _json(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as why:
        raise BrokenData(f"{path}: not valid JSON ({why}); run again") from why
    if not isinstance(value, dict):
        raise BrokenData(f"{path}: expected an object, found {type(value).__name__}; run again")
    return value or None


def _yaml(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as why:
        raise BrokenData(f"{path}: not valid YAML ({' '.join(str(why).split())})") from why
    if not isinstance(value, dict):
        raise BrokenData(f"{path}: a spec is a mapping of names to values")
    return value
