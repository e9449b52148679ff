"""What all studies share: a frozen spec, a run folder that belongs to it, a model loaded late, and parts in order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from interp.models.cache import Progress
from interp.runs import Run, write_frame

if TYPE_CHECKING:
    from interp.models.subject import CausalLM

Stage = Callable[[str], AbstractContextManager[Progress | None]]
"""Shows progress: called with the name of a stage, gives what is told about it."""


class StudySpec(BaseModel):
    """What every study is asked for; two runs of the same spec and weights give the same tables."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    SMALL: ClassVar[Mapping[str, Any]] = {}
    """Sizes that a quick study has in place of the defaults."""

    model: str
    seed: int = Field(0, ge=0)
    device: str = "auto"
    dtype: str = "auto"

    @classmethod
    def quick(cls, model: str, **changes: Any) -> Self:
        """The same parts with less of everything, to see whether all of it runs."""
        return cls(model=model, **{**cls.SMALL, **changes})


S = TypeVar("S", bound=StudySpec)


class Study(ABC, Generic[S]):
    """The parts of one study. The model is loaded when the first of them needs it."""

    def __init__(self, spec: S, job: Run, subject: CausalLM | None = None, stage: Stage | None = None):
        self.spec = spec
        self.job = job
        self.stage: Stage = stage or (lambda name: nullcontext(None))
        self._given = subject

    @classmethod
    def run(
        cls, spec: S, folder: str | Path, *, subject: CausalLM | None = None, stage: Stage | None = None
    ) -> Run:
        """Run a study into a folder, going on where an earlier run of the same spec stopped.

        Args:
            folder: holds spec.yaml, provenance.json, the tables, and under parts/ what a killed run goes on from.
            subject: the model, if it is loaded already.
            stage: shows progress; called with the name of each stage, gives a `report(done, total, what)`.

        Returns:
            the run; its `done` and `skipped` name the parts.

        Raises:
            UsageError: the folder holds another study or other weights.
        """
        job = Run(Path(folder), spec)
        study = cls(spec, job, subject, stage)
        job.provenance(**study.facts())
        study.tables()
        return job

    @cached_property
    def subject(self) -> CausalLM:
        """The model."""
        if self._given is not None:
            return self._given
        from interp.models.load import load

        with self.stage("load model"):
            return load(self.spec.model, device=self.spec.device, dtype=self.spec.dtype)

    def facts(self) -> dict[str, Any]:
        """What made the run, as provenance.json has it."""
        s = self.subject
        return {
            "model": s.name,
            "fingerprint": s.fingerprint,
            "dtype": str(s.dtype).removeprefix("torch."),
            "device": str(s.device),
            "seed": self.spec.seed,
            "layers": s.n_layers,
            "heads": s.n_heads,
            "kv_heads": s.n_kv_heads,
        }

    @abstractmethod
    def tables(self) -> None:
        """Every part of the spec, in order."""

    def together(
        self, names: Sequence[str], make: Callable[[], Sequence[pd.DataFrame]]
    ) -> list[pd.DataFrame]:
        """Tables of one measurement, which is made once, and only if one of them is missing."""
        made = cache(make)
        return [self.job.table(name, lambda i=i: made()[i]) for i, name in enumerate(names)]  # type: ignore[misc]

    def write(self, name: str, frame: pd.DataFrame) -> None:
        """A table made of parts, written again each time."""
        write_frame(self.job.folder / f"{name}.parquet", frame)
