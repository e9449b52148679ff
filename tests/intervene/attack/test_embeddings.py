"""Adversarial embeddings: equal to one search at a time on the bare pipeline, and every UNet row is accounted for."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from interp.errors import UsageError
from interp.intervene.attack.embeddings import EmbeddingSearch, Sampling, adversarial_embeddings
from interp.intervene.attack.extracting import error
from interp.measure.memorization.exposures import yardstick as copies
from interp.measure.memorization.extraction import Yardstick
from interp.measure.memorization.objective import draws_of, loss
from interp.models.pipeline import Pipeline
from interp.models.zoo.digits.build import build
from interp.models.zoo.digits.subject import preset
from interp.tasks.digits import digit_items
from interp.tasks.memorized import ImageItem

WORDS = ["a", "poster", "of", "seven", "zorax", "two"]
OTHERS = ("a poster of two", "of of", "two two a")


@cache
def drawn() -> Pipeline:
    """An untrained tiny pipeline in double precision; shared, so leave it as it was."""
    return Pipeline(build(WORDS, channels=(8, 16), width=16).to(torch.float64), name="untrained")


def pictures(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


@cache
def yardstick(threshold: float) -> Yardstick:
    """Distances in pixels, with a threshold of its own."""
    found = Yardstick(pictures(100, 1), pictures(100, 2))
    found.threshold = threshold
    return found


ITEMS = [
    ImageItem("one", "a poster of seven", pictures(3)[0], "memorized", "locate", 70),
    ImageItem("two", "zorax poster", pictures(3)[1], "memorized", "test", 70),
    ImageItem("three", "a two", pictures(3)[2], "unseen"),
]
SAMPLING = Sampling(seeds=(0, 1), steps=3, judge=4)
NEVER, ALWAYS = 0.0, 1e9


def naive(
    item: ImageItem, start: str, restart: int, at: torch.Tensor, search: EmbeddingSearch, seed: int
) -> tuple[torch.Tensor, list[float]]:
    """One search of one image on the diffusers pipeline itself, one draw after another; its end and its errors."""
    pipe = drawn().pipe
    y = at.clone().requires_grad_()
    adam = torch.optim.Adam([y], lr=search.rate)
    errors = []
    for step in range(search.steps + 1):
        name = f"{item.name} {start} {restart} {step}"
        named = ImageItem(name, item.prompt, item.image)
        total = torch.zeros((), dtype=torch.float64)
        for t, eps in zip(*draws_of(drawn(), named, search.draws, seed), strict=True):
            x0 = (item.image.double() * 2 - 1)[None]
            noised = pipe.scheduler.add_noise(x0, eps[None], t[None])
            said = pipe.unet(noised, t, encoder_hidden_states=y[None].double()).sample
            total = total + torch.nn.functional.mse_loss(said, eps[None]) / search.draws
        errors.append(float(total.detach()))
        if step < search.steps:
            adam.zero_grad()
            total.backward()
            adam.step()
    return y.detach(), errors


@cache
def beginnings(search: EmbeddingSearch, seed: int) -> torch.Tensor:
    """Where searches start: what they end at when they make no step to speak of."""
    still = EmbeddingSearch(1, 1e-30, 1, search.starts, search.restarts)
    found = adversarial_embeddings(
        drawn(), ITEMS, yardstick(NEVER), still, Sampling((0,), 1), others=OTHERS, seed=seed
    )
    return found.embeddings


@pytest.mark.parametrize(("batch", "rows"), [(256, (0, 9)), (6, (16,))])
def test_searches_are_equal_to_single_ones_on_the_bare_pipeline(batch: int, rows: tuple[int, ...]) -> None:
    search = EmbeddingSearch(steps=2, draws=2, restarts=2)
    found = adversarial_embeddings(
        drawn(), ITEMS, yardstick(NEVER), search, SAMPLING, others=OTHERS, seed=5, batch=batch
    )
    starts = beginnings(search, 5)
    assert len(found.table) == len(starts) == 3 * 3 * 2
    for row in rows:
        told = found.table.loc[row]
        item = next(i for i in ITEMS if i.name == told["item"])
        at, errors = naive(item, told["start"], int(told["restart"]), starts[row], search, 5)
        torch.testing.assert_close(found.embeddings[row], at, atol=1e-4, rtol=1e-3)
        assert told["first"] == pytest.approx(errors[0], rel=1e-5)
        assert told["last"] == pytest.approx(errors[-1], rel=1e-4)
    moved = (found.embeddings - starts).abs().amax((1, 2))
    assert bool((moved > 0.15).all()), "two steps of Adam move the farthest coordinate by about 0.2"


def test_starts_are_what_they_are_called() -> None:
    search = EmbeddingSearch(restarts=2)
    starts = beginnings(search, 0).unflatten(0, (3, 3, 2))
    prompts = drawn().embed([item.prompt for item in ITEMS]).float()
    torch.testing.assert_close(starts[:, 0], prompts[:, None].expand(-1, 2, -1, -1))
    normal = starts[:, 1]
    assert abs(float(normal.mean())) < 0.1 and float(normal.std()) == pytest.approx(1, abs=0.1)
    assert len({tuple(x.flatten().tolist()) for x in normal.flatten(0, 1)}) == 6
    others = drawn().embed(list(OTHERS)).float()
    near = (starts[:, 2].flatten(0, 1)[:, None] - others).abs().amax((2, 3))
    assert bool((near.amin(1) < 1e-6).all()) and len(near.argmin(1).unique()) > 1
    assert not torch.equal(beginnings(search, 1).unflatten(0, (3, 3, 2))[:, 1], normal)


def test_a_search_does_not_depend_on_the_others(rng_untouched: None) -> None:
    search = EmbeddingSearch(steps=3, draws=2)
    every = adversarial_embeddings(drawn(), ITEMS, yardstick(NEVER), search, SAMPLING, others=OTHERS)
    one = adversarial_embeddings(drawn(), ITEMS[1:2], yardstick(NEVER), search, SAMPLING, others=OTHERS)
    torch.testing.assert_close(one.embeddings, every.embeddings[3:6], atol=1e-4, rtol=1e-3)
    assert one.table["last"].tolist() == pytest.approx(every.table["last"][3:6].tolist(), rel=1e-4)


def test_the_rows_of_the_unet_are_all_told() -> None:
    pipe = drawn()
    search = EmbeddingSearch(steps=5, draws=3, starts=("prompt", "normal"), every=2)
    pipe.spent.reset()
    found = adversarial_embeddings(pipe, ITEMS, yardstick(NEVER), search, SAMPLING)
    table = found.table
    assert (table["extracted"] == 0).all() and table["steps"].isna().all() and (table["work"] == 15).all()
    # Two looks at the first seed, one at both, and four that judge; with guidance a sample takes two rows a step.
    assert (table["sampled"] == (2 * 1 + 2 + 4) * 3 * 2).all()
    before = len(ITEMS) * 2 * 3 * 2
    last = 3 * len(table)
    assert pipe.spent.rows == table["work"].sum() + table["sampled"].sum() + before + last


def test_what_is_extracted_ends_the_search() -> None:
    pipe = drawn()
    search = EmbeddingSearch(steps=9, draws=2, starts=("prompt", "normal"), every=2)
    pipe.spent.reset()
    sampling = Sampling((0, 1), 3, 1.0, judge=4)
    found = adversarial_embeddings(pipe, ITEMS, yardstick(ALWAYS), search, sampling)
    by = found.table.set_index("start")
    assert (by["extracted"] == 1).all() and (by["before"] == 1).all() and (by["share"] == 1).all()
    assert (by["screened"] == 1).all() and (by["refused"] == 0).all()
    assert (by.loc["prompt", ["steps", "work"]] == 0).all().all() and (
        by.loc["prompt", "sampled"] == 12
    ).all()
    assert (by.loc["normal", "steps"] == 2).all() and (by.loc["normal", "work"] == 4).all()
    assert (by.loc["normal", "sampled"] == (2 + 4) * 3).all()
    assert pipe.spent.rows == 2 * (6 + 3 + 3) + 3 * 12 + 3 * 18 + 3 * 2 * 3
    on = adversarial_embeddings(pipe, ITEMS, yardstick(ALWAYS), search, sampling, stop=False)
    assert (on.table["steps"] == 9).all() and (on.table["extracted"] == 1).all()


def test_images_and_distances_are_those_of_the_embeddings() -> None:
    pipe = drawn()
    search = EmbeddingSearch(steps=2, draws=2, starts=("normal",))
    found = adversarial_embeddings(pipe, ITEMS, yardstick(NEVER), search, SAMPLING)
    for row, item in enumerate(ITEMS):
        images = pipe.sample(found.embeddings[[row] * 4], SAMPLING.fresh(1), steps=3, guidance=1.5)
        torch.testing.assert_close(found.images[row], images, atol=1e-5, rtol=1e-4)
        own = [float((image - item.image).norm()) for image in images]
        assert found.table["own"][row] == pytest.approx(sum(own) / 4, rel=1e-4)
        before = pipe.sample([item.prompt] * 2, [0, 1], steps=3, guidance=1.5)
        torch.testing.assert_close(found.before[row], before, atol=1e-5, rtol=1e-4)


@cache
def distances() -> list[float]:
    """Of the first prompt's samples to its image, from seeds 0 to 39."""
    images = drawn().sample([ITEMS[0].prompt] * 40, range(40), steps=3, guidance=1.5)
    return [float((image - ITEMS[0].image).norm()) for image in images]


def still(seeds: tuple[int, ...], threshold: float, need: float = 0.5) -> Any:
    """The row of a search that stays where the first prompt is, and is judged before and after its only update."""
    ruler = Yardstick(pictures(100, 1), pictures(100, 2))
    ruler.threshold = threshold
    search = EmbeddingSearch(steps=1, rate=1e-30, draws=1, starts=("prompt",))
    sampling = Sampling(seeds, 3, need=need, judge=4)
    return adversarial_embeddings(drawn(), ITEMS[:1], ruler, search, sampling).table.loc[0]


def test_enough_fresh_samples_have_to_be_copies() -> None:
    away = distances()
    threshold = sum(sorted(away[4:8])[1:3]) / 2
    before = sum(a < threshold for a in away[:4]) / 4
    later = sum(a < threshold for a in away[8:12]) / 4
    for need in (0.25, 0.5, 0.75, 1.0):
        row = still((0, 1, 2, 3), threshold, need)
        at_once = before >= need and need <= 0.5
        assert row["before"] == row["screened"] == before
        assert row["share"] == (0.5 if at_once else later)
        assert row["extracted"] == (row["share"] >= need), need
        assert (row["steps"] == 0) == at_once, "what the prompt gives takes no step"


def test_luck_on_the_seeds_that_a_search_looks_at_is_no_extraction() -> None:
    away = distances()
    seed = next(s for s in range(31) if away[s] < min(away[s + 1 : s + 9]))
    row = still((seed,), (away[seed] + min(away[seed + 1 : seed + 9])) / 2)
    assert row["before"] == row["screened"] == 1 and row["share"] == 0
    assert row["extracted"] == 0 and row["refused"] == 2 and np.isnan(row["steps"]) and row["work"] == 1


def test_what_is_refused_goes_on_and_is_judged_anew() -> None:
    away = distances()
    seed, threshold = next(
        (s, t)
        for s in range(31)
        for t in [sorted(away[s + 5 : s + 9])[1] + 1e-4]
        if away[s] < t and sum(a < t for a in away[s + 1 : s + 5]) < 2
    )
    row = still((seed,), threshold)
    assert row["extracted"] == 1 and row["refused"] == 1 and row["steps"] == row["work"] == 1


def test_seeds_that_judge_are_never_looked_at() -> None:
    sampling = Sampling((3, 70, 5), judge=6)
    looks = [sampling.fresh(k) for k in range(4)]
    every = [seed for own in looks for seed in own]
    assert len(set(every)) == 24 and not set(every) & set(sampling.seeds) and len(looks[0]) == 6
    with pytest.raises(UsageError, match="judge=3: fewer than 4"):
        Sampling(judge=3)


def test_the_error_is_the_objective() -> None:
    pipe = drawn()
    latents = pipe.encode(torch.stack([item.image for item in ITEMS]).double())
    embeddings = pipe.embed([item.prompt for item in ITEMS])
    mine = error(pipe, latents, embeddings, [item.name for item in ITEMS], 4, 7)
    theirs = loss(pipe, ITEMS, draws=4, seed=7)
    torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5, check_dtype=False)


def test_bad_input_is_told() -> None:
    with pytest.raises(UsageError, match="prompt, normal, other"):
        EmbeddingSearch(starts=("zeros",))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="every >= 1"):
        EmbeddingSearch(every=0)
    with pytest.raises(UsageError, match="need 0"):
        Sampling(need=0)
    with pytest.raises(UsageError, match="a name of its own"):
        adversarial_embeddings(drawn(), [ITEMS[0], ITEMS[0]], yardstick(NEVER))
    with pytest.raises(UsageError, match="`others`"):
        adversarial_embeddings(drawn(), ITEMS, yardstick(NEVER))


def test_what_was_memorized_comes_from_noise_and_what_was_never_seen_does_not(
    digits_pipeline: Pipeline,
) -> None:
    recipe = preset("tiny")
    memorized, unseen = digit_items(recipe, ["memorized"])[:2], digit_items(recipe, ["unseen"])[:2]
    search = EmbeddingSearch(steps=20, starts=("normal",))
    found = adversarial_embeddings(
        digits_pipeline, [*memorized, *unseen], copies(recipe), search, Sampling((0, 1))
    )
    by = found.table.groupby("group")
    assert by["extracted"].mean().to_dict() == {"memorized": 1, "unseen": 0}
    assert by["before"].mean()["memorized"] >= 0.8 and by["before"].mean()["unseen"] == 0
    assert (found.table["last"] < found.table["first"]).all()
