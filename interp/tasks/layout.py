"""Needles laid out among sentences, the example that asks for one of them, and its corrupt twins.

A `Layout` is the whole prompt as data: which needles, between which sentences, and which one is asked for. Text, spans
and twins all follow from it, so that a twin is the same layout with one thing changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from interp.models.tokens import Encoded, Tokens
from interp.tasks.base import Example, Ids, Piece, Redraw, Span, answer_after, token_spans
from interp.tasks.haystack import Ruler, Sentence, Slot
from interp.tasks.needles import QUESTION, Template

SLACK = 2
"""Tokens that a prompt may fall short of the length asked for."""

_STAND_IN = "stand-in"
"""Source of the fillers that take the place of a dropped needle."""

_BREAK = "\n\n"


@dataclass(frozen=True)
class Needle:
    """A fact about a key."""

    template: Template
    key: str
    value: str

    @property
    def sentence(self) -> str:
        """The fact as text."""
        return self.template.sentence(self.key, self.value)

    @property
    def tail(self) -> str:
        """The end of a prompt that asks for the value, with the white space before it."""
        return "".join(p.text for p in self.template.ask(self.key))


@dataclass(frozen=True)
class Layout:
    """A prompt: needles (the one asked for comes first), and the slots of its context in order.

    Attributes:
        opens: numbers of the needles that open a paragraph; the text's first one may be named or not.
    """

    needles: tuple[Needle, ...]
    slots: tuple[Slot, ...] = ()
    opens: frozenset[int] = frozenset()

    def pieces(self) -> list[Piece]:
        """Context and question with their roles."""
        asked = self.needles[0]
        return [*(p for slot in self._slots() for p in slot), *asked.template.ask(asked.key)]

    def context(self) -> tuple[str, list[tuple[int, int]]]:
        """Text of the context, and the characters of each slot: from the space before it, or from its paragraph on."""
        text, ranges = "", []
        for slot in self._slots():
            start = len(text) + (len(slot[0].text) if slot[0].text == _BREAK else 0)
            text += "".join(p.text for p in slot)
            ranges.append((start, len(text)))
        return text, ranges

    def _slots(self) -> Iterator[list[Piece]]:
        for i, slot in enumerate(self.slots):
            opens = slot in self.opens if isinstance(slot, int) else slot.opens
            # White space that parts paragraphs is a piece of its own: it is there with a needle and without it.
            before, gap = ([Piece(_BREAK)], "") if i and opens else ([], " " if i else "")
            if isinstance(slot, int):
                needle = self.needles[slot]
                yield [*before, *needle.template.needle(needle.key, needle.value, slot, gap)]
            else:
                within = "filler" if slot.source == _STAND_IN else None
                yield [*before, Piece(gap + slot.text, within=within, item=0)]

    def text(self) -> str:
        """The prompt."""
        return "".join(p.text for p in self.pieces())

    def values(self) -> set[str]:
        """The values that stand in the prompt."""
        return {needle.value for needle in self.needles}

    def asking(self, item: int) -> Layout:
        """The same context with the question for another needle; the others keep their order behind it."""
        order = [item, *(i for i in range(len(self.needles)) if i != item)]
        number = {old: new for new, old in enumerate(order)}
        return Layout(
            tuple(self.needles[i] for i in order),
            tuple(number[s] if isinstance(s, int) else s for s in self.slots),
            frozenset(number[i] for i in self.opens),
        )

    def with_value(self, value: str) -> Layout:
        """The same prompt with another value in the needle asked for."""
        return replace(self, needles=(replace(self.needles[0], value=value), *self.needles[1:]))


def encode(tokens: Tokens, layout: Layout) -> tuple[Encoded, tuple[Span, ...], str]:
    """The prompt of a layout, its spans, and its text.

    Raises:
        Redraw: the tokenizer drops the text of a piece.
    """
    pieces = layout.pieces()
    text = "".join(p.text for p in pieces)
    prompt = tokens.encode(text)
    return prompt, token_spans(prompt, pieces), text


def follows(tokens: Tokens, prompt: Encoded, layout: Layout, answer: Ids) -> None:
    """Make sure that the value asked for tokenises behind the prompt as the answer does.

    Raises:
        Redraw: it does not.
    """
    if answer_after(tokens, prompt, layout.text(), " " + layout.needles[0].value) != answer:
        raise Redraw("the value tokenises differently after the stem and after the prompt")


def pose(
    name: str,
    layout: Layout,
    ruler: Ruler,
    candidates: Mapping[str, Ids],
    cluster: str,
    prompt: Encoded | None = None,
) -> Example:
    """The example of a layout; its twins, and whether the answer follows, are for the caller to see to.

    Args:
        name: of the task.
        candidates: texts and ids of the closed set of answers.
        cluster: unit of resampling.
        prompt: its tokens, where they are known.

    Raises:
        Redraw: the value tokenises differently in the context and as a candidate.
    """
    pieces = layout.pieces()
    text = "".join(p.text for p in pieces)
    prompt = prompt or ruler.tokens.encode(text)
    spans = token_spans(prompt, pieces)
    asked = layout.needles[0]
    answer = candidates[asked.value]
    foil = apart(asked.value, candidates, candidates)
    assert foil is not None, "where some part ways, one parts from the answer"
    body = text[: text.rindex(QUESTION)]
    context_tokens = sum(1 for a, _ in prompt.offsets if a < len(body)) - ruler.n_special
    used = [s.source for s in layout.slots if isinstance(s, Sentence) and s.source != "filler"]
    example = Example(
        task=name,
        ids=prompt.ids,
        answer_ids=answer,
        text=text,
        offsets=prompt.offsets,
        spans=spans,
        foil_ids=candidates[foil],
        candidates=(answer, *(ids for value, ids in candidates.items() if value != asked.value)),
        chance=1 / len(candidates),
        cluster=cluster,
        group=hashlib.sha256(body.encode()).hexdigest()[:16],
    )
    (evidence,) = example.spans_of("evidence", 0)
    (value,) = example.spans_of("value", 0)
    if prompt.ids[value.start : value.end] != answer:
        raise Redraw("the value tokenises differently in the context and as the answer")
    meta = {
        "kind": asked.template.kind,
        "template": asked.template.name,
        "key": asked.key,
        "value": asked.value,
        "haystack": list(dict.fromkeys(used)),
        "depth": (evidence.start - ruler.n_special) / (context_tokens - len(evidence)),
        "length": len(prompt),
        "distance": len(prompt) - 1 - value.start,
        "needles": len(layout.needles),
    }
    return replace(example, meta=meta)


def apart(own: str, candidates: Mapping[str, Ids], among: Iterable[str]) -> str | None:
    """The first of some candidates that differs from the answer where all of them part ways; None if none does."""
    at = next(i for i, column in enumerate(zip(*candidates.values(), strict=True)) if len(set(column)) > 1)
    return next((text for text in among if candidates[text][at] != candidates[own][at]), None)


def value_swap(tokens: Tokens, layout: Layout, example: Example, candidates: Mapping[str, Ids]) -> Example:
    """The needle holds a value that is nowhere in the clean prompt, and that value is the answer.

    Raises:
        Redraw: there is no such value of as many tokens.
    """
    present = layout.values()
    value = apart(layout.needles[0].value, candidates, [c for c in candidates if c not in present])
    if value is None:
        raise Redraw("no candidate outside the context starts differently from the answer")
    prompt, spans, text = encode(tokens, layout.with_value(value))
    (at,) = example.spans_of("value", 0)
    if spans != example.spans or prompt.ids[at.start : at.end] != candidates[value]:
        raise Redraw("the swapped value is not aligned")
    return twin(example, prompt, spans, text, candidates[value])


def needle_drop(layout: Layout, example: Example, ruler: Ruler, rng: np.random.Generator) -> Example:
    """Fillers of as many tokens stand where the needle stood; the answer stays, but nothing gives it away.

    Raises:
        Redraw: no fillers fit.
    """
    (evidence,) = example.spans_of("evidence", 0)
    present = {s.text for s in layout.slots if isinstance(s, Sentence)}
    at = layout.slots.index(0)
    opens = 0 in layout.opens
    gap = "\n\n" if at else ""
    for attempt in range(8):
        if opens:
            texts = ruler.fill(ruler.cost(layout.needles[0].sentence, gap), rng, present, gap)
        else:
            # Fillers are measured behind a space, which may be a token of its own and is not there in front of a text.
            texts = ruler.fill(len(evidence) + (attempt % 2 if at == 0 else 0), rng, present)
        if texts is None:
            continue
        stand_ins = [Sentence(text, _STAND_IN, opens and i == 0) for i, text in enumerate(texts)]
        dropped = replace(layout, slots=(*layout.slots[:at], *stand_ins, *layout.slots[at + 1 :]))
        prompt, spans, text = encode(ruler.tokens, dropped)
        same = prompt.ids[: evidence.start] + prompt.ids[evidence.end :]
        if (
            len(prompt) == len(example.ids)
            and same == example.ids[: evidence.start] + example.ids[evidence.end :]
        ):
            return replace(example, ids=prompt.ids, text=text, offsets=prompt.offsets, spans=spans, meta={})
    raise Redraw(f"no filler takes the place of a needle of {len(evidence)} tokens")


def twin(example: Example, prompt: Encoded, spans: tuple[Span, ...], text: str, answer: Ids) -> Example:
    """The example with another right answer among the same candidates; its foil is the clean answer."""
    return replace(
        example,
        ids=prompt.ids,
        answer_ids=answer,
        text=text,
        offsets=prompt.offsets,
        spans=spans,
        foil_ids=example.answer_ids,
        candidates=(answer, *(c for c in example.candidates if c != answer)),
        meta={},
    )
