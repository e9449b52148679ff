"""Tables and lists of the page, as plain rows for its template."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from interp.plot.channels import MODES
from interp.plot.text import number, percent, signed, visible
from interp.report.figures import effect_table, score_table
from interp.report.tables import Tables

TOP_HEADS = 15
TOP_CHANNELS = 12
_ABSENT = {
    "scores": ("Layer by head map and ranking", "scores.parquet"),
    "rows": ("Example prompt and attention rows", "rows.json"),
    "effects": ("Dose curves, effect matrix and controls", "effects.parquet"),
    "channels": ("Graph of channels", "channels.parquet"),
    "channel_spectrum": ("Spectrum of components", "channel_spectrum.parquet"),
    "channel_effects": ("Effect of deleted channels", "channel_effects.parquet"),
    "fact_census": ("Facts that the model knows", "fact_census.parquet"),
    "fact_profile": ("Causal profile of facts", "fact_profile.parquet"),
    "fact_effects": ("Effect of cut fact MLPs", "fact_effects.parquet"),
    "patch": ("Activation patching", "patch.parquet"),
    "instances": ("Scoring diagnostics", "instances.parquet"),
}


def absent(tables: Tables) -> list[tuple[str, str]]:
    """What the page leaves out, and the file whose absence is the reason."""
    if tables.of_tasks:
        return []
    return [words for name, words in _ABSENT.items() if getattr(tables, name) is None]


def top_heads(tables: Tables) -> dict[str, Any] | None:
    """The best heads with every method's score and the mean of their KV group."""
    scores = tables.scores
    if scores is None or not {"component", "method", "layer", "head", "kv_head", "score", "se", "n"} <= set(
        scores
    ):
        return None
    methods = list(dict.fromkeys(scores["method"]))
    table = score_table(scores, TOP_HEADS)
    groups: dict[tuple[int, int], float] = {}
    if tables.groups is not None and {"layer", "kv_head", "method", "mean"} <= set(tables.groups):
        own = tables.groups[tables.groups["method"] == methods[0]]
        groups = {(int(r.layer), int(r.kv_head)): float(r.mean) for r in own.itertuples(index=False)}
    rows = []
    for rank, (_, row) in enumerate(table.iterrows(), 1):
        kv = row["KV group"]
        key = (int(row["layer"]), int(kv)) if pd.notna(kv) else (-1, -1)
        score = float(row[methods[0]])
        rows.append(
            {
                "rank": rank, "component": str(row["component"]),
                "score": number(score), "se": number(float(row["se"])),
                "bar": f"{100 * min(1.0, max(0.0, score)):.1f}", "n": int(row["n"]),
                "kv": "\u2013" if pd.isna(kv) else str(int(kv)),
                "others": [number(float(row[m])) for m in methods[1:]],
                "group": number(groups[key]) if key in groups else "",
            }
        )  # fmt: skip
    return {
        "method": methods[0],
        "others": methods[1:],
        "rows": rows,
        "grouped": bool(groups),
        "of": len(scores) // len(methods),
    }


def cuts(tables: Tables) -> list[dict[str, Any]]:
    """Exactly what was cut: one entry for each way, with the components of its largest dose in order."""
    effects = tables.effects
    need = [
        "mechanism",
        "locator",
        "mode",
        "scope",
        "reference",
        "condition",
        "k",
        "components",
        "draw",
        "task",
    ]
    if effects is None or not set(need) <= set(effects):
        return []
    by = ["mechanism", "locator", "mode", "scope", "reference"]
    rows = effects.assign(**{c: effects[c].fillna("").astype(str) for c in by})
    out = []
    for key, part in rows[rows["condition"] == "cut"].groupby(by, sort=False):
        mask = (rows[by] == list(key)).all(axis=1) & (rows["condition"] == "control")
        draws = rows[mask].groupby("k")["draw"].nunique()
        largest = part.loc[part["k"].idxmax()]
        out.append(
            {
                **dict(zip(by, key, strict=True)),
                "ks": ", ".join(str(int(k)) for k in sorted(part["k"].unique())),
                "components": str(largest["components"]).split(),
                "draws": _range(draws) if len(draws) else "none",
                "tasks": ", ".join(dict.fromkeys(part["task"].astype(str))),
            }
        )
    return out


def costs(tables: Tables) -> list[dict[str, str]]:
    """Off-target and control tasks under the main cut: before, after, change, interval, and what the controls do."""
    effects = tables.effects
    need = {
        "role",
        "task",
        "metric",
        "scope",
        "mode",
        "k",
        "value",
        "delta",
        "ci_lo",
        "ci_hi",
        "condition",
        "status",
    }
    if effects is None or not need <= set(effects):
        return []
    table = effect_table(effects, metric=None)
    table = table[
        table["role"].isin(["off_target", "control_task"]) & table["metric"].isin(["accuracy", "nll"])
    ]
    # One size of cut for each task: the run's own where it was measured, else the largest.
    sizes = table.groupby(["task", "metric", "scope", "mode"])["k"]
    own = sizes.transform(lambda ks: tables.top if (ks == tables.top).any() else ks.max())
    table = table[table["k"] == own]
    out = []
    for row in table.itertuples(index=False):
        chance = row.status == "at chance"
        ratio = f"\u00d7 {number(math.exp(float(row.delta)))}" if row.metric == "nll" and not chance else ""
        out.append(
            {
                "task": str(row.task), "role": str(row.role).replace("_", " "),
                "metric": "loss (nats per token)" if row.metric == "nll" else str(row.metric),
                "how": f"{int(row.k)} cut, {row.mode}, {row.scope}",
                "clean": "\u2013" if chance else number(float(row.clean), 3),
                "value": "\u2013" if chance else number(float(row.value), 3),
                "change": "at chance" if chance else signed(float(row.delta), 3),
                "interval": "" if chance else f"{number(float(row.ci_lo), 3)} to {number(float(row.ci_hi), 3)}",
                "controls": "" if chance else signed(float(row.controls), 3) if pd.notna(row.controls) else "\u2013",
                "perplexity": ratio,
            }
        )  # fmt: skip
    return out


def top_channels(tables: Tables) -> list[dict[str, Any]]:
    """The strongest channels that the heads of the main cut read: their components, and how far beyond chance."""
    edges, scores = tables.channels, tables.scores
    need = {"writer", "component", "reader", "mode", "value", "q", "channel", "place"}
    if edges is None or not need <= set(edges):
        return []
    names = set(tables.top_heads)
    if scores is not None and {"component", "layer", "kv_head"} <= set(scores):
        own = scores[scores["component"].isin(names)]
        groups = zip(own["layer"], own["kv_head"], strict=True)
        names |= {f"L{int(layer)}KV{int(kv)}" for layer, kv in groups if pd.notna(kv)}
    found = edges[(edges["channel"] >= 0) & edges["reader"].isin(names)].sort_values(["channel", "place"])
    out = []
    for _, rows in found.groupby("channel", sort=False):
        first = rows.iloc[0]
        out.append(
            {
                "reader": str(first["reader"]),
                "mode": MODES.get(str(first["mode"]), (str(first["mode"]), ""))[0],
                "components": [
                    f"{w}.{int(c)}" for w, c in zip(rows["writer"], rows["component"], strict=True)
                ],
                "value": number(float(first["value"])),
                "q": _tiny(float(first["q"])),
                "q_null": _tiny(float(first["q_null"])) if "q_null" in rows else "\u2013",
            }
        )
    return out[:TOP_CHANNELS]


_SUPERSCRIPT = str.maketrans("0123456789", "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079")


def _tiny(value: float) -> str:
    """A q-value, small ones by their power of ten."""
    if not math.isfinite(value):
        return "\u2013"
    if value >= 0.001:
        return number(value, 3)
    power = -math.ceil(math.log10(max(value, 1e-300)))
    return "< 10\u207b" + str(power).translate(_SUPERSCRIPT)


def scoring(tables: Tables) -> dict[str, Any] | None:
    """How many prompts the scores rest on, where the needles stood, and what the model said to the rejected ones."""
    told = tables.instances
    if told is None or not {"accepted", "recall"} <= set(told):
        return None
    accepted = told["accepted"].astype(bool)
    numbers = [
        ("accepted", f"{int(accepted.sum())} of {len(told)} ({percent(accepted.mean())})"),
        ("rejected", str(int((~accepted).sum()))),
    ]
    if "exact" in told:
        numbers.append(
            ("greedy output equal to the needle", f"{int(told['exact'].astype(bool).sum())} of {len(told)}")
        )
    numbers.append(("mean recall of the needle's tokens", number(float(told["recall"].mean()))))
    if {"depth", "depth_asked"} <= set(told) and told["depth"].notna().any():
        off = (told["depth"] - told["depth_asked"]).abs()
        numbers.append(
            (
                "depth realised",
                f"{number(float(told['depth'].min()))} to {number(float(told['depth'].max()))}",
            )
        )
        numbers.append(
            ("distance from the depth asked", f"mean {number(off.mean(), 3)}, largest {number(off.max(), 3)}")
        )
    if "length" in told:
        numbers.append(("prompt length (tokens)", _range(told["length"])))
    if "passes" in told:
        numbers.append(("forward passes a prompt", f"mean {number(float(told['passes'].mean()))}"))
    if "cluster" in told:
        numbers.append(("haystacks (units of resampling)", str(told["cluster"].nunique())))
    shown = [c for c in ("example", "length", "depth", "recall", "answer", "output") if c in told]
    failed = told[~accepted][shown].head(8)
    rows = [[_short(value) for value in row] for row in failed.itertuples(index=False)]
    return {
        "numbers": numbers,
        "columns": shown,
        "rejected": rows,
        "rest": int((~accepted).sum()) - len(failed),
    }


def flat(node: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as dotted names with their values."""
    return list(_flat(node, prefix))


def _flat(node: Any, prefix: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(node, list):
        yield prefix, ", ".join(visible(str(item)) for item in node)
    else:
        yield prefix, "\u2013" if node is None else visible(str(node))


def files(folder: Path) -> list[tuple[str, str]]:
    """Relative links to what the run wrote, with sizes."""
    from urllib.parse import quote

    patterns = ("*.parquet", "rows.json", "provenance.json", "spec.yaml", "figures/*.pdf", "figures/*.html")
    found = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
    return [(quote(path.relative_to(folder).as_posix()), _size(path.stat().st_size)) for path in found]


def _size(n: int) -> str:
    return f"{n} B" if n < 1000 else f"{n / 1000:.0f} kB" if n < 1e6 else f"{n / 1e6:.1f} MB"


def _range(values: Any) -> str:
    low, high = int(values.min()), int(values.max())
    return str(low) if low == high else f"{low} to {high}"


def _short(value: Any, most: int = 80) -> str:
    if isinstance(value, float):
        return number(value)
    text = visible(str(value))
    return text if len(text) <= most else text[: most - 1] + "\u2026"
