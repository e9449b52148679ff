"""The study of memorization in language models, part by part: from a spec to a folder of tables.

There are two subjects: the model, and a small one that is trained from nothing in a minute, so that all it ever read is
known. What they hold is put there (`interp.intervene.inject`) or was there. A *memory* is a set of sequences, of which
half (A) are what is located and the others (B) are held out:

| memory | sequences | known neurons |
|---|---|---|
| `injected 0.01` ... | each for itself in a model of its own, by the share of its neurons | yes |
| `together` | all in one model, by a share of its neurons (the model itself: only if asked for) | yes |
| `finetuned` | all in one model, by a low-rank change of all its down projections | no |
| `recited` | passages that the model recites as it comes (the small model has none) | no |

| table | one row | columns |
|---|---|---|
| `injections` | a sequence in a model of its own | subject, injected (share of neurons), seed, item, known (neurons), units (of all), before, after (nats a token), steps, exact |
| `recall` | an injection, method, part and number taken | subject, injected, seed, item, of `recall_at_k` (part, k, share, known, units, recall, chance, auc), method |
| `recovery` | a mean of them | subject, injected, method, part (`ff_out[3]`, `all`), share (NaN: as many as are known), recall, ci_lo, ci_hi, chance, auc, n |
| `completeness` | an injection's integrated gradients | subject, memory, item, path, total, cost, gap |
| `screen` | a passage and prefix | subject, of `screen` (name, group, prefix, exact, run, hits, nll, left ...) |
| `memories` | a sequence of a memory | subject, memory, item, group (targeted: A, held_out: B, never), nll_without, nll, exact, hits |
| `doses` | an edit, its dose and a measure | subject, memory, edit, family (none, units, weights, directions, curvature, rewritten, known, control), control (bool), dose (share of the weights of the down projections that is changed), asked, norm (of the change), measure, value, ci_lo, ci_hi, n |
| `chosen` | an edit, as it is measured on | subject, memory, edit, asked, dose, targeted, prose, erases, attacked (bool) |
| `edits` | an edit at its chosen dose and a measure | as `doses` |
| `edit_items` | an edit and a sequence | subject, memory, edit, item, group, variant, exact, accuracy, similarity, hits, nll, run |
| `prefixes` | an edit and a way to write the prefix | subject, memory, edit, variant (given, shorter, longer, first dropped, one replaced), measure (exact, hits), value, ci_lo, ci_hi, n |
| `contrasts` | an edit less random neurons of equal number | subject, memory, edit, measure, value, ci_lo, ci_hi, p, n (sequences) |
| `attacks` | a search of a soft prompt | subject, memory, condition (original: without the memory, memorized, an edit), of `soft_prompts` |
| `attacked` | a rate under attack | subject, memory, condition, group (targeted, never), metric (before, attacked, gained, steps, work), value, ci_lo, ci_hi, n_items, n |
| `work` | a point of a curve | subject, memory, condition, group, steps, extracted, items |
| `exposures` | small model: a sequence at a step | of `text_exposures` (step, phase, name, exposures, nll, gain, recognition, recall, hits) |
| `exposure_curves` | a number of exposures, step and measure | step, phase (before, shown, later), curve (phase and step), exposures, measure (recognition, recall, hits, gain, retention), value, ci_lo, ci_hi, n |
| `findings` | a claim | finding, source, subject, memory, statistic, value, ci_lo, ci_hi, n, rule, verdict |

Measures: `targeted`, `held_out` (share of A, of B that is recited whole), `targeted_hits`, `held_out_hits` (share of
their tokens that are the likeliest), `accuracy`, `similarity` (of A, let go on alone; similarity is 1 - Levenshtein
distance over length), `never` (nats a token of sequences never seen, less those before the edit), `prose` (perplexity of
prose over that before). Sequences, passages or injections are resampled. Running it again goes on where it stopped.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from interp.models.cache import quiet
from interp.studies.base import Study
from interp.studies.injection import edits, measures
from interp.studies.injection.memories import Material, Memory, halved
from interp.studies.injection.ranking import Asked
from interp.studies.injection.spec import Effort, InjectionSpec

if TYPE_CHECKING:
    from interp.intervene.weights import PartEdit
    from interp.models.cache import Progress
    from interp.models.subject import CausalLM

MODEL, LITTLE = "model", "small"
"""The subjects, as tables have them."""
REWRITTEN = "rewritten"
RECOVERED = [
    "method", "part", "share", "recall", "ci_lo", "ci_hi", "chance", "auc", "n", "subject", "injected",
]  # fmt: skip
"""Columns of `recovery`."""


class InjectionStudy(Study[InjectionSpec]):
    """The parts of a study of injected memorization."""

    def tables(self) -> None:
        """Every part of the spec, in order: the small model first, where all is cheap."""
        spec = self.spec
        if spec.small:
            self.job.json("small", lambda: {"name": self.little.name, "fingerprint": self.little.fingerprint})
        self.injections()
        self.write("screen", self.screened)
        self.delete()
        self.attack()
        if spec.small and spec.exposed:
            self.expose()
        self.judge()

    # -- subjects ----------------------------------------------------------------------------------------------------

    @cached_property
    def little(self) -> CausalLM:
        """The small model, trained on prose that nothing is measured on."""
        from interp.models.zoo.small_lm import small_lm
        from interp.studies.injection.memories import topics_for

        texts = list(topics_for("compare").values())
        with self.stage("small model") as report:
            return small_lm(texts, self.spec.small, seed=self.spec.seed, progress=report or quiet)

    @property
    def subjects(self) -> dict[str, tuple[Callable[[], CausalLM], Effort]]:
        """The subjects by name, and how much is done with each; a model is loaded when it is called for."""
        out: dict[str, tuple[Callable[[], CausalLM], Effort]] = {}
        if self.spec.small:
            out[LITTLE] = (lambda: self.little), self.spec.little
        out[MODEL] = (lambda: self.subject), self.spec.large
        return out

    def of(self, name: str) -> tuple[CausalLM, Effort, Material]:
        """A subject, how much is done with it, and its sequences."""
        get, effort = self.subjects[name]
        if name not in self._materials:
            self._materials[name] = Material.of(get(), effort, self.spec)
        return get(), effort, self._materials[name]

    @cached_property
    def _materials(self) -> dict[str, Material]:
        return {}

    # -- known neurons -----------------------------------------------------------------------------------------------

    def injections(self) -> None:
        """Each sequence in a model of its own, found and deleted."""
        from interp.measure.memorization.injected import recovery

        found: list[list[pd.DataFrame]] = []
        for name, (_, effort) in self.subjects.items():
            for share in effort.shares:
                for seed in effort.seeds:
                    for i in range(effort.sequences):
                        part = f"parts/injection-{name}-{share:g}-{seed}-{i}"
                        kinds = [f"{part}-{kind}" for kind in ("info", "recall", "cells", "complete")]
                        tables = self.together(kinds, partial(self._injection, name, share, seed, i))
                        found.append([t.assign(subject=name) for t in tables])
        info, recall, cells, complete = (
            pd.concat([f[k] for f in found], ignore_index=True) for k in range(4)
        )
        self.write("injections", info)
        if lost := int((info["exact"] < 1).sum()):
            self.job.remark(f"{lost} of {len(info)} injections are not recited, and count for nothing")
        held = info.loc[info["exact"] == 1, ["subject", "injected", "seed", "item"]]
        names = {(r.subject, r.injected, f"{r.item}, seed {r.seed}") for r in held.itertuples()}
        recall = recall.merge(held)
        counted = [(r.subject, r.injected, r.item) in names for r in cells.itertuples()]
        cells = cells[counted].reset_index(drop=True)
        self.write("recall", recall)
        self.recall = recall
        self.injected_cells, self.injected_complete = cells, complete
        means = []
        for (name, share), rows in recall.groupby(["subject", "injected"], sort=False):
            each = {f"{k}": own for k, own in rows.groupby(["seed", "item"], sort=False)}
            means.append(
                recovery(each, by=("method", "part", "share"), seed=self.spec.seed).assign(
                    subject=name, injected=share
                )
            )
        empty = pd.DataFrame(columns=RECOVERED)
        self.recovered = pd.concat(means, ignore_index=True) if means else empty
        self.write("recovery", self.recovered)

    def _injection(self, name: str, share: float, seed: int, i: int) -> list[pd.DataFrame]:
        from interp.studies.injection.holding import injection

        subject, effort, material = self.of(name)
        item = material.held[i]
        with self.stage(f"{name}: {item.name} in {share:g} of the neurons, seed {seed}") as report:
            return injection(subject, item, share, seed, material, effort, self.spec, report or quiet)

    # -- memories ----------------------------------------------------------------------------------------------------

    @cached_property
    def screened(self) -> pd.DataFrame:
        """What the model recites as it comes."""
        return self.job.table("parts/screen", self._screen).assign(subject=MODEL)

    def _screen(self) -> pd.DataFrame:
        from interp.measure.memorization.recite import screen

        with self.stage("screen of passages") as report:
            return screen(self.subject, self._passages, suffix=self.spec.recited, progress=report or quiet)

    @property
    def _passages(self) -> list[Any]:
        """Passages of the list, groups in turn."""
        from interp.tasks.passages import passages

        groups: dict[str, list[Any]] = {}
        for p in passages():
            groups.setdefault(p.group, []).append(p)
        turns = range(max(map(len, groups.values())))
        mixed = [own[t] for t in turns for own in groups.values() if t < len(own)]
        return mixed[: self.spec.passages]

    def memories(self) -> list[tuple[str, str]]:
        """Subject and name of each memory of many sequences."""
        out = []
        for name, (_, effort) in self.subjects.items():
            out += [(name, "together"), (name, "finetuned")] if effort.together else [(name, "finetuned")]
        if len(self._recited) >= 4:
            out.append((MODEL, "recited"))
        else:
            self.job.remark(
                f"{len(self._recited)} passages of the list are recited: too few to locate some and measure others"
            )
        return out

    @cached_property
    def _recited(self) -> tuple[Any, ...]:
        from interp.studies.injection.memories import known

        found = known(self.subject, self.screened, self._passages, self.spec.recited)
        return found[: self.spec.large.held]

    def memory(self, name: str, kind: str) -> Memory:
        """A memory of a subject; what was trained for it is kept in a file."""
        from interp.intervene.inject import Fit, inject, memorize
        from interp.intervene.weights import OutputVectors, PartEdit
        from interp.studies.injection.memories import invented

        if (name, kind) in self._memories:
            return self._memories[name, kind]
        subject, effort, material = self.of(name)
        spec = self.spec
        if kind == "recited":
            least = min(item.prefix for item in self._recited)
            never = invented(subject, self._passages, least, spec.recited)[: effort.never]
            memory = Memory(kind, self._recited, never or material.never)
        else:
            items = halved(material.held[: effort.held])
            path, fit = self._file(name, kind, "memory"), Fit(effort.updates, effort.rate)
            if not path.exists():
                with self.stage(f"{name}: {len(items)} sequences {kind}") as report:
                    if kind == "together":
                        (done,) = inject(
                            subject,
                            items,
                            share=effort.together,
                            together=True,
                            fit=fit,
                            seed=spec.seed,
                            progress=report or quiet,
                        )
                    else:
                        done = memorize(subject, items, seed=spec.seed, fit=fit, progress=report or quiet)
                done.edit.save(path)
            edit = PartEdit.load(path, subject)
            units = {s.part: s.units.tolist() for s in edit.singles if isinstance(s, OutputVectors)}
            memory = Memory(kind, items, material.never, edit, units)
        return self._memories.setdefault((name, kind), memory)

    @cached_property
    def _memories(self) -> dict[tuple[str, str], Memory]:
        return {}

    @cached_property
    def _nones(self) -> dict[tuple[str, str], pd.DataFrame]:
        """Of each memory the cells before any edit."""
        return {}

    def _file(self, name: str, kind: str, edit: str) -> Path:
        folder = self.job.folder / "parts" / "edits"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{name}-{kind}-{edit.replace(' ', '-')}.safetensors"

    # -- deletion ----------------------------------------------------------------------------------------------------

    def delete(self) -> None:
        """Every memory located and cut at every dose, and measured at the chosen one."""
        held, dosed, final = [], [], []
        choices: dict[tuple[str, str], pd.DataFrame] = {}
        for name, kind in self.memories():
            head = {"subject": name, "memory": kind}
            part = f"parts/{name}-{kind}"
            held.append(self.job.table(f"{part}-held", partial(self._held, name, kind)).assign(**head))
            before = self.together(
                [f"{part}-none-doses", f"{part}-none-final"], partial(self._before, name, kind)
            )
            self._nones[name, kind] = before[0]
            own = [[before[0].assign(**head)], [before[1].assign(**head)]]
            for edit in self._edits_of(name, kind):
                tables = self.together(
                    [f"{part}-{edit.replace(' ', '_')}-{k}" for k in ("doses", "final")],
                    partial(self._edited, name, kind, edit),
                )
                for k in (0, 1):
                    own[k].append(tables[k].assign(**head))
            at_doses = pd.concat(own[0], ignore_index=True)
            choice = measures.chosen(measures.summary(at_doses, seed=self.spec.seed), self.spec)
            best = self._best_units(choice)
            if best is not None:
                tables = self.together(
                    [f"{part}-{REWRITTEN}-{k}" for k in ("doses", "final")],
                    partial(self._rewritten, name, kind, best),
                )
                for k in (0, 1):
                    own[k].append(tables[k].assign(**head))
                at_doses = pd.concat(own[0], ignore_index=True)
                choice = measures.chosen(measures.summary(at_doses, seed=self.spec.seed), self.spec)
            choices[name, kind] = choice
            dosed.append(at_doses)
            final.append(pd.concat(own[1], ignore_index=True))
        self.choices = choices
        self.write("memories", pd.concat(held, ignore_index=True))
        injected = self.injected_cells
        single = measures.summary(injected, ("subject", "memory"), seed=self.spec.seed)
        many = pd.concat(dosed, ignore_index=True)
        self.doses = pd.concat([single, measures.summary(many, seed=self.spec.seed)], ignore_index=True)
        self.write("doses", self.doses)
        self.contrasts = pd.concat(
            [
                measures.contrasts(injected, seed=self.spec.seed),
                measures.contrasts(many, seed=self.spec.seed),
            ],
            ignore_index=True,
        )
        self.write("contrasts", self.contrasts)
        items = pd.concat(final, ignore_index=True)
        self.write("edit_items", items)
        self.edits = measures.summary(items, seed=self.spec.seed)
        self.write("edits", self.edits)
        self.write("prefixes", measures.prefixes(items, seed=self.spec.seed))
        self.write("completeness", self.injected_complete)

    def _edits_of(self, name: str, kind: str) -> list[str]:
        effort = self.subjects[name][1]
        return edits.names(self.spec, effort, kind == "together")

    @staticmethod
    def _best_units(choice: pd.DataFrame) -> str | None:
        """The neurons whose outputs are learned anew: those that erase most, and cost prose least."""
        own = choice[choice["family"] == "units"].sort_values(["targeted", "prose"], kind="stable")
        return None if own.empty else str(own["edit"].iloc[0])

    def _held(self, name: str, kind: str) -> pd.DataFrame:
        subject = self.of(name)[0]
        memory = self.memory(name, kind)
        items = [*memory.items, *memory.never]
        without = measures.cells(subject, items)
        with self._holding(name, kind):
            now = measures.cells(subject, items)
        out = now[["item", "group", "nll", "exact", "hits"]]
        return out.assign(nll_without=without["nll"].to_numpy())

    def _holding(self, name: str, kind: str) -> Any:
        from contextlib import nullcontext

        edit = self.memory(name, kind).edit
        return nullcontext() if edit is None else edit.applied(self.of(name)[0])

    def _asked(self, name: str, kind: str, report: Progress | None) -> Asked:
        subject, effort, material = self.of(name)
        items = self.memory(name, kind).group("targeted")
        return Asked(subject, items, material.others, effort, self.spec.seed, report or quiet)

    def _before(self, name: str, kind: str) -> list[pd.DataFrame]:
        memory = self.memory(name, kind)
        material = self.of(name)[2]
        with self._holding(name, kind):
            at_doses = self._read(name, memory, material)
            final = self._measured(name, memory, material)
        return [at_doses.assign(**measures.NONE), final.assign(**measures.NONE)]

    def _read(self, name: str, memory: Memory, material: Material) -> pd.DataFrame:
        """Cells that doses are chosen on."""
        return measures.cells(self.of(name)[0], [*memory.items, *memory.never, *material.choose])

    def _measured(self, name: str, memory: Memory, material: Material) -> pd.DataFrame:
        """Cells of an edit at its chosen dose: let go on alone, on other prose, with other prefixes."""
        from interp.studies.injection.memories import rewritten

        subject = self.of(name)[0]
        items = memory.group("targeted")
        found = [
            measures.cells(subject, items, generate=True),
            measures.cells(subject, [*memory.group("held_out"), *memory.never, *material.measure]),
        ]
        vocabulary = subject.tokens.n_vocab
        for variant, own in rewritten(items, self.spec.seed, vocabulary).items():
            if variant != "given":
                found.append(measures.cells(subject, own, variant=variant))
        return pd.concat(found, ignore_index=True)

    def _edited(self, name: str, kind: str, edit: str) -> list[pd.DataFrame]:
        material = self.of(name)[2]
        memory = self.memory(name, kind)
        with self._holding(name, kind), self.stage(f"{name}, {kind}: {edit}") as report:
            asked = self._asked(name, kind, report)
            # All of them before the first is applied: a locator hands out edits of the model it was fitted to.
            made = list(edits.doses(edit, self.spec, asked, memory, material))
            return self._at_doses(name, kind, made)

    def _at_doses(self, name: str, kind: str, made: list[edits.Dosed]) -> list[pd.DataFrame]:
        """Cells of every edit, and those of each at its chosen dose, which is kept in a file."""
        from interp.studies.injection.holding import weigh

        subject, _, material = self.of(name)
        memory = self.memory(name, kind)
        rows, weights = [], []
        for dosed in made:
            weights.append(weigh(subject, dosed))
            with dosed.change.applied(subject):
                rows.append(self._read(name, memory, material).assign(**weights[-1]))
        every = pd.concat([self._nones[name, kind], *rows], ignore_index=True).assign(
            subject=name, memory=kind
        )
        choice = measures.chosen(measures.summary(every, seed=self.spec.seed), self.spec)
        final = []
        for row in choice.itertuples():
            i = next(i for i, w in enumerate(weights) if (w["edit"], w["asked"]) == (row.edit, row.asked))
            made[i].change.made_for(subject).save(self._file(name, kind, str(row.edit)))
            with made[i].change.applied(subject):
                final.append(self._measured(name, memory, material).assign(**weights[i]))
        return [pd.concat(rows, ignore_index=True), pd.concat(final, ignore_index=True)]

    def _rewritten(self, name: str, kind: str, best: str) -> list[pd.DataFrame]:
        """What the best neurons write, learned anew."""
        with self._holding(name, kind), self.stage(f"{name}, {kind}: {REWRITTEN}") as report:
            change = self._kept(name, kind, best)
            units = {s.part: s.mask.any(0).nonzero()[:, 0] for s in change.singles}  # type: ignore[attr-defined]
            dosed = edits.of_outputs(units, best, self._asked(name, kind, report))
            return self._at_doses(name, kind, [dosed])

    def _kept(self, name: str, kind: str, edit: str) -> PartEdit:
        """An edit at its chosen dose, from its file."""
        from interp.intervene.weights import PartEdit

        return PartEdit.load(self._file(name, kind, edit))

    # -- attack ------------------------------------------------------------------------------------------------------

    def attack(self) -> None:
        """Soft prompts against every memory as it is, without it, and under the edits that erase it."""
        from interp.intervene.attack.report import recovery, work_curve

        found = []
        for (name, kind), choice in self.choices.items():
            conditions = ["memorized"] if kind == "recited" else ["original", "memorized"]
            erasing = measures.to_attack(choice, self.spec)
            if not erasing:
                self.job.remark(f"{name}, {kind}: no edit erases what was located, so none is attacked")
            for condition in [*conditions, *erasing]:
                part = f"parts/{name}-{kind}-attack-{condition.replace(' ', '_')}"
                table = self.job.table(part, partial(self._attacked, name, kind, condition))
                found.append(table.assign(subject=name, memory=kind))
            choice["attacked"] = choice["edit"].isin(erasing)
        self.write("chosen", pd.concat(list(self.choices.values()), ignore_index=True))
        self.attacks = pd.concat(found, ignore_index=True)
        self.write("attacks", self.attacks)
        by = ("subject", "memory", "condition", "group")
        self.attacked = recovery(self.attacks, by=by)
        self.write("attacked", self.attacked)
        self.write("work", work_curve(self.attacks, by=by, unit="steps"))

    def _attacked(self, name: str, kind: str, condition: str) -> pd.DataFrame:
        from contextlib import ExitStack

        from interp.intervene.attack.soft_prompt import SoftPrompts, soft_prompts

        subject, effort, _ = self.of(name)
        memory, n = self.memory(name, kind), effort.attacked
        items = [*memory.group("targeted")[:n], *memory.never[:n]]
        search = SoftPrompts(length=self.spec.vectors, steps=effort.prompt)
        with ExitStack() as stack:
            report = stack.enter_context(self.stage(f"{name}, {kind}: attack on {condition}"))
            if condition != "original":
                stack.enter_context(self._holding(name, kind))
            if condition not in ("original", "memorized"):
                stack.enter_context(self._kept(name, kind, condition).applied(subject))
            found = soft_prompts(subject, items, search, seed=self.spec.seed, progress=report or quiet)
        return found.table.drop(columns="split").assign(condition=condition)

    # -- exposures and findings --------------------------------------------------------------------------------------

    def expose(self) -> None:
        """How often the small model has to see a sequence, and what later training takes."""
        from interp.measure.memorization.text_exposures import exposure_curves

        table = self.job.table("exposures", self._exposed)
        curves = exposure_curves(table, seed=self.spec.seed)
        self.curves = curves.assign(curve=curves["phase"] + " " + curves["step"].astype(str))
        self.write("exposure_curves", self.curves)

    def _exposed(self) -> pd.DataFrame:
        from dataclasses import replace

        from interp.measure.memorization.text_exposures import text_exposures
        from interp.models.zoo.small_lm import PRESETS
        from interp.studies.injection.memories import sequences, topics_for

        spec, recipe = self.spec, PRESETS[self.spec.small]
        every = sequences(self.little, spec.each * len(spec.exposed), spec)
        items = [replace(item, exposures=spec.exposed[i % len(spec.exposed)]) for i, item in enumerate(every)]
        with self.stage("exposures") as report:
            return text_exposures(
                self.little,
                items,
                list(topics_for("compare").values()),
                recipe=recipe,
                steps=spec.showing,
                later=spec.later,
                every=max(1, spec.showing // 4),
                seed=spec.seed,
                progress=report or quiet,
            )

    def judge(self) -> None:
        """Claims, and whether they hold."""
        from interp.studies.injection.findings import Told, findings

        curves = self.curves if self.spec.small and self.spec.exposed else None
        choice = pd.concat(list(self.choices.values()), ignore_index=True)
        told = Told(self.recall, self.edits, self.contrasts, choice, self.attacks, curves, self.spec)
        self.write("findings", findings(told))


run = InjectionStudy.run
