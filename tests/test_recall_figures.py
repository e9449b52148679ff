"""The figures of the recall tasks from small tables in the shapes that a run writes."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
from study_script import written

from tests.plot.recall_frames import recall_ages_frame, recall_curves_frame, recall_frame


@pytest.fixture(scope="module")
def study() -> ModuleType:
    return importlib.import_module("recall_tasks")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    recall_frame().to_parquet(folder / "recall.parquet")
    recall_curves_frame().to_parquet(folder / "recall_curves.parquet")
    recall_ages_frame().to_parquet(folder / "recall_ages.parquet")
    (folder / "spec.yaml").write_text("model: tiny\n")
    return folder


def test_there_is_a_figure_for_each_family_and_axis(study: ModuleType, data: Path) -> None:
    names = set(study.figures(data))
    assert {"recall-tasks-long-context", "recall-tasks-by-depth", "recall-tasks-by-set-size"} <= names
    assert "recall-tasks-by-age" in names and len(names) == 10


def test_numbers_are_those_of_the_tables(study: ModuleType, data: Path) -> None:
    text = study.numbers(data)
    assert text.startswith("The model answers 6 of 6 tasks better than a uniform guess at the first size")
    assert "Of 23 sizes, 20 above chance, 2 at chance and 1 not asked." in text
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(lines) == 1 + len(recall_frame()) + 1 + len(set(recall_ages_frame()["updates"]))
    row = recall_frame().query("task == 'laundry' and size == '12'").iloc[0]
    assert (
        f"| laundry | items 12 | 32 | {100 * row['choice']:.1f}% [0.0%, " in text and "| at chance |" in text
    )
    assert "At chance already" not in text
    ages = text.split("Where a value was updated")[1].splitlines()[4:]
    assert ages == [
        "| 2 | 32 | 75.0% [65.0%, 85.0%] | 25.0% [15.0%, 35.0%] | 0 | 75.0% [65.0%, 85.0%] | 0.500 |",
        "| 4 | 32 | 12.5% [2.5%, 22.5%] | 50.0% [40.0%, 60.0%] | 3 | 50.0% [40.0%, 60.0%] | 0.200 |",
    ]


def test_export_copies_what_is_drawn(study: ModuleType, data: Path, tmp_path: Path) -> None:
    copied = study.export({"": data}, tmp_path / "out")
    assert {p.name for p in copied} == {
        "recall.parquet",
        "recall_curves.parquet",
        "recall_ages.parquet",
        "spec.yaml",
    }
    assert study.numbers(tmp_path / "out") == study.numbers(data)
    assert study.numbers(tmp_path / "none") == "" and study.figures(tmp_path / "none") == {}


def test_the_readme_says_what_the_committed_tables_say(study: ModuleType) -> None:
    page = (study.DATA / "README.md").read_text()
    assert written(page, study.numbers(study.DATA)) == page
    assert written(page, "none of it") != page


def test_the_front_page_says_what_the_committed_tables_say(study: ModuleType) -> None:
    page = " ".join((Path(__file__).parent.parent / "README.md").read_text().split())
    made = pd.read_parquet(study.DATA / "recall.parquet")
    above = (made["status"] == "ok").groupby(made["task"])
    said = f"answers {above.first().sum()} of the {len(above)} tasks in English better than a uniform guess"
    assert f"{said} at the first size of its ladder, {above.all().sum()} at every size" in page
    at = made.set_index(["task", "rung", "param"])["choice"]
    assert f"biographies of two people in {100 * at.loc[('biographies', 0, 'people')]:.0f} %" in page
    for task in ("niah", "passkey"):
        longest = made[(made["task"] == task) & (made["param"] == "length") & (made["at"] == 1024)]
        assert longest["choice"].item() > 0.9
    assert not above.any()[["consolidation", "updates", "order"]].any()


def test_the_front_page_says_what_the_reference_row_of_mqar_came_to() -> None:
    root = Path(__file__).parents[1]
    row = pd.read_csv(root / "figures/data/mqar/reference.csv").iloc[0]
    said = " ".join((root / "README.md").read_text().split())
    assert f"{row['vocabulary']:,} symbols, {row['pairs']} pairs, {row['published']:.2f}) comes to" in said
    assert (
        f"comes to {row['accuracy']:.3f}".replace("0.", ".")
        + f" after {row['epochs_of_64']} of its 64 epochs"
        in said
    )
