"""What each job costs with interp and with its peers, beside the bounds it has to keep.

    python figures/benchmarks.py [--out figures/build] [--formats png pdf]
    python figures/benchmarks.py --readme

Reads the files that `make bench` writes (figures/data/benchmarks, one a job, with versions, machine and all rounds) and
nothing else. `--readme` writes the table into the README, which a test compares with it. Where a bound is missed,
`notes.yaml` beside the files says what the profile shows.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import yaml

from interp import plot
from interp.plot import theme
from interp.plot.text import listed, number, safe, wrapped

ROOT = Path(__file__).parents[1]
DATA = Path(__file__).parent / "data" / "benchmarks"
BEGIN, END = "<!-- benchmarks -->", "<!-- /benchmarks -->"

Found = Mapping[str, Any]

_MARKS = ("diamond-open", "square-open", "triangle-up-open", "circle-open", "x-thin-open")
_INKS = (theme.VERMILLION, theme.GREEN, theme.PURPLE, theme.ORANGE, theme.SKY)
_ROW, _LEFT, _RIGHT = 42.0, 268.0, 16.0


def load(data: Path = DATA) -> list[dict[str, Any]]:
    """Every job that was measured, in the order of the jobs."""
    found = [json.loads(path.read_text()) for path in data.glob("*.json")]
    return sorted(found, key=lambda job: (job["place"], job["name"]))


def notes(data: Path = DATA) -> dict[str, str]:
    """What is to be said of a job, by its name."""
    path = data / "notes.yaml"
    return dict(yaml.safe_load(path.read_text()) or {}) if path.exists() else {}


# -- the figure ------------------------------------------------------------------------------------------------------


def bound(job: Found) -> float | None:
    """The tightest bound on the time of ours, in bare forward passes a cell; None where times are not bounded."""
    found = []
    for reach in job["reaches"]:
        if reach["quantity"] == "ours/bare":
            found.append(reach["bound"] * reach["over"])
        elif reach["quantity"].endswith("/ours") and not reach["quantity"].startswith("memory "):
            peer = reach["quantity"].removesuffix("/ours")
            cost = 1.0 if peer == "bare" else job["ratios"][f"{peer}/bare"]["cpu"]["median"]
            found.append(cost / (reach["bound"] * reach["over"]))
    return min(found, default=None)


def costs(job: Found) -> dict[str, dict[str, float]]:
    """CPU time a cell, in bare forward passes, of ours and of each peer: median and interval."""
    return {
        quantity.removesuffix("/bare"): clocks["cpu"]
        for quantity, clocks in job["ratios"].items()
        if quantity.endswith("/bare")
    }


def figure(jobs: Sequence[Found]) -> go.Figure:
    """Dots and intervals on a log axis of bare forward passes: ours, its bound, and the peers."""
    jobs = [job for job in jobs if costs(job)]
    peers = list(dict.fromkeys(name for job in jobs for name in costs(job) if name != "ours"))
    font, plot_width = theme.font_px("double"), theme.pixels("double") - _LEFT - _RIGHT
    entry = 0.6 * font * max(len(name) for name in ("interp", *peers))
    legend = 1.9 * font * math.ceil((len(peers) + 2) / (plot_width // (entry + 40)))
    fig = theme.figure(
        "Cost of one cell, head or condition",
        "CPU time over that of the bare forward pass; medians of ratios within a round, 95 % intervals",
        width="double",
        plot_height=_ROW * len(jobs),
        left=_LEFT,
        right=_RIGHT,
        bottom=38,
        top=legend,
        alt="Dots on a log axis, one row a job: " + listed(_said(job) for job in jobs),
    )
    for i, job in enumerate(jobs):
        limit = bound(job)
        if limit is not None:
            fig.add_shape(
                type="line", x0=limit, x1=limit, y0=i - 0.36, y1=i + 0.36, line={"color": theme.INK, "width": 1.5}
            )  # fmt: skip
    for name, mark, ink in [
        ("ours", "circle", theme.BLUE),
        *zip(peers, _MARKS * 2, _INKS * 2, strict=False),
    ]:
        rows = [
            (i + _offset(job, name), costs(job)[name]) for i, job in enumerate(jobs) if name in costs(job)
        ]
        fig.add_trace(
            go.Scatter(
                x=[cost["median"] for _, cost in rows],
                y=[i for i, _ in rows],
                error_x={
                    "array": [cost["high"] - cost["median"] for _, cost in rows],
                    "arrayminus": [cost["median"] - cost["low"] for _, cost in rows],
                    "thickness": 1.2,
                    "width": 0,
                },
                mode="markers",
                marker={"symbol": mark, "color": ink, "size": 8, "line": {"width": 1.5, "color": ink}},
                name="interp" if name == "ours" else safe(name),
                hovertemplate="%{x:.3g} bare forward passes",
            )
        )
    if any(bound(job) is not None for job in jobs):
        fig.add_trace(
            go.Scatter(
                x=[None], y=[None], mode="markers", name="bound", hoverinfo="skip",
                marker={"symbol": "line-ns-open", "color": theme.INK, "size": 11, "line": {"width": 1.5}},
            )
        )  # fmt: skip
    fig.update_yaxes(
        range=[len(jobs) - 0.5, -0.5],
        tickvals=list(range(len(jobs))),
        ticktext=["<br>".join(safe(x) for x in wrapped(job["title"], _LEFT - 16, font)) for job in jobs],
        showgrid=False,
        ticks="",
    )
    fig.update_xaxes(
        type="log",
        title="bare forward passes (log scale)",
        showgrid=True,
        tickvals=(ticks := [m * 10.0**e for e in range(-4, 4) for m in (1, 2, 5)]),
        ticktext=[f"{tick:g}" for tick in ticks],
        range=[math.log10(x) for x in _limits(jobs)],
    )
    fig.add_vline(x=1, line={"color": theme.MUTED, "width": 1, "dash": "dot"})
    fig.update_layout(
        legend={
            "orientation": "h", "x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom",
            "entrywidth": entry, "itemwidth": 30,
        }
    )  # fmt: skip
    return fig


def _offset(job: Found, name: str) -> float:
    """Peers of a row stand below each other, since many cost the same; ours is in the middle."""
    peers = [peer for peer in costs(job) if peer != "ours"]
    return 0.0 if name == "ours" or len(peers) < 2 else 0.5 * (peers.index(name) / (len(peers) - 1) - 0.5)


def _limits(jobs: Sequence[Found]) -> tuple[float, float]:
    values = [1.0, *(b for job in jobs if (b := bound(job)) is not None)]
    values += [cost[key] for job in jobs for cost in costs(job).values() for key in ("low", "high")]
    return min(values) / 1.3, max(values) * 1.3


def _said(job: Found) -> str:
    limit = bound(job)
    against = "" if limit is None else f", bound {limit:.3g}"
    peers = [f"{name} {cost['median']:.3g}" for name, cost in costs(job).items() if name != "ours"]
    return (
        f"{job['title']}: interp {costs(job)['ours']['median']:.3g}{against}, {', '.join(peers) or 'no peer'}"
    )


# -- the table -------------------------------------------------------------------------------------------------------


def readme(data: Path = DATA) -> str:
    """What the files say, as the README has it."""
    jobs, remarks = load(data), notes(data)
    if not jobs:
        return "Nothing was measured yet: `make bench`."
    lines = ["| job | reach | measured (95 % interval) | |", "|---|---|---|---|"]
    for job in jobs:
        for i, row in enumerate(_rows(job)):
            lines.append(f"| {job['title'] if i == 0 else ''} | {row} |")
    lines += ["", *_footer(jobs)]
    said = [f"- {job['title']}: {remarks[job['name']].strip()}" for job in jobs if job["name"] in remarks]
    return "\n".join([*lines, *(["", *said] if said else [])])


def _rows(job: Found) -> Iterator[str]:
    for reach in job["reaches"]:
        value = _short(reach["value"])
        if reach["wall"] is not None and job["rounds"] > 1:
            value += f" [{_short(reach['low'])}, {_short(reach['high'])}]"
        yield f"{reach['text']} | {value} | {'met' if reach['met'] else '**missed**'}"
    if job["equal"] is not None:
        equal = job["equal"]
        verdict = "met" if equal["met"] else "**missed**"
        yield f"equal to {equal['tolerance']:.0e} | {equal['difference']:.1e} | {verdict}"


def _short(value: float) -> str:
    """Three digits that count."""
    if value == 0 or not math.isfinite(value):
        return number(value, 0)
    return number(value, min(4, max(0, 2 - math.floor(math.log10(abs(value))))))


def _footer(jobs: Sequence[Found]) -> Iterator[str]:
    def each(key: str) -> str:
        return listed(dict.fromkeys(str(job[key]) for job in jobs))

    versions = jobs[0]["versions"]
    tools = ", ".join(
        f"{name} {versions[name]}" for name in ("torch", "transformers", "transformer-lens", "nnsight")
    )
    yield (
        f"CPU time; medians over {each('rounds')} rounds of ratios within a round. {each('model')} on {each('cpu')}, "
        f"{each('threads')} thread a job, {each('date')}; {tools}. Slow peers ran a sample of the cells, stated in "
        "each file of [figures/data/benchmarks](figures/data/benchmarks)."
    )


def write_readme(path: Path, data: Path = DATA) -> None:
    """Put the table between its marks."""
    text = path.read_text(encoding="utf-8")
    pattern = re.compile(f"{re.escape(BEGIN)}\n.*?{re.escape(END)}", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"{path} has no block {BEGIN} ... {END}")
    block = f"{BEGIN}\n{readme(data)}\n{END}"
    path.write_text(pattern.sub(lambda _: block, text), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "build")
    parser.add_argument("--formats", nargs="+", default=["json", "html", "pdf", "svg", "png"])
    parser.add_argument("--readme", action="store_true", help="write the README's table")
    args = parser.parse_args()
    if args.readme:
        write_readme(ROOT / "README.md", args.data)
        return
    jobs = load(args.data)
    if not jobs:
        raise SystemExit(f"{args.data} has no results; run `make bench`")
    args.out.mkdir(parents=True, exist_ok=True)
    drawn = {args.out / "benchmarks": figure(jobs)}
    for path in plot.write_all(drawn, tuple(args.formats), plotlyjs="directory"):
        print(path)


if __name__ == "__main__":
    main()
