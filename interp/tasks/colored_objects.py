"""Colored objects: several objects, each with a color, and a question for the color of one.

Protocol after Merullo et al. (arXiv 2310.08744; a task of BIG-bench before): one solved question in front, three
objects each, and a twin that differs in the object asked for. Scenes, objects and colors were written for this project
(`data/colored_objects.json`, `data/words.json`); no color starts with a vowel, so all take "a".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np

from interp.errors import UsageError
from interp.models.tokens import Tokens
from interp.tasks.base import Example, Piece, Redraw, Span, Task, assemble, whole_number
from interp.tasks.pairs import Alike, aligned, data, digest, in_turn, joints
from interp.tasks.recall import phrase, stands_once

MOST_OBJECTS = 4
MOST_SHOTS = 6

Things = Sequence[tuple[str, str]]
"""Colors and objects of a scene."""


class ColoredObjects(Task):
    """Which color does one of several objects have?

    Candidates are the colors of the objects in the scene that is asked about: to guess among them is to have found the
    scene, but not the object. The solved questions have other objects and other colors. Colors and objects are single
    tokens wherever the tokenizer has enough of them. The twin `query_swap` asks for another object, whose color is the
    foil.

    Args:
        shots: solved questions in front, 0 to 6.
        objects: objects in each scene, 2 to 4.
    """

    name = "colored_objects"
    source = "scenes written for this project; after Merullo et al. (arXiv 2310.08744)"
    copies: ClassVar[bool] = True

    def __init__(self, shots: int = 1, objects: int = 3, n: int = 64, seed: int = 0):
        self.shots = whole_number(self.name, "shots", shots, 0)
        self.objects = whole_number(self.name, "objects", objects, 2)
        if shots > MOST_SHOTS or objects > MOST_OBJECTS:
            raise UsageError(
                f"task colored_objects: {shots} shots of {objects} objects; "
                f"take {MOST_SHOTS} and {MOST_OBJECTS} at most"
            )
        super().__init__(n=n, seed=seed, shots=shots, objects=objects)
        self._words: dict[str, tuple[Alike, Alike]] = {}

    def make(self, index: int, rng: np.random.Generator, tokens: Tokens) -> Example:
        if tokens.fingerprint not in self._words:
            self._words[tokens.fingerprint] = (
                Alike(tokens, "colors", self.objects, self.name),
                Alike(tokens, "objects", self.objects, self.name),
            )
        colors, objects = self._words[tokens.fingerprint]
        templates = list(data("colored_objects")["templates"])
        template = templates[in_turn(index, len(templates), self.name, self.seed, "template")]
        asked = in_turn(index, self.objects, self.name, self.seed, "position")
        other = int(rng.choice([i for i in range(self.objects) if i != asked]))
        own_colors, own_objects = (words.draw(rng, self.objects) for words in (colors, objects))
        things = list(zip(own_colors, own_objects, strict=True))
        shown = _others(rng, own_colors, own_objects, self.shots)
        lead = "".join(self._solved(template, scene, int(rng.integers(self.objects))) for scene in shown)

        def ask(asked: int, foil: int) -> Example:
            return self._example(tokens, colors, template, lead, things, asked, foil)

        clean = ask(asked, other)
        stands_once(clean)
        return replace(clean, corrupt=aligned(clean, {"query_swap": ask(other, asked)}))

    def _solved(self, template: str, things: Things, asked: int) -> str:
        """A scene, a question and its answer."""
        text = "".join(p.text for p in _pieces(template, things, asked))
        return f"{text} {things[asked][0]}\n\n"

    def _example(
        self,
        tokens: Tokens,
        colors: Alike,
        template: str,
        lead: str,
        things: Things,
        asked: int,
        foil: int,
    ) -> Example:
        pieces = [*([Piece(lead)] if lead else []), *_pieces(template, things, asked)]
        color = things[asked][0]
        prompt, answer, spans, text = assemble(tokens, pieces, f" {color}")
        if answer != colors.ids[color]:
            raise Redraw("a color tokenises differently after the question")
        others = [colors.ids[c] for i, (c, _) in enumerate(things) if i != asked]
        return Example(
            task=self.name,
            ids=prompt.ids,
            answer_ids=answer,
            text=text,
            offsets=prompt.offsets,
            spans=tuple(sorted((*spans, Span(len(prompt) - 1, len(prompt), "end", 0)))),
            foil_ids=colors.ids[things[foil][0]],
            candidates=(answer, *others),
            chance=1 / len(things),
            cluster=template,
            group=digest(text[: text.rindex("\nQuestion:")]),
            meta={
                "template": template,
                "colors": [c for c, _ in things],
                "objects": [o for _, o in things],
                "position": asked + 1,
                "asked": things[asked][1],
                "shots": self.shots,
                "word_tokens": colors.size,
                "length": len(prompt),
            },
        )


def _others(
    rng: np.random.Generator, colors: Sequence[str], objects: Sequence[str], shots: int
) -> list[Things]:
    """Scenes of as many objects, without these colors and objects; each has its own objects."""
    words = data("words")
    free = [str(o) for o in rng.permutation([o for o in words["objects"] if o not in objects])]
    k = len(objects)
    out: list[Things] = []
    for i in range(shots):
        drawn = rng.permutation([c for c in words["colors"] if c not in colors])[:k]
        out.append(list(zip(map(str, drawn), free[i * k : (i + 1) * k], strict=True)))
    return out


def _pieces(template: str, things: Things, asked: int) -> list[Piece]:
    """Scene, question and the stem of the answer; item 0 is the object asked for."""
    scene, question = data("colored_objects")["templates"][template]
    before, after = scene.split(" {things}")
    numbers = {i: k for k, i in enumerate([asked, *(i for i in range(len(things)) if i != asked)])}
    out = [Piece(before)]
    for i, (joint, (color, thing)) in enumerate(zip(joints(len(things)), things, strict=True)):
        prefix, whole = ("distractor_", "distractor") if numbers[i] else ("", "evidence")
        out += [
            Piece(f"{joint} a"),
            Piece(f" {color}", f"{prefix}value", numbers[i], whole),
            Piece(f" {thing}", f"{prefix}key", numbers[i], whole),
        ]
    out += [Piece(f"{after}\n"), Piece("Question:", within="question", item=0)]
    out += phrase(f" {question}", {"object": (things[asked][1], "query")}, 0, within="question")
    return [*out, Piece("\nAnswer:")]
