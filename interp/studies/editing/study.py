"""The editing study, part by part: from a spec to a folder of tables, going on where it stopped.

Facts that the model knows (zero-shot, in the wording that is edited) get another answer. Layers are chosen on facts of
their own, and each of the edited facts is written alone by ROME, then many at once by MEMIT, and taken back.

facts       relation, asked, known, train, edited
records     record, relation, split (train, edit), text (prompt and new answer), true, paraphrases, neighbours (numbers)
scan        train facts by ROME layer by layer: record, relation, kind (efficacy, paraphrase, neighbour), prompt, state
            (before, after), rule, alone, p_new, p_true, success, top, magnitude, layer, nll (end of the search)
layers      of the scan: layer, ES, PS, NS, ET, PT, NT, EM, PM, NM, S, n, chosen (the highest S; of equal ones the
            largest EM + PM + NM), ends (MEMIT's windows end there)
effects     causal traces of the train facts at the subject's last token: record, relation, layer, kind (mlp_out,
            resid_post), corruption (noise, subject_swap), metric (probability, logit_diff), te, effect, share
localisation  success of edits against effects: trace (kind), corruption, metric, kind (of prompt), n, records, rho,
            within, within_n, r2_layer, r2_both, gain, gain_lo, gain_hi (records resampled), p (of the gain: effects
            shuffled over records)
windows     MEMIT on all train facts at once: end, layers, weight, ES ... S, n, chosen
scores      columns of the scan but layer and nll, with method (rome; rome together: the sum of all edits of rome, each
            made of the intact model; memit; other fact: rome's edit of another record; random value: rome's, writing a
            random direction of that length),
            at_once (edits that are on), same_object and shared (of neighbours: their true answer is that of the edited
            fact; a train fact has the same one), unit and cluster (what intervals resample: record; group of records
            that share an edit; record, given this edit, where there is one edit)
scoreboard  without shared neighbours: method, at_once, state, measure (ES EM ET PS PM PT NS NM NT, NS same, NS other,
            S), value, ci_lo, ci_hi, n, unit, units (how many)
changes     likewise: method, at_once, measure, before, after, delta, ci_lo, ci_hi (paired), n, unit, units; and NS lost
            (share of the neighbours right before that is wrong after)
edits       each edit by ROME: record, relation, layer, steps, nll, norm (of what is added, over what was there), bytes
            (the file), dense_bytes (the whole matrix), loaded (the file gives the same edit), in_weights (largest
            difference of logits between edited weights and the edit as an intervention), says (greedy decoding gives
            the new answer from the edited weights), restored (all weights have the bits that they had); and of MEMIT's
drift       on prose of which the moments saw nothing: method, at_once, group (number of the edit), passage, topic,
            nll_before, nll_after (nats a token)
fluency     method, at_once, record, opening, state, entropy (bits)
cost        method, what, seconds (median), n, forwards (in passes of the edited prompt); differs from run to run
findings    finding, statistic, value, ci_lo, ci_hi, n (units), p, verdict: holds, does not or undecided, by the rules
            in `findings.py`; undecided of fewer than six units too

Neighbours are other subjects of the relation, first those with the same object; CounterFact's all have the same object,
so only `NS same` compares with its NS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from interp.studies.editing.choice import CHUNK, Choice

if TYPE_CHECKING:
    from interp.intervene.base import Intervention
    from interp.intervene.facts import FactEdit, Residuals
    from interp.measure.edits import EditRecord
    from interp.tasks.base import Example


class EditingStudy(Choice):
    """The parts of a study of edits."""

    def tables(self) -> None:
        """Every part of the spec, in order."""
        parts = self.spec.parts
        self.write("records", self.chosen.table(self.subject))
        self.write("facts", self._census())
        self.write("scan", self.scan)
        self.write("layers", self.layers)
        localisation = self._localised() if "localise" in parts else None
        scores = [self._rome()] if self.alone else []
        if "controls" in parts:
            scores.append(self._controls())
        if self.many:
            scores.append(self._memit())
        elif "memit" in parts:
            self.job.remark(
                "MLPs of this family write through a norm, so that MEMIT cannot share residuals out"
            )
        drift = self._drift() if "drift" in parts else None
        if "fluency" in parts:
            self._fluency()
        if scores:
            self._conclude(pd.concat(scores, ignore_index=True), drift, localisation)

    def _conclude(
        self, scores: pd.DataFrame, drift: pd.DataFrame | None, localisation: pd.DataFrame | None
    ) -> None:
        from interp.studies.editing.findings import findings
        from interp.studies.editing.scoring import changes, scoreboards

        seed = self.spec.seed
        scores = self.chosen.marked(scores)
        self.write("scores", scores)
        board = scoreboards(scores, seed=seed)
        self.write("scoreboard", board)
        changed = changes(scores, seed=seed)
        self.write("changes", changed)
        self.write("edits", self.edits.drop(columns=["seconds", "forward"]))
        self.write("cost", self._cost())
        self.write("findings", findings(scores, board, changed, drift, localisation, seed=seed))

    # -- traces -------------------------------------------------------------------------------------------------------

    def _localised(self) -> pd.DataFrame:
        """Effects of the train facts, and how well edits follow them."""
        from interp.studies.editing.localise import CORRUPTIONS, agreement

        found = [self.job.table(f"parts/effects-{name}", partial(self._traced, name)) for name in CORRUPTIONS]
        effects = pd.concat(found, ignore_index=True)
        self.write("effects", effects)
        localisation = agreement(self.scan, effects, seed=self.spec.seed)
        self.write("localisation", localisation)
        return localisation

    def _traced(self, corruption: str) -> pd.DataFrame:
        from interp.studies.editing.localise import traced

        chosen = self.chosen
        with self.stage(f"traces: {corruption}") as report:
            return traced(
                self.subject,
                chosen.train,
                chosen.train_records,
                self.tried,
                corruption,
                self.spec.noise,
                self.spec.seed,
                report,
            )

    # -- ROME --------------------------------------------------------------------------------------------------------

    @property
    def alone(self) -> bool:
        """Whether facts are written one at a time: what most parts build on."""
        return bool({"rome", "controls", "drift", "fluency"} & set(self.spec.parts))

    @property
    def many(self) -> bool:
        """Whether facts are written many at once, by a family that allows it."""
        return "memit" in self.spec.parts and not self.subject.family.post_norm

    def _file(self, method: str, number: int) -> Path:
        """Where an edit is kept; `method` may name how many facts are in it."""
        return self.job.folder / "edits" / f"{method}-{number:03d}.safetensors"

    @cached_property
    def chunks(self) -> list[list[int]]:
        """Numbers of the edited facts, part by part."""
        from interp.studies.editing.writing import groups

        return groups(len(self.chosen.edit_records), CHUNK)

    def _records(self, numbers: Sequence[int]) -> list[EditRecord]:
        return [self.chosen.edit_records[i] for i in numbers]

    @cached_property
    def edits_of_rome(self) -> pd.DataFrame:
        """The edits, one row each."""
        found = [
            self.job.table(f"parts/rome-{i:02d}", partial(self._written, numbers))
            for i, numbers in enumerate(self.chunks)
        ]
        return pd.concat(found, ignore_index=True)

    def _written(self, numbers: Sequence[int]) -> pd.DataFrame:
        from interp.studies.editing.writing import by_rome

        with self.stage(f"ROME: facts {numbers[0]} to {numbers[-1]}") as report:
            return by_rome(
                self.subject,
                self._records(numbers),
                [self._file("rome", i) for i in numbers],
                self.layer,
                self.moments,
                self.prefixes,
                self.searches["rome"],
                report,
            )

    @cached_property
    def rome_edits(self) -> list[FactEdit]:
        """The edits themselves, read from their files."""
        from interp.intervene.facts import FactEdit

        self.edits_of_rome  # noqa: B018  (writes the files that are not there)
        return [FactEdit.load(self._file("rome", i), self.subject) for chunk in self.chunks for i in chunk]

    def _scores(
        self, name: str, method: str, at_once: int, edit: Callable[[int], Intervention]
    ) -> pd.DataFrame:
        """Scores of all facts under a condition, each with the edit of its number, part by part."""
        from interp.studies.editing.writing import scored

        def make(numbers: Sequence[int]) -> pd.DataFrame:
            with self.stage(f"scores: {name}, facts {numbers[0]} to {numbers[-1]}"):
                return scored(
                    self.subject, self._records(numbers), [edit(i) for i in numbers], method, at_once
                ).assign(alone=at_once == 1)

        found = [
            self.job.table(f"parts/scores-{name}-{i:02d}", partial(make, numbers))
            for i, numbers in enumerate(self.chunks)
        ]
        return pd.concat(found, ignore_index=True)

    def _rome(self) -> pd.DataFrame:
        """Scores of edits one at a time, and of all of them."""
        from interp.studies.editing.findings import TOGETHER
        from interp.studies.editing.writing import together

        n = len(self.chosen.edit_records)
        alone = self._scores("rome", "rome", 1, lambda i: self.rome_edits[i])
        every = self._scores("rome-together", TOGETHER, n, lambda i: together(self.rome_edits))
        return pd.concat([alone, every], ignore_index=True)

    def _controls(self) -> pd.DataFrame:
        """Scores of what edits are held against."""
        from interp.studies.editing.writing import CONTROLS, control

        def of(kind: str) -> pd.DataFrame:
            made = partial(control, self.rome_edits, kind=kind, seed=self.spec.seed)
            return self._scores(kind.replace(" ", "-"), kind, 1, lambda i: made(number=i))

        return pd.concat([of(kind) for kind in CONTROLS], ignore_index=True)

    # -- MEMIT -------------------------------------------------------------------------------------------------------

    @cached_property
    def sizes(self) -> list[int]:
        """Facts that MEMIT writes at once, and no more than there are."""
        return sorted({min(k, len(self.chosen.edit_records)) for k in self.spec.at_once})

    def _memit(self) -> pd.DataFrame:
        """Scores of all facts, written so many at once."""
        self.write("windows", self.windows)
        return pd.concat([scores for scores, _ in self.masses], ignore_index=True)

    @cached_property
    def searched(self) -> pd.DataFrame:
        """What the edited facts lack behind the window's last layer, one row each."""
        return self._searched("edit", self.chosen.edit_records, int(self.windows["end"].iloc[0]))

    @cached_property
    def residuals(self) -> Residuals:
        """What the edited facts lack behind the window's last layer."""
        return self._residuals(self.searched, int(self.windows["end"].iloc[0]))

    @cached_property
    def masses(self) -> list[list[pd.DataFrame]]:
        """Scores and edits of every size."""
        return [self._mass(size) for size in self.sizes]

    def _mass(self, size: int) -> list[pd.DataFrame]:
        """Scores and edits of groups of a size."""
        from interp.studies.editing.writing import groups

        every = groups(len(self.chosen.edit_records), size)
        each = max(1, 2 * CHUNK // size)  # groups of a part
        tables = []
        for i, at in enumerate(groups(len(every), each)):
            names = (f"parts/memit-{size:03d}-{i:02d}", f"parts/memit-edits-{size:03d}-{i:02d}")
            make = partial(self._massed, size, at[0], [every[k] for k in at])
            tables.append(self.together(names, make))
        return [pd.concat(parts, ignore_index=True) for parts in zip(*tables, strict=True)]

    def _massed(self, size: int, first: int, parts: Sequence[Sequence[int]]) -> list[pd.DataFrame]:
        from interp.studies.editing.writing import by_memit, kept, pass_seconds, scored, window

        best = self.windows.iloc[0]
        layers = window(int(best["end"]), self.spec.width)
        scores, rows = [], []
        with self.stage(f"MEMIT: {size} at once, from group {first}") as report:
            for number, at in enumerate(parts):
                records = self._records(at)
                edit, seconds = by_memit(
                    self.subject, records, self.residuals.of(at), layers, self.moments, float(best["weight"])
                )
                found = scored(self.subject, records, edit, "memit", size).assign(alone=size == 1)
                scores.append(found)
                of = records[0] if size == 1 else None
                row = {
                    "method": "memit",
                    "at_once": size,
                    "record": of.name if of else f"group {first + number}",
                }
                row |= {"relation": of.relation if of else ""}
                row |= kept(self.subject, edit, self._file(f"memit-{size:03d}", first + number))
                rows.append(row | {"seconds": seconds, "forward": pass_seconds(self.subject, records[0])})
                if report:
                    report(number + 1, len(parts), "groups")
        return [pd.concat(scores, ignore_index=True), pd.DataFrame(rows)]

    @property
    def edits(self) -> pd.DataFrame:
        """All edits that were made, one row each."""
        parts = [self.edits_of_rome] if self.alone else []
        if self.many:
            parts += [edits for _, edits in self.masses]
        return pd.concat(parts, ignore_index=True)

    # -- side effects ------------------------------------------------------------------------------------------------

    @cached_property
    def made(self) -> dict[tuple[str, int], list[Intervention]]:
        """All edits by method and number of facts that are on."""
        from interp.intervene.facts import FactEdit
        from interp.studies.editing.findings import TOGETHER
        from interp.studies.editing.writing import groups, together

        n = len(self.chosen.edit_records)
        out: dict[tuple[str, int], list[Intervention]] = {}
        if self.alone:
            out["rome", 1] = list(self.rome_edits)
            out[TOGETHER, n] = [together(self.rome_edits)]
        if self.many:
            for size in self.sizes:
                files = [self._file(f"memit-{size:03d}", i) for i in range(len(groups(n, size)))]
                out["memit", size] = [FactEdit.load(f, self.subject) for f in files]
        return out

    @cached_property
    def passages(self) -> list[Example]:
        """Text that drift is measured on: nothing of it was seen when the moments were taken."""
        from interp.intervene.facts import common_text
        from interp.tasks.prose import unseen

        n = self.spec.passages
        found = unseen(self.subject, common_text().examples(self.subject), n=n, seed=self.spec.seed)
        if len(found) < n:
            self.job.remark(
                f"drift on {len(found)} passages in place of {n}: no more are apart from the moments' text"
            )
        return found

    def _drift(self) -> pd.DataFrame:
        """What edits cost on text that has nothing to do with them."""
        from interp.studies.editing.side_effects import drifts
        from interp.studies.editing.writing import groups

        def make(method: str, size: int, edits: Mapping[int, Intervention]) -> pd.DataFrame:
            with self.stage(f"drift: {method}, {size} at once, edits {min(edits)} to {max(edits)}") as report:
                found = drifts(self.subject, edits, self.passages, report)
            return found.assign(method=method, at_once=size)

        found = []
        for (method, size), edits in self.made.items():
            for i, at in enumerate(groups(len(edits), 2 * CHUNK)):
                name = f"parts/drift-{method.replace(' ', '-')}-{size:03d}-{i:02d}"
                found.append(self.job.table(name, partial(make, method, size, {k: edits[k] for k in at})))
        drift = pd.concat(found, ignore_index=True)
        self.write("drift", drift)
        return drift

    def _fluency(self) -> None:
        """What text about the edited subjects reads like."""
        from interp.studies.editing.side_effects import entropies

        records = self.chosen.edit_records[: self.spec.fluency_n]

        def make(method: str, size: int, edits: Sequence[Intervention]) -> pd.DataFrame:
            with self.stage(f"fluency: {method}, {size} at once"):
                of = list(edits[: len(records)]) if size == 1 else edits[0]
                found = entropies(self.subject, records, of, self.spec)
            return found.assign(method=method, at_once=size)

        found = [
            self.job.table(
                f"parts/fluency-{method.replace(' ', '-')}-{size:03d}", partial(make, method, size, edits)
            )
            for (method, size), edits in self.made.items()
            if method == "rome" or len(edits) == 1  # the edits that hold all of these records
        ]
        self.write("fluency", pd.concat(found, ignore_index=True))

    # -- cost --------------------------------------------------------------------------------------------------------

    def _cost(self) -> pd.DataFrame:
        """What edits cost beside a forward pass of the edited prompt."""
        rows = []
        edits = self.edits
        forward = float(edits["forward"].median())

        def row(method: str, what: str, seconds: pd.Series) -> None:
            median = float(seconds.median())
            about = {"method": method, "what": what, "seconds": median, "n": len(seconds)}
            rows.append({**about, "forwards": median / forward})

        row("none", "forward pass of the prompt", edits["forward"])
        for (method, size), part in edits.groupby(["method", "at_once"], sort=False):
            what = "edit" if method == "rome" else f"weights of {size} facts, residuals apart"
            row(str(method), what, part["seconds"])
        if self.many:
            row("memit", "residual of one fact", self.searched["seconds"])
        return pd.DataFrame(rows)


run = EditingStudy.run
