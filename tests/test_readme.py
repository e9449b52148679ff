"""The README's Python runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_example_is_ten_lines() -> None:
    """`make demo` and `make test` are all the set-up, and the example fits on a screen."""
    assert "make demo" in README
    assert "make test" in README
    assert len(BLOCKS) >= 1
    assert len([line for line in BLOCKS[0].splitlines() if line.strip()]) <= 10


def test_the_example_runs(smollm2_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import plotly.graph_objects as go

    shown: list[go.Figure] = []
    monkeypatch.setattr(go.Figure, "show", lambda figure, *_, **__: shown.append(figure))
    names: dict[str, Any] = {}
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec"), names)
    figure, states = shown
    layers, heads = names["model"].n_layers, names["model"].n_heads
    assert len(names["heads"].scores_.query("method == 'copy'")) == layers * heads
    (map_,) = (trace for trace in figure.data if trace.type == "heatmap")
    assert (len(map_.z), len(map_.z[0])) == (heads, layers)
    effect = names["effect"]
    assert isinstance(effect, pd.DataFrame)
    cut = effect.query("condition == 'cut' and metric == 'accuracy'").iloc[0]
    assert cut["k"] == 10
    assert cut["delta"] < -0.3, "cutting the ten best heads takes recall away"
    assert cut["ci_hi"] < 0
    assert names["again"].logits.equal(names["model"].run(names["batch"]).logits)
    assert names["i"] in range(18) and states.layout.title.text.startswith("Which activations")
    assert len(names["screen"].frame) == layers * heads
    assert names["screen"].frame["verified"].sum() == 12
