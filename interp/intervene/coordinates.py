"""Edits of the coordinates in a subspace: set, scaled, shifted, swapped between prompts, or walked over a grid.

The coordinates of vectors x in a basis Q (rows) are c = x Q^T. An edit puts c' in their place and leaves what is
orthogonal to the basis as it is: x + (c' - c) Q. Scaling by 0 is `project_out`. Scaling some of the coordinates, or all
of them by different factors, depends on the basis and not on its span alone; it is part of the description.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int

from interp.errors import NoAcceptedExample, UsageError
from interp.intervene.base import Atom, Scope, scope_name
from interp.intervene.subspace import Subspace, change_coordinates, check_width
from interp.intervene.where import Where, covered
from interp.measure.metrics import score_at
from interp.models.batch import Batch, plan
from interp.models.engines.base import Frame, Record, Tap
from interp.models.sites import Site
from interp.models.subject import CausalLM
from interp.tasks.base import Example, Task

How = Literal["set", "shift", "scale"]
TOKENS = 1024
"""Padded tokens of the intact run that the points of a grid share."""


@dataclass(frozen=True, eq=False)
class Coordinates(Atom):
    """Coordinates c of a subspace become factor * c + offset.

    Attributes:
        space: the directions.
        factor, offset: of each direction.
        scope: `all`, `answer`, span roles or token positions.
        what: what it is called: `set`, `scale`, `shift`.
    """

    space: Subspace
    factor: tuple[float, ...]
    offset: tuple[float, ...]
    scope: Scope = "all"
    what: str = "set"

    def __post_init__(self) -> None:
        for name, values in (("factor", self.factor), ("offset", self.offset)):
            if len(values) != self.space.rank:
                raise UsageError(
                    f"{self.what} of coordinates in {self.space}: {len(values)} numbers as {name}, and it has "
                    f"{self.space.rank} directions"
                )
            if not np.isfinite(values).all():
                raise UsageError(f"{self.what} of coordinates in {self.space}: {name} {values} is not finite")

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "coordinates",
            "site": repr(self.space.site),
            "rank": self.space.rank,
            "basis": self.space.digest,
            "factor": list(self.factor),
            "offset": list(self.offset),
            "scope": scope_name(self.scope),
        }

    def __eq__(self, other: object) -> bool:
        return self.key() == other.key() if isinstance(other, Coordinates) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.key())

    def __repr__(self) -> str:
        numbers = [f"{f:g} * c{'' if o == 0 else f' + {o:g}'}" if f else f"{o:g}" for f, o in self._pairs()]
        return f"{self.what}({self.space}: {', '.join(numbers)}, scope={scope_name(self.scope)})"

    def _pairs(self) -> list[tuple[float, float]]:
        return list(zip(self.factor, self.offset, strict=True))

    def group(self) -> tuple[Any, ...]:
        return self.space, self.scope

    def touches(self, subject: CausalLM, batch: Batch) -> dict[Site, Bool[torch.Tensor, "b t"]]:
        return {self.space.tapped: batch.scope_columns(self.scope, 0, batch.width)}

    @classmethod
    def lower_group(
        cls,
        subject: CausalLM,
        batch: Batch,
        atoms: Sequence[tuple[int, Any]],
        of: Int[torch.Tensor, " b"],
        n: int,
    ) -> dict[Site, list[Tap]]:
        space, scope = atoms[0][1].space, atoms[0][1].scope
        check_width(subject, space)
        member = torch.zeros(n, dtype=torch.bool)
        factor = torch.ones(n, space.rank, dtype=torch.float64)
        offset = torch.zeros(n, space.rank, dtype=torch.float64)
        for number, atom in atoms:
            # Several of one condition are one: f' (f c + o) + o'.
            own, more = torch.tensor([atom.factor, atom.offset], dtype=torch.float64)
            member[number] = True
            factor[number] = own * factor[number]
            offset[number] = own * offset[number] + more
        rows = of.cpu()
        return {space.tapped: [_Affine(space, batch, member[rows], factor[rows], offset[rows], scope)]}


@dataclass(frozen=True)
class _Affine:
    """Factors and offsets of each row of a batch, and which rows have any."""

    space: Subspace
    batch: Batch
    rows: Bool[torch.Tensor, " b"]
    factor: Float[torch.Tensor, "b r"]
    offset: Float[torch.Tensor, "b r"]
    scope: Scope

    def edit(self, value: torch.Tensor, frame: Frame) -> torch.Tensor:
        mask = self.rows.to(self.batch.ids.device)[:, None] & covered(self.batch, self.scope, frame)
        row = mask.nonzero()[:, 0].cpu()

        def change(c: torch.Tensor) -> torch.Tensor:
            factor, offset = (t[row].to(c.device, c.dtype) for t in (self.factor, self.offset))
            # As a change, so that a factor of 1 leaves every bit.
            return (factor - 1) * c + offset

        return change_coordinates(self.space, value, mask.to(value.device), change)


@dataclass(frozen=True, eq=False)
class SwapCoordinates(Atom):
    """Coordinates of a subspace taken from tokens of another prompt.

    Attributes:
        space: the directions.
        source: the other prompt: an example, or a kind of corrupt twin of each example.
        scope: tokens that are edited.
        at: scope of the tokens that are read, in the source.
    """

    space: Subspace
    source: Example | str
    scope: Scope = "answer"
    at: Scope = "answer"
    _cache: dict[Any, Any] = field(default_factory=dict, repr=False)

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "swap_coordinates",
            "site": repr(self.space.site),
            "rank": self.space.rank,
            "basis": self.space.digest,
            "scope": scope_name(self.scope),
            "reference": self._name,
            "at": scope_name(self.at),
        }

    @property
    def _name(self) -> str:
        return f"twin:{self.source}" if isinstance(self.source, str) else f"example {self.source.key()}"

    def __eq__(self, other: object) -> bool:
        return self.key() == other.key() if isinstance(other, SwapCoordinates) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.key())

    def __repr__(self) -> str:
        return f"swap({self.space}, {self._name}, scope={scope_name(self.scope)}, at={scope_name(self.at)})"

    def group(self) -> tuple[Any, ...]:
        return self.space, self.scope, self.at

    def touches(self, subject: CausalLM, batch: Batch) -> dict[Site, Bool[torch.Tensor, "b t"]]:
        return {self.space.tapped: batch.scope_columns(self.scope, 0, batch.width)}

    @classmethod
    def lower_group(
        cls,
        subject: CausalLM,
        batch: Batch,
        atoms: Sequence[tuple[int, Any]],
        of: Int[torch.Tensor, " b"],
        n: int,
    ) -> dict[Site, list[Tap]]:
        space = atoms[0][1].space
        check_width(subject, space)
        taps: list[Tap] = []
        for number, atom in atoms:
            where = Where(batch, of, n, number, atom.scope)
            taps.append(
                _Swap(space, where, *atom._read(subject, batch, (of == number).nonzero()[:, 0].tolist()))
            )
        return {space.tapped: taps}

    def _read(
        self, subject: CausalLM, batch: Batch, rows: Sequence[int]
    ) -> tuple[Float[torch.Tensor, "b t r"], Bool[torch.Tensor, "b t"]]:
        """What each token of some rows is given, and which tokens are given anything."""
        if not batch.examples:
            raise UsageError(f"{self}: a swap needs examples, not bare ids")
        given = torch.zeros(len(batch), batch.width, self.space.rank)
        found = torch.zeros(len(batch), batch.width, dtype=torch.bool)
        mine = {row: self._of(batch.examples[row]) for row in rows}  # type: ignore[arg-type]
        values = self._coordinates(subject, list(mine.values()), batch.forced)
        for row, source in mine.items():
            one = batch.select(torch.tensor([row]))
            to = (one.scope_columns(self.scope, 0, one.width) & one.mask.bool())[0].nonzero()[:, 0].cpu()
            alone = Batch.of([source], forced=batch.forced)
            at = alone.scope_columns(self.at, 0, alone.width)[0].nonzero()[:, 0]
            if len(at) not in (1, len(to)):
                raise UsageError(
                    f"{self}: {len(to)} tokens are edited and {len(at)} are read; give scopes with as many tokens, or "
                    "one token to read"
                )
            given[row, to] = values[_fed(source, batch.forced)][at]
            found[row, to] = True
        return given, found

    def _of(self, example: Example) -> Example:
        """The prompt that an example's tokens are given from; of a twin with the example's own answer."""
        if not isinstance(self.source, str):
            return self.source
        if self.source not in example.corrupt:
            have = ", ".join(example.corrupt) or "none"
            raise UsageError(f"{example.task}: no corruption '{self.source}' to swap with; it has {have}")
        twin = example.corrupt[self.source]
        return replace(twin, answer_ids=example.answer_ids, spans=twin.spans or example.spans)

    def _coordinates(
        self, subject: CausalLM, sources: Sequence[Example], forced: bool
    ) -> dict[tuple[int, ...], Float[torch.Tensor, "t r"]]:
        """Coordinates of every token of the sources, in the intact model; few numbers, so all are kept."""
        now = subject.weights_hash
        missing = list(
            dict.fromkeys(ids for s in sources if (now, ids := _fed(s, forced)) not in self._cache)
        )
        for group in plan([len(ids) for ids in missing], TOKENS):
            rows = [missing[i] for i in group]
            batch = Batch.of_ids(rows, device=subject.device)
            before, subject._edits = subject._edits, ()
            try:
                found = subject.run(batch, {self.space.tapped: Record()}, keep=1)[self.space.tapped]
            finally:
                subject._edits = before
            head = self.space.site.index
            unit = found if head is None or self.space.tapped.index == head else found[:, :, head]
            coordinates = self.space.coordinates(unit.flatten(2)).float().cpu()
            for row, ids in enumerate(rows):
                self._cache[now, ids] = coordinates[row, batch.width - len(ids) :]
        return {(ids := _fed(s, forced)): self._cache[now, ids] for s in sources}


def _fed(example: Example, forced: bool) -> tuple[int, ...]:
    """The tokens that are run of an example."""
    return tuple(example.ids + (example.answer_ids[:-1] if forced else ()))


@dataclass(frozen=True)
class _Swap:
    space: Subspace
    where: Where
    given: Float[torch.Tensor, "b t r"]
    found: Bool[torch.Tensor, "b t"]

    def edit(self, value: torch.Tensor, frame: Frame) -> torch.Tensor:
        # Tokens that are generated behind the batch have no partner and stay.
        known = min(frame.past + frame.width, self.found.shape[1])
        here = torch.zeros(len(self.found), frame.width, dtype=torch.bool)
        here[:, : max(0, known - frame.past)] = self.found[:, frame.past : known]
        mask = here & self.where.mask(frame).cpu()
        row, column = mask.nonzero(as_tuple=True)
        given = self.given[row, column + frame.past]

        def change(c: torch.Tensor) -> torch.Tensor:
            return given.to(c.device, c.dtype) - c

        return change_coordinates(self.space, value, mask.to(value.device), change)


Numbers = float | Sequence[float] | np.ndarray | torch.Tensor


def _numbers(space: Subspace, values: Numbers) -> tuple[float, ...]:
    """One number for each direction; a single one stands for all."""
    found = np.atleast_1d(np.asarray(values, dtype=float))
    return tuple(found.tolist()) * (space.rank if found.shape == (1,) else 1)


def _scope(scope: str | Iterable[str | int]) -> Scope:
    return scope if isinstance(scope, str) else tuple(scope)


def set_coordinates(
    space: Subspace, values: Numbers, scope: str | Iterable[str | int] = "all"
) -> Coordinates:
    """Describe coordinates that are set.

    Args:
        space: the directions; coordinates are those of its basis.
        values: one number for each direction, or one for all; NaN leaves a coordinate as it is.
        scope: `all`, `answer`, span roles or token positions.

    >>> set_coordinates(Subspace.spanned("resid_post[3]", np.eye(4)[:2]), [1.5, float("nan")]).factor
    (0.0, 1.0)
    """
    wanted = _numbers(space, values)
    factor = tuple(float(np.isnan(v)) for v in wanted)
    return Coordinates(space, factor, tuple(0.0 if np.isnan(v) else v for v in wanted), _scope(scope), "set")


def scale_coordinates(
    space: Subspace, factor: Numbers, scope: str | Iterable[str | int] = "all"
) -> Coordinates:
    """Describe coordinates that are multiplied, each by its factor or all by one; see `set_coordinates`."""
    return Coordinates(space, _numbers(space, factor), (0.0,) * space.rank, _scope(scope), "scale")


def shift_coordinates(
    space: Subspace, offset: Numbers, scope: str | Iterable[str | int] = "all"
) -> Coordinates:
    """Describe coordinates that something is added to, each its own or all the same; see `set_coordinates`."""
    return Coordinates(space, (1.0,) * space.rank, _numbers(space, offset), _scope(scope), "shift")


def swap_coordinates(
    space: Subspace,
    source: Example | str,
    scope: str | Iterable[str | int] = "answer",
    at: str | Iterable[str | int] | None = None,
) -> SwapCoordinates:
    """Describe an interchange: coordinates come from the tokens of another prompt, in the intact model.

    The first token that is edited is given what the first token that is read has, and so on; where one token is read,
    all are given what it has.

    Args:
        space: the directions.
        source: an example, or the name of a corruption: each example's own twin.
        scope: tokens that are edited: `all`, `answer`, span roles or token positions.
        at: tokens that are read in the source; default those of `scope`.
    """
    where = _scope(scope)
    return SwapCoordinates(space, source, where, where if at is None else _scope(at))


_EDITS: dict[str, Callable[..., Coordinates]] = {
    "set": set_coordinates,
    "shift": shift_coordinates,
    "scale": scale_coordinates,
}


def traverse(
    subject: CausalLM,
    task: Task | Sequence[Example],
    space: Subspace,
    grid: Sequence[Sequence[float]],
    *,
    how: How = "set",
    scope: str | Iterable[str | int] = "answer",
    n: int | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> pd.DataFrame:
    """Walk the coordinates of a subspace over a grid, and see which candidate the model answers at each point.

    Args:
        task: a task or examples with candidates.
        space: of one to three directions.
        grid: for each direction the numbers that it takes; all their combinations are points.
        how: coordinates are `set` to a point, or it is added to them (`shift`), or multiplies them (`scale`).
        scope: tokens that are edited.
        n: use at most so many examples.
        progress: told about points done.

    Returns:
        one row an example, point and candidate: example, point (-1: not edited), c0 c1 c2 (as many as there are
        directions; NaN where not edited), candidate (its number among the example's), answer (whether it is right),
        logit (of the token that tells candidates apart), best (the highest of the candidates).

    Raises:
        UsageError: the grid does not fit the directions, or an example has no candidates.
        NoAcceptedExample: there is no example.
    """
    if how not in get_args(How):
        raise UsageError(f"traverse: how={how!r}; write one of {', '.join(get_args(How))}")
    if not 1 <= space.rank <= 3 or len(grid) != space.rank or not all(len(axis) for axis in grid):
        raise UsageError(
            f"traverse: {space} has {space.rank} directions and the grid {len(grid)}; take 1 to 3 and numbers for each"
        )
    examples = list(task.examples(subject) if isinstance(task, Task) else task)[:n]
    if not examples:
        raise NoAcceptedExample("there is no example to traverse a grid on")
    if alone := next((e for e in examples if len(e.candidates) < 2), None):
        raise UsageError(
            f"{alone.task}: an example has {len(alone.candidates)} candidates; a grid needs two or more"
        )
    points = list(product(*(map(float, axis) for axis in grid)))
    every = [None, *(_EDITS[how](space, point, scope) for point in points)]
    rows: list[pd.DataFrame] = []
    groups = plan([len(e.full_ids) for e in examples], TOKENS)
    for done, group in enumerate(groups):
        batch = subject.batch([examples[i] for i in group])
        for part, (number, logits) in enumerate(subject.each(every, batch), start=1):
            point = points[number - 1] if number else (float("nan"),) * space.rank
            coordinates = {f"c{k}": value for k, value in enumerate(point)}
            for row, i in enumerate(group):
                at = int(batch.answer_start[row]) + score_at(examples[i]) - (batch.width - batch.keep)
                found = _candidates(logits[row, at], examples[i])
                rows.append(found.assign(example=i, point=number - 1, **coordinates))
            if progress:
                progress(done * len(every) + part, len(groups) * len(every), "points")
    names = [
        "example",
        "point",
        *(f"c{k}" for k in range(space.rank)),
        "candidate",
        "answer",
        "logit",
        "best",
    ]
    frame = pd.concat(rows)[names]
    return frame.sort_values(["example", "point", "candidate"], kind="stable", ignore_index=True)


def _candidates(logits: Float[torch.Tensor, " v"], example: Example) -> pd.DataFrame:
    place = score_at(example)
    tokens = [c[place] for c in example.candidates]
    found = logits[tokens].float().cpu().numpy()
    return pd.DataFrame(
        {
            "candidate": range(len(tokens)),
            "answer": [t == example.answer_ids[place] for t in tokens],
            "logit": found,
            "best": np.arange(len(tokens)) == found.argmax(),
        }
    )
