"""Questions to a planted model: key-value needles among distinct token ids."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from interp.errors import UsageError
from interp.tasks.base import Example, FixedTask, Ids, Span, stable_seed

if TYPE_CHECKING:
    from .retrieval import Planted


def planted_task(
    planted: Planted,
    n: int,
    seed: int,
    length: int,
    *,
    n_pairs: int = 4,
    value_length: tuple[int, int] = (3, 5),
    distance: int | None = None,
    question: int = 0,
) -> FixedTask:
    """Needles for a planted model: BOS, distinct tokens with `n_pairs` keys and values among them, a key again.

    The asked value is made of the model's hot tokens, the others are not. The depths asked for sweep the context
    evenly. The candidates are the values in the context, the foil is the second of them, `value_swap` exchanges the
    two (the foil is then right). `needle_drop` has other tokens in place of key and value.

    Where the model has semantic heads, the evidence reaches to the last place that the value is carried to, and the
    needle stands far enough from both ends for codes to be carried.

    Args:
        planted: the model.
        n: number of examples.
        seed: source of the examples.
        length: tokens of the prompt, BOS and the key at its end included.
        n_pairs: keys with values in each context.
        value_length: smallest and largest number of tokens of a value.
        distance: places from the key at the end back to the first token of the value; None: by depth.
        question: tokens in front of the key at the end that belong to the question; spans `question` hold them both.

    Raises:
        UsageError: the pairs do not fit into the prompt, or the prompt and its answer not into the context.
    """
    low, high = value_length
    if length + high > planted.context_length:
        raise UsageError(
            f"{length} + {high} tokens are more than the model's context of {planted.context_length}"
        )
    lag = planted.lag
    # Twice the room, or a place for each pair may not be found beside the asked one.
    if n_pairs < 2 or 2 * n_pairs * (high + 1) + 2 + question + 2 * lag > length:
        raise UsageError(f"{n_pairs} pairs of up to {high + 1} tokens do not fit into {length} tokens")
    examples = []
    for index in range(n):
        rng = np.random.default_rng(stable_seed("planted", planted.kind, planted.seed, seed, length, index))
        m = int(rng.integers(low, high + 1))
        depth = (index + 0.5) / n
        room = length - 2 - question - (m + 1) - 2 * lag
        first = 1 + lag + round(depth * room) if distance is None else length - 2 - distance
        if not 1 + lag <= first <= length - 2 - question - m - lag:
            raise UsageError(
                f"no needle of {m + 1} tokens lies {distance} places before the end of {length} tokens"
            )
        starts = _starts(rng, first, n_pairs, m + 1, lag, length - 1 - question)
        examples.append(_example(planted, index, rng, starts, m, length, question, {"depth_asked": depth}))
    return FixedTask(examples, name="planted", copies=True, seed_of_examples=seed, length=length)


def _starts(rng: np.random.Generator, first: int, n_pairs: int, width: int, lag: int, stop: int) -> list[int]:
    """Starts of non-overlapping pairs between BOS and `stop`; the first is given, and `lag` places behind it free."""
    starts = [first]
    while len(starts) < n_pairs:
        free = [
            s
            for s in range(1, stop - width + 1)
            if (s + width <= first or s >= first + width + lag) and all(abs(s - t) >= width for t in starts)
        ]
        if not free:
            starts = [first]
            continue
        starts.append(free[int(rng.integers(len(free)))])
    return starts


def _example(
    planted: Planted,
    index: int,
    rng: np.random.Generator,
    starts: list[int],
    m: int,
    length: int,
    question: int,
    meta: dict[str, float],
) -> Example:
    hot = np.array(planted.hot)
    plain = np.setdiff1d(np.arange(1, planted.vocab), hot)
    order = rng.permutation(plain)
    ids = np.concatenate([[0], order[: length - 2], [0]])
    value = starts[0] + 1
    ids[value : value + m] = rng.permutation(hot)[:m]
    ids[-1] = ids[starts[0]]
    spans = [Span(length - 1, length, "query", 0), Span(starts[0], value + m + planted.lag, "evidence", 0)]
    spans.append(Span(length - 1 - question, length, "question", 0))
    spans += [Span(starts[0], value, "key", 0), Span(value, value + m, "value", 0)]
    for item, start in enumerate(starts[1:], start=1):
        spans.append(Span(start, start + 1, "distractor_key", item))
        spans.append(Span(start + 1, start + 1 + m, "distractor_value", item))
    swapped = ids.copy()
    other = starts[1] + 1
    swapped[value : value + m], swapped[other : other + m] = ids[other : other + m], ids[value : value + m]
    dropped = ids.copy()
    dropped[starts[0] : value + m] = order[length - 2 : length - 1 + m]
    realised = {
        **meta,
        "depth": (starts[0] - 1) / (length - 3 - m),
        "distance": length - 1 - value,
        "length": length,
        "value_length": m,
        "kind": planted.kind,
    }

    def build(tokens: np.ndarray, twins: dict[str, Example]) -> Example:
        values = [_ids(tokens[s + 1 : s + 1 + m]) for s in starts]
        return Example(
            task="planted",
            ids=_ids(tokens),
            answer_ids=values[0],
            spans=tuple(sorted(spans)),
            foil_ids=values[1],
            candidates=tuple(values),
            corrupt=twins,
            chance=1.0 / len(values),
            cluster=str(index),
            group=str(index),
            meta=realised,
        )

    gone = tuple(s for s in spans if s.role not in ("key", "value", "evidence"))
    drop = replace(
        build(ids, {}),
        ids=_ids(dropped),
        spans=tuple(sorted([*gone, Span(starts[0], value + m, "filler", 0)])),
    )
    return build(ids, {"value_swap": build(swapped, {}), "needle_drop": drop})


def _ids(tokens: np.ndarray) -> Ids:
    return tuple(int(t) for t in tokens)
