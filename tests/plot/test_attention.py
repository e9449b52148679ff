"""Attention rows: what is shown is the row, what is left out is summed, nothing is lost."""

from __future__ import annotations

import numpy as np
import pytest

from interp.errors import UsageError
from interp.plot import attention_rows, theme
from interp.plot.attention import Stretch, stretches
from tests.plot.frames import HOSTILE, rows_json

PROMPT = rows_json()
TOKENS, ROLES, HEADS, ANSWER = (PROMPT[key] for key in ("tokens", "roles", "heads", "answer"))
BEST = next(iter(HEADS))


def draw(**more: object) -> object:
    return attention_rows(TOKENS, HEADS, ROLES, answer=ANSWER, **more)  # type: ignore[arg-type]


def padded(rows: list[list[float]]) -> np.ndarray:
    out = np.zeros((len(rows), len(TOKENS) + len(ANSWER) - 1))
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


@pytest.mark.parametrize("width", ["single", "double", "page"])
@pytest.mark.parametrize("head", [None, BEST])
def test_no_attention_is_lost(width: str, head: str | None) -> None:
    shown, left_out = draw(width=width, head=head).data[:2]  # type: ignore[attr-defined]
    total = np.nansum(shown.z, axis=1) + np.nansum(left_out.z, axis=1)
    wanted = (
        padded(HEADS[head]).sum(1) if head else np.array([padded(r).mean(0).sum() for r in HEADS.values()])
    )
    np.testing.assert_allclose(total, wanted, atol=1e-9)
    assert (np.isnan(shown.z) != np.isnan(left_out.z)).all(), "each column is one or the other"


def test_shown_columns_are_the_tokens_own_attention() -> None:
    fig = draw()
    labels = list(fig.layout.xaxis.ticktext)  # type: ignore[attr-defined]
    at = labels.index("lantern")
    wanted = [padded(rows).mean(0)[TOKENS.index(" lantern")] for rows in HEADS.values()]
    np.testing.assert_allclose(fig.data[0].z[:, at], wanted)  # type: ignore[attr-defined]


def test_one_head_has_a_line_for_each_answer_token() -> None:
    fig = draw(head=BEST)
    assert list(fig.layout.yaxis.ticktext) == [
        "\u201c copper\u201d",
        "\u201c lantern\u201d",
        "\u201c seven\u201d",
    ]  # type: ignore[attr-defined]
    labels = list(fig.layout.xaxis.ticktext)  # type: ignore[attr-defined]
    top = [labels[i] for i in np.nanargmax(fig.data[0].z, axis=1)]  # type: ignore[attr-defined]
    assert top == ["copper", "lantern", "seven"]


def test_left_out_stretches_say_how_long_they_are() -> None:
    fig = draw(width="double")
    counts = [int(t.split()[1]) for t in fig.layout.xaxis.ticktext if t.startswith("\u2026")]  # type: ignore[attr-defined]
    shown = sum(not t.startswith("\u2026") for t in fig.layout.xaxis.ticktext)  # type: ignore[attr-defined]
    assert sum(counts) + shown == len(TOKENS) + len(ANSWER) - 1
    assert len(counts) >= 2


def test_peaks_and_the_value_are_never_left_out() -> None:
    rows = {"L0H0": [[0.0] * 300 + [0.9] + [0.1 / 211] * 211]}
    fig = attention_rows(TOKENS, rows, ROLES, width="single")
    assert np.nanmax(fig.data[0].z) == 0.9
    for width in ("single", "double"):
        labels = draw(width=width).layout.xaxis.ticktext  # type: ignore[attr-defined]
        assert {"copper", "lantern", "seven"} <= set(labels)


def test_stretches_cover_every_token_once() -> None:
    rng = np.random.default_rng(0)
    for n in (1, 5, 40, 400):
        grid = rng.dirichlet(np.full(n, 0.05), 3)
        plan = stretches(grid, [None] * n, 30)
        assert [i for s in plan for i in range(s.start, s.stop)] == list(range(n))
        assert all(len(s) >= 3 for s in plan if not s.shown)
        for line in grid.argmax(axis=1):
            assert any(s.shown and s.start <= line < s.stop for s in plan)
    assert stretches(np.ones((1, 20)), [None] * 20, 30) == [Stretch(0, 20, True)]


def test_the_sink_does_not_pale_the_rest() -> None:
    fig = draw()
    shown = fig.data[0]  # type: ignore[attr-defined]
    assert shown.z[:, 0].max() > shown.zmax == np.nanmax(shown.z[:, 1:])
    note = next(a.text for a in fig.layout.annotations if a.name == "subtitle")  # type: ignore[attr-defined]
    assert "the first token gets more" in note.replace("<br>", " ")


def test_roles_are_coloured_where_their_tokens_stand() -> None:
    fig = draw()
    labels = list(fig.layout.xaxis.ticktext)  # type: ignore[attr-defined]
    edges = list(fig.data[0].x)  # type: ignore[attr-defined]
    (value,) = [s for s in fig.layout.shapes if s.name == "value"]  # type: ignore[attr-defined]
    assert value.x0 == edges[labels.index("copper")] and value.x1 == edges[labels.index("seven") + 1]
    assert value.fillcolor == theme.VERMILLION
    assert {"value", "key", "query", "distractor key"} <= {t.name for t in fig.data if t.type == "scatter"}  # type: ignore[attr-defined]


def test_hostile_tokens_are_text() -> None:
    fig = attention_rows(["a", HOSTILE, "<b>$x$</b>"], {"L0H0": [[0.2, 0.5, 0.3]]})
    assert list(fig.layout.xaxis.ticktext)[1:] == [
        "&lt;script&gt;alert\u2026",
        "&lt;b&gt;&#36;x&#36;&lt;/b&gt;",
    ]
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in str(fig.data[0].customdata[0][1])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (([], {"L0H0": [[1.0]]}), "no tokens or no rows"),
        ((["a"], {}), "no tokens or no rows"),
        ((["a"], {"L0H0": []}), "every row is empty"),
        ((["a"], {"L0H0": [[0.5, 0.5]]}), "a row has 2 keys; there are 1 tokens and 0 of the answer"),
        ((["a", "b"], {"L0H0": [[1.0]]}, ["value"]), "1 roles for 2 tokens"),
    ],
)
def test_malformed_rows_are_named(args: tuple[object, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        attention_rows(*args)  # type: ignore[arg-type]


def test_unknown_head_lists_the_others() -> None:
    with pytest.raises(UsageError, match="no rows of head 'L9H9'; there are L"):
        draw(head="L9H9")
