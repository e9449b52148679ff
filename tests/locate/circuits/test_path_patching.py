"""Effects of paths: a frame over senders, with intervals over clusters, from batches of any size."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from interp.errors import UsageError
from interp.intervene.patch import _pair
from interp.locate.circuits.graph import KV, Reader
from interp.locate.circuits.path_patching import (
    path_effects,
    path_patch,
    path_values,
    readers_of,
    senders_of,
)
from interp.measure.metrics import score_answer
from interp.models.sites import MLP, Head, Site
from interp.trace.paths import paths
from tests.subjects import examples, subject

LENGTHS = (24, 17, 30, 22, 19)


def test_effects_are_ratios_of_the_means_of_paths() -> None:
    model = subject("llama")
    given = examples(LENGTHS)
    found = path_patch(model, given, "L2H0.q L2H1.v", senders="L0H1 M1 L1H3")
    pairs = [_pair(e, "value_swap") for e in given]
    clean, corrupt = (model.batch(side) for side in zip(*pairs, strict=True))
    receivers = [Site("q", 2, 0), Site("v", 2, 0)]
    run = paths(model, clean, corrupt, [Head(0, 1), MLP(1), Head(1, 3)], receivers)

    def mean(logits) -> float:  # type: ignore[no-untyped-def]
        first = clean.width - logits.shape[1]
        values = []
        for row, (example, _) in enumerate(pairs):
            columns = [c - first for c in clean.answer_columns(row)]
            values.append(score_answer(logits[row, columns], example)["logit_diff"])
        return float(np.mean(values))

    ends = mean(run.walk.clean_logits), mean(run.walk.corrupt_logits)
    for number, logits in run:
        row = found.iloc[number]
        assert row["value"] == pytest.approx(mean(logits), abs=1e-4)
        assert row["effect"] == pytest.approx((mean(logits) - ends[0]) / (ends[1] - ends[0]), abs=1e-4)
    assert list(found["sender"]) == ["L0H1", "M1", "L1H3"]
    assert list(found["head"]) == [1, -1, 3]
    assert set(found["receivers"]) == {"L2H0.q L2KV0.v"}
    assert found["clean"].iloc[0] == pytest.approx(ends[0], abs=1e-4)
    assert found["corrupt"].iloc[0] == pytest.approx(ends[1], abs=1e-4)
    assert abs(found["effect"]).max() > 1e-3
    assert 0 < found.attrs["token_layers"] < found.attrs["naive_token_layers"]


@pytest.mark.parametrize("metric", ["logit_diff", "logprob", "rank"])
def test_batches_change_nothing(metric: str) -> None:
    model = subject("gpt2")
    given = examples(LENGTHS)
    one = path_values(model, given, "logits", metric=metric)
    several = path_values(model, given, "logits", metric=metric, tokens=60)
    assert list(one.columns) == list(several.columns)
    assert len(one) == 12 * 5
    for name in ("value", "clean", "corrupt"):
        np.testing.assert_allclose(one[name], several[name], atol=1e-4)
    assert list(one["example"].head(5)) == [0, 1, 2, 3, 4]
    if metric != "rank":
        assert (one["value"] - one["clean"]).abs().max() > 1e-3


def test_all_senders_and_fewer_examples() -> None:
    values = path_values(subject("llama"), examples(LENGTHS), "logits", senders="all", freeze_mlps=True, n=2)
    assert list(dict.fromkeys(values["sender"]))[3:6] == ["L0H3", "M0", "L1H0"]
    assert len(values) == 15 * 2


def test_intervals_and_errors_are_those_of_the_ratio() -> None:
    rng = np.random.default_rng(0)
    n = 40
    clusters = np.repeat([f"c{i}" for i in range(8)], 5)
    shift, depth = (np.repeat(rng.normal(0, sd, 8), 5) for sd in (0.1, 0.8))
    clean = rng.normal(4, 0.1, n)
    corrupt = clean - 4 + depth
    value = clean + 0.25 * (corrupt - clean) + shift  # the ratio varies less than its parts
    frame = pd.DataFrame(
        {
            "sender": "L0H0",
            "layer": 0,
            "head": 0,
            "receivers": "logits",
            "example": range(n),
            "cluster": clusters,
            "value": value,
            "clean": clean,
            "corrupt": corrupt,
        }
    )
    (row,) = path_effects(frame, seed=1).to_dict("records")
    effect = (value.mean() - clean.mean()) / (corrupt.mean() - clean.mean())
    assert row["effect"] == pytest.approx(effect)
    # By the jackknife over clusters, another estimate of the same error.
    left = [
        (value[k].mean() - clean[k].mean()) / (corrupt[k].mean() - clean[k].mean())
        for k in (clusters != c for c in np.unique(clusters))
    ]
    jackknife = np.sqrt(7 / 8 * np.sum((np.array(left) - np.mean(left)) ** 2))
    assert row["se"] == pytest.approx(jackknife, rel=0.1)
    assert row["ci_lo"] == pytest.approx(effect - 1.96 * jackknife, abs=0.5 * jackknife)
    assert row["ci_hi"] == pytest.approx(effect + 1.96 * jackknife, abs=0.5 * jackknife)
    assert row["p"] == pytest.approx(2 / 2**8)
    assert (row["n"], row["n_clusters"]) == (40, 8)
    assert path_effects(frame, seed=1).equals(path_effects(frame, seed=1))


def test_names_of_receivers_and_senders() -> None:
    model = subject("llama")
    assert readers_of("L1H3.k, L1H2.k L2H0.q", model) == (
        Reader(KV(1, 1), "k"),
        Reader(Head(2, 0), "q"),
    )
    assert readers_of(Reader(Head(1, 0), "v"), model) == (Reader(KV(1, 0), "v"),)
    assert senders_of("heads", [Site("q", 1, 0)], model) == [Head(0, h) for h in range(4)]
    assert senders_of("all", [Site("mlp_out", 1)], model) == [
        *(Head(0, h) for h in range(4)),
        MLP(0),
        *(Head(1, h) for h in range(4)),
    ]
    # In a parallel family the heads of a layer are not read by its MLP.
    assert senders_of("heads", [Site("mlp_out", 1)], subject("neox"))[-1] == Head(0, 3)
    for receivers, message in (
        ("L9H0.q", "layers 0 to 2"),
        ("L1H7.k", "heads 0 to 3"),
        ("L1KV2.k", "indices 0 to 1"),
        ("L1H0.z", "is no reader"),
        ("M9", "layers 0 to 2"),
    ):
        with pytest.raises(UsageError, match=message):
            path_patch(model, examples(LENGTHS), receivers)
    with pytest.raises(UsageError, match="no sender lies before"):
        path_patch(model, examples(LENGTHS), "L0H0.q")
    with pytest.raises(UsageError, match="no corruption 'abc'"):
        path_patch(model, examples(LENGTHS), "logits", corruption="abc")
    with pytest.raises(UsageError, match="not defined"):
        path_patch(model, examples(LENGTHS), "logits", metric="nonsense")
