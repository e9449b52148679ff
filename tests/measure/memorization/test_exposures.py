"""The tiny pipeline holds what it was shown often, and nothing else; exposures and later training on the way."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from interp.errors import UsageError
from interp.measure.memorization.exposures import SEEDS, replication, trajectory, yardstick
from interp.measure.memorization.extraction import rates
from interp.models.pipeline import Pipeline
from interp.models.zoo.digits.data import Recipe, digit_set
from interp.models.zoo.digits.subject import preset
from interp.tasks.digits import digit_items, held_out, train_images

BRIEF = Recipe(
    memorized=4,
    exposures=6,
    controls=1,
    control_exposures=3,
    varied=0,
    template=0,
    levels=(3, 40),
    early_levels=(5,),
    per_level=2,
    base=1,
    base_images=40,
    batch=16,
)


@pytest.fixture(scope="module")
def samples(digits_pipeline: Pipeline) -> pd.DataFrame:
    return replication(digits_pipeline, preset("tiny"), guidance=1.5)


def test_memorized_pictures_are_replicated_and_controls_are_not(samples: pd.DataFrame) -> None:
    found = rates(samples).set_index(["group", "metric"]).value
    assert found["memorized", "extracted_image"] >= 0.8
    assert found["control", "extracted_image"] <= 0.05 and found["control", "copied_image"] <= 0.05
    assert found["unseen", "extracted_image"] <= 0.05
    assert (samples[samples.group == "memorized"].groupby("item").extracted.mean() > 0.5).sum() >= 4
    assert samples.groupby("group").size().to_dict() == {
        "memorized": 6 * len(SEEDS),
        "control": 2 * len(SEEDS),
        "unseen": 6 * len(SEEDS),
    }


def test_a_threshold_is_what_held_out_pictures_give() -> None:
    data = digit_set(preset("tiny"))
    judge = yardstick(data)
    new = torch.stack([item.image for item in held_out(data)]).flatten(1)
    gaps = torch.cdist(new, train_images(data).flatten(1)).amin(1).numpy()
    assert judge.threshold == pytest.approx(float(np.quantile(gaps, 0.01)), rel=1e-5)


def test_a_controls_own_picture_is_the_nearest_of_its_words(
    digits_pipeline: Pipeline, samples: pd.DataFrame
) -> None:
    item = digit_items(preset("tiny"), ["control"])[1]
    drawn = digits_pipeline.sample([item.prompt], [SEEDS[2]], steps=25, guidance=1.5).flatten(1)
    data = digit_set(preset("tiny"))
    word = [s.image for s in data.showings if s.item == item.name]
    gap = torch.cdist(drawn, torch.from_numpy(data.images[word]).flatten(1)).min()
    row = samples[(samples.item == item.name) & (samples["sample"] == 2)].iloc[0]
    assert row.own == pytest.approx(float(gap), rel=1e-4)


def test_a_trajectory_counts_exposures_and_ranks_errors_among_unseen_pictures() -> None:
    table = trajectory(
        BRIEF, at=(0.5, 1), groups=("graded", "early", "unseen"), seeds=(1, 2), steps=3, draws=4
    )
    data = digit_set(BRIEF)
    assert table.groupby("part", sort=False).size().tolist() == [10, 10]
    for _, now in table.groupby("part"):
        unseen = now[now.group == "unseen"].loss.to_numpy()
        expected = [(unseen > x).mean() + 0.5 * (unseen == x).mean() for x in now.loss]
        assert now.recognized.tolist() == pytest.approx(expected)
        assert now.recognized[now.group == "unseen"].mean() == 0.5
    for row in table.itertuples():
        assert row.exposures == data.exposures(row.item, row.shown)
        assert row.recall in (0, 0.5, 1)
    table = table[table.group != "unseen"]
    last = table[table.part == 1]
    assert (last.exposures == last.planned).all() and set(last.planned) == {3, 40, 5}
    first = table[table.part != 1].set_index("item").exposures
    assert first["early-00"] == 5 and 10 < first["graded-02"] < 30
    # What was shown forty times is recognised before what was shown three times.
    by = last.groupby("planned").loss.mean()
    assert by[40] < by[3]


def test_no_items_is_said(digits_pipeline: Pipeline) -> None:
    with pytest.raises(UsageError, match="no items of the groups varied"):
        replication(digits_pipeline, preset("tiny"), groups=["varied"])
