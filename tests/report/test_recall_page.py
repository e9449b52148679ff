"""The page of a run of the tasks, as text: its headline, its table, its figures, and what it does not speak of."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import yaml

from interp.report import render
from interp.report.headline import facts, sentence
from interp.report.recall import charts, rows
from interp.report.tables import read
from tests.plot.frames import HOSTILE, write_run
from tests.plot.recall_frames import recall_curves_frame, recall_frame
from tests.report.test_report import words

ATLAS = ("patch", "rows", "channels", "channel_spectrum", "channel_effects", "effects", "scores", "groups")
ATLAS += ("fact_profile", "fact_layers", "fact_effects", "fact_census")
"""Files of an atlas that are left out: all but its scoring diagnostics."""


def write(folder: Path, table: pd.DataFrame | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    (recall_frame() if table is None else table).to_parquet(folder / "recall.parquet", index=False)
    recall_curves_frame().to_parquet(folder / "recall_curves.parquet", index=False)
    (folder / "spec.yaml").write_text(yaml.safe_dump({"model": "tiny", "tasks": ["niah", HOSTILE]}))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("recall"))


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return render(run).read_text(encoding="utf-8")


def test_the_headline_counts_tasks_and_sizes(run: Path) -> None:
    tables = read(run)
    # Lists are at chance from the fourth size on; niah was not asked at its last.
    assert sentence(tables) == (
        "tiny answers 6 of 6 tasks better than a uniform guess at the first size of the ladder, and 5 at every size."
    )
    told = {fact.label: fact.value for fact in facts(tables)}
    assert told == {
        "tasks above chance at their first size": "6 of 6",
        "sizes above chance": "20 of 22",
        "sizes not asked": "1",
    }


def test_the_page_shows_every_size_and_marks_those_at_chance(run: Path, page: str) -> None:
    said, table = words(page), recall_frame()
    told = rows(read(run))
    assert [(r["task"], r["n"]) for r in told] == list(zip(table["task"], table["n"], strict=True))
    assert page.count('class="unsaid"') == 3 and said.count("at chance") >= 2
    row = table[(table["task"] == "multi_key") & (table["size"] == "8")].iloc[0]
    assert f"needles 8 32 {100 * row['choice']:.1f}% [{100 * row['choice_lo']:.1f}%, " in said
    assert "reading 32 \u2013" in said, "no candidates, no choice"
    assert "not asked: 1024 tokens do not fit <b>here</b>" in said and "fit <b>here" not in page


def test_each_family_and_each_axis_has_a_figure(run: Path, page: str) -> None:
    names = [chart.name for chart in charts(read(run))]
    assert names == [
        "recall-long-context", "recall-interference", "recall-lists-and-names", "recall-by-length", "recall-by-depth",
        "recall-by-position", "recall-by-updates", "recall-by-set-size", "recall-by-steps",
    ]  # fmt: skip
    for name in names:
        assert f'data-figure="{name}"' in page


def test_a_run_of_tasks_speaks_of_tasks_alone(page: str) -> None:
    assert "<title>tiny: recall tasks</title>" in page and "interp tasks run" in words(page)
    assert "retrieval heads" not in words(page) and "left out, the run has no" not in words(page)


def test_beside_an_atlas_tasks_are_a_section_of_it(tmp_path: Path) -> None:
    both = write(write_run(tmp_path / "both", without=ATLAS))
    said = words(render(both).read_text(encoding="utf-8"))
    assert "What it recalls" in said and "Activation patching: left out" in said and "interp atlas" in said


def test_a_malformed_table_says_what_is_missing(tmp_path: Path) -> None:
    said = words(
        render(write(tmp_path / "r", recall_frame().drop(columns="choice"))).read_text(encoding="utf-8")
    )
    assert "left out: recall_ladder: missing columns choice" in said and "Recall by length" in said
