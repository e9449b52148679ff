"""Order: which of two parts of a context came first, or last.

After SORT (Pink et al., arXiv 2410.08133): two segments of a text are shown under the letters A and B, and the model
says which one stood first. Nothing of a segment tells its place, so what is asked for is memory of order. `sentences`
takes consecutive sentences of our own prose and shows how two of them begin; `words` takes lists of things, and may ask
for the thing itself in place of a letter. Letters, marks (first or last) and distances are counterbalanced.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np

from interp.errors import UsageError
from interp.models.tokens import Tokens
from interp.tasks.base import Example, Piece, Redraw, Task, whole_number
from interp.tasks.compose import Asked, compose
from interp.tasks.haystack import Sentence, pieces, select
from interp.tasks.pairs import Alike, data, in_turn, joints

Form = Literal["sentences", "words"]
Answer = Literal["label", "word"]

LABELS = ("A", "B")
MOST_ITEMS = 24
MOST_SHOTS = 4
_SHORTEST_SEGMENT = 3
_SLACK = 2
"""Words that a segment may be longer or shorter than asked for, so that two have as many tokens."""

_TRIES = 40
_OPENING = "A:"
"""What stands before a segment in the question."""

Segments = dict[int, str]
"""Beginnings of a sentence by their number of tokens."""


@dataclass(frozen=True)
class Unit:
    """A member of the context: white space or a joint before it, what may be asked about, and the rest of it."""

    gap: str
    head: str
    tail: str = ""


@dataclass(frozen=True)
class Scene:
    """A context, and the places of the two units that are asked about, the earlier one first."""

    before: str
    units: tuple[Unit, ...]
    after: str
    at: tuple[int, int]
    done: str
    cluster: str

    def with_heads(self, heads: dict[int, str]) -> Scene:
        """The same context with other heads in some places."""
        units = tuple(replace(u, head=heads.get(i, u.head)) for i, u in enumerate(self.units))
        return replace(self, units=units)

    @property
    def text(self) -> str:
        """The context."""
        return self.before + "".join(u.gap + u.head + u.tail for u in self.units) + self.after


class Order(Task):
    """Which of two sentences, or of two things in a list, came first (or last)?

    The two are `evidence` in the context and `query` in the question, where they are as long as one another in tokens;
    item 0 is the right one. `order_mark` is the word first or last, `label` the letters. Twins: `query_swap` asks for
    the last in place of the first; `order_swap` exchanges the two in the question (where letters answer); in lists
    `context_swap` exchanges the two in the list, and `needle_drop` puts two other things in their places.

    Args:
        form: `sentences` of prose, or `words`: a list of things.
        answer: `label` (A or B), or with words `word`, the thing itself.
        items: sentences or things in the context, 2 to 24.
        segment: words of each segment of `sentences`, more or less two.
        haystack: prose of `sentences`: `all`, `train`, `test`, a piece, or several.
        shots: solved questions about other contexts in front, 0 to 4.
    """

    name = "order"
    source = "prose, lists and wordings written for this project; after SORT (arXiv 2410.08133)"

    def __init__(
        self,
        form: Form = "sentences",
        answer: Answer = "label",
        items: int = 8,
        segment: int = 8,
        haystack: str | Sequence[str] = "all",
        shots: int = 0,
        n: int = 64,
        seed: int = 0,
    ):
        for name, value, known in (("form", form, get_args(Form)), ("answer", answer, get_args(Answer))):
            if value not in known:
                raise UsageError(f"task order: {name} is {value!r}; take of {', '.join(known)}")
        if form == "sentences" and answer == "word":
            raise UsageError("task order: sentences are answered by a letter; take answer 'label'")
        self.form, self.answer = form, answer
        self.items = whole_number(self.name, "items", items, 2)
        self.segment = whole_number(self.name, "segment", segment, _SHORTEST_SEGMENT + _SLACK)
        self.shots = whole_number(self.name, "shots", shots, 0)
        if items > MOST_ITEMS or shots > MOST_SHOTS:
            raise UsageError(
                f"task order: {items} items and {shots} shots; take {MOST_ITEMS} and {MOST_SHOTS} at most"
            )
        self.copies = answer == "word"  # type: ignore[misc]
        self.pieces = select(haystack)
        super().__init__(
            n=n,
            seed=seed,
            form=form,
            answer=answer,
            items=items,
            segment=segment,
            haystack=haystack if isinstance(haystack, str) else list(self.pieces),
            shots=shots,
        )
        self._words: dict[str, Alike] = {}
        self._segments: dict[str, dict[str, Segments]] = {}

    def make(self, index: int, rng: np.random.Generator, tokens: Tokens) -> Example:
        gap = 1 + in_turn(index, self.items - 1, self.name, self.seed, "gap")
        asked, label = divmod(in_turn(index, 4, self.name, self.seed, "answer"), 2)
        scene, spare = self._scene(rng, tokens, gap, index)
        lead = ""
        for _ in range(self.shots):
            shown = self._other(rng, tokens, scene.text + lead)
            lead += self._solved(shown, int(rng.integers(2)), int(rng.integers(2)))

        def ask(scene: Scene, asked: int, label: int) -> Asked:
            return self._asked(scene, asked, label, lead)

        first, last = scene.at
        twins = {"query_swap": ask(scene, 1 - asked, 1 - label)}
        if self.answer == "label":
            twins["order_swap"] = ask(scene, asked, 1 - label)
        if self.form == "words":
            swapped = scene.with_heads({first: scene.units[last].head, last: scene.units[first].head})
            # The things change places in the list alone: in the question each stays where it was.
            twins["context_swap"] = ask(swapped, asked, 1 - label)
            dropped = scene.with_heads(dict(zip(scene.at, spare, strict=True)))
            twins["needle_drop"] = self._without(dropped, scene, asked, label, lead)
        example = compose(
            self.name,
            tokens,
            ask(scene, asked, label),
            twins,
            cluster=scene.cluster,
            copies=self.copies,
            meta={
                "form": self.form,
                "items": self.items,
                "gap": gap,
                "position": scene.at[asked] + 1,
                "asked": data("order")["marks"][asked],
                "label": LABELS[label],
                "shots": self.shots,
            },
        )
        right, other = (example.spans_of("evidence", item)[0] for item in (0, 1))
        meta = {
            "distance": len(example.ids) - 1 - right.start,
            "tokens_between": abs(right.start - other.start),
        }
        return replace(example, meta={**example.meta, **meta})

    def _scene(
        self, rng: np.random.Generator, tokens: Tokens, gap: int, index: int | None = None, avoid: str = ""
    ) -> tuple[Scene, list[str]]:
        """A context, and two other things of the same length for lists."""
        if self.form == "sentences":
            return self._prose(rng, tokens, gap, avoid), []
        names = list(data("order")["lists"])
        if index is None:
            template = str(rng.choice(names))
        else:
            template = names[in_turn(index, len(names), self.name, self.seed, "template")]
        return self._list(rng, tokens, gap, template, avoid)

    def _other(self, rng: np.random.Generator, tokens: Tokens, avoid: str) -> Scene:
        """A context that shares nothing with a text."""
        gap = int(rng.integers(1, self.items))
        return self._scene(rng, tokens, gap, avoid=avoid)[0]

    def _list(
        self, rng: np.random.Generator, tokens: Tokens, gap: int, template: str, avoid: str
    ) -> tuple[Scene, list[str]]:
        if tokens.fingerprint not in self._words:
            self._words[tokens.fingerprint] = Alike(tokens, "goods", 4, self.name)
        taken = set(re.findall(r"\w+", avoid))
        *pair, third, fourth = self._words[tokens.fingerprint].draw(rng, 4, taken)
        free = [w for w in data("words")["goods"] if w not in taken.union((*pair, third, fourth))]
        if len(free) < self.items - 2:
            raise UsageError(f"task order: {self.shots} shots of {self.items} things are more than there are")
        things = [str(w) for w in rng.permutation(free)[: self.items - 2]]
        first = int(rng.integers(self.items - gap))
        things.insert(first, pair[0])
        things.insert(first + gap, pair[1])
        units = [Unit(f"{joint} ", thing) for joint, thing in zip(joints(self.items), things, strict=True)]
        wording, done = data("order")["lists"][template]
        before, after = wording.format(name=rng.choice(data("words")["names"]), things="|").split(" |")
        scene = Scene(before, tuple(units), after, (first, first + gap), done, template)
        return scene, [third, fourth]

    def _prose(self, rng: np.random.Generator, tokens: Tokens, gap: int, avoid: str) -> Scene:
        for _ in range(_TRIES):
            piece = self.pieces[rng.integers(len(self.pieces))]
            whole = pieces()[piece]
            start = int(rng.integers(len(whole) - self.items + 1))
            taken = whole[start : start + self.items]
            text = " ".join(s.text for s in taken)
            if taken[0].text in avoid or taken[-1].text in avoid:
                continue
            pairs = self._pairs(tokens, taken, gap, text)
            if pairs:
                first, heads = pairs[rng.integers(len(pairs))]
                return _passage(taken, {first: heads[0], first + gap: heads[1]}, piece)
        raise Redraw(f"no two sentences {gap} apart begin with as many tokens")

    def _pairs(
        self, tokens: Tokens, taken: Sequence[Sentence], gap: int, text: str
    ) -> list[tuple[int, tuple[str, str]]]:
        """Sentences `gap` apart that may be asked about, by the place of the earlier one, with their segments."""
        out = []
        for i in range(len(taken) - gap):
            one, other = (self._beginnings(tokens, taken[k]) for k in (i, i + gap))
            both = [(one[size], other[size]) for size in one if size in other]
            if not both:
                continue
            best = min(both, key=lambda heads: sum(abs(len(h.split()) - self.segment) for h in heads))
            if all(text.count(head) == 1 for head in best):
                out.append((i, best))
        return out

    def _beginnings(self, tokens: Tokens, sentence: Sentence) -> Segments:
        """Beginnings of about `segment` words that end in a whole word, without the sentence's end."""
        known = self._segments.setdefault(tokens.fingerprint, {})
        if sentence.text not in known:
            encoded = tokens.encode(f"{_OPENING} {sentence.text}")
            stops, shift = [b for _, b in encoded.offsets], len(_OPENING) + 1
            found: Segments = {}
            for count, end in enumerate((m.start() for m in re.finditer(" ", sentence.text)), 1):
                if abs(count - self.segment) <= _SLACK and sentence.text[end - 1].isalnum():
                    at = bisect_left(stops, end + shift)
                    if stops[at] == end + shift:
                        found[at] = sentence.text[:end]
            known[sentence.text] = found
        return known[sentence.text]

    def _solved(self, scene: Scene, asked: int, label: int) -> str:
        shown = self._asked(scene, asked, label, "")
        return "".join(p.text for p in shown.pieces) + f" {shown.answer}\n\n"

    def _asked(self, scene: Scene, asked: int, label: int, lead: str) -> Asked:
        """The question for the first (0) or last (1) unit, which stands in place `label` of the question."""
        heads = [scene.units[i].head for i in scene.at]
        shown = (heads[asked ^ label], heads[asked ^ label ^ 1])
        context = _context(scene, asked, self.answer)
        pieces = (
            *([Piece(lead)] if lead else []),
            *context,
            *self._question(scene.done, shown, asked, label),
        )
        options = LABELS if self.answer == "label" else shown
        return Asked(pieces, options[label], options)

    def _without(self, dropped: Scene, scene: Scene, asked: int, label: int, lead: str) -> Asked:
        """The question about a scene, behind one that lacks the two units."""
        clean = self._asked(scene, asked, label, lead)
        n = len(_context(scene, asked, self.answer)) + bool(lead)
        front = [Piece(lead)] if lead else []
        context = _context(dropped, asked, self.answer)
        return replace(clean, pieces=(*front, *context, *clean.pieces[n:]))

    def _question(self, done: str, shown: tuple[str, str], asked: int, label: int) -> list[Piece]:
        """Question and stem. The wrong one has no part in `within`: the question goes on after both."""
        *lines, stem = data("order")[self.form][self.answer]
        mark = data("order")["marks"][asked]
        places = {" {a}": 0, " {b}": 1, "{A}": 0, "{B}": 1}
        out = [Piece("\n\n")]
        for part in re.split(r"( ?\{\w+\})", self._with_letters(lines).replace("{done}", done)):
            if part == " {mark}":
                out.append(Piece(f" {mark}", "order_mark", 0, "question"))
            elif part in places:
                item = int(places[part] != label)
                text, role = (f" {shown[places[part]]}", "query") if part[0] == " " else (part[1], "label")
                out.append(Piece(text, role, item, None if item else "question"))
            elif part:
                out.append(Piece(part, within="question", item=0))
        return [*out, Piece(f"\n{stem}")]

    def _with_letters(self, lines: Sequence[str]) -> str:
        if self.answer == "word":
            return lines[0]
        return f"{lines[0]}\n{{A}}: {{a}}\n{{B}}: {{b}}\n{lines[1]}"


def _passage(taken: Sequence[Sentence], heads: dict[int, str], cluster: str) -> Scene:
    """Sentences of prose as a scene; the two asked about are parted into segment and rest."""
    units = []
    for i, sentence in enumerate(taken):
        head = heads.get(i, "")
        units.append(Unit(sentence.gap(first=i == 0), head, sentence.text[len(head) :]))
    first, last = sorted(heads)
    return Scene("", tuple(units), "", (first, last), "", cluster)


def _context(scene: Scene, asked: int, answer: Answer) -> list[Piece]:
    """The context; item 0 is the unit that is asked for, item 1 the other one."""
    items = {scene.at[asked]: 0, scene.at[1 - asked]: 1}
    out = [Piece(scene.before)] if scene.before else []
    for i, unit in enumerate(scene.units):
        role: dict[str, Any] = {}
        if i in items:
            value = "distractor_value" if items[i] else "value"
            role = {"item": items[i], "within": "evidence", "role": value if answer == "word" else None}
        # A space belongs to the word after it.
        gap = unit.gap.removesuffix(" ")
        parts: list[tuple[str, dict[str, Any]]] = [
            (gap, {}),
            (unit.gap[len(gap) :] + unit.head, role),
            (unit.tail, {}),
        ]
        out += [Piece(text, **given) for text, given in parts if text]
    return [*out, Piece(scene.after)] if scene.after else out
