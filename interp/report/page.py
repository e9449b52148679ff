"""The page of a run: one HTML file that holds everything, asks for nothing, and treats tokens as text.

`render` reads the run's tables, draws each figure for a wide and a narrow window in a light and a dark form, and puts
them with plotly itself into one file. Its Content-Security-Policy lets exactly the scripts run that are in it (by
their hashes) and nothing leave it.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from interp.errors import BrokenData, MissingResource
from interp.plot import theme
from interp.plot.text import number, visible
from interp.report import facts, headline, prompt, recall, sections
from interp.report.figures import Chart, charts, try_draw
from interp.report.tables import Tables, read

if TYPE_CHECKING:
    import plotly.graph_objects as go

WIDE: theme.Width = "page"
NARROW: theme.Width = "single"
TEMPLATES = Path(__file__).parent / "templates"
TABLE_ROWS = 100
NAMED = (
    "heads", "ranking", "attention", "matrix", "controls", "channels", "spectrum", "channel-cut", "channel-doses",
    "fact-census", "fact-profile", "fact-cut", "fact-neuron-cut", "patching", "instances",
)  # fmt: skip
"""Figures that the template asks for by name."""


@dataclass(frozen=True)
class Drawn:
    """A figure on the page: its anchor, what it shows in words, and its numbers; or why it is not there."""

    name: str
    title: str
    note: str
    alt: str
    table: Markup
    missing: str


def render(run_folder: str | Path) -> Path:
    """Write `report.html` into a run folder from the tables in it, and return its path.

    Sections whose table is absent are left out with a line that says so.

    Raises:
        MissingResource: no such folder, no run in it, or it cannot be written.
        BrokenData: a file in it cannot be read.
    """
    from interp.runs import write_bytes

    tables = read(run_folder)
    page = html(tables)
    target = tables.folder / "report.html"
    try:
        # A lone surrogate in a spec or an answer is no reason to have no page.
        write_bytes(target, page.encode("utf-8", "backslashreplace"))
    except OSError as why:
        raise MissingResource(
            f"cannot write '{target}' ({why.strerror}); give a folder that can be written"
        ) from why
    return target


def html(tables: Tables) -> str:
    """The page as text."""
    from plotly.offline import get_plotlyjs

    specs: dict[str, Any] = {"figures": {}, "templates": {}}
    drawn = {chart.name: _drawn(chart, specs) for chart in charts(tables)}
    example, why_not = _prompt(tables)
    legend = prompt.legend(tables.rows or {}) if example else []
    scripts = {
        "plotly": _script(get_plotlyjs()),
        "page": _script((TEMPLATES / "report.js").read_text(encoding="utf-8")),
    }
    env = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    env.filters["visible"] = visible
    return env.get_template("report.html").render(
        model=tables.model,
        made_by="interp tasks run" if tables.of_tasks else "interp atlas",
        subject="recall tasks" if tables.of_tasks else "retrieval heads",
        sentence=headline.sentence(tables),
        facts=headline.facts(tables),
        drawn=dict.fromkeys(NAMED) | drawn,
        heads=[name.removeprefix("attention-") for name in drawn if name.startswith("attention-")],
        doses=[d for name, d in drawn.items() if name.startswith("dose-")],
        recalled=[d for name, d in drawn.items() if name.startswith("recall-") and "recall-by-" not in name],
        curves=[d for name, d in drawn.items() if name.startswith("recall-by-")],
        recall_rows=recall.rows(tables),
        absent=sections.absent(tables),
        prompt=example,
        prompt_missing=why_not,
        legend=legend,
        colors={role: color for role, _, color in legend},
        answer=prompt.weights(tables.rows)["answer"] if tables.rows and example else [],
        top_heads=sections.top_heads(tables),
        cuts=sections.cuts(tables),
        costs=sections.costs(tables),
        top_channels=sections.top_channels(tables),
        fact_layers=facts.top_layers(tables),
        scoring=sections.scoring(tables),
        spec=sections.flat(tables.spec),
        provenance=sections.flat(tables.provenance),
        files=sections.files(tables.folder),
        figures=Markup(_embedded(specs)),
        weights=Markup(_embedded(prompt.weights(tables.rows) if tables.rows and example else {})),
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        scripts={name: Markup(text) for name, text in scripts.items()},
        policy=_policy(list(scripts.values())),
    )


def _drawn(chart: Chart, specs: dict[str, Any]) -> Drawn:
    """Draw a chart in its four forms into `specs`."""
    wide = try_draw(chart, WIDE)
    if isinstance(wide, str):
        return Drawn(chart.name, "", "", "", Markup(""), wide)
    narrow = chart.draw(NARROW)
    templates = specs["templates"]
    specs["figures"][chart.name] = {
        "wide": _forms(wide, "wide", templates),
        "narrow": _forms(narrow, "narrow", templates),
    }
    title, note = _headings(wide)
    return Drawn(chart.name, title, note, str(wide.layout.meta["alt"]), data_table(chart.data()), "")


def _headings(fig: go.Figure) -> tuple[str, str]:
    """Title and subtitle, which the page sets in its own type."""
    note = next((a.text for a in fig.layout.annotations if a.name == "subtitle"), "") or ""
    return tuple(_plain(text) for text in (fig.layout.title.text or "", note))  # type: ignore[return-value]


def _plain(text: str) -> str:
    from html import unescape

    return unescape(text.replace("<br>", " "))


def _forms(fig: go.Figure, size: str, templates: dict[str, Any]) -> dict[str, Any]:
    """The light and the dark form, without headings and with the template, which all of a size share, kept apart."""
    from interp.plot.export import as_data

    node = theme.bare(as_data(fig))
    layout = node["layout"]
    forms: dict[str, Any] = {"height": layout["height"]}
    template = layout.pop("template")
    del layout["width"]
    layout |= {"paper_bgcolor": "rgba(0,0,0,0)", "autosize": True}
    forms["light"], forms["dark"] = node, theme.recolored(node)
    if f"{size}-light" not in templates:
        templates[f"{size}-light"], templates[f"{size}-dark"] = template, theme.recolored(template)
    return forms


def _prompt(tables: Tables) -> tuple[list[prompt.Part], str]:
    if tables.rows is None:
        return [], ""
    try:
        return prompt.parts(tables.rows), ""
    except BrokenData as why:
        return [], str(why)


def data_table(frame: pd.DataFrame) -> Markup:
    """A frame as an HTML table, every cell escaped, at most 100 rows."""
    head = "".join(
        f"<th scope='col'>{Markup.escape(visible(str(c)).replace('_', ' '))}</th>" for c in frame.columns
    )
    body = []
    for row in frame.head(TABLE_ROWS).itertuples(index=False):
        cells = "".join(_cell(value) for value in row)
        body.append(f"<tr>{cells}</tr>")
    rest = len(frame) - TABLE_ROWS
    more = f"<p class='more'>{rest} more rows in the table file.</p>" if rest > 0 else ""
    return Markup(
        f"<div class='scroll' tabindex='0' role='region' aria-label='Data table'><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>{more}"
    )


def _cell(value: Any) -> str:
    if isinstance(value, bool) or type(value).__name__ == "bool_":
        return f"<td>{'yes' if value else 'no'}</td>"
    if isinstance(value, float):
        small = value != 0 and abs(value) < 0.0005
        text = f"{value:.1e}" if small else number(value, 3)
        return f"<td class='num'>{Markup.escape(text)}</td>"
    if isinstance(value, int) or type(value).__name__.startswith(("int", "uint")):
        return f"<td class='num'>{int(value)}</td>"
    return f"<td>{Markup.escape(visible('' if value is None else str(value)))}</td>"


def _script(text: str) -> str:
    """A script as it will stand in the page: line ends as the parser makes them, no end tag inside."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _policy(scripts: list[str]) -> str:
    """Nothing is loaded and nothing is sent; only these scripts run. Plotly writes styles into its pictures."""
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode()}'"
        for text in scripts
    )
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; connect-src 'none'; "
        "base-uri 'none'; form-action 'none'"
    )


def _embedded(value: Any) -> str:
    """JSON that can stand in a script element: no character of it can end the element."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
