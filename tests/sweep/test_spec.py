"""Specs: what stands for what, and one line with the place of a fault."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from interp.errors import MissingResource, UsageError
from interp.sweep.spec import SweepSpec, read_sweep

GOOD = """\
name: doses
models: [smollm2]
tasks:
  - {task: niah, set: {n: 4}, product: {length: [128, 256], needles: [1, 2]}}
  - induction
locators:
  - {locator: retrieval_heads, fit_on: {task: niah, set: {haystack: train}}}
  - all_mlps
cuts:
  - {cut: heads, set: {doses: [1, 2]}}
  - each_mlp
seeds: [0, 1]
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    return path


def test_units_are_every_combination_that_makes_sense_each_once(tmp_path: Path) -> None:
    units = read_sweep(written(tmp_path, GOOD)).units()
    # Five tasks, two locators each with its own cut, two seeds.
    assert len(units) == 5 * 2 * 2 and len({u.canonical() for u in units}) == len(units)
    assert {(u.locator.name, u.cut.name) for u in units} == {
        ("retrieval_heads", "heads"),
        ("all_mlps", "each_mlp"),
    }
    assert {(u.task.set.get("length"), u.task.set.get("needles")) for u in units if u.task.name == "niah"} == {
        (128, 1), (128, 2), (256, 1), (256, 2)
    }  # fmt: skip
    assert all(u.task.set["n"] == 4 and not u.task.product for u in units if u.task.name == "niah")
    assert {u.model.set["dtype"] for u in units} == {"auto"}
    twice = read_sweep(written(tmp_path, GOOD.replace("  - induction\n", "  - induction\n  - induction\n")))
    assert twice.units() == units


def test_a_spec_is_the_same_from_yaml_and_from_python(tmp_path: Path) -> None:
    assert read_sweep(written(tmp_path, GOOD)) == SweepSpec(**yaml.safe_load(GOOD))
    changed = read_sweep(written(tmp_path, GOOD), {"cuts.0.set.doses": [5], "seeds": [7]})
    assert changed.cuts[0].set["doses"] == [5] and changed.seeds == (7,)
    assert changed.tasks == read_sweep(written(tmp_path, GOOD)).tasks


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("seeds: [0, 1]", "sedes: [0, 1]", r"line 12: unknown key 'sedes'"),
        ("task: niah, set", "task: nia, set", r"line 3: tasks: there is no 'nia' \(did you mean 'niah'\?\)"),
        ("length: [128", "lenth: [128", r"line 3: tasks: 'niah' has no parameter 'lenth'; it has length"),
        ("haystack: train", "haystak: train", r"line 3: tasks: 'niah' has no parameter 'haystak'"),
        ("locator: retrieval_heads", "locator: heads", r"line 6: locators: there is no 'heads'"),
        ("doses: [1, 2]", "dozes: [1, 2]", r"line 9: cuts: 'heads' has no parameter 'dozes'; it has doses"),
        ("  - each_mlp\n", "  - {cut: each_mlp, sett: {}}\n", r"line 11: unknown key 'cuts.1.sett'"),
        ("  - all_mlps\n", "", r"line 8: cuts: 'each_mlp' cuts every mlp, which none of the locators finds"),
        ("seeds: [0, 1]", "seeds: [0, 0]", r"line 12: seeds: each once"),
        ("n: 4}", "n: 4, length: 64}", r"line 4.*'length' stands in set and in product"),
        ("needles: [1, 2]", "needles: []", r"line 4.*product of 'needles' has no values"),
        ("models: [smollm2]\n", "", r"line 1: 'models' is missing"),
        ("models: [smollm2]", "models: [", r"not valid YAML"),
    ],
)  # fmt: skip
def test_a_fault_is_one_line_with_its_place(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in GOOD
    path = written(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(UsageError, match=says) as told:
        read_sweep(path)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", ["cuts.7.set.doses", "cuts.x", "name.a.b"])
def test_a_place_that_is_not_there_cannot_be_set(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="no such place"):
        read_sweep(written(tmp_path, GOOD), {name: 1})


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingResource, match="there is no spec"):
        read_sweep(tmp_path / "none.yaml")
    with pytest.raises(UsageError, match="a mapping"):
        read_sweep(written(tmp_path, "- a\n"))


def test_labels_tell_units_apart(fields: dict[str, Any]) -> None:
    units = SweepSpec(**fields).units()
    assert len({u.label for u in units}) == len(units) == 4
