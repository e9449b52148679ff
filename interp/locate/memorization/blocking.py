"""Blocking units of a part's output, another set in each row, and dropping from a set what need not be blocked.

`Blocker` runs many sets of many prompts in one batch: a set is a mask on the batch axis. `refine` is the greedy search
of NeMo, which decides unit by unit, each under the decisions before it. It asks ahead: it guesses the next decisions,
asks for all states on that path at once, and keeps the answers up to the first guess that was wrong. So the result is
that of the sequential search, exactly.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float

from interp.measure.memorization.detection import Pushed, pushed
from interp.measure.memorization.similarity import Similarity

if TYPE_CHECKING:
    from interp.models.parts import Part, Pass
    from interp.models.pipeline import Pipeline, Step

Units = Bool[torch.Tensor, " units"]
"""Units of all parts, one part after the other; True where a unit is blocked."""

WIDEST = 64
"""Decisions that are asked for ahead, at most."""


@dataclass(frozen=True, eq=False)
class Ask:
    """One run: a prompt from a seed, with units blocked."""

    item: int
    seed: int
    blocked: Units | None


class Blocker:
    """Where prompts are pushed at one denoising step, with units blocked.

    Args:
        subject: the pipeline.
        parts: whose outputs are blocked; their units are numbered one part after the other.
        embeddings: of the prompts.
        steps: of the schedule. at: number of the step that is looked at; units are blocked at all steps
            up to it.
        of: what is compared, see `pushed`.
        similarity: of two of them.
        batch: rows of one pass.
    """

    def __init__(
        self,
        subject: Pipeline,
        parts: Sequence[Part],
        embeddings: Float[torch.Tensor, "p n d"],
        *,
        steps: int,
        at: int,
        of: Pushed,
        similarity: Similarity,
        batch: int,
    ):
        from interp.models.parts import weight_of

        self.subject = subject
        self.parts = tuple(parts)
        self.embeddings = embeddings
        self.steps = steps
        self.at = at
        self.of = of
        self.similarity = similarity
        self.batch = batch
        self.widths = [weight_of(subject, part).shape[0] for part in parts]
        self.n = sum(self.widths)
        self.clean: dict[tuple[int, int], torch.Tensor] = {}

    def differences(self, asked: Sequence[Ask]) -> Float[torch.Tensor, "r c h w"]:
        """Where each run is pushed; the conditional half alone."""
        from interp.models.parts import replacing

        free = torch.ones(len(asked), self.n)
        for row, ask in enumerate(asked):
            if ask.blocked is not None:
                free[row, ask.blocked] = 0
        free = free.to(self.subject.device, self.subject.dtype)
        out: dict[int, torch.Tensor] = {}

        def keep(step: Step) -> None:
            if step.index == self.at:
                found = pushed(self.subject, step, self.of).cpu()
                out.update(zip(step.items.tolist(), found, strict=True))

        split = dict(zip(self.parts, free.split(self.widths, 1), strict=True))
        changes = {part: _Rows(rows) for part, rows in split.items()}
        with replacing(self.subject, changes, outputs=True):
            self.subject.denoise(
                self.embeddings[[ask.item for ask in asked]],
                [ask.seed for ask in asked],
                steps=self.steps,
                stop=self.at + 1,
                guidance=1.0,
                both=False,
                each=keep,
                batch=self.batch,
            )
        return torch.stack([out[row] for row in range(len(asked))])

    def similar(self, asked: Sequence[Ask]) -> Float[torch.Tensor, " r"]:
        """Similarity of each run to the same one with nothing blocked."""
        whole = self.whole([(ask.item, ask.seed) for ask in asked])
        return self.similarity(whole, self.differences(asked))

    def whole(self, runs: Sequence[tuple[int, int]]) -> Float[torch.Tensor, "r c h w"]:
        """Where each prompt and seed is pushed with nothing blocked; each is run once."""
        new = list(dict.fromkeys(run for run in runs if run not in self.clean))
        if new:
            found = self.differences([Ask(item, seed, None) for item, seed in new])
            self.clean |= dict(zip(new, found, strict=True))
        return torch.stack([self.clean[run] for run in runs])


class _Rows:
    """Multiplies what a part gives, each run by its own row."""

    def __init__(self, rows: torch.Tensor):
        self.rows = rows

    def __call__(self, x: torch.Tensor, pass_: Pass) -> torch.Tensor:
        return x * self.rows[pass_.items.to(x.device)][:, None]


@dataclass(frozen=True, eq=False)
class Found:
    """A set of units of a prompt, and the similarity that is left at each of its seeds."""

    blocked: Units
    similarities: tuple[float, ...]

    @property
    def similarity(self) -> float:
        """The highest over the seeds."""
        return max(self.similarities)


Search = Generator[list[Ask], torch.Tensor, Found]
"""Asks for runs, is sent their similarities, and ends in what it found."""


def widen(
    item: int, seeds: Sequence[int], rungs: Sequence[Units], threshold: float, *, ahead: int = WIDEST
) -> Search:
    """The first set that leaves no seed above the threshold, or the last one where all do.

    Args:
        ahead: sets that are asked for at once, at most.
    """
    at, width, last = 0, 1, None
    while at < len(rungs):
        some = rungs[at : at + width]
        found = yield [Ask(item, seed, rung) for rung in some for seed in seeds]
        for rung, row in zip(some, found.view(len(some), -1).tolist(), strict=True):
            last = Found(rung, tuple(row))
            if last.similarity <= threshold:
                return last
        at, width = at + width, min(2 * width, ahead)
    assert last is not None
    return last


def refine(
    item: int,
    seeds: Sequence[int],
    start: Found,
    groups: Sequence[Sequence[int]],
    threshold: float,
    *,
    ahead: int = WIDEST,
) -> Search:
    """Unblock group after group wherever the similarity stays below the threshold at all seeds.

    Args:
        groups: units that are unblocked together, in the order in which they are tried.
        threshold: the similarity at and above which a group is blocked again.
        ahead: decisions that are asked for at once, at most; 1 is the sequential search.
    """
    state, now = start.blocked, start.similarities
    at, drop, width = 0, True, 1
    while at < len(groups):
        trials, trial = [], state
        for group in groups[at : at + width]:
            trial = (trial if drop else state).clone()
            trial[list(group)] = False
            trials.append(trial)
        # One seed that is too similar decides that a group stays blocked: ask the likeliest first.
        chosen = range(len(seeds)) if drop else (max(range(len(seeds)), key=lambda i: now[i]),)
        found = yield [Ask(item, seeds[i], trial) for trial in trials for i in chosen]
        width = min(2 * width, ahead)
        for trial, row in zip(trials, found.view(len(trials), -1).tolist(), strict=True):
            below = max(row) < threshold
            if below and len(row) < len(seeds):
                drop, width = True, 1  # the other seeds have to agree: ask again
                break
            at += 1
            if below:
                state, now = trial, tuple(row)
            if below != drop:
                drop, width = below, 1
                break
    return Found(state, now)


def drive(blocker: Blocker, searches: Sequence[Search]) -> list[Found]:
    """Run searches side by side: what all of them ask for is one batch."""
    done: dict[int, Found] = {}
    waiting: dict[int, list[Ask]] = {}

    def go(number: int, answer: torch.Tensor | None) -> None:
        waiting.pop(number, None)
        try:
            waiting[number] = next(searches[number]) if answer is None else searches[number].send(answer)
        except StopIteration as end:
            done[number] = end.value

    for number in range(len(searches)):
        go(number, None)
    while waiting:
        order = sorted(waiting)
        sizes = [len(waiting[number]) for number in order]
        found = blocker.similar([ask for number in order for ask in waiting[number]])
        for number, answer in zip(order, found.split(sizes), strict=True):
            go(number, answer)
    return [done[number] for number in range(len(searches))]
