"""Patch maps: the change by the patch, from the run it was put into."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from interp.errors import UsageError
from interp.plot import instance_map, patch_map, theme
from interp.plot.patching import LIMIT
from tests.plot.frames import HOSTILE, instances_frame, patch_frame, role_patch_frame

PATCH = patch_frame()


def cells(kind: str, direction: str) -> pd.DataFrame:
    return PATCH[(PATCH["kind"] == kind) & (PATCH["direction"] == direction)]


def heat(fig: object, name: str) -> object:
    return next(t for t in fig.data if t.type == "heatmap" and t.name == name)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("direction", "start"), [("denoise", 0.0), ("noise", 1.0)])
def test_positions(direction: str, start: float) -> None:
    found = heat(patch_map(PATCH), f"resid_post {direction}")
    own = cells("resid_post", direction)
    positions = sorted(own["position"].unique())
    for row in own.itertuples():
        assert found.z[row.layer, positions.index(row.position)] == pytest.approx(row.recovery - start)  # type: ignore[attr-defined]


def test_heads_lie_as_in_the_head_map() -> None:
    found = heat(patch_map(PATCH), "z denoise")
    for row in cells("z", "denoise").itertuples():
        assert found.z[row.head, row.layer] == row.recovery  # type: ignore[attr-defined]


def test_roles() -> None:
    frame = role_patch_frame()
    found = heat(patch_map(frame), "resid_post denoise")
    own = frame[frame["direction"] == "denoise"]
    roles = list(dict.fromkeys(own["role"]))
    for row in own.itertuples():
        assert found.z[row.layer, roles.index(row.role)] == row.recovery  # type: ignore[attr-defined]


def test_colours_are_centred_on_no_change_and_shared() -> None:
    fig = patch_map(PATCH)
    axis = fig.layout.coloraxis
    assert axis.cmid == 0 and axis.cmin == -axis.cmax
    assert [list(s) for s in axis.colorscale] == [list(s) for s in theme.RDBU]
    assert {t.coloraxis for t in fig.data if t.type == "heatmap"} == {"coloraxis"}
    largest = max(np.abs(t.z).max() for t in fig.data if t.type == "heatmap")
    assert axis.cmax == pytest.approx(largest)


def test_a_wild_cell_is_clipped_and_said() -> None:
    frame = PATCH.assign(recovery=PATCH["recovery"].where(PATCH.index != 3, 40.0))
    fig = patch_map(frame)
    assert fig.layout.coloraxis.cmax == LIMIT
    note = next(a.text for a in fig.layout.annotations if a.name == "subtitle").replace("<br>", " ")
    assert f"colours end at {LIMIT:g}" in note


def test_undefined_recovery_is_a_gap() -> None:
    frame = PATCH.assign(recovery=PATCH["recovery"].where(PATCH["kind"] != "z"))
    assert np.isnan(heat(patch_map(frame), "z denoise").z).all()  # type: ignore[attr-defined]


def test_left_out_positions_are_marked() -> None:
    marks = [s for s in patch_map(PATCH).layout.shapes if s.name == "positions left out"]
    positions = sorted(cells("resid_post", "denoise")["position"].unique())
    assert {s.x0 for s in marks} == {positions.index(50) - 0.5}


def test_token_labels_are_text() -> None:
    fig = patch_map(PATCH)
    assert "&lt;script&gt;alert\u2026" in fig.layout.xaxis.ticktext
    assert HOSTILE not in str(fig.to_plotly_json())


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (PATCH.drop(columns=["recovery"]), "missing columns recovery"),
        (pd.DataFrame(), "missing columns kind"),
        (PATCH.iloc[:0], "no rows"),
        (pd.concat([PATCH, PATCH.head(1)]), "holds layer 0, position 30 more than once"),
        (pd.concat([PATCH.assign(kind=f"k{i}") for i in range(7)]), "14 maps"),
    ],
)
def test_malformed_frames_are_named(frame: pd.DataFrame, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        patch_map(frame)


def test_instances_are_split_by_acceptance() -> None:
    told = instances_frame()
    kept, rest = instance_map(told).data
    assert list(kept.x) == told.loc[told["accepted"], "depth"].tolist()
    assert list(rest.x) == told.loc[~told["accepted"], "depth"].tolist()
    assert kept.marker.symbol != rest.marker.symbol


def test_instances_without_depth_are_refused() -> None:
    with pytest.raises(UsageError, match="no prompt has a depth"):
        instance_map(instances_frame().assign(depth=np.nan))
