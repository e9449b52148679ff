"""Memory over exposures: what is shown when, what is asked, and that a trained model shows the curve."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from interp.errors import UsageError
from interp.measure.memorization.text_exposures import exposure_curves, schedule, text_exposures
from interp.models.subject import CausalLM
from interp.models.zoo.small_lm import Recipe, train, untrained
from interp.tasks.definitions import definitions, text_items
from interp.tasks.memorized import TextItem
from interp.tasks.prose import topics

TEXTS = list(topics().values())[:40]
RECIPE = Recipe(d=32, layers=2, vocab=384, window=48, rows=8, steps=60, lr=1e-2)


@pytest.fixture(scope="module")
def small() -> CausalLM:
    model = untrained(TEXTS, RECIPE)
    train(model, TEXTS, steps=RECIPE.steps, recipe=RECIPE)
    return model


def _items(model: CausalLM, levels: list[int], each: int) -> list[TextItem]:
    texts = definitions(each * len(levels))
    found = text_items(model, texts, prefix=12, length=20)
    return [replace(item, exposures=levels[i % len(levels)]) for i, item in enumerate(found)]


def test_each_sequence_is_shown_as_often_as_it_says_once_a_step() -> None:
    items = [TextItem(f"i{n}", (n, n + 1), 1, exposures=e) for n, e in enumerate([0, 1, 5, 10, 10, 10])]
    shown = schedule(items, 10, 4)
    assert Counter(ids for rows in shown.values() for ids in rows) == {i.ids: i.exposures for i in items[1:]}
    assert all(len(set(rows)) == len(rows) <= 4 for rows in shown.values())
    assert shown != schedule(items, 10, 4, seed=1)
    with pytest.raises(UsageError, match="i3: 10 exposures and 0 steps with room"):
        schedule([replace(items[3], name=f"i{n}") for n in range(4)], 10, 3)
    with pytest.raises(UsageError, match="and 9 steps with room"):
        schedule(items, 9, 4)


def test_what_is_shown_is_what_the_model_reads_and_the_rest_is_text(small: CausalLM) -> None:
    model = untrained(TEXTS, RECIPE)
    read: list[list[list[int]]] = []
    handle = model.hf.register_forward_pre_hook(
        lambda m, args, kwargs: read.append(kwargs["input_ids"].tolist()), with_kwargs=True
    )
    asked: list[int] = []
    train(model, TEXTS, steps=3, recipe=RECIPE, shown={1: [(5, 6, 7), (8, 9)]}, watch=asked.append)
    handle.remove()
    assert asked == [0, 1, 2, 3]
    assert [np.shape(rows) for rows in read] == [(8, 47)] * 3
    assert read[1][0][:3] == [5, 6, 7]
    assert read[1][1][:2] == [8, 9]
    corpus = [i for text in TEXTS for i in [*model.tokens.encode(text).ids, model.tokens.eos_id]]
    stream = ",".join(map(str, corpus))
    own = [
        row[3:] if (s, r) == (1, 0) else row[2:] if (s, r) == (1, 1) else row
        for s, rows in enumerate(read)
        for r, row in enumerate(rows)
    ]
    assert all(",".join(map(str, row)) in stream for row in own)


def test_training_is_a_function_of_its_seed_and_touches_no_global_state(rng_untouched: None) -> None:
    hashes = []
    for seed in (0, 0, 1):
        model = untrained(TEXTS, RECIPE, seed=seed)
        train(model, TEXTS, steps=2, recipe=RECIPE, seed=seed)
        hashes.append(model.weights_hash)
    assert hashes[0] == hashes[1] != hashes[2]


def test_memory_grows_with_exposures_and_recognition_outlives_recall(small: CausalLM) -> None:
    before = small.weights_hash
    items = _items(small, [0, 2, 100], 5)
    frame = text_exposures(
        small, items, TEXTS, recipe=RECIPE, steps=120, later=60, every=100, lr=5e-3, rows=8
    )
    assert small.weights_hash == before
    assert set(zip(frame["step"], frame["phase"], strict=True)) == {
        (0, "before"),
        (100, "shown"),
        (120, "shown"),
        (180, "later"),
    }
    table = exposure_curves(frame)
    at = table.set_index(["measure", "step", "exposures"])["value"].sort_index()
    assert (at["recognition"].xs(0, level="exposures") == 0.5).all()
    assert at["recognition", 120, 100] > 0.95
    assert at["recall", 120, 100] >= 0.8
    assert at["recall", 120, 0] == at["recall", 0, 100] == 0
    assert at["hits", 120, 100] > at["hits", 120, 2] + 0.3
    # Sixty steps of text take the recital away, and leave the sequences known.
    assert at["recall", 180, 100] == at["retention", 180, 100] == 0
    assert at["recognition", 180, 100] > 0.8
    assert frame.loc[frame["step"] == 0, "gain"].eq(0).all()
    gained = frame[frame["step"] == 180].set_index("name")["gain"]
    never = [gained[i.name] for i in items if i.exposures == 0]
    for row in frame[frame["step"] == 180].itertuples():
        if row.exposures:
            assert row.recognition == np.mean([gained[row.name] > g for g in never])


def test_recognition_and_retention_by_hand() -> None:
    names = ["a", "b", "n1", "n2"]
    rows = []
    for step, phase, recall in [(0, "before", 0), (5, "shown", 1), (9, "later", 0)]:
        for i, name in enumerate(names):
            rows.append((step, phase, name, 3 if i < 2 else 0, float(recall and i < 2), 0.5))
    frame = pd.DataFrame(rows, columns=["step", "phase", "name", "exposures", "recall", "hits"])
    frame = frame.assign(recognition=0.5, gain=np.tile([5.0, 5.0, 0.0, 9.0], 3))
    frame.loc[(frame["step"] == 9) & (frame["name"] == "b"), "recall"] = 1.0
    curves = exposure_curves(frame)
    # Both that were shown lie between the two that were not, so that all of the spread is that of these.
    told = curves[(curves["measure"] == "recognition") & (curves["exposures"] == 3)]
    assert told[["value", "ci_lo", "ci_hi"]].to_numpy().tolist() == [[0.5, 0.0, 1.0]] * 3
    table = curves.query("measure == 'retention'")
    assert list(zip(table["step"], table["exposures"], table["value"], table["n"], strict=True)) == [
        (5, 3, 1.0, 2),
        (9, 3, 0.5, 2),
    ]


def test_text_alone_goes_on_with_the_optimizer_of_the_showing(
    small: CausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def watched(*args: Any, **options: Any) -> torch.optim.Optimizer:
        made.append((options.get("optimizer"), train(*args, **options)))
        return made[-1][1]

    monkeypatch.setattr("interp.measure.memorization.text_exposures.train", watched)
    text_exposures(small, _items(small, [0, 1], 2), TEXTS, recipe=RECIPE, steps=3, later=2, rows=2)
    (first, shown), (handed, later) = made
    assert first is None and handed is shown is later
    assert {int(state["step"]) for state in later.state.values()} == {5}


def test_bad_input_is_named(small: CausalLM) -> None:
    with pytest.raises(UsageError, match="two or more with exposures=0"):
        text_exposures(small, _items(small, [3], 2), TEXTS, recipe=RECIPE)
    with pytest.raises(UsageError, match="less than a window"):
        train(small, ["short"], steps=1, recipe=RECIPE)
    with pytest.raises(UsageError, match="step 0: 1 sequences do not fit"):
        train(small, TEXTS, steps=1, recipe=RECIPE, shown={0: [tuple(range(60))]})
