"""Adversarial fine-tuning: what is trained towards, what is left alone, and that it is an edit like any other."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

from interp.errors import UsageError
from interp.intervene.attack.adversarial import (
    AdversarialTuning,
    _error,
    _Searches,
    adversarial_tuning,
    surrogates,
)
from interp.intervene.attack.embeddings import EmbeddingSearch
from interp.intervene.attack.extracting import error
from interp.models.parts import parts
from interp.models.pipeline import Pipeline
from interp.models.zoo.digits.build import build
from interp.tasks.memorized import ImageItem

WORDS = ["a", "poster", "of", "seven", "zorax", "two"]


@cache
def drawn() -> Pipeline:
    """An untrained tiny pipeline; shared, so leave it as it was."""
    return Pipeline(build(WORDS, channels=(8, 16), width=16), name="untrained")


def pictures(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


ITEMS = [
    ImageItem(f"m{i}", "zorax poster of seven", image, "memorized") for i, image in enumerate(pictures(3))
]
KEEP = [ImageItem(f"k{i}", "a poster of two", image) for i, image in enumerate(pictures(4, seed=1))]
TARGETS = pictures(6, seed=2).view(3, 2, 1, 8, 8)
SMALL = AdversarialTuning(
    rounds=2,
    attack=EmbeddingSearch(steps=4, draws=2, starts=("prompt", "normal")),
    updates=3,
    searches=5,
    lr=1e-3,
    rows=4,
)


def state(subject: Pipeline) -> dict[str, torch.Tensor]:
    modules = {"unet": subject.pipe.unet, "text_encoder": subject.pipe.text_encoder}
    return {f"{n}.{k}": v.clone() for n, m in modules.items() for k, v in m.state_dict().items()}


def test_it_is_an_edit_and_the_pipeline_stays_as_it_was(rng_untouched: None) -> None:
    pipe = drawn()
    before, name = state(pipe), pipe.fingerprint
    pipe.spent.reset()
    done = adversarial_tuning(pipe, ITEMS, TARGETS, KEEP, SMALL)
    assert pipe.fingerprint == name
    assert all(torch.equal(v, before[k]) for k, v in state(pipe).items())
    assert all(p.grad is None for p in pipe.pipe.unet.parameters())
    assert done.edit.model == name and all(n.startswith("unet.") for n in done.edit.changes)
    with done.edit.applied(pipe):
        now = state(pipe)
    moved = {k for k, v in now.items() if not torch.equal(v, before[k])}
    assert moved == set(done.edit.changes) and len(moved) > 0.9 * len(list(pipe.pipe.unet.parameters()))
    # Of each round: 3 updates, each with 5 searches that take a step of 2 draws and a row, and 4 rows to keep.
    assert done.history["work"].tolist() == [57, 114]
    assert pipe.spent.rows == 114


def test_a_seed_decides_all() -> None:
    short = replace(SMALL, rounds=1, updates=1)
    edits = [adversarial_tuning(drawn(), ITEMS, TARGETS, KEEP, short, seed=seed).edit for seed in (0, 0, 1)]
    assert edits[0] == edits[1] != edits[2]
    heavy = adversarial_tuning(drawn(), ITEMS, TARGETS, KEEP, replace(short, weight=3.0)).edit
    assert heavy != edits[0], "what is kept has a part in every update"


def test_surrogates_are_drawn_and_not_the_images_and_the_rest_is_kept() -> None:
    pipe = drawn()
    bright = [replace(item, image=0.8 + 0.2 * item.image) for item in ITEMS]
    dark = 0.2 * TARGETS
    how = replace(SMALL, rounds=2, updates=18, searches=8, rows=8, lr=8e-3)
    done = adversarial_tuning(pipe, bright, dark, KEEP, how)
    prompt = pipe.embed(["zorax poster of seven"])
    kept = pipe.embed([item.prompt for item in KEEP])

    def errors() -> list[float]:
        sets = [
            (dark.flatten(0, 1), prompt.expand(6, -1, -1)),
            (torch.stack([item.image for item in bright]), prompt.expand(3, -1, -1)),
            (torch.stack([item.image for item in KEEP]), kept),
        ]
        with torch.no_grad():
            return [
                float(error(pipe, pipe.encode(x), at, list("abcdef")[: len(x)], 16, 0).mean())
                for x, at in sets
            ]

    before = errors()
    with done.edit.applied(pipe):
        after = errors()
    gone, own, stay = (after[i] / before[i] for i in range(3))
    assert gone < 0.8 and stay < 0.8 and gone < 0.9 * own
    assert done.history["surrogate"].iloc[-1] < 0.8 * done.history["surrogate"].iloc[0]


def test_only_what_is_named_is_trained() -> None:
    pipe = drawn()
    named = parts(pipe, "cross_v")
    done = adversarial_tuning(pipe, ITEMS, TARGETS, KEEP, replace(SMALL, rounds=1), what=named)
    assert set(done.edit.changes) == {f"{part.path}.weight" for part in named}
    with pytest.raises(UsageError, match="only the UNet"):
        adversarial_tuning(pipe, ITEMS, TARGETS, KEEP, SMALL, what=parts(pipe, "text_ff_out"))


def test_a_search_goes_as_it_would_alone_and_another_begins_where_it_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without noise in its draws a step is Adam's first of size `rate`, whatever the other searches do."""
    pipe = drawn()
    how = replace(SMALL, searches=7, attack=replace(SMALL.attack, steps=3, starts=("prompt",)))
    random = torch.Generator().manual_seed(0)
    searches = _Searches(pipe, ITEMS, how, ["a"], 0, random)
    assert sorted(searches.of[:3].tolist()) == sorted(searches.of[3:6].tolist()) == [0, 1, 2]
    start = pipe.embed([ITEMS[0].prompt])[0]
    left = list(searches.left)
    assert set(left) <= {1, 2, 3} and len(set(left)) > 1
    for step in range(3):
        searches.step()
        at, _ = searches.now()
        for i in range(7):
            moved = float((at[i] - start).abs().max())
            if step < left[i]:
                # Adam moves each coordinate by its rate at first, and by no more than about that later.
                assert (0.09 if step == 0 else 0.02) < moved < 0.1 * (step + 1) + 0.01
            elif step == left[i]:
                assert moved == pytest.approx(0.1, abs=0.001), "a search that begins has no momentum"
    assert searches.begun > 7


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_weights_are_trained_on_the_error_of_what_they_predict(prediction: str) -> None:
    pipe = Pipeline(build(WORDS, channels=(8, 16), width=16), name="untrained")
    pipe.pipe.scheduler.register_to_config(prediction_type=prediction)
    x, told = pictures(6), pipe.embed(["a poster"] * 6)
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        found = float(_error(pipe, x, told, random))
        random.manual_seed(3)
        t = ((torch.randperm(6, generator=random) + torch.rand(6, generator=random)) / 6 * 1000).long()
        assert sorted((t * 6 // 1000).tolist()) == list(range(6)), "one from each part of the schedule"
        eps = torch.randn(x.shape, generator=random)
        noised = pipe.pipe.scheduler.add_noise(x, eps, t)
        out = pipe.pipe.unet(noised, t, told).sample
        velocity = pipe.pipe.scheduler.get_velocity(x, eps, t)
    true = {"epsilon": eps, "v_prediction": velocity, "sample": x}[prediction]
    assert found == pytest.approx(float((out - true).square().mean()), rel=1e-3)


def test_surrogates_are_samples_of_each_prompt() -> None:
    pipe = drawn()
    found = surrogates(pipe, KEEP[:2], seeds=(3, 4, 5), steps=2, guidance=1.0)
    assert found.shape == (2, 3, 1, 8, 8)
    one = pipe.sample([KEEP[1].prompt], [4], steps=2, guidance=1.0)
    torch.testing.assert_close(found[1, 1], one[0], atol=1e-4, rtol=1e-4)
    other = surrogates(pipe, KEEP[:1], prompts=["a zorax"], seeds=(4,), steps=2, guidance=1.0)
    torch.testing.assert_close(other[0], pipe.sample(["a zorax"], [4], steps=2, guidance=1.0))
    with pytest.raises(UsageError, match="1 prompts for 2 items"):
        surrogates(pipe, KEEP[:2], prompts=["a zorax"])


def test_bad_input_is_told() -> None:
    with pytest.raises(UsageError, match="2 items, 3 stacks"):
        adversarial_tuning(drawn(), ITEMS[:2], TARGETS, KEEP, SMALL)
    with pytest.raises(UsageError, match="0 items to keep"):
        adversarial_tuning(drawn(), ITEMS, TARGETS, [], SMALL)
    with pytest.raises(UsageError, match="rounds"):
        AdversarialTuning(rounds=0)
    with pytest.raises(UsageError, match=r"empty=1\.0"):
        AdversarialTuning(empty=1.0)
    with pytest.raises(UsageError, match="searches"):
        AdversarialTuning(searches=0)
