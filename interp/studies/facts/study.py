"""Fact recall of a model, part by part: from a spec to a folder of tables, going on where it stopped.

`known` (every relation, without and with shots), `kinds` (scenarios of each relation), `prompts` (those that are used),
`effects` (what corruptions cost), `aie` (average maps by scenario), `severed` (the same with later MLPs or attention of
the token held back), `peaks`, `against_generic`, `knockout`, `extraction`, `enrichment`, `vital` (each MLP cut) and
`findings` (published findings and whether they hold). A scenario of which the model says too little is remarked in
provenance.json and left out. What stands under parts/ is measured once; all else is made of it again each time.

Columns (intervals are 95 %, over subjects, and over draws of noise):

- known: see `census.known`. kinds: see `census.kinds`. prompts: see `prompts.listed`. effects: see
  `maps.total_effects`, with `way`. peaks, against_generic: see `maps`; with way, corruption, metric, window.
- aie: scenario, way, and the columns of `interp.intervene.trace.aggregate`. Ways: `single` (layers one by one, another
  subject of as many tokens in place), `wide` (windows), `noise` (Gaussian noise; states one by one, sublayers in
  windows).
- severed: the columns of aie; rows of `resid_post` at the subject's last token, `severed` being "", mlp_out or
  attn_out.
- knockout: see `flow.knockout_curves`. extraction: scenario and the columns of `interp.locate.facts.lens.extraction`.
  enrichment: see `flow.enrichment_curves`. vital: see `flow.vital`. findings: see `findings.findings`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from interp.errors import NoAcceptedExample
from interp.runs import write_bytes
from interp.studies.base import Study
from interp.studies.facts.spec import FactsSpec

if TYPE_CHECKING:
    from interp.intervene.tracing.cells import How
    from interp.measure.scenarios import Rules, Scenarios
    from interp.studies.facts.means import Means
    from interp.tasks.base import Example
    from interp.trace.each import Progress

CHUNK = 5
"""Prompts of a part of the maps."""

REFERENCE = (10, 48)
"""Layers of a window, and of the model, in the reference."""


class FactsStudy(Study[FactsSpec]):
    """The parts of a study of fact recall."""

    def tables(self) -> None:
        """Every part, in order."""
        self.census()
        self.write("prompts", self._listed())
        self.maps()
        self.flow()
        self.judge()

    def note(self, name: str, value: dict[str, Any]) -> None:
        """A JSON file of what parts say, written again each time."""
        write_bytes(self.job.folder / f"{name}.json", json.dumps(value, indent=1).encode())

    # -- what it knows -----------------------------------------------------------------------------------------------

    def census(self) -> None:
        """Every relation, asked without and with shots."""
        from interp.studies.facts.census import asked, kinds, known
        from interp.tasks.facts import names

        spec = self.spec
        parts = []
        for shots in spec.shots:
            wordings = 1 if shots else spec.wordings
            for name in spec.relations or names(every=True):

                def make(name: str = name, shots: int = shots, wordings: int = wordings) -> pd.DataFrame:
                    with self.stage(f"census: {name}, {shots} shots") as report:
                        return asked(self.subject, name, shots, wordings, spec.asked, spec.seed, report)

                parts.append(self.job.table(f"parts/known-{shots}-{name}", make))
        table = known(pd.concat(parts, ignore_index=True))
        self.write("known", table)
        for row in table[~table["above"] & (table["relation"] != "all")].itertuples():
            self.job.remark(f"{row.relation} with {row.shots} shots: not above chance")
        self.write("kinds", kinds(self.found))

    @property
    def rules(self) -> Rules:
        """What counts as which scenario."""
        from interp.measure.scenarios import Rules

        s = self.spec
        return Rules(
            rank=s.rank,
            confident=s.confident,
            unsure=s.unsure,
            probability=s.probability,
            popular=s.popular,
        )

    @cached_property
    def found(self) -> Scenarios:
        """What the model says of every relation with proper names, and of plain sentences."""
        from dataclasses import asdict

        from interp.measure.scenarios import Scenarios
        from interp.tasks.fictional import named

        wanted = [r for r in named() if not self.spec.relations or r in self.spec.relations]
        if not wanted:
            wanted = list(named())
            self.job.remark("none of the relations has fictional subjects: scenarios are of all that have")
        frames = [
            self.job.table(f"parts/said-{name}", partial(self._said, name, sentences=not i))
            for i, name in enumerate(wanted)
        ]
        proxy = None if self.spec.popular is None else "token_rank"
        meta: dict[str, Any] = {"model": self.subject.name, "rules": asdict(self.rules)}
        meta |= {"popularity_proxy": proxy, "seed": self.spec.seed}
        return Scenarios(pd.concat(frames, ignore_index=True), self.subject.tokens, meta)

    def _said(self, name: str, *, sentences: bool) -> pd.DataFrame:
        """One relation; plain sentences come with the first."""
        from interp.measure.scenarios import scenarios

        with self.stage(f"scenarios: {name}") as report:
            return scenarios(
                self.subject,
                relations=[name],
                subjects=self.spec.subjects,
                sentences=self.spec.sentences if sentences else 0,
                rules=self.rules,
                popularity=None if self.spec.popular is None else "token_rank",
                seed=self.spec.seed,
                progress=report,
            ).frame

    # -- prompts -----------------------------------------------------------------------------------------------------

    @property
    def uses(self) -> dict[str, int]:
        """Prompts a scenario of each part."""
        s = self.spec
        return {
            "traced": s.prompts,
            "noise": s.noise_prompts,
            "severed": s.severed,
            "flow": s.flow,
            "cut": s.cut,
        }

    @cached_property
    def sets(self) -> dict[str, list[Example]]:
        """Prompts of each scenario that has two subjects at least."""
        from interp.measure.scenarios import SCENARIOS
        from interp.studies.facts.prompts import chosen

        most = max(self.uses.values())
        out: dict[str, list[Example]] = {}
        for scenario in SCENARIOS:
            try:
                own = chosen(self.found, scenario, most, self.spec.seed)
            except NoAcceptedExample:
                own = []
            if len({e.cluster for e in own}) < 2:
                self.job.remark(
                    f"{scenario}: {len(own)} prompts with a twin, too few to measure on; left out"
                )
                continue
            if len(own) < most:
                self.job.remark(f"{scenario}: {len(own)} prompts with a twin, of {most} asked for")
            out[scenario] = own
        if not out:
            raise NoAcceptedExample(f"{self.subject.name}: no scenario has prompts with a twin to trace")
        return out

    def _listed(self) -> pd.DataFrame:
        from interp.studies.facts.prompts import listed

        return listed(self.subject, self.sets, self.uses)

    # -- causal maps -------------------------------------------------------------------------------------------------

    @property
    def window(self) -> int:
        """Layers of the wide windows."""
        wide, deep = REFERENCE
        return self.spec.window or max(2, round(wide * self.subject.n_layers / deep))

    @cached_property
    def sigma(self) -> float:
        """Size of the noise: three standard deviations of the embeddings of all subjects that are traced with it."""
        from interp.intervene.tracing.noise import noise_level

        return noise_level(
            self.subject, [e for own in self.sets.values() for e in own[: self.spec.noise_prompts]]
        )

    @cached_property
    def ways(self) -> dict[str, tuple[How, int]]:
        """How prompts are traced, and how many."""
        from interp.intervene.tracing.cells import WINDOWED, How
        from interp.intervene.tracing.places import LAST_OF
        from interp.studies.facts.maps import KINDS, METRICS

        spec, n_layers = self.spec, self.subject.n_layers
        single = How(kinds=KINDS, corruption=("subject_swap",), metrics=METRICS, seed=spec.seed)
        wide = replace(
            single, kinds=WINDOWED, window=self.window, layers=tuple(range(0, n_layers, spec.step))
        )
        noise = replace(
            single,
            window=self.window,
            layers=tuple(range(0, n_layers, spec.noise_step)),
            corruption=("noise",),
            samples=spec.noise_draws,
            sigma=self.sigma,
        )
        severed = replace(single, kinds=("resid_post",), places=(LAST_OF,), sever=WINDOWED)
        return {
            "single": (single, spec.prompts),
            "wide": (wide, spec.prompts),
            "noise": (noise, spec.noise_prompts),
            "severed": (severed, spec.severed),
        }

    @cached_property
    def traced(self) -> dict[str, pd.DataFrame]:
        """Maps of every way, draw by draw."""
        from interp.intervene.tracing.maps import trace_maps

        out = {}
        for way, (how, n) in self.ways.items():
            parts = []
            for scenario, own in self.sets.items():
                for start in range(0, min(n, len(own)), CHUNK):
                    some = own[start : min(n, start + CHUNK)]

                    def make(
                        some: list[Example] = some,
                        start: int = start,
                        how: How = how,
                        what: str = f"{way} maps: {scenario}",
                    ) -> pd.DataFrame:
                        with self.stage(what) as report:
                            found = trace_maps(self.subject, some, how, by=["scenario"], progress=report)
                        return found.assign(example=found["example"] + start)

                    name = f"parts/maps-{way}-{scenario.replace(' ', '-')}-{start // CHUNK:02}"
                    parts.append(self.job.table(name, make))
            out[way] = pd.concat(parts, ignore_index=True)
        return out

    @cached_property
    def means(self) -> dict[tuple[str, str], Means]:
        """Means of the maps by way and metric."""
        from interp.studies.facts.maps import METRICS, units

        return {
            (way, metric): self._means(units(maps, metric), self.ways[way][0].window)
            for way, maps in self.traced.items()
            for metric in METRICS
        }

    def _means(self, rows: pd.DataFrame, window: int = 1) -> Means:
        from interp.studies.facts.means import Means

        return Means(rows, self.spec.resamples, self.spec.seed, window)

    def maps(self) -> None:
        """Averages of the maps, what corruptions cost, peaks, and the difference from generic prompts."""
        from interp.intervene.trace import aggregate
        from interp.studies.facts.maps import against_generic, peaks, total_effects

        spec = self.spec
        self.note("noise", {"sigma": self.sigma, "window": self.window})

        def averaged(way: str) -> pd.DataFrame:
            return aggregate(
                self.traced[way], ["scenario"], n_resamples=spec.resamples, seed=spec.seed
            ).assign(way=way)

        self.write("aie", pd.concat([averaged(w) for w in ("single", "wide", "noise")], ignore_index=True))
        self.write("severed", averaged("severed"))
        costs = [
            total_effects(maps, spec.resamples, spec.seed).assign(way=way)
            for way, maps in self.traced.items()
        ]
        self.effects = pd.concat(costs, ignore_index=True)
        self.write("effects", self.effects)
        for row in self.effects[self.effects["status"] == "floor"].itertuples():
            self.job.remark(
                f"{row.scenario}, {row.way}, {row.metric}: the total effect cannot be told from zero; no finding"
            )
        self.write("peaks", self._by_way(peaks))
        self.write("against_generic", self._by_way(against_generic))

    def _by_way(self, make: Callable[[Means], pd.DataFrame]) -> pd.DataFrame:
        """A table of each way but the severed one, and of each metric."""
        parts = []
        for (way, metric), means in self.means.items():
            if way != "severed":
                how = self.ways[way][0]
                table = make(means).assign(way=way, metric=metric, corruption="+".join(how.corruption))
                wide = table["kind"] != "resid_post" if len(table) else False
                parts.append(table.assign(window=1 if not len(table) else wide * (how.window - 1) + 1))
        return pd.concat(parts, ignore_index=True)

    # -- flow and cuts -----------------------------------------------------------------------------------------------

    def flow(self) -> None:
        """Knockout, extraction, enrichment, and each MLP cut."""
        from interp.locate.facts.flow import knockout_map
        from interp.locate.facts.lens import enrichment, extracted, extraction_rates
        from interp.measure.scenarios import EXACT
        from interp.studies.facts import flow
        from interp.studies.facts.census import attributes

        s, spec = self.subject, self.spec

        def knocked(some: list[Example], report: Progress | None) -> pd.DataFrame:
            return knockout_map(s, some, window=spec.knockout_window, progress=report)

        def enriched(some: list[Example], report: Progress | None) -> pd.DataFrame:
            own = attributes(self.found, [e.cluster for e in some])
            return enrichment(s, some, k=spec.attributes, attributes=dict(own))

        self.rows = {
            "knockout": self._scenarios("knockout", spec.flow, knocked),
            "extraction": self._scenarios("extraction", spec.flow, lambda some, report: extracted(s, some)),
            "cuts": self._scenarios("cuts", spec.cut, lambda some, report: flow.cut_each_mlp(s, some)),
        }
        self.flows = {
            "knockout": self._means(
                flow.lost(self.rows["knockout"], ["source", "layer"]), spec.knockout_window
            ),
            "extraction": self._means(flow.extraction_units(self.rows["extraction"])),
            "cuts": self._means(flow.lost(self.rows["cuts"], ["scope", "layer"])),
        }
        self.write("knockout", flow.knockout_curves(self.rows["knockout"], self.flows["knockout"]))
        rates = [
            extraction_rates(part).assign(scenario=name)
            for name, part in self.rows["extraction"].groupby("scenario", sort=False)
        ]
        self.write("extraction", pd.concat(rates, ignore_index=True))
        self.write("vital", flow.vital(self.flows["cuts"], s.n_layers))
        if EXACT in self.sets:
            rows = self._scenarios("enrichment", spec.flow, enriched, only=EXACT)
            self.flows["enrichment"] = self._means(flow.enrichment_units(rows))
            self.write("enrichment", flow.enrichment_curves(rows, self.flows["enrichment"]))

    def _scenarios(
        self,
        what: str,
        n: int,
        make: Callable[[list[Example], Progress | None], pd.DataFrame],
        only: str | None = None,
    ) -> pd.DataFrame:
        """A part for each scenario, with its name."""
        parts = []
        for scenario, own in self.sets.items():
            if only in (None, scenario):

                def part(some: list[Example] = own[:n], scenario: str = scenario) -> pd.DataFrame:
                    with self.stage(f"{what}: {scenario}") as report:
                        return make(some, report).assign(scenario=scenario)

                parts.append(self.job.table(f"parts/{what}-{scenario.replace(' ', '-')}", part))
        return pd.concat(parts, ignore_index=True)

    # -- findings ----------------------------------------------------------------------------------------------------

    def judge(self) -> None:
        """Published findings, and whether they hold."""
        from interp.studies.facts.findings import findings

        measured: dict[tuple[str, str], Means] = dict(self.means)
        measured |= {(way, "probability"): means for way, means in self.flows.items() if way != "cuts"}
        if (peak := self._peak()) is not None:
            measured["peak", "probability"] = peak
        self.write("findings", findings(measured, self.subject.n_layers, self.effects))

    def _peak(self) -> Means | None:
        """Cuts of the MLP that is highest on half of the subjects, of facts of the others and of generic prompts."""
        from interp.measure.scenarios import EXACT, GENERIC
        from interp.studies.facts.flow import CONTENT, lost
        from interp.studies.facts.maps import peaks, units

        if not {EXACT, GENERIC} <= set(self.sets):
            return None
        maps = self.traced["single"]
        maps = maps[(maps["scenario"] == EXACT) & maps["cluster"].isin(self._choosers)]
        cuts = self.rows["cuts"]
        cuts = cuts[cuts["scope"] == CONTENT]
        held = (cuts["scenario"] == EXACT) & ~cuts["cluster"].isin(self._choosers)
        if maps.empty or not held.any():
            return None
        found = peaks(self._means(units(maps, "probability")), ("mlp_out",))
        layer = int(found["layer"].iloc[0])
        self.note("peak", {"layer": layer})
        own = cuts[(held | (cuts["scenario"] == GENERIC)) & (cuts["layer"] == layer)]
        return self._means(lost(own.assign(cell="peak"), ["cell"]))

    @cached_property
    def _choosers(self) -> set[str]:
        """The half of the subjects of exact recall that layers are chosen on."""
        from interp.measure.scenarios import EXACT
        from interp.tasks.base import stable_seed

        subjects = list(dict.fromkeys(e.cluster for e in self.sets[EXACT][: self.spec.cut]))
        order = np.random.default_rng(stable_seed("choose", self.spec.seed)).permutation(len(subjects))
        return {subjects[i] for i in order[: len(subjects) // 2]}


run = FactsStudy.run
