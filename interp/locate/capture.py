"""What a pass over an example keeps of its attention, so that every score of heads can be told from it.

One pass reads all: the rows that predict the forced answer, and, where a score asks for them, the question's rows and
the last rows of the prompt. Of each row a few numbers a head are kept (the top keys, the attention on the needle, what
needle and context add to the answer's logit), never the row: `Watch` says what is read and `Capture` holds it.

    watch = Watch(model, examples, ("copy", "locos"))
    batch = model.batch(examples)
    trace = model.run(batch, watch.taps(batch), rows=watch.rows(batch))
    captures = watch.take(trace, batch)
    SCORES["locos"](captures[0])  # layers x heads

A batch is left-padded, or a single example behind a KV cache (`run(..., cache=cache, past=past)` with `past` at most
`watch.first[i]`); keys in the cache are keys like others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int

from interp.errors import UsageError
from interp.locate.options import Options, gold_tokens, needle_tokens, question_tokens
from interp.locate.readout import Readout
from interp.models.batch import Batch
from interp.models.engines.base import RowReducer, Rows, Tap, Trace
from interp.models.sites import Site
from interp.models.subject import CausalLM
from interp.tasks.base import Example
from interp.trace.reducers import FirstRows, Many, Mass, Shares, Spans, TopK, TopKeys

Prefix = Callable[[int], Any]
"""`prefix(n)`: a new KV cache of the first n tokens of an example."""


@dataclass
class Decoded:
    """What greedy decoding gave for one example.

    Attributes:
        output: the tokens emitted.
        argmax: for each emitted token, the position of the key that each head attends to most in the row that
            predicts it; step layer head.
        exact: the output is the forced answer.
        passes: forward passes spent on this example.
        tokens: tokens run in them.
        topk: positions of the most attended keys, highest first, where a score asks for them; step layer head k.
    """

    output: list[int]
    argmax: Int[torch.Tensor, "s l h"]
    exact: bool
    passes: int = 1
    tokens: int = 0
    topk: Int[torch.Tensor, "s l h k"] | None = None


@dataclass
class Capture:
    """What is kept of one example; arrays of what no score asked for are empty, and positions count from its start.

    Attributes:
        emitted: the output and its top keys; the forced answer's until decoding says otherwise.
        rows: groups of rows (`answer`, `question`, `window`) as indices into the rows of `needle` and `gold`.
        tops, top_values: the most attended keys of the answer's rows and their attention, highest first.
        needle, gold: attention of each row on the needle, and on the whole evidence.
        shares: what the `needle`'s keys, and `all` keys, add to the logit of the token that an answer row predicts.
        null: mean attention of a null question's rows on the evidence.
        recovery: what a head's clean output gives back of the answer's log-probability in the corrupt run, in nats.
        repeats: `induction` and `echo`, from random repeated tokens.
    """

    example: Example
    options: Options
    emitted: Decoded
    rows: dict[str, list[int]] = field(default_factory=dict)
    tops: Int[np.ndarray, "m l h k"] | None = None
    top_values: Float[np.ndarray, "m l h k"] | None = None
    needle: Float[np.ndarray, "r l h"] | None = None
    gold: Float[np.ndarray, "r l h"] | None = None
    shares: dict[str, Float[np.ndarray, "m l h"]] = field(default_factory=dict)
    null: Float[np.ndarray, "l h"] | None = None
    recovery: Float[np.ndarray, "l h"] | None = None
    repeats: dict[str, Float[np.ndarray, "l h"]] = field(default_factory=dict)

    @cached_property
    def places(self) -> list[int]:
        """Positions of the needle's tokens."""
        return needle_tokens(self.example, self.options)

    def on_needle(self, group: str) -> Float[np.ndarray, "r l h"]:
        """Attention on the needle of the rows of a group."""
        return _there(self.needle)[self.rows[group]]

    def on_gold(self, group: str) -> Float[np.ndarray, "r l h"]:
        """Attention on the evidence of the rows of a group."""
        return _there(self.gold)[self.rows[group]]

    @property
    def visible(self) -> Int[np.ndarray, " m"]:
        """Keys that each answer row may see: its own and all before it."""
        return np.array(self.example.answer_rows) + 1


def _there(array: np.ndarray | None) -> np.ndarray:
    if array is None:
        raise UsageError("this was not captured: name the score in Watch(..., scores)")
    return array


class Watch:
    """What is read in the pass that scores examples.

    Args:
        scores: names of scores, or `all`; see `interp.locate.scores.SCORES`.

    Attributes:
        first: for each example the first token position whose row is read; what lies before may come from a KV cache.
        cached: whether a score uses the KV cache of the pass again (it runs the context anew without one).

    Raises:
        UsageError: there is no such score, or an example lacks what it needs.
    """

    def __init__(
        self,
        subject: CausalLM,
        examples: Sequence[Example],
        scores: str | Iterable[str] = ("copy",),
        options: Options | None = None,
    ):
        from interp.locate.scores import chosen  # scores are made of captures

        self.subject = subject
        self.options = options or Options()
        self.scores = chosen(scores)
        self.needs = frozenset(need for score in self.scores for need in score.needs)
        self.extras = list(dict.fromkeys(s.extra for s in self.scores if s.extra is not None))
        self.cached = any(s.cached for s in self.scores)
        for example in examples:
            for score in self.scores:
                if score.check is not None:
                    score.check(subject, example, self.options)
        self.first = [min(p for own in self._places(e).values() for p in own) for e in examples]

    @cached_property
    def readout(self) -> Readout:
        """How shares of logits are read."""
        return Readout(self.subject, folded=self.options.unembed == "folded")

    def _places(self, example: Example) -> dict[str, list[int]]:
        """Positions of the rows that are read, by group."""
        out = {"answer": list(example.answer_rows)}
        if "question" in self.needs:
            out["question"] = question_tokens(example)
        if "window" in self.needs:
            n = len(example.ids)
            out["window"] = list(range(max(0, n - self.options.window), n))
        return out

    def _order(self, example: Example, m: int) -> list[int]:
        """Positions row by row: the answer's, filled up to `m` with -1, then the others."""
        places = self._places(example)
        answer = places.pop("answer")
        others = sorted({p for own in places.values() for p in own} - set(answer))
        return answer + [-1] * (m - len(answer)) + others

    def columns(self, batch: Batch) -> Int[torch.Tensor, "b r"]:
        """Columns of the rows that are read, -1 where an example has fewer."""
        examples = _examples(batch)
        m = max(len(e.answer_ids) for e in examples)
        orders = [self._order(e, m) for e in examples]
        out = torch.full((len(orders), max(map(len, orders))), -1)
        for row, (order, pad) in enumerate(zip(orders, batch.pad.tolist(), strict=True)):
            at = torch.tensor(order)
            out[row, : len(order)] = torch.where(at < 0, at, at + pad)
        return out.to(batch.ids.device)

    def rows(self, batch: Batch) -> Rows:
        """The request for attention rows."""
        examples = _examples(batch)
        m = max(len(e.answer_ids) for e in examples)
        answer: dict[str, RowReducer] = {"top": TopKeys()}
        if k := self._k(examples):
            answer["tops"] = TopK(k)
        if "shares" in self.needs:
            vectors = self.readout.vectors(_answers(examples, m))
            sets: dict[str, Spans | None] = {"needle": self._spans(batch, needle_tokens), "all": None}
            answer["shares"] = Shares(lambda layer: self.readout.directions(layer, vectors), sets)
        every: dict[str, RowReducer] = {"answer": FirstRows(m, Many(**answer))}
        if "needle" in self.needs:
            every["needle"] = Mass(self._spans(batch, needle_tokens))
        if "gold" in self.needs:
            every["gold"] = Mass(self._spans(batch, gold_tokens))
        return Rows(self.columns(batch), Many(**every))

    def taps(self, batch: Batch) -> dict[Site, Tap]:
        """What the pass records beside the rows: the scales of norms, where shares of logits are read."""
        if "shares" not in self.needs:
            return {}
        m = max(len(e.answer_ids) for e in _examples(batch))
        columns = self.columns(batch)[:, :m]
        return self.readout.taps(torch.where(columns < 0, batch.answer_start[:, None], columns))

    def take(self, trace: Trace, batch: Batch) -> list[Capture]:
        """The captures of a batch's examples, from a pass with `taps` and `rows`."""
        examples = _examples(batch)
        rows = _Stacked(trace)
        m = max(len(e.answer_ids) for e in examples)
        top = rows("answer", "top")
        keys = rows("answer", "tops", "columns") if self._k(examples) else None
        weights = rows("answer", "tops", "values") if self._k(examples) else None
        mass = {name: rows(name) for name in ("needle", "gold") if name in self.needs}
        shares: dict[str, torch.Tensor] = {}
        if "shares" in self.needs:
            scale = self.readout.scales(trace, (len(examples), m)).permute(1, 2, 0)[..., None]
            shares = {name: scale * found for name, found in rows("answer", "shares").items()}
        out = []
        for row, (example, pad) in enumerate(zip(examples, batch.pad.tolist(), strict=True)):
            n = len(example.answer_ids)
            emitted = Decoded(list(example.answer_ids), top[row, :n] - pad, True)
            capture = Capture(example, self.options, emitted, self._groups(example, m))
            if keys is not None and weights is not None:
                own = _positions(keys[row, :n], pad)
                capture.tops, capture.top_values = own.numpy(), weights[row, :n].numpy()
                if "topk" in self.needs:
                    emitted.topk = own[..., : self.options.k]
            for name, found in mass.items():
                setattr(capture, name, found[row].numpy())
            capture.shares = {name: found[row, :n].numpy() for name, found in shares.items()}
            out.append(capture)
        return out

    def more(self, capture: Capture, prefix: Prefix | None = None) -> None:
        """Run what scores need beside the one pass, and add it to the capture.

        Args:
            prefix: the KV cache of the pass, or what is known of it; see `prefix_of`.
        """
        for extra in self.extras:
            extra(self.subject, capture, prefix)

    # -- the rows of emitted tokens ----------------------------------------------------------------------------------

    def steps(self, columns: Int[torch.Tensor, "1 r"]) -> Rows:
        """The request for rows that predict emitted tokens."""
        if "topk" not in self.needs:
            return Rows(columns, TopKeys())
        return Rows(columns, Many(top=TopKeys(), tops=TopK(self.options.k)))

    def steps_of(
        self, trace: Trace
    ) -> tuple[Int[torch.Tensor, "s l h"], Int[torch.Tensor, "s l h k"] | None]:
        """The top key and the most attended keys of each of these rows, of a pass over a single example."""
        rows = _Stacked(trace)
        if "topk" not in self.needs:
            return rows()[0], None
        return rows("top")[0], rows("tops", "columns")[0]

    # -- parts -------------------------------------------------------------------------------------------------------

    def _k(self, examples: Sequence[Example]) -> int:
        """How many of the most attended keys are kept."""
        k = self.options.k if "topk" in self.needs else 0
        return (
            max([k, *(len(needle_tokens(e, self.options)) for e in examples)]) if "tops" in self.needs else k
        )

    def _spans(self, batch: Batch, which: Callable[[Example, Options], list[int]]) -> Spans:
        return [
            [(pad + p, pad + p + 1) for p in which(e, self.options)]
            for e, pad in zip(_examples(batch), batch.pad.tolist(), strict=True)
        ]

    def _groups(self, example: Example, m: int) -> dict[str, list[int]]:
        order = {p: i for i, p in enumerate(self._order(example, m))}
        return {name: [order[p] for p in own] for name, own in self._places(example).items()}


def prefix_of(cache: Any, row: int = 0, pad: int = 0) -> Prefix:
    """KV caches of the first tokens of one row of a batch that was run with `cache`."""

    def make(n: int) -> Any:
        from transformers import DynamicCache

        out = DynamicCache()
        for i, layer in enumerate(cache.layers):
            keys, values = (x[row : row + 1, :, pad : pad + n] for x in (layer.keys, layer.values))
            out.update(keys, values, i)
        return out

    return make


def _examples(batch: Batch) -> list[Example]:
    if not batch.examples:
        raise UsageError("a batch of bare ids has no answers to score; make it of examples")
    return [cast(Example, e) for e in batch.examples]


def _answers(examples: Sequence[Example], m: int) -> Int[torch.Tensor, "b m"]:
    return torch.tensor([[*e.answer_ids, *[e.answer_ids[0]] * (m - len(e.answer_ids))] for e in examples])


def _positions(columns: torch.Tensor, pad: int) -> torch.Tensor:
    return torch.where(columns < 0, columns, columns - pad)


class _Stacked:
    """Results of a reducer, layers put together: b r l h (k), on the CPU, one transfer each."""

    def __init__(self, trace: Trace):
        self.layers = [trace.rows[i] for i in sorted(trace.rows)]

    def __call__(self, *path: str) -> Any:
        found = self.layers
        for name in path:
            found = [layer[name] if isinstance(layer, dict) else getattr(layer, name) for layer in found]
        return {name: self(*path, name) for name in found[0]} if isinstance(found[0], dict) else _stack(found)


def _stack(found: Sequence[torch.Tensor]) -> torch.Tensor:
    """Layers that may lie on different devices, b h r (k) each, as b r l h (k)."""
    device = found[0].device
    whole = torch.stack([x.to(device) for x in found]).cpu()  # l b h r (k)
    return whole.permute(1, 3, 0, 2, *range(4, whole.ndim))
