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
| `injections` | a sequence in a model of its own | subject, injected (share of neurons), seed, item, known (neurons), units (of all), same_length (what they write was only turned), share (of the neurons, as it came out), before, after (nats a token), steps, exact |
| `recall` | an injection, method, part and number taken | subject, injected, seed, item, of `recall_at_k` (part, k, share, known, units, recall, chance, auc; NaN where more are taken than have a score), method, sound (gradients are complete, gates have settled) |
| `recovery` | a mean of them | subject, injected, method, part (`ff_out[3]`, `all`), share (NaN: as many as are known), recall, ci_lo, ci_hi, chance, auc, n |
| `completeness` | an injection's integrated gradients | subject, memory, item, path, total, cost, gap |
| `screen` | a passage and prefix | subject, of `screen` (name, group, prefix, exact, run, hits, nll, left ...) |
| `memories` | a sequence of a memory | subject, memory, item, group (targeted: A, held_out: B, never), nll_without, nll, exact, hits |
| `doses` | an edit, its dose and a measure | subject, memory, edit, family (none, units, weights, directions, curvature, rewritten, known, control), control (bool), dose (share of the weights of the down projections that is changed), asked, norm (of the change), measure, value, ci_lo, ci_hi, n |
| `chosen` | an edit, as it is measured on | subject, memory, edit, asked, dose, targeted, prose, erases, attacked (bool) |
| `edits` | an edit at its chosen dose and a measure | as `doses` |
| `edit_items` | an edit and a sequence | subject, memory, edit, item, group, variant, exact, accuracy, similarity, hits, nll, run |
| `beside` | a control at the dose of the edit that a memory's deletion is judged by, a draw and a sequence behind another prefix | as `edit_items`, of (that edit), draw |
| `prefixes` | an edit and a way to write the prefix | subject, memory, edit, variant (given, shorter, longer, first dropped, one replaced), measure (exact, hits), value, ci_lo, ci_hi, n |
| `contrasts` | an edit less a control at the same dose | subject, memory, edit, asked, against (`random`: as many neurons; `random, EDIT`: as many weights of each row; `equal norm, EDIT`), measure (targeted, held_out: hits; never, prose: nats a token; specific: held-out rise less that of never seen), value, ci_lo, ci_hi, p, n, draws |
| `attacks` | a search of a soft prompt | subject, memory, condition (original: without the memory, memorized, other prefix: the same behind random tokens, an edit), of `soft_prompts` |
| `attacked` | a rate under attack | subject, memory, condition, group (targeted, never), metric (before, attacked, gained, steps, work), value, ci_lo, ci_hi, n_items, n |
| `work` | a point of a curve | subject, memory, condition, group, steps, extracted, items |
| `exposures` | small model: a sequence at a step | of `text_exposures` (step, phase, name, exposures, nll, gain, recognition, recall, hits) |
| `exposure_curves` | a number of exposures, step and measure | step, phase (before, shown, later), curve (phase and step), exposures, measure (recognition, recall, hits, gain, retention), value, ci_lo, ci_hi, n |
| `findings` | a claim | finding, source, subject, memory, statistic, value, ci_lo, ci_hi, n, rule, verdict |

Measures: `targeted`, `held_out` (share of A, of B that is recited whole), `targeted_hits`, `held_out_hits` (share of
their tokens that are the likeliest), `accuracy`, `similarity` (of A, let go on alone; similarity is 1 - Levenshtein
distance over length), `never` (nats a token of sequences never seen, less those before the edit), `perplexity`
(of prose), `prose` (the same over that of the model with the memory), `prose_without` (over that of the model before
the memory was put in, whose perplexity is told as the edit `without`; a model that recites as it comes has no other
one). Sequences, topics of prose and draws of controls are resampled. A memory is what is recited
before any edit; the rest of what was taught is left out. Running it again goes on where it stopped.
"""  # noqa: E501

from __future__ import annotations

from functools import partial

import pandas as pd

from interp.errors import NoAcceptedExample, UsageError
from interp.models.cache import quiet
from interp.studies.injection import measures
from interp.studies.injection.deletion import Deletion
from interp.studies.injection.verdicts import OTHER

RECOVERED = [
    "method", "part", "share", "recall", "ci_lo", "ci_hi", "chance", "auc", "n", "subject", "injected",
]  # fmt: skip
"""Columns of `recovery`."""


class InjectionStudy(Deletion):
    """The parts of a study of injected memorization."""

    def tables(self) -> None:
        """Every part of the spec, in order: the small model first, where all is cheap."""
        spec = self.spec
        if spec.small:
            self.same_small()
        self.injections()
        self.write("screen", self.screened)
        self.delete()
        self.attack()
        if spec.small and spec.exposed:
            self.expose()
        self.judge()

    def same_small(self) -> None:
        """The small model is the one that this run began with.

        Raises:
            UsageError: it is another one, so that tables of the two would be mixed.
        """
        now = {"name": self.little.name, "fingerprint": self.little.fingerprint}
        if (began := self.job.json("small", lambda: now)) != now:
            raise UsageError(
                f"{self.job.folder}: this run began with the small model {began['name']} of other weights than "
                f"{now['name']} has now; write into a new folder"
            )

    # -- known neurons -----------------------------------------------------------------------------------------------

    def injections(self) -> None:
        """Each sequence in a model of its own, found and deleted."""
        from interp.measure.memorization.injected import recovery

        found: list[list[pd.DataFrame]] = []
        for name, (_, effort) in self.subjects.items():
            for share in (*effort.shares, *effort.turned):
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
        for (name, share), rows in recall[recall["sound"]].groupby(["subject", "injected"], sort=False):
            each = {f"{k}": own for k, own in rows.groupby("item", sort=False)}
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
            turned = share in effort.turned
            return injection(subject, item, share, seed, material, effort, self.spec, report or quiet, turned)

    # -- attack ------------------------------------------------------------------------------------------------------

    def attack(self) -> None:
        """Soft prompts against every memory as it is, without it, and under the edits that erase it."""
        from interp.intervene.attack.report import recovery, work_curve

        if not self.choices:
            raise NoAcceptedExample(
                "no memory is recited well enough to delete anything of it; give more updates or another rate"
            )
        found = []
        for (name, kind), choice in self.choices.items():
            conditions = ["memorized", OTHER] if kind == "recited" else ["original", "memorized", OTHER]
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
        from interp.studies.injection.memories import scrambled

        subject, effort, _ = self.of(name)
        memory, n = self.memory(name, kind), effort.attacked
        items = [*memory.group("targeted")[:n], *memory.never[:n]]
        if condition == OTHER:
            items = scrambled(items, self.spec.seed, subject.tokens.n_vocab)
        search = SoftPrompts(length=self.spec.vectors, steps=effort.prompt)
        with ExitStack() as stack:
            report = stack.enter_context(self.stage(f"{name}, {kind}: attack on {condition}"))
            if condition != "original":
                stack.enter_context(self._holding(name, kind))
            if condition not in ("original", "memorized", OTHER):
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
        told = Told(
            self.recall,
            self.edits,
            self.contrasts,
            choice,
            self.items,
            self.beside,
            self.attacks,
            curves,
            self.spec,
            self.unheld,
        )
        self.write("findings", findings(told))


run = InjectionStudy.run
