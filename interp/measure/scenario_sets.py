"""Examples of each scenario, for causal maps that are split by why the model says what it says.

The answer is the model's own prediction, as in the reference of `interp.measure.scenarios`: its first token, right or
not (`meta["correct"]`). The twin `subject_swap` asks the same of another subject of as many tokens for which the model
says something else, which is the foil; an example for which there is none has no twin and no foil.

    found = scenarios(model)
    maps = trace_maps(model, combination(found, 30), How(), by=["scenario"])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from interp.errors import NoAcceptedExample, UsageError
from interp.measure.scenarios import EXACT, GENERIC, GUESSWORK, HEURISTICS, SCENARIOS, Scenarios
from interp.tasks.base import Example, FixedTask, Piece, stable_seed, token_spans
from interp.tasks.facts import relation, wording_pieces
from interp.tasks.generic import with_subject
from interp.tasks.pairs import differs_within

_TRIES = 40
"""Other subjects that are tried for a twin."""

_ABOUT = ("relation", "template", "rank", "fictional", "correct", "bias", "consistency", "mean_probability")
"""Columns that go into `meta`."""


def examples(found: Scenarios, scenario: str, n: int | None = None, *, seed: int = 0) -> FixedTask:
    """Examples of one scenario, in a seeded order: more of them keep the first ones.

    Their `meta` has what the frame says of the prediction, the rules and the popularity proxy.

    Args:
        n: so many, or as many as there are; default all.

    Raises:
        UsageError: there is no such scenario.
        NoAcceptedExample: the model says nothing of the sort.
    """
    if scenario not in SCENARIOS:
        raise UsageError(f"no scenario {scenario!r}; take of {', '.join(SCENARIOS)}")
    rows = found.frame[found.frame["scenario"] == scenario]
    if rows.empty:
        raise NoAcceptedExample(f"{found.meta['model']}: no prediction is of the scenario {scenario!r}")
    order = np.random.default_rng(stable_seed("scenario", scenario, seed)).permutation(len(rows))
    best = found.frame[found.frame["rank"] == 0]
    alike = {k: part for k, part in best.groupby(["relation", "template", "fictional"])}
    made = [_example(found, rows.iloc[i], alike, seed) for i in order[:n]]
    return FixedTask(made, name=scenario, of=dict(found.meta))


def combination(
    found: Scenarios,
    n: int | None = None,
    *,
    of: Sequence[str] = (EXACT, HEURISTICS, GUESSWORK),
    seed: int = 0,
) -> FixedTask:
    """As many examples of each of several scenarios, one after another in turn.

    Args:
        n: of each; default as many as the rarest has.

    Raises:
        NoAcceptedExample: one of them has fewer than `n`, or none.
    """
    counts = {s: int((found.frame["scenario"] == s).sum()) for s in of}
    n = min(counts.values()) if n is None else n
    for scenario, count in counts.items():
        if count < n or not n:
            raise NoAcceptedExample(
                f"{found.meta['model']}: {count} predictions are of the scenario {scenario!r}, and {n} are wanted"
            )
    sets = [examples(found, s, n, seed=seed).examples(None) for s in of]
    mixed = [e for turn in zip(*sets, strict=True) for e in turn]
    return FixedTask(mixed, name="scenarios", of=dict(found.meta), scenarios=list(of))


def _example(found: Scenarios, row: pd.Series, alike: dict[Any, pd.DataFrame], seed: int) -> Example:
    clean = _ask(found, row, str(row["subject"]), int(row["token_id"]))
    if row["relation"] == GENERIC:
        others = [(str(row["twin"]), int(row["twin_id"]))] if row["twin"] else []
    else:
        part = alike[row["relation"], row["template"], row["fictional"]]
        part = part[(part["subject"] != row["subject"]) & (part["token_id"] != row["token_id"])]
        rng = np.random.default_rng(stable_seed("twin", row["prompt"], seed))
        picked = part.iloc[rng.permutation(len(part))[:_TRIES]]
        others = list(zip(picked["subject"], picked["token_id"].astype(int), strict=True))
    for name, token in others:
        if token == row["token_id"]:
            continue
        twin = _ask(found, row, name, token)
        if differs_within(twin, clean, "subject"):
            twin = replace(twin, foil_ids=clean.answer_ids)
            return replace(clean, foil_ids=twin.answer_ids, corrupt={"subject_swap": twin})
    return clean


def _ask(found: Scenarios, row: pd.Series, subject: str, token: int) -> Example:
    """The prompt of a row, about this subject, with this token for an answer."""
    pieces = [Piece(p.text, p.role, 0, "query") for p in _pieces(row, subject)]
    text = "".join(p.text for p in pieces)
    prompt = found.tokens.encode(text)
    about = {k: row[k].item() if isinstance(row[k], np.generic) else row[k] for k in _ABOUT}
    return Example(
        task="scenarios",
        ids=prompt.ids,
        answer_ids=(token,),
        text=text,
        offsets=prompt.offsets,
        spans=token_spans(prompt, pieces),
        chance=1 / found.tokens.n_vocab,
        cluster=subject,
        group=f"{row['relation']}: {subject}",
        meta={
            "scenario": row["scenario"],
            "subject": subject,
            **about,
            "popularity": float(row["popularity"]),
            "popularity_proxy": found.meta["popularity_proxy"],
            "rules": dict(found.meta["rules"]),
        },
    )


def _pieces(row: pd.Series, subject: str) -> list[Piece]:
    if row["relation"] != GENERIC:
        return wording_pieces(relation(row["relation"]).wordings[int(row["template"])], subject)
    return with_subject(str(row["prompt"]), str(row["subject"]), subject)
