"""What a sweep can locate and cut: locators and cuts by name, matched by what the one finds and the other takes.

A locator turns a model (and a task) into a ranking of components; a cut turns a ranking into a plan of conditions with
matched controls. Both are named in specs, so both are data; a new one is one more entry. `version` is part of the key
of every result: raise it when numbers change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from interp.errors import UsageError
from interp.measure.outcomes import Progress
from interp.measure.plans import Condition
from interp.models.sites import MLP, Component, Head, Neuron, component
from interp.models.subject import CausalLM
from interp.tasks.base import Task

RANKING = ("component", "score")
"""Columns of a ranking, best first."""

BY = ("head", "layer")
"""What is cut at a time where every head is."""


@dataclass(frozen=True)
class Found:
    """What a unit's cut works with.

    Attributes:
        subject: the model.
        ranking: components by name, best first, with their scores.
        task: that is measured. on: that the locator was fitted on, if it was.
        seed: of draws.
    """

    subject: CausalLM
    ranking: pd.DataFrame
    task: Task
    on: Task | None
    seed: int

    def components(self) -> list[Component]:
        """The ranked components."""
        return [component(name) for name in self.ranking["component"]]


@dataclass(frozen=True)
class LocatorKind:
    """A locator as specs name it.

    Attributes:
        finds: what its ranking is of.
        params: its parameters, with their defaults.
        locate: makes the ranking.
        fitted: whether it needs a task.
        version: of its numbers.
    """

    finds: str
    locate: Callable[..., pd.DataFrame]
    params: Mapping[str, Any] = field(default_factory=dict)
    fitted: bool = False
    version: int = 1


@dataclass(frozen=True)
class CutKind:
    """A cut as specs name it.

    Attributes:
        takes: what it cuts.
        plan: makes the conditions.
        params: its parameters, with their defaults.
        version: of its numbers.
    """

    takes: str
    plan: Callable[..., list[Condition]]
    params: Mapping[str, Any] = field(default_factory=dict)
    version: int = 1


# -- locators --------------------------------------------------------------------------------------------------------


def _retrieval_heads(
    subject: CausalLM, on: Task, seed: int, progress: Progress | None, **params: Any
) -> pd.DataFrame:
    from interp.locate.retrieval_heads import RetrievalHeads

    found = RetrievalHeads(params["method"], mode=params["mode"], scores=(params["method"],))
    return found.fit(subject, on, progress=progress).ranking()


def _all_heads(subject: CausalLM, on: None, seed: int, progress: Progress | None) -> pd.DataFrame:
    return pd.DataFrame({"component": [repr(h) for h in subject.heads()], "score": 0.0})


def _random_heads(subject: CausalLM, on: None, seed: int, progress: Progress | None) -> pd.DataFrame:
    import numpy as np

    from interp.tasks.base import stable_seed

    score = np.random.default_rng(stable_seed("random heads", seed)).random(len(subject.heads()))
    frame = pd.DataFrame({"component": [repr(h) for h in subject.heads()], "score": score})
    return frame.sort_values("score", ascending=False, kind="stable")


def _channels(
    subject: CausalLM, on: Task, seed: int, progress: Progress | None, **params: Any
) -> pd.DataFrame:
    """Components of the channels that the best retrieval heads read."""
    from interp.atlas_channels import read_by, table
    from interp.locate.channels.locator import Channels

    heads = _retrieval_heads(subject, on, seed, progress, method=params["method"], mode="greedy")
    readers = [component(name) for name in heads["component"][: params["readers"]]]
    found = Channels(tuple(params["modes"]), kept=params["kept"], seed=seed).fit(subject, progress=progress)
    parts = read_by(subject, table(found), [h for h in readers if isinstance(h, Head)])
    if not parts:
        raise UsageError(
            f"no channel that the first {params['readers']} retrieval heads read; take more of them"
        )
    return pd.DataFrame({"component": [repr(p) for p in parts], "score": range(len(parts), 0, -1)})


def _fact_mlps(
    subject: CausalLM, on: Task, seed: int, progress: Progress | None, **params: Any
) -> pd.DataFrame:
    found = _facts(subject, on, seed, progress, n_layers=0, **params)
    return found.ranking("layers")


def _fact_neurons(
    subject: CausalLM, on: Task, seed: int, progress: Progress | None, **params: Any
) -> pd.DataFrame:
    found = _facts(subject, on, seed, progress, **params)
    return found.ranking("neurons")


def _facts(subject: CausalLM, on: Task, seed: int, progress: Progress | None, **params: Any) -> Any:
    from interp.locate.facts.fact_mlps import FactMLPs

    return FactMLPs(corruption="subject_swap", seed=seed, **params).fit(subject, on, progress=progress)


def _all_mlps(subject: CausalLM, on: None, seed: int, progress: Progress | None) -> pd.DataFrame:
    return pd.DataFrame({"component": [repr(MLP(i)) for i in range(subject.n_layers)], "score": 0.0})


LOCATORS: dict[str, LocatorKind] = {
    "retrieval_heads": LocatorKind(
        "heads", _retrieval_heads, {"method": "copy", "mode": "greedy"}, fitted=True
    ),
    "random_heads": LocatorKind("heads", _random_heads),
    "all_heads": LocatorKind("every head", _all_heads),
    "channels": LocatorKind(
        "channels",
        _channels,
        {"method": "copy", "readers": 10, "modes": ("Q", "K", "V"), "kept": 1000},
        fitted=True,
    ),
    "fact_mlps": LocatorKind("mlps", _fact_mlps, {"window": 3}, fitted=True),
    "fact_neurons": LocatorKind(
        "neurons", _fact_neurons, {"window": 3, "n_layers": 3, "exact": 32}, fitted=True
    ),
    "all_mlps": LocatorKind("every mlp", _all_mlps),
}
"""Every locator by name."""


# -- cuts ------------------------------------------------------------------------------------------------------------


def _heads(
    found: Found, doses: Any, mode: str, scope: str, controls: int, match: str, reference: int
) -> list[Condition]:
    """The best k heads, for each dose k."""
    from interp.measure.plans import dose

    cut = _ablation(found, mode, scope, reference)
    sizes = _sizes(doses, len(found.ranking), "cut heads")
    return dose(
        found.subject,
        found.components(),
        sizes,
        cut,
        controls=controls,
        match=match,
        data=found.task,
        ranking=found.ranking,
        seed=found.seed,
    )


def _each(found: Found, by: str, mode: str, scope: str, controls: int, reference: int) -> list[Condition]:
    """Every head by itself, or the heads of every layer together."""
    from interp.measure.plans import with_controls

    if by not in BY:
        raise UsageError(f"cut each_head: by is {by!r}; take {' or '.join(BY)}")
    cut = _ablation(found, mode, scope, reference)
    sets: list[tuple[Component, ...]] = [(part,) for part in found.components()]
    if by == "layer":
        heads = found.subject.heads()
        sets = [tuple(h for h in heads if h.layer == i) for i in sorted({h.layer for h in heads})]
    out: list[Condition] = []
    for number, parts in enumerate(sets):
        out += with_controls(
            found.subject, cut.with_components(parts), controls=controls, seed=found.seed + number
        )
    return out


def _each_mlp(found: Found, window: int, step: int, controls: int) -> list[Condition]:
    """The MLPs of windows of layers, zeroed; each window starts `step` layers after the one before it."""
    n = found.subject.n_layers
    for name, value in (("window", window), ("step", step)):
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= n:
            raise UsageError(f"cut each_mlp: {name} is {value!r}; take 1 to {n}")
    sets = [[MLP(i) for i in range(start, start + window)] for start in range(0, n - window + 1, step)]
    return _zeroed(found, sets, controls)


def _mlps(found: Found, doses: Any, window: int, controls: int) -> list[Condition]:
    """The MLPs of the best k layers, or of a window around the best one."""
    ranked = found.components()
    if window:
        centre = ranked[0]
        assert isinstance(centre, MLP)
        first = max(0, min(centre.layer - window // 2, found.subject.n_layers - window))
        return _zeroed(found, [[MLP(i) for i in range(first, first + window)]], controls)
    return _zeroed(found, [ranked[:k] for k in _sizes(doses, len(ranked), "cut mlps")], controls)


def _neurons(found: Found, doses: Any, controls: int) -> list[Condition]:
    """The best k neurons, for each dose k."""
    ranked = found.components()
    assert all(isinstance(part, Neuron) for part in ranked)
    sizes = _sizes(doses, len(ranked), "cut neurons")
    return _zeroed(found, [ranked[:k] for k in sizes], controls, avoid=ranked[: max(sizes)])


def _zeroed(found: Found, sets: Any, controls: int, avoid: Any = ()) -> list[Condition]:
    from interp.atlas_facts import plan_of

    data = (found.on or found.task).examples(found.subject)
    return plan_of(found.subject, sets, controls, data, found.seed, avoid)


def _channel_parts(found: Found, doses: Any, controls: int) -> list[Condition]:
    """The first k components that the retrieval heads read, deleted from what their heads write."""
    from interp.atlas_channels import Deletions, Part
    from interp.locate.channels.weights import Weights

    parts = []
    for name in found.ranking["component"]:
        head, _, number = str(name).rpartition(".")
        writer = component(head)
        assert isinstance(writer, Head)
        parts.append(Part(writer, int(number)))
    sizes = _sizes(doses, len(parts), "cut channels")
    return list(Deletions(Weights(found.subject)).plan(parts, sizes, controls, found.seed))


def _ablation(found: Found, mode: str, scope: str, reference: int) -> Any:
    from interp.intervene.ablate import NEEDS_REFERENCE, ablate
    from interp.intervene.reference import Reference

    where = Reference(found.on or found.task, n=reference) if mode in NEEDS_REFERENCE else None
    return ablate([], mode, scope, where, seed=found.seed)  # type: ignore[arg-type]


def _sizes(doses: Any, most: int, what: str) -> tuple[int, ...]:
    """Doses that a ranking has room for.

    Raises:
        UsageError: a dose is larger than the ranking, or no whole number above zero.
    """
    sizes = tuple(doses) if isinstance(doses, list | tuple) else (doses,)
    for k in sizes:
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= most:
            raise UsageError(f"{what}: a dose is {k!r}; take whole numbers from 1 to {most}")
    return sizes


CUTS: dict[str, CutKind] = {
    "heads": CutKind(
        "heads",
        _heads,
        {
            "doses": (1, 2, 5, 10, 20),
            "mode": "zero",
            "scope": "answer",
            "controls": 20,
            "match": "layer",
            "reference": 16,
        },
    ),
    "each_head": CutKind(
        "every head",
        _each,
        {"by": "head", "mode": "zero", "scope": "answer", "controls": 0, "reference": 16},
    ),
    "channels": CutKind("channels", _channel_parts, {"doses": (10, 50), "controls": 5}),
    "mlps": CutKind("mlps", _mlps, {"doses": (1, 3), "window": 0, "controls": 5}),
    "neurons": CutKind("neurons", _neurons, {"doses": (20, 100), "controls": 5}),
    "each_mlp": CutKind("every mlp", _each_mlp, {"window": 1, "step": 1, "controls": 0}),
}
"""Every cut by name."""
