"""Early stop: error rates under peeking, what a naive rule does there, and how long decisions take."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from interp.errors import UsageError
from interp.measure.sequential import Stop, StopReport, asymptotic, capital

ALPHA = 0.05


def test_a_sum_of_attention_may_be_beyond_its_bounds_by_rounding():
    Stop(top=1).check(np.float32([[1, 0], [1 + 1e-6, -1e-6]]))
    with pytest.raises(UsageError, match="outside the bounds"):
        Stop(top=1).check(np.float32([[1, 0], [1.01, 0]]))


def streams(kind: str, n: int, many: int, seed: int = 0) -> tuple[np.ndarray, float]:
    """Independent columns of n scores in [0, 1], and their mean."""
    rng = np.random.default_rng(seed)
    if kind == "rare":
        return (rng.random((n, many)) < 0.1).astype(float), 0.1
    if kind == "skewed":
        return rng.beta(0.3, 1.2, (n, many)), 0.2
    return rng.random((n, many)), 0.5


def naive(x: np.ndarray, m: float, alpha: float, least: int = 8) -> np.ndarray:
    """Columns whose one-sided t test of a mean above m rejects at some look."""
    n = np.arange(1, len(x) + 1)[:, None]
    mean = x.cumsum(0) / n
    sd = np.sqrt(np.maximum((x**2).cumsum(0) / n - mean**2, 0) * n / np.maximum(n - 1, 1))
    bound = mean - stats.t.ppf(1 - alpha, np.maximum(n - 1, 1)) * sd / np.sqrt(n)
    return (bound > m)[least - 1 :].any(0)


@pytest.mark.parametrize("kind", ["rare", "skewed", "even"])
@pytest.mark.parametrize("side", [1, -1])
def test_a_bet_on_what_is_not_so_pays_as_rarely_as_it_says(kind, side):
    """Means exactly at m: the capital ever reaches 1 / alpha in at most alpha of the streams, looked at 300 times."""
    x, m = streams(kind, 300, 2000)
    low, high = (0.0, 1.0) if side > 0 else (-1.0, 0.0)
    wrong = capital(side * x, side * m, low, high) >= -math.log(ALPHA)
    assert wrong.mean() <= ALPHA + 2 * math.sqrt(ALPHA / len(wrong))
    assert wrong.mean() > ALPHA / 20  # nor is it idle


@pytest.mark.parametrize("kind", ["rare", "skewed", "even"])
def test_the_naive_rule_fails_there(kind):
    x, m = streams(kind, 300, 2000)
    assert naive(-x, -m, ALPHA).mean() > 3 * ALPHA


def test_the_asymptotic_sequence_holds_for_scores_without_bounds():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 1500))
    centre, radius = asymptotic(x, ALPHA)
    wrong = (np.abs(centre) > radius)[7:].any(0)
    assert ALPHA / 5 < wrong.mean() <= ALPHA + 2 * math.sqrt(ALPHA / 1500)
    still = np.concatenate([np.zeros((300, 1)), x[:, :9]], axis=1)  # a column that never varies has a radius
    assert (asymptotic(still, ALPHA)[1][:, 0] > 0).all()
    # Its formula at n = 64, where it is tightest: the pooled unit of variance is all that is added.
    log = -2 * math.log(ALPHA)
    rho = (log + math.log(log + 1)) / 64
    variance = (x[:64].var(0) * 64 + x[:64].var(0).mean()) / 64
    by_hand = np.sqrt(
        variance * 2 * (64 * rho + 1) / (64**2 * rho) * math.log(math.sqrt(64 * rho + 1) / ALPHA)
    )
    np.testing.assert_allclose(radius[63], by_hand)


def heads(seed: int, n: int, mean: np.ndarray, tokens: int = 8) -> np.ndarray:
    """Copy scores of heads as they come: shares of a needle's tokens, varying from instance to instance."""
    rng = np.random.default_rng(seed)
    share = rng.beta(np.maximum(3 * mean, 1e-9), np.maximum(3 * (1 - mean), 1e-9), (n, *mean.shape))
    return rng.binomial(tokens, np.where(mean == 0, 0, share)) / tokens


def test_whole_decisions_are_as_rarely_wrong_as_they_say():
    """Rank 3 and 4 differ by a hair, head 2 lies a hair below the threshold: stop at any of 12 looks."""
    mean = np.array([0.8, 0.6, 0.3 - 1e-6, 0.3 - 2e-6, 0.1, 0.0])
    wrong = []
    for seed in range(40):
        values = heads(seed, 120, mean)
        bad = False
        for n in range(10, 121, 10):
            report = Stop(top=3, threshold=0.3).check(values[:n])
            bad |= bool((report.over & ~report.open_over)[2:].any())
            bad |= not report.open_top.any() and not report.in_top[2]
        wrong.append(bad)
    assert np.mean(wrong) <= ALPHA


def test_a_clear_ranking_is_found_and_its_intervals_hold():
    mean = np.zeros((5, 12))
    mean[2, 3], mean[3, 1], mean[1, 7], mean[4, 4] = 0.9, 0.8, 0.7, 0.1
    needed = []
    for seed in range(8):
        report = Stop(top=3).first(heads(seed, 120, mean), every=4)
        assert report.resolved and report.stop
        found = {name for name, t in zip(report.names, report.in_top, strict=True) if t}
        assert found == {"L2H3", "L3H1", "L1H7"} and report.undecided == ()
        frame = report.intervals
        assert ((frame["lo"] <= mean.reshape(-1)) & (mean.reshape(-1) <= frame["hi"])).all()
        assert (frame["lo"] <= frame["score"]).all() and (frame["score"] <= frame["hi"]).all()
        needed.append(report.n)
    assert max(needed) <= 60


def shaped(n: int, seed: int = 0) -> np.ndarray:
    """Like the lists of published models: 270 heads, 70 % at zero, few strong ones; the tenth is .40, the next .28."""
    rng = np.random.default_rng(seed)
    mean = np.zeros(270)
    mean[:80] = 0.5 * rng.beta(0.3, 8, 80)
    mean[:11] = [0.94, 0.92, 0.80, 0.62, 0.61, 0.56, 0.46, 0.44, 0.42, 0.40, 0.28]
    return heads(seed, n, rng.permutation(mean))


def test_what_decisions_cost_on_scores_shaped_like_published_ones():
    """Halves agree before a top 10 is known up to .1, and that is known before the exact one."""
    values = shaped(800)
    settled = Stop(top=10, rule="stability", level=0.9).first(values, every=8)
    tolerant = Stop(top=10, margin=0.1).first(values, every=16)
    assert settled.resolved and tolerant.resolved and settled.n < tolerant.n
    exact = Stop(top=10)
    assert not exact.check(values[: tolerant.n]).resolved and exact.check(values).resolved
    undecided = exact.check(values[:96])
    assert 1 < len(undecided.undecided) < 30
    assert "96 instances" in undecided.summary and "open" in undecided.summary


def test_a_silent_head_takes_as_long_as_a_coin_can_be_silent():
    """Log(heads / alpha) / -log(1 - .1) is the least; the mixture of bets comes within a third of it."""
    values = np.zeros((200, 270))
    least = math.log(270 / ALPHA) / -math.log(0.9)
    report = Stop(top=None, threshold=0.1).first(values, every=4)
    assert report.resolved and least < report.n < 1.35 * least
    # The margin counts on either side: 0 is farther from .15, and .12 from .05.
    for score in (0.0, 0.12):
        near, far = (
            Stop(top=None, threshold=0.1, margin=m).first(values[:, :9] + score, every=4) for m in (0.05, 0.0)
        )
        assert near.resolved and near.n < 0.8 * far.n
    assert not Stop(top=10).check(values).resolved  # all are tied


def test_equal_scores_do_not_resolve_and_most_gives_up():
    values = heads(0, 80, np.array([0.9, 0.5, 0.5, 0.0]))
    report = Stop(top=2, most=40).first(values)
    assert (report.n, report.resolved, report.stop) == (40, False, True)
    assert set(report.undecided) == {"1", "2"}
    assert Stop(top=2, margin=0.3).check(values).resolved
    early = Stop(top=1).check(values[:7])
    assert not early.resolved and not early.in_top.any() and len(early.undecided) == 4


def test_a_cluster_counts_once_and_when_it_is_over():
    values = heads(0, 12, np.array([0.9, 0.1]))
    report = Stop(top=1).check(values, [*"aabbbaccddee"])
    # e may go on; a came back after it was counted.
    np.testing.assert_allclose(
        report.units, [values[:2].mean(0), values[2:5].mean(0), values[6:8].mean(0), values[8:10].mean(0)]
    )
    assert (report.n, report.n_units) == (12, 4)
    assert Stop(top=1, unit="instance").check(values, [*"aabbbaccddee"]).n_units == 12
    assert Stop(top=1).check(values).n_units == 12
    # Later looks change no unit that an earlier look has seen.
    names = [*"aabbbaccddee"]
    for n in range(2, 12):
        early = Stop(top=1).check(values[:n], names[:n]).units
        np.testing.assert_array_equal(report.units[: len(early)], early)


def test_instances_of_one_haystack_are_no_independent_ones():
    """Each haystack shifts its twenty instances: by instance the decision is wrong too often, by cluster it is not."""
    wrong: dict[str, list[bool]] = {"cluster": [], "instance": []}
    for seed in range(60):
        rng = np.random.default_rng(seed)
        level = rng.random(12)  # mean .5, which is below the threshold
        values = (rng.random((240, 1)) < np.repeat(level, 20)[:, None]).astype(float)
        names = [str(i // 20) for i in range(240)]
        for unit, out in wrong.items():
            report = Stop(top=None, threshold=0.501, unit=unit).first(values, names, every=20)  # type: ignore[arg-type]
            out.append(report.resolved and bool(report.over[0]))
    assert np.mean(wrong["cluster"]) <= ALPHA < 2 * ALPHA < np.mean(wrong["instance"])


def test_stability_looks_where_it_was_told_to():
    values = shaped(100)
    rule = Stop(top=10, rule="stability", level=0.85, least=20)
    assert not rule.check(values[:39]).resolved  # one look at 20 is not two
    for n in (60, 67, 79):
        np.testing.assert_array_equal(rule.check(values[:n]).open_top, rule.check(values[:60]).open_top)
    noise = np.random.default_rng(0).random((100, 270))
    assert not rule.check(noise).resolved
    assert not rule.check(np.zeros((100, 270))).resolved  # all tied: there is no top 10
    both = Stop(top=10, threshold=0.1, rule="stability", level=0.85, least=20)
    assert both.check(values).open_over.any() or both.check(values).resolved
    assert Stop(top=None, threshold=0.1, rule="stability", least=20).check(np.zeros((100, 270))).resolved
    # A signal that shows in one half of the clusters only.
    shifted = np.zeros((40, 30))
    shifted[:20, :5], shifted[20:, 5:10] = 1.0, 1.0
    names = ["a"] * 20 + ["b"] * 20
    rule = Stop(top=5, rule="stability", level=0.5, least=20)
    assert not rule.check(shifted, names).resolved
    assert rule.check(shifted[np.random.default_rng(0).permutation(40)]).n_units == 40


def test_scores_without_bounds():
    rng = np.random.default_rng(0)
    mean = np.array([3.0, 2.0, 0.0, -1.0, 0.0])
    values = mean + rng.normal(size=(200, 5))
    with pytest.raises(UsageError, match="outside the bounds 0 to 1"):
        Stop(top=2).check(values)
    report = Stop(top=2, threshold=1.0, bounds=None).first(values, every=10)
    assert report.resolved and report.in_top.tolist() == [True, True, False, False, False]
    assert report.over.tolist() == [True, True, False, False, False]
    frame = report.intervals
    assert ((frame["lo"] < mean) & (mean < frame["hi"])).all()
    wide = Stop(top=2, bounds=(-10.0, 10.0)).first(values, every=10)
    assert not wide.resolved or wide.n > report.n
    scaled = Stop(top=2, bounds=(-5.0, 7.0)).check(np.clip(values, -5, 7))
    plain = Stop(top=2).check((np.clip(values, -5, 7) + 5) / 12)
    np.testing.assert_array_equal(scaled.open_top, plain.open_top)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"top": None}, "something to resolve"),
        ({"rule": "luck"}, "confidence or stability"),
        ({"unit": "token"}, "cluster or instance"),
        ({"level": 1.0}, "between 0 and 1"),
        ({"least": 1}, "2 <= least"),
        ({"least": 20, "most": 10}, "2 <= least"),
        ({"margin": -0.1}, "0 or more"),
        ({"bounds": (1.0, 0.0)}, "lower"),
    ],
)
def test_a_stop_that_makes_no_sense_is_refused(asked, words):
    with pytest.raises(UsageError, match=words):
        Stop(**asked)


def test_scores_that_make_no_sense_are_refused():
    values = np.zeros((10, 4))
    with pytest.raises(UsageError, match="NaN"):
        Stop(top=1).check(np.where(np.eye(10, 4) > 0, np.nan, values))
    with pytest.raises(UsageError, match="top 4 of 4"):
        Stop(top=4).check(values)
    with pytest.raises(UsageError, match="10 instances, but 2 clusters"):
        Stop(top=1).check(values, ["a", "b"])
    assert isinstance(Stop(top=1).check(values[:0]), StopReport)
    assert not Stop(top=1).check(values[:0]).resolved
