"""The channel jobs at tiny shapes."""

from __future__ import annotations

import numpy as np
import pytest

from tests.benchmarks import jobs_channels
from tests.benchmarks.harness import judge, measure
from tests.subjects import subject


def test_scores_of_all_pairs_are_those_of_transformer_lens():
    job = jobs_channels.all_pairs(subject("llama"), layers=3, heads=4, d=48)
    found = measure(job, rounds=2)
    assert found["equal"]["met"]
    assert found["numbers"]["modes compared"] == 3  # warmed up with one, a round each with the others
    assert found["numbers"]["pairs"] == 3 * 3 * 4 * 4
    assert found["units"] == {"ours": 3, "TransformerLens": 1}
    found["memory MB"] = {"ours": 3.0, "TransformerLens": 60.0}
    assert [r["met"] for r in judge(job, found)][1] and judge(job, found)[1]["value"] == 0.05
    # Modes that were mistaken for each other are told apart.
    frame = job.ours()
    frame.loc[frame["mode"] == "K", "value"] = frame.loc[frame["mode"] == "V", "value"].to_numpy()
    assert job.equal({"ours": frame}) > 1e-3


def test_blocks_of_a_large_shape_are_those_of_whole_matrices():
    shape = jobs_channels.Shape(layers=4, heads=4, kv_heads=2, d_head=6, d=40)
    job = jobs_channels.large(subject("llama"), shape, (0, 2), 3)
    found = measure(job, rounds=1)
    assert found["equal"]["met"] and found["numbers"]["pairs of heads and modes scored"] == 2 * 3 * 16
    hours = found["numbers"]["hours for all causal layer pairs, extrapolated"]
    assert hours == pytest.approx(found["numbers"]["seconds a layer pair"] * 6 / 3600)
    found["memory MB"] = {"ours": 1536.0}
    (reach,) = judge(job, found)
    assert reach["value"] == 1.5 and reach["met"]
    scores = job.ours()["scores"]
    swapped = {key: np.ascontiguousarray(value.T) for key, value in scores.items()}
    assert job.equal({"ours": {"scores": swapped}}) > 1e-3
    every = shape.dense(0, 3, (1, 2, "K"))
    assert scores[0, "K"][1, 2] == pytest.approx(every, abs=1e-6)
