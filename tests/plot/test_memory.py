"""The figures of memorization show the numbers and pictures of their tables."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pandas as pd
import pytest

from interp import plot
from interp.errors import UsageError
from interp.plot import theme
from tests.plot import memory_frames as f
from tests.plot.test_channels import named, note
from tests.plot.test_facts import captions, line

DOSES = f.doses_frame()
PICTURES = f.pictures_frame(4)


def pixels(trace: Any) -> np.ndarray:
    """The picture that a trace shows, as bytes."""
    from PIL import Image

    return np.array(Image.open(io.BytesIO(base64.b64decode(trace.source.split(",")[1]))).convert("L"))


# -- pictures --------------------------------------------------------------------------------------------------------


def test_every_picture_stands_at_its_item_and_state_with_its_pixels() -> None:
    fig = plot.image_grid(PICTURES.sample(frac=1, random_state=1).sort_values("item"), states=f.STATES)
    assert len(fig.data) == 16
    xs = sorted({round(t.x0, 3) for t in fig.data})
    ys = sorted({round(t.y0, 3) for t in fig.data})
    assert (len(xs), len(ys)) == (4, 4)
    for row in PICTURES.to_dict("records"):
        (trace,) = [t for t in named(fig, row["item"]) if f"</b>, {row['state']}" in t.hovertemplate]
        assert np.array_equal(pixels(trace), np.rint(row["image"][0].clip(0, 1) * 255))
        assert xs.index(round(trace.x0, 3)) == int(row["item"][-1])
        assert ys.index(round(trace.y0, 3)) == f.STATES.index(row["state"])
    assert list(fig.layout.yaxis.ticktext) == list(f.STATES)
    assert fig.layout.yaxis.range[0] > fig.layout.yaxis.range[1] == 0


def test_what_was_replicated_is_framed_and_counted() -> None:
    fig = plot.image_grid(PICTURES)
    frames = [s for s in fig.layout.shapes if s.name == "replicated"]
    want = PICTURES["replicated"].eq(True).sum()
    assert len(frames) == want == 7 and {s.line.color for s in frames} == {theme.VERMILLION}
    assert "before 4 of 4, after 0 of 4 and attacked 3 of 4" in note(fig)
    assert fig.layout.annotations and any(a.text == "item 0" for a in fig.layout.annotations)
    many = pd.concat([PICTURES, PICTURES.assign(state="2 " + PICTURES["state"])])
    assert "framed: replicated \u00b7" in note(plot.image_grid(many)), "six counts do not fit"
    plain = plot.image_grid(PICTURES[["item", "state", "image"]])
    assert not plain.layout.shapes and "framed" not in plain.to_json()


def test_colour_pictures_and_lists_are_pictures_too() -> None:
    colour = f.pictures_frame(2, 6, 3)
    stored = colour.assign(image=[i.tolist() for i in colour["image"]])
    assert plot.image_grid(stored).data[0].source == plot.image_grid(colour).data[0].source
    flat = colour.assign(image=[i[0] for i in colour["image"]])
    assert plot.image_grid(flat).data[3].source == plot.image_grid(colour).data[3].source


def test_pictures_that_are_none_are_told() -> None:
    with pytest.raises(UsageError, match="two pictures in one state"):
        plot.image_grid(pd.concat([PICTURES, PICTURES.head(1)]))
    with pytest.raises(UsageError, match="no state 'oracle'; the table has original, before"):
        plot.image_grid(PICTURES, states=("oracle",))
    with pytest.raises(UsageError, match=r"the picture of 'item 0' is \(8,\)"):
        plot.image_grid(PICTURES.assign(image=[np.zeros(8)] * 16))


# -- curves ----------------------------------------------------------------------------------------------------------


def test_doses_have_a_panel_a_measure_and_the_model_before_as_a_level() -> None:
    fig = plot.dose_retention(
        DOSES.sample(frac=1, random_state=0).sort_values("measure", key=lambda m: m.map(f.MEASURES.index))
    )
    assert captions(fig) == ["Targeted items replicated", "Other memorized items replicated", "Retention"]
    for i, measure in enumerate(f.MEASURES):
        axis = f"x{i + 1}" if i else "x"
        for edit in (*f.EDITS, *f.CONTROLS):
            own = DOSES[(DOSES["measure"] == measure) & (DOSES["edit"] == edit)].sort_values("dose")
            trace = line(fig, edit, axis)
            assert list(trace.y) == pytest.approx(list(own["value"]))
            assert list(trace.x) == pytest.approx(list(np.log10(own["dose"])))
            assert (trace.line.color == theme.CONTROL) == (edit in f.CONTROLS)
        assert list(line(fig, "before", axis).y) == [0.95, 0.95]
        bands = [t for t in named(fig, "band") if (t.xaxis or "x") == axis]
        assert len(bands) == 6
        first = DOSES[(DOSES["measure"] == measure) & (DOSES["edit"] == f.EDITS[0])].sort_values("dose")
        edges = [*first["ci_lo"], *first["ci_hi"][::-1]]
        assert any(list(b.y) == pytest.approx(edges) for b in bands)
    assert list(fig.layout.xaxis.ticktext) == ["0.1%", "0.3%", "1%", "3%", "10%"]
    assert "10 items a point" in note(fig)


def test_one_measure_against_the_other_goes_through_the_doses_in_order() -> None:
    fig = plot.dose_retention(DOSES, against=("held_out", "retention"))
    trace = line(fig, "Wanda contrast", "x4")
    by = (
        DOSES[DOSES["edit"] == "Wanda contrast"]
        .pivot(index="dose", columns="measure", values="value")
        .sort_index()
    )
    assert list(trace.x) == pytest.approx(list(by["held_out"]))
    assert list(trace.y) == pytest.approx(list(by["retention"]))
    with pytest.raises(UsageError, match="no panel 'quality'"):
        plot.dose_retention(DOSES, against=("held_out", "quality"))


def test_intervals_of_some_edits_alone_and_the_norm_for_edits_of_all_weights() -> None:
    rows = DOSES.assign(norm=40 * DOSES["dose"])
    fig = plot.dose_retention(rows, by="norm", bands=("NeMo",))
    own = rows[(rows["measure"] == "targeted") & (rows["edit"] == "NeMo")].sort_values("dose")
    assert list(line(fig, "NeMo").x) == pytest.approx(list(np.log10(own["norm"])))
    assert list(fig.layout.xaxis.ticktext) == ["0.04", "0.12", "0.4", "1.2", "4"]
    bands = [t for t in named(fig, "band") if (t.xaxis or "x") == "x"]
    assert len(bands) == 1 and list(bands[0].y) == pytest.approx([*own["ci_lo"], *own["ci_hi"][::-1]])
    assert "over the norm of the change" in note(fig) and "95% intervals of NeMo" in note(fig)
    with pytest.raises(UsageError, match="missing columns norm"):
        plot.dose_retention(DOSES, by="norm")


def test_doses_that_cannot_be_drawn_are_told() -> None:
    with pytest.raises(UsageError, match="no edit, only the model before"):
        plot.dose_retention(DOSES[DOSES["edit"] == "none"])
    with pytest.raises(UsageError, match="two rows of a measure"):
        plot.dose_retention(pd.concat([DOSES, DOSES.head(1)]))
    with pytest.raises(UsageError, match=r"'NeMo' has two rows at dose 0\.01"):
        plot.dose_retention(pd.concat([DOSES, DOSES[(DOSES["edit"] == "NeMo") & (DOSES["dose"] == 0.01)]]))
    with pytest.raises(UsageError, match="must be 0 or more"):
        plot.dose_retention(DOSES.assign(dose=-DOSES["dose"]))


def test_exposures_begin_at_zero_left_of_the_logarithms() -> None:
    rows = f.exposures_frame()
    fig = plot.exposure_curves(rows)
    assert captions(fig) == ["Recognition", "Recall", "Retention"]
    own = rows[(rows["measure"] == "recall") & (rows["curve"] == "early only")]
    trace = line(fig, "early only", "x2")
    assert list(trace.y) == pytest.approx(list(own["value"]))
    assert list(trace.x[1:]) == pytest.approx(list(np.log10(own["exposures"][1:]))) and trace.x[0] < -0.2
    assert list(fig.layout.xaxis.ticktext) == ["0", "1", "3", "10", "30", "100", "300"]
    assert fig.layout.xaxis.range[0] < trace.x[0]
    one = plot.exposure_curves(rows[rows["curve"] == "at the end"].drop(columns="curve"))
    assert not any(t.showlegend for t in one.data)


def test_recovery_over_how_many_are_taken_beside_chance() -> None:
    rows = f.recovery_frame()
    fig = plot.recovery_curves(rows, ("all", "ff_out[1]"))
    assert captions(fig) == ["All parts ranked together", "ff_out[1]"]
    own = rows[(rows["method"] == "hard concrete") & (rows["part"] == "ff_out[1]") & rows["share"].notna()]
    assert list(line(fig, "hard concrete", "x2").y) == pytest.approx(list(own["recall"]))
    assert list(line(fig, "chance").y) == pytest.approx([0.01, 0.02, 0.05, 0.1])
    assert line(fig, "chance").line.color == theme.CONTROL
    with pytest.raises(UsageError, match=r"no row of ff_out\[9\]; there are ff_out\[0\]"):
        plot.recovery_curves(rows, ("ff_out[9]",))


def test_ticks_that_do_not_fit_are_left_out_but_not_the_ends() -> None:
    rows = pd.DataFrame({"steps": np.geomspace(1, 1000, 40), "value": 0.5, "ci_lo": 0.4, "ci_hi": 0.6})
    ticks = plot.value_curves(rows, "steps", title="t", width="single").layout.xaxis.tickvals
    assert ticks[0] == pytest.approx(0) and ticks[-1] == pytest.approx(3) and 3 <= len(ticks) < 20


# -- maps ------------------------------------------------------------------------------------------------------------


def test_an_overlap_is_bold_where_it_is_beyond_random_splits() -> None:
    rows = f.overlaps_frame()
    fig = plot.memory_overlap(rows)
    (trace,) = fig.data
    z = np.array(trace.z, float)
    assert z.shape == (3, 3) and np.isnan(z[np.triu_indices(3, 1)]).all()
    assert list(fig.layout.xaxis.ticktext) == ["memorized A", "memorized B", "controls 1"]
    assert list(fig.layout.yaxis.ticktext) == ["memorized B", "controls 1", "controls 2"]
    assert z[0, 0] == pytest.approx(0.55) and z[2, 1] == pytest.approx(rows["value"][4])
    bold = [a.text for a in fig.layout.annotations if "<b>" in a.text]
    assert bold == ["<b>0.55</b><br>[0.18, 0.42]", "<b>0.45</b><br>[0.18, 0.42]"]
    other = plot.memory_overlap(rows.drop(columns="p").assign(null_hi=0.5))
    assert sum("<b>" in a.text for a in other.layout.annotations) == 1
    turned = rows.rename(columns={"a": "b", "b": "a"})
    assert np.nansum(np.array(plot.memory_overlap(turned).data[0].z, float)) == pytest.approx(np.nansum(z))


def test_overlaps_that_are_none_are_told() -> None:
    rows = f.overlaps_frame()
    with pytest.raises(UsageError, match="have two rows"):
        plot.memory_overlap(pd.concat([rows, rows.head(1).rename(columns={"a": "b", "b": "a"})]))
    with pytest.raises(UsageError, match="two different sets"):
        plot.memory_overlap(rows.assign(b=rows["a"]))


def test_recovery_is_bold_where_its_interval_lies_above_chance() -> None:
    rows = f.recovery_frame()
    fig = plot.recovery_table(rows, 0.05)
    z = np.array(fig.data[0].z, float)
    assert list(fig.layout.yaxis.ticktext) == ["chance", *f.METHODS]
    own = rows[np.isclose(rows["share"], 0.05)].pivot(index="method", columns="part", values="recall")
    np.testing.assert_allclose(z[1:], own.loc[list(f.METHODS), list(fig.layout.xaxis.ticktext)])
    np.testing.assert_allclose(z[0], 0.05)
    assert sum("<b>" in a.text for a in fig.layout.annotations) == 15  # all but the method at chance
    equal = plot.recovery_table(rows)
    np.testing.assert_allclose(np.array(equal.data[0].z, float)[0], 0.01)
    assert "as many neurons taken as are known" in note(equal)
    with pytest.raises(UsageError, match=r"no row of share 0.5; there are 0.01, 0.02"):
        plot.recovery_table(rows, 0.5)
    with pytest.raises(UsageError, match="two rows of a part"):
        plot.recovery_table(pd.concat([rows, rows.head(1)]))
