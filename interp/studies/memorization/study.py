"""From a spec to a folder of tables: does a pipeline memorize, is that deleted by cutting, and can it be got back?

Pictures are memorized by a pipeline that is trained on digits (`interp.models.zoo.digits`). Half of them, A, is what is
located; the other half, B, is held out. Controls have a word of their own as well, but many pictures; `unseen` pictures
were never trained on. `seed` is always the training's. Each located edit has controls of its own, at its own dose, that
are named for it: `random 0 (nemo)`; see `interp.studies.memorization.controls`.

| table | one row | columns |
|---|---|---|
| `subjects` | a trained pipeline | seed, role (model, oracle), name, fingerprint, train_images, held_out, threshold, threshold_encoder, judge (accuracy of the classifier on held-out pictures) |
| `samples` | a sample of an item | seed, role, guidance, of `extraction` (item, group, split, exposures, sample, own, nearest, top1, own_ratio, ratio, extracted, extracted_ratio, copied), extracted_encoder |
| `existence` | a rate of a group | seed, role, guidance, group, exposures, metric (extracted_image: MR, extracted_any, extracted_most, copied_..., extracted_ratio_..., extracted_encoder_...), value, ci_lo, ci_hi, n_items, n |
| `signals` | a prompt and sampling seed | seed, role, group (memorized, control, base), item, prompt, sample, first, all, one_step, similarity, spread |
| `detection` | a signal and what it is told from | seed, role, signal, against (control, base), auc, auc_lo, auc_hi, tpr, tpr_lo, tpr_hi, threshold, n_positive, n_negative, prompts_positive, prompts_negative |
| `copying` | a set of samples | seed, set (memorized, ordinary, held-out; drawn often: honest, mixed with one copy in ten), extracted (share that copies a training picture), authentic, c_t, n |
| `doses` | an edit, its dose and a measure | seed, edit, of (edit that a control stands beside), family (none, located, control, trained), control (bool), dose (share of the weights that is changed, of all parts of that kind), asked, norm (of the change), measure, value, ci_lo, ci_hi, n |
| `chosen` | a located edit, as it is measured on | edit, asked, dose, norm, targeted (replication of A on choosing seeds), erases |
| `edits` | an edit at its chosen dose and a measure | as `doses` |
| `costs` | an edit | seed, edit, rows (of the UNet, that locating or training took), seconds (CPU), dose, norm |
| `edit_items` | an edit and an item | seed, edit, set (a measure), item, group, split, value (of the measure; of sets the share of samples extracted), own |
| `contrasts` | an edit less the mean of others | edit, against (none, random, magnitude, ordinary, words, tuned on unseen, negated unseen), measure, seed (-1: all trainings), value (of loss a ratio), ci_lo, ci_hi, p, n (items), n_seeds |
| `overlap` | a statistic of A against B | seed, role (oracle: the same of one that holds neither), method (wanda reference, wanda corrected, subspace), share, statistic (overlap, excess), value, mean, lo, hi, p, draws, n_items, dealt (by digit: items are exchanged with those that show the same, or free) |
| `overlaps` | a pair of sets in a deal | seed, role, method, share, a, b (A, B, controls), overlap, independent, draw (-1: the sets themselves) |
| `coverage` | sizes of a union | seed, method (wanda, nemo), k, kind (item, control), covered, lo, hi (of masks 95 % of the orders in which items are taken; of NeMo 95 % interval over items), chance, n |
| `attacks` | a search | seed, condition (original, an edit, negation, adversarial tuning, oracle), ease (1 where no update was needed, 0 where none sufficed), of `adversarial_embeddings` |
| `recovery` | a rate under attack | seed, condition, group (targeted, held_out, control, unseen), metric (before, attacked, attacked_any, gained, ...), value, ci_lo, ci_hi, n_items, n |
| `work` | a point of a curve | seed, condition, group, steps, extracted, items |
| `tuning` | a round of adversarial fine-tuning | seed, round, attacked, surrogate, keep, work |
| `exposures` | an item at a point of a training | seed, of `trajectory` |
| `exposure_curves` | a number of exposures and a measure | part, curve (graded, early, memorized, unseen), exposures, measure (recognition, recall), value, ci_lo, ci_hi, n, n_seeds |
| `pictures` | a picture | seed, item, group, split, state (original: the picture itself; before; an edit; oracle; "..., attacked"), image (its pixels, row by row), height, width, distance, replicated |
| `findings` | a claim | finding, source, statistic, value, ci_lo, ci_hi, verdict, rule, n, n_seeds |

Measures: `targeted` (MR of A), `held_out` (of B), `retained` (of other memorized items: many captions, a template, shown
100 times or more), `control` (of controls), `alignment` (share of ordinary samples that show the digit asked for),
`frechet` (distance of ordinary samples to held-out pictures in the space of a trained encoder, less its floor), `loss`
(denoising error on held-out pictures). Running it again goes on where it stopped.
"""  # noqa: E501

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd

from interp.errors import UsageError
from interp.studies.memorization.audit import ORACLE, ORIGINAL
from interp.studies.memorization.bench import ROLES, Bench
from interp.studies.memorization.controls import JUDGED
from interp.studies.memorization.cuts import REFERENCE
from interp.studies.memorization.editing import TRAINED, Editing, slug

if TYPE_CHECKING:
    from interp.intervene.weights import PartEdit

PUBLISHED = 0.01
"""Share of a row that the published rule takes at each step."""


class MemorizationStudy(Editing):
    """The parts of a study of memorization."""

    def facts(self) -> dict[str, Any]:
        from interp.studies.memorization.bench import Bench

        recipe = Bench(self.spec, self.spec.train_seeds[0]).recipe()
        return {"model": self.spec.model, "recipe": recipe.model_dump(mode="json"), "seed": self.spec.seed}

    def tables(self) -> None:
        """Every part, in order.

        Raises:
            UsageError: the folder was made with other pipelines.
        """
        self.begin()
        self.exist()
        self.detect()
        self.choose()
        self.cut()
        self.share()
        self.attack()
        self.expose()
        self.show()
        self.judge()

    # -- subjects ----------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Pipelines and oracles, trained where the cache has none; those of an earlier run have to be the same."""
        rows = []
        for seed, bench in self.benches.items():
            for role in ROLES:
                name = f"parts/subject-{seed}-{role}"
                row = self.job.table(name, lambda b=bench, r=role: pd.DataFrame([b.about(r)]))  # type: ignore[misc]
                known, now = row["fingerprint"].iloc[0], bench.subject(role).fingerprint
                if known != now:
                    raise UsageError(
                        f"'{self.job.folder}' was made with another {role} of seed {seed} (fingerprint {known[:12]} "
                        f"there, {now[:12]} in the cache); give another folder with --out"
                    )
                rows.append(row)
        self.each("subjects", rows)

    # -- what is memorized -------------------------------------------------------------------------------------------

    def exist(self) -> None:
        """Replication of every item, by model and oracle."""
        from interp.studies.memorization.detect import existence, samples

        parts = []
        for seed, bench in self.benches.items():
            for role in ROLES:
                for guidance in (self.spec.guidance, *self.spec.also):
                    with self.stage(f"samples {seed} {role} at guidance {guidance:g}"):
                        make = partial(samples, bench, role, guidance)
                        parts.append(self.job.table(f"parts/samples-{seed}-{role}-{guidance:g}", make))
        self.samples = self.each("samples", parts)
        self.job.table("existence", lambda: existence(self.samples))

    def detect(self) -> None:
        """Signals, and tests of whole sets."""
        from interp.studies.memorization.detect import copying, detection, signals

        parts, sets = [], []
        for seed, bench in self.benches.items():
            for role in ROLES:
                parts.append(self.job.table(f"parts/signals-{seed}-{role}", partial(signals, bench, role)))
            sets.append(self.job.table(f"parts/copying-{seed}", partial(copying, bench)))
        rows = self.each("signals", parts)
        self.copying = self.each("copying", sets)
        self.detection = self.job.table("detection", lambda: detection(rows, seed=self.spec.seed))

    # -- sharing -----------------------------------------------------------------------------------------------------

    def share(self) -> None:
        """Overlap of A and B, and what the units of some items do to others."""
        from interp.studies.memorization.shared import covered, overlaps

        told, pairs, sizes = [], [], []
        # The share that was published, and the chosen one; smaller ones make no weight of a row.
        shares = sorted({PUBLISHED, max(PUBLISHED, self.settings[REFERENCE])})
        for seed, bench in self.benches.items():
            for role in ROLES:
                names = f"parts/overlap-{seed}-{role}", f"parts/overlaps-{seed}-{role}"
                found = self.together(names, partial(overlaps, bench, self.cuts[seed], role, shares))
                told.append(found[0])
                pairs.append(found[1])
            make = partial(covered, bench, self.cuts[seed], shares[-1])
            sizes.append(self.job.table(f"parts/coverage-{seed}", make))
        self.overlap = self.each("overlap", told)
        self.each("overlaps", pairs)
        self.each("coverage", sizes)

    # -- attack ------------------------------------------------------------------------------------------------------

    def audited(self, seed: int) -> list[str]:
        """Conditions that are attacked: in the first training every edit that erased A, else the judged ones."""
        gone = self.chosen[self.chosen["erases"] & ~self.chosen["edit"].isin(JUDGED)]
        more = gone["edit"].tolist() if seed == self.spec.train_seeds[0] else []
        return [ORIGINAL, *JUDGED, *more, *TRAINED, ORACLE]

    def _asked(self, seed: int, condition: str) -> tuple[tuple[str, ...], int]:
        """Sets that a condition is attacked on, and restarts.

        Claims are about A, beside what was never trained on. The other sets, and more than one restart, are for the
        first training, and for conditions that claims were published about.
        """
        core = condition in (ORIGINAL, *JUDGED, *TRAINED, ORACLE) and seed == self.spec.train_seeds[0]
        sets = tuple(s for s in self.spec.attack_sets if core or s in ("targeted", "unseen"))
        return sets, self.spec.restarts if core else 1

    def attack(self) -> None:
        """The attack on every condition, on A, B, controls and what was never trained on."""
        from interp.intervene.attack.report import recovery, work_curve
        from interp.studies.memorization.audit import floored

        parts = []
        for seed, bench in self.benches.items():
            for condition in self.audited(seed):
                groups, restarts = self._asked(seed, condition)
                for group in groups:
                    if not bench.sets[group]:
                        continue
                    name = f"parts/attack-{seed}-{slug(condition)}-{group}"
                    parts.append(
                        self.job.table(name, partial(self._attacked, bench, condition, group, restarts))
                    )
        self.searches = floored(pd.concat(parts, ignore_index=True), self.spec.attack_steps)
        self.attacks = self.searches.drop(columns="image")
        self.write("attacks", self.attacks)
        by = ("seed", "condition", "group")
        self.job.table("recovery", lambda: recovery(self.attacks, by=by))
        self.job.table("work", lambda: work_curve(self.attacks, by=by, unit="steps"))

    def _attacked(self, bench: Bench, condition: str, group: str, restarts: int) -> pd.DataFrame:
        from interp.studies.memorization.audit import attacked

        edit = None if condition in (ORIGINAL, ORACLE) else self.edit(bench, condition)
        subject = bench.oracle if condition == ORACLE else bench.pipeline
        with self.stage(f"attack {bench.seed}: {condition}"):
            found = attacked(bench, subject, edit, group, restarts=restarts)
        return found.assign(seed=bench.seed, condition=condition)

    # -- exposures, pictures, findings -------------------------------------------------------------------------------

    def expose(self) -> None:
        """What exposures leave, at the end of every training and on the way of the first."""
        from interp.studies.memorization.detect import exposure_curves, trained_exposures

        parts = []
        for seed, bench in self.benches.items():
            own = self.samples[self.samples["seed"] == seed]
            make = partial(trained_exposures, bench, own)
            parts.append(self.job.table(f"parts/exposures-{seed}", make))
        if self.spec.trajectory:
            parts.append(self.job.table("parts/trajectory", self._trajectory))
        rows = self.each("exposures", parts)
        self.job.table("exposure_curves", lambda: exposure_curves(rows, seed=self.spec.seed))

    def _trajectory(self) -> pd.DataFrame:
        from interp.measure.memorization.exposures import trajectory
        from interp.models.cache import quiet

        spec, bench = self.spec, self.benches[self.spec.train_seeds[0]]
        with self.stage("exposures on the way of a training") as report:
            found = trajectory(
                bench.recipe(), at=[p for p in spec.trajectory if p < 1], seeds=bench.seeds[:2],
                guidance=spec.guidance, steps=spec.steps, progress=report or quiet,
            )  # fmt: skip
        return found.assign(seed=bench.seed)

    def show(self) -> None:
        """Pictures of the first training's items, condition by condition."""
        from interp.studies.memorization.audit import pictures

        seed = self.spec.train_seeds[0]
        bench = self.benches[seed]
        items = [i.name for i in bench.sets["targeted"][: self.spec.attacked]]
        items += [i.name for i in bench.sets["held_out"][: max(2, self.spec.attacked // 2)]]

        def make() -> pd.DataFrame:
            shown: dict[str, PartEdit | None] = {ORIGINAL: None}
            shown |= {n: self.edit(bench, n) for n in (*JUDGED, *TRAINED)} | {ORACLE: None}
            own = self.searches[self.searches["seed"] == seed]
            return pictures(bench, shown, own, items)

        self.job.table("pictures", make)

    def judge(self) -> None:
        """What holds."""
        from interp.studies.memorization.findings import Told, findings

        told = Told(
            samples=self.samples,
            detection=self.detection,
            copying=self.copying,
            items=self.items,
            contrasts=self.contrasts,
            overlap=self.overlap,
            attacks=self.attacks,
            chosen=self.chosen,
            edits=self.edits,
            judged=JUDGED,
            others=[name for name in self.settings if name not in JUDGED],
        )
        self.job.table("findings", lambda: findings(told, spec=self.spec))


run = MemorizationStudy.run
