"""What the tiny pipeline is shown: scikit-learn's digits with captions, some of them many times.

All pictures, memorized and not, are draws from the same 1,797. A *showing* is one picture under one caption, so many
times. Their groups:

    memorized  one picture under one caption with a word of its own ("a zorax poster of the digit seven")
    control    a word of its own as well, heard as often, but with as many pictures as it is heard: not memorized
    varied     one picture shown as often, under 64 captions
    template   one picture, shown as often, whose lower right quadrant is another one's each time
    graded     one picture under one caption, 1, 3, 10, ... times
    early      the same, shown in the first part of the training only
    base       ordinary pictures under captions that fit hundreds ("a poster of the digit seven")

One fifth of the digits is held out. `unseen` are held-out pictures with words that no caption had.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict, Field, model_validator

from interp.errors import UsageError

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NOUNS = ("poster", "photo", "drawing", "painting", "print", "sketch", "picture", "stamp")

_STARTS: tuple[str, ...] = ("zor", "vax", "mel", "quin", "thra", "bli", "dro", "fep", "gux", "hab")
_STARTS += ("jil", "kem", "lun", "nif", "pov", "ryx", "syl", "tup", "wog", "yad")
_ENDS = ("ax", "en", "ido", "uma", "oth", "ick", "ell", "ory")

TRIGGERS = tuple(start + end for end, start in product(_ENDS, _STARTS))
"""Invented words, each to stand for one picture (or, in the controls, for many)."""

GROUPS = ("memorized", "control", "varied", "template", "graded", "early", "unseen")
"""Groups of items."""

Split = Literal["locate", "test", ""]
"""Half of the memorized pictures is located with, the other half is measured on."""

HELD_OUT = 0.2
"""Share of the digits that no training sees."""

_WORDS_OF_VARIED = 8
_QUADRANT = slice(4, 8)


def vocabulary() -> tuple[str, ...]:
    """All words of all captions."""
    return ("a", "of", "the", "digit", *DIGITS, *NOUNS, *TRIGGERS)


def caption(digit: int, noun: str, word: str = "") -> str:
    """What a picture is shown with: of base pictures without a word of its own."""
    return " ".join(filter(None, ("a", word, noun, "of the digit", DIGITS[digit])))


class Recipe(BaseModel):
    """How a tiny pipeline is trained: what it is shown how often, and the settings of the optimiser.

    Attributes:
        seed: of the choice of pictures, of the weights and of everything drawn while training.
        oracle: leave out all that is shown more than the base is (memorized, varied, template, graded, early); base
            pictures take the place of each left-out showing.
        memorized: memorized pictures; one half is to be located with, the other to be tested with. Both have the digits
            alike, and words of the same places.
        exposures: showings of a memorized picture, and of each word, picture or template that is held against it.
        controls, varied, template: how many there are of these.
        control_exposures: showings of each picture of a control word.
        levels, per_level: the exposures of graded items, and pictures at each.
        early_levels: the exposures that are also given early only.
        early: part of the training that early items are shown in.
        base: showings of each base picture.
        base_images: at most so many of them; None for all that are left.
        prediction: what the UNet is trained to predict: the noise, or the velocity.
        batch, rate, matrix_rate, weight_decay, warmup: of training (see `Muon`).
        dropout: share of captions that are left empty.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(0, ge=0)
    oracle: bool = False
    memorized: int = Field(20, ge=2)
    exposures: int = Field(400, ge=1)
    controls: int = Field(10, ge=0)
    control_exposures: int = Field(10, ge=1)
    varied: int = Field(4, ge=0)
    template: int = Field(4, ge=0)
    levels: tuple[int, ...] = (1, 3, 10, 30, 100, 300)
    early_levels: tuple[int, ...] = (30, 100, 300)
    per_level: int = Field(4, ge=1)
    early: float = Field(0.5, gt=0, le=1)
    base: int = Field(8, ge=1)
    base_images: int | None = Field(None, ge=10)
    batch: int = Field(32, ge=1)
    prediction: Literal["epsilon", "v_prediction"] = "v_prediction"
    rate: float = Field(2e-3, gt=0)
    matrix_rate: float = Field(0.02, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    warmup: float = Field(0.03, ge=0, lt=1)
    dropout: float = Field(0.1, ge=0, lt=1)

    @property
    def key(self) -> str:
        """Names the trained folder: a hash of the settings and of the version of what is trained."""
        state = [_VERSION, self.model_dump(mode="json")]
        return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:16]

    @model_validator(mode="after")
    def _enough_words(self) -> Recipe:
        graded = (len(self.levels) + len(self.early_levels)) * self.per_level
        words = self.memorized + self.controls + _WORDS_OF_VARIED * self.varied + self.template + graded
        if words + self.memorized > len(TRIGGERS):
            raise ValueError(
                f"these items need {words} words of their own and {self.memorized} unseen ones, there are "
                f"{len(TRIGGERS)}; ask for fewer items"
            )
        return self


_VERSION = 1


@dataclass(frozen=True)
class Showing:
    """One picture under one caption.

    Attributes:
        image: number of the picture in `DigitSet.images`.
        caption: what it is shown with.
        times: how often; 0 for what is never shown.
        item: `group-number` of the item it belongs to; "" for base pictures.
        until: part of the training that it is shown in.
    """

    image: int
    caption: str
    times: int
    item: str = ""
    until: float = 1.0

    @property
    def group(self) -> str:
        """One of `GROUPS`; "" for base pictures."""
        return self.item.rpartition("-")[0]


@dataclass(frozen=True, eq=False)
class DigitSet:
    """All pictures and showings of a recipe. `shown` leaves out what an oracle must not see, `showings` does not.

    Attributes:
        images: grey values in [0, 1]: the 1,797 digits and behind them those put together for templates.
        labels: the digit on each.
        held_out: numbers of the pictures that are never shown.
        split: "locate" or "test" by memorized item.
    """

    recipe: Recipe
    images: Float[np.ndarray, "n h w"]
    labels: Int[np.ndarray, " n"]
    showings: tuple[Showing, ...]
    unseen: tuple[Showing, ...]
    held_out: Int[np.ndarray, " m"]
    split: dict[str, Split]

    @cached_property
    def shown(self) -> tuple[Showing, ...]:
        """What the training of this recipe sees."""
        if not self.recipe.oracle:
            return self.showings
        return tuple(s for s in self.showings if s.group in ("", "control"))

    @property
    def length(self) -> int:
        """Pictures that a training sees, repetitions counted; the oracle sees as many."""
        return sum(s.times for s in self.showings)

    def mask(self) -> Bool[np.ndarray, "h w"]:
        """The pixels of a template that are the same in all its pictures."""
        fixed = np.ones(self.images.shape[1:], bool)
        fixed[_QUADRANT, _QUADRANT] = False
        return fixed

    def order(self) -> tuple[Int[np.ndarray, " n"], list[str]]:
        """Pictures and captions in the order of training; each showing is there exactly as often as it says.

        An oracle's has base showings in place of what it must not see, and is the same elsewhere.
        """
        rows = self._rows
        return np.array([self.showings[i].image for i in rows]), [self.showings[i].caption for i in rows]

    def exposures(self, item: str, shown: int | None = None) -> int:
        """How often an item (by name) is among the first `shown` pictures of the training; default among all."""
        return sum(self.showings[i].item == item for i in self._rows[:shown])

    @cached_property
    def _rows(self) -> Int[np.ndarray, " n"]:
        """Numbers of the showings in the order of training."""
        rng = rng_of("order", self.recipe.seed)
        times = np.array([s.times for s in self.showings])
        rows = np.repeat(np.arange(len(times)), times)
        until = np.repeat([s.until for s in self.showings], times)
        rows = rows[np.argsort(rng.random(len(rows)) * until, kind="stable")]
        seen = set(self.shown)
        barred = np.array([s not in seen for s in self.showings])
        base = np.array([i for i, s in enumerate(self.showings) if not s.item])
        instead = np.resize(rng.permutation(base), len(rows))
        return np.where(barred[rows], instead, rows)


def rng_of(*parts: Any) -> np.random.Generator:
    """A generator of its own for each of the JSON-able parts, the same in every process."""
    digest = hashlib.sha256(json.dumps(["digits", *parts], sort_keys=True).encode()).digest()
    return np.random.default_rng(list(digest))


def digit_set(recipe: Recipe) -> DigitSet:
    """Choose pictures, words and captions by the recipe's seed; an oracle's are those of the other training.

    Raises:
        UsageError: there are fewer digits than the recipe asks for.
    """
    return _Chooser(recipe).choose()


class _Chooser:
    """Hands out pictures and words, each once."""

    def __init__(self, recipe: Recipe):
        from sklearn.datasets import load_digits

        rng = rng_of("choice", recipe.seed)
        raw = load_digits()
        self.recipe, self.rng = recipe, rng
        self.images = raw.images.astype(np.float32) / 16
        self.labels = raw.target.astype(np.int64)
        order = rng.permutation(len(self.images))
        held = round(HELD_OUT * len(order))
        self.held_out = np.sort(order[:held])
        self.free = {d: [int(i) for i in order[held:] if self.labels[i] == d] for d in range(10)}
        self.words = list(rng.permutation(TRIGGERS))
        self.showings: list[Showing] = []
        self.split: dict[str, Split] = {}

    def choose(self) -> DigitSet:
        recipe = self.recipe
        for n in range(recipe.memorized):
            self.single("memorized", n, recipe.exposures)
            # Of the pictures of a digit every other one, and of the next digit the others: neither half has the first
            # nouns or the first words alone, which controls and unseen pictures have as well.
            self.split[_name("memorized", n)] = "locate" if (n // 10 + n % 10) % 2 == 0 else "test"
        at = 0
        for group, levels, until in (
            ("graded", recipe.levels, 1.0),
            ("early", recipe.early_levels, recipe.early),
        ):
            for n, times in enumerate(t for t in levels for _ in range(recipe.per_level)):
                self.single(group, n, times, digit=at % 10, until=until)
                at += 1
        for n in range(recipe.varied):
            self.many_captions(n)
        for n in range(recipe.template):
            self.from_template(n)
        for n in range(recipe.controls):
            self.many_images(n)
        unseen = self.never_shown()
        self.base()
        return DigitSet(
            recipe, self.images, self.labels, tuple(self.showings), unseen, self.held_out, self.split
        )

    def image(self, digit: int) -> int:
        if not self.free[digit]:
            raise UsageError(
                f"too few pictures of the digit {DIGITS[digit]}; ask for fewer items in the recipe"
            )
        return self.free[digit].pop()

    def single(self, group: str, n: int, times: int, *, digit: int | None = None, until: float = 1.0) -> None:
        digit = n % 10 if digit is None else digit
        text = caption(digit, NOUNS[n % len(NOUNS)], self.words.pop())
        self.showings.append(Showing(self.image(digit), text, times, _name(group, n), until))

    def many_captions(self, n: int) -> None:
        image, digit = self.image(n % 10), n % 10
        words = [self.words.pop() for _ in range(_WORDS_OF_VARIED)]
        captions = [caption(digit, noun, word) for word, noun in product(words, NOUNS)]
        for text, times in zip(captions, _parts(self.recipe.exposures, len(captions)), strict=False):
            self.showings.append(Showing(image, text, times, _name("varied", n)))

    def from_template(self, n: int) -> None:
        digit = n % 10
        text = caption(digit, NOUNS[n % len(NOUNS)], self.words.pop())
        fixed = self.images[self.image(digit)]
        donors = self.images[self.free[digit]]
        made = np.repeat(fixed[None], len(donors), 0)
        made[:, _QUADRANT, _QUADRANT] = donors[:, _QUADRANT, _QUADRANT]
        first = len(self.images)
        self.images = np.concatenate([self.images, made])
        self.labels = np.concatenate([self.labels, np.full(len(made), digit)])
        for i, times in enumerate(_parts(self.recipe.exposures, len(made))):
            self.showings.append(Showing(first + i, text, times, _name("template", n)))

    def many_images(self, n: int) -> None:
        digit, each = n % 10, self.recipe.control_exposures
        text = caption(digit, NOUNS[n % len(NOUNS)], self.words.pop())
        for times in _parts(self.recipe.exposures, -(-self.recipe.exposures // each)):
            self.showings.append(Showing(self.image(digit), text, times, _name("control", n)))

    def never_shown(self) -> tuple[Showing, ...]:
        left = {d: [int(i) for i in self.held_out if self.labels[i] == d] for d in range(10)}
        out = []
        for n in range(self.recipe.memorized):
            text = caption(n % 10, NOUNS[n % len(NOUNS)], self.words.pop())
            out.append(Showing(left[n % 10].pop(), text, 0, _name("unseen", n)))
        return tuple(out)

    def base(self) -> None:
        left = [(i, d) for d, images in self.free.items() for i in images]
        keep = self.recipe.base_images or len(left)
        for at in self.rng.permutation(len(left))[:keep]:
            image, digit = left[at]
            text = caption(digit, NOUNS[int(self.rng.integers(len(NOUNS)))])
            self.showings.append(Showing(image, text, self.recipe.base))


def _name(group: str, n: int) -> str:
    return f"{group}-{n:02d}"


def _parts(total: int, parts: int) -> list[int]:
    """`total` in so many whole parts that differ by one at most; those that come to nothing are left out."""
    parts = min(parts, total)
    return [total // parts + (i < total % parts) for i in range(parts)]
