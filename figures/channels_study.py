"""Channels and circuits of smollm2: who talks to whom, lists before and after an edit, the circuits and their reuse.

    python figures/channels_study.py [--data figures/data/channels_study] [--out figures/build] [--formats png pdf]
    python figures/channels_study.py --numbers
    python figures/channels_study.py --readme
    python figures/channels_study.py --export figures/data/channels_study --channels runs/channels --ioi runs/ioi \\
        --laundry runs/laundry --reuse runs/reuse

Reads tables and nothing else: in the folder of data, `channels/` holds those of `interp channels smollm2 --out`,
`ioi/`, `laundry/` and `reuse/` those of `interp study ioi|laundry|circuit-reuse`. What is not there is left out.
`--readme` writes the numbers into the README beside the data, which a test compares with it. `--export` copies the
tables that figures and numbers need, with spec and provenance, out of the folders of the runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from study_script import copied, main, read

from interp import plot
from interp.plot.text import number

DATA = Path(__file__).parent / "data" / "channels_study"
README = DATA / "README.md"

TABLES = {
    "channels": ("channels", "channel_spectrum", "composition"),
    "ioi": ("edges", "heads", "confirm", "faithfulness", "knockout", "weights", "predicted"),
    "laundry": (
        "clean", "heads", "channels", "conditions", "gains", "over_controls", "in_weights", "neutral",
        "grid-1", "grid-2", "grid-3",
    ),
    "reuse": ("tasks", "effects", "overlap", "matrix", "repair_contrast", "repair_split"),
}  # fmt: skip
"""Tables of each part that figures and numbers come from."""

EDITS = 4
"""Edits of the laundry list that are drawn, the best on validation first."""
STRONG = 0.05
"""Share of the gap that the strongest path into a stage has to carry for the stage to be drawn."""
SCORE = "component"
"""Score by the weights that the edges of the circuit are held against."""


def figures(data: Path = DATA) -> dict[str, go.Figure]:
    """Every figure that the tables allow, by its name."""
    return channel_figures(data) | ioi_figures(data) | laundry_figures(data) | reuse_figures(data)


def channel_figures(data: Path) -> dict[str, go.Figure]:
    """The graph with the heads of the IOI circuit marked, the spectrum, and where heads compose."""
    out: dict[str, go.Figure] = {}
    edges, spectrum = read(data, "channels", "channels"), read(data, "channels", "channel_spectrum")
    composition = read(data, "channels", "composition")
    if edges is not None:
        out["channels-study-graph"] = plot.channel_graph(edges, classes(data), by=strength(edges))
    if spectrum is not None:
        out["channels-study-spectrum"] = plot.component_spectrum(spectrum)
    if composition is not None:
        out["channels-study-composition"] = plot.composition_map(composition)
    return out


def strength(edges: pd.DataFrame) -> str:
    """Column of the graph's edges: without hubs where that was computed."""
    return "apart" if "apart" in edges else "value"


def classes(data: Path) -> dict[str, str]:
    """Class of each head of the IOI circuit, of its first stage; eight classes at most, those without a name last."""
    heads = read(data, "ioi", "heads")
    if heads is None:
        return {}
    own = heads.drop_duplicates("component")
    kept = sorted(dict.fromkeys(own["class"]), key=lambda kind: kind.startswith("other"))[:8]
    return {c: k for c, k in zip(own["component"], own["class"], strict=True) if k in kept}


def ioi_figures(data: Path) -> dict[str, go.Figure]:
    """Path-patching effects stage by stage, and whether the weights know the edges."""
    out: dict[str, go.Figure] = {}
    edges, weights = read(data, "ioi", "edges"), read(data, "ioi", "weights")
    if edges is not None:
        drawn = edges[edges["stage"].isin(strong(edges))]
        out["channels-study-ioi"] = plot.circuit_heads(drawn.assign(receivers=drawn["stage"]), classes(data))
    if weights is not None:
        told = known(weights, read(data, "ioi", "predicted"))
        if told["in_circuit"].nunique() == 2:
            out["channels-study-ioi-edges"] = plot.edge_matrix(told)
    return out


def strong(edges: pd.DataFrame) -> list[str]:
    """Stages with a path of `STRONG` of the gap or more; a page has no room for maps of the others, the table has."""
    peak = edges.groupby("stage", sort=False)["effect"].agg(lambda e: e.abs().max())
    return list(peak[peak >= STRONG].index)


def known(weights: pd.DataFrame, predicted: pd.DataFrame | None, score: str = SCORE) -> pd.DataFrame:
    """Paths into each stage of the circuit by their rank in one score of the weights, and the p-value of its AUROC.

    Scores of different inputs do not compare, so stages are pooled by rank; single stages have one path or a few.
    """
    out = weights.rename(columns={"sender": "writer", "chosen": "in_circuit"})
    out = out.assign(reader=out["stage"], mode="all stages", score=out.groupby("stage")[score].rank(pct=True))
    out = out.drop_duplicates(["writer", "reader"])
    if predicted is not None:
        own = predicted[(predicted["score"] == score) & (predicted["stage"] == "all")]
        out = out.assign(p=float(own["p"].iloc[0]) if len(own) else np.nan)
    return out


def laundry_figures(data: Path) -> dict[str, go.Figure]:
    """Accuracy by the number of things before and after the edits, beside their controls; and walks over channels."""
    out: dict[str, go.Figure] = {}
    gains, conditions = read(data, "laundry", "gains"), read(data, "laundry", "conditions")
    if gains is not None:
        out["channels-study-laundry"] = plot.accuracy_by_items(
            by_items(gains, conditions), "templates", what="accuracy among the listed things"
        )
    for rank in (1, 2, 3):
        grid = read(data, "laundry", f"grid-{rank}")
        if grid is not None:
            out[f"channels-study-grid-{rank}"] = walk(grid)
    return out


def by_items(gains: pd.DataFrame, conditions: pd.DataFrame | None) -> pd.DataFrame:
    """Accuracies by length of list: the intact model, the first edits, and the controls of the very first.

    A control's kind is its edit's with what is drawn behind a colon; its draws are one line.
    """
    rows = gains[gains["items"] > 0].rename(columns={"accuracy": "value"})
    if conditions is None:
        return rows
    kind = conditions.set_index("condition")["kind"].astype(str)
    edits = [c for c in dict.fromkeys(rows["condition"]) if c != "clean" and ": " not in kind.get(c, "")]
    rows = rows.assign(kind=rows["condition"].map(kind).fillna(""))
    control = rows["kind"].str.startswith(f"{edits[0]}: ") if edits else rows["kind"].eq(None)
    rows = rows.assign(
        control=rows["kind"].str.partition(": ")[2].where(control, ""),
        condition=rows["condition"].where(~control, "control"),
    )
    return rows[rows["condition"].isin(["clean", "control", *edits[:EDITS]])]


def walk(grid: pd.DataFrame) -> go.Figure:
    """Which place of the list wins over a channel's coordinates in standard deviations, for the shortest lists."""
    rows = grid[grid["point"] >= 0]
    axes = [c for c in ("s0", "s1", "s2") if c in rows and rows[c].notna().any()]
    rows = rows.assign(item=rows["place"].astype(int) - int(rows["place"].min()), share=rows["wins"])
    if len(axes) < 3 and rows["items"].nunique() > 1:
        return plot.traversal_grid(
            rows[rows["items"].isin(sorted(set(rows["items"]))[:3])], axes, facet="items"
        )
    rows = rows[rows["items"] == rows["items"].min()]
    if len(axes) == 3:
        # Three panels are what a page has room for: the ends and the middle of the third coordinate.
        steps = np.array(sorted(set(rows["s2"])))
        rows = rows[rows["s2"].isin(steps[[0, len(steps) // 2, -1]])]
    return plot.traversal_grid(rows, axes)


def reuse_figures(data: Path) -> dict[str, go.Figure]:
    """Each task's circuit cut on every task, and what the circuits share."""
    out: dict[str, go.Figure] = {}
    effects, overlap = read(data, "reuse", "effects"), read(data, "reuse", "overlap")
    if effects is not None:
        out["channels-study-reuse"] = plot.cross_task_matrix(judged(effects))
    if overlap is not None:
        own = overlap[overlap["stage"] == "all"] if "stage" in overlap else overlap
        nulls = list(dict.fromkeys(own["null"]))
        null = "layers" if "layers" in nulls else nulls[0]
        out["channels-study-overlap"] = plot.overlap_matrix(own[own["null"] == null])
    return out


def judged(effects: pd.DataFrame) -> pd.DataFrame:
    """Each task in one metric (the choice among candidates, else accuracy), and one kind of control."""
    has = effects.groupby("task")["metric"].agg(set)
    first = {
        t: next((m for m in ("choice", "accuracy", "logit_diff") if m in own), "") for t, own in has.items()
    }
    rows = effects[effects["metric"] == effects["task"].map(first)]
    kinds = [k for k in dict.fromkeys(rows["control"].fillna("")) if k]
    rows = rows[(rows["condition"] != "control") | (rows["control"] == (kinds[0] if kinds else ""))]
    return rows[(rows["condition"] != "clean") | ~rows.duplicated(["task", "condition"])]


def numbers(data: Path = DATA) -> str:
    """What the tables say, as the README beside the data has it."""
    blocks = (
        _channels, _ioi, _work, _alone, _knockout, _predicted, _lists, _lengths,
        _floors, _shared, _matrix, _repair, _sure,
    )  # fmt: skip
    return "\n\n".join(text for block in blocks if (text := block(data)))


def _channels(data: Path) -> str:
    edges = read(data, "channels", "channels")
    if edges is None:
        return ""
    n = int(edges["channel"].max()) + 1 if "channel" in edges else 0
    beyond = int((edges["q_null"] <= 0.05).sum())
    return f"{n} channels; {beyond} of {len(edges)} components beat anti-causal pairs (q 0.05)."


def _ioi(data: Path) -> str:
    """Heads by class and stage, with what the same path does on the other seed."""
    heads, confirm = read(data, "ioi", "heads"), read(data, "ioi", "confirm")
    if heads is None:
        return ""
    again = {} if confirm is None else confirm.set_index(["sender", "stage"])["effect"].to_dict()
    lines = [
        "| class | head | stage | effect, 95 % interval | on the other seed |",
        "|---|---|---|---|---|",
    ]
    for r, kind in zip(heads.itertuples(), heads["class"], strict=True):
        other = again.get((r.component, r.stage))
        lines.append(
            f"| {kind} | {r.component} | {r.stage} | {_ends(r)} | {'' if other is None else number(other)} |"
        )
    if confirm is not None:
        lines.append(
            f"\n{int(confirm['confirmed'].sum())} of {len(confirm)} chosen paths have the same sign on the other seed "
            "and a q-value up to 0.05."
        )
    return "\n".join(lines)


def _ends(row: Any) -> str:
    return f"{number(row.effect)} [{number(row.ci_lo)}, {number(row.ci_hi)}]"


def _work(data: Path) -> str:
    """Token-layers of each stage's paths against two full passes a sender."""
    edges = read(data, "ioi", "edges")
    if edges is None or "naive_token_layers" not in edges:
        return ""
    own = edges.groupby(["stage", "receivers"], sort=False)[["token_layers", "naive_token_layers"]].first()
    ratios = own["naive_token_layers"] / own["token_layers"]
    return (
        f"Paths of all heads took {number(ratios.min(), 1)} to {number(ratios.max(), 1)} times fewer token-layers than "
        "two full passes a sender."
    )


def _alone(data: Path) -> str:
    """What the circuit does with all other heads replaced."""
    found = read(data, "ioi", "faithfulness")
    if found is None:
        return ""
    lines = [
        "| others replaced by | kept | heads | logit difference | share of the intact model, 95 % interval |"
    ]
    lines.append("|---|---|---|---|---|")
    for (mode, kept), own in found.groupby(["mode", "kept"], sort=False):
        share = f"{number(own['faithfulness'].mean())}"
        if len(own) > 1:
            low, high = own["faithfulness"].min(), own["faithfulness"].max()
            share += f" (of {len(own)} draws, {number(low)} to {number(high)})"
        else:
            share += f" [{number(own['ci_lo'].iloc[0])}, {number(own['ci_hi'].iloc[0])}]"
        lines.append(
            f"| {mode} | {kept} | {int(own['k'].iloc[0])} | {number(own['logit_diff'].mean())} | {share} |"
        )
    return "\n".join(lines)


def _knockout(data: Path) -> str:
    """Each class cut, beside matched others."""
    rows = read(data, "ioi", "knockout")
    if rows is None:
        return ""
    own = rows[rows["metric"] == "logit_diff"]
    lines = [
        "| cut | heads | logit difference | change, 95 % interval | matched others |",
        "|---|---|---|---|---|",
    ]
    for name, part in own.groupby("class", sort=False):
        cut = part[part["condition"] == "cut"].iloc[0]
        drawn = part[part["condition"] == "control"]["delta"]
        beside = f"{number(drawn.mean())} (of {len(drawn)} draws)" if len(drawn) else ""
        lines.append(
            f"| {name} | {cut['components']} | {number(cut['value'])} | {number(cut['delta'])} "
            f"[{number(cut['ci_lo'])}, {number(cut['ci_hi'])}] | {beside} |"
        )
    return "\n".join(lines)


def _predicted(data: Path) -> str:
    """Do scores of the weights know the paths: AUROC by stage, against the same layers' other heads."""
    predicted = read(data, "ioi", "predicted")
    if predicted is None:
        return ""
    own = predicted.dropna(subset="auroc")
    scores = list(dict.fromkeys(own["score"]))
    lines = [
        f"| stage | paths of pairs | by layers alone | {' | '.join(scores)} |",
        "|---" * (len(scores) + 3) + "|",
    ]
    for stage, part in own.groupby("stage", sort=False):
        by = part.set_index("score")
        first = by.iloc[0]
        cells = (f"{number(by.at[c, 'auroc'])} (p {number(by.at[c, 'p'], 4)})" for c in scores)
        lines.append(
            f"| {stage} | {int(first['positives'])} of {int(first['n'])} | {number(first['expected'])} | "
            f"{' | '.join(cells)} |"
        )
    return "\n".join(lines)


def _lists(data: Path) -> str:
    """Each edit over all lengths: test accuracy, templates that only the test has, and what prose pays."""
    gains, over = read(data, "laundry", "gains"), read(data, "laundry", "over_controls")
    conditions, neutral = read(data, "laundry", "conditions"), read(data, "laundry", "neutral")
    if gains is None or over is None or conditions is None or neutral is None:
        return ""
    what = conditions.set_index("condition")
    prose = neutral.set_index("condition")
    rows = gains[(gains["items"] == 0) & ~gains["condition"].str.contains(":", regex=False)]
    held = rows[rows["templates"] == "held"].set_index("condition")
    lines = [
        "| edit at the last token | what | accuracy | gain, 95 % interval | over its controls | new templates | "
        "whole vocabulary | prose, nats a token |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in rows[rows["templates"] == "all"].itertuples():
        name, own = str(r.condition), over[(over["condition"] == r.condition) & (over["items"] == 0)]
        beside = "; ".join(f"{str(c.control).partition(': ')[2]} {number(c.gain)}" for c in own.itertuples())
        edit = f"{what.at[name, 'edit']}, {what.at[name, 'size']}" if name in what.index else "intact"
        gain = f"{number(r.gain)} [{number(r.gain_lo)}, {number(r.gain_hi)}]" if name in what.index else ""
        paid = number(prose.at[name, "change"]) if name in what.index else ""
        lines.append(
            f"| {name} | {edit} | {number(r.accuracy)} | {gain} | {beside} | {number(held.at[name, 'accuracy'])} | "
            f"{number(r.full)} | {paid} |"
        )
    return "\n".join(lines)


def _lengths(data: Path) -> str:
    """Accuracy by the number of things, of the intact model and the edits that gain."""
    gains = read(data, "laundry", "gains")
    if gains is None:
        return ""
    rows = gains[(gains["templates"] == "all") & (gains["items"] > 0)]
    rows = rows[~rows["condition"].str.contains(":", regex=False)]
    lengths = sorted(set(rows["items"]))
    lines = [
        f"| things | {' | '.join(f'{int(n)}' for n in lengths)} |",
        "|---" * (len(lengths) + 1) + "|",
        "| chance | " + " | ".join(number(1 / n) for n in lengths) + " |",
    ]
    for name, own in rows.groupby("condition", sort=False):
        by = own.set_index("items")["accuracy"]
        lines.append(f"| {name} | " + " | ".join(number(by[n]) for n in lengths) + " |")
    return "\n".join(lines)


def _floors(data: Path) -> str:
    """Which tasks the model does above the floor."""
    tasks = read(data, "reuse", "tasks")
    if tasks is None:
        return ""
    lines = ["| task | setting | among candidates, 95 % interval | chance | |", "|---|---|---|---|---|"]
    for r in tasks.itertuples():
        lines.append(
            f"| {r.task} | {r.settings} | {number(r.choice)} [{number(r.ci_lo)}, {number(r.ci_hi)}] "
            f"| {number(r.chance)} | {'taken' if r.taken else r.status} |"
        )
    return "\n".join(lines)


def _shared(data: Path) -> str:
    """Heads that circuits share, against heads drawn from the same layers."""
    overlap = read(data, "reuse", "overlap")
    if overlap is None:
        return ""
    own = overlap[(overlap["null"] == "layers") & (overlap["stage"] == "all")]
    lines = ["| circuits | heads | shared | expected of the same layers | q |", "|---|---|---|---|---|"]
    for r in own.itertuples():
        lines.append(
            f"| {r.a}, {r.b} | {r.n_a}, {r.n_b} | {r.shared} | {number(r.expected, 1)} | {number(r.q, 3)} |"
        )
    return "\n".join(lines)


def _matrix(data: Path) -> str:
    """Change of the choice among candidates when each circuit is cut, and beyond heads of the same layers."""
    matrix = read(data, "reuse", "matrix")
    if matrix is None:
        return ""
    own = matrix[(matrix["metric"] == "choice") & (matrix["control"] == "layer")]
    circuits = list(dict.fromkeys(own["circuit"]))
    lines = [
        f"| task (intact) | {' | '.join(f'circuit of {c}' for c in circuits)} |",
        "|---" * (len(circuits) + 1) + "|",
    ]
    for task, part in own.groupby("task", sort=False):
        by = part.set_index("circuit")
        first = by.iloc[0]
        if first["status"] != "ok":
            lines.append(f"| {task} ({first['status']}) |" + " |" * len(circuits))
            continue
        cells = (f"{number(by.at[c, 'delta'])} ({number(by.at[c, 'excess'])})" for c in circuits)
        lines.append(f"| {task} ({number(first['clean'])}) | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _repair(data: Path) -> str:
    """Heads of Colored Objects whose attention is set, beside random heads of the same layers."""
    rows = read(data, "reuse", "repair_contrast")
    if rows is None:
        return ""
    lines = [
        "| heads | look at | chosen | metric | after | change, 95 % interval | random heads, mean (sd) | rank |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in rows[rows["metric"].isin(["choice", "accuracy"])].itertuples():
        lines.append(
            f"| {r.components} | {r.keys} | {r.locator} | {r.metric} | {number(r.value)} | {number(r.delta)} "
            f"[{number(r.ci_lo)}, {number(r.ci_hi)}] | {number(r.control_mean)} ({number(r.control_sd)}) | "
            f"{int(r.rank)} of {int(r.n_controls) + 1} |"
        )
    return "\n".join(lines)


def _sure(data: Path) -> str:
    """The same by how sure the intact model was, beyond random heads."""
    rows = read(data, "reuse", "repair_split")
    if rows is None:
        return ""
    own = rows[rows["metric"] == "choice"]
    quarters = sorted(set(own["class"]))
    lines = [
        "| choice beyond random heads | " + " | ".join(f"quarter {int(q) + 1}" for q in quarters) + " |",
        "|---" * (len(quarters) + 1) + "|",
    ]
    for name, part in own.groupby("set", sort=False):
        by = part.set_index("class")
        lines.append(f"| {name} | " + " | ".join(f"{number(by.at[q, 'excess'])}" for q in quarters) + " |")
    return "\n".join(lines)


def export(runs: dict[str, Path], to: Path) -> list[Path]:
    """Copy what figures are made of, with spec and provenance, part by part.

    Of composition scores the figure shows the highest of any two layers: no others are kept.
    """
    out = copied(TABLES, runs, to)
    scores = read(to, "channels", "composition") if "channels" in runs else None
    if scores is not None:
        best = scores.groupby(["mode", "writer_layer", "reader_layer"], sort=False)["value"].idxmax()
        scores.loc[best.dropna()].to_parquet(to / "channels" / "composition.parquet", index=False)
    return out


if __name__ == "__main__":
    main(__doc__, DATA, tuple(TABLES), figures, numbers, export)
