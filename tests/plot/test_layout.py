"""Drawn figures: no text lies on another or sticks out, at any width; markup in tokens is shown, not read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import plotly.graph_objects as go
import pytest

from interp.plot import attention_rows
from interp.plot.export import spec
from tests.plot.chromium import OVERLAPS, Opened, chromium, opened
from tests.plot.frames import HOSTILE
from tests.plot.gallery import gallery

DRAW = """
async (text) => {
  document.body.innerHTML = "<div id='figure'></div>";
  const { data, layout } = JSON.parse(text);
  await Plotly.newPlot("figure", data, layout, { displayModeBar: false });
}
"""


@pytest.fixture(scope="module")
def page(browser: str) -> Iterator[Opened]:
    from plotly.offline import get_plotlyjs

    with chromium(browser) as running, opened(running, viewport={"width": 1000, "height": 900}) as out:
        out.page.set_content("<body></body>")
        out.page.add_script_tag(content=get_plotlyjs())
        yield out


def draw(page: Opened, fig: go.Figure) -> Any:
    page.page.evaluate(DRAW, spec(fig))
    return page.page.locator("#figure")


@pytest.mark.parametrize("width", ["single", "double", "page"])
def test_no_text_on_text(page: Opened, width: str) -> None:
    found = {name: draw(page, fig).evaluate(OVERLAPS) for name, fig in gallery(width).items()}  # type: ignore[arg-type]
    assert {name: bad for name, bad in found.items() if bad} == {}
    assert page.said == [] and page.requests == []


def test_the_check_sees_an_overlap_and_a_cut_label(page: Opened) -> None:
    fig = go.Figure(layout={"width": 300, "height": 200})
    for text, x in (("one label", 0.5), ("another label", 0.55), ("far outside", 1.6)):
        fig.add_annotation(text=text, x=x, y=0.5, xref="paper", yref="paper", showarrow=False)
    found = draw(page, fig).evaluate(OVERLAPS)
    assert "overlap: one label | another label" in found
    assert "cut off: far outside" in found


def test_markup_in_tokens_is_shown_as_it_is(page: Opened) -> None:
    tokens = [HOSTILE[:13], "<b>x</b>", "a&lt;b", "$5$", "%{z}"]
    fig = attention_rows(tokens, {"L0H0": [[0.2] * 5]}, [None] * 5)
    figure = draw(page, fig)
    labels = figure.locator(".xtick text").all_text_contents()
    assert labels == [HOSTILE[:13], "<b>x</b>", "a&lt;b", "$5$", "%{z}"]
    assert figure.locator(".xtick text tspan").count() == 0, "no markup was read"


def test_hover_shows_markup_as_text(page: Opened) -> None:
    fig = attention_rows([HOSTILE, "b"], {"L0H0": [[0.5, 0.5]]}, [None] * 2)
    figure = draw(page, fig)
    box = figure.locator(".nsewdrag").first.bounding_box()
    page.page.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 3)
    figure.locator(".hoverlayer text").first.wait_for()
    text = " ".join(figure.locator(".hoverlayer text").all_text_contents())
    assert HOSTILE in text
    assert page.page.locator("script:has-text('alert')").count() == 0
