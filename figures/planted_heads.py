"""Which heads each score picks where the mechanism is known: planted models, their decoys, and noise until all fails.

    python figures/planted_heads.py [--out figures/build] [--formats png pdf]
    python figures/planted_heads.py --readme

Reads figures/data/planted_heads/scores.parquet, which `python -m tests.planted.table` computes, and nothing else.
`--readme` writes the tables into the README beside it, which a test compares with it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp import plot
from interp.plot import theme
from interp.plot.sheet import Sheet

DATA = Path(__file__).parent / "data" / "planted_heads"
README = DATA / "README.md"
BEGIN, END = "<!-- tables -->", "<!-- /tables -->"

PANELS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "literal",
        "retrieval heads",
        ("retrieval", "silent", "salient", "ahead", "duplicate", "sink", "random"),
    ),
    ("distance", "one distance", ("retrieval", "silent", "offset")),
    ("place", "one place", ("retrieval", "silent", "place")),
    ("semantic", "semantic heads", ("semantic", "silent", "ahead", "duplicate", "carrier", "random")),
)
"""Circuit, its caption, and the heads that are told apart in it."""

GOOD = ("retrieval", "semantic")
CURVES = ("copy", "needle_mass", "qr", "dla", "locos", "locos, evidence", "cri")
_INKS = (theme.BLUE, theme.ORANGE, theme.GREEN, theme.PURPLE, theme.SKY, theme.INK, theme.VERMILLION)


def load(data: Path = DATA) -> pd.DataFrame:
    """The table, with one name for a score and its needle."""
    frame = pd.read_parquet(data / "scores.parquet")
    evidence = frame["needle"] == "evidence"
    return frame.assign(name=frame["score"].where(~evidence, frame["score"] + ", evidence"))


def names(frame: pd.DataFrame) -> list[str]:
    """Scores in their order, each followed by its variant."""
    scores = list(dict.fromkeys(frame["score"]))
    return [n for s in scores for n in (s, f"{s}, evidence") if (frame["name"] == n).any()]


def figures(data: Path = DATA) -> dict[str, go.Figure]:
    """Every figure by its name."""
    frame = load(data)
    return {"planted-heads": picked(frame), "planted-heads-noise": curves(frame)}


def picked(frame: pd.DataFrame) -> go.Figure:
    """Score x kind of head: how many of these heads stand among the top k."""
    clear = frame[frame["noise"] == 0]
    rows = names(clear)
    columns = [(circuit, role) for circuit, _, own in PANELS for role in own]
    at: list[float] = []
    starts = {}
    for circuit, _, own in PANELS:  # half a cell between the panels
        start = at[-1] + 1.5 if at else 0.0
        starts[circuit] = start
        at += [start + i for i in range(len(own))]
    width = "double"
    font = theme.font_px(width)
    left, right = 11.2 * font, 5.6 * font
    tall = 1.6 * font
    fig = theme.figure(
        "Which heads each score picks, of planted ones",
        "share of the heads of a kind among the top k, k being the number of heads that work; mean of the families",
        width=width, plot_height=tall * len(rows), left=left, right=right, bottom=5.6 * font, top=1.8 * font,
        alt="Heat map of scores by kinds of planted heads: the share of each kind among the k best.",
    )  # fmt: skip
    shown = True
    for circuit, caption, own in PANELS:
        part = clear[clear["circuit"] == circuit].groupby("name")[list(own)].mean()
        z = part.reindex(rows).to_numpy(float)
        x = [starts[circuit] + i for i in range(len(own))]
        fig.add_heatmap(
            z=z, x=x, y=list(range(len(rows))), zmin=0, zmax=1, colorscale=theme.VIRIDIS, xgap=1, ygap=1,
            hoverongaps=False, showscale=shown, name=caption,
            customdata=[[f"{row}: {role} ({caption})" for role in own] for row in rows],
            hovertemplate="%{customdata}<br>%{z:.2f} of them are picked<extra></extra>",
            colorbar=theme.colorbar("share picked", 14 * font, font),
        )  # fmt: skip
        shown = False
        fig.add_annotation(
            x=x[0] - 0.5, y=1, yref="paper", yanchor="bottom", yshift=0.3 * font, xanchor="left", xshift=-3,
            text=caption, font={"weight": 600, "size": 0.92 * font},
        )  # fmt: skip
        for (line, place), value in np.ndenumerate(z):
            if np.isfinite(value) and value >= 0.005:
                text = "1" if value > 0.995 else f"{value:.2f}".removeprefix("0")
                ink = theme.on(float(value), theme.VIRIDIS)
                fig.add_annotation(x=x[place], y=line, text=text, font={"color": ink, "size": 0.78 * font})
    labels = [f"<b>{role}</b>" if role in GOOD else role for _, role in columns]
    fig.update_xaxes(
        tickvals=at, ticktext=labels, tickangle=-90, ticks="", showline=False, range=[-0.5, at[-1] + 0.5]
    )
    fig.update_yaxes(
        tickvals=list(range(len(rows))),
        ticktext=rows,
        ticks="",
        showline=False,
        range=[len(rows) - 0.5, -0.5],
    )
    return fig


def curves(frame: pd.DataFrame) -> go.Figure:
    """How many planted heads are found while noise blurs all weights, beside what the model still recalls."""
    panels = (
        ("literal", "retrieval heads, beside silent ones"),
        ("semantic", "semantic heads, beside silent ones"),
    )
    sheet = Sheet.of(
        "Found until the circuit fails",
        "share of the planted heads among the top k, and of needles that the model still recalls",
        [caption for _, caption in panels], "double",
        alt="Curves of the share of planted heads that each score finds, by the noise in all weights.",
    )  # fmt: skip
    for panel, (circuit, _) in enumerate(panels):
        part = frame[frame["circuit"] == circuit]
        for name, ink in zip(CURVES, _INKS, strict=True):
            mean = part[part["name"] == name].groupby("noise")["found"].mean()
            sheet.fig.add_scatter(
                x=mean.index, y=mean, name=name, legendgroup=name, showlegend=panel == 0,
                mode="lines+markers", line={"color": ink, "width": 1.6}, marker={"size": 5}, **sheet.at(panel),
            )  # fmt: skip
        once = part[part["name"] == CURVES[0]]
        for what, values, dash in (
            ("the model recalls", once.groupby("noise")["clean"].mean(), "dot"),
            ("by chance", (once["k"] / once["heads"]).groupby(once["noise"]).mean(), "dash"),
        ):
            sheet.fig.add_scatter(
                x=values.index, y=values, name=what, legendgroup=what, showlegend=panel == 0, mode="lines",
                line={"color": theme.CONTROL, "width": 1.4, "dash": dash}, **sheet.at(panel),
            )  # fmt: skip
        sheet.axes(
            panel, "noise in every weight", "share found" if panel == 0 else "", (-0.02, 0.62), (-0.03, 1.04)
        )
    more = 1.4 * sheet.font
    sheet.fig.update_layout(
        height=sheet.fig.layout.height + more, margin_b=sheet.fig.layout.margin.b + more,
        legend={
            "orientation": "h", "x": 0.5, "xanchor": "center", "xref": "container", "y": 0, "yref": "container",
            "yanchor": "bottom",
        },
    )  # fmt: skip
    sheet.fig.update_xaxes(title_standoff=16)
    return sheet.fig


# -- the tables of the README ----------------------------------------------------------------------------------------


def tables(data: Path = DATA) -> str:
    """What the figures show, in numbers."""
    frame = load(data)
    clear = frame[frame["noise"] == 0]
    out = [
        "| score | found | AUROC | recall after the cut | semantic found | AUROC | recall after the cut | one distance "
        "| one place | mixed: retrieval | mixed: semantic | taken for a head that works |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    mean = clear.groupby(["name", "circuit"])[["found", "auroc", "cut", "retrieval", "semantic"]].mean()
    for name in names(clear):
        cells = [_cell(mean, name, "literal", c) for c in ("found", "auroc", "cut")]
        cells += [_cell(mean, name, "semantic", c) for c in ("found", "auroc", "cut")]
        cells += [_cell(mean, name, circuit, "found") for circuit in ("distance", "place")]
        cells += [_cell(mean, name, "mixed", c) for c in ("retrieval", "semantic")]
        out.append(f"| {name} | {' | '.join(cells)} | {_mistaken(clear, name)} |")
    levels = sorted(set(frame["noise"]))
    out += [
        "",
        "| score | " + " | ".join(f"retrieval, noise {n:g}" for n in levels) + " | "
        + " | ".join(f"semantic, noise {n:g}" for n in levels) + " |",
        "|---" * (1 + 2 * len(levels)) + "|",
    ]  # fmt: skip
    blurred = frame.groupby(["name", "circuit", "noise"])[["found", "clean"]].mean()
    for name in [n for n in names(frame) if n != "duo"]:
        cells = [f"{blurred.loc[(name, c, n), 'found']:.2f}" for c in ("literal", "semantic") for n in levels]
        out.append(f"| {name} | {' | '.join(cells)} |")
    cells = [f"{blurred.loc[('copy', c, n), 'clean']:.2f}" for c in ("literal", "semantic") for n in levels]
    out.append(f"| *recall of the model* | {' | '.join(cells)} |")
    return "\n".join(out)


def _cell(mean: pd.DataFrame, name: str, circuit: str, column: str) -> str:
    return f"{mean.loc[(name, circuit), column]:.2f}" if (name, circuit) in mean.index else "\u2013"


def _mistaken(clear: pd.DataFrame, name: str) -> str:
    """Kinds of heads that do not work, of which a fifth or more are picked in some circuit."""
    idle = sorted({r for _, _, own in PANELS for r in own} - set(GOOD) | {"support", "previous", "two_back"})
    rates = clear[clear["name"] == name].groupby("circuit")[idle].mean().max()
    return (
        ", ".join(f"{r} {v:.2f}" for r, v in rates.sort_values(ascending=False).items() if v >= 0.2) or "none"
    )


def written(text: str, block: str) -> str:
    """The README with the tables in their place."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{block}\n{END}{rest.split(END)[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "build")
    parser.add_argument("--formats", nargs="+", default=["json", "html", "pdf", "svg", "png"])
    parser.add_argument("--readme", action="store_true", help="write the tables into the README of the data")
    args = parser.parse_args()
    if args.readme:
        README.write_text(written(README.read_text(), tables()))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    drawn = {args.out / name: figure for name, figure in figures().items()}
    for path in plot.write_all(drawn, tuple(args.formats), plotlyjs="directory"):
        print(path)


if __name__ == "__main__":
    main()
