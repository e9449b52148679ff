"""The study of double dissociation, part by part: from a spec to a folder of tables, going on where it stopped.

Facts that the model knows are split by subject: `fit` (what layers and neurons are chosen on), `held` (other subjects,
same relations), `other` (other subjects, other relations) and `kin` (subjects of `fit` in other relations). Cuts:
`fact layers 3` (the best three), `fact window 5`, `fact neurons`, `retrieval heads`. Tasks: the three sets of facts,
`needle`, `induction`, `prose`. Scopes: `content` (every token but the first, where models keep a sink of attention:
what is cut there hurts everything), `place` (one token: the last of a subject or of a needle's query, the one to be
continued, the last of a passage), `all`. Metrics: `accuracy`, `probability` (of the answer, geometric mean over its
tokens), `nll`; a loss is the share of the clean model's that is gone, of `nll` the nats more. Intervals (95 %, columns
`_lo` and `_hi`) are over clusters (subjects, haystacks, topics), and where controls take part over their sets, too.

Tables, and what is a row of each:

facts: a question. relation, subject, object, template, known, surface, use (fit, other, ''), split, taken (measured),
    turn (of the fact among those of its set and relation).
census: a relation. relation, asked, known, subjects (known in a wording), accuracy, ci_lo, ci_hi, use.
layers: a layer. Columns of `FactMLPs.layers_` (of the fit facts), rank, chosen (in the largest set of best layers),
    window (in the widest window).
neurons: a neuron. component, layer, score, se, n, rank, chosen. fact_neurons: a fit fact and a neuron measured on it;
    columns of `FactMLPs.neurons_`, relation.
heads: a head. component, layer, head, score, rank, chosen. Empty where the model recalls no needle.
cells: a task, cut or control, and example. task, mechanism, scope, condition (clean, cut, control), draw, example,
    cluster, relation, accuracy, nll, probability, status (ok, at chance).
profile: a layer cut alone, scope, task, metric. layer, scope, task, metric, clean, value, loss, loss_lo, loss_hi, n,
    n_clusters, status.
vital: a layer, scope, metric. layer, scope, metric, aie, aie_lo, aie_hi, score, rank, chosen, fact_loss (held facts)
    with fact_lo and fact_hi, other_loss (other relations), off_task (of needle, induction, prose: where `own` is
    least), off_loss with off_lo and off_hi, gap (fact_loss - off_loss), gap_lo, gap_hi, own (fact_loss - 2 off_loss:
    above zero where most of the loss is no general damage), own_lo, own_hi, judged (the
    tasks that it was held against), passes, verdict.
sink: a layer, task, metric. layer, task, metric, loss_all, loss_content, first (their difference), first_lo, first_hi.
neuron_facts: a group of facts, metric: facts asked while neurons of one fact are cut at its place. group (own, other
    wording, same relation, same subject, other), metric, clean, value, loss, loss_lo, loss_hi, control_mean, excess,
    excess_lo, excess_hi, gap (loss of `own`, under the cuts that the group is asked under, - of the group), gap_lo,
    gap_hi, n, n_clusters (subjects), n_controls.
effects: a task, mechanism, scope, condition, draw, metric. task, role, mechanism, scope, condition, draw, k,
    components, mode, reference, match, match_gap, n_distinct, metric, clean, value, loss, loss_lo, loss_hi, p_cluster,
    n, n_clusters, status; of cuts: control_mean, control_sd, rank, n_controls, excess, excess_lo, excess_hi.
dissociation: a fact mechanism, scope, fact task, context task, metric. mechanism, scope, fact_task, context_task,
    metric, mlp_fact, mlp_context (losses), mlp_gap (fact - context), mlp_beyond (that gap beyond the controls'),
    heads_fact, heads_context, heads_gap (context - fact), heads_beyond, interaction (mlp_gap + heads_gap), primary,
    verdict; gaps, beyonds and interaction with _lo and _hi.

A dissociation `holds` where both gaps are above zero, as they are and beyond controls, by their intervals; where one
side's are, the verdict is `facts only` or `context only`; else it is `does not hold` (`no heads`, `no controls`,
`at chance` where it cannot be told). `primary` marks the row that was named before anything was measured: the largest
set of best layers, `content`, `held` against `needle`, `probability`. A layer `passes` as a fact store where its AIE is
above zero and its cut costs the held facts more than twice what it costs each of needle, induction and prose; its
verdict is then `store`, else `general` where one of those tasks is hurt, else `none`; `not judged` where one of them
was not measured so or is at chance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import pandas as pd

from interp.errors import BrokenData, NoAcceptedExample
from interp.studies.base import Study
from interp.studies.dissociation import sets
from interp.studies.dissociation.spec import DissociationSpec

if TYPE_CHECKING:
    from interp.intervene.reference import Reference
    from interp.models.sites import Component
    from interp.tasks.base import Example

MEANS = 16
"""Needles that means of heads are taken over."""

HEAD_COLUMNS = ["component", "layer", "head", "score", "rank", "chosen"]


class DissociationStudy(Study[DissociationSpec]):
    """The parts of a study of double dissociation."""

    def tables(self) -> None:
        """Every part of the spec, in order.

        Raises:
            NoAcceptedExample: too few facts are known to be split.
        """
        parts = self.spec.parts
        self.write("facts", self.asked)
        self.write("census", sets.census(self.asked))
        if {"layers", "profile", "neurons", "matrix"} & set(parts):
            self.write("layers", self.layers)
            self.write("neurons", self.neurons)
            self.write("fact_neurons", self.measured_neurons)
        if "profile" in parts:
            self.profile()
        if "neurons" in parts:
            self.single_facts()
        if "matrix" in parts:
            self.write("heads", self.heads)
            self.matrix()

    # -- facts -------------------------------------------------------------------------------------------------------

    @cached_property
    def asked(self) -> pd.DataFrame:
        """Every question, whether it is known, and what it is used for."""
        from interp.tasks.facts import names

        relations = self.spec.relations or names()
        found = [self.job.table(f"parts/known-{name}", partial(self._known, name)) for name in relations]
        out = sets.split(pd.concat(found, ignore_index=True), self.spec)
        if not (out["taken"] & (out["split"] == "fit")).any():
            raise NoAcceptedExample(
                f"{self.subject.name} knows {int(out['known'].sum())} of {len(out)} questions, and no relation has "
                f"{self.spec.least} subjects that it knows: ask more with --set asked=..., or take a smaller least"
            )
        return out

    def _known(self, relation: str) -> pd.DataFrame:
        with self.stage(f"facts: {relation}") as report:
            return sets.answered(self.subject, self.spec, relation, report)

    @cached_property
    def questions(self) -> sets.Questions:
        """Examples of the questions."""
        return sets.Questions(self.subject, self.spec)

    def facts_of(self, split: str) -> list[Example]:
        """The facts of a set that are measured."""
        return self.questions.of(sets.in_turn(self.asked, split))

    # -- layers and neurons ------------------------------------------------------------------------------------------

    @cached_property
    def fitted(self) -> list[pd.DataFrame]:
        """What `FactMLPs` learns from the facts that are fitted: layers, neurons' scores, neurons of each fact."""
        return self.together(("parts/layers", "parts/neurons", "parts/fact_neurons"), self._fit)

    def _fit(self) -> list[pd.DataFrame]:
        from interp.locate.facts.fact_mlps import NEURONS, FactMLPs

        spec = self.spec
        with self.stage("fact MLPs") as report:
            found = FactMLPs(
                spec.corruption,
                samples=spec.samples,
                n_layers=min(spec.neuron_layers, self.subject.n_layers),
                metric="logprob",  # not every fact has a foil that parts from all its answers
                exact=spec.exact,
                check=spec.check,
                scope=sets.CONTENT,
                seed=spec.seed,
            ).fit(self.subject, self.facts_of("fit"), reference=self._reference(), progress=report)
        scores = found.scores_
        return [found.layers_, scores[scores["method"] == NEURONS].reset_index(drop=True), found.neurons_]

    def _reference(self) -> list[Example]:
        """What should not need the facts, of the halves that nothing is measured on."""
        spec = self.spec
        sizes = dict.fromkeys(sets.OFF, spec.reference_n)
        found = sets.contexts(spec, held=False, length=spec.reference_length, sizes=sizes).values()
        every = [sets.maybe(partial(task.examples, self.subject), self.job.remark) for task in found]
        return [e for part in every for e in part]

    @cached_property
    def layers(self) -> pd.DataFrame:
        """Scores of the layers, and those that are cut."""
        from interp.studies.dissociation.cuts import window

        out = ranked(self.fitted[0], max(self.spec.layers))
        if self.spec.windows:
            width = min(max(self.spec.windows), len(out))
            best = window(out.set_index("layer")["score"].to_dict(), width)
            out["window"] = out["layer"].isin(best)
        return out

    @cached_property
    def neurons(self) -> pd.DataFrame:
        """Scores of the neurons, and those that are cut together."""
        return ranked(self.fitted[1], self.spec.neurons)

    @property
    def measured_neurons(self) -> pd.DataFrame:
        """What zeroing single neurons costs each fitted fact."""
        relation = [str(e.meta["relation"]) for e in self.facts_of("fit")]
        found = self.fitted[2]
        return found.assign(relation=[relation[i] for i in found["example"]])

    # -- every layer -------------------------------------------------------------------------------------------------

    def profile(self) -> None:
        """Every layer cut alone on held-out facts and on what needs none."""
        from interp.studies.dissociation import tables

        spec = self.spec
        sizes = dict.fromkeys(sets.OFF, spec.profile_n) | {"induction": 2 * spec.profile_n}
        off = sets.contexts(spec, held=True, length=spec.profile_length, sizes=sizes)
        makes: dict[str, Callable[[], list[Example]]] = {
            "held": lambda: self.facts_of("held")[: 2 * spec.profile_n],
            "other": lambda: self.facts_of("other")[: 2 * spec.profile_n],
            **{name: partial(task.examples, self.subject) for name, task in off.items()},
        }
        found = [
            self.job.table(f"parts/profile-{name}", partial(self._profiled, name, make))
            for name, make in makes.items()
        ]
        cells = pd.concat([f for f in found if len(f)], ignore_index=True)
        self.write("profile", tables.profile(cells, spec.seed))
        self.write("vital", tables.vital(cells, self.layers, spec.seed))
        self.write("sink", tables.sink(cells, spec.seed))

    def _profiled(self, name: str, make: Callable[[], list[Example]]) -> pd.DataFrame:
        from interp.models.sites import MLP

        scopes = ["content", "place", "all"] if name in ("held", "prose") else ["content", "place"]
        layers = range(self.subject.n_layers)
        parts = {f"M{i}": [MLP(i)] for i in layers}
        return self._cells(name, make, self._planned(parts, scopes, 0), f"every layer: {name}")

    # -- single facts ------------------------------------------------------------------------------------------------

    def single_facts(self) -> None:
        """The neurons of one fact cut, and that fact and others asked."""
        from interp.studies.dissociation.neurons import summary

        cells = self.job.table("parts/single_facts", self._single_facts)
        self.write("neuron_facts", summary(cells, self.spec.seed))

    def _single_facts(self) -> pd.DataFrame:
        from interp.studies.dissociation.neurons import single_facts

        with self.stage("neurons of single facts") as report:
            return single_facts(
                self.subject,
                self.spec,
                self.asked,
                self.questions,
                self.fitted[2],
                remark=self.job.remark,
                progress=report,
            )

    # -- heads -------------------------------------------------------------------------------------------------------

    @cached_property
    def heads(self) -> pd.DataFrame:
        """Scores of retrieval heads, and those that are cut."""
        return self.job.table("parts/heads", self._heads)

    def _heads(self) -> pd.DataFrame:
        from interp.locate.interop import read_heads
        from interp.locate.retrieval_heads import RetrievalHeads

        spec = self.spec
        if spec.heads is not None:
            found = read_heads(spec.heads).ranking()
        else:
            needles = sets.needles(spec, held=False, length=spec.needle_length, n=spec.heads_n)
            try:
                with self.stage("retrieval heads") as report:
                    found = RetrievalHeads().fit(self.subject, needles, progress=report).ranking()
            except (NoAcceptedExample, BrokenData) as why:
                self.job.remark(f"no retrieval heads are cut: {why}")
                return pd.DataFrame(columns=HEAD_COLUMNS)
        most = self.subject.n_layers * self.subject.n_heads // 3
        return ranked(found, min(spec.heads_k, most))[HEAD_COLUMNS]

    @cached_property
    def means(self) -> Reference:
        """What heads' means are of: needles that nothing is measured on."""
        from interp.intervene.reference import Reference

        spec = self.spec
        return Reference(sets.needles(spec, held=False, length=spec.needle_length, n=MEANS), n=MEANS)

    # -- matrix ------------------------------------------------------------------------------------------------------

    def matrix(self) -> None:
        """Fact MLPs and retrieval heads, each cut on facts and contexts, beside matched controls."""
        from interp.studies.dissociation import tables

        spec = self.spec
        cuts = self.job.table("parts/cuts", self._cuts)
        sizes = {"needle": spec.needle_n, "induction": spec.induction_n, "prose": spec.prose_n}
        off = sets.contexts(spec, held=True, length=spec.needle_length, sizes=sizes)
        makes: dict[str, Callable[[], list[Example]]] = {
            **{name: partial(self.facts_of, name) for name in sets.FACTS},
            **{name: partial(task.examples, self.subject) for name, task in off.items()},
        }
        found = []
        for name, make in makes.items():
            for mechanism, own in cuts.groupby("mechanism", sort=False):
                label = f"{name}-{mechanism}".replace(" ", "_")
                part = partial(self._cells, name, make, own, f"{mechanism} on {name}")
                found.append(self.job.table(f"parts/cells-{label}", part))
        cells = pd.concat([f for f in found if len(f)], ignore_index=True)
        cells = cells.drop_duplicates(["task", *tables.CUT, "example"], ignore_index=True)
        self.write("cells", cells)
        self.write("effects", tables.effects(cells, cuts, spec.seed))
        primary = f"fact layers {max(spec.layers)}"
        self.write("dissociation", tables.dissociation(cells, "content", primary, spec.seed))

    def _cuts(self) -> pd.DataFrame:
        """Every cut of the matrix with its controls."""
        from interp.models.sites import MLP, component
        from interp.studies.dissociation.cuts import window
        from interp.studies.dissociation.tables import HEADS

        spec, layers = self.spec, self.layers
        order = layers.sort_values("rank")["layer"].tolist()
        scores = layers.set_index("layer")["score"].to_dict()
        parts: dict[str, Sequence[Component]] = {}
        for k in spec.layers:
            parts[f"fact layers {k}"] = [MLP(int(i)) for i in order[:k]]
        for width in spec.windows:
            parts[f"fact window {width}"] = [MLP(i) for i in window(scores, min(width, len(order)))]
        neurons = self.neurons[self.neurons["chosen"]].sort_values("rank")
        parts["fact neurons"] = [component(c) for c in neurons["component"]]
        with self.stage("matched controls"):
            mlps = self._planned(parts, ["content", "place"], spec.controls)
            if self.heads.empty:
                return mlps
            chosen = self.heads[self.heads["chosen"]].sort_values("rank")
            top = {HEADS: [component(c) for c in chosen["component"]]}
            heads = self._planned(top, ["content"], spec.controls, mode=spec.heads_mode)
        return pd.concat([mlps, heads], ignore_index=True)

    # -- what parts share --------------------------------------------------------------------------------------------

    def _planned(
        self, parts: dict[str, Any], scopes: Sequence[str], controls: int, mode: str = "zero"
    ) -> pd.DataFrame:
        from interp.studies.dissociation.cuts import planned

        data = self.facts_of("fit") if controls else []
        found = [
            planned(
                self.subject,
                name,
                own,
                scopes,
                mode=mode,
                controls=controls,
                data=data,
                seed=self.spec.seed,
                remark=self.job.remark,
            )
            for name, own in parts.items()
        ]
        return pd.concat(found, ignore_index=True)

    def _cells(
        self, name: str, make: Callable[[], list[Example]], cuts: pd.DataFrame, what: str
    ) -> pd.DataFrame:
        from interp.studies.dissociation.cuts import cells

        examples = make() if name in sets.FACTS else sets.maybe(make, self.job.remark)
        if not examples:
            self.job.remark(f"{name}: there is no example to measure on")
            return pd.DataFrame()
        with self.stage(what) as report:
            return cells(self.subject, name, examples, cuts, self.means, report)


def ranked(scores: pd.DataFrame, k: int) -> pd.DataFrame:
    """Scores with their rank (1 is best; of equals the first), and the first `k` chosen."""
    order = scores["score"].rank(ascending=False, method="first").astype(int)
    return scores.assign(rank=order, chosen=order <= k)


run = DissociationStudy.run
