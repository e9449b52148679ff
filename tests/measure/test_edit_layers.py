"""Edits by layer held against a trace: on numbers whose answer is known, and on a planted memory."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from interp.errors import NoAcceptedExample, UsageError
from interp.intervene.facts import Search, second_moments
from interp.measure.edit_layers import against_effects, edit_layers
from interp.measure.edits import EditRecord
from tests.intervene.facts.memory import CONTEXTS, memory, thing

RECORDS, LAYERS = [f"r{i}" for i in range(12)], list(range(5))


def tables(weight: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Success after the edit = what the layer gives + weight * effect, on average over two prompts a record."""
    rng = np.random.default_rng(0)
    effect = rng.standard_normal((len(RECORDS), len(LAYERS)))
    by_layer = 3.0 * rng.standard_normal(len(LAYERS))
    scan, effects = [], []
    for i, record in enumerate(RECORDS):
        for layer in LAYERS:
            value = by_layer[layer] + weight * effect[i, layer]
            effects.append({"record": record, "layer": layer, "effect": effect[i, layer]})
            for state, shift in (("before", 99.0), ("after", -1.0), ("after", 1.0)):
                about = {"record": record, "layer": layer, "kind": "efficacy", "state": state}
                scan.append({**about, "magnitude": value + shift})
    return pd.DataFrame(scan), pd.DataFrame(effects)


def test_what_a_trace_explains_beyond_the_layer():
    (row,) = against_effects(*tables(0.5)).to_dict("records")
    assert (row["n"], row["records"]) == (60, 12)
    assert row["r2_both"] == pytest.approx(1.0) and 0.5 < row["r2_layer"] < 0.999
    assert row["gain"] == pytest.approx(1 - row["r2_layer"])
    (nothing,) = against_effects(*tables(0.0)).to_dict("records")
    assert nothing["r2_layer"] == pytest.approx(1.0) and nothing["gain"] == pytest.approx(0.0, abs=1e-9)
    # Within a record the layers rank as they do for all, so only the effect's own draw decides.
    (strong,) = against_effects(*tables(1e3)).to_dict("records")
    assert strong["within"] == pytest.approx(1.0) and strong["rho"] > 0.99 and strong["r2_layer"] < 0.3
    assert strong["within_n"] == 12 and "ci_lo" not in strong


def test_pairs_that_one_table_lacks_are_left_out():
    scan, effects = tables(0.5)
    (row,) = against_effects(scan, effects[effects["layer"] > 0]).to_dict("records")
    assert row["n"] == 48
    # A record whose effects are all one has no rank to tell.
    flat = effects.assign(effect=effects["effect"].where(effects["record"] != "r3", 0.0))
    (row,) = against_effects(scan, flat).to_dict("records")
    assert (row["records"], row["within_n"]) == (12, 11)
    with pytest.raises(UsageError, match="no record and layer is in both"):
        against_effects(scan, effects.assign(record="x"))
    with pytest.raises(UsageError, match="table effects has no column 'effect'"):
        against_effects(scan, effects.rename(columns={"effect": "ie"}))


def test_a_fact_can_be_written_where_it_lies_and_not_where_it_was_read_already():
    m = memory(1)
    new = thing((m.facts[3, 1] - thing(0) + 1) % 8)
    record = EditRecord(m.rewrite(3, 1, new), paraphrases=(m.prompt(3, 1, 4),), name="fact")
    moments = second_moments(m.model, m.text(), cache=False)
    done: list[int] = []
    scan = edit_layers(
        m.model,
        [record],
        [0, 2],
        moments,
        prefixes=CONTEXTS,
        search=Search(steps=20, step=0.1, decay=0.01),
        progress=lambda a, b, what: done.append(a),
    )
    after = scan[scan["state"] == "after"].groupby(["layer", "kind"])["success"].mean().unstack()
    assert m.layer == 0 and after["efficacy"][0] == 1.0
    # The last layer's heads read the subject's token before its MLP writes there.
    assert after["efficacy"][2] == 0.0
    assert after["paraphrase"][m.layer] == 1.0 and done == [1, 2]
    assert scan[scan["layer"] == 2]["nll"].iloc[0] > 5 > 0.1 > scan[scan["layer"] == 0]["nll"].iloc[0]
    assert (scan["seconds"] > 0).all()
    with pytest.raises(NoAcceptedExample, match="at least one record and one layer"):
        edit_layers(m.model, [], [0], None, prefixes=CONTEXTS)
