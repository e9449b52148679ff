"""The edits of the study of memorization: their doses, and each at its chosen one beside its controls."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from interp.studies.base import Study
from interp.studies.memorization.audit import NEGATED, TUNED, UNHELD
from interp.studies.memorization.bench import Bench
from interp.studies.memorization.controls import JUDGED, Controls, kind_of
from interp.studies.memorization.cuts import NONE, REFERENCE, Cut, Cuts, chosen, dose_of, early
from interp.studies.memorization.spec import MemorizationSpec

if TYPE_CHECKING:
    from interp.intervene.weights import PartEdit
    from interp.studies.memorization.cuts import Family

TRAINED = (NEGATED, TUNED)
"""Edits that are trained and not located; each has its own control (`UNHELD`)."""


class Editing(Study[MemorizationSpec]):
    """What is cut and trained away, and what that leaves."""

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
            parts.append(self.job.table(f"parts/doses-{seed}-{slug(name)}", make))
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
                frames.append(rows.assign(**about(bench, cut, edit)))
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
                    (f"parts/edit-{seed}-{slug(name)}", f"parts/edit-items-{seed}-{slug(name)}"),
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
        return rows.assign(**about(bench, cut, edit)), items.assign(seed=bench.seed, edit=name)

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
        return self.job.folder / "parts" / "edits" / f"{bench.seed}-{slug(name)}.safetensors"

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


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name).strip("-")


def about(bench: Bench, cut: Cut | None, edit: PartEdit | None) -> dict[str, Any]:
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
