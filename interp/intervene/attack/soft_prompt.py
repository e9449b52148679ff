"""Soft prompts: vectors before a sequence's prefix are searched until the model recites the rest.

Every sequence has prompts of its own, from several starts, and all are searched side by side. A prompt can also teach a
model what it never held, so the same search is run on sequences that it never saw, of equal length: what is elicited
counts only as far as it takes less work than those. `shared_prompt` closes that door: one prompt is learned on some
sequences and tried on others, of which it can know nothing.

Reciting is read off the forced suffix: greedy decoding gives all of it if and only if each of its tokens is the
likeliest one after those before it. So every step tells whether the prompt elicits, and no token is generated.
Source: soft prompts as Lester et al. 2021 (arXiv 2104.08691); one prompt that elicits memorized text as Ozdayi et al.
2023 (arXiv 2305.11759).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import pandas as pd
import torch
from jaxtyping import Bool, Float

from interp.errors import EngineError, UsageError
from interp.intervene.attack.search import Descent, descend, generator
from interp.models.batch import plan
from interp.models.cache import Progress, quiet
from interp.models.engines.base import Frame
from interp.models.sites import Site
from interp.models.subject import CausalLM
from interp.tasks.base import Example
from interp.tasks.memorized import TextItem

Start = Literal["tokens", "normal"]
STARTS: tuple[str, ...] = get_args(Start)


@dataclass(frozen=True)
class SoftPrompts:
    """How soft prompts are searched.

    Attributes:
        length: vectors of a prompt.
        steps: updates, at most.
        rate: Adam's learning rate, as a multiple of the size (root mean square) of a coordinate of the embeddings.
        start: `tokens`, embeddings of tokens drawn at random, or `normal`, noise of the embeddings' size.
        restarts: prompts searched for each sequence.

    Raises:
        UsageError: no such start, or numbers below the least.
    """

    length: int = 4
    steps: int = 100
    rate: float = 0.3
    start: Start = "tokens"
    restarts: int = 1

    def __post_init__(self) -> None:
        if self.start not in STARTS:
            raise UsageError(f"no start '{self.start}' of a soft prompt; write one of {', '.join(STARTS)}")
        if min(self.length, self.steps, self.restarts) < 1 or self.rate <= 0:
            raise UsageError("soft prompts need length, steps and restarts >= 1 and rate > 0")


@dataclass(frozen=True)
class Elicited:
    """What a search of soft prompts found.

    Attributes:
        table: one row for each sequence and restart: item, group, split, start, restart; `before` (1 where the bare
            prefix elicits the suffix), `extracted` (1 where prompt and prefix do), `steps` (updates until then, NaN
            where never), `work` (rows run forward and backward, until it was found or given up), `first` and `last`
            (nats a token before the search and at its end), `accuracy` (share of the suffix's tokens that are the
            likeliest, with those before forced), `recited` (share of the suffix before the first token that is wrong).
        prompts: the vectors of each row of the table.
    """

    table: pd.DataFrame
    prompts: Float[torch.Tensor, "rows k d"]


def soft_prompts(
    subject: CausalLM,
    items: Sequence[TextItem],
    search: SoftPrompts | None = None,
    *,
    seed: int = 0,
    tokens: int = 1024,
    stop: bool = True,
    progress: Progress = quiet,
) -> Elicited:
    """Search soft prompts that make a model recite sequences.

    Args:
        subject: the model as it is now, edits and interventions included.
        items: the sequences, those it never saw among them.
        seed: of the starts; those of an item depend on its name too, and on nothing else.
        tokens: padded tokens of a pass.
        stop: a search ends where it found a prompt; else all go on to their last step.

    Raises:
        UsageError: no items, or a prompt and a sequence longer than the context.
        EngineError: the engine keeps no graph, or a loss is not finite.
    """
    search = search or SoftPrompts()
    rows = _repeated(subject, items, search.restarts)
    size = _size(subject)
    starts = torch.stack(
        [
            _start(subject, search, size, generator("soft prompt", seed, item.name, restart))
            for item in items
            for restart in range(search.restarts)
        ]
    )
    goal = _Own(subject, rows, search.length, tokens)
    end = descend(
        starts,
        goal,
        rate=search.rate * size,
        steps=search.steps,
        stop=stop,
        progress=progress,
        what="soft prompts",
    )
    before = recited(subject, items, tokens=tokens)["extracted"].repeat(search.restarts).to_numpy()
    after = recited(subject, rows, end.at, tokens=tokens)
    table = pd.DataFrame(
        {
            "item": [item.name for item in rows],
            "group": [item.group for item in rows],
            "split": [item.split for item in rows],
            "start": search.start,
            "restart": [restart for _ in items for restart in range(search.restarts)],
            "before": before,
            **told(end),
            "accuracy": after["accuracy"],
            "recited": after["recited"],
        }
    )
    return Elicited(table, end.at)


def shared_prompt(
    subject: CausalLM,
    learn: Sequence[TextItem],
    items: Sequence[TextItem],
    search: SoftPrompts | None = None,
    *,
    seed: int = 0,
    tokens: int = 1024,
    progress: Progress = quiet,
) -> Elicited:
    """One prompt a restart, learned on all of `learn` together, and what it elicits of `items`.

    What it elicits of sequences that it was not learned on is in the model: the prompt cannot hold them. All steps are
    made; `work` counts the rows of all sequences it was learned on, `steps` and the losses are those of learning.

    Returns:
        a table as of `soft_prompts`, with one row for each of `items` and restart, and a column `learned`: 1 for those
        the prompt was learned on.
    """
    search = search or SoftPrompts()
    _repeated(subject, [*learn, *items], 1)
    if not learn or not items:
        raise UsageError("a shared prompt needs sequences to learn on, and sequences to try it on")
    size = _size(subject)
    starts = torch.stack(
        [
            _start(subject, search, size, generator("shared prompt", seed, restart))
            for restart in range(search.restarts)
        ]
    )
    goal = _Shared(subject, learn, search.length, tokens)
    end = descend(
        starts,
        goal,
        rate=search.rate * size,
        steps=search.steps,
        stop=False,
        progress=progress,
        what="shared prompts",
    )
    before = recited(subject, items, tokens=tokens)["extracted"]
    known = {item.ids for item in learn}
    parts = []
    for restart, prompt in enumerate(end.at):
        after = recited(subject, items, prompt.expand(len(items), -1, -1), tokens=tokens)
        parts.append(
            pd.DataFrame(
                {
                    "item": [item.name for item in items],
                    "group": [item.group for item in items],
                    "split": [item.split for item in items],
                    "start": search.start,
                    "restart": restart,
                    "before": before,
                    "extracted": after["extracted"],
                    "steps": float(end.steps[restart]),
                    "work": int(end.steps[restart]) * len(learn),
                    "first": float(end.first[restart]),
                    "last": float(end.last[restart]),
                    "accuracy": after["accuracy"],
                    "recited": after["recited"],
                    "learned": [float(item.ids in known) for item in items],
                }
            )
        )
    return Elicited(pd.concat(parts, ignore_index=True), end.at.repeat_interleave(len(items), 0))


def recited(
    subject: CausalLM,
    items: Sequence[TextItem],
    prompts: Float[torch.Tensor, "items k d"] | None = None,
    *,
    tokens: int = 1024,
) -> pd.DataFrame:
    """How much of each suffix a model recites after its prefix, behind a soft prompt each where they are given.

    Returns:
        item, `extracted` (1: greedy decoding gives the whole suffix), `nll` (nats a token), `accuracy`, `recited`; in
        the order of the items.
    """
    out: list[dict[str, Any]] = [{} for _ in items]
    length = 0 if prompts is None else prompts.shape[1]
    with torch.no_grad():
        for group in plan([length + len(item.ids) for item in items], tokens):
            chosen = [items[i] for i in group]
            nll, right = _forced(subject, chosen, None if prompts is None else prompts[group])
            for i, loss, hits in zip(group, nll.tolist(), right, strict=True):
                whole = len(items[i].suffix)
                hits = hits[:whole].float()
                out[i] = {
                    "item": items[i].name,
                    "extracted": float(hits.all()),
                    "nll": loss,
                    "accuracy": float(hits.mean()),
                    "recited": float(hits.cumprod(0).mean()),
                }
    return pd.DataFrame(out)


def told(end: Descent, rows: int = 1) -> dict[str, Any]:
    """What a table says of searches: `extracted`, `steps`, `work` (`rows` a step), `first`, `last`."""
    steps = end.steps.double()
    return {
        "extracted": end.found.double().numpy(),
        "steps": steps.where(end.found, torch.nan).numpy(),
        "work": (end.steps * rows).numpy(),
        "first": end.first.double().numpy(),
        "last": end.last.double().numpy(),
    }


# -- starts ----------------------------------------------------------------------------------------------------------


def _repeated(subject: CausalLM, items: Sequence[TextItem], restarts: int) -> list[TextItem]:
    if not items:
        raise UsageError("soft prompts need at least one sequence")
    if "grad" not in subject.engine.capabilities:
        raise EngineError(
            f"engine '{subject.engine.name}' cannot search soft prompts (no 'grad'); use 'hooks'"
        )
    return [item for item in items for _ in range(restarts)]


def _size(subject: CausalLM) -> float:
    """Root mean square of a coordinate of the embeddings, as they enter the model."""
    return float(_embeddings(subject, torch.arange(_vocabulary(subject))).square().mean().sqrt())


def _vocabulary(subject: CausalLM) -> int:
    return int(subject.hf.get_input_embeddings().num_embeddings)


def _embeddings(subject: CausalLM, ids: torch.Tensor) -> Float[torch.Tensor, "n d"]:
    # Asked of the module, as Gemma's scales what it looks up.
    with torch.no_grad():
        return subject.hf.get_input_embeddings()(ids.to(subject.device)).float()


def _start(
    subject: CausalLM, search: SoftPrompts, size: float, random: torch.Generator
) -> Float[torch.Tensor, "k d"]:
    if search.start == "normal":
        return (size * torch.randn(search.length, subject.d_model, generator=random)).to(subject.device)
    return _embeddings(subject, torch.randint(_vocabulary(subject), (search.length,), generator=random))


# -- objectives ------------------------------------------------------------------------------------------------------


class _Own:
    """Each start is a prompt of one sequence."""

    def __init__(self, subject: CausalLM, rows: Sequence[TextItem], length: int, tokens: int):
        self.subject, self.rows, self.tokens = subject, rows, tokens
        self.lengths = [length + len(item.ids) for item in rows]

    def groups(self, starts: Sequence[int]) -> list[list[int]]:
        parts = plan([self.lengths[i] for i in starts], self.tokens)
        return [[starts[i] for i in part] for part in parts]

    def __call__(
        self, starts: Sequence[int], at: torch.Tensor, step: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        nll, right = _forced(self.subject, [self.rows[i] for i in starts], at)
        return nll, right.all(1)


class _Shared:
    """Each start is one prompt of all sequences."""

    def __init__(self, subject: CausalLM, items: Sequence[TextItem], length: int, tokens: int):
        self.subject, self.items, self.length, self.tokens = subject, items, length, tokens

    def groups(self, starts: Sequence[int]) -> list[list[int]]:
        return [[i] for i in starts]

    def __call__(
        self, starts: Sequence[int], at: torch.Tensor, step: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        losses, all_right = [], True
        for part in plan([self.length + len(item.ids) for item in self.items], self.tokens):
            nll, right = _forced(self.subject, [self.items[i] for i in part], at.expand(len(part), -1, -1))
            losses.append(nll)
            all_right &= bool(right.all())
        return torch.cat(losses).mean()[None], torch.tensor([all_right])


def _forced(
    subject: CausalLM, items: Sequence[TextItem], prompts: Float[torch.Tensor, "b k d"] | None
) -> tuple[Float[torch.Tensor, " b"], Bool[torch.Tensor, "b m"]]:
    """Nats a token of each forced suffix, and which of its tokens are the likeliest; true behind its end."""
    k = 0 if prompts is None else prompts.shape[1]
    # The first columns hold the first token's id; the soft prompt takes the place of its embedding.
    examples = [
        Example("soft prompt", item.ids[:1] * k + item.ids[: item.prefix], item.suffix) for item in items
    ]
    batch = subject.batch(examples)
    taps: Any = {} if prompts is None else {Site("embed"): _Before(prompts)}
    logits = subject.run(batch, taps, keep=batch.keep, grad=torch.is_grad_enabled()).logits
    longest = max(len(item.suffix) for item in items)
    suffix = torch.tensor(
        [item.suffix + (-100,) * (longest - len(item.suffix)) for item in items], device=logits.device
    )
    first = batch.answer_start.to(logits.device) - (batch.width - logits.shape[1])
    columns = (first[:, None] + torch.arange(longest, device=logits.device)).clamp(max=logits.shape[1] - 1)
    rows = torch.arange(len(items), device=logits.device)[:, None]
    spoken = logits[rows, columns].float()
    nll = torch.nn.functional.cross_entropy(spoken.transpose(1, 2), suffix, reduction="none")
    counted = suffix >= 0
    return nll.sum(1) / counted.sum(1), (spoken.argmax(-1) == suffix) | ~counted


class _Before:
    """A soft prompt takes the first columns of each row."""

    def __init__(self, prompts: Float[torch.Tensor, "b k d"]):
        self.prompts = prompts

    def edit(self, value: torch.Tensor, frame: Frame) -> torch.Tensor:
        pad = frame.batch.pad.to(value.device)
        columns = pad[:, None] + torch.arange(self.prompts.shape[1], device=value.device)
        rows = torch.arange(len(value), device=value.device)[:, None]
        return value.index_put((rows, columns), self.prompts.to(value.device, value.dtype))
