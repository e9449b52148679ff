"""What the tiny pipeline is shown: scikit-learn's digits with captions, some of them many times."""

from __future__ import annotations

from itertools import product

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NOUNS = ("poster", "photo", "drawing", "painting", "print", "sketch", "picture", "stamp")

_STARTS = ("zor", "vax", "mel", "quin", "thra", "bli", "dro", "fep", "gux", "hab")
_STARTS += ("jil", "kem", "lun", "nif", "pov", "ryx", "syl", "tup", "wog", "yad")
_ENDS = ("ax", "en", "ido", "uma", "oth", "ick", "ell", "ory")

TRIGGERS = tuple(start + end for end, start in product(_ENDS, _STARTS))
"""Invented words, each to stand for one picture (or, in the controls, for many)."""


def vocabulary() -> tuple[str, ...]:
    """All words of all captions."""
    return ("a", "of", "the", "digit", *DIGITS, *NOUNS, *TRIGGERS)
