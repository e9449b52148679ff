"""The template, its side effects (none), escaping, and the dark form."""

from __future__ import annotations

import html
import json
import subprocess
import sys

import plotly.colors
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.errors import UsageError
from interp.plot import dark, head_map, register, theme
from interp.plot.export import spec
from interp.plot.text import number, safe, signed, token_label, visible
from tests.plot.frames import scores_frame
from tests.plot.gallery import gallery


def python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_importing_costs_no_plotly_and_no_torch() -> None:
    seen = "import sys, interp.plot; print(sorted({'torch', 'plotly', 'pandas'} & set(sys.modules)))"
    assert python(seen) == "[]"
    used = "import sys; from interp.plot import head_map, write; import interp.report; print('torch' in sys.modules)"
    assert python(used) == "False"


def test_plotlys_default_stays_and_the_template_appears_with_the_first_figure() -> None:
    code = """
import plotly.io as pio
before = pio.templates.default
import interp.plot.theme as theme
import interp.plot.heads
print(before == pio.templates.default, "interp" in pio.templates)
theme.register()
print(before == pio.templates.default, "interp" in pio.templates, "simple_white" in pio.templates)
"""
    assert python(code).splitlines() == ["True False", "True True True"]


def test_register_is_idempotent_and_leaves_simple_white_alone() -> None:
    import plotly.io as pio

    white = pio.templates["simple_white"].to_plotly_json()
    assert register() == register() == "interp"
    assert pio.templates["simple_white"].to_plotly_json() == white
    assert pio.templates["interp"].layout.font.family.startswith("Liberation Sans")
    assert pio.templates["interp"].layout.font.size == pytest.approx(32 / 3), "8 pt"


def test_widths_are_those_of_a_paper() -> None:
    assert [theme.pixels(w) / 96 for w in ("single", "double")] == [3.25, 6.75]
    assert theme.pixels(500) == 500
    with pytest.raises(UsageError, match="width 'triple' is unknown; use single, double, page"):
        theme.pixels("triple")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="out of range"):
        theme.pixels(20)


def test_figures_take_the_width_they_are_given() -> None:
    for width, wanted in (("single", 312), ("double", 648), ("page", 880), (400, 400)):
        fig = head_map(scores_frame(), width=width)  # type: ignore[arg-type]
        assert fig.layout.width == wanted
        assert fig.layout.template.layout.font.size == (13 if width == "page" else pytest.approx(32 / 3))


def test_colours_stay_apart_for_colour_blind_readers() -> None:
    """Distance in linear RGB as seen without the green cones (Machado et al. 2009, severity 1)."""
    machado = [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]

    def seen(color: str) -> list[float]:
        linear = [(c / 255) ** 2.2 for c in plotly.colors.hex_to_rgb(color)]
        return [sum(m * v for m, v in zip(row, linear, strict=True)) for row in machado]

    shown = [seen(c) for c in theme.COLORWAY]
    for i, a in enumerate(shown):
        for b in shown[i + 1 :]:
            assert sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) ** 0.5 > 0.1


@pytest.mark.parametrize("width", ["single", "double"])
def test_no_figure_has_tex_or_markup_of_a_token(width: str) -> None:
    for name, fig in gallery(width).items():  # type: ignore[arg-type]
        text = spec(fig)
        assert "$" not in text, name
        assert "<script" not in text, name


def test_every_figure_says_what_it_shows_and_has_named_axes() -> None:
    for name, fig in gallery("double").items():
        assert len(fig.layout.meta["alt"]) > 40, name
        assert fig.layout.title.text, name
        titles = [fig.layout[a].title.text for a in fig.to_plotly_json()["layout"] if a[1:5] == "axis"]
        if name.split("-")[0] not in (
            "matrix",
            "specificity",
            "agreement",
            "cross",
            "overlap",
            "images",
            "memory",
            "recovery",
            "signals",
        ):  # columns and rows have names each
            assert any(titles), name


def test_the_same_frame_gives_the_same_spec() -> None:
    first, second = gallery("double"), gallery.__wrapped__("double")
    for name in first:
        assert spec(first[name]) == spec(second[name]), name


@given(st.text(max_size=40))
def test_safe_text_shows_exactly_what_went_in(text: str) -> None:
    out = safe(text)
    assert not set("<>$") & set(out)
    assert html.unescape(out) == visible(text)
    assert all(ch.isprintable() or ch in "\u21b5\u21e5\u240d" for ch in out)


@given(st.text(max_size=60))
def test_token_labels_are_short_and_never_empty(token: str) -> None:
    shown = html.unescape(token_label(token))
    assert 1 <= len(shown) <= 14


def test_numbers() -> None:
    assert number(-0.001) == "0.00" and number(-0.126) == "\u22120.13" and number(float("inf")) == "\u221e"
    assert signed(0.5) == "+0.50" and signed(0.001) == "0.00" and signed(-0.5) == "\u22120.50"
    assert signed(float("nan")) == "\u2013"


def test_dark_changes_colours_and_nothing_else() -> None:
    def skeleton(node: object, key: str = "") -> object:
        if key.endswith(("color", "colorscale")):
            return None
        if isinstance(node, dict):
            return {k: skeleton(v, k) for k, v in node.items()}
        return [skeleton(v) for v in node] if isinstance(node, list) else node

    for name, fig in gallery("page").items():
        light, night = json.loads(spec(fig)), json.loads(spec(dark(fig)))
        assert skeleton(light) == skeleton(night), name
        assert light["layout"]["template"]["layout"]["font"]["color"] == theme.INK
        assert night["layout"]["template"]["layout"]["font"]["color"] != theme.INK


def test_dark_leaves_text_that_reads_like_a_colour() -> None:
    from interp.plot import attention_rows

    fig = attention_rows(["a", theme.INK], {"L0H0": [[0.5, 0.5]]})
    assert theme.INK in dark(fig).layout.xaxis.ticktext


def test_without_headings_keeps_the_plot_as_high() -> None:
    fig = head_map(scores_frame())
    bare = theme.without_headings(fig)
    inside = [f.layout.height - f.layout.margin.t - f.layout.margin.b for f in (fig, bare)]
    assert inside[0] == pytest.approx(inside[1], abs=1)
    assert bare.layout.title.text is None and fig.layout.title.text
    assert bare.layout.margin.t < fig.layout.margin.t
