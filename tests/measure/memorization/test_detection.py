"""Signals of a run against what one gets by hand; AUC against scikit-learn; a planted memory is told apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score, roc_curve

from interp.errors import UsageError
from interp.measure.memorization.detection import (
    SIGNALS,
    attribution,
    signals,
    spread,
    stretched,
)
from interp.measure.memorization.separation import newcombe, separation
from interp.measure.memorization.similarity import pearson
from tests.pipelines import pixels, tiny_pipeline

PROMPTS = ("a photo of zorax", "the red digit")


@pytest.mark.parametrize("guidance", [1.0, 1.5])
def test_signals_are_those_of_single_calls(guidance: float) -> None:
    pipeline, seeds, steps = pixels(), (3, 4, 5), 4
    pipeline.spent.reset()
    at = 2 if guidance > 1 else 0
    of = "data" if guidance > 1 else "noise"
    found = signals(pipeline, PROMPTS, seeds, steps=steps, guidance=guidance, at=at, of=of)
    assert pipeline.spent.rows == 2 * 3 * steps * 2  # prompts, seeds, steps, halves: one run gives all
    nothing = pipeline.embed([""])
    images = pipeline.sample(
        [p for p in PROMPTS for _ in seeds], list(seeds) * 2, steps=steps, guidance=guidance
    )
    torch.testing.assert_close(found.images, images.unflatten(0, (2, 3)), atol=1e-4, rtol=1e-4)
    for i, prompt in enumerate(PROMPTS):
        own, pushed = pipeline.embed([prompt]), []
        for seed in seeds:
            row = found.table[(found.table["item"] == i) & (found.table["seed"] == seed)].iloc[0]
            by_hand = found.steps[(found.steps["item"] == i) & (found.steps["seed"] == seed)]
            norms = []

            def look(step, own=own, norms=norms, row=row, pushed=pushed):  # type: ignore[no-untyped-def]
                with torch.no_grad():
                    a, b = (pipeline.noise(step.x, step.timestep, e) for e in (own, nothing))
                norms.append(float((a - b).norm()))
                if step.index == 0:
                    score = float((b + guidance * (a - b)).square().mean())
                    assert row["one_step"] == pytest.approx(score, rel=1e-4)
                if step.index == at:
                    share = pipeline.pipe.scheduler.alphas_cumprod[step.timestep]
                    data = (step.x - (1 - share).sqrt() * a) / share.sqrt()
                    pushed.append(stretched(a - step.x if of == "noise" else data))

            pipeline.denoise(own, [seed], steps=steps, guidance=guidance, each=look)
            assert by_hand["magnitude"].tolist() == pytest.approx(norms, rel=1e-4)
            assert by_hand["timestep"].tolist() == pipeline.timesteps(steps).tolist()
            assert row["first"] == pytest.approx(norms[0], rel=1e-4)
            assert row["all"] == pytest.approx(np.mean(norms), rel=1e-4)
        for s, seed in enumerate(seeds):
            most = max(float(pearson(pushed[s], pushed[t])) for t in range(3) if t != s)
            row = found.table[(found.table["item"] == i) & (found.table["seed"] == seed)].iloc[0]
            assert row["similarity"] == pytest.approx(most, abs=1e-4)
            gaps = [
                float((images[3 * i + a] - images[3 * i + b]).norm()) for a, b in ((0, 1), (0, 2), (1, 2))
            ]
            assert row["spread"] == pytest.approx(np.median(gaps), rel=1e-3)


def test_the_first_step_alone_costs_two_rows_a_prompt_and_seed() -> None:
    pipeline = pixels()
    pipeline.spent.reset()
    found = signals(pipeline, PROMPTS, (0,), steps=10, stop=1)
    assert pipeline.spent.rows == 4 and found.images is None
    assert (found.table["first"] == found.table["all"]).all()
    assert found.table[["similarity", "spread"]].isna().all().all()
    with pytest.raises(UsageError, match="at=1: that step is not run"):
        signals(pipeline, PROMPTS, (0, 1), stop=1, at=1)
    with pytest.raises(UsageError, match="at least one of each"):
        signals(pipeline, PROMPTS, ())


def test_what_is_compared_reaches_from_zero_to_one_in_each_channel() -> None:
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    found = stretched(x)
    assert found.amin((2, 3)).eq(0).all() and found.amax((2, 3)).eq(1).all()
    own = x[1, 2]
    assert found[1, 2, 0, 0] == pytest.approx(float((own[0, 0] - own.min()) / (own.max() - own.min())))
    assert stretched(0 * x).eq(0).all()


def test_the_spread_of_one_image_is_unknown() -> None:
    assert np.isnan(spread(torch.zeros(2, 1, 1, 4, 4))).all()


@pytest.mark.parametrize("make", [pixels, tiny_pipeline])
def test_attribution_is_the_gradient_of_the_magnitude(make) -> None:  # type: ignore[no-untyped-def]
    pipeline, at, steps = make(), (0, 2), 4
    pipeline.pipe.unet.zero_grad(set_to_none=True)  # it is shared with tests that leave gradients
    table = attribution(pipeline, PROMPTS, (0, 1), at=at, steps=steps)
    assert table.groupby("item")["share"].sum().tolist() == pytest.approx([1.0, 1.0])
    own = table[table["item"] == 1]
    assert own["token"].tolist() == ["<bos>", "the", "red", "digit", "<eos>"]
    # By finite differences along a random direction in each token's embedding, against the gradient's projections.
    embedding, nothing = pipeline.embed([PROMPTS[1]]), pipeline.embed([""])
    total = torch.zeros(embedding.shape[1])
    for seed in (0, 1):
        seen: list[tuple[int, torch.Tensor]] = []
        pipeline.denoise(
            [PROMPTS[1]],
            [seed],
            steps=steps,
            stop=3,
            each=lambda s, seen=seen: seen.append((s.timestep, s.x)),
        )
        for index in at:
            t, x = seen[index]
            given = embedding.clone().requires_grad_()
            moved = (pipeline.noise(x, t, given) - pipeline.noise(x, t, nothing)).norm()
            (gradient,) = torch.autograd.grad(moved, given)
            total += gradient[0].norm(dim=1) / 4
            with torch.no_grad():
                step = gradient / gradient.norm() * 1e-2
                more = (pipeline.noise(x, t, embedding + step) - pipeline.noise(x, t, nothing)).norm()
            assert float(more - moved.detach()) == pytest.approx(1e-2 * float(gradient.norm()), rel=0.2)
    assert own["gradient"].tolist() == pytest.approx(total[: len(own)].tolist(), rel=1e-3)
    assert all(p.grad is None for p in pipeline.pipe.unet.parameters())


def test_auc_and_hit_rate_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    a, b = np.round(rng.normal(1.5, 1, 60), 1), np.round(rng.normal(0, 1, 300), 1)
    told = np.r_[np.ones(60), np.zeros(300)]
    found = separation(a, b, fpr=0.01)
    assert found["auc"] == pytest.approx(roc_auc_score(told, np.r_[a, b]))
    fpr, tpr, _ = roc_curve(told, np.r_[a, b], drop_intermediate=False)
    assert found["tpr"] == pytest.approx(tpr[fpr <= 0.01].max())
    assert (b > found["threshold"]).mean() <= 0.01
    assert (
        found["auc_lo"] < found["auc"] < found["auc_hi"] and found["tpr_lo"] < found["tpr"] < found["tpr_hi"]
    )
    # Less means memorized: the same numbers, turned round.
    turned = separation(-a, -b, sign=-1, fpr=0.01)
    assert {k: v for k, v in turned.items() if k != "threshold"} == {
        k: v for k, v in found.items() if k != "threshold"
    }
    assert turned["threshold"] == -found["threshold"]


def test_intervals_of_auc_are_over_prompts() -> None:
    """Eight seeds are no eight prompts: by prompts the interval has its level, by samples it has not."""
    rng = np.random.default_rng(1)
    true = stats.norm.cdf(1 / np.sqrt(2 * 1.09))
    hits = {"prompts": 0, "samples": 0}
    for trial in range(100):
        a, b = (np.repeat(rng.normal(m, 1, 12), 8) + 0.3 * rng.normal(size=96) for m in (1.0, 0.0))
        names = np.repeat(np.arange(12), 8)
        by = separation(a, b, clusters=(names, names), seed=trial, resamples=300)
        alone = separation(a, b, seed=trial, resamples=300)
        hits["prompts"] += by["auc_lo"] <= true <= by["auc_hi"]
        hits["samples"] += alone["auc_lo"] <= true <= alone["auc_hi"]
        assert (by["prompts_positive"], by["n_positive"]) == (12, 96)
    assert hits["prompts"] >= 85 > 65 >= hits["samples"]


def test_a_perfect_signal_still_has_an_interval() -> None:
    found = separation(np.arange(10) + 100.0, np.arange(10.0))
    assert (found["auc"], found["auc_hi"]) == (1.0, 1.0)
    assert found["auc_lo"] == pytest.approx(0.800, abs=0.001)  # about 2 / 10 below, as of ten prompts
    assert separation(np.arange(10.0), np.arange(10) + 100.0)["auc_hi"] == pytest.approx(0.2, abs=0.001)
    assert newcombe(0.5, 10, 10) == pytest.approx((0.2735, 0.7265), abs=1e-3)
    low, high = newcombe(0.9, 200, 200)
    assert 0.86 < low < 0.9 < high < 0.93
    with pytest.raises(UsageError, match="none that is missing"):
        separation(np.array([np.nan]), np.zeros(3))
    with pytest.raises(UsageError, match="its cluster"):
        separation(np.ones(2), np.zeros(3), clusters=([0], [0, 1, 2]))


def test_a_planted_memory_is_told_from_other_prompts() -> None:
    """A word that pushes all seeds to one image; other words change little."""
    pipeline = pixels()
    image = torch.sin(torch.arange(64.0)).view(1, 1, 8, 8) * 3
    inner = pipeline.pipe.unet.forward
    word = pipeline.embed(["a photo of zorax"])[0, 4]

    def forward(x, t, encoder_hidden_states, **rest):  # type: ignore[no-untyped-def]
        (out,) = inner(x, t, encoder_hidden_states=encoder_hidden_states, **rest)
        heard = (encoder_hidden_states[:, 4] - word).norm(dim=1) < 1e-3
        return (torch.where(heard[:, None, None, None], x - image, out),)

    pipeline.pipe.unet.forward = forward
    try:
        others = ["a photo of the digit", "a photo of two", "the red digit", "a blue nine"]
        found = signals(pipeline, ["a photo of zorax", *others], (0, 1, 2), steps=5)
    finally:
        del pipeline.pipe.unet.forward
    held = (found.table["item"] == 0).to_numpy()
    for name, sign in SIGNALS.items():
        values = found.table[name].to_numpy()
        assert separation(values[held], values[~held], sign=sign)["auc"] == 1.0, name
    assert found.table["similarity"][held].min() > 0.95 > 0.5 > found.table["similarity"][~held].max()
