"""Questions of priors one by one: which answers are held out, what stands in front, and how each is answered."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd

from interp.errors import NoAcceptedExample, UsageError
from interp.measure.metrics import choice_chance
from interp.measure.outcomes import Progress, evaluate
from interp.measure.plans import CLEAN
from interp.measure.priors import answer_priors
from interp.models.subject import CausalLM
from interp.tasks.base import Example, FixedTask, stable_seed
from interp.tasks.prior import PriorTask
from interp.tasks.registry import task

METRICS = ("accuracy", "choice", "pair", "logprob", "margin")
TRIES = 40
"""Questions looked at for each that is wanted."""
LEAST_PAIRS = 4


def items(
    subject: CausalLM,
    examples: Sequence[Example],
    name: str,
    *,
    known: pd.DataFrame | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """How the model, as it is now, answers each question.

    Args:
        known: rows of the same questions to take the priors from; default they are measured now.

    Returns:
        one row a question; see `interp.studies.prior.study`.
    """
    # The foil as an answer: to the same question, and behind the same prompts that tell nothing.
    foils = [replace(e, answer_ids=e.foil_ids, foil_ids=e.answer_ids) for e in examples]
    both = evaluate(subject, [*examples, *foils], {CLEAN: None}, progress=progress).values[CLEAN]
    values = {m: v[: len(examples)] for m, v in both.items()}
    values["margin"] = values["logprob"] - both["logprob"][len(examples) :]
    values["pair"] = (values["margin"] > 0).astype(float)
    if known is None:
        priors = answer_priors(subject, [*examples, *foils])
        own, foil = priors[: len(examples)], priors[len(examples) :]
    else:
        own, foil = (known[column].to_numpy() for column in ("log_prior", "foil_log_prior"))
    frame = pd.DataFrame(
        {
            "task": name,
            "example": range(len(examples)),
            "answer": [str(e.meta["answer"]) for e in examples],
            "foil": [str(e.meta["foil"]) for e in examples],
            "cluster": [e.cluster or e.key() for e in examples],
            "level": [str(e.meta["prior"]) for e in examples],
            "tokens": [len(e.answer_ids) for e in examples],
            "log_prior": own,
            "foil_log_prior": foil,
            "chance": [choice_chance(e) for e in examples],
        }
    )
    return frame.assign(**{m: values[m] for m in METRICS})


# -- splits ----------------------------------------------------------------------------------------------------------


def likely(example: Example) -> str:
    """The likely one of a question's answer and foil, which names the pair."""
    return str(example.meta["answer" if example.meta["prior"] == "high" else "foil"])


def solved(example: Example, stem: str) -> set[str]:
    """Answers that stand in a question's text: those of the solved questions in front of it."""
    lines = [line for line in str(example.text).split("\n") if line.startswith(stem)]
    return {line.removeprefix(stem).strip() for line in lines} - {""}


def split(
    subject: CausalLM,
    name: str,
    settings: Mapping[str, Any],
    n: int,
    n_held: int,
    share: float,
    seed: int,
) -> tuple[list[Example], list[Example]]:
    """Questions whose answers, foils and solved questions are none of the held-out ones, and questions about those.

    Args:
        share: of the pairs of a likely and an unlikely answer, those that are held out.
        seed: of which are held out; the questions are those of `seed + 2` and `seed + 3`.

    Raises:
        UsageError: the task has too few answers to hold some out.
        NoAcceptedExample: no question is left on one side.
    """

    def drawn(offset: int, count: int, keep: Callable[[Example], bool]) -> list[Example]:
        stream = task(name, n=count * TRIES, seed=seed + offset, **settings).stream(subject)
        found = list(islice((e for e in stream if keep(e)), count))
        if not found:
            raise NoAcceptedExample(
                f"{name}: no question keeps to its side of the held-out answers; take fewer shots"
            )
        return found

    shown = task(name, **settings)
    assert isinstance(shown, PriorTask)
    pool = shown.likely
    if len(pool) < LEAST_PAIRS:
        raise UsageError(
            f"{name}: of {len(pool)} pairs of answers none can be held out; take {LEAST_PAIRS} or more"
        )
    order = np.random.default_rng(stable_seed("held-out answers", name, seed)).permutation(len(pool))
    out = {pool[i] for i in order[: min(max(1, round(share * len(pool))), len(pool) - 1)]}
    held = drawn(3, n_held, lambda e: likely(e) in out)
    # Two pairs can share their unlikely answer.
    told = out | {str(e.meta[k]) for e in held for k in ("answer", "foil")}

    def apart(e: Example) -> bool:
        mine = {str(e.meta["answer"]), str(e.meta["foil"])} | solved(e, shown.stem)
        return likely(e) not in out and not mine & told

    return drawn(2, n, apart), held


# -- prefaces --------------------------------------------------------------------------------------------------------


def prefaced(subject: CausalLM, examples: Sequence[Example], text: str) -> list[Example]:
    """The same questions with a text in front, and a blank line between.

    Raises:
        UsageError: the tokenizer does not keep the question's tokens apart from the text's.
    """
    out = []
    for e in examples:
        whole = subject.tokens.encode(f"{text}\n\n{e.text}")
        special = subject.tokens.special_ids
        lead = next((i for i, t in enumerate(e.ids) if t not in special), 0)
        own = e.ids[lead:]
        if whole.ids[-len(own) :] != own:
            raise UsageError(
                f"preface {text[:20]!r}...: it runs into the question's tokens; end it with a full stop"
            )
        by = len(whole.ids) - len(e.ids)
        spans = tuple(replace(s, start=s.start + by, end=s.end + by) for s in e.spans)
        out.append(
            replace(
                e, ids=whole.ids, offsets=whole.offsets, text=f"{text}\n\n{e.text}", spans=spans, corrupt={}
            )
        )
    return out


# -- elsewhere -------------------------------------------------------------------------------------------------------

SHORT: dict[str, dict[str, Any]] = {"prose": {"prompt": 64, "answer": 48}, "induction": {"length": 16}}
"""Settings of tasks off target that would be longer than needed."""


def off_target(
    subject: CausalLM, names: Sequence[str], n: int, seed: int, progress: Progress | None = None
) -> pd.DataFrame:
    """How the model, as it is now, does tasks that should not move.

    Returns:
        one row an example: task, example, cluster, nll (nats a token), choice (NaN where there are no candidates).
    """
    frames = []
    for name in names:
        asked: FixedTask | Any = task(name, n=n, seed=seed, **SHORT.get(name, {}))
        found = evaluate(subject, asked.examples(subject), {CLEAN: None}, progress=progress)
        values = found.values[CLEAN]
        frames.append(
            pd.DataFrame(
                {
                    "task": name,
                    "example": range(len(found.examples)),
                    "cluster": found.clusters,
                    "nll": values["nll"],
                    "choice": values["choice"],
                }
            )
        )
    return pd.concat(frames, ignore_index=True)
