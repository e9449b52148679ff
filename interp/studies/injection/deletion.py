"""Every memory of the study of injected memorization located, cut at every dose, and measured at the chosen one."""

from __future__ import annotations

from functools import cached_property, partial
from typing import TYPE_CHECKING

import pandas as pd

from interp.models.cache import quiet
from interp.studies.injection import edits, measures
from interp.studies.injection.memories import Material, Memory
from interp.studies.injection.ranking import Asked
from interp.studies.injection.subjects import Subjects

if TYPE_CHECKING:
    from interp.intervene.weights import PartEdit
    from interp.models.cache import Progress

REWRITTEN = "rewritten"
"""Of neurons: what they write is learned anew."""


class Deletion(Subjects):
    """What is deleted of memories, and what that leaves."""

    injected_cells: pd.DataFrame
    injected_complete: pd.DataFrame

    @cached_property
    def _nones(self) -> dict[tuple[str, str], pd.DataFrame]:
        """Of each memory the cells before any edit."""
        return {}

    def delete(self) -> None:
        """Every memory located and cut at every dose, and measured at the chosen one."""
        held, dosed, final, beside = [], [], [], []
        unheld: list[tuple[str, str]] = []
        choices: dict[tuple[str, str], pd.DataFrame] = {}
        for name, kind in self.memories():
            head = {"subject": name, "memory": kind}
            part = f"parts/{name}-{kind}"
            held.append(self.job.table(f"{part}-held", partial(self._held, name, kind)).assign(**head))
            memory = self.memory(name, kind)
            if min(len(memory.group(g)) for g in ("targeted", "held_out")) < 2:
                self.job.remark(f"{name}, {kind}: too little is recited to locate some and measure others")
                unheld.append((name, kind))
                continue
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
                if tables[0].empty:
                    self.job.remark(
                        f"{name}, {kind}: {edit} is not measured: gradients are incomplete, or gates still move"
                    )
                    continue
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
            if (least := measures.best(choice)) is not None:
                row = choice[choice["edit"] == least].iloc[0]
                table = self.job.table(
                    f"{part}-{least.replace(' ', '_')}-beside", partial(self._beside, name, kind, row)
                )
                if table.empty:
                    self.job.remark(f"{name}, {kind}: no control goes as far as {least}")
                else:
                    beside.append(table.assign(**head, of=least))
            dosed.append(at_doses)
            final.append(pd.concat(own[1], ignore_index=True))
        self.choices, self.unheld = choices, tuple(unheld)
        self.write("memories", pd.concat(held, ignore_index=True))
        injected = self.injected_cells
        single = measures.summary(injected, ("subject", "memory"), seed=self.spec.seed)
        many = pd.concat(dosed, ignore_index=True) if dosed else injected.iloc[:0]
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
        items = pd.concat(final, ignore_index=True) if final else injected.iloc[:0]
        self.items = items
        self.write("edit_items", items)
        self.beside = pd.concat(beside, ignore_index=True) if beside else items.iloc[:0].assign(of="")
        self.write("beside", self.beside)
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
        items = [*(memory.taught or memory.items), *memory.never]
        without = measures.cells(subject, items)
        with self._holding(name, kind):
            now = measures.cells(subject, items)
        out = now[["item", "group", "nll", "exact", "hits"]]
        return out.assign(nll_without=without["nll"].to_numpy())

    def _asked(self, name: str, kind: str, report: Progress | None) -> Asked:
        subject, effort, material = self.of(name)
        items = self.memory(name, kind).group("targeted")
        return Asked(subject, items, material.others, effort, self.spec.seed, report or quiet)

    def _before(self, name: str, kind: str) -> list[pd.DataFrame]:
        memory = self.memory(name, kind)
        subject, _, material = self.of(name)
        without = [measures.cells(subject, prose) for prose in (material.choose, material.measure)]
        with self._holding(name, kind):
            having = [self._read(name, memory, material), self._measured(name, memory, material)]
        return [
            pd.concat([now.assign(**measures.NONE), prose.assign(**measures.WITHOUT)], ignore_index=True)
            for now, prose in zip(having, without, strict=True)
        ]

    def _read(self, name: str, memory: Memory, material: Material) -> pd.DataFrame:
        """Cells that doses are chosen on."""
        return measures.cells(self.of(name)[0], [*memory.items, *memory.never, *material.choose])

    def _measured(self, name: str, memory: Memory, material: Material) -> pd.DataFrame:
        """Cells of an edit at its chosen dose: let go on alone, on other prose, with other prefixes."""
        subject = self.of(name)[0]
        found = [
            measures.cells(subject, memory.group("targeted"), generate=True),
            measures.cells(subject, [*memory.group("held_out"), *memory.never, *material.measure]),
            self._elsewhere(name, memory),
        ]
        return pd.concat(found, ignore_index=True)

    def _elsewhere(self, name: str, memory: Memory) -> pd.DataFrame:
        """Cells of the located sequences behind prefixes that are written otherwise."""
        from interp.studies.injection.memories import rewritten

        subject = self.of(name)[0]
        other = rewritten(memory.group("targeted"), self.spec.seed, subject.tokens.n_vocab)
        return pd.concat(
            [measures.cells(subject, own, variant=v) for v, own in other.items() if v != "given"],
            ignore_index=True,
        )

    def _edited(self, name: str, kind: str, edit: str) -> list[pd.DataFrame]:
        material = self.of(name)[2]
        memory = self.memory(name, kind)
        with self._holding(name, kind), self.stage(f"{name}, {kind}: {edit}") as report:
            asked = self._asked(name, kind, report)
            # All of them before the first is applied: a locator hands out edits of the model it was fitted to.
            made = list(edits.doses(edit, self.spec, asked, memory, material))
            return self._at_doses(name, kind, made, asked) if made else [pd.DataFrame(), pd.DataFrame()]

    def _beside(self, name: str, kind: str, row: pd.Series) -> pd.DataFrame:
        """Cells of the controls of an edit at its chosen dose, behind other prefixes: no dose was chosen on them."""
        from interp.studies.injection.holding import weigh

        memory, subject = self.memory(name, kind), self.of(name)[0]
        edit, rows = str(row["edit"]), []
        with self._holding(name, kind), self.stage(f"{name}, {kind}: controls of {edit}") as report:
            change = self._kept(name, kind, edit)
            asked = self._asked(name, kind, report)
            dosed = edits.Dosed(edit, str(row["family"]), float(row["asked"]), change)
            for control in edits.beside(dosed, asked, self.spec.seed):
                about = weigh(subject, control)
                with control.change.applied(subject):
                    rows.append(self._elsewhere(name, memory).assign(**about))
        return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()

    def _at_doses(self, name: str, kind: str, made: list[edits.Dosed], asked: Asked) -> list[pd.DataFrame]:
        """Cells of every edit, and those of each at its chosen dose, which is kept in a file.

        Edits that are not of neurons come with controls of their own, at the chosen dose alone.
        """
        from interp.studies.injection.holding import weigh

        subject, _, material = self.of(name)
        memory = self.memory(name, kind)
        rows, weights = [], []

        def read(some: list[edits.Dosed]) -> list[int]:
            """Places of the chosen ones among all that were read so far."""
            for dosed in some:
                weights.append(weigh(subject, dosed))
                with dosed.change.applied(subject):
                    rows.append(self._read(name, memory, material).assign(**weights[-1]))
            every = pd.concat([self._nones[name, kind], *rows], ignore_index=True).assign(
                subject=name, memory=kind
            )
            choice = measures.chosen(measures.summary(every, seed=self.spec.seed), self.spec)
            at = [(w["edit"], w["asked"]) for w in weights]
            return [at.index((row.edit, row.asked)) for row in choice.itertuples()]

        own = [made[i] for i in read(made)]
        controls = [
            control
            for dosed in own
            if dosed.family not in ("units", "known", "control")
            for control in edits.beside(dosed, asked, self.spec.seed)
        ]
        made = [*made, *controls]
        final = []
        for i in read(controls):
            made[i].change.made_for(subject).save(self._file(name, kind, made[i].edit))
            with made[i].change.applied(subject):
                final.append(self._measured(name, memory, material).assign(**weights[i]))
        return [pd.concat(rows, ignore_index=True), pd.concat(final, ignore_index=True)]

    def _rewritten(self, name: str, kind: str, best: str) -> list[pd.DataFrame]:
        """What the best neurons write, learned anew."""
        with self._holding(name, kind), self.stage(f"{name}, {kind}: {REWRITTEN}") as report:
            change = self._kept(name, kind, best)
            units = {s.part: s.mask.any(0).nonzero()[:, 0] for s in change.singles}  # type: ignore[attr-defined]
            asked = self._asked(name, kind, report)
            return self._at_doses(name, kind, [edits.of_outputs(units, best, asked)], asked)

    def _kept(self, name: str, kind: str, edit: str) -> PartEdit:
        """An edit at its chosen dose, from its file."""
        from interp.intervene.weights import PartEdit

        return PartEdit.load(self._file(name, kind, edit))
