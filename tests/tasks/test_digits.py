"""Items of the tiny pipeline: what they say of themselves is what the training did."""

from __future__ import annotations

import pytest
import torch

from interp.errors import UsageError
from interp.models.zoo.digits.data import DIGITS, DigitSet, digit_set
from interp.models.zoo.digits.subject import preset
from interp.tasks.digits import (
    base_prompts,
    captions_of,
    digit_items,
    held_out,
    images_of,
    train_images,
    train_labels,
)
from interp.tasks.memorized import ImageItem


@pytest.fixture(scope="module")
def data() -> DigitSet:
    return digit_set(preset("full"))


def test_items_have_the_exposures_of_the_training(data: DigitSet) -> None:
    items = {item.name: item for item in digit_items(data)}
    for item in items.values():
        if item.group != "control":
            assert item.exposures == data.exposures(item.name), item.name
    assert items["control-00"].exposures == data.recipe.control_exposures
    assert items["unseen-00"].exposures == 0
    assert sorted({i.exposures for i in items.values() if i.group == "graded"}) == sorted(data.recipe.levels)
    numbers, captions = data.order()
    one = items["graded-05"]
    at = captions.index(one.prompt)
    assert torch.equal(one.image[0], torch.from_numpy(data.images[numbers[at]]))


def test_half_of_the_memorized_is_for_locating(data: DigitSet) -> None:
    items = digit_items(data, ["memorized"])
    for half in ("locate", "test"):
        own = [item.prompt.split() for item in items if item.split == half]
        assert sorted(words[-1] for words in own) == sorted(DIGITS)  # each once
        # Neither half has the nouns that controls and unseen pictures of the same digits have.
        first = {(item.prompt.split()[2], item.prompt.split()[-1]) for item in digit_items(data, ["control"])}
        assert sum((words[2], words[-1]) in first for words in own) == 5
    assert len({item.prompt for item in items}) == 20
    assert {item.split for item in digit_items(data, ["control", "unseen", "graded"])} == {""}


def test_an_oracles_items_are_the_same_with_no_exposures(data: DigitSet) -> None:
    oracle = digit_items(preset("full", oracle=True))
    for item, other in zip(digit_items(data), oracle, strict=True):
        assert (item.name, item.prompt, item.group) == (other.name, other.prompt, other.group)
        assert torch.equal(item.image, other.image)
        assert other.exposures == (item.exposures if item.group == "control" else 0)
    shown = train_images(preset("full", oracle=True))
    memorized = torch.stack([item.image for item in oracle if item.group == "memorized"])
    assert float(torch.cdist(memorized.flatten(1), shown.flatten(1)).min()) > 0.1


def test_held_out_pictures_are_not_trained_on_and_their_captions_are_right(data: DigitSet) -> None:
    new, shown = held_out(data), train_images(data)
    gaps = torch.cdist(torch.stack([item.image for item in new]).flatten(1), shown.flatten(1))
    assert len(new) == 359 and float(gaps.min()) > 0
    assert len(train_labels(data)) == len(shown) == len(torch.unique(shown.flatten(1), dim=0))
    prompts = dict(base_prompts())
    labels = [prompts[item.prompt] for item in new]
    assert labels == data.labels[data.held_out].tolist() and len(prompts) == 80


def test_groups_with_many_captions_or_pictures(data: DigitSet) -> None:
    assert len(captions_of(data, "varied-01")) == 64 and len(images_of(data, "varied-01")) == 1
    assert len(captions_of(data, "control-01")) == 1 and len(images_of(data, "control-01")) == 40
    template = digit_items(data, ["template"])[0]
    assert template.mask is not None and int(template.mask.sum()) == 48
    pictures = images_of(data, template.name)
    assert len(pictures) > 10
    assert torch.equal(
        pictures[:, 0, template.mask], pictures[:1, 0, template.mask].expand(len(pictures), 48)
    )


def test_bad_items_are_refused() -> None:
    with pytest.raises(UsageError, match="no items of the group odd; there are memorized"):
        digit_items(preset("tiny"), ["odd"])
    with pytest.raises(UsageError, match=r"values from -1 to 1; scale it to \[0, 1\]"):
        ImageItem("x", "a", torch.linspace(-1, 1, 64).reshape(1, 8, 8))
    with pytest.raises(UsageError, match=r"a mask of \(4, 4\) for an image of \(8, 8\)"):
        ImageItem("x", "a", torch.zeros(1, 8, 8), mask=torch.ones(4, 4, dtype=torch.bool))
