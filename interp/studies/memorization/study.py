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

import json
import re
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from interp.errors import UsageError
from interp.studies.base import Study
from interp.studies.memorization.audit import NEGATED, ORACLE, ORIGINAL, TUNED, UNHELD
from interp.studies.memorization.bench import ROLES, Bench
from interp.studies.memorization.controls import JUDGED, Controls, kind_of
from interp.studies.memorization.cuts import NONE, REFERENCE, Cut, Cuts, chosen, dose_of, early
from interp.studies.memorization.spec import MemorizationSpec

if TYPE_CHECKING:
    from interp.intervene.weights import PartEdit
    from interp.studies.memorization.cuts import Family

PUBLISHED = 0.01
"""Share of a row that the published rule takes at each step."""
TRAINED = (NEGATED, TUNED)
"""Edits that are trained and not located; each has its own control (`UNHELD`)."""


class MemorizationStudy(Study[MemorizationSpec]):
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

    @cached_property
    def benches(self) -> dict[int, Bench]:
        """By training seed."""
        return {seed: Bench(self.spec, seed, self.stage) for seed in self.spec.train_seeds}

    @cached_property
    def cuts(self) -> dict[int, Cuts]:
        """Locators by training seed."""
        return {seed: Cuts(bench) for seed, bench in self.benches.items()}

    @cached_property
    def controls(self) -> dict[int, Controls]:
        """Controls by training seed."""
        return {seed: Controls(cuts) for seed, cuts in self.cuts.items()}

    def each(self, name: str, frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
        """A table made of parts."""
        found = pd.concat([f for f in frames if len(f)], ignore_index=True)
        self.write(name, found)
        return found

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

    # -- doses -------------------------------------------------------------------------------------------------------

    def choose(self) -> None:
        """Dose curves on the first training, on the choosing seeds; and the doses that all else is measured at."""
        seed = self.spec.train_seeds[0]
        bench = self.benches[seed]
        intact = self.job.table(
            f"parts/doses-{seed}-none", lambda: self._doses(bench, [None], bench.choosing)
        )
        parts = [intact]
        # Doses of controls are those of the published rule; one random draw shows as much as three.
        beside = [names[0] for names in self.controls[seed].of(REFERENCE).values()]
        earlier = [early(rule, tau) for rule in JUDGED for tau in self.spec.taus]
        for name in (*JUDGED, *self.spec.cheap, *earlier, *beside):
            make = partial(self._dosed, bench, name)
            parts.append(self.job.table(f"parts/doses-{seed}-{_slug(name)}", make))
        self.doses = self.each("doses", parts)
        self.chosen = self.job.table("chosen", lambda: chosen(self.doses, self.spec.erased))

    def _dosed(self, bench: Bench, name: str) -> pd.DataFrame:
        cuts, controls = self.cuts[bench.seed], self.controls[bench.seed]
        if kind_of(name):
            made = [controls.cut(name, own) for own in cuts.all([REFERENCE])]
            return self._doses(bench, made, bench.choosing)
        if not self._usable(bench, name):
            return pd.DataFrame()
        return self._doses(bench, list(cuts.all([name])), bench.choosing)

    def _doses(self, bench: Bench, cuts: Sequence[Cut | None], seeds: Sequence[int]) -> pd.DataFrame:
        from interp.studies.memorization.measures import measured

        frames = []
        with self.stage(f"doses {bench.seed}: {cuts[0].edit if cuts and cuts[0] else NONE}") as report:
            for done, cut in enumerate(cuts):
                edit = None if cut is None else cut.made()
                rows, _ = measured(bench, bench.pipeline, edit, seeds)
                frames.append(rows.assign(**_about(bench, cut, edit)))
                if report is not None:
                    report(done + 1, len(cuts), "doses")
        return pd.concat(frames, ignore_index=True)

    # -- edits -------------------------------------------------------------------------------------------------------

    @property
    def settings(self) -> dict[str, float]:
        """The dose that each located edit is made at, the dear ones at that of the published rule."""
        asked = {str(r["edit"]): float(r["asked"]) for r in self.chosen.to_dict("records")}
        return asked | dict.fromkeys(self.spec.dear, asked[REFERENCE])

    def beside(self, seed: int) -> dict[str, str]:
        """All controls of located edits: the edit of each."""
        own = self.controls[seed]
        return {name: edit for edit in self.settings for names in own.of(edit).values() for name in names}

    def cut(self) -> None:
        """Every edit at its chosen dose in every training, on seeds that nothing was chosen on."""
        from interp.studies.memorization.measures import against

        rows, items, costs = [], [], []
        for seed, bench in self.benches.items():
            for name in (NONE, *self.settings, *self.beside(seed), *TRAINED, *UNHELD.values()):
                found = self.together(
                    (f"parts/edit-{seed}-{_slug(name)}", f"parts/edit-items-{seed}-{_slug(name)}"),
                    partial(self._edited, bench, name),
                )
                rows.append(found[0])
                items.append(found[1])
                if name != NONE and len(found[0]):
                    costs.append(self._cost(bench, name))
        self.edits = self.each("edits", rows)
        self.items = self.each("edit_items", items)
        self.each("costs", costs)
        told = [self.job.folder / "parts" / f"tuning-{seed}.parquet" for seed in self.benches]
        self.each("tuning", [pd.read_parquet(path) for path in told])
        self.contrasts = self.job.table(
            "contrasts", lambda: against(self.items, self.pairs, seed=self.spec.seed)
        )

    @property
    def pairs(self) -> dict[str, dict[str, list[str]]]:
        """By edit, what it is compared with: several draws are taken together."""
        own, nothing = self.controls[self.spec.train_seeds[0]], {NONE: [NONE]}
        pairs = {edit: {**nothing, **own.of(edit)} for edit in self.settings}
        pairs |= {control: nothing for control in (*self.beside(self.spec.train_seeds[0]), *UNHELD.values())}
        return pairs | {edit: {**nothing, UNHELD[edit]: [UNHELD[edit]]} for edit in TRAINED}

    def _edited(self, bench: Bench, name: str) -> tuple[pd.DataFrame, pd.DataFrame]:
        from interp.studies.memorization.measures import measured

        if not self._usable(bench, self.beside(bench.seed).get(name, name)):
            return pd.DataFrame(), pd.DataFrame()
        edit = None if name == NONE else self.edit(bench, name)
        with self.stage(f"edit {bench.seed}: {name}"):
            rows, items = measured(bench, bench.pipeline, edit, bench.seeds)
        cut = None if edit is None else self._told(bench.seed, name, edit)
        return rows.assign(**_about(bench, cut, edit)), items.assign(seed=bench.seed, edit=name)

    def _told(self, seed: int, name: str, edit: PartEdit) -> Cut:
        """What is said of an edit that is made."""
        of = self.beside(seed).get(name) or next((t for t, other in UNHELD.items() if other == name), name)
        family: Family = "control" if of != name else "trained" if name in TRAINED else "located"
        return Cut(name, family, self.settings.get(of, float("nan")), lambda: edit, of)

    def _cost(self, bench: Bench, name: str) -> pd.DataFrame:
        """A row of `costs`, from beside the edit."""
        path = self.job.folder / "parts" / f"cost-{self._path(bench, name).stem}.json"
        spent = json.loads(path.read_text(encoding="utf-8"))
        return pd.DataFrame([{"seed": bench.seed, "edit": name, **spent}])

    def _usable(self, bench: Bench, name: str) -> bool:
        """Whether there is such an edit; what is left out is remarked."""
        if self.cuts[bench.seed].usable(name):
            return True
        self.job.remark(
            f"{name}: no prompt of A looks memorized to it in training {bench.seed}, so it has no edit"
        )
        return False

    def _path(self, bench: Bench, name: str) -> Path:
        return self.job.folder / "parts" / "edits" / f"{bench.seed}-{_slug(name)}.safetensors"

    def edit(self, bench: Bench, name: str) -> PartEdit:
        """An edit at its chosen dose, from its file where there is one."""
        from interp.intervene.weights import PartEdit

        path = self._path(bench, name)
        if path.exists():
            return PartEdit.load(path, bench.pipeline)
        edit = self._made(bench, name).made_for(bench.pipeline)
        budget = {"dose": dose_of(bench.pipeline, edit), "norm": edit.budget(bench.pipeline).norm}
        # What it took is known now alone: a run that goes on loads the edit.
        self.job.json(f"parts/cost-{path.stem}", lambda: {**self.cuts[bench.seed].spent(name), **budget})
        edit.save(path)
        return edit

    def _made(self, bench: Bench, name: str) -> PartEdit:
        from interp.studies.memorization.audit import negated, tuned, unheld

        cuts = self.cuts[bench.seed]
        if name in (*TRAINED, *UNHELD.values()):
            items = unheld(bench) if name in UNHELD.values() else list(bench.sets["targeted"])
            with cuts.timed(name):
                if name in (NEGATED, UNHELD[NEGATED]):
                    return negated(bench, items)
                found = tuned(bench, items)
            if name == TUNED:
                self.job.table(f"parts/tuning-{bench.seed}", lambda: found.history.assign(seed=bench.seed))
            return found.edit
        if of := self.beside(bench.seed).get(name):
            located = self.edit(bench, of)
            return self.controls[bench.seed].made(name, of, located, self.settings[of])
        return cuts.made(name, self.settings[name])

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
                found = self.together(names, partial(overlaps, bench, role, shares))
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
                    name = f"parts/attack-{seed}-{_slug(condition)}-{group}"
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


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name).strip("-")


def _about(bench: Bench, cut: Cut | None, edit: PartEdit | None) -> dict[str, Any]:
    """What a row says of its edit."""
    return {
        "seed": bench.seed,
        "edit": NONE if cut is None else cut.edit,
        "of": NONE if cut is None else cut.of,
        "family": "none" if cut is None else cut.family,
        "control": cut is not None and cut.family == "control",
        "asked": float("nan") if cut is None else cut.asked,
        "dose": 0.0 if edit is None else dose_of(bench.pipeline, edit),
        "norm": 0.0 if edit is None else edit.budget(bench.pipeline).norm,
    }


run = MemorizationStudy.run
