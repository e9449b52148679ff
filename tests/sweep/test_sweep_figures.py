"""Figures of a sweep: what is drawn is what the merged table says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from interp.errors import UsageError
from interp.plot.sweep import sweep_doses, sweep_layers, sweep_matrix
from interp.plot.sweep_tables import beyond_table, dose_table, layer_table
from interp.sweep.figures import figures_of
from interp.sweep.run import sweep


@pytest.fixture(scope="module", autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def merged(fields: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Doses of found and of random heads, and every head by itself."""
    cuts = [{"cut": "heads", "set": {"doses": [1, 2], "controls": 2}}, "each_head"]
    spec = {**fields, "locators": [*fields["locators"], "all_heads"], "cuts": cuts}
    return sweep(spec, tmp_path_factory.mktemp("figures") / "run").to_frame()


def doses(merged: pd.DataFrame) -> pd.DataFrame:
    return merged[merged["cut"].str.startswith("heads")]


def test_dose_curves_are_the_tables_values(merged: pd.DataFrame) -> None:
    fig = sweep_doses(merged, "accuracy")
    traces = [t for t in fig.data if t.name == "retrieval_heads" and t.mode == "lines+markers"]
    rows = doses(merged).query("locator == 'retrieval_heads' and metric == 'accuracy' and condition == 'cut'")
    wanted = [list(own["value"]) for _, own in rows.groupby("task", sort=False)]
    assert [list(t.y) for t in traces] == wanted and len(wanted) == 2
    table = dose_table(merged, "accuracy")
    cut = table[(table["line"] == "cut") & (table["locator"] == "retrieval_heads")]
    assert list(cut["lo"]) == pytest.approx(list(rows["value"] - rows["delta"] + rows["ci_lo"]))
    drawn = doses(merged).query("metric == 'accuracy' and condition == 'control'")
    means = drawn.groupby(["locator", "task", "k"], sort=False)["value"].mean().tolist()
    assert table[table["line"] == "controls"]["value"].tolist() == pytest.approx(means)
    captions = [a.text for a in fig.layout.annotations]
    assert any("pairs=4 (n = 16)" in c for c in captions) and any("2 draws" in c for c in captions)


def test_the_matrix_shows_harm_beyond_controls_and_its_rank(merged: pd.DataFrame) -> None:
    table = beyond_table(merged, "accuracy").query("locator == 'retrieval_heads' and k == 1")
    own = doses(merged).query("locator == 'retrieval_heads' and k == 1 and metric == 'accuracy'")
    for row in table.itertuples():
        here = own[own["task"] == row.task]
        cut = here[here["condition"] == "cut"]["delta"].item()
        controls = here[here["condition"] == "control"]["delta"]
        assert row.beyond == pytest.approx(cut - controls.mean())
        assert row.beyond < -0.5 and row.rank == 1 and row.n == 16 and row.draws == len(controls)
    fig = sweep_matrix(merged, "accuracy")
    texts = [a.text for a in fig.layout.annotations]
    assert any(t.startswith("<b>\u2212") and "1 of 3" in t for t in texts)


def test_heads_cut_one_by_one_are_a_profile_of_layers(merged: pd.DataFrame) -> None:
    rows = merged.query("mechanism == 'every head' and metric == 'accuracy' and condition == 'cut'")
    wanted = rows.groupby("task", sort=False)["delta"]
    table = layer_table(merged, "accuracy")
    assert table["delta"].tolist() == pytest.approx(wanted.mean().tolist())
    assert table["lo"].tolist() == pytest.approx(wanted.min().tolist())
    fig = sweep_layers(merged, "accuracy")
    shown = [t.y[0] for t in fig.data if t.name == "cut" and t.mode == "lines"]
    assert shown == pytest.approx(wanted.mean().tolist())


def test_seeds_are_taken_together(merged: pd.DataFrame) -> None:
    other = merged.assign(seed=1, value=merged["value"] / 2)
    table = dose_table(pd.concat([merged, other]), "accuracy")
    once = dose_table(merged, "accuracy")
    cut = table["line"] == "cut"
    assert table["value"].tolist() == pytest.approx((once["value"] * 0.75).tolist())
    assert (table[cut]["n"] == 32).all() and (once[once["line"] == "cut"]["n"] == 16).all()


def test_units_that_no_label_tells_apart_are_not_mixed(merged: pd.DataFrame) -> None:
    twice = pd.concat([merged, merged.assign(unit=merged["unit"] + "b")])
    with pytest.raises(UsageError, match="the name of two units"):
        dose_table(twice)
    fitted = merged[merged["locator"] == "retrieval_heads"]
    other = fitted.assign(unit=fitted["unit"] + "b", located_on="mqar n=9")
    table = dose_table(pd.concat([merged, other]))
    assert {"retrieval_heads, on mqar n=8", "retrieval_heads, on mqar n=9"} <= set(table["locator"])


def test_at_chance_nothing_is_drawn(merged: pd.DataFrame) -> None:
    first = merged["task"].iloc[0]
    floor = merged.assign(status=merged["status"].where(merged["task"] != first, "at chance"))
    assert set(dose_table(floor)["task"]) == set(merged["task"]) - {first}
    texts = [a.text for a in sweep_doses(floor).layout.annotations]
    assert any("at chance, so left out: mqar pairs=4" in t for t in texts)


def test_pages_and_their_tables_are_written(merged: pd.DataFrame, tmp_path: Path) -> None:
    found = figures_of(merged, tmp_path / "figures")
    assert all(path.is_file() for path in found)
    pages, tables = ({p.stem for p in found if p.suffix == s} for s in (".html", ".csv"))
    assert pages == tables and "matrix-choice" in pages and len(pages) == 6
    again = pd.read_csv(tmp_path / "figures" / "matrix-choice.csv")
    assert again["beyond"].tolist() == pytest.approx(beyond_table(merged)["beyond"].tolist())


def test_an_empty_table_is_an_error(merged: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="run the sweep first"):
        figures_of(merged.iloc[:0], tmp_path)
    with pytest.raises(UsageError, match="no rows"):
        sweep_matrix(merged.iloc[:0])
    with pytest.raises(UsageError, match="no row of a cut"):
        sweep_doses(merged[merged["mechanism"] == "every head"])
