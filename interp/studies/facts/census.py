"""What a model knows: every relation asked without and with shots; and why it says it: scenarios of what it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from interp.measure.metrics import score_answer
from interp.measure.scenarios import EXACT, GENERIC, NONE, Scenarios
from interp.measure.stats import proportion_ci
from interp.models.batch import plan
from interp.models.subject import CausalLM
from interp.tasks.base import Example
from interp.tasks.facts import Facts, relation
from interp.trace.each import Progress

TOKENS = 1024
"""Padded tokens of a batch."""

ALL = "all"
"""Name of the row that counts all relations."""


def asked(
    subject: CausalLM,
    name: str,
    shots: int,
    wordings: int,
    n: int | None,
    seed: int,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Every question of a relation, and whether it is answered right, greedily, as `known_to` asks.

    Returns:
        one row a question: relation, shots, subject, template, known, probability (of the whole answer), chance.
    """
    every = len(relation(name).facts) * wordings
    n = every if n is None else min(n, every)
    task = Facts(relations=[name], templates=list(range(wordings)), shots=shots, n=n, seed=seed)
    examples = task.examples(subject)
    told = _answered(subject, examples, progress)
    return pd.DataFrame(
        {
            "relation": name,
            "shots": shots,
            "subject": [e.meta["subject"] for e in examples],
            "template": [e.meta["template"] for e in examples],
            "known": told["accuracy"] > 0.5,
            "probability": np.exp(told["logprob"]),
            "chance": [e.chance for e in examples],
        }
    )


def _answered(
    subject: CausalLM, examples: Sequence[Example], progress: Progress | None
) -> dict[str, Float[np.ndarray, " n"]]:
    """Metrics of the intact model's answers, in batches.

    `evaluate` runs prompts that begin alike one by one on a shared cache, slower where they are as short as these.
    """
    out = {m: np.zeros(len(examples)) for m in ("accuracy", "logprob")}
    done = 0
    for group in plan([len(e.full_ids) for e in examples], TOKENS):
        some = [examples[i] for i in group]
        batch = subject.batch(some)
        logits = subject.run(batch).logits
        first = batch.width - logits.shape[1]
        for row, i in enumerate(group):
            at = batch.answer_columns(row)
            metrics = score_answer(logits[row, at.start - first : at.stop - first].float(), examples[i])
            for metric, values in out.items():
                values[i] = metrics[metric]
        done += len(group)
        if progress:
            progress(done, len(examples), "questions")
    return out


def known(rows: pd.DataFrame) -> pd.DataFrame:
    """How much of each relation is known, and of all.

    Returns:
        one row a number of shots and relation, the last one `all`: shots, relation, asked and known (questions),
        accuracy, lo, hi (95 %, exact, for clusters of questions about one subject), chance, above (the interval lies
        above chance), facts (that were asked for), facts_known (in every wording), facts_some (in one at least).
    """
    out = []
    for shots, part in rows.groupby("shots", sort=False):
        for name, own in [*part.groupby("relation", sort=False), (ALL, part)]:
            facts = (own["relation"] + ": " + own["subject"]).to_numpy()
            lo, hi = proportion_ci(own["known"].to_numpy(float), facts)
            each = own.groupby(facts)["known"]
            out.append(
                {
                    "shots": shots,
                    "relation": name,
                    "asked": len(own),
                    "known": int(own["known"].sum()),
                    "accuracy": float(own["known"].mean()),
                    "lo": lo,
                    "hi": hi,
                    "chance": float(own["chance"].mean()),
                    "above": lo > float(own["chance"].mean()),
                    "facts": len(each),
                    "facts_known": int(each.all().sum()),
                    "facts_some": int(each.any().sum()),
                }
            )
    return pd.DataFrame(out)


def kinds(found: Scenarios) -> pd.DataFrame:
    """Scenarios of each relation and of all, with intervals of the shares that may rest on heuristics.

    Returns:
        what `Scenarios.census` has, with biased_lo, biased_hi, pure_lo, pure_hi (95 %, over subjects) and
        known_subjects; the last row is `all`.
    """
    generic = found.frame["relation"] == GENERIC
    frame = found.frame[~generic]
    best = frame[~frame["fictional"] & (frame["rank"] == 0) & frame["correct"]]
    whole = Scenarios(frame.assign(relation=ALL), found.tokens, found.meta).census()
    out = pd.concat([found.census(), whole.assign(**{GENERIC: generic.sum()})], ignore_index=True)
    shares = {"biased": best["bias"] != NONE, "pure": best["scenario"] == EXACT}
    for i, name in enumerate(out["relation"]):
        own = best["relation"] == name if name != ALL else best["relation"].notna()
        facts = (best["relation"] + ": " + best["subject"])[own].to_numpy()
        out.loc[i, "known_subjects"] = len(set(facts))
        for share, told in shares.items():
            ends = proportion_ci(told[own].to_numpy(float), facts) if len(facts) else (np.nan, np.nan)
            out.loc[i, [f"{share}_lo", f"{share}_hi"]] = ends
    return out.astype({"known_subjects": int})


def attributes(found: Scenarios, subjects: Sequence[str]) -> Mapping[str, Sequence[int]]:
    """First tokens of right answers about each subject, of all relations and wordings in which the model gives them."""
    frame = found.frame
    right = frame[~frame["fictional"] & (frame["rank"] == 0) & frame["correct"]]
    by = right.groupby("subject")["token_id"].unique()
    return {s: [int(t) for t in by[s]] for s in dict.fromkeys(subjects) if s in by.index}
