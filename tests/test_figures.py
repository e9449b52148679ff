"""The committed figures and the README's results are what the committed tables say."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

ROOT = Path(__file__).parent.parent


def loaded(name: str) -> ModuleType:
    path = ROOT / "figures" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"figures_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return loaded("retrieval_heads")


def test_the_readme_says_what_the_tables_say(script):
    text = (ROOT / "README.md").read_text()
    found = re.search(r"<!-- results -->\n(.*?)\n<!-- /results -->", text, re.DOTALL)
    assert found is not None and found[1] == script.readme()
    for name in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text):
        assert (ROOT / name).stat().st_size > 10_000, name


def test_figures_are_functions_of_the_tables(script):
    first, second = ({name: figure.to_json() for name, figure in script.figures().items()} for _ in range(2))
    assert first == second and set(first) == {
        "retrieval-heads",
        "retrieval-heads-dose",
        "retrieval-heads-matrix",
    }


def test_a_sample_of_the_committed_scores_is_computed_again(script, smollm2):
    """Scores of a few instances of the committed run, from the spec that stands beside them."""
    import yaml

    from interp.locate.retrieval_heads import RetrievalHeads
    from interp.tasks.registry import task

    spec = yaml.safe_load((script.DATA / "spec.yaml").read_text())
    provenance = json.loads((script.DATA / "provenance.json").read_text())
    assert smollm2.fingerprint == provenance["fingerprint"]
    length = min(spec["locate_lengths"])
    niah = task(
        "niah",
        length=length,
        kinds=tuple(spec["locate_kinds"]),
        n=spec["locate_n"],
        seed=spec["seed"],
        haystack="train",
    )
    committed = pd.read_parquet(script.DATA / "instances.parquet")
    few = niah.examples(smollm2)[:6]
    from interp.tasks.base import FixedTask

    again = RetrievalHeads().fit(smollm2, FixedTask(few, name="niah")).instances_
    same = committed.iloc[:6].reset_index(drop=True)
    for column in ("output", "answer", "accepted", "exact", "length", "depth"):
        assert again[column].tolist() == same[column].tolist(), column


# -- benchmarks ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def benchmarks() -> ModuleType:
    return loaded("benchmarks")


@pytest.fixture
def measured(tmp_path) -> Path:
    """Files of two jobs with times that are known: ours 0.25 of a bare forward a cell, a peer 1, another 2."""
    from tests.benchmarks import harness

    job = harness.Job(
        "cut <every> head",
        (
            harness.Reach("at most 0.5 of a bare forward", "ours/bare", "<=", 0.5),
            harness.Reach("5 x faster than hooks", "hooks/ours", ">=", 5.0),
            harness.Reach("0.8 of the saving, 10 x", "lens/ours", ">=", 0.8, over=10.0),
            harness.Reach("at most 0.05 of the tokens", "tokens", "<=", 0.05),
            harness.Reach("at most 1.2 x the memory", "memory ours/bare", "<=", 1.2),
        ),
        ours=lambda: None,
        bare=lambda: None,
        peers={"hooks": lambda: None, "lens": lambda: None},
        units={"ours": 4},
    )
    times = {"ours": [1.0, 1.1, 0.9], "bare": [1.0, 1.0, 1.0], "hooks": [1.0] * 3, "lens": [2.0] * 3}
    seconds = {name: {"wall": t, "cpu": t} for name, t in times.items()}
    pairs = harness._pairs(job.callables())
    found = {
        "title": job.title,
        "rounds": 3,
        "ratios": {f"{a}/{b}": harness.ratio(job, seconds, a, b) for a, b in pairs},
        "numbers": {"tokens": 1 / 126},
        "equal": {"difference": 2e-4, "tolerance": 1e-4, "met": False},
        "memory MB": {"ours": 11.0, "bare": 10.0},
    }
    found |= {**harness.machine(), "threads": 1, "jobs at a time": 2, "model": "smollm2"}
    found["reaches"] = harness.judge(job, found)
    for place, name in enumerate(("z-first", "a-second")):
        (tmp_path / f"{name}.json").write_text(json.dumps({**found, "name": name, "place": place}))
    (tmp_path / "notes.yaml").write_text("a-second: most of it goes into |the tail|\n")
    return tmp_path


def test_the_readme_says_what_was_measured(benchmarks):
    text = (ROOT / "README.md").read_text()
    found = re.search(r"<!-- benchmarks -->\n(.*?)\n<!-- /benchmarks -->", text, re.DOTALL)
    assert found is not None and found[1] == benchmarks.readme()


def test_the_table_of_benchmarks(benchmarks, measured, tmp_path):
    table = benchmarks.readme(measured)
    assert "| cut <every> head | at most 0.5 of a bare forward | 0.250 [0.225, 0.275] | met |" in table
    assert "|  | 5 x faster than hooks | 4.00 [3.64, 4.44] | **missed** |" in table
    assert "|  | 0.8 of the saving, 10 x | 0.800 [0.727, 0.889] | met |" in table
    assert "|  | at most 0.05 of the tokens | 0.0079 | met |" in table
    assert "|  | at most 1.2 x the memory | 1.10 | met |" in table
    assert "|  | equal to 1e-04 | 2.0e-04 | **missed** |" in table
    assert "\n- cut <every> head: most of it goes into |the tail|" in table
    assert [job["name"] for job in benchmarks.load(measured)] == ["z-first", "a-second"]
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- benchmarks -->\nold\\1\n<!-- /benchmarks -->\nafter\n")
    benchmarks.write_readme(page, measured)
    assert page.read_text() == f"before\n<!-- benchmarks -->\n{table}\n<!-- /benchmarks -->\nafter\n"
    assert benchmarks.readme(tmp_path / "empty").startswith("Nothing was measured")


def test_the_figure_of_benchmarks(benchmarks, measured):
    jobs = benchmarks.load(measured)
    figure = benchmarks.figure(jobs)
    assert figure.to_json() == benchmarks.figure(jobs).to_json()
    dots = {trace.name: trace for trace in figure.data}
    assert set(dots) == {"interp", "hooks", "lens", "bound"}
    assert dots["interp"].x == pytest.approx((0.25, 0.25)) and dots["interp"].y == (0, 1)
    assert dots["interp"].error_x.array == pytest.approx((0.025, 0.025))
    assert dots["lens"].x == pytest.approx((2.0, 2.0))
    # Of the bounds 0.5, 1 / 5 and 2 / (0.8 x 10) the tightest is drawn.
    lines = [shape.x0 for shape in figure.layout.shapes if shape.y1 - shape.y0 < 1]
    assert lines == pytest.approx([0.2, 0.2])
    assert "&lt;every&gt;" in figure.layout.yaxis.ticktext[0]
    low, high = (10**x for x in figure.layout.xaxis.range)
    assert low < 0.2 and high > 2.0


def test_every_benchmark_that_was_measured_has_a_job_and_its_reaches(benchmarks):
    from tests.benchmarks import harness

    for job in benchmarks.load():
        assert job["name"] in harness.builders()
        assert job["rounds"] >= 3 and job["reaches"], job["name"]
