"""The spec that the options of a command ask for: what overrides what, and what is told of a wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest

from interp.atlas import AtlasSpec
from interp.cli.options import spec_of
from interp.errors import UsageError
from interp.studies.ioi.spec import IOISpec


def test_options_override_the_file_and_set_overrides_both(tmp_path: Path) -> None:
    file = tmp_path / "spec.yaml"
    file.write_text("model: a\nseed: 3\nn: 8\nheld: 6\n")
    found = spec_of(IOISpec, "study ioi", None, file, False, None, seed=None)
    assert found == IOISpec(model="a", seed=3, n=8, held=6)
    found = spec_of(IOISpec, "study ioi", "b", file, True, ["n=9"], seed=4)
    assert found == IOISpec(model="b", seed=4, n=9, held=6), "a file has its own sizes, quick or not"
    assert (
        spec_of(IOISpec, "x", "a", None, True, ["n=9"]) == IOISpec.quick("a", n=9) != IOISpec(model="a", n=9)
    )
    assert spec_of(IOISpec, "x", "a", None, False, ["seed=5", "model=b"], seed=4) == IOISpec(
        model="b", seed=5
    )


def test_what_is_wrong_is_told_in_one_line(tmp_path: Path) -> None:
    for told, kind, model, spec, changes in (
        ("name a model: interp study ioi smollm2", IOISpec, None, None, None),
        ("there is no spec", IOISpec, "a", tmp_path / "none.yaml", None),
        (r"spec field 'stages.0': .*given: mover\)", IOISpec, "a", None, ["stages=[mover]"]),
        # A rule about several fields is of none of them.
        (r"^spec: .*top is 3, which is none of all_doses [^()]*$", AtlasSpec, "a", None, ["top=3"]),
    ):
        with pytest.raises(UsageError, match=told):
            spec_of(kind, "study ioi", model, spec, False, changes)
