"""A channel walked over: where in the list the thing stands that wins at each point of a grid of its coordinates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from interp.intervene.coordinates import traverse
from interp.intervene.subspace import Subspace
from interp.models.cache import Progress
from interp.models.subject import CausalLM
from interp.studies.laundry.screen import written
from interp.studies.laundry.tables import places
from interp.tasks.base import Example

SPAN = 3.0
"""Standard deviations that a grid goes to on both sides of the mean."""
FEWER = 5
"""Points along the second and third axis, at most."""


def walked(
    subject: CausalLM,
    space: Subspace,
    examples: Sequence[Example],
    points: int,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """The channel's coordinates set at the last token to the mean and up to `SPAN` standard deviations to each side.

    Returns:
        one row a point, length of list and place: point (-1: not edited), c0 c1 c2 and s0 s1 s2 (coordinates, and the
        same in standard deviations; NaN where not edited), items, place, wins (share of prompts whose winner stands
        there), again (of them, listed again), logit (mean, less the prompt's mean over the list), right (accuracy).
    """
    own = space.coordinates(written(subject, examples, [space.site])[space.site])
    mean, deviation = own.mean(0).numpy(), own.std(0).numpy()
    axes = [
        np.linspace(-SPAN, SPAN, points if axis == 0 else min(points, FEWER)) for axis in range(space.rank)
    ]
    grid = [(mean[i] + deviation[i] * axis).tolist() for i, axis in enumerate(axes)]
    frame = traverse(subject, examples, space, grid, progress=progress)
    about = pd.DataFrame(
        {"example": i, "candidate": k, "place": place, "items": e.meta["items"]}
        for i, e in enumerate(examples)
        for k, place in enumerate(places(e))
    )
    frame = frame.merge(about, on=["example", "candidate"])
    frame["logit"] -= frame.groupby(["example", "point"])["logit"].transform("mean")
    names = [f"c{i}" for i in range(space.rank)]
    frame["again"] = frame["best"] & ~frame["answer"]
    frame["right"] = frame["best"] & frame["answer"]
    means = frame.groupby(["point", *names, "items", "place"], dropna=False)[
        ["best", "again", "logit"]
    ].mean()
    right = frame[frame["answer"]].groupby(["point", "items"])["right"].mean().rename("right")
    out = (
        means.rename(columns={"best": "wins"}).reset_index().merge(right.reset_index(), on=["point", "items"])
    )
    for i in range(space.rank):
        out[f"s{i}"] = (out[f"c{i}"] - mean[i]) / deviation[i]
    columns = ["point", *names, *(f"s{i}" for i in range(space.rank))]
    return out[[*columns, "items", "place", "wins", "again", "logit", "right"]]
