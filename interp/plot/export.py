"""Figures into files: JSON and HTML always, PDF, SVG and PNG when a browser is there to draw them.

JSON is the record: equal figures give equal bytes, so it is what tests and reviews compare. All static files of one
call are drawn by one browser. A file appears whole or not at all.
"""

from __future__ import annotations

import asyncio
import base64
import html
import importlib
import json
import logging
import os
import re
import shutil
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go
import plotly.io as pio

from interp.errors import InterpError, MissingResource, UsageError
from interp.plot import theme
from interp.plot.theme import Width

Format = Literal["json", "html", "pdf", "svg", "png"]
STATIC = ("pdf", "svg", "png")
FORMATS: tuple[Format, ...] = ("json", "html", "pdf", "svg", "png")

PNG_SCALE = 300 / 96
"""300 dots to the inch."""

_BROWSERS = (
    "chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge", "msedge",
    "brave-browser",
)  # fmt: skip
_PLACES = (
    "/usr/bin/chromium",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Microsoft Edge.app/Contents/MacOS/Microsoft Edge",
)
MEND = "install Chromium (Debian: apt-get install chromium fonts-liberation) or set BROWSER_PATH to a Chrome or Edge"


def find_browser() -> str | None:
    """Path of the browser that draws static figures: `$BROWSER_PATH`, then PATH, then the usual places; None if absent.

    A `$BROWSER_PATH` that names nothing executable counts as no browser: the user's choice is not replaced by another.
    """
    chosen = os.environ.get("BROWSER_PATH")
    if chosen:
        return shutil.which(chosen)
    return next((found for name in (*_BROWSERS, *_PLACES) if (found := shutil.which(name))), None)


def write(
    fig: go.Figure,
    stem: str | Path,
    formats: Sequence[Format] | None = None,
    width: Width | None = None,
    *,
    plotlyjs: Literal["inline", "directory"] = "inline",
) -> list[Path]:
    """Write one figure as `stem.json`, `stem.html`, `stem.pdf`, ... and return the paths written.

    Args:
        fig: the figure.
        stem: path without its suffix; folders are made.
        formats: of `json html pdf svg png`; None writes all five, and only warns where no browser is found.
        width: outer width to set (`single` is 3.25 in, `double` 6.75 in, or pixels); None keeps the figure's own.
        plotlyjs: `inline` makes each HTML file whole (4.8 MB); `directory` shares one `plotly.min.js` beside them.

    Raises:
        MissingResource: a static format was asked for by name and there is no browser or no kaleido; or the folder
            cannot be written.
        UsageError: an unknown format or width.

    Source: plotly counts 96 pixels to the inch, so 312 px make a PDF of 234 pt, which is 3.25 in.
    """
    return write_all({Path(stem): fig}, formats, width, plotlyjs=plotlyjs)


def write_all(
    figures: Mapping[str | Path, go.Figure] | Mapping[str, go.Figure] | Mapping[Path, go.Figure],
    formats: Sequence[Format] | None = None,
    width: Width | None = None,
    *,
    plotlyjs: Literal["inline", "directory"] = "inline",
) -> list[Path]:
    """Write many figures, `{stem: figure}`, with one browser for all of them; arguments and errors as for `write`."""
    asked: Sequence[str] = (
        FORMATS if formats is None else ([formats] if isinstance(formats, str) else formats)
    )
    unknown = [name for name in asked if name not in FORMATS]
    if unknown or not asked:
        raise UsageError(
            f"figure format {', '.join(map(repr, unknown)) or 'is empty'}; use {', '.join(FORMATS)}"
        )
    sized = {Path(stem): _sized(fig, width) for stem, fig in figures.items()}
    written: list[Path] = []
    for stem, fig in sized.items():
        _folder(stem.parent)
        if "json" in asked:
            written.append(_put(stem, "json", spec(fig).encode()))
        if "html" in asked:
            written.append(_put(stem, "html", _html(fig, stem.name, plotlyjs).encode()))
            if plotlyjs == "directory" and not (stem.parent / "plotly.min.js").exists():
                _put(stem.parent / "plotly.min", "js", _plotlyjs().encode())
    static = [name for name in FORMATS if name in STATIC and name in asked]
    if not static or not sized:
        return written
    jobs = [(stem, name) for stem in sized for name in static]
    try:
        images = _draw([(sized[stem], name) for stem, name in jobs])
    except MissingResource as why:
        if formats is not None:
            raise
        warnings.warn(f"wrote JSON and HTML only, no {', '.join(static)}: {why}", stacklevel=2)
        return written
    return written + [_put(stem, name, image) for (stem, name), image in zip(jobs, images, strict=True)]


def spec(fig: go.Figure) -> str:
    """The figure as JSON: equal figures give equal text, keys sorted, numbers readable, no ids drawn at random."""
    return (
        json.dumps(_readable(as_data(fig)), sort_keys=True, ensure_ascii=False, separators=(",", ":")) + "\n"
    )


def as_data(fig: go.Figure) -> dict[str, Any]:
    """The figure as plain data, its arrays packed as plotly packs them, without the ids it draws at random."""
    node: dict[str, Any] = json.loads(pio.to_json(fig, validate=False, engine="json", remove_uids=True))
    return node


def _readable(node: Any) -> Any:
    """Packed arrays as lists of numbers, with null where there is none."""
    if isinstance(node, dict) and "bdata" in node:
        values = np.frombuffer(base64.b64decode(node["bdata"]), dtype=np.dtype(node["dtype"]))
        shape = [int(n) for n in str(node.get("shape", values.size)).split(",")]
        told = [value if np.isfinite(value) else None for value in values.tolist()]
        return np.array(told, dtype=object).reshape(shape).tolist()
    if isinstance(node, dict):
        return {key: _readable(value) for key, value in node.items()}
    return [_readable(item) for item in node] if isinstance(node, list) else node


def _sized(fig: go.Figure, width: Width | None) -> go.Figure:
    if width is None:
        return fig
    return go.Figure(fig).update_layout(width=theme.pixels(width))


def _browser() -> str:
    """The browser to draw with.

    Raises:
        MissingResource: there is none, or no kaleido to speak to it.
    """
    if find_spec("kaleido") is None:
        raise MissingResource("kaleido is not installed; pip install 'interp-memory[figures]'")
    found = find_browser()
    if found is None:
        chosen = os.environ.get("BROWSER_PATH")
        lacking = f"BROWSER_PATH={chosen} is no executable browser" if chosen else "no browser was found"
        raise MissingResource(f"{lacking}; {MEND}")
    return found


def _html(fig: go.Figure, name: str, plotlyjs: str) -> str:
    body = pio.to_html(
        fig, full_html=False, include_plotlyjs=True if plotlyjs == "inline" else "directory", include_mathjax=False,
        div_id=re.sub(r"\W", "-", name), config={"displaylogo": False, "responsive": False}, validate=False,
    )  # fmt: skip
    alt = html.escape(
        str((fig.layout.meta or {}).get("alt", name)) if isinstance(fig.layout.meta, dict) else name
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(name)}</title></head>\n'
        f'<body><div role="img" aria-label="{alt}">{body}</div></body></html>\n'
    )


def _plotlyjs() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def _draw(jobs: Sequence[tuple[go.Figure, str]]) -> list[bytes]:
    """Draw all jobs in one browser, from a thread of its own so that it works inside a running event loop.

    Raises:
        MissingResource: no browser, or one that does not start.
        InterpError: the browser failed on a figure.
    """
    browser = _browser()
    # First, because kaleido's loggers are of a class of their own, which they are given when it is imported.
    importlib.import_module("kaleido")
    # When the browser says goodbye its last word is logged as an error of decoding.
    noisy = logging.getLogger("choreographer.channels.pipe")
    before = noisy.level
    noisy.setLevel(logging.CRITICAL)
    try:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(lambda: asyncio.run(_draw_async(jobs, browser))).result()
    finally:
        noisy.setLevel(before)


async def _draw_async(jobs: Sequence[tuple[go.Figure, str]], path: str) -> list[bytes]:
    import kaleido

    # MathJax would be fetched from the network; no text of ours needs it.
    browser = kaleido.Kaleido(n=1, mathjax=False, path=path)
    try:
        await browser.open()
    except Exception as why:
        raise MissingResource(f"the browser {path} does not start; {MEND}") from why
    try:
        return [await _image(browser, fig, name) for fig, name in jobs]
    finally:
        await browser.close()


async def _image(browser: Any, fig: go.Figure, name: str) -> bytes:
    node = fig.to_plotly_json()
    for i, trace in enumerate(node["data"]):
        trace["uid"] = f"t{i}"
    options: dict[str, Any] = {"format": name, "scale": PNG_SCALE if name == "png" else 1}
    options |= {"width": node["layout"].get("width", 648), "height": node["layout"].get("height", 400)}
    try:
        image: bytes = await browser.calc_fig(node, opts=options)
    except Exception as why:
        raise InterpError(
            f"the browser could not draw a figure as {name}: {' '.join(str(why).split())}"
        ) from why
    return _settled(image) if name == "svg" else image


def _settled(svg: bytes) -> bytes:
    """SVG with plotly's random layout id replaced, so that equal figures give equal files."""
    found = re.search(rb'id="defs-([0-9a-f]{6})"', svg)
    return svg.replace(found[1], b"000000") if found else svg


def _folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as why:
        raise MissingResource(
            f"cannot make '{folder}' ({why.strerror}); give a folder that can be written"
        ) from why


def _put(stem: Path, suffix: str, data: bytes) -> Path:
    from interp.runs import write_bytes

    target = stem.with_name(f"{stem.name}.{suffix}")
    try:
        write_bytes(target, data)
    except OSError as why:
        raise MissingResource(
            f"cannot write '{target}' ({why.strerror}); give a folder that can be written"
        ) from why
    return target
