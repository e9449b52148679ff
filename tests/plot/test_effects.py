"""Dose curves, the control strip and the matrix show the rows of the effects table."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from interp.errors import UsageError
from interp.plot import control_strip, dose_curve, effect_matrix, theme
from interp.plot.conditions import at_k, panels, rows_of, shared, z_and_rank
from tests.plot.frames import KS, effects_frame, modes_frame

EFFECTS = effects_frame()
ANSWER = EFFECTS[EFFECTS["scope"].isin(["", "answer"]) & (EFFECTS["task"] == "niah_words")]


def rows(condition: str, k: int | None = None, frame: pd.DataFrame = ANSWER) -> pd.DataFrame:
    part = frame[(frame["condition"] == condition) & (frame["metric"] == "accuracy")]
    return part if k is None else part[part["k"] == k]


def named(fig: object, name: str) -> list[object]:
    return [t for t in fig.data if t.name == name]  # type: ignore[attr-defined]


def test_cut_has_its_values_and_intervals() -> None:
    (line,) = named(dose_curve(ANSWER), "cut, 95% CI")
    cut = rows("cut").sort_values("k")
    assert list(line.x) == list(KS)
    assert list(line.y) == cut["value"].tolist()
    np.testing.assert_allclose(line.y + line.error_y.array, cut["value"] - cut["delta"] + cut["ci_hi"])
    np.testing.assert_allclose(line.y - line.error_y.arrayminus, cut["value"] - cut["delta"] + cut["ci_lo"])


def test_every_control_draw_is_shown_with_the_quantiles() -> None:
    fig = dose_curve(ANSWER)
    (draws,) = named(fig, "one control draw")
    assert sorted(draws.y) == sorted(rows("control")["value"])
    (middle,) = named(fig, "controls, 5\u201395%")
    for k, y in zip(middle.x, middle.y, strict=True):
        assert y == pytest.approx(rows("control", int(k))["value"].median())
    band = next(t for t in fig.data if t.fillcolor == theme.CONTROL_BAND)
    low, high = band.y[: len(KS)], band.y[len(KS) :][::-1]
    for i, k in enumerate(KS):
        assert low[i] == pytest.approx(rows("control", k)["value"].quantile(0.05))
        assert high[i] == pytest.approx(rows("control", k)["value"].quantile(0.95))


def test_clean_level_and_its_interval() -> None:
    fig = dose_curve(ANSWER)
    clean = rows("clean").iloc[0]
    (line,) = named(fig, "clean, 95% CI")
    assert set(line.y) == {clean["value"]}
    band = next(t for t in fig.data if t.fillcolor == theme.CLEAN_BAND)
    assert set(band.y) == {clean["ci_lo"], clean["ci_hi"]}


def test_one_panel_for_each_task_and_scope() -> None:
    fig = dose_curve(EFFECTS[EFFECTS["role"] == "target"])
    assert len([key for key in fig.to_plotly_json()["layout"] if key.startswith("xaxis")]) == 4
    texts = [a.text for a in fig.layout.annotations]
    assert texts.count("niah_words") == texts.count("niah_numbers") == 2
    assert {"answer positions", "all positions"} <= set(texts)


def test_modes_of_one_task_stand_side_by_side() -> None:
    fig = dose_curve(modes_frame())
    texts = [a.text for a in fig.layout.annotations]
    assert {"zero ablation", "mean ablation", "uniform ablation"} <= set(texts)
    assert {fig.layout[f"yaxis{i}"].domain for i in ("", 2, 3)} == {(0.0, 1.0)}


def test_at_chance_draws_no_effect() -> None:
    fig = dose_curve(EFFECTS[EFFECTS["task"] == "arithmetic"])
    assert any("at chance" in (a.text or "") for a in fig.layout.annotations)
    assert not named(fig, "cut, 95% CI") and not named(fig, "one control draw")


def test_status_of_the_cut_counts_as_well_as_that_of_the_clean_run() -> None:
    marked = ANSWER.assign(status=ANSWER["status"].where(ANSWER["condition"] == "clean", "at chance"))
    assert not named(dose_curve(marked), "cut, 95% CI")


def test_a_single_dose_shows_its_controls_as_a_bar() -> None:
    fig = dose_curve(ANSWER[ANSWER["k"].isin([0, 10])])
    (middle,) = named(fig, "controls, 5\u201395%")
    at = rows("control", 10)["value"]
    assert middle.y[0] + middle.error_y.array[0] == pytest.approx(at.quantile(0.95))
    assert not [t for t in fig.data if t.fillcolor == theme.CONTROL_BAND]


def test_the_clean_run_is_the_one_the_deltas_were_taken_from() -> None:
    other = rows("clean").assign(value=0.5, ci_lo=0.4, ci_hi=0.6)
    both = pd.concat([other, ANSWER[ANSWER["metric"] == "accuracy"]])
    (line,) = named(dose_curve(both), "clean, 95% CI")
    assert set(line.y) == {0.94}


def test_other_metrics_have_their_unit() -> None:
    assert dose_curve(EFFECTS, "nll").layout.yaxis.title.text == "loss (nats per token)"
    assert dose_curve(ANSWER, "logit_diff").layout.yaxis.title.text == "logit difference (logits)"


@pytest.mark.parametrize("draw", [dose_curve, control_strip, effect_matrix])
@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (EFFECTS.drop(columns=["delta", "scope"]), "missing columns scope, delta"),
        (EFFECTS.iloc[:0], "no rows"),
        (EFFECTS[EFFECTS["metric"] == "nll"], "no row has metric 'accuracy'; the table has nll"),
        (EFFECTS[EFFECTS["condition"] != "cut"], "no row with condition 'cut'"),
        (EFFECTS[EFFECTS["condition"] != "clean"], "task 'niah_words' has no row with condition 'clean'"),
    ],
)
def test_malformed_frames_are_named(draw: object, frame: pd.DataFrame, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        draw(frame)  # type: ignore[operator]


def test_too_many_panels_are_refused() -> None:
    many = pd.concat([EFFECTS.assign(subject=f"m{i}") for i in range(4)])
    with pytest.raises(UsageError, match="40 panels"):
        dose_curve(many)


def test_unknown_k_lists_what_was_measured() -> None:
    with pytest.raises(UsageError, match="nothing was cut at k = 3; measured: 1, 2, 5, 10, 20"):
        effect_matrix(EFFECTS, k=3)


def test_matrix_holds_cut_and_controls_in_turn() -> None:
    fig = effect_matrix(EFFECTS[EFFECTS["scope"].isin(["", "answer"])])
    z = fig.data[0].z
    tasks = [t.replace("<br>", "") for t in fig.layout.xaxis.ticktext]
    assert tasks == ["niah_words", "niah_numbers", "induction", "facts", "arithmetic"]
    part = EFFECTS[(EFFECTS["k"] == 10) & (EFFECTS["scope"] == "answer") & (EFFECTS["metric"] == "accuracy")]
    for x, task in enumerate(tasks[:-1]):
        own = part[part["task"] == task]
        assert z[0, x] == own.loc[own["condition"] == "cut", "delta"].item()
        assert z[1, x] == pytest.approx(own.loc[own["condition"] == "control", "delta"].mean())
    assert np.isnan(z[:, -1]).all(), "no effect is reported at chance"


def test_matrix_says_at_chance_and_hatches() -> None:
    fig = effect_matrix(EFFECTS[EFFECTS["scope"].isin(["", "answer"])])
    labels = [a for a in fig.layout.annotations if "chance" in a.text and a.name != "subtitle"]
    assert [(a.x, a.y) for a in labels] == [(4, 0), (4, 1)]
    assert sum(s.type == "path" and s.name == "at chance" for s in fig.layout.shapes) == 2


def test_matrix_text_has_change_and_interval() -> None:
    fig = effect_matrix(EFFECTS[EFFECTS["scope"].isin(["", "answer"])])
    row = rows("cut", 10).iloc[0]
    text = next(a.text for a in fig.layout.annotations if (a.x, a.y) == (0, 0))
    assert text == f"<b>{row['delta']:+.2f}</b><br>[{row['ci_lo']:.2f}, {row['ci_hi']:.2f}]".replace(
        "-", "\u2212"
    )


def test_a_map_of_small_effects_stays_pale() -> None:
    fig = effect_matrix(EFFECTS[EFFECTS["task"] == "facts"])
    assert fig.data[0].zmax == 0.2
    assert fig.data[0].zmid == 0


def test_strip_shows_all_draws_and_the_cut() -> None:
    fig = control_strip(ANSWER, k=20)
    draws, cut = fig.data
    assert sorted(draws.x) == sorted(rows("control", 20)["delta"])
    row = rows("cut", 20).iloc[0]
    assert cut.x[0] == row["delta"]
    assert cut.x[0] - cut.error_x.arrayminus[0] == pytest.approx(row["ci_lo"])


def test_z_and_rank_are_those_of_the_draws() -> None:
    (panel,) = at_k(panels(rows_of(ANSWER, "accuracy", "t"), "t"), 10, "t")
    z, rank, of = z_and_rank(panel)
    draws = rows("control", 10)["delta"]
    assert z == pytest.approx((rows("cut", 10)["delta"].item() - draws.mean()) / draws.std(ddof=1))
    assert (rank, of) == (1, 21)


def test_rank_counts_in_the_direction_that_hurts() -> None:
    def panel(metric: str, cut: float, draws: list[float]) -> object:
        frame = pd.concat([rows("clean"), rows("cut", 10).assign(delta=cut), rows("control", 10).head(3)])
        frame.loc[frame["condition"] == "control", "delta"] = draws
        (found,) = panels(rows_of(frame.assign(metric=metric), metric, "t"), "t")
        return found

    assert z_and_rank(panel("accuracy", 0.1, [0.0, 0.2, -0.1]))[1] == 3
    assert z_and_rank(panel("nll", 0.1, [0.0, 0.2, -0.1]))[1] == 2


def test_what_all_panels_share_is_said_once() -> None:
    found = panels(rows_of(EFFECTS, "accuracy", "t"), "t")
    assert shared(found) == "mean ablation, reference pooled niah_words"
    assert shared([found[0]]) == "answer positions, mean ablation, reference pooled niah_words"
