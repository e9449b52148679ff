"""The figures of a run, each a function of its tables: the page shows them, `write_figures` puts them into files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from interp.errors import UsageError
from interp.plot.theme import Width
from interp.report.tables import Tables, read

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True)
class Chart:
    """A figure of the run.

    Attributes:
        name: file name and anchor.
        needs: the table it is made from.
        draw: makes it at a width.
        data: the numbers in it, for the table under the figure.
        page_only: one of many alike, for the page's selector; no file is written for it.
    """

    name: str
    needs: str
    draw: Callable[[Width], go.Figure]
    data: Callable[[], pd.DataFrame]
    page_only: bool = False


def charts(tables: Tables) -> list[Chart]:
    """Figures that these tables can give, in the order of the page. A table's columns are checked when it is drawn."""
    from interp import plot
    from interp.report import facts, recall

    out: list[Chart] = []
    scores, effects, instances, patch, rows = (
        tables.scores, tables.effects, tables.instances, tables.patch, tables.rows,
    )  # fmt: skip
    if scores is not None:
        out += [
            Chart("heads", "scores", lambda w: plot.head_map(scores, width=w), lambda: score_table(scores)),
            Chart(
                "ranking",
                "scores",
                lambda w: plot.score_ranking(scores, width=w),
                lambda: score_table(scores, 30),
            ),
        ]
    if rows is not None and _heads(rows) and rows.get("tokens"):
        told = rows
        for head in (None, *_heads(told)):
            out.append(
                Chart(
                    f"attention-{head}" if head else "attention", "rows",
                    lambda w, head=head: plot.attention_rows(  # type: ignore[misc]
                        told["tokens"], told["heads"], told.get("roles"), answer=told.get("answer", ()), head=head,
                        width=w,
                    ),
                    lambda head=head: attention_table(told, head),  # type: ignore[misc]
                    page_only=head is not None,
                )
            )  # fmt: skip
    if effects is not None:
        for scope in _scopes(effects):
            part = _of_scope(effects, scope)
            out.append(
                Chart(
                    f"dose-{scope}", "effects", lambda w, part=part: plot.dose_curve(part, width=w),  # type: ignore[misc]
                    lambda part=part: effect_table(part),  # type: ignore[misc]
                )
            )  # fmt: skip
        main, k = _of_scope(effects, main_scope(effects)), _main_k(effects, tables.top)
        out += [
            Chart("matrix", "effects", lambda w: plot.effect_matrix(main, k=k, width=w), lambda: effect_table(main, k)),
            Chart(
                "controls", "effects", lambda w: plot.control_strip(effects, k=k, width=w),
                lambda: effect_table(effects, k),
            ),
        ]  # fmt: skip
    out += [*channel_charts(tables), *facts.charts(tables), *recall.charts(tables)]
    if patch is not None:
        out.append(
            Chart("patching", "patch", lambda w: plot.patch_map(patch, width=w), lambda: patch_table(patch))
        )
    if instances is not None and _has_depth(instances):
        out.append(
            Chart(
                "instances", "instances", lambda w: plot.instance_map(instances, width=w),
                lambda: instances[[c for c in INSTANCE_COLUMNS if c in instances]],
            )
        )  # fmt: skip
    return out


def channel_charts(tables: Tables) -> list[Chart]:
    """Figures of the channel section: the graph, the spectrum with its nulls, and what deleting channels does."""
    from interp import plot

    out: list[Chart] = []
    edges, spectrum, effects = tables.channels, tables.channel_spectrum, tables.channel_effects
    if edges is not None:
        shape: dict[str, Any] = {key: tables.provenance.get(key) for key in ("layers", "heads", "kv_heads")}
        marked = dict.fromkeys(tables.top_heads, "retrieval heads")
        out.append(
            Chart(
                "channels", "channels",
                lambda w: plot.channel_graph(edges, marked, width=w, **shape),
                lambda: edge_table(edges),
            )
        )  # fmt: skip
    if spectrum is not None:
        out.append(
            Chart(
                "spectrum", "channel_spectrum", lambda w: plot.component_spectrum(spectrum, width=w),
                lambda: spectrum_table(spectrum),
            )
        )  # fmt: skip
    if effects is not None:
        out.append(
            Chart(
                "channel-cut", "channel_effects",
                lambda w: plot.control_strip(effects, "logprob", _largest(effects), width=w),
                lambda: effect_table(effects, metric=None),
            )
        )  # fmt: skip
        if effects["k"].nunique() > 2:
            out.append(
                Chart(
                    "channel-doses", "channel_effects", lambda w: plot.dose_curve(effects, width=w),
                    lambda: effect_table(effects),
                )
            )  # fmt: skip
    return out


def _largest(effects: pd.DataFrame) -> int:
    return int(effects["k"].max())


def edge_table(edges: pd.DataFrame, top: int = 100) -> pd.DataFrame:
    """The strongest components and who reads them."""
    columns = [
        "writer",
        "component",
        "reader",
        "mode",
        "value",
        "writer_share",
        "q",
        "q_apart",
        "q_null",
        "channel",
    ]
    return edges.head(top)[[c for c in columns if c in edges]]


def spectrum_table(spectrum: pd.DataFrame) -> pd.DataFrame:
    """Numbers of pairs of components by the tenth that their cosine falls in."""
    tenth = (spectrum["low"] * 10).astype(int) / 10
    by = (
        [spectrum["mode"], tenth.rename("cosine from")]
        if "mode" in spectrum
        else [tenth.rename("cosine from")]
    )
    columns = [c for c in ("causal", "anticausal", "expected") if c in spectrum]
    return spectrum.groupby(by, sort=False)[columns].sum().reset_index()


def write_figures(folder: str | Path, *, static: bool | None = None, width: Width = "double") -> list[Path]:
    """Write every figure of a run folder into its `figures/`: JSON and HTML, and PDF, SVG and PNG.

    The HTML files share one `plotly.min.js` beside them. A figure whose table is malformed is left out; the page says
    which and why.

    Args:
        folder: a run folder.
        static: also write PDF, SVG and PNG; None does so where a browser is found.
        width: outer width; see `interp.plot.theme.WIDTHS`.

    Returns:
        the paths written.

    Raises:
        MissingResource: no such run; or `static` is True and there is no browser.
    """
    from interp import plot
    from interp.plot.export import FORMATS

    tables = read(folder)
    drawn: dict[Path, go.Figure] = {}
    for chart in charts(tables):
        fig = None if chart.page_only else try_draw(chart, width)
        if fig is not None and not isinstance(fig, str):
            drawn[tables.folder / "figures" / chart.name] = fig
    formats = None if static is None else FORMATS if static else FORMATS[:2]
    return plot.write_all(drawn, formats, plotlyjs="directory") if drawn else []


def try_draw(chart: Chart, width: Width) -> go.Figure | str:
    """The figure, or the one line that says why there is none."""
    try:
        return chart.draw(width)
    except UsageError as why:
        return str(why)


INSTANCE_COLUMNS = (
    "example",
    "accepted",
    "exact",
    "recall",
    "length",
    "depth_asked",
    "depth",
    "answer",
    "output",
)


def score_table(scores: pd.DataFrame, top: int | None = None) -> pd.DataFrame:
    """All methods' scores side by side, best head of the first method first."""
    keys = ["component", "layer", "head", "kv_head"]
    methods = list(dict.fromkeys(scores["method"]))
    first = scores[scores["method"] == methods[0]][[*keys, "score", "se", "n"]]
    out = first.sort_values(["score", "layer", "head"], ascending=[False, True, True])
    for method in methods[1:]:
        other = scores[scores["method"] == method].set_index("component")["score"]
        out = out.assign(**{method: out["component"].map(other)})
    out = out.rename(columns={"score": methods[0], "kv_head": "KV group"})
    return out.head(top) if top else out


def attention_table(rows: dict[str, object], head: str | None) -> pd.DataFrame:
    """Attention summed by role: a line for each head, or for each answer token of one head."""
    heads, roles = rows["heads"], rows.get("roles") or []
    answer = rows.get("answer") or []
    assert isinstance(heads, dict) and isinstance(roles, list) and isinstance(answer, list)
    lines: dict[str, list[list[float]]] = heads if head is None else {
        (str(answer[i]) if i < len(answer) else f"step {i + 1}"): [row] for i, row in enumerate(heads[head])
    }  # fmt: skip
    kinds = list(dict.fromkeys(role for role in roles if role))
    out = []
    for name, several in lines.items():
        line: dict[str, object] = {"head" if head is None else "predicts": name}
        for kind in kinds:
            sums = [sum(v for v, role in zip(row, roles, strict=False) if role == kind) for row in several]
            line[kind] = sum(sums) / max(1, len(sums))
        firsts = [row[0] for row in several if row]
        line["first token"] = sum(firsts) / max(1, len(firsts))
        out.append(line)
    return pd.DataFrame(out)


def effect_table(
    effects: pd.DataFrame, k: int | None = None, metric: str | None = "accuracy"
) -> pd.DataFrame:
    """Clean and cut rows with the mean of their controls."""
    rows = effects if metric is None else effects[effects["metric"] == metric]
    by = ["task", "metric", "scope", "mode", "reference", "k"]
    rows = rows.assign(**{c: rows[c].fillna("").astype(str) for c in by[:-1]})
    if k is not None:
        rows = rows[(rows["k"] == k) | (rows["condition"] == "clean")]
    controls = rows[rows["condition"] == "control"].groupby(by, sort=False)["delta"]
    summary = pd.DataFrame({"controls": controls.mean(), "draws": controls.size()}).reset_index()
    cut = rows[rows["condition"] == "cut"].merge(summary, how="left", on=by)
    cut = cut.assign(clean=cut["value"] - cut["delta"])
    columns = [
        "role", "task", "metric", "scope", "mode", "k", "clean", "value", "delta", "ci_lo", "ci_hi", "p", "controls",
        "draws", "n", "status",
    ]  # fmt: skip
    return cut[[c for c in columns if c in cut]]


def patch_table(patch: pd.DataFrame) -> pd.DataFrame:
    """Cells of the patch maps, the largest changes of each map first."""
    change = (patch["recovery"] - (patch["direction"] == "noise")).abs()
    columns = ["kind", "direction", "layer", "position", "token", "role", "head", "recovery", "n"]
    return patch.assign(change=change).sort_values("change", ascending=False)[columns]


def main_scope(effects: pd.DataFrame) -> str:
    """The scope that the matrix is about: cuts at all positions where there are any."""
    scopes = _scopes(effects)
    return "all" if "all" in scopes or not scopes else scopes[0]


def _scopes(effects: pd.DataFrame) -> list[str]:
    if not {"scope", "condition", "metric"} <= set(effects.columns):
        return ["all"]
    cut = effects[(effects["condition"] == "cut") & (effects["metric"] == "accuracy")]
    return list(dict.fromkeys(cut["scope"].fillna("").astype(str)))


def _of_scope(effects: pd.DataFrame, scope: str) -> pd.DataFrame:
    if not {"scope", "condition"} <= set(effects.columns):
        return effects
    return effects[(effects["scope"].fillna("").astype(str) == scope) | (effects["condition"] == "clean")]


def _main_k(effects: pd.DataFrame, top: int | None) -> int | None:
    """The main cut's size where it was measured; None leaves it to the figure."""
    return top if top is not None and "k" in effects and bool((effects["k"] == top).any()) else None


def _heads(rows: dict[str, object]) -> list[str]:
    heads = rows.get("heads")
    return [str(head) for head in heads] if isinstance(heads, dict) else []


def _has_depth(instances: pd.DataFrame) -> bool:
    return "depth" not in instances or bool(instances["depth"].notna().any())
