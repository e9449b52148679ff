"""What a language model recites: suffixes told word for word after their prefixes, and how near the others come.

A suffix is recited whole exactly if every one of its tokens is the likeliest after the true tokens before it, so one
forward pass tells exact recitation, for every prefix and every length at once. Only where a model leaves the suffix is
it let go on alone, from the token where it leaves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float

from interp.errors import NoAcceptedExample, UsageError
from interp.measure.next_token import Asked
from interp.models.batch import plan
from interp.models.cache import Progress, quiet
from interp.models.subject import CausalLM
from interp.models.tokens import as_tokens
from interp.tasks.base import Ids
from interp.tasks.memorized import TextItem
from interp.tasks.passages import Passage

TOKENS = 512
"""Padded tokens of a batch: logits of all of them are there at once."""

COLUMNS = ["name", "group", "split", "exposures", "prefix", "n"]
"""Columns of `recite` that say which item a row is of."""


@dataclass(frozen=True)
class Forced:
    """A sequence as a model reads it; entry i is of token i + 1.

    Attributes:
        said: the likeliest token, given the true ones before.
        nll: nats of the true one.
    """

    said: tuple[int, ...]
    nll: Float[np.ndarray, " t"]

    def hits(self, ids: Ids) -> Bool[np.ndarray, " t"]:
        """Whether the likeliest token is the true one."""
        return np.array(self.said) == np.array(ids[1:])


def forced(subject: CausalLM, sequences: Sequence[Ids], *, progress: Progress = quiet) -> list[Forced]:
    """One forward pass over each sequence, in batches of like length; edits and interventions that are on hold."""
    if short := [i for i, ids in enumerate(sequences) if len(ids) < 2]:
        raise UsageError(f"sequence {short[0]} has fewer than two tokens, so nothing is predicted in it")
    out: dict[int, Forced] = {}
    for group in plan([len(ids) for ids in sequences], TOKENS):
        batch = subject.batch([_Whole((sequences[i][0],), sequences[i][1:]) for i in group])
        logits = subject.run(batch, keep=batch.keep).logits
        first = batch.width - logits.shape[1]
        for row, i in enumerate(group):
            columns = batch.answer_columns(row)
            mine = logits[row, columns.start - first : columns.stop - first].float()
            truth = torch.tensor(sequences[i][1:], device=mine.device)
            nll = torch.nn.functional.cross_entropy(mine, truth, reduction="none")
            out[i] = Forced(tuple(mine.argmax(-1).tolist()), nll.double().cpu().numpy())
        progress(len(out), len(sequences), "sequences read")
    return [out[i] for i in range(len(sequences))]


@dataclass(frozen=True)
class _Whole:
    ids: Ids
    answer_ids: Ids
    spans: tuple[()] = ()


def recite(
    subject: CausalLM,
    items: Sequence[TextItem],
    *,
    generate: bool = True,
    progress: Progress = quiet,
) -> pd.DataFrame:
    """How much of each suffix a model recites greedily after the prefix, under whatever is applied to it.

    Args:
        generate: also let the model go on alone where it leaves the suffix; without it `accuracy` and `similarity` are
            NaN there.

    Returns:
        one row an item: `COLUMNS`; `exact` (1 where the whole suffix is recited), `run` (tokens recited before the
        first wrong one), `accuracy` (share of the suffix's tokens told at their places), `similarity` (1 - Levenshtein
        distance in tokens / the suffix's tokens, at least 0), `hits` (share of tokens that are likeliest after the true
        ones), `nll` (nats a token of the suffix).

    Raises:
        NoAcceptedExample: there are no items.
    """
    if not items:
        raise NoAcceptedExample("there is no item to recite")
    read = forced(subject, [item.ids for item in items], progress=progress)
    return _rows(subject, items, read, generate, progress)


def screen(
    subject: CausalLM,
    passages: Sequence[Passage],
    *,
    prefixes: Sequence[int] = (8, 16, 32),
    suffix: int = 32,
    generate: bool = False,
    progress: Progress = quiet,
) -> pd.DataFrame:
    """Which passages a model recites already, after how much of them; each passage is read once for all prefixes.

    Args:
        prefixes: tokens of a passage's start that are given.
        suffix: tokens that have to be recited; a passage that is too short for a prefix has no row for it.
        generate: as for `recite`.

    Returns:
        rows of `recite`, one a passage and prefix; `run` counts on to the end of the passage, beyond `suffix`, and
        `left` is how many tokens there were.

    Raises:
        UsageError: no passage is long enough.
    """
    tokens = as_tokens(subject)
    ids = [tokens.encode(p.text).ids for p in passages]
    at = [
        (i, p) for i in range(len(ids)) for p in sorted(set(prefixes)) if p >= 1 and p + suffix <= len(ids[i])
    ]
    if not at:
        raise UsageError(
            f"no passage has {min(prefixes, default=0)} + {suffix} tokens; take shorter prefixes or a shorter suffix"
        )
    asked = sorted({i for i, _ in at})
    read = dict(zip(asked, forced(subject, [ids[i] for i in asked], progress=progress), strict=True))
    items = [TextItem(passages[i].name, ids[i][: p + suffix], p, group=passages[i].group) for i, p in at]
    out = _rows(subject, items, [read[i] for i, _ in at], generate, progress)
    out["run"] = [_run(read[i].hits(ids[i])[p - 1 :]) for i, p in at]
    out["left"] = [len(ids[i]) - p for i, p in at]
    return out


def _rows(
    subject: CausalLM, items: Sequence[TextItem], read: Sequence[Forced], generate: bool, progress: Progress
) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for item, seen in zip(items, read, strict=True):
        last = len(item.ids) - 1
        hits = seen.hits((*item.ids, *(0,) * (len(seen.said) - last)))[item.prefix - 1 : last]
        run, n = _run(hits), len(item.suffix)
        done = 1.0 if run == n else np.nan
        rows.append(
            {
                **dict(zip(COLUMNS, _about(item), strict=True)),
                "exact": float(run == n),
                "run": run,
                "accuracy": done,
                "similarity": done,
                "hits": float(hits.mean()),
                "nll": float(seen.nll[item.prefix - 1 : last].mean()),
            }
        )
    if generate:
        left = [i for i, row in enumerate(rows) if not row["exact"]]
        told = _told(subject, [items[i] for i in left], [rows[i]["run"] for i in left], progress)
        for i, said in zip(left, told, strict=True):
            truth = items[i].suffix
            same = sum(a == b for a, b in zip(said, truth, strict=False))
            rows[i]["accuracy"] = same / len(truth)
            rows[i]["similarity"] = max(0.0, 1 - levenshtein(said, truth) / len(truth))
    return pd.DataFrame(rows)


def _about(item: TextItem) -> tuple[Any, ...]:
    return item.name, item.group, item.split, item.exposures, item.prefix, len(item.suffix)


def _run(hits: Bool[np.ndarray, " n"]) -> int:
    return len(hits) if hits.all() else int(hits.argmin())


def _told(
    subject: CausalLM, items: Sequence[TextItem], runs: Sequence[int], progress: Progress
) -> Iterator[Ids]:
    """What the model says in place of each suffix, as many tokens; what it is known to recite is not made again."""
    out: dict[int, Ids] = {}
    lengths = [item.prefix + run for item, run in zip(items, runs, strict=True)]
    for group in plan([len(item.ids) for item in items], TOKENS):
        more = max(len(items[i].ids) - lengths[i] for i in group)
        batch = subject.batch([Asked(items[i].ids[: lengths[i]]) for i in group], forced=False)
        for i, said in zip(group, subject.generate(batch, more), strict=True):
            out[i] = (*items[i].suffix[: runs[i]], *said[: len(items[i].ids) - lengths[i]])
        progress(len(out), len(items), "sequences told")
    return (out[i] for i in range(len(items)))


def levenshtein(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Edit distance: insertions, deletions and substitutions of one element.

    >>> levenshtein("kitten", "sitting")
    3
    """
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        corner, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (x != y))
    return row[-1]
