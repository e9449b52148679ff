"""`interp compare-heads`: what it prints, and what it says of bad input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from interp.locate.interop import read_heads, write_heads
from tests.test_bad_input import ends, interp


def reference(path: Path, values: np.ndarray) -> Path:
    _, layers, heads = values.shape
    lists = {f"{la}-{h}": values[:, la, h].tolist() for la in range(layers) for h in range(heads)}
    path.write_text(json.dumps(lists))
    return path


@pytest.fixture
def files(tmp_path) -> tuple[Path, Path]:
    """Two files of 4 x 8 heads that share three of their five best."""
    a, b = np.zeros((2, 6, 4, 8))
    a[:, 1, :5] = b[:, 1, 2:7] = [0.9, 0.8, 0.7, 0.6, 0.5]
    a[:3, 0, 0] = 0.2
    return reference(tmp_path / "old.json", a), reference(tmp_path / "new.json", b)


def test_a_table_for_people_and_json_for_machines(files):
    shown = interp("compare-heads", *files, "--top", 5, "--threshold", 0.1)
    assert shown.exit_code == 0, shown.output
    assert "3 of 5 and 5 in 32" in shown.stdout and "3 of 6 and 5 in 32" in shown.stdout
    assert "only A: old, top 5: L1H0 L1H1" in shown.stderr
    assert "only B: new, top 5: L1H5 L1H6" in shown.stderr
    told = json.loads(interp("compare-heads", *files, "--top", 5, "--json").stdout)
    assert (told["a"], told["b"], told["method_a"]) == ("old", "new", "copy")
    overlap = next(r for r in told["rows"] if r["measure"] == "overlap")
    assert (overlap["value"], overlap["shared"], overlap["n"]) == (0.6, 3, 32)
    # At least 3 of 5 and 5 within the one layer of 8: (C(5,3) C(3,2) + C(5,4) 3 + 1) / C(8,5).
    assert overlap["p_layers"] == pytest.approx(46 / 56)
    assert {(r["only"], r["component"]) for r in told["only"]} == {
        ("a", "L1H0"),
        ("a", "L1H1"),
        ("b", "L1H5"),
        ("b", "L1H6"),
    }
    assert overlap["ceiling"] == 1.0 and overlap["of_ceiling"] == pytest.approx(0.6)


def test_every_format_can_stand_on_either_side(files, tmp_path):
    source = read_heads(files[0])
    write_heads(source, tmp_path / "a.csv")
    write_heads(source, tmp_path / "scores.parquet")
    write_heads(source, tmp_path / "a.yaml", top=5)
    write_heads(source, tmp_path / "q.json", "qrhead")
    (tmp_path / "a.txt").write_text(files[0].read_text())
    others = [
        (tmp_path / "a.csv",),
        (tmp_path,),
        (tmp_path / "a.yaml",),
        (tmp_path / "q.json",),
        (tmp_path / "a.txt", "--format-b", "retmask"),
    ]
    for other in others:
        told = interp("compare-heads", files[0], *other, "--top", 5, "--json")
        assert told.exit_code == 0, told.output
        assert json.loads(told.stdout)["rows"][0]["value"] == 1.0, other


def test_kv_groups_and_methods(files, tmp_path):
    told = json.loads(interp("compare-heads", *files, "--kv-heads", 2, "--top", 2, "--json").stdout)
    groups = {r["measure"]: r for r in told["rows"] if r["unit"] == "kv_group"}
    assert groups["overlap"]["n"] == 8
    frame = read_heads(files[0]).scores_
    other = frame.assign(method="other", score=frame["score"][::-1].to_numpy())
    write_heads(pd.concat([frame, other]), tmp_path / "two.csv")
    told = json.loads(
        interp(
            "compare-heads", tmp_path / "two.csv", files[0], "--method", "other,copy", "--top", 5, "--json"
        ).stdout
    )
    assert (told["method_a"], told["method_b"]) == ("other", "copy")
    assert told["rows"][0]["value"] == 0.0


def test_relative_depth(files, tmp_path):
    other = np.zeros((2, 8, 4))
    other[:, 3, :2] = 0.9
    wide = reference(tmp_path / "wide.json", other)
    ends(interp("compare-heads", files[0], wide), 2, "4 x 8", "8 x 4", "--relative-depth")
    told = json.loads(interp("compare-heads", files[0], wide, "--relative-depth", "--json").stdout)
    assert told["depth_a"] == pytest.approx(1 / 3) and told["depth_b"] == pytest.approx(3 / 7)
    assert told["distance"] == pytest.approx(3 / 7 - 1 / 3)


def test_bad_input_ends_in_one_line(files, tmp_path):
    broken = tmp_path / "broken.json"
    broken.write_text('{"0-0": [NaN]}')
    empty = tmp_path / "empty.json"
    empty.write_text("{}")
    ends(interp("compare-heads", files[0], tmp_path / "none.json"), 3, "no head list", "none.json")
    ends(interp("compare-heads", broken, files[0]), 2, "broken.json", "NaN")
    ends(interp("compare-heads", files[0], empty), 2, "empty.json", "no instance was accepted")
    ends(interp("compare-heads", files[0], tmp_path), 2, "scores.parquet")
    ends(interp("compare-heads", *files, "--top", 32), 2, "top 32", "1 to 31")
    ends(interp("compare-heads", *files, "--kv-heads", 3), 2, "do not divide into 3")
    ends(interp("compare-heads", *files, "--method", "qr"), 2, "no method 'qr'", "copy")
    ends(interp("compare-heads", *files, "--format-a", "wu"), 2, "unknown format 'wu'", "reference")
    ends(interp("compare-heads", *files, "--format-a", "duo"), 2, "tab-separated")
    assert interp("compare-heads", files[0]).exit_code == 2
    assert interp("compare-heads", *files, "--top", 0).exit_code == 2
