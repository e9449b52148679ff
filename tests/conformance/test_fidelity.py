"""The README's fidelity table is what was measured, and small; and measuring it again gives no more."""

from __future__ import annotations

import json

import pytest

from tests.conformance import fidelity
from tests.conformance.common import CLOSE, ENGINES, FAMILIES, batch
from tests.subjects import subject


@pytest.fixture(scope="module")
def data():
    return json.loads(fidelity.DATA.read_text(encoding="utf-8"))


def test_the_readme_says_what_was_measured(data):
    found = fidelity.BLOCK.search((fidelity.ROOT / "README.md").read_text(encoding="utf-8"))
    assert found is not None and found[0] == fidelity.render(data)


def test_all_that_was_measured_is_close(data):
    assert set(data["models"]) == {*FAMILIES, "smollm2"}
    for name, entry in data["models"].items():
        assert set(entry["engines"]) == set(ENGINES)
        for engine, gaps in entry["engines"].items():
            assert max(gaps.values()) <= CLOSE, (name, engine, gaps)
    assert all(e["engines"]["hooks"] == {"logits": 0, "recordings": 0} for e in data["models"].values())


@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
def test_a_sample_is_measured_again(data, family):
    again = fidelity.measure(subject(family), batch())
    for engine, gaps in again.items():
        before = data["models"][family]["engines"][engine]
        for what, value in gaps.items():
            assert value <= 4 * before[what], (engine, what)  # another processor rounds otherwise


def test_a_row_of_the_table_shows_the_worst_of_its_models():
    one = {engine: {"logits": 0, "recordings": 0} for engine in ENGINES}
    two = {**one, "lens": {"logits": 3.4e-6, "recordings": 2e-7}}
    three = {**one, "lens": {"logits": 1e-7, "recordings": 5e-7}}
    table = fidelity.render(
        {"models": {n: {"row": "llama", "engines": e} for n, e in zip("abc", (one, two, three), strict=True)}}
    )
    assert table.splitlines()[-1] == "| llama | 0 / 0 | 3e-06 / 5e-07 | 0 / 0 |"
