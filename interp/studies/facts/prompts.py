"""Prompts of each scenario in one order: relations in turn, new subjects first, each with an aligned twin."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from interp.intervene.tracing.places import LAST_OF, places_of
from interp.measure.scenario_sets import examples
from interp.measure.scenarios import Scenarios
from interp.models.subject import CausalLM
from interp.tasks.base import Example


def chosen(found: Scenarios, scenario: str, n: int, seed: int) -> list[Example]:
    """The first `n` prompts of a scenario, or as many as there are.

    A prompt needs a twin of as many tokens with another answer, and has to go on after its subject.

    Raises:
        NoAcceptedExample: the model says nothing of the sort.
    """
    every = examples(found, scenario, seed=seed).examples(None)
    usable = [e for e in every if e.corrupt and LAST_OF in places_of(e)]
    turns: dict[tuple[str, str], int] = {}
    order = []
    for e in usable:
        about = (str(e.meta["relation"]), e.cluster)
        turns[about] = turns.get(about, -1) + 1
        order.append((turns[about], about[0]))
    # Rounds go over subjects first; within a round each relation gives one prompt in its turn.
    rank: dict[tuple[int, str], int] = {}
    keys = []
    for turn, name in order:
        keys.append((turn, rank.setdefault((turn, name), 0)))
        rank[turn, name] += 1
    return [usable[i] for i in sorted(range(len(usable)), key=lambda i: keys[i])][:n]


def listed(subject: CausalLM, sets: dict[str, list[Example]], uses: dict[str, int]) -> pd.DataFrame:
    """One row a prompt: scenario, example, what its meta says, its tokens, its twin, and which parts took it.

    Args:
        uses: how many prompts of a scenario each part takes, by name.
    """
    rows = []
    for scenario, own in sets.items():
        for i, e in enumerate(own):
            (twin,) = e.corrupt.values()
            rows.append(
                {
                    "scenario": scenario,
                    "example": i,
                    "cluster": e.cluster,
                    "prompt": e.text,
                    **{k: e.meta[k] for k in _ABOUT},
                    "answer": subject.tokens.decode(list(e.answer_ids)),
                    "twin": twin.cluster,
                    "twin_answer": subject.tokens.decode(list(twin.answer_ids)),
                    "tokens": len(e.ids),
                    **{name: i < n for name, n in uses.items()},
                }
            )
    return pd.DataFrame(rows)


_ABOUT: Sequence[str] = ("relation", "template", "correct", "bias", "consistency", "mean_probability")
