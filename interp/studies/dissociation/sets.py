"""What is asked: known facts in four sets, and contexts, each example with its scopes marked as spans."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from interp.errors import NoAcceptedExample
from interp.tasks.base import Example, Span, Task, stable_seed

if TYPE_CHECKING:
    from interp.measure.outcomes import Progress
    from interp.models.subject import CausalLM
    from interp.studies.dissociation.spec import DissociationSpec

FACTS = ("fit", "held", "other")
CONTEXT = ("needle", "induction")
OFF = (*CONTEXT, "prose")
"""Tasks that need no fact."""

CONTENT = ("content", "answer")
SCOPES: Mapping[str, str | tuple[str, ...]] = {"content": CONTENT, "place": ("place",), "all": "all"}
"""Scopes of cuts, by the names that tables have; `content` and `place` are spans that `marked` makes."""

KINDS = (("names", "words"), ("numbers", "phrases"))
"""Kinds of needles that heads are chosen on, and of those that are held out."""

PROSE = 32
"""Tokens of a passage, and as many that follow."""


def marked(example: Example) -> Example:
    """The example with the spans `content` (all but its first token) and `place` (the token that is asked about)."""
    asked = example.spans_of("subject") or example.spans_of("query")
    place = asked[-1].end - 1 if asked else len(example.ids) - 1
    more = (Span(1, len(example.ids), "content"), Span(place, place + 1, "place"))
    return replace(example, spans=(*example.spans, *more))


# -- facts -----------------------------------------------------------------------------------------------------------


def asked_of(spec: DissociationSpec, relation: str) -> Task:
    """Every fact of a relation, in the wordings of the spec."""
    from interp.tasks.registry import task

    return task("facts", relations=[relation], templates=list(spec.wordings), n=None, seed=spec.seed)


def answered(
    subject: CausalLM, spec: DissociationSpec, relation: str, progress: Progress | None
) -> pd.DataFrame:
    """Which facts of a relation the model answers right, unasked and greedily."""
    from interp.measure.outcomes import evaluate

    every = asked_of(spec, relation).examples(subject)
    order = shuffled(sorted({str(e.meta["subject"]) for e in every}), spec.seed, relation)[: spec.asked]
    examples = [e for e in every if e.meta["subject"] in order]
    right = evaluate(subject, examples, {"clean": None}, progress=progress).values["clean"]["accuracy"]
    rows = [
        {k: e.meta[k] for k in ("relation", "subject", "object", "template", "surface")}
        | {"known": bool(ok > 0.5), "twin": spec.corruption == "noise" or spec.corruption in e.corrupt}
        for e, ok in zip(examples, right, strict=True)
    ]
    return pd.DataFrame(rows)


def shuffled(names: Sequence[str], *seed: object) -> list[str]:
    """Names in an order of the seed's own."""
    order = np.random.default_rng(stable_seed("dissociation", *seed)).permutation(len(names))
    return [names[i] for i in order]


def split(asked: pd.DataFrame, spec: DissociationSpec) -> pd.DataFrame:
    """The questions with `use` of their relation, the `split` of those that are known, and which are `taken`.

    Relations of enough known subjects take turns, those of most first: `fit`, `other`, `fit`, ... A question whose
    subject gives the answer away, or that has no twin, is not used. Of each subject and relation the first wording that
    is known stands for it, and relations take turns until a set is full: `turn` is its place among those of its set and
    relation (-1 for what does not stand for a fact).
    """
    usable = asked["known"] & ~asked["surface"] & asked["twin"]
    count = asked[usable].groupby("relation")["subject"].nunique()
    ranked = sorted((r for r in count.index if count[r] >= spec.least), key=lambda r: (-count[r], r))
    use = {r: ("fit", "other")[i % 2] for i, r in enumerate(ranked)}
    subjects = shuffled(sorted(set(asked["subject"])), spec.seed, "subjects")
    fitted = set(subjects[: len(subjects) // 2])
    names = {("fit", True): "fit", ("fit", False): "held", ("other", False): "other", ("other", True): "kin"}
    out = asked.assign(use=[use.get(r, "") for r in asked["relation"]])
    mine = zip(out["use"], out["subject"], usable, strict=True)
    out["split"] = [names[u, s in fitted] if u and ok else "" for u, s, ok in mine]
    place = {s: i for i, s in enumerate(subjects)}
    first = out[out["split"] != ""].drop_duplicates(["relation", "subject"])
    first = first.assign(turn=first["subject"].map(place)).sort_values("turn", kind="stable")
    first["turn"] = first.groupby(["split", "relation"]).cumcount()
    first = first.sort_values(["turn", "relation"], kind="stable")
    taken = first[first.groupby("split").cumcount() < spec.facts_n]
    out["taken"] = out.index.isin(taken.index)
    out["turn"] = first["turn"].reindex(out.index, fill_value=-1)
    return out


def in_turn(asked: pd.DataFrame, *names: str) -> pd.DataFrame:
    """The measured facts of some sets, relations in turn, so that the first ones are of many relations."""
    own = asked[asked["taken"] & asked["split"].isin(names)]
    return own.sort_values(["turn", "relation"], kind="stable")


def census(asked: pd.DataFrame) -> pd.DataFrame:
    """How many questions of each relation are known, with an interval over subjects."""
    from interp.measure.stats import proportion_ci

    rows = []
    for relation, own in asked.groupby("relation", sort=True):
        low, high = proportion_ci(own["known"].to_numpy(float), own["subject"].to_numpy())
        row = {"relation": relation, "asked": len(own), "known": int(own["known"].sum())}
        row |= {"subjects": own.loc[own["known"], "subject"].nunique(), "accuracy": own["known"].mean()}
        rows.append(row | {"ci_lo": low, "ci_hi": high, "use": own["use"].iloc[0]})
    return pd.DataFrame(rows)


class Questions:
    """The examples of questions of a table, made when they are asked for."""

    def __init__(self, subject: CausalLM, spec: DissociationSpec):
        self._subject = subject
        self._spec = spec
        self._made: dict[str, dict[tuple[str, int], Example]] = {}

    def of(self, rows: pd.DataFrame) -> list[Example]:
        """Marked examples of some rows of the table `facts`, in their order."""
        return [self._one(str(r.relation), str(r.subject), int(r.template)) for r in rows.itertuples()]

    def _one(self, relation: str, subject: str, template: int) -> Example:
        if relation not in self._made:
            every = asked_of(self._spec, relation).examples(self._subject)
            self._made[relation] = {(str(e.meta["subject"]), int(e.meta["template"])): e for e in every}
        return marked(self._made[relation][subject, template])


# -- contexts --------------------------------------------------------------------------------------------------------


def needles(spec: DissociationSpec, *, held: bool, length: int, n: int) -> Task:
    """Needles of two kinds in one half of the haystack: what is chosen is chosen on the others, in the other one."""
    from interp.tasks.registry import task

    half = ("train", "test")[held]
    return task("niah", length=length, haystack=half, kinds=KINDS[held], n=n, seed=spec.seed + held)


def contexts(spec: DissociationSpec, *, held: bool, length: int, sizes: Mapping[str, int]) -> dict[str, Task]:
    """Needles, induction and prose, held out or not."""
    from interp.tasks.registry import task

    seed = spec.seed + held
    return {
        "needle": needles(spec, held=held, length=length, n=sizes["needle"]),
        "induction": task("induction", length=spec.induction_length, n=sizes["induction"], seed=seed),
        "prose": task("prose", prompt=PROSE, answer=PROSE, n=sizes["prose"], seed=seed),
    }


def maybe(make: Callable[[], list[Example]], remark: Callable[[str], None]) -> list[Example]:
    """Marked examples; none, and a remark, where they cannot be asked of this model or tokenizer."""
    from interp.errors import BrokenData

    try:
        return [marked(e) for e in make()]
    except (NoAcceptedExample, BrokenData) as why:
        remark(str(why))
        return []
