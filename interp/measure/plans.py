"""Plans of conditions: a cut with its controls, the dose curve of a ranking, and the sufficient set.

A plan is a list of `Condition`s that `measure` runs beside the intact model, on one pass over the examples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from interp.errors import UsageError
from interp.intervene.ablate import Ablate
from interp.intervene.attention import SetAttention
from interp.intervene.reference import Reference
from interp.measure.controls import matched
from interp.models.sites import Component, Head
from interp.models.subject import CausalLM
from interp.tasks.base import Example, Task

Cut = Ablate | SetAttention
"""What conditions are made of: heads (or other parts) that are cut, or whose attention is set."""

CLEAN = "clean"
CONDITIONS = ("clean", "cut", "control", "keep", "keep_control")
"""What a row is about: the intact model; a cut and its controls; all heads cut but some, and but as many others."""


@dataclass(frozen=True)
class Condition:
    """One row of the plan: an intervention with what rows say about it.

    Attributes:
        condition: one of `CONDITIONS`.
        k: components cut, or heads kept.
        draw: number of a control set, else -1.
        n_distinct: control sets there are of its kind.
        control: kind of control, see `interp.measure.controls`; empty for what is no control.
        gap: how far the control set is from the chosen heads in what it is matched on, mean over heads.
        kept: heads that are kept where all others are cut.
    """

    intervention: Cut | None
    condition: Literal["clean", "cut", "control", "keep", "keep_control"]
    k: int = 0
    draw: int = -1
    n_distinct: int = 0
    control: str = ""
    gap: float = float("nan")
    kept: tuple[Component, ...] = ()

    @property
    def name(self) -> str:
        """Unique among the conditions of a measurement."""
        if self.intervention is None:
            return CLEAN
        draw = f" {self.control} draw {self.draw}" if self.draw >= 0 else ""
        return f"{self.condition} of {self.k}{draw} {self.intervention.key()}"


@dataclass(frozen=True)
class _Source:
    """What control sets are drawn from; `data` is measured once for all sizes."""

    subject: CausalLM
    n: int
    kinds: tuple[str, ...]
    data: Reference | None
    ranking: Any
    given: Any

    def of(
        self, chosen: Sequence[Component], seed: int, avoid: Sequence[Component]
    ) -> Iterator[tuple[str, int, int, tuple[Head, ...], float]]:
        """Kind, number, how many there are, heads and gap of each control set."""
        for kind in self.kinds if self.n and chosen else ():
            found = matched(
                self.subject,
                chosen,
                self.n,
                kind,
                seed=seed,
                avoid=avoid,
                data=self.data,
                ranking=self.ranking,
                given=self.given,
            )
            for draw, (heads, gap) in enumerate(zip(found, found.gaps, strict=True)):
                yield kind, draw, len(found), heads, gap


def _source(
    subject: CausalLM,
    controls: int,
    match: str | Sequence[str],
    data: Reference | Task | Sequence[Example] | None,
    ranking: Any,
    given: Any,
) -> _Source:
    kinds = (match,) if isinstance(match, str) else tuple(dict.fromkeys(match))
    if data is not None and not isinstance(data, Reference):
        data = Reference(data)
    return _Source(subject, controls, kinds, data, ranking, given)


def with_controls(
    subject: CausalLM,
    cut: Cut,
    *,
    controls: int,
    match: str | Sequence[str] = "layer",
    data: Reference | Task | Sequence[Example] | None = None,
    ranking: Any = None,
    given: Any = None,
    seed: int = 0,
    avoid: Sequence[Component] = (),
) -> list[Condition]:
    """A cut and its control draws.

    Args:
        controls: draws of each kind.
        match: one or more kinds of control.
        data, ranking, given, avoid: what the kinds need, see `interp.measure.controls.matched`.
    """
    return _with(cut, _source(subject, controls, match, data, ranking, given), seed, avoid)


def _with(cut: Cut, source: _Source, seed: int, avoid: Sequence[Component]) -> list[Condition]:
    k = len(cut.components)
    plan = [Condition(cut, "cut", k)]
    for kind, draw, n, heads, gap in source.of(cut.components, seed, avoid):
        plan.append(Condition(cut.with_components(heads), "control", k, draw, n, kind, gap))
    return plan


def dose(
    subject: CausalLM,
    ranked: Sequence[Component],
    sizes: Sequence[int],
    cut: Ablate,
    *,
    controls: int,
    match: str | Sequence[str] = "layer",
    data: Reference | Task | Sequence[Example] | None = None,
    ranking: Any = None,
    given: Any = None,
    seed: int = 0,
) -> list[Condition]:
    """Cuts of the first k of a ranking, for each k, each with controls that avoid the whole ranking in use.

    Args:
        ranked: components, best first.
        sizes: the ks.
        cut: mode, scope and reference of the cuts; its components do not matter.
        controls: draws of each kind, at each k.
        match: one or more kinds of control.
        data, ranking, given: what the kinds need, see `interp.measure.controls.matched`.
    """
    source = _source(subject, controls, match, data, ranking, given)
    longest = list(ranked[: max(sizes)])
    plan: list[Condition] = []
    for k in sizes:
        _check_size(k, ranked, "a dose")
        # Small doses leave room to avoid every ranked head; large ones must draw from what is left.
        plan += _with(cut.with_components(longest[:k]), source, seed + k, longest)
    return plan


def _check_size(k: int, ranked: Sequence[Component], what: str) -> None:
    if not 0 <= k <= len(ranked):
        raise UsageError(f"{what} of {k} components was asked for, but only {len(ranked)} are ranked")


def sufficient(
    subject: CausalLM,
    ranked: Sequence[Component],
    sizes: Sequence[int],
    cut: Ablate,
    *,
    controls: int,
    match: str | Sequence[str] = "layer",
    data: Reference | Task | Sequence[Example] | None = None,
    ranking: Any = None,
    given: Any = None,
    seed: int = 0,
) -> list[Condition]:
    """Cuts of all heads but the first k of a ranking, for each k: are these enough?

    It says most with `ablate([], "knockout", "answer")`: then the heads that are kept are the only ones that may see
    the needle, and all others do the rest of their work. Each k has controls that keep as many other heads, matched to
    the first k and, as far as the model has heads, none of the ranking in use. `smallest` reads the result.

    Args:
        ranked: heads, best first.
        sizes: the ks; 0 keeps none.
        cut: mode, scope and reference of the cuts; its components do not matter.
        controls: draws of each kind, at each k.
        match: one or more kinds of control.
        data, ranking, given: what the kinds need, see `interp.measure.controls.matched`.

    Raises:
        UsageError: something ranked is no head, or more are to be kept than are ranked.
    """
    if not all(isinstance(part, Head) for part in ranked):
        raise UsageError("a sufficient set is made of heads; rank heads only")
    source = _source(subject, controls, match, data, ranking, given)
    every = subject.heads()
    longest = list(ranked[: max(sizes)])
    plan: list[Condition] = []

    def but(kept: Sequence[Component]) -> Ablate:
        return cut.with_components(h for h in every if h not in set(kept))

    for k in sizes:
        _check_size(k, ranked, "a sufficient set")
        top = tuple(longest[:k])
        plan.append(Condition(but(top), "keep", k, kept=top))
        avoid = longest if len(every) - len(longest) >= k else top
        for kind, draw, n, heads, gap in source.of(top, seed + k, avoid):
            plan.append(Condition(but(heads), "keep_control", k, draw, n, kind, gap, heads))
    return plan


def named_reference(condition: Condition, default: Reference) -> Condition:
    """The condition, its cut's reference named where it needs one and has none."""
    cut = condition.intervention
    if not isinstance(cut, Ablate) or not cut.needs_reference:
        return condition
    return replace(condition, intervention=cut.with_reference(default))
