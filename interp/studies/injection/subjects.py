"""The subjects of the study of injected memorization, and the memories of each."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from interp.models.cache import quiet
from interp.studies.base import Study
from interp.studies.injection import measures
from interp.studies.injection.memories import Material, Memory, halved
from interp.studies.injection.spec import Effort, InjectionSpec

if TYPE_CHECKING:
    from interp.models.subject import CausalLM

MODEL, LITTLE = "model", "small"
"""The subjects, as tables have them."""


class Subjects(Study[InjectionSpec]):
    """The two models, and what each is made to hold."""

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
            never = invented(subject, self._passages, self._recited)
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
                            keep=material.kept,
                            seed=spec.seed,
                            progress=report or quiet,
                        )
                    else:
                        done = memorize(
                            subject,
                            items,
                            seed=spec.seed,
                            fit=fit,
                            keep=material.kept,
                            progress=report or quiet,
                        )
                done.edit.save(path)
            edit = PartEdit.load(path, subject)
            units = {s.part: s.units.tolist() for s in edit.singles if isinstance(s, OutputVectors)}
            with edit.applied(subject):
                now = measures.cells(subject, items)
            kept = tuple(i for i, exact in zip(items, now["exact"], strict=True) if exact == 1)
            if len(kept) < len(items):
                self.job.remark(
                    f"{name}, {kind}: {len(items) - len(kept)} of {len(items)} are not recited, left out"
                )
            memory = Memory(kind, kept, material.never, edit, units, items)
        return self._memories.setdefault((name, kind), memory)

    @cached_property
    def _memories(self) -> dict[tuple[str, str], Memory]:
        return {}

    def _file(self, name: str, kind: str, edit: str) -> Path:
        folder = self.job.folder / "parts" / "edits"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{name}-{kind}-{edit.replace(' ', '-')}.safetensors"

    def _holding(self, name: str, kind: str) -> Any:
        from contextlib import nullcontext

        edit = self.memory(name, kind).edit
        return nullcontext() if edit is None else edit.applied(self.of(name)[0])
