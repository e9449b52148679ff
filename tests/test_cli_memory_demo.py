"""`interp memorization demo`: what it makes of the tables of a study; the study has tests of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from interp.cli import app, memory_demo
from interp.studies.memorization import study
from interp.studies.memorization.findings import PROTOCOL

MEASURES = ("targeted", "held_out", "control", "alignment")


def _tables() -> dict[str, pd.DataFrame]:
    values = {
        "none": (1.0, 0.9, 0.0, 0.95), "nemo": (0.1, 0.2, 0.0, 0.8), "random 0 (wanda reference)": (0.7, 0.6, 0.0, 0.9),
        "random 0 (nemo)": (1.0, 1.0, 0.0, 0.9),
    }  # fmt: skip
    own = [
        {
            "edit": e,
            "measure": m,
            "value": v,
            "dose": 0.3 * (e != "none"),
            "ci_lo": v,
            "ci_hi": v,
            "control": "(" in e,
            "of": e.partition("(")[2].rstrip(")") or e,
            "family": "none" if e == "none" else "control" if "(" in e else "located",
        }
        for e, row in values.items()
        for m, v in zip(MEASURES, row, strict=True)
    ]
    split = {"locate": "memorized", "test": "memorized", "": "control"}
    samples = [
        {
            "role": role,
            "guidance": g,
            "split": s,
            "group": group,
            "extracted": role == "model" and g == 1 and s != "",
        }
        for role in ("model", "oracle")
        for g in (1.0, 1.5)
        for s, group in split.items()
    ]
    back = {("original", "targeted"): 1.0, ("nemo", "targeted"): 0.75, ("oracle", "unseen"): 0.25}
    recovery = [
        {"condition": c, "group": g, "metric": m, "value": v / (1 if m == "attacked_any" else 2)}
        for (c, g), v in back.items()
        for m in ("attacked_any", "attacked")
    ]
    pictures = [
        {"item": "a", "state": s, "image": [0.0, 0.5, 1.0, 0.2], "height": 2, "width": 2, "distance": 0.1,
         "replicated": True}
        for s in ("original", "before", "wanda", "wanda, attacked")
    ]  # fmt: skip
    finding = {"finding": "erased", "verdict": "holds", "value": 0.5, "ci_lo": 0.4, "ci_hi": 0.6, "n": 10}
    frames: dict[str, Any] = {"edits": own, "doses": own, "samples": samples, "recovery": recovery}
    frames |= {"pictures": pictures, "findings": [finding | {"source": "x"}]}
    return {name: pd.DataFrame(rows) for name, rows in frames.items()}


def test_the_table_says_what_went_what_stayed_and_what_came_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def run(spec: Any, folder: Path, **_: Any) -> None:
        asked.append(spec)
        folder.mkdir()
        for name, frame in _tables().items():
            frame.to_parquet(folder / f"{name}.parquet")

    monkeypatch.setattr(study, "run", run)
    out = tmp_path / "demo"
    done = CliRunner().invoke(
        app, ["memorization", "demo", "--seed", "3", "--out", str(out), "--json"], catch_exceptions=False
    )
    told = json.loads(done.stdout)
    assert (asked[0].train_seeds, asked[0].model) == ((3,), "quick")
    rows = {row["condition"]: row for row in told["conditions"]}
    assert list(rows) == ["original", "nemo", "random 0 (wanda reference)", "oracle"]
    assert [rows["nemo"][k] for k in ("dose", "A", "B", "A got back")] == [0.3, 0.1, 0.2, 0.75]
    assert rows["original"]["A"] == 1 and rows["original"]["digit asked for"] == 0.95
    assert rows["random 0 (wanda reference)"]["A got back"] is None
    assert (rows["oracle"]["A"], rows["oracle"]["never trained, made up"]) == (0, 0.25)
    assert told["findings"][0]["verdict"] == "holds"
    assert {Path(p).name for p in told["figures"]} == {"pictures.html", "doses.html"}
    assert all(Path(p).stat().st_size > 1000 for p in told["figures"])


def test_main_findings_are_chosen_by_name_whatever_their_verdict() -> None:
    main = [
        PROTOCOL,
        "an oracle, trained without the items, does not replicate them",
        "wanda reference: what it was made for is erased beyond its control (ordinary)",
        "wanda reference: ordinary prompts keep their digits",
    ]
    rest = [
        "nemo: what it was made for is erased beyond its control (ordinary)",
        "wanda reference: what it was made for is erased beyond its control (random)",
        "a test of sets",
    ]
    table = pd.DataFrame({"finding": [*rest, *main], "verdict": ["holds"] * 3 + ["does not", "holds"] * 2})
    found = memory_demo.main(table)
    assert list(found["finding"]) == main and list(found["verdict"]) == ["does not", "holds"] * 2
