"""Ready specs: each is valid and makes the units it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from interp.errors import MissingResource
from interp.sweep.mechanisms import CUTS, LOCATORS
from interp.sweep.spec import read_sweep, ready


@pytest.mark.parametrize("name", sorted(ready()))
def test_a_ready_spec_is_valid_and_has_units(name: str) -> None:
    spec = read_sweep(name)
    assert spec.name == name and spec == read_sweep(ready()[name])
    assert len(spec.units()) >= 6
    assert all(unit.task.set["n"] >= 24 for unit in spec.units())


def test_there_is_one_for_each_question() -> None:
    assert set(ready()) >= {"all-on-smollm2", "channels-by-task", "head-doses", "mlp-layers"}
    assert {(u.locator.name, u.cut.name) for u in read_sweep("head-doses").units()} == {
        ("retrieval_heads", "heads"),
        ("random_heads", "heads"),
    }


def test_all_on_smollm2_has_every_locator_with_its_cuts_on_every_task() -> None:
    spec = read_sweep("all-on-smollm2")
    units = spec.units()
    assert {u.locator.name for u in units} == set(LOCATORS) and {u.cut.name for u in units} == set(CUTS)
    assert len(units) == 8 * len(spec.tasks) == 104
    assert {u.model.name for u in units} == {"smollm2"}


def test_a_name_that_is_not_known_is_told_which_there_are(tmp_path: Path) -> None:
    with pytest.raises(MissingResource, match=r"there is no spec 'head-dozes'.*ready spec: all-on-smollm2, "):
        read_sweep("head-dozes")


def test_a_file_goes_before_a_ready_spec_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = ready()["head-doses"].read_text().replace("name: head-doses", "name: mine")
    Path("head-doses").write_text(text)
    assert read_sweep("head-doses").name == "mine"
