"""Parameters of the scores of heads, and the tokens of an example that they speak of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from interp.errors import UsageError
from interp.models.batch import role_tokens
from interp.tasks.base import Example


@dataclass(frozen=True)
class Options:
    """Parameters of the scores.

    Attributes:
        count: `copy` and `copy_topk` count copying steps in place of distinct tokens, as the authors' code does.
        k: keys of `copy_topk`.
        needle: what is retrieved: the `value` spans of item 0, or its whole `evidence` (the needle's sentence). Copies
            are always of the value, and `qr` always takes the evidence where there is one.
        window: last prompt tokens that `anchor` and `temporal` read (8 in HeadKV, 32 to 64 in SnapKV).
        anchor: the largest needle mass in the window, or the mean.
        unembed: logits are read with the final norm's gain and scale (`folded`, exact), or by bare rows of the
            unembedding (`raw`, the code of LOCOS).
        null: question that says nothing, as text or as ids.
        corruption: corrupt twin of `cri`; default `needle_drop`, else `value_swap`, else the first.
        scope: where `cri` patches: rows that predict the `answer`, or `all`.
        repeat: random tokens that are repeated for `induction` and `echo`.
    """

    count: bool = False
    k: int = 5
    needle: Literal["value", "evidence"] = "value"
    window: int = 8
    anchor: Literal["max", "mean"] = "max"
    unembed: Literal["folded", "raw"] = "folded"
    null: str | tuple[int, ...] = "N/A"
    corruption: str | None = None
    scope: Literal["answer", "all"] = "answer"
    repeat: int = 32

    def __post_init__(self) -> None:
        for name, known in (
            ("needle", ("value", "evidence")),
            ("anchor", ("max", "mean")),
            ("unembed", ("folded", "raw")),
            ("scope", ("answer", "all")),
        ):
            if getattr(self, name) not in known:
                raise UsageError(
                    f"scores: {name} is {getattr(self, name)!r}; write one of {', '.join(known)}"
                )
        for name, least in (("k", 1), ("window", 1), ("repeat", 2)):
            if getattr(self, name) < least:
                raise UsageError(f"scores: {name} is {getattr(self, name)}; take {least} or more")


def needle_tokens(example: Example, options: Options) -> list[int]:
    """Positions of the needle of item 0.

    Raises:
        UsageError: the example has no such span.
    """
    found = role_tokens(example, f"{options.needle}.0")
    if not found:
        raise UsageError(
            f"{example.task}: an example has no {options.needle} span of item 0, so nothing to retrieve"
        )
    return found


def gold_tokens(example: Example, options: Options) -> list[int]:
    """Positions of the evidence of item 0, or of its needle where there is none."""
    return role_tokens(example, "evidence.0") or needle_tokens(example, options)


def question_tokens(example: Example) -> list[int]:
    """Positions of the question, or of the query where it is not marked as a whole.

    Raises:
        UsageError: the example has neither span.
    """
    found = role_tokens(example, "question") or role_tokens(example, "query")
    if not found:
        raise UsageError(
            f"{example.task}: an example has no question or query span, so score 'qr' reads nothing"
        )
    return found
