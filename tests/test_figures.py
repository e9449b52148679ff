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


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = ROOT / "figures" / "retrieval_heads.py"
    spec = importlib.util.spec_from_file_location("figures_retrieval_heads", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
