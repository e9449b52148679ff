"""Screens: the effect of cutting or patching every head, neuron or cell, estimated from gradients.

The effect of putting a value v in place of an activation a is m(v) - m(a), m being a metric of the answer. A screen
takes <dm/da, v - a> for it, for all units at once, from one forward and one backward pass: attribution patching (Nanda
2023, neelnanda.io/attribution-patching; Syed et al. 2023, arXiv 2310.10348). It is first order: it is exact where the
metric is linear in the activation, and fails where attention or a norm saturates (Kramar et al. 2024, arXiv
2403.00745, AtP*). A screen therefore never comes alone: exact effects of its best units and of a random sample are
computed by `subject.each`, and their agreement is part of the result.

`steps` averages the gradient over a path. Patching follows the inputs, from the run's embeddings to the donor's
(EAP-IG, Hanna et al. 2024, arXiv 2403.17806): one pass a step for all layers. A cut has no inputs to follow; there one
layer after the other fades out, all its units together (integrated gradients, Sundararajan et al. 2017, arXiv
1703.01365): one pass a step and layer, from that layer on. The estimates of a layer then sum to the effect of cutting
the whole layer, which is not what its units do alone. Steps find heads behind a saturated softmax that one gradient
misses (tests/planted/test_screen.py); where units stand in for each other, one step ranks single cuts better. The
agreement says which is the case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool
from scipy import stats

from interp.errors import NoAcceptedExample, UsageError
from interp.intervene.base import Scope
from interp.intervene.patch import _common_corruption, _pair, _role
from interp.intervene.put import Put, Values
from interp.intervene.reference import Reference
from interp.locate.gradients import along_inputs, along_layers, gradients, metric_of
from interp.models.batch import Batch, plan
from interp.models.engines.base import Record
from interp.models.sites import Component, Head, Neuron, Site
from interp.models.subject import CausalLM
from interp.tasks.base import Example, Task, stable_seed

Over = Literal["head", "neuron", "position", "role"]
Mode = Literal["zero", "mean", "patch"]
TOKENS = 1024
"""Padded tokens of a batch: a graph of all layers is held for it."""

CELLS = frozenset({"resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"})


@dataclass(frozen=True)
class Agreement:
    """How well estimates agree with exact effects, on the units whose exact effect was computed.

    Attributes:
        spearman, pearson: over all verified units; NaN where one side does not vary.
        spearman_random: over the random sample alone, which stands for all units. The best units of a screen are
            chosen by their estimate, so correlations over them are no such thing.
        recall: share of the `m` verified units of largest exact effect that are among the m of largest estimate; m is
            `top`, or half of the verified units where they are fewer than twice that.
        n, verified: units, and how many were verified.
        rule: how these were chosen.
    """

    spearman: float
    pearson: float
    spearman_random: float
    recall: float
    m: int
    n: int
    verified: int
    rule: str


@dataclass(frozen=True, eq=False)
class Screen:
    """Result of a screen.

    Attributes:
        frame: one row a unit in order of execution: component, kind, layer, unit (number of the head or neuron, else
            -1), position, role, approx and exact (mean change of the metric over examples; exact is NaN where it was
            not computed), verified, n (examples).
        agreement: of approx with exact.
        base: mean metric of the runs that are cut or patched.
    """

    frame: pd.DataFrame
    agreement: Agreement
    base: float

    def top(self, k: int) -> tuple[Component, ...]:
        """The k heads or neurons with the largest estimated effect, of either sign."""
        own = self.frame[self.frame["unit"] >= 0]
        if not 1 <= k <= len(own):
            raise UsageError(f"top {k} was asked for, but {len(own)} heads or neurons were screened")
        order = own["approx"].abs().sort_values(ascending=False, kind="stable").index[:k]
        return tuple(_component(own.loc[i, "kind"], own.loc[i, "layer"], own.loc[i, "unit"]) for i in order)


def _component(kind: str, layer: int, unit: int) -> Component:
    return Head(int(layer), int(unit)) if kind == "z" else Neuron(int(layer), int(unit))


@dataclass(frozen=True)
class _Part:
    """A batch, and for each site what is put there."""

    batch: Batch
    examples: list[Example]
    targets: dict[Site, torch.Tensor]

    def classes(self, over: Over) -> list[list[str]]:
        """Position or role of each prompt token."""
        if over == "position":
            return [[str(p) for p in range(len(e.ids))] for e in self.examples]
        return [[_role(e, p) for p in range(len(e.ids))] for e in self.examples]


def screen(
    subject: CausalLM,
    task: Task | Sequence[Example],
    over: Over = "head",
    *,
    kind: str | None = None,
    mode: Mode = "zero",
    scope: Scope = "all",
    reference: Reference | Task | Sequence[Example] | None = None,
    corruption: str | None = None,
    metric: str = "logit_diff",
    layers: Sequence[int] | None = None,
    steps: int = 1,
    top: int = 16,
    sample: int = 16,
    n: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> Screen:
    """Estimate the effect of cutting or patching every unit, and check the estimate on some.

    Args:
        over: units: `head` (cut at z), `neuron`, or cells of a residual or output site in each layer: `position` (each
            prompt token; prompts of one length) or `role` (tokens by span role).
        kind: site of cells: resid_pre, resid_mid, resid_post (default), attn_out or mlp_out.
        mode: what is put in a unit's place: `zero`, `mean` of the reference, or `patch`: in the run of the corrupt twin
            the values of the clean run.
        scope: tokens that heads and neurons are cut at.
        reference: for `mean`; default the examples themselves, pooled.
        corruption: for `patch`: which corrupt twin; default the first that all examples have.
        metric: `logit_diff` or `logprob`. Probabilities are not offered: their gradient vanishes where the model is
            sure.
        layers: default all.
        steps: gradients along a path of so many steps, at their midpoints; see the module's docstring for its cost.
        top, sample: verify so many units of largest estimate, and so many drawn at random from all.
        n: use at most so many examples.
        seed: of the random sample.
        progress: told about units that are verified.

    Returns:
        estimates, exact values and their agreement; see `Screen`.

    Raises:
        UsageError: units, mode and site do not go together, or examples lack what they need.
        NoAcceptedExample: there is no example.

    Example:
        found = interp.screen(model, interp.task("niah", n=16), mode="zero")
        found.agreement.spearman, found.top(10)
    """
    examples = list(task.examples(subject) if isinstance(task, Task) else task)[:n]
    site_kind = _check(over, kind, mode, scope, steps, examples)
    every = [Site(site_kind, i) for i in (range(subject.n_layers) if layers is None else sorted(set(layers)))]
    for site in every:
        subject.check(site)
    if mode == "mean":
        source = examples if reference is None else reference
        reference = source if isinstance(source, Reference) else Reference(source)
        if reference.pool != "pooled":
            raise UsageError("a screen takes pooled means; write Reference(..., pool='pooled')")
    elif reference is not None:
        raise UsageError(f"mode '{mode}' of a screen takes no reference")
    twin = None
    if mode == "patch":
        twin = corruption or _common_corruption(examples)
        if not all(twin in e.corrupt for e in examples):
            raise UsageError(f"screen: no corruption '{twin}' in an example of {examples[0].task}")
    parts: list[_Part] = []
    sums: dict[tuple[Any, ...], float] = {}
    base = 0.0
    for group in plan([len(e.full_ids) for e in examples], TOKENS):
        part, found, estimates = _estimate(
            subject, [examples[i] for i in group], every, mode, reference, twin, metric, steps, scope
        )
        parts.append(part)
        base += float(found.sum())
        for site, share in estimates.items():
            for unit, value in _units(part, site, share, over, scope):
                sums[unit] = sums.get(unit, 0.0) + value
    frame = pd.DataFrame(
        [(*unit, value / len(examples)) for unit, value in sums.items()],
        columns=["kind", "layer", "unit", "position", "role", "approx"],
    ).sort_values(["layer", "unit", "position"], kind="stable", ignore_index=True)
    frame.insert(0, "component", [_name(r) for r in frame.itertuples()])
    chosen, drawn = _sample(frame["approx"].to_numpy(), top, sample, seed)
    exact = np.full(len(frame), np.nan)
    exact[chosen] = _verify(subject, frame.iloc[chosen], parts, over, scope, mode, metric, progress)
    frame["exact"], frame["verified"], frame["n"] = (
        exact,
        np.isin(np.arange(len(frame)), chosen),
        len(examples),
    )
    agreement = _agreement(frame, drawn, top, f"top {top} and {sample} at random, seed {seed}")
    return Screen(frame, agreement, base / len(examples))


def _check(
    over: Over, kind: str | None, mode: Mode, scope: Scope, steps: int, examples: Sequence[Example]
) -> str:
    if not examples:
        raise NoAcceptedExample("there is no example to screen on")
    for name, value, known in (("over", over, get_args(Over)), ("mode", mode, get_args(Mode))):
        if value not in known:
            raise UsageError(f"screen: no {name} '{value}'; write one of {', '.join(known)}")
    if steps < 1:
        raise UsageError(f"screen: steps is {steps}; take 1 or more")
    if over in ("head", "neuron"):
        own = "z" if over == "head" else "neurons"
        if kind not in (None, own):
            raise UsageError(f"screen: a {over} is cut at {own}, not at '{kind}'")
        return own
    if kind is not None and kind not in CELLS:
        raise UsageError(f"screen: cells of '{kind}' cannot be screened; take {', '.join(sorted(CELLS))}")
    if scope != "all":
        raise UsageError("screen: a cell is its own scope; leave scope='all'")
    if over == "position" and len({len(e.ids) for e in examples}) > 1:
        raise UsageError("screen: cells by position need prompts of one length; take over='role'")
    return kind or "resid_post"


# -- estimates -------------------------------------------------------------------------------------------------------


def _estimate(
    subject: CausalLM,
    examples: list[Example],
    sites: Sequence[Site],
    mode: Mode,
    reference: Reference | None,
    twin: str | None,
    metric: str,
    steps: int,
    scope: Scope,
) -> tuple[_Part, torch.Tensor, dict[Site, torch.Tensor]]:
    """What is put where, the metric of the base run, and <gradient, change> of every vector of every site."""
    donors: dict[Site, torch.Tensor] = {}
    embed = None
    if twin is not None:
        pairs = [_pair(e, twin) for e in examples]
        watched = [*sites, *([Site("embed")] if steps > 1 else [])]
        clean = subject.batch([clean for clean, _ in pairs])
        trace = subject.run(clean, {s: Record() for s in watched}, keep=1)
        donors = {s: trace[s] for s in sites}
        embed = trace["embed"] if steps > 1 else None
        examples = [dirty for _, dirty in pairs]
    batch = subject.batch(examples)

    def measured(logits: torch.Tensor) -> torch.Tensor:
        return metric_of(logits, batch, examples, metric)

    def target(site: Site, value: torch.Tensor) -> torch.Tensor:
        if mode == "patch":
            return donors[site]
        if reference is None:
            return value.new_zeros(()).expand_as(value)
        assert site.layer is not None
        mean = reference.means(subject, site.kind)[""][site.layer]
        return mean.to(value.device, value.dtype).expand_as(value)

    if reference is not None:
        for site in sites:
            reference.means(subject, site.kind)  # before the pass, not in it
    if steps == 1:
        found, values, grads = gradients(subject, batch, sites, measured)
    elif mode == "patch":
        assert embed is not None
        found, values, grads = along_inputs(subject, batch, sites, measured, embed, steps)
    else:
        found, values, grads = along_layers(
            subject, batch, sites, measured, target, steps, batch.scope_columns(scope, 0, batch.width)
        )
    targets = {site: target(site, value) for site, value in values.items()}
    # The last dimension of a vector is summed; neurons are numbers.
    shares = {
        site: (
            grads[site].float() * (targets[site] - values[site]).float()
            if site.kind == "neurons"
            else torch.einsum("...d,...d->...", grads[site].float(), (targets[site] - values[site]).float())
        )
        for site in sites
    }
    return _Part(batch, examples, targets), found, shares


# -- units -----------------------------------------------------------------------------------------------------------


def _units(
    part: _Part, site: Site, share: torch.Tensor, over: Over, scope: Scope
) -> Iterator[tuple[tuple[Any, ...], float]]:
    """Each unit of a site with its estimate, summed over tokens and examples."""
    share = share.cpu()
    if over in ("head", "neuron"):
        columns = _columns(part, scope).cpu()
        for i, value in enumerate(torch.einsum("bt,btu->u", columns.float(), share).tolist()):
            yield (site.kind, site.layer, i, -1, ""), value
        return
    sums: dict[str, float] = {}
    for row, names in enumerate(part.classes(over)):
        first = int(part.batch.pad[row])
        for name, value in zip(names, share[row, first:].tolist(), strict=False):
            sums[name] = sums.get(name, 0.0) + value
    for name, value in sums.items():
        place = (int(name), "") if over == "position" else (-1, name)
        yield (site.kind, site.layer, -1, *place), value


def _columns(part: _Part, scope: Scope) -> Bool[torch.Tensor, "b t"]:
    return part.batch.scope_columns(scope, 0, part.batch.width) & part.batch.mask.bool()


def _name(row: Any) -> str:
    if row.unit >= 0:
        return repr(_component(row.kind, row.layer, row.unit))
    return f"{row.kind}[{row.layer}]@{row.position if row.position >= 0 else row.role}"


# -- verification ----------------------------------------------------------------------------------------------------


def _sample(approx: np.ndarray, top: int, sample: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the units that are verified, and of those of them that were drawn at random from all."""
    best = np.argsort(-np.abs(approx), kind="stable")[:top]
    rng = np.random.default_rng(stable_seed("screen", seed))
    drawn = rng.choice(len(approx), size=min(sample, len(approx)), replace=False)
    return np.union1d(best, drawn).astype(int), np.sort(drawn)


def _verify(
    subject: CausalLM,
    units: pd.DataFrame,
    parts: Sequence[_Part],
    over: Over,
    scope: Scope,
    mode: Mode,
    metric: str,
    progress: Callable[[int, int, str], None] | None,
) -> np.ndarray:
    """Exact effects, averaged over examples."""
    out = np.zeros(len(units))
    if not len(units):
        return out  # not even the intact run is needed
    total = sum(len(p.examples) for p in parts)
    done = 0
    for part in parts:
        values = {site: Values(part.batch, at, mode) for site, at in part.targets.items()}
        puts: list[Put | None] = [None]
        for row in units.itertuples():
            site = Site(row.kind, int(row.layer))
            if over in ("head", "neuron"):
                puts.append(Put(replace(site, index=int(row.unit)), values[site], _columns(part, scope)))
            else:
                name = str(row.position) if over == "position" else row.role
                puts.append(Put(site, values[site], _cells(part, over, name)))
        found = np.zeros(len(puts))
        for i, logits in subject.each(puts, part.batch):
            found[i] = float(metric_of(logits, part.batch, part.examples, metric).sum())
            done += 1
            if progress:
                progress(done, len(parts) * len(puts), "units verified")
        out += (found[1:] - found[0]) / total
    return out


def _cells(part: _Part, over: Over, name: str) -> Bool[torch.Tensor, "b t"]:
    out = torch.zeros_like(part.batch.mask, dtype=torch.bool)
    for row, names in enumerate(part.classes(over)):
        first = int(part.batch.pad[row])
        for position, own in enumerate(names):
            out[row, first + position] = own == name
    return out


def _agreement(frame: pd.DataFrame, drawn: np.ndarray, top: int, rule: str) -> Agreement:
    seen = frame[frame["verified"]]
    a, e = seen["approx"].to_numpy(), seen["exact"].to_numpy()
    m = len(seen) // 2 if len(seen) < 2 * top else top
    best = [set(np.argsort(-np.abs(x), kind="stable")[:m]) for x in (a, e)]
    random = frame.iloc[drawn]
    return Agreement(
        spearman=_correlation(stats.spearmanr, a, e),
        pearson=_correlation(stats.pearsonr, a, e),
        spearman_random=_correlation(
            stats.spearmanr, random["approx"].to_numpy(), random["exact"].to_numpy()
        ),
        recall=len(best[0] & best[1]) / m if m else float("nan"),
        m=m,
        n=len(frame),
        verified=len(seen),
        rule=rule,
    )


def _correlation(of: Callable[..., Any], a: np.ndarray, b: np.ndarray) -> float:
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(of(a, b).statistic)
