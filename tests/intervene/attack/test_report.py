"""Reports of attacks: rates, false positives and work, from tables written down by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from interp.errors import UsageError
from interp.intervene.attack.report import audit, by_item, recovery, work_curve
from interp.intervene.attack.soft_prompt import SoftPrompts, soft_prompts
from interp.intervene.weights import ModelDelta
from interp.measure.stats import proportion_ci
from interp.tasks.memorized import TextItem
from tests.subjects import subject


def row(item: str, group: str, before: float, steps: float, work: int) -> dict[str, object]:
    found = float(not np.isnan(steps))
    return {
        "item": item,
        "group": group,
        "split": "test",
        "before": before,
        "extracted": found,
        "steps": steps,
        "work": work,
    }


NAN = float("nan")
TABLE = pd.DataFrame(
    [
        row("a", "memorized", 0.0, 10, 80),
        row("a", "memorized", 0.0, NAN, 400),
        row("b", "memorized", 1.0, 0, 0),
        row("b", "memorized", 1.0, 20, 160),
        row("c", "memorized", 0.25, 40, 320),
        row("c", "memorized", 0.25, 30, 240),
        row("x", "unseen", 0.0, NAN, 400),
        row("x", "unseen", 0.0, NAN, 400),
        row("y", "unseen", 0.0, 50, 400),
        row("y", "unseen", 0.0, NAN, 400),
    ]
)


def test_rates_are_over_searches_and_over_items() -> None:
    told = recovery(TABLE).set_index(["group", "metric"])
    assert told.loc[("memorized", "before"), "value"] == pytest.approx(1.25 / 3)
    assert told.loc[("memorized", "attacked"), "value"] == pytest.approx(5 / 6)
    assert told.loc[("memorized", "attacked_any"), "value"] == 1
    assert told.loc[("memorized", "gained"), "value"] == pytest.approx(3 / 4)
    assert told.loc[("memorized", "steps"), "value"] == 20 and told.loc[("memorized", "work"), "value"] == 160
    assert told.loc[("unseen", "attacked"), "value"] == 0.25
    assert told.loc[("unseen", "attacked_any"), "value"] == 0.5
    assert told.loc[("unseen", "attacked"), ["n_items", "n"]].tolist() == [2, 4]
    low, high = proportion_ci(TABLE["extracted"][:6].to_numpy(float), list(TABLE["item"][:6]))
    assert told.loc[("memorized", "attacked"), ["ci_lo", "ci_hi"]].tolist() == pytest.approx([low, high])
    assert low < 5 / 6 <= high
    with pytest.raises(UsageError, match="empty"):
        recovery(TABLE[:0])


def test_where_nothing_was_extracted_work_is_unknown() -> None:
    told = recovery(TABLE[6:8]).set_index("metric")["value"]
    assert told["attacked"] == 0 and np.isnan(told["steps"]) and np.isnan(told["work"])
    all_given = recovery(TABLE[2:4]).set_index("metric")["value"]
    assert all_given["before"] == 1 and np.isnan(all_given["gained"])


def test_the_curve_rises_with_the_work() -> None:
    curve = work_curve(TABLE)
    memorized = curve[curve["group"] == "memorized"].set_index("work")
    assert memorized.index.tolist() == [0, 80, 160, 240, 320, 400]
    assert memorized["extracted"].tolist() == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 5 / 6])
    assert memorized["items"].tolist() == pytest.approx([1 / 3, 2 / 3, 2 / 3, 1, 1, 1])
    unseen = curve[curve["group"] == "unseen"].set_index("work")
    assert unseen["extracted"].tolist() == [0, 0, 0, 0, 0, 0.25]
    assert work_curve(TABLE, unit="steps")["steps"].max() == 50


def test_items_are_told_one_by_one() -> None:
    told = by_item(TABLE).set_index("item")
    assert told.loc["a", ["before", "attacked", "any", "steps", "searches"]].tolist() == [0, 0.5, 1, 10, 2]
    assert told.loc["x", "any"] == 0 and np.isnan(told.loc["x", "steps"])
    assert len(told) == 5


def test_searches_that_fresh_samples_did_not_bear_out_are_told() -> None:
    assert "refused" not in set(recovery(TABLE)["metric"])
    told = recovery(TABLE.assign(refused=[0, 2, 0, 1, 0, 0, 0, 1, 0, 0])).set_index(["group", "metric"])
    assert told.loc[("memorized", "refused"), "value"] == pytest.approx(1 / 6), "what came later is extracted"
    assert told.loc[("unseen", "refused"), ["value", "n_items", "n"]].tolist() == [0.25, 2, 4]


def test_each_condition_is_attacked_under_its_edit() -> None:
    model = subject("llama")
    name = "model.layers.1.mlp.down_proj.weight"
    weight = model.hf.get_parameter(name)
    before = weight.detach().clone()
    edit = ModelDelta({name: torch.ones_like(before)})
    seen: list[bool] = []

    def attack(it: object) -> SimpleNamespace:
        assert it is model
        seen.append(torch.equal(weight, before))
        return SimpleNamespace(table=TABLE)

    told: list[str] = []
    table = audit(
        {"intact": (model, None), "edited": (model, edit)},
        attack,
        progress=lambda done, total, what: told.append(f"{done}/{total} {what}"),
    )
    assert seen == [True, False] and torch.equal(weight, before)
    assert table["condition"].tolist() == ["intact"] * 10 + ["edited"] * 10
    assert told == ["0/2 attack on intact", "1/2 attack on edited", "2/2 attacks"]
    assert "condition" not in TABLE
    assert set(recovery(table)["condition"]) == {"intact", "edited"}
    with pytest.raises(UsageError, match="conditions"):
        audit({}, attack)


def test_real_tables_are_read() -> None:
    items = [TextItem(f"t{i}", tuple(range(i, i + 9)), 4, "never") for i in range(2)]
    table = audit(
        {"intact": (subject("llama"), None)},
        lambda m: soft_prompts(m, items, SoftPrompts(steps=2, restarts=2)),
    )
    told = recovery(table)
    assert told["metric"].tolist() == ["before", "attacked", "attacked_any", "gained", "steps", "work"]
    assert told.set_index("metric").loc["attacked", "n"] == 4
    assert by_item(table)["searches"].tolist() == [2, 2]
