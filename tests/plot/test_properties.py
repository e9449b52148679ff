"""Figures of the properties and of a reproduction: they show the numbers of their tables, and no text lies on text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest

import interp
from interp.errors import UsageError
from interp.locate.properties import Property, causal, dynamic, intrinsic, sparse, universal
from interp.models.sites import Head
from interp.plot import properties
from interp.plot.reproduction import reproduction
from interp.published import COLUMNS, table
from tests.locate.test_properties import scored
from tests.planted.retrieval import plant, planted_task
from tests.plot.chromium import OVERLAPS, Opened, chromium, opened
from tests.plot.test_layout import draw


def scores(layers: int, heads: int, seed: int) -> interp.RetrievalHeads:
    """Sparse scores of 12 instances."""
    rng = np.random.default_rng([seed, layers])
    strength = rng.random((layers, heads)) ** 8
    return scored(np.clip(strength + 0.05 * rng.standard_normal((12, layers, heads)), 0, 1))


@pytest.fixture(scope="module")
def measured() -> dict[str, Property]:
    planted = plant("llama", seed=0)
    model = interp.load(planted.module, tokenizer=None)
    task = planted_task(planted, 5, 0, 60)
    chosen = [Head(*place) for place in sorted(planted.retrieval)]
    base = scores(12, 12, 0)
    return {
        "sparse": sparse(base, subject="a model"),
        "dynamic": dynamic(model, task, chosen, by="value_length"),
        "causal": causal(model, task, chosen, sizes=(1, 2), controls=3),
        "universal": universal(
            {"one-model-7b": base, "another-model": scores(20, 16, 1), "third": scores(8, 8, 2)}
        ),
        "intrinsic": intrinsic(base, scores(12, 12, 0)),
    }


def reproduced() -> pd.DataFrame:
    own: dict[str, Any] = {"share_over_0.1": 0.07, "share_over_0.5": 0.015, "share_zero": 0.65}
    own |= {f"top_{i}": 1 / i for i in range(1, 11)}
    own |= {"recall_clean": 90.0, "recall_top_10": 4.0, "recall_matched_10": 80.0, "recall_top_30": 2.0}
    rows = [{"kind": "ours", "subject": "tiny", "statistic": k, "value": v, "n": 20, "tag": "measured",
             "source": "here", "ci_lo": 0.9 * v, "ci_hi": 1.1 * v} for k, v in own.items()]  # fmt: skip
    return pd.concat([table(), pd.DataFrame(rows).reindex(columns=COLUMNS)], ignore_index=True)


def trace(fig: Any, name: str, axis: str = "x") -> Any:
    return next(t for t in fig.data if t.name == name and t.xaxis == axis)


def test_sparse_draws_scores_masses_and_the_null(measured: dict[str, Property]) -> None:
    ranked, fig = measured["sparse"].tables["ranked"], measured["sparse"].figure()
    assert list(fig.data[0].y) == ranked["score"].tolist()
    assert list(trace(fig, "measured", "x2").y) == [0.0, *ranked["mass"]]
    assert list(trace(fig, "exchangeable heads, 95%", "x2").y) == [0.0, *ranked["null"]]
    over = int((ranked["score"] >= 0.1).sum())
    assert f"{over} of 144 heads score 0.1 or more" in fig.layout.meta["alt"]


def test_dynamic_draws_activity_and_jaccard_by_step(measured: dict[str, Property]) -> None:
    found = measured["dynamic"]
    fig, activity = found.figure(), found.tables["activity"]
    inside = trace(fig, "in the static set")
    assert list(inside.y) == activity[activity["static"]]["active"].tolist()
    line = trace(fig, "measured, \u00b1 SE", "x2")
    steps = found.tables["steps"]
    assert line.y[0] == steps[steps["step"] == 0]["jaccard"].mean()
    assert line.customdata[0] == 5
    contexts = found.tables["contexts"]
    assert {c[0] for c in trace(fig, "one context").customdata} == set(contexts["context"])
    assert sorted(trace(fig, "one context").y) == sorted(contexts["active"])


def test_causal_draws_what_is_lost_and_what_is_left(measured: dict[str, Property]) -> None:
    found = measured["causal"]
    fig = found.figure()
    assert list(trace(fig, "best heads, 95% CI").y) == [1 + found.value(f"cut_{k}") for k in (1, 2)]
    assert list(trace(fig, "best heads, 95% CI", "x2").y) == [1 + found.value(f"keep_{k}") for k in (0, 1, 2)]
    assert len(trace(fig, "matched others").y) == 6
    alone = found.tables["effects"][~found.tables["effects"]["condition"].str.startswith("keep")]
    assert not [t for t in properties.causal(found.frame, effects=alone).data if t.xaxis == "x2"]


def test_universal_draws_a_line_for_each_model(measured: dict[str, Property]) -> None:
    found = measured["universal"]
    fig = found.figure()
    for name in ("one-model-7b", "another-model", "third"):
        own = found.tables["strength"]
        assert list(trace(fig, name).y) == own[own["subject"] == name]["score"].tolist()
    depth = found.tables["depth"]
    assert [t.y.sum() for t in fig.data if t.xaxis == "x2"] == pytest.approx([1.0] * 3)
    assert len(depth) == 30


def test_intrinsic_draws_both_scores_and_the_ceiling(measured: dict[str, Property]) -> None:
    found = measured["intrinsic"]
    fig, heads = found.figure(), found.tables["heads"]
    scatter = next(t for t in fig.data if t.mode == "markers" and t.xaxis == "x")
    assert (list(scatter.x), list(scatter.y)) == (heads["base"].tolist(), heads["derived"].tolist())
    at = found.frame.set_index("statistic")["value"]
    assert trace(fig, "measured", "x2").y[0] == at["overlap_top_5"] == 1.0
    assert trace(fig, "ceiling: split halves", "x2").y[1] == at["overlap_top_10_ceiling"]


@pytest.mark.parametrize("name", ["sparse", "dynamic", "causal", "universal", "intrinsic"])
def test_what_is_missing_is_named(measured: dict[str, Property], name: str) -> None:
    found = measured[name]
    with pytest.raises(UsageError, match=f"{name}: missing columns value"):
        getattr(properties, name)(found.frame.drop(columns="value"), **found.tables)


@pytest.fixture(scope="module")
def page(browser: str) -> Iterator[Opened]:
    from plotly.offline import get_plotlyjs

    with chromium(browser) as running, opened(running, viewport={"width": 1000, "height": 900}) as out:
        out.page.set_content("<body></body>")
        out.page.add_script_tag(content=get_plotlyjs())
        yield out


@pytest.mark.parametrize("width", ["single", "double", "page"])
def test_no_text_on_text(page: Opened, measured: dict[str, Property], width: Any) -> None:
    figures = {name: found.figure(width=width) for name, found in measured.items()}
    figures["reproduction"] = reproduction(reproduced(), "tiny", width=width)
    found = {name: draw(page, fig).evaluate(OVERLAPS) for name, fig in figures.items()}
    assert {name: bad for name, bad in found.items() if bad} == {}
    assert page.said == [] and page.requests == []
