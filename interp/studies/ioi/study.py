"""The circuit for indirect objects, found stage by stage, cut, and held against the weights.

`run` makes, in order: `attention` (where heads look), `edges` (paths from all heads to the receivers of each stage,
which are the heads of a class found before), `heads` (classes by rule, see `classes`), `templates` (effects by
template), `confirm` (the chosen paths on prompts of another seed), `faithfulness` (all heads but the circuit's
replaced), `knockout` (each class cut, beside matched others) and `weights` with `predicted` (whether channel scores
know the edges). Running it again goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from interp.studies.base import Study
from interp.studies.ioi.classes import CLASSES, STEPS, Step, circuit, classed, judged, members
from interp.studies.ioi.spec import IOISpec

if TYPE_CHECKING:
    from interp.intervene.reference import Reference
    from interp.models.sites import Head
    from interp.tasks.base import Example, Task

MECHANISM = "IOI circuit"


class IOIStudy(Study[IOISpec]):
    """The parts of a study of indirect objects."""

    @property
    def steps(self) -> list[Step]:
        """The stages of the spec, in order; heads for all others come from the first."""
        return [s for s in STEPS if s.name in ("direct", *self.spec.stages)]

    def task(self, held: bool = False) -> Task:
        """Prompts that heads are found on, or those of the other seed."""
        from interp.tasks.registry import task

        n = self.spec.held if held else self.spec.n
        return task("ioi", n=n, seed=self.spec.seed + held)

    def examples(self, held: bool = False) -> list[Example]:
        """The same with the token behind the subject's first mention marked."""
        from interp.studies.ioi.roles import marked

        return [marked(e) for e in self.task(held).examples(self.subject)]

    def tables(self) -> None:
        """All parts, in order.

        Raises:
            NoAcceptedExample: the tokenizer makes no prompt of the templates.
        """
        self.locate()
        self.templates()
        self.confirm()
        if circuit(self.heads):
            self.job.table("faithfulness", self.faithful)
            self.knockout()
        else:
            self.job.remark("no head has a class, so no circuit was cut")
        self.predict()

    # -- finding -----------------------------------------------------------------------------------------------------

    def locate(self) -> None:
        """Stage after stage: paths from all heads to the receivers that the stages before have found."""
        from interp.studies.ioi.roles import role_attention

        attention = self.job.table("attention", lambda: role_attention(self.subject, self.examples()))
        spec = self.spec
        edges: list[pd.DataFrame] = []
        found: list[pd.DataFrame] = []
        self.heads = classed(STEPS[0], attention.head(0).assign(effect=0.0), attention, spec.look)
        for step in self.steps:
            receivers = self.receivers(step)
            if not receivers:
                self.job.remark(f"stage {step.name}: no head of class '{step.of}' that another could send to")
                continue
            values = self.values(step, receivers, "heads", held=False)
            effects = judged(_effects(values, spec.seed), level=spec.level, least=spec.least, most=spec.most)
            edges.append(effects.assign(stage=step.name))
            found.append(classed(step, effects[effects["chosen"]], attention, spec.look))
            # A head keeps the class of its first stage: it may serve later ones too, which its rows tell.
            self.heads = pd.concat(found, ignore_index=True)
        self.edges = pd.concat(edges, ignore_index=True)
        self.write("edges", self.edges)
        self.write("heads", self.heads)

    def receivers(self, step: Step) -> list[str]:
        """Names of what a stage sends to."""
        if not step.of:
            return ["logits"]
        from interp.models.sites import component

        # Before the first layer there is no head that could send.
        heads = [h for h in members(self.heads, step.of) if component(h).layer]
        return [f"{head}.{step.input}" for head in heads]

    def values(self, step: Step, receivers: Sequence[str], senders: str, *, held: bool) -> pd.DataFrame:
        """Every example with each path of a stage patched; stored with what it cost."""
        name = f"{'held' if held else 'paths'}-{step.name}"

        def make() -> pd.DataFrame:
            from interp.locate.circuits.path_patching import path_values

            with self.stage(f"{name}: to {' '.join(receivers)}") as report:
                found = path_values(
                    self.subject,
                    self.examples(held),
                    receivers,
                    senders=senders,
                    corruption=self.spec.corruption,
                    scope=step.scope or None,
                    freeze_mlps=self.spec.freeze_mlps,
                    progress=report,
                )
            costs = {k: found.attrs[k] for k in ("token_layers", "naive_token_layers")}
            return found.assign(**costs)

        return self.job.table(f"parts/{name}", make)

    def templates(self) -> None:
        """Effects of the chosen paths by template."""

        def make() -> pd.DataFrame:
            parts = []
            for stage, own in self.edges[self.edges["chosen"]].groupby("stage", sort=False):
                values = pd.read_parquet(self.job.folder / "parts" / f"paths-{stage}.parquet")
                values = values[values["sender"].isin(own["sender"])]
                means = values.groupby(["sender", "cluster"], sort=False)[
                    ["value", "clean", "corrupt"]
                ].mean()
                effect = (means["value"] - means["clean"]) / (means["corrupt"] - means["clean"])
                parts.append(means.assign(effect=effect, stage=stage).reset_index())
            columns = ["sender", "cluster", "value", "clean", "corrupt", "effect", "stage"]
            out = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)
            return out.rename(columns={"cluster": "template"})

        self.job.table("templates", make)

    def confirm(self) -> None:
        """The chosen paths of each stage on prompts of the other seed."""

        def make() -> pd.DataFrame:
            parts = []
            for step in self.steps:
                own = self.edges[(self.edges["stage"] == step.name) & self.edges["chosen"]]
                if not len(own):
                    continue
                values = self.values(step, self.receivers(step), " ".join(own["sender"]), held=True)
                again = judged(
                    _effects(values, self.spec.seed), level=self.spec.level, least=0, most=len(own)
                )
                found = own.set_index("sender")["effect"].reindex(again["sender"]).to_numpy()
                same = (again["q"] <= self.spec.level) & (np.sign(again["effect"]) == np.sign(found))
                parts.append(
                    again.assign(stage=step.name, found=found, confirmed=same).drop(columns="chosen")
                )
            return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()

        self.job.table("confirm", make)

    # -- cutting -----------------------------------------------------------------------------------------------------

    def controls(self, k: int) -> int:
        """Matched sets of k heads that are drawn beside the circuit; none where it leaves fewer heads than that."""
        if self.subject.n_layers * self.subject.n_heads - len(circuit(self.heads)) >= k:
            return self.spec.controls
        self.job.remark(f"no controls of {k} heads: the circuit leaves too few to draw from")
        return 0

    def references(self) -> dict[str, Reference]:
        """What heads are replaced by: means of the prompts without a repeated name, by role, and the twin's own."""
        from interp.intervene.reference import Reference

        others = [e.corrupt["abc"] for e in self.task().examples(self.subject)]
        return {"mean": Reference(others, "role", n=64), "resample": Reference(None, "twin", "abc")}

    def faithful(self) -> pd.DataFrame:
        """All heads but the circuit's replaced; beside none replaced, all, and all but matched others.

        Returns:
            mode, kept (`circuit`, `matched`, a class left out as `without CLASS`), draw, k, logit_diff, accuracy,
            faithfulness (0 is all heads replaced, 1 the intact model) with ci_lo and ci_hi over clusters.
        """
        from interp.intervene.ablate import ablate
        from interp.locate.circuits.path_patching import ratio_ci
        from interp.measure.controls import matched
        from interp.measure.outcomes import evaluate
        from interp.models.sites import components

        chosen = components(circuit(self.heads))
        sets: dict[tuple[str, int], Sequence[Any]] = {("circuit", -1): chosen}
        for name in CLASSES:
            if own := set(components(members(self.heads, name))):
                sets[f"without {name}", -1] = [c for c in chosen if c not in own]
        draws = self.controls(len(chosen))
        others = matched(self.subject, chosen, draws, seed=self.spec.seed) if draws else ()
        for draw, heads in enumerate(others):
            sets["matched", draw] = heads
        every = self.subject.heads()
        conditions: dict[str, Any] = {"clean": None}
        for mode, reference in self.references().items():
            conditions[f"{mode} all"] = ablate(every, mode, "all", reference)  # type: ignore[arg-type]
            for (name, draw), kept in sets.items():
                rest = [h for h in every if h not in set(kept)]
                conditions[f"{mode} {name} {draw}"] = ablate(rest, mode, "all", reference)  # type: ignore[arg-type]
        with self.stage("faithfulness") as report:
            told = evaluate(
                self.subject, self.task(held=True).examples(self.subject), conditions, progress=report
            )
        clean = told.values["clean"]["logit_diff"]
        rows = []
        for mode in self.references():
            empty = told.values[f"{mode} all"]["logit_diff"]
            for (name, draw), kept in sets.items():
                found = told.values[f"{mode} {name} {draw}"]
                up, whole = found["logit_diff"] - empty, clean - empty
                low, high = ratio_ci(up, whole, told.clusters, self.spec.seed)
                rows.append(
                    {
                        "mode": mode,
                        "kept": name,
                        "draw": draw,
                        "k": len(kept),
                        "logit_diff": found["logit_diff"].mean(),
                        "accuracy": (found["logit_diff"] > 0).mean(),
                        "faithfulness": up.mean() / whole.mean(),
                        "ci_lo": low,
                        "ci_hi": high,
                        "clean": clean.mean(),
                        "empty": empty.mean(),
                    }
                )
        return pd.DataFrame(rows)

    def knockout(self) -> None:
        """Each class cut, and all together, on prompts of the other seed, beside matched others."""
        parts = []
        for name in (*CLASSES, "circuit"):
            heads = circuit(self.heads) if name == "circuit" else members(self.heads, name)
            if heads:
                file = f"parts/knockout-{name.replace(' ', '-').lower()}"
                parts.append(self.job.table(file, partial(self._cut, name, heads)))
        self.write("knockout", pd.concat(parts, ignore_index=True))

    def _cut(self, name: str, heads: Sequence[str]) -> pd.DataFrame:
        from interp.intervene.ablate import ablate
        from interp.measure.effects import measure
        from interp.models.sites import components

        taken = components(circuit(self.heads))
        with self.stage(f"knock out: {name}") as report:
            from interp.measure.plans import with_controls

            cut = ablate(heads, "mean", "all", self.references()["mean"])
            plan = with_controls(
                self.subject, cut, controls=self.controls(len(heads)), avoid=taken, seed=self.spec.seed
            )
            rows = measure(
                self.subject,
                self.task(held=True),
                plan,
                metrics=("logit_diff", "accuracy"),
                off_target=(),
                mechanism=MECHANISM,
                locator="path patching",
                seed=self.spec.seed,
                floor="mark",
                progress=report,
            )
        return rows.assign(**{"class": name})

    # -- weights -----------------------------------------------------------------------------------------------------

    def predict(self) -> None:
        """Channel scores of all pairs of each stage, and how well they tell the chosen ones."""
        pairs = self.job.table("weights", self._weights)

        def make() -> pd.DataFrame:
            from interp.studies.ioi.weights import SCORES, predicted

            # Scores of different inputs do not compare, their ranks within a stage do.
            ranks = pairs.assign(**pairs.groupby("stage")[list(SCORES)].rank(pct=True))
            groups = [*pairs.groupby("stage", sort=False), *([("all", ranks)] if len(ranks) else [])]
            rows = []
            for stage, own in groups:
                for score in SCORES:
                    found = predicted(
                        own[score].to_numpy(float),
                        own["chosen"].to_numpy(bool),
                        (own["stage"] + own["layer"].astype(str).str.rjust(4)).to_numpy(str),
                        draws=self.spec.draws,
                        seed=self.spec.seed,
                    )
                    rows.append({"stage": stage, "score": score, **found})
            return pd.DataFrame(rows)

        self.job.table("predicted", make)

    def _weights(self) -> pd.DataFrame:
        from interp.models.sites import components
        from interp.studies.ioi.weights import SCORES, pair_scores

        steps = [s for s in self.steps if s.of and s.name in set(self.edges["stage"])]
        wanted: dict[Any, list[Head]] = {}
        for step in steps:
            heads = components(members(self.heads, step.of))
            known = wanted.setdefault(step.input.upper(), [])
            known += [h for h in heads if h not in known]  # type: ignore[misc]
        with self.stage("channel scores") as report:
            scores = pair_scores(self.subject, wanted, report)
        parts = []
        for step in steps:
            own = scores[
                (scores["mode"] == step.input.upper()) & scores["reader"].isin(members(self.heads, step.of))
            ]
            best = own.groupby("writer")[list(SCORES)].max()
            edges = self.edges[self.edges["stage"] == step.name].set_index("sender")
            known = edges[["layer", "head", "effect", "q", "chosen"]].join(best, how="inner")
            parts.append(known.rename_axis("sender").reset_index().assign(stage=step.name))
        columns = ["sender", "layer", "head", "effect", "q", "chosen", *SCORES, "stage"]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


run = IOIStudy.run


def _effects(values: pd.DataFrame, seed: int) -> pd.DataFrame:
    from interp.locate.circuits.path_patching import path_effects

    costs = {k: int(values[k].iloc[0]) for k in ("token_layers", "naive_token_layers")}
    return path_effects(values, seed=seed).assign(**costs)
