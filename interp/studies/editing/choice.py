"""What a study of edits chooses first: facts that are known; and on train facts layer, window and weight."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING

import pandas as pd

from interp.models.cache import quiet
from interp.studies.base import Study
from interp.studies.editing.spec import EditingSpec

if TYPE_CHECKING:
    from interp.intervene.facts import Moments, Prefixes, Residuals, Search
    from interp.measure.edits import EditRecord
    from interp.studies.editing.records import Chosen
    from interp.tasks.base import Example

CHUNK = 5
"""Facts of a part."""


class Choice(Study[EditingSpec]):
    """Facts, layers and windows; parts of the run like all others."""

    # -- facts -------------------------------------------------------------------------------------------------------

    @cached_property
    def questions(self) -> dict[str, list[Example]]:
        """What is asked of each relation."""
        from interp.studies.editing.records import questions

        return {name: questions(self.subject, self.spec, name) for name in self.spec.relations}

    @cached_property
    def known(self) -> pd.DataFrame:
        """What the model was asked, and whether it knew."""
        return pd.concat(
            [self.job.table(f"parts/known-{name}", partial(self._known, name)) for name in self.questions],
            ignore_index=True,
        )

    def _known(self, name: str) -> pd.DataFrame:
        from interp.studies.editing.records import answered

        with self.stage(f"known: {name}") as report:
            return answered(self.subject, self.questions[name], report)

    @cached_property
    def chosen(self) -> Chosen:
        """The facts of both splits."""
        from interp.studies.editing.records import choose

        asked = [e for examples in self.questions.values() for e in examples]
        right = self.known["known"] | self.spec.keep_unknown
        known = [e for e, kept in zip(asked, right, strict=True) if kept]
        chosen = choose(self.subject, self.spec, known)
        for split, wanted in (("train", self.spec.train), ("edit", self.spec.n)):
            if (n := len(getattr(chosen, split))) < wanted:
                self.job.remark(
                    f"{n} facts to {split} in place of {wanted}: no more are known that can be edited"
                )
        return chosen

    def _census(self) -> pd.DataFrame:
        """How many facts of each relation were asked, known and used."""
        found = (
            self.known.groupby("relation", sort=False)["known"].agg(asked="size", known="sum").reset_index()
        )
        for split in ("train", "edit"):
            names = [e.meta["relation"] for e in getattr(self.chosen, split)]
            found[split] = [names.count(r) for r in found["relation"]]
        return found

    @cached_property
    def moments(self) -> Moments:
        """Second moments of the keys, of all layers."""
        from interp.intervene.facts import second_moments

        with self.stage("second moments") as report:
            return second_moments(self.subject, progress=report or quiet)

    @cached_property
    def prefixes(self) -> Prefixes:
        """What edits have to hold in."""
        from interp.studies.editing.writing import contexts

        return contexts(self.subject, self.spec)

    @cached_property
    def searches(self) -> dict[str, Search]:
        """How each method searches."""
        from interp.studies.editing.writing import searches

        return searches(self.spec)

    # -- layers ------------------------------------------------------------------------------------------------------

    @cached_property
    def tried(self) -> tuple[int, ...]:
        """The layers that are tried."""
        return tuple(range(0, self.subject.n_layers, self.spec.layer_step))

    @cached_property
    def scan(self) -> pd.DataFrame:
        """The train facts written in every layer that is tried."""
        found = [
            self.job.table(f"parts/scan-{layer:03d}", partial(self._scan, layer)) for layer in self.tried
        ]
        return pd.concat(found, ignore_index=True).drop(columns="seconds")

    def _scan(self, layer: int) -> pd.DataFrame:
        from interp.measure.edit_layers import edit_layers

        with self.stage(f"scan: layer {layer}") as report:
            return edit_layers(
                self.subject,
                self.chosen.train_records,
                [layer],
                self.moments,
                prefixes=self.prefixes,
                search=self.searches["rome"],
                progress=report or quiet,
            )

    @cached_property
    def layers(self) -> pd.DataFrame:
        """How well each layer does on the train facts, and what is taken."""
        from interp.studies.editing.scoring import ranked

        best = ranked(self.scan, ["layer"])
        best["chosen"] = [i == 0 for i in range(len(best))]
        best["ends"] = [i < self.spec.memit_ends for i in range(len(best))]
        return best.sort_values("layer", ignore_index=True)

    @cached_property
    def layer(self) -> int:
        """The layer that ROME edits."""
        return int(self.layers.loc[self.layers["chosen"], "layer"].iloc[0])

    # -- windows ------------------------------------------------------------------------------------------------------

    def _searched(self, name: str, records: Sequence[EditRecord], end: int) -> pd.DataFrame:
        """What facts lack behind a layer, one row each, part by part."""
        from interp.studies.editing.writing import groups, searched

        def make(numbers: Sequence[int]) -> pd.DataFrame:
            own = [records[i] for i in numbers]
            with self.stage(f"residuals: {name}, layer {end}, facts {numbers[0]} to {numbers[-1]}") as report:
                return searched(self.subject, own, end, self.prefixes, self.searches["memit"], report)

        found = [
            self.job.table(f"parts/residuals-{name}-{end:03d}-{i:02d}", partial(make, numbers))
            for i, numbers in enumerate(groups(len(records), CHUNK))
        ]
        return pd.concat(found, ignore_index=True)

    def _residuals(self, found: pd.DataFrame, end: int) -> Residuals:
        from interp.studies.editing.writing import found_in

        return found_in(found, end, self.prefixes, self.searches["memit"])

    @cached_property
    def windows(self) -> pd.DataFrame:
        """MEMIT on all train facts at once, for each window and weight; the first row is taken."""
        from interp.studies.editing.scoring import ranked

        ends = [int(x) for x in self.layers.loc[self.layers["ends"], "layer"]]
        found = [self.job.table(f"parts/window-{end:03d}", partial(self._window, end)) for end in ends]
        best = ranked(pd.concat(found, ignore_index=True), ["end", "layers", "weight"])
        best["chosen"] = [i == 0 for i in range(len(best))]
        return best

    def _window(self, end: int) -> pd.DataFrame:
        from interp.studies.editing.writing import by_memit, scored, window

        records = self.chosen.train_records
        found = self._residuals(self._searched("train", records, end), end)
        layers = window(end, self.spec.width)
        parts = []
        with self.stage(f"MEMIT: window that ends with layer {end}") as report:
            for number, weight in enumerate(self.spec.memit_weights):
                edit, _ = by_memit(self.subject, records, found, layers, self.moments, weight)
                own = scored(self.subject, records, edit, "memit", len(records))
                name = f"{layers[0]}-{layers[-1]}"
                parts.append(own.assign(end=end, layers=name, weight=weight))
                if report:
                    report(number + 1, len(self.spec.memit_weights), "weights")
        return pd.concat(parts, ignore_index=True)
