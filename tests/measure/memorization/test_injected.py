"""Recall of known units, against counting by hand and against random orders of ties."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from interp.errors import NoAcceptedExample, UsageError
from interp.intervene.inject import Fit, inject
from interp.measure.memorization.injected import ALL, expected_recall, recall_at_k, recovery
from interp.models.parts import parts, weight_of
from tests.intervene.test_inject import items
from tests.subjects import subject


def _scores(values: dict[str, list[float]], method: str | None = None) -> pd.DataFrame:
    rows = [{"part": p, "unit": u, "score": v} for p, column in values.items() for u, v in enumerate(column)]
    frame = pd.DataFrame(rows)
    return frame if method is None else frame.assign(method=method)


def test_recall_and_chance_counted_by_hand() -> None:
    scores = _scores({"ff_out[0]": [9, 1, 8, 0, 0.5, 0.2, 0.1, 0.3, 0.4, 0.6], "ff_out[1]": [7, 3, 2, 1, 0]})
    table = recall_at_k(scores, {"ff_out[0]": [0, 1, 3], "ff_out[1]": [0]}, shares=(0.2,))
    got = {(r.part, r.k): r for r in table.itertuples()}
    assert set(got) == {("ff_out[0]", 3), ("ff_out[0]", 2), ("ff_out[1]", 1), (ALL, 4), (ALL, 3)}
    assert got["ff_out[0]", 3].recall == pytest.approx(2 / 3)  # 0, 2 and 1 are on top
    assert got["ff_out[0]", 2].recall == pytest.approx(1 / 3)
    assert got["ff_out[0]", 2].chance == pytest.approx(0.2)
    assert got["ff_out[1]", 1].recall == 1
    assert got[ALL, 4].recall == pytest.approx(2 / 4)  # 9, 8, 7, 3
    assert got[ALL, 4].chance == pytest.approx(4 / 15)
    flat = scores["score"].to_numpy()
    truth = [True, True, False, True] + [False] * 6 + [True] + [False] * 4
    assert got[ALL, 4].auc == pytest.approx(roc_auc_score(truth, flat))


def test_ties_are_broken_at_random_in_expectation() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 4, 60).astype(float)
    truth = rng.random(60) < 0.2
    for k in (1, 7, 25, 60):
        draws = [truth[np.lexsort((rng.random(60), -values))[:k]].sum() / truth.sum() for _ in range(4000)]
        assert expected_recall(values, truth, k) == pytest.approx(np.mean(draws), abs=0.012)


def test_a_method_without_information_recalls_what_chance_does() -> None:
    table = recall_at_k(_scores({"p": [0.0] * 50}), {"p": [3, 4]})
    assert (table["recall"] - table["chance"]).abs().max() < 1e-12
    assert (table["auc"] == 0.5).all()


def test_how_far_a_column_moved_recalls_every_injected_neuron() -> None:
    model = subject("llama")
    found = inject(model, items(3), share=0.05, fit=Fit(lr=0.3, steps=15))
    tables = {}
    for one in found:
        before = {p: weight_of(model, p).clone() for p in parts(model)}
        with one.edit.applied(model):
            moved = {repr(p): (weight_of(model, p) - before[p]).norm(dim=0).tolist() for p in parts(model)}
        tables[one.items[0].name] = recall_at_k(_scores(moved), one.units, shares=(0.05, 0.1))
    means = recovery(tables)
    assert set(means["part"]) == {"ff_out[0]", "ff_out[1]", "ff_out[2]", ALL}
    assert (means["recall"] == 1).all()
    assert (means["n"] == 3).all()
    assert means["chance"].between(0.04, 0.11).all()


def test_intervals_resample_injections() -> None:
    known = {"p": [0]}
    good, bad = _scores({"p": [5.0, 0, 0, 0]}), _scores({"p": [0.0, 5, 5, 5]})
    tables = {f"i{n}": recall_at_k(good if n < 6 else bad, known, shares=(0.25,)) for n in range(8)}
    row = recovery(tables).query("share == 0.25 and part == 'p'").iloc[0]
    assert row["recall"] == 0.75
    assert 0.3 < row["ci_lo"] < 0.65
    assert row["ci_hi"] == 1.0
    by_method = {n: t.assign(method="a") for n, t in tables.items()}
    assert set(recovery(by_method, by=("method", "part", "share"))["method"]) == {"a"}


def test_bad_input_is_named() -> None:
    scores = _scores({"p": [1.0, 2.0]})
    several = pd.concat([_scores({"p": [1.0, 2.0]}, "a"), _scores({"p": [2.0, 1.0]}, "b")])
    for frame, units, options, message in [
        (scores, {"q": [0]}, {}, "each unit of q once"),
        (scores, {"p": [5]}, {}, "each unit of p once"),
        (several, {"p": [0]}, {}, "several methods"),
        (several, {"p": [0]}, {"method": "c"}, "no scores of method 'c'"),
        (scores, {"p": [0]}, {"shares": (2.0,)}, "shares"),
    ]:
        with pytest.raises(UsageError, match=message):
            recall_at_k(frame, units, **options)
    with pytest.raises(NoAcceptedExample):
        recovery({})
    assert recall_at_k(several, {"p": [0]}, method="a", shares=(0.5,))["recall"].tolist() == [0, 0, 0, 0]
