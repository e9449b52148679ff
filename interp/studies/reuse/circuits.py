"""Circuits of heads, stage by stage: the locators that a study can be asked for.

A locator takes a model, examples and a spec and gives one frame, a row a stage and head: stage, component, layer, head,
score (of either sign; the largest are the circuit), ci_lo and ci_hi where there is an interval.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from interp.models.cache import Progress
from interp.models.sites import Head, component

if TYPE_CHECKING:
    from interp.models.subject import CausalLM
    from interp.studies.reuse.spec import ReuseSpec
    from interp.tasks.base import Example

Locate = Callable[["CausalLM", "Sequence[Example]", "ReuseSpec", "Progress | None"], pd.DataFrame]

COLUMNS = ["stage", "component", "layer", "head", "score", "ci_lo", "ci_hi"]


def by_paths(
    subject: CausalLM, examples: Sequence[Example], spec: ReuseSpec, report: Progress | None
) -> pd.DataFrame:
    """Path patching, first to the logits, then to queries, keys or values of the heads that the stage before found.

    The protocol of Merullo et al. (arXiv 2310.08744): the circuit is the union of the top heads of each stage.
    """
    from interp.locate.circuits.path_patching import path_patch

    found: list[pd.DataFrame] = []
    receivers = ["logits"]
    for stage in spec.stages:
        if stage != "logits":
            # Heads of the first layer read the embedding: no head sends to them.
            heads = chosen(found[-1], n_heads(subject, spec))
            receivers = [f"{h!r}.{stage}" for h in heads if h.layer > 0]
        if not receivers:
            break
        effects = path_patch(subject, examples, receivers, seed=spec.seed, progress=report)
        frame = effects.rename(columns={"sender": "component", "effect": "score"})
        found.append(frame.assign(stage=stage)[COLUMNS])
    return pd.concat(found, ignore_index=True)


def by_patches(
    subject: CausalLM, examples: Sequence[Example], spec: ReuseSpec, report: Progress | None
) -> pd.DataFrame:
    """Exact patches of each head's output at all tokens, from the corrupt run into the clean one."""
    from interp.intervene.patch import patch

    effects = patch(subject, examples, "z", direction="noise", over="head", progress=report)
    names = [repr(Head(int(r.layer), int(r.head))) for r in effects.itertuples()]
    # Recovery is 1 in the clean run: what is lost of it counts.
    frame = effects.assign(component=names, score=1 - effects["recovery"], stage="z")
    return frame.assign(ci_lo=float("nan"), ci_hi=float("nan"))[COLUMNS]


def by_screen(
    subject: CausalLM, examples: Sequence[Example], spec: ReuseSpec, report: Progress | None
) -> pd.DataFrame:
    """Attribution patching of each head's output: a gradient in place of a run for each."""
    from interp.locate.screen import screen

    found = screen(subject, examples, "head", mode="patch", seed=spec.seed, progress=report).frame
    frame = found.rename(columns={"unit": "head", "approx": "score"}).assign(stage="z")
    return frame.assign(ci_lo=float("nan"), ci_hi=float("nan"))[COLUMNS]


LOCATORS: dict[str, Locate] = {"path_patch": by_paths, "patch": by_patches, "screen": by_screen}
"""What finds circuits, by the name that a spec has for it."""


def n_heads(subject: CausalLM, spec: ReuseSpec) -> int:
    """Heads that each stage adds."""
    return max(1, round(spec.top * subject.n_layers * subject.n_heads))


def chosen(stage: pd.DataFrame, k: int) -> list[Head]:
    """The k heads of one stage whose scores are largest, of either sign."""
    order = stage["score"].abs().sort_values(ascending=False, kind="stable").index[:k]
    heads = [component(stage.loc[i, "component"]) for i in order]
    return [h for h in heads if isinstance(h, Head)]


def marked(scores: pd.DataFrame, k: int) -> pd.DataFrame:
    """Scores with `rank` within each stage and `chosen`: whether the head belongs to the circuit."""
    rank = scores.groupby("stage")["score"].transform(lambda s: s.abs().rank(ascending=False, method="first"))
    return scores.assign(rank=rank.astype("Int64"), chosen=(rank <= k).fillna(False))


def heads_of(scores: pd.DataFrame, stage: str | None = None) -> list[Head]:
    """Heads of a circuit, or what one stage gave to it, in order."""
    own = scores[scores["chosen"]] if stage is None else scores[scores["chosen"] & (scores["stage"] == stage)]
    return sorted({h for c in own["component"] if isinstance(h := component(c), Head)})
