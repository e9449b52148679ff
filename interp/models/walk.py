"""Prompts that begin alike: each common prefix is run once, whatever the order in which prompts are given.

Prompts are taken in the order of their token ids, so that each shares its longest prefix with the one before it, and
one KV cache walks along: cropped to what two neighbours have in common, extended by the rest. That is a depth-first
walk of the prefix tree, at the memory of one prompt. Contexts of several lengths, depths and questions over one
haystack share prefills in this way without knowing of each other; what is shared is measured on tokens, never assumed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interp.models.subject import CausalLM

WORTH = 0.75
"""Share of the tokens up to which a walk is worth more than batches."""

SAVED = 16
"""Tokens a prompt that must be saved, too: a prompt on its own costs as much as some 20 more tokens in a batch."""


@dataclass(frozen=True)
class Walk:
    """The order of a walk and what each prompt finds in the cache.

    Attributes:
        order: numbers of the prompts.
        past: for each prompt (by number) how many of its tokens are in the cache when its turn comes.
        naive: tokens of all prompts together.
    """

    order: tuple[int, ...]
    past: tuple[int, ...]
    naive: int

    @classmethod
    def of(cls, prompts: Sequence[Sequence[int]], first: Sequence[int] | None = None) -> Walk:
        """The walk over prompts.

        Args:
            first: of each prompt the first token that has to be run for itself (because something is read or edited
                there); default its last.

        >>> Walk.of([(1, 2, 3, 4), (1, 2, 9), (1, 2, 3, 5)])
        Walk(order=(0, 2, 1), past=(0, 2, 3), naive=11)
        """
        order = sorted(range(len(prompts)), key=lambda i: tuple(prompts[i]))
        past = [0] * len(prompts)
        for before, i in pairwise(order):
            own = len(prompts[i]) - 1 if first is None else first[i]
            past[i] = min(common(prompts[before], prompts[i]), own, len(prompts[i]) - 1)
        return cls(tuple(order), tuple(past), sum(map(len, prompts)))

    @property
    def tokens(self) -> int:
        """Tokens that are run."""
        return self.naive - sum(self.past)

    @property
    def share(self) -> float:
        """Tokens that are run, as a share of those of all prompts."""
        return self.tokens / self.naive

    @property
    def pays(self) -> bool:
        """Whether so much is shared that prompts are better run one by one on one cache than in batches."""
        enough = sum(self.past) >= SAVED * len(self.order)
        return len(self.order) > 1 and self.share <= WORTH and enough

    def caches(self, subject: CausalLM) -> Iterator[tuple[int, int, Any]]:
        """Prompt after prompt with the KV cache that holds its first `past` tokens.

        Whoever takes one runs the rest of the prompt on that cache, which keeps it for the prompts that follow, and
        may go on behind the prompt as far as is wanted.

        Yields:
            the number of a prompt, its `past`, the cache.
        """
        from transformers import DynamicCache

        # Full layers for every family: a cache of sliding layers would drop keys that are still to be shared.
        cache = DynamicCache()
        for i in self.order:
            crop(cache, self.past[i])
            yield i, self.past[i], cache


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix.

    >>> common((1, 2, 3), (1, 2, 4, 5))
    2
    """
    n = min(len(a), len(b))
    low, high = 0, n
    while low < high:  # comparing slices is much faster than a loop over tokens
        middle = (low + high + 1) // 2
        if tuple(a[low:middle]) == tuple(b[low:middle]):
            low = middle
        else:
            high = middle - 1
    return low


def crop(cache: Any, length: int) -> None:
    """Shorten a KV cache to its first columns."""
    held = int(cache.get_seq_length())
    if held > length:
        cache.crop(-(held - length))
