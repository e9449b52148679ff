"""Places of tokens about the corrupted span, by which maps of prompts of different lengths are averaged."""

from __future__ import annotations

from interp.intervene.tracing.noise import span_of
from interp.tasks.base import Example

BEFORE, FIRST, MIDDLE, LAST_OF = "before", "first subject", "middle subject", "last subject"
AFTER, FURTHER, LAST = "first after", "further", "last"
PLACES = (BEFORE, FIRST, MIDDLE, LAST_OF, AFTER, FURTHER, LAST)
"""In order of the prompt; figures of Meng et al. 2022 show all but the first."""


def places_of(example: Example, role: str = "subject") -> list[str]:
    """Place of each prompt token.

    The only token of a span is its last. The token that predicts the answer is `last`, also where it ends the span.

    Args:
        role: of the corrupted span, as `role` or `role.item`.

    Raises:
        UsageError: there is no such span.
    """
    inside = span_of(example, role)
    first, last = inside[0], inside[-1]
    names = {i: MIDDLE for i in inside} | {first: FIRST, last: LAST_OF, len(example.ids) - 1: LAST}

    def name(i: int) -> str:
        if i in names:
            return names[i]
        return BEFORE if i < first else AFTER if i == last + 1 else FURTHER

    return [name(i) for i in range(len(example.ids))]
