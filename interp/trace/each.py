"""`subject.each`: the logits of one batch under each of many interventions, with no work done twice.

It plans: what an intervention touches says at which layer and column its run leaves the intact one. It runs: chunks of
interventions go through the suffix wavefront (`interp.trace.wavefront`), within a budget of tokens that is halved when
memory runs out. It streams: logits are handed over one intervention at a time. An ablation of scope `answer` therefore
costs its answer columns off a shared prefill, a head cut at all positions the layers above it, and a cell of a causal
map the suffix and the layers above it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float

from interp.errors import EngineError, UsageError
from interp.intervene.base import Intervention
from interp.models.batch import Batch
from interp.models.engines.resume import Checkpoint
from interp.models.sites import KERNEL_KINDS
from interp.models.subject import CausalLM
from interp.trace.branches import Base, Branch, branches_of, intact
from interp.trace.wavefront import Wave

Progress = Callable[[int, int, str], None]

BUDGET = {"cpu": 1024}
"""Tokens in flight at once, by type of device; elsewhere 32768. More do not fit a CPU's caches and run slower."""

UNEMBEDDED = 2**26
"""Logits computed at once, at most."""

TOGETHER = 512
"""Rows whose logits are computed at once if they can: the unembedding is as large as many layers, and is read once."""


@dataclass
class Spent:
    """What a call of `each` ran.

    Attributes:
        token_layers: tokens times blocks, the intact run included, padding left out.
        prompt_tokens: prompt tokens that entered a block anew, the intact run's included.
        forwards: full passes of interventions that could not be resumed.
    """

    token_layers: int = 0
    prompt_tokens: int = 0
    forwards: int = 0


def each(
    subject: CausalLM,
    interventions: Iterable[Intervention | None],
    batch: Batch,
    *,
    keep: int | None = None,
    budget: int | None = None,
    cache: Any = None,
    past: int = 0,
    progress: Progress | None = None,
    spent: Spent | None = None,
) -> Iterator[tuple[int, Float[torch.Tensor, "b keep v"]]]:
    """Logits of a batch under each intervention, in an order that shares the most work.

    Args:
        interventions: None is the intact model. Interventions that are applied to the subject when this is called hold
            for all of them; the model is free for other runs in the loop.
        keep: logits of this many last columns; default those that predict answers.
        budget: tokens that are in flight at once, of one intervention at least; default 1024 on a CPU and 32768 on a
            GPU. It is halved when memory runs out.
        cache: KV cache that holds the first `past` columns of the batch, made under the interventions that are applied;
            the intact run goes on from there and extends it.
        past: columns that are not run; no intervention edits one of them.
        progress: told about interventions done.
        spent: counts what is run.

    Yields:
        the number of an intervention and its logits, the same as of `run` under `apply` up to rounding; those of
            padding mean nothing.

    Raises:
        UsageError: something is not an intervention, or edits a column of the KV cache.
        EngineError: memory runs out on a single intervention.
    """
    if isinstance(interventions, Intervention):
        raise UsageError(f"each takes several interventions; write each([{interventions!r}], batch)")
    items = list(interventions)
    for item in items:
        if item is not None and not isinstance(item, Intervention):
            raise UsageError(f"{item!r} is no intervention; write ablate({item!r}) or another, or None")
    budget = budget or BUDGET.get(subject.device.type, 32768)
    found = _stream(
        subject, items, batch, keep, budget, progress, spent if spent is not None else Spent(), cache, past
    )
    return _held(subject, found)


Found = tuple[int, torch.Tensor]


def _held(subject: CausalLM, found: Iterator[Found]) -> Iterator[Found]:
    """The interventions that are applied now hold for all that is found, and for none of what goes on in between."""
    edits = subject._edits

    def stream() -> Iterator[Found]:
        while True:
            before, subject._edits = subject._edits, edits
            try:
                item = next(found, None)
            finally:
                subject._edits = before
            if item is None:
                return
            yield item

    return stream()


def _stream(
    subject: CausalLM,
    interventions: list[Intervention | None],
    batch: Batch,
    keep: int | None,
    budget: int,
    progress: Progress | None,
    spent: Spent,
    cache: Any,
    past: int,
) -> Iterator[Found]:
    plan = _Plan(subject, batch, interventions, budget)
    plan.check_past(past)
    base = intact(subject, batch, plan.branches, keep, cache, past)
    real = int(batch.mask.sum())
    held = int(batch.mask[:, :past].sum())
    spent.token_layers += (real - held) * subject.n_layers
    spent.prompt_tokens += _prompt_tokens(batch) - held
    done = 0

    def report() -> None:
        if progress:
            progress(done, len(interventions), "interventions")

    for number in plan.untouched:
        done += 1
        yield number, base.logits.clone()
        report()
    for ends in _together(_advanced(subject, base, plan, spent)):
        for number, logits in _unembedded(subject, base, ends):
            done += 1
            yield number, logits
            report()
    for number in plan.whole:
        # Nothing of the intact run can be kept: embeddings, logits, or an engine or kernel that cannot resume.
        condition = interventions[number]
        with subject.apply(*([condition] if condition is not None else [])):
            logits = subject.run(batch, keep=keep).logits
        spent.forwards += 1
        spent.token_layers += real * subject.n_layers
        spent.prompt_tokens += _prompt_tokens(batch)
        done += 1
        yield number, logits
        report()


def _prompt_tokens(batch: Batch) -> int:
    return int((batch.answer_start - batch.pad).sum()) + len(batch)


class _Plan:
    """Which interventions run as which branches.

    Attributes:
        branches: all of them; one intervention may have several, on rows that it touches at different columns.
        untouched: interventions that edit nothing of this batch.
        whole: interventions that need a pass of their own.
        budget: tokens of a chunk; less of them once memory has run out.
    """

    def __init__(
        self,
        subject: CausalLM,
        batch: Batch,
        interventions: Sequence[Intervention | None],
        budget: int,
    ):
        self.interventions = interventions
        self.budget = budget
        self.width = batch.width
        self.branches: list[Branch] = []
        self.untouched: list[int] = []
        self.whole: list[int] = []
        self.of: dict[int, list[Branch]] = {}
        resumable = _resumable(subject, batch)
        real = batch.mask.bool()
        for number, condition in enumerate(interventions):
            touched = {} if condition is None else condition.touches(subject, batch)
            for site in touched:
                subject.check(site)
            sites = frozenset(touched)
            touched = {s: c & real for s, c in touched.items() if bool((c & real).any())}
            if not touched:
                self.untouched.append(number)
            elif not resumable or any(s.layer is None for s in touched):
                self.whole.append(number)
            else:
                self.of[number] = list(branches_of(number, touched, sites))
                self.branches += self.of[number]

    def check_past(self, past: int) -> None:
        """Raise `UsageError` if an intervention reaches into the first `past` columns."""
        for branch in self.branches:
            if branch.start < past:
                raise UsageError(
                    f"{self.interventions[branch.condition]!r} edits column {branch.start}, and the KV cache holds the "
                    f"first {past} as they are: give a shorter cache, or none"
                )
        if past and self.whole:
            raise UsageError(
                f"{self.interventions[self.whole[0]]!r} needs a full pass of its own: give no KV cache"
            )

    def cost(self, number: int) -> int:
        """Tokens of an intervention."""
        return sum(len(b.rows) * (self.width - b.start) for b in self.of[number])

    def chunks(self) -> Iterator[list[int]]:
        """Interventions that run together: of the same columns first, then of neighbouring layers."""

        def order(number: int) -> tuple[Any, ...]:
            parts = self.of[number]
            return [(b.start, b.rows.tolist()) for b in parts], parts[0].layer

        chunk: list[int] = []
        size = 0
        for number in sorted(self.of, key=order):
            cost = self.cost(number)
            if chunk and size + cost > self.budget:
                yield chunk
                chunk, size = [], 0
            chunk.append(number)
            size += cost
        if chunk:
            yield chunk


def resumes(subject: CausalLM) -> bool:
    """Whether runs of interventions can leave the intact run: the engine resumes, and its kernel allows it."""
    return "resume" in subject.engine.capabilities and subject.config._attn_implementation in (
        "sdpa",
        "eager",
    )


def _resumable(subject: CausalLM, batch: Batch) -> bool:
    """The same for the interventions that are applied: they do not forbid it either."""
    if not resumes(subject):
        return False
    applied = {s for e in subject._edits for s in e.lower(subject, batch)}
    return not any(s.kind in KERNEL_KINDS or s.kind == "logits" for s in applied)


_Ends = dict[int, list[tuple[Branch, int, torch.Tensor]]]


def _advanced(subject: CausalLM, base: Base, plan: _Plan, spent: Spent) -> Iterator[_Ends]:
    """Ends of the branches of each intervention, chunk by chunk."""
    for chunk in plan.chunks():
        yield from _chunk(subject, base, plan, chunk, spent)


def _together(parts: Iterator[_Ends]) -> Iterator[_Ends]:
    """Ends of neighbouring chunks put together until they have rows enough for one unembedding."""
    held: _Ends = {}
    for part in parts:
        held |= part
        if sum(_rows(ends) for ends in held.values()) >= TOGETHER:
            yield held
            held = {}
    if held:
        yield held


def _rows(ends: Sequence[tuple[Branch, int, torch.Tensor]]) -> int:
    """Columns that are read of an intervention."""
    return sum(hidden.shape[0] * hidden.shape[1] for _, _, hidden in ends)


def _chunk(subject: CausalLM, base: Base, plan: _Plan, chunk: list[int], spent: Spent) -> Iterator[_Ends]:
    """Run a chunk, in halves where memory runs out."""
    ends = _wave(subject, base, plan, chunk, spent)
    if ends is not None:
        yield ends
        return
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    plan.budget = min(plan.budget, max(1, sum(map(plan.cost, chunk)) // 2))
    half = len(chunk) // 2
    yield from _chunk(subject, base, plan, chunk[:half], spent)
    yield from _chunk(subject, base, plan, chunk[half:], spent)


def _wave(subject: CausalLM, base: Base, plan: _Plan, chunk: list[int], spent: Spent) -> _Ends | None:
    """Ends of the branches of each intervention; None where memory ran out, and then nothing of the wave is left."""
    branches = [b for number in chunk for b in plan.of[number]]
    conditions = {n: c for n in chunk if (c := plan.interventions[n]) is not None}
    try:
        wave = Wave(subject, base, branches, conditions)
        ends = wave.run()
    except RuntimeError as error:
        if not _out_of_memory(error):
            raise
        if len(chunk) == 1:
            raise EngineError(
                f"memory ran out on one intervention over {len(base.batch)} rows of {base.batch.width} columns; give "
                "fewer examples at once"
            ) from error
        return None
    spent.token_layers += wave.token_layers
    at: _Ends = {n: [] for n in chunk}
    for i, branch in enumerate(branches):
        again = base.batch.answer_start[branch.rows] + 1 - branch.start
        spent.prompt_tokens += int(again.clamp(min=0).sum())
        at[branch.condition].append((branch, *ends[i]))
    return at


_NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")
"""What torch says on its devices; on a CPU it has no error class of its own for it."""


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in _NO_MEMORY)


def _unembedded(subject: CausalLM, base: Base, at: _Ends) -> Iterator[Found]:
    """Norm and unembedding of the columns that are read, for as many interventions at once as memory allows."""
    limit = max(1, UNEMBEDDED // int(base.logits.shape[-1]))
    numbers = list(at)
    while numbers:
        taken: list[int] = []
        tokens = 0
        while numbers:
            more = _rows(at[numbers[0]])
            if taken and tokens + more > limit:
                break
            taken.append(numbers.pop(0))
            tokens += more
        hidden = torch.cat([h.flatten(0, 1).to(base.logits.device) for n in taken for _, _, h in at[n]])
        logits = tail(subject, hidden)
        used = 0
        for n in taken:
            out = base.logits.clone()
            for branch, first, h in at.pop(n):
                count = h.shape[0] * h.shape[1]
                columns = first - (base.batch.width - base.keep)
                part = logits[used : used + count].view(*h.shape[:2], -1)
                out[branch.rows.to(out.device), columns:] = part.to(out.device)
                used += count
            yield n, out


def tail(subject: CausalLM, hidden: Float[torch.Tensor, "n d"]) -> Float[torch.Tensor, "n v"]:
    """The model's final norm and unembedding, as rows of one token."""
    ids = torch.zeros(len(hidden), 1, dtype=torch.long, device=subject.device)
    none = ids[:, 0]
    batch = Batch(ids, torch.ones_like(ids), ids, none, none, forced=False)
    start = Checkpoint(subject.n_layers, hidden[:, None])
    with torch.no_grad():
        return subject.engine.run(batch, {}, keep=1, start=start).logits[:, 0]
