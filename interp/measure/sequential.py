"""When enough instances are scored: early stop on the ranking of heads and on the set over a threshold.

Looking at results after every batch and stopping when they look settled finds settled results too often. `confidence`
decides at level 1 - alpha *however often it is looked at*:

- Scores in [0, 1] (`bounds`): betting, with a mixture of constant bets (Waudby-Smith and Ramdas 2024, JRSS B 86,
  "Estimating means of bounded random variables by betting", their grid of Kelly bets). If the mean is not above m, the
  capital `mean_c prod_t ((1 - c) + c x_t / m)` is a nonnegative martingale or shrinks, so it ever reaches 1 / alpha
  with probability alpha at most (Ville). Exact for any sample size.
- Scores without bounds (`bounds=None`): the asymptotic confidence sequence of a normal mixture (Waudby-Smith, Arbour,
  Sinha, Kennedy and Ramdas 2024, Annals of Statistics 52, "Time-uniform central limit theory"). It assumes finite
  variance and holds as instances grow; with few of them, and tails of the kind 1 in 100, it is too sure of itself.

Union bounds. The set over a threshold is wrong only if a head is found on the wrong side, and each head has one wrong
side: alpha / heads for each. The top k is wrong only if a head outside the true top k is found better than one inside:
alpha / (k (heads - k)) for each pair, on paired differences of the same instances. Both asked for, each gets half.

Assumed: the units come in an order that says nothing of their score. Shuffle a grid of lengths and depths first. The
unit is the cluster, because instances of one haystack move together: it counts once, when the next one begins.

What this costs: a head that never copies is known to score below 0.1 after `log(heads / alpha) / 0.105` units at the
very least, by any method (that is how long a coin of 0.1 can be silent): about 80 for 270 heads, 95 for 1024. On the
scores published for llama-2-7b-80k (1024 heads, 580 distinct instances, shuffled) the top 10 is known after 181, with
a margin of 0.1 after 79; who scores 0.1 or more is open after 580, with a margin of 0.05 known after 213. Ranks with
equal scores never resolve; `margin` says which differences do not matter.

`stability` is the less strict rule: the sets of two halves of the instances overlap by `level` or more at two looks in
a row, at fixed looks (0.9 for that top 10: after 16). It says that the list is settled, not that it is right, and has
no error rate.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.special import logsumexp

from interp.errors import UsageError
from interp.measure.reliability import halves, top_set

BETS = (0.99, 0.8, 0.5, 0.25, 0.12, 0.06, 0.03, 0.015)
"""Shares of the capital that are bet; the capital is their mean."""

SPLITS = 20
"""Splits in halves at each look of `stability`."""

_ROUNDING = 1e-4
"""How far a score may be beyond its bounds: sums of attention in single precision are."""

_PEAK = 64
"""Units at which the asymptotic sequence is tightest."""


@dataclass(frozen=True)
class Stop:
    """When to stop scoring instances.

    Args:
        top: resolve which heads are the k best; None leaves it out.
        threshold: resolve which heads score at least this; None leaves it out.
        level: confidence 1 - alpha of the whole decision (`confidence`), or the overlap of halves (`stability`).
        least: instances before the first decision; the distance of the looks of `stability`.
        most: give up after so many.
        rule: see the module.
        margin: differences that do not matter: a head of the top k may be worse than one outside by up to this, a head
            this close to the threshold may be on either side.
        bounds: least and largest score; None for scores without bounds.
        unit: what is independent: `cluster`, or `instance`, which makes the claim about these haystacks alone.

    Example:
        stop = Stop(top=10, margin=0.1)
        report = stop.check(values, clusters)  # scores so far: instances, layers, heads
    """

    top: int | None = 10
    threshold: float | None = None
    level: float = 0.95
    least: int = 8
    most: int | None = None
    rule: Literal["confidence", "stability"] = "confidence"
    margin: float = 0.0
    bounds: tuple[float, float] | None = (0.0, 1.0)
    unit: Literal["cluster", "instance"] = "cluster"

    def __post_init__(self) -> None:
        if self.top is None and self.threshold is None:
            raise UsageError("a stop needs something to resolve; write Stop(top=10) or Stop(threshold=0.1)")
        if self.rule not in ("confidence", "stability"):
            raise UsageError(f"unknown rule '{self.rule}'; write confidence or stability")
        if self.unit not in ("cluster", "instance"):
            raise UsageError(f"unknown unit '{self.unit}'; write cluster or instance")
        if not 0 < self.level < 1:
            raise UsageError(f"level is {self.level}; it lies between 0 and 1")
        if self.least < 2 or (self.most is not None and self.most < self.least):
            raise UsageError(f"least is {self.least} and most {self.most}; take 2 <= least <= most")
        if self.margin < 0:
            raise UsageError(f"margin is {self.margin}; take 0 or more")
        if self.bounds is not None and not self.bounds[0] < self.bounds[1]:
            raise UsageError(f"bounds are {self.bounds}; the first is the lower one")

    def check(
        self, values: Float[np.ndarray, " n *heads"], clusters: Sequence[str] | None = None
    ) -> StopReport:
        """Whether the scores so far settle what is asked.

        Args:
            values: scores of the instances so far, in the order they came; heads on one axis, or layers and heads.
            clusters: cluster of each instance; default each by itself.

        Raises:
            UsageError: a score outside the bounds, NaN, or fewer heads than `top`.
        """
        n, flat = len(values), values.reshape(len(values), math.prod(values.shape[1:])).astype(float)
        heads = flat.shape[1]
        if self.top is not None and not 1 <= self.top < heads:
            raise UsageError(f"top {self.top} of {heads} heads leaves nothing to resolve")
        self._in_bounds(flat)
        units = _units(flat, clusters if self.unit == "cluster" else None)
        in_top, over = np.zeros(heads, bool), np.zeros(heads, bool)
        open_top, open_over = np.full(heads, self.top is not None), np.full(heads, self.threshold is not None)
        if n >= self.least and len(units) >= 2:
            mean = units.mean(0)
            if self.top is not None:
                in_top[np.argsort(-mean, kind="stable")[: self.top]] = True
            if self.threshold is not None:
                over = mean >= self.threshold
            if self.rule == "stability":
                open_top, open_over = _unstable(self, flat, clusters if self.unit == "cluster" else None)
            else:
                alpha = (1 - self.level) / (1 if self.top is None or self.threshold is None else 2)
                if self.top is not None:
                    open_top = self._unranked(units, in_top, alpha)
                if self.threshold is not None:
                    open_over = self._unplaced(units, over, alpha)
        return StopReport(self, n, len(units), in_top, over, open_top, open_over, values.shape[1:], units)

    def first(
        self, values: Float[np.ndarray, " n *heads"], clusters: Sequence[str] | None = None, *, every: int = 1
    ) -> StopReport:
        """The report at which a run that looks `every` so many instances would have stopped, else the last one."""
        looks = [*range(self.least, len(values), every), len(values)]
        report = None
        for n in looks:
            report = self.check(values[:n], None if clusters is None else clusters[:n])
            if report.stop:
                break
        assert report is not None
        return report

    def _in_bounds(self, flat: np.ndarray) -> None:
        if not np.isfinite(flat).all():
            raise UsageError(
                "a score is NaN or infinite; a head that has no score on an instance cannot be ranked"
            )
        if self.bounds is None:
            return
        low, high = self.bounds
        if flat.size and (flat.min() < low - _ROUNDING or flat.max() > high + _ROUNDING):
            raise UsageError(
                f"scores run from {flat.min():.3g} to {flat.max():.3g}, outside the bounds {low:g} to {high:g}; give "
                "the score's own bounds, or bounds=None for a score that has none"
            )

    def _unplaced(self, units: np.ndarray, over: np.ndarray, alpha: float) -> np.ndarray:
        """Heads whose side of the threshold is open."""
        assert self.threshold is not None
        each = alpha / units.shape[1]
        above = _exceeds(units, self.threshold - self.margin, each, self.bounds)
        below = _exceeds(-units, -self.threshold - self.margin, each, _negative(self.bounds))
        return ~np.where(over, above, below)

    def _unranked(self, units: np.ndarray, in_top: np.ndarray, alpha: float) -> np.ndarray:
        """Heads of the top k that are not shown to be better than all others, and the others that they are not."""
        inside, outside = np.flatnonzero(in_top), np.flatnonzero(~in_top)
        each = alpha / (len(inside) * len(outside))
        width = None if self.bounds is None else self.bounds[1] - self.bounds[0]
        out = np.zeros(units.shape[1], bool)
        for i in inside:
            # One head at a time: pairs x units x bets of a large model do not fit at once.
            apart = units[:, [i]] - units[:, outside]
            won = _exceeds(apart, -self.margin, each, None if width is None else (-width, width))
            out[outside[~won]] = True
            out[i] = not won.all()
        return out


@dataclass(frozen=True)
class StopReport:
    """What is settled after `n` instances.

    Attributes:
        asked: the `Stop` that was asked.
        n, n_units: instances, and units that count (closed clusters).
        in_top, over: the top k and the heads over the threshold as they stand; all False before `least`.
        open_top, open_over: heads that keep each from being resolved.
    """

    asked: Stop
    n: int
    n_units: int
    in_top: np.ndarray = field(repr=False)
    over: np.ndarray = field(repr=False)
    open_top: np.ndarray = field(repr=False)
    open_over: np.ndarray = field(repr=False)
    shape: tuple[int, ...] = field(repr=False)
    units: np.ndarray = field(repr=False)

    @property
    def resolved(self) -> bool:
        """Whether all that was asked is settled."""
        return not (self.open_top.any() or self.open_over.any())

    @property
    def stop(self) -> bool:
        """Whether to stop: it is resolved, or `most` instances are spent."""
        return self.resolved or (self.asked.most is not None and self.n >= self.asked.most)

    @property
    def names(self) -> list[str]:
        """Names of the heads: L3H1 where layers and heads are known, else their number."""
        if len(self.shape) != 2:
            return [str(i) for i in range(len(self.in_top))]
        return [f"L{la}H{h}" for la in range(self.shape[0]) for h in range(self.shape[1])]

    @property
    def undecided(self) -> tuple[str, ...]:
        """The heads that are open, for the ranking or for the threshold."""
        return tuple(name for name, o in zip(self.names, self.open_top | self.open_over, strict=True) if o)

    @cached_property
    def intervals(self) -> pd.DataFrame:
        """One row a head: component, score (mean over units), lo, hi, in_top, over, undecided.

        The intervals hold for all heads and all looks at once, at the level of the stop; being for all heads, they are
        wider than what the decisions need.
        """
        heads = len(self.in_top)
        score = self.units.mean(0) if len(self.units) else np.full(heads, math.nan)
        each = (1 - self.asked.level) / (2 * heads)
        lo = _lowest(self.units, each, self.asked.bounds)
        hi = -_lowest(-self.units, each, _negative(self.asked.bounds))
        return pd.DataFrame(
            {
                "component": self.names,
                "score": score,
                "lo": lo,
                "hi": hi,
                "in_top": self.in_top,
                "over": self.over,
                "undecided": self.open_top | self.open_over,
            }
        )

    @property
    def summary(self) -> str:
        """One sentence on what is settled."""
        asked, parts = self.asked, []
        if asked.top is not None:
            parts.append((f"the top {asked.top}", int(self.open_top.sum())))
        if asked.threshold is not None:
            parts.append((f"the set of {asked.threshold:g} or more", int(self.open_over.sum())))
        told = " and ".join(
            f"{what} is {'open' if n else 'settled'}" + (f" ({n} heads)" if n else "") for what, n in parts
        )
        if asked.rule == "stability":
            how = f"halves agree to {asked.level:.0%} at two looks; no error rate"
        else:
            how = f"confidence {asked.level:.0%} under continuous looking"
        return f"after {self.n} instances in {self.n_units} units {told} ({how})"


def capital(
    x: Float[np.ndarray, "n c"], m: float | Float[np.ndarray, " c"], low: float, high: float
) -> Float[np.ndarray, " c"]:
    """Log of the largest capital so far of betting that the mean of each column is above m.

    Args:
        x: values between `low` and `high`, a row a unit in the order they came.

    Returns:
        the log of the capital where it was largest; infinite where no mean can be as low as m.
    """
    y = np.clip((x - low) / (high - low), 0, 1)
    mu = np.broadcast_to((np.asarray(m) - low) / (high - low), x.shape[1:])
    with np.errstate(divide="ignore", invalid="ignore"):
        runs = np.stack([np.log((1 - c) + c * y / mu).cumsum(0) for c in BETS])
        wealth = logsumexp(runs, axis=0) - math.log(len(BETS))
    best = wealth.max(0) if len(x) else np.full(x.shape[1:], -math.inf)
    return np.where(mu <= 0, math.inf, best)


def asymptotic(
    x: Float[np.ndarray, "n c"], alpha: float
) -> tuple[Float[np.ndarray, "n c"], Float[np.ndarray, "n c"]]:
    """Centre and radius of the asymptotic confidence sequence of each column's mean, two-sided, after each unit.

    One unit of the columns' mean variance is added to each, so that a column that has not varied yet has a radius.
    """
    n = np.arange(1, len(x) + 1)[:, None]
    mean = x.cumsum(0) / n
    variance = np.maximum((x**2).cumsum(0) / n - mean**2, 0)
    variance = (variance * n + variance.mean(1, keepdims=True)) / n
    log = -2 * math.log(alpha)
    rho = (log + math.log(log + 1)) / _PEAK  # the square of the mixture's scale
    radius = np.sqrt(variance * 2 * (n * rho + 1) / (n**2 * rho) * np.log(np.sqrt(n * rho + 1) / alpha))
    radius[:1] = math.inf  # one unit has no variance
    return mean, radius


def _exceeds(x: np.ndarray, m: float, alpha: float, bounds: tuple[float, float] | None) -> np.ndarray:
    """Columns whose mean was shown to be above m, at any look so far."""
    if bounds is None:
        centre, radius = asymptotic(x, 2 * alpha)
        return (centre - radius > m).any(0)
    return capital(x, m, *bounds) >= -math.log(alpha)


def _lowest(x: np.ndarray, alpha: float, bounds: tuple[float, float] | None) -> np.ndarray:
    """Lower confidence bound of each column's mean, over all looks so far."""
    if not len(x):
        return np.full(x.shape[1:], -math.inf if bounds is None else bounds[0])
    if bounds is None:
        centre, radius = asymptotic(x, 2 * alpha)
        return (centre - radius).max(0)
    # The capital falls as m grows: halve the interval in which it crosses 1 / alpha.
    low, high = (np.full(x.shape[1:], b) for b in bounds)
    for _ in range(24):
        middle = (low + high) / 2
        shown = capital(x, middle, *bounds) >= -math.log(alpha)
        low, high = np.where(shown, middle, low), np.where(shown, high, middle)
    return low


def _negative(bounds: tuple[float, float] | None) -> tuple[float, float] | None:
    return None if bounds is None else (-bounds[1], -bounds[0])


def _units(flat: np.ndarray, clusters: Sequence[str] | None) -> np.ndarray:
    """Scores of each unit, in order: the mean of each cluster's instances from when it begins to when another does.

    A unit must not change once it was looked at, so a cluster that is still open does not count yet, and instances of
    a cluster that comes back do not count at all.
    """
    if clusters is None:
        return flat
    names = np.asarray([str(c) for c in clusters])
    if len(names) != len(flat):
        raise UsageError(f"{len(flat)} instances, but {len(names)} clusters; name one for each instance")
    if not len(names):
        return flat
    begins = np.flatnonzero(np.concatenate([[True], names[1:] != names[:-1]]))
    closed = list(itertools.pairwise(begins))
    new = [(a, b) for i, (a, b) in enumerate(closed) if names[a] not in names[begins[:i]]]
    return np.array([flat[a:b].mean(0) for a, b in new]).reshape(-1, flat.shape[1])


def _unstable(stop: Stop, flat: np.ndarray, clusters: Sequence[str] | None) -> tuple[np.ndarray, np.ndarray]:
    """Heads that move between halves at one of the last two looks, where they move too much; all before two looks."""
    heads = flat.shape[1]
    asked = {"top": stop.top is not None, "over": stop.threshold is not None}
    last = len(flat) // stop.least * stop.least
    looks = [last - stop.least, last]
    moved = {kind: np.full(heads, is_asked) for kind, is_asked in asked.items()}
    if looks[0] < stop.least:
        return moved["top"], moved["over"]
    names = np.asarray(range(len(flat)) if clusters is None else [str(c) for c in clusters])
    moved = {kind: np.zeros(heads, bool) for kind in asked}
    for n in looks:
        _, at = np.unique(names[:n], return_inverse=True)
        groups = int(at.max()) + 1
        if groups < 2:
            return np.full(heads, asked["top"]), np.full(heads, asked["over"])
        agree: dict[str, list[float]] = {kind: [] for kind in asked}
        differ = {kind: np.zeros(heads, bool) for kind in asked}
        for half in halves(groups, SPLITS, 0):
            one, two = flat[:n][half[at]].mean(0), flat[:n][~half[at]].mean(0)
            sets = {}
            if stop.top is not None:
                sets["top"] = top_set(one, stop.top), top_set(two, stop.top)
            if stop.threshold is not None:
                sets["over"] = one >= stop.threshold, two >= stop.threshold
            for kind, (a, b) in sets.items():
                most = max(int(a.sum()), int(b.sum()))
                # No head over the threshold is a finding; no head in the top k, all being tied, is none.
                agree[kind].append(int((a & b).sum()) / most if most else float(kind == "over"))
                differ[kind] |= a ^ b
        for kind, is_asked in asked.items():
            if is_asked and float(np.mean(agree[kind])) < stop.level:
                moved[kind] |= differ[kind] if differ[kind].any() else True
    return moved["top"], moved["over"]
