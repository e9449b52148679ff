"""The head map and the ranking show the numbers of the frame."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from interp.errors import UsageError
from interp.plot import head_map, score_ranking, theme
from tests.plot.frames import scores_frame

SCORES = scores_frame()
COPY = SCORES[SCORES["method"] == "copy"]


def best(n: int) -> list[str]:
    return COPY.sort_values("score", ascending=False)["component"].head(n).tolist()


def outlined(fig: object, color: str) -> list[str]:
    rects = [s for s in fig.layout.shapes if s.type == "rect" and s.line.color == color]  # type: ignore[attr-defined]
    return [f"L{round((s.x0 + s.x1) / 2)}H{round((s.y0 + s.y1) / 2)}" for s in rects]


def test_every_cell_is_the_score_of_its_head() -> None:
    z = head_map(SCORES, "copy").data[0].z
    assert z.shape == (9, 30)
    for row in COPY.itertuples():
        assert z[row.head, row.layer] == row.score


def test_other_method_is_drawn_when_asked() -> None:
    other = SCORES[SCORES["method"] == "copy_position"].set_index(["head", "layer"])["score"]
    z = head_map(SCORES, "copy_position").data[0].z
    assert z[3, 17] == other[3, 17]
    assert not np.array_equal(z, head_map(SCORES).data[0].z)


def test_hover_names_component_error_n_and_group() -> None:
    cell = head_map(SCORES).data[0].customdata[7][20]
    row = COPY[(COPY["layer"] == 20) & (COPY["head"] == 7)].iloc[0]
    assert list(cell) == ["L20H7", f"{row['se']:.3f}", "64", "2"]


def test_best_heads_are_outlined_in_order() -> None:
    assert outlined(head_map(SCORES, top=4), theme.ON_DARK) == best(4)
    assert outlined(head_map(SCORES, top=0), theme.ON_DARK) == []


def test_by_default_only_heads_over_the_threshold_are_outlined() -> None:
    hits = int((COPY["score"] >= 0.1).sum())
    assert hits > 10
    assert outlined(head_map(SCORES), theme.ON_DARK) == best(10)
    assert len(outlined(head_map(SCORES, threshold=0.8), theme.ON_DARK)) == (COPY["score"] >= 0.8).sum()


def test_highlight_has_another_colour() -> None:
    fig = head_map(SCORES, top=0, highlight=["L3H2", "L29H8"])
    assert sorted(outlined(fig, "#FF6A2B")) == ["L29H8", "L3H2"]


def test_subtitle_counts_the_hits() -> None:
    hits = int((COPY["score"] >= 0.1).sum())
    note = next(a.text for a in head_map(SCORES).layout.annotations if a.name == "subtitle")
    assert note.startswith(f"{hits} of 270 heads ({100 * hits / 270:.1f}%) score 0.1 or more")


def test_kv_groups_are_parted_at_their_edges() -> None:
    lines = [s for s in head_map(SCORES).layout.shapes if s.type == "line"]
    assert [(s.y0, s.y1) for s in lines] == [(2.5, 2.5), (5.5, 5.5)]
    names = [a.text for a in head_map(SCORES).layout.annotations if a.text.startswith("KV")]
    assert names == ["KV 0", "KV 1", "KV 2"]


@pytest.mark.parametrize("group", [1, 9])
def test_no_group_lines_without_groups(group: int) -> None:
    fig = head_map(scores_frame(group=group))
    assert [s for s in fig.layout.shapes if s.type == "line"] == []


def test_large_models_get_a_map_without_crowding() -> None:
    fig = head_map(scores_frame(80, 64, 8), width="double")
    assert fig.data[0].z.shape == (64, 80)
    assert fig.layout.width == 648 and 300 < fig.layout.height < 648
    assert not [a for a in fig.layout.annotations if a.text.isdigit()], "rank numbers do not fit these cells"


def test_missing_heads_are_gaps_not_zeros() -> None:
    z = head_map(COPY[COPY["component"] != "L5H5"]).data[0].z
    assert np.isnan(z[5, 5]) and np.isfinite(z).sum() == 269


def test_scores_below_zero_are_centred() -> None:
    fig = head_map(COPY.assign(score=COPY["score"] - 0.3))
    heat = fig.data[0]
    assert heat.zmid == 0 and heat.zmin == -heat.zmax
    assert [list(s) for s in heat.colorscale] == [list(s) for s in theme.RDBU]


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (COPY.drop(columns=["score", "kv_head"]), "missing columns kv_head, score"),
        (COPY.iloc[:0], "no rows"),
        (pd.concat([COPY, COPY.head(1)]), "L0H0 occurs more than once"),
        (COPY.assign(score="high"), "must hold numbers do not: score"),
        (COPY.assign(layer=COPY["layer"] + 0.5), "column layer must hold whole numbers"),
        ([1, 2], "expected a pandas DataFrame, got list"),
    ],
)
@pytest.mark.parametrize("draw", [head_map, score_ranking])
def test_malformed_frames_are_named(draw: object, frame: pd.DataFrame, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        draw(frame)  # type: ignore[operator]


def test_unknown_method_and_component() -> None:
    with pytest.raises(UsageError, match="no method 'mass'; the table has copy, copy_position"):
        head_map(SCORES, "mass")
    with pytest.raises(UsageError, match="no component 'L99H0'"):
        head_map(SCORES, highlight=["L99H0"])
    with pytest.raises(UsageError, match="top is 0"):
        score_ranking(SCORES, top=0)


def test_ranking_is_sorted_with_errors_and_threshold() -> None:
    fig = score_ranking(SCORES, top=20)
    dots = [t for t in fig.data if t.mode == "markers"]
    points = sorted(p for t in dots for p in zip(t.x, t.y, t.error_y.array, strict=True))
    wanted = COPY.sort_values("score", ascending=False).head(20)
    assert [p[0] for p in points] == list(range(20))
    assert [p[1] for p in points] == wanted["score"].tolist()
    assert [p[2] for p in points] == wanted["se"].tolist()
    assert list(fig.layout.xaxis.ticktext) == wanted["component"].tolist()
    line = next(t for t in fig.data if t.mode == "lines")
    assert set(line.y) == {0.1} and "Wu et al. 2024" in line.name


def test_ranking_tells_hits_from_the_rest_by_shape_too() -> None:
    fig = score_ranking(SCORES, top=30)
    hits, rest = (t for t in fig.data if t.mode == "markers")
    assert min(hits.y) >= 0.1 > max(rest.y)
    assert hits.marker.symbol != rest.marker.symbol
