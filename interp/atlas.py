"""The main job: find the retrieval heads of a model, cut them, and show what was lost.

`run` goes from a model's name to a folder with tables, figures and one page: locate on one set of needles, cut the
top heads (every dose, with matched controls), measure on needles of *another kind in another haystack*, on induction,
on closed-book facts the model knows, and on natural prose. Then which heads talk to which, by their weights, and what
deleting what the retrieval heads read does to the needles. And which MLPs recall the facts that no context gives, found
and cut in the same way. Running it again skips what is done.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, model_validator

from interp.errors import NoAcceptedExample
from interp.runs import Run, write_frame

if TYPE_CHECKING:
    from interp.atlas_facts import FactSection
    from interp.locate.retrieval_heads import RetrievalHeads
    from interp.measure.effects import Role
    from interp.models.sites import Component
    from interp.models.subject import CausalLM
    from interp.tasks.base import Example, Task

Report = Callable[[int, int, str], None]
Stage = Callable[[str], AbstractContextManager[Report | None]]

Kind = Literal["names", "words", "numbers", "phrases"]


PATCHED: tuple[tuple[str, Literal["role", "head"]], ...] = (("resid_post", "role"), ("z", "head"))
"""Kinds of site that the atlas patches, and what a cell of each is."""


class AtlasSpec(BaseModel):
    """What an atlas run does; two runs of the same spec and weights give the same tables."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    locate_kinds: tuple[Kind, ...] = Field(
        ("words", "numbers"), description="needles that heads are selected on"
    )
    locate_lengths: tuple[int, ...] = Field((256, 512, 1024, 2048), description="prompt tokens")
    locate_n: int = Field(24, ge=1, description="instances a length")
    measure_kinds: tuple[Kind, ...] = Field(
        ("names", "phrases"), description="needles that cuts are measured on"
    )
    measure_lengths: tuple[int, ...] = (256, 512, 1024, 2048)
    measure_n: int = Field(8, ge=1, description="instances a length")
    doses: tuple[int, ...] = (1, 2, 5, 10, 20, 50)
    dose_length: int = 256
    dose_n: int = 32
    modes: tuple[Literal["zero", "mean", "resample", "uniform"], ...] = ("zero", "mean")
    controls: int = Field(20, ge=0, description="matched draws a dose, scope answer")
    all_doses: tuple[int, ...] = Field(
        (5, 10, 20), description="doses of cuts at all positions, short prompts"
    )
    all_controls: int = Field(3, ge=0, description="matched draws a dose, scope all")
    top: int = Field(10, ge=1, description="the cut that headlines and the matrix are about")
    facts_n: int = Field(240, ge=1, description="facts asked before the known ones are kept")
    facts_keep: int = Field(96, ge=1, description="known facts that cuts are measured on")
    prose_n: int = Field(16, ge=2)
    induction_n: int = Field(24, ge=1)
    channels: int = Field(2000, ge=0, description="component scores kept of each mode; 0 leaves channels out")
    channel_modes: tuple[Literal["Q", "K", "V"], ...] = Field(
        ("Q", "K", "V"), min_length=1, description="what channels are read as"
    )
    channel_doses: tuple[int, ...] = Field(
        (5, 10, 20, 50), min_length=1, description="components deleted of those that the top heads read"
    )
    channel_controls: int = Field(5, ge=0, description="draws of other components a dose")
    fact_trace_n: int = Field(
        32, ge=0, description="known facts that fact MLPs are chosen on; 0 leaves fact MLPs out"
    )
    fact_exact: int = Field(32, ge=1, description="neurons that are zeroed one by one, a fact")
    fact_window: int = Field(3, ge=1, description="layers restored, and cut, together")
    fact_neuron_layers: int = Field(3, ge=1, description="best layers that are searched for neurons")
    fact_neuron_cuts: tuple[int, ...] = Field((20, 100), description="fact neurons cut together, best first")
    fact_controls: int = Field(5, ge=0, description="matched windows, and draws of neurons, a cut")
    fact_length: int = Field(128, description="prompt tokens of the needles that fact MLPs should spare")
    patch_n: int = Field(1, ge=0, description="examples of activation patching")
    patch_length: int = 80
    patch_direction: Literal["denoise", "noise", "both"] = "both"

    @model_validator(mode="after")
    def _headline_is_measured(self) -> AtlasSpec:
        if self.top not in self.all_doses:
            raise ValueError(f"top is {self.top}, which is none of all_doses {list(self.all_doses)}")
        return self

    @classmethod
    def quick(cls, model: str, **changes: Any) -> AtlasSpec:
        """A run of minutes on two cores: fewer instances, doses and modes, the same steps."""
        small: dict[str, Any] = {
            "locate_lengths": (512,),
            "locate_n": 24,
            "measure_lengths": (256,),
            "measure_n": 12,
            "doses": (1, 2, 5, 10, 20),
            "dose_length": 256,
            "dose_n": 16,
            "modes": ("zero",),
            "controls": 20,
            "all_doses": (10,),
            "all_controls": 3,
            "facts_n": 96,
            "facts_keep": 32,
            "prose_n": 8,
            "induction_n": 12,
            "channels": 1000,
            "channel_doses": (50,),
            "channel_controls": 3,
            "fact_trace_n": 16,
            "fact_exact": 16,
            "fact_neuron_cuts": (20,),
            "fact_controls": 4,
            "fact_length": 80,
            "patch_n": 1,
            "patch_length": 80,
            "patch_direction": "denoise",
        }
        return cls(model=model, **{**small, **changes})


def run(
    spec: AtlasSpec,
    folder: str | Path,
    *,
    subject: CausalLM | None = None,
    stage: Stage | None = None,
    static: bool | None = None,
) -> Run:
    """Run an atlas into a folder, going on where an earlier run of the same spec stopped.

    Args:
        folder: holds spec.yaml, scores, groups, instances, effects, channels, channel_spectrum, channel_effects,
            fact_census, fact_profile, fact_layers, fact_neurons, fact_effects, patch (Parquet), rows.json,
            provenance.json, report.html and figures/.
        subject: the model, if it is loaded already.
        stage: shows progress; called with the name of each stage, gives a `report(done, total, what)`.
        static: write PDF, SVG and PNG figures; default where a browser is found.

    Returns:
        the run; its `done` and `skipped` name the stages.
    """
    shown: Stage = stage or (lambda name: nullcontext(None))
    job = Run(Path(folder), spec)
    _Atlas(spec, job, subject, shown).tables()
    with shown("figures and page"):
        pages(job.folder, static=static)
    return job


def pages(folder: Path, *, static: bool | None = None) -> Path:
    """Figures and page of a run folder, from its tables."""
    from interp.report import render
    from interp.report.figures import write_figures

    write_figures(folder, static=static)
    return render(folder)


class _Atlas:
    """The stages of one run. The model is loaded when the first stage needs it."""

    def __init__(self, spec: AtlasSpec, job: Run, subject: CausalLM | None, stage: Stage):
        self.spec = spec
        self.job = job
        self.stage = stage
        self._subject = subject

    @property
    def subject(self) -> CausalLM:
        if self._subject is None:
            from interp.models.load import load

            with self.stage("load model"):
                self._subject = load(self.spec.model, device=self.spec.device, dtype=self.spec.dtype)
        return self._subject

    def tables(self) -> None:
        s, spec = self.subject, self.spec
        self.job.provenance(
            model=s.name,
            fingerprint=s.fingerprint,
            dtype=str(s.dtype).removeprefix("torch."),
            device=str(s.device),
            seed=spec.seed,
            layers=s.n_layers,
            heads=s.n_heads,
            kv_heads=s.n_kv_heads,
        )
        self.locate()
        parts = [self.job.table(f"parts/{name}", make) for name, make in self.measurements().items()]
        effects = pd.concat([p for p in parts if len(p)], ignore_index=True)
        write_frame(self.job.folder / "effects.parquet", effects)
        if spec.channels:
            self.channels()
        if spec.fact_trace_n:
            self.fact_section.tables()
        if spec.patch_n:
            self.job.table("patch", self.patch)
        self.job.json("rows", self.rows)

    # -- locate ------------------------------------------------------------------------------------------------------

    def locate(self) -> None:
        fitted: list[RetrievalHeads] = []

        def fit() -> RetrievalHeads:
            if not fitted:
                from interp.locate.retrieval_heads import RetrievalHeads

                with self.stage("locate retrieval heads") as report:
                    fitted.append(RetrievalHeads().fit(self.subject, self.needles("locate"), progress=report))
            return fitted[0]

        self.scores = self.job.table("scores", lambda: fit().scores_)
        self.job.table("groups", lambda: fit().groups_)
        self.job.table("instances", lambda: fit().instances_)

    def needles(self, use: Literal["locate", "measure"]) -> Task:
        """Needles over a ladder of lengths; the two uses differ in kind and in haystack."""
        from interp.tasks.base import FixedTask

        spec = self.spec
        lengths = spec.locate_lengths if use == "locate" else spec.measure_lengths
        n = spec.locate_n if use == "locate" else spec.measure_n
        every: list[Example] = []
        for length in lengths:
            every += self.niah(use, length, n).examples(self.subject)
        return FixedTask(every, name="niah", copies=True, use=use, lengths=list(lengths))

    def niah(self, use: Literal["locate", "measure"], length: int, n: int) -> Task:
        from interp.tasks.registry import task

        kinds = self.spec.locate_kinds if use == "locate" else self.spec.measure_kinds
        half = "train" if use == "locate" else "test"
        return task("niah", length=length, kinds=kinds, n=n, seed=self.spec.seed, haystack=half)

    # -- measure -----------------------------------------------------------------------------------------------------

    def ranked(self, k: int) -> list[Component]:
        from interp.models.sites import component

        own = self.scores[self.scores["method"] == self.scores["method"].iloc[0]]
        best = own.sort_values("score", ascending=False, kind="stable")
        return [component(c) for c in best["component"][:k]]

    def doses(self, wanted: tuple[int, ...]) -> tuple[int, ...]:
        """The doses that leave as many heads to draw controls from."""
        most = self.subject.n_layers * self.subject.n_heads // 2
        kept = tuple(k for k in wanted if k <= most)
        return kept or (max(1, math.floor(most / 2)),)

    def measurements(self) -> dict[str, Callable[[], pd.DataFrame]]:
        """Every measurement by the name of its part."""
        spec = self.spec
        out: dict[str, Callable[[], pd.DataFrame]] = {}
        for mode in spec.modes:
            out[f"dose-{mode}"] = lambda mode=mode: self.dose(  # type: ignore[misc]
                self.niah("measure", spec.dose_length, spec.dose_n), mode, "answer", spec.doses, spec.controls
            )
        first = spec.modes[0]
        for length in spec.measure_lengths:
            # Every dose where prompts are short; the headline one where each run costs a long prefill.
            doses = spec.all_doses if length == min(spec.measure_lengths) else (spec.top,)
            out[f"all-niah-{length}"] = lambda length=length, doses=doses: self.dose(  # type: ignore[misc]
                self.niah("measure", length, spec.measure_n), first, "all", doses, spec.all_controls
            ).assign(task=f"niah {length}")
        others: dict[str, tuple[Callable[[], Task], Role]] = {
            "induction": (self.induction, "target"),
            "facts": (self.facts, "control_task"),
            "prose": (self.prose, "off_target"),
        }
        for name, (make, role) in others.items():
            out[f"all-{name}"] = lambda make=make, role=role: self.other(make, role)  # type: ignore[misc]
        return out

    def other(self, make: Callable[[], Task], role: Role) -> pd.DataFrame:
        """Cuts at all positions on another task; empty, with a remark, where the model can do none of it."""
        try:
            task = make()
        except NoAcceptedExample as why:
            self.job.remark(str(why))
            return pd.DataFrame()
        spec = self.spec
        return self.dose(task, spec.modes[0], "all", spec.all_doses, spec.all_controls, role=role)

    def dose(
        self,
        task: Task,
        mode: str,
        scope: str,
        doses: tuple[int, ...],
        controls: int,
        *,
        role: Role = "target",
    ) -> pd.DataFrame:
        from interp.intervene.ablate import ablate
        from interp.intervene.reference import Reference
        from interp.measure.effects import dose, measure

        sizes = self.doses(doses)
        reference = Reference(self.reference()) if mode in ("mean", "resample") else None
        cut = ablate([], mode, scope, reference, seed=self.spec.seed)  # type: ignore[arg-type]
        plan = dose(self.subject, self.ranked(max(sizes)), sizes, cut, controls=controls, seed=self.spec.seed)
        with self.stage(f"cut {mode}, {scope}: {task.name}") as report:
            return measure(
                self.subject,
                task,
                plan,
                metrics=("nll",) if role == "off_target" else ("accuracy", "logit_diff", "logprob", "rank"),
                off_target=(),
                role=role,
                mechanism="retrieval heads",
                locator=str(self.scores["method"].iloc[0]),
                seed=self.spec.seed,
                floor="mark",
                progress=report,
            )

    def reference(self) -> Task:
        """Data of mean and resample: the needles that heads were selected on, at the length of the dose curve."""
        return self.niah("locate", self.spec.dose_length, 16)

    def induction(self) -> Task:
        from interp.tasks.registry import task

        return task("induction", n=self.spec.induction_n, seed=self.spec.seed)

    def facts(self) -> Task:
        """Facts this model knows; each relation has its share of those that are kept."""
        from interp.tasks.base import FixedTask

        return FixedTask(self.fact_section.known()[: self.spec.facts_keep], name="facts")

    @cached_property
    def fact_section(self) -> FactSection:
        """The section of facts; what is asked there serves the cuts of heads too."""
        from interp.atlas_facts import FactSection

        return FactSection(self.spec, self.job, lambda: self.subject, self.stage, self.niah)

    def prose(self) -> Task:
        from interp.tasks.registry import task

        return task("prose", n=self.spec.prose_n, seed=self.spec.seed)

    # -- channels ----------------------------------------------------------------------------------------------------

    def channels(self) -> None:
        """Which heads talk to which, and what deleting what the top heads read does to short needles and to prose."""
        from interp import atlas_channels
        from interp.locate.channels.locator import Channels

        fitted: list[Channels] = []

        def fit() -> Channels:
            if not fitted:
                with self.stage("channels between heads, by their weights") as report:
                    found = Channels(self.spec.channel_modes, kept=self.spec.channels, seed=self.spec.seed)
                    fitted.append(found.fit(self.subject, progress=report))
            return fitted[0]

        edges = self.job.table("channels", lambda: atlas_channels.table(fit()))
        self.job.table("channel_spectrum", lambda: atlas_channels.spectra(fit()))
        self.job.table("channel_effects", lambda: self.deleted(edges))

    def deleted(self, edges: pd.DataFrame) -> pd.DataFrame:
        """Effects of deleting the components that the top heads read, beside others of the same writers."""
        from interp import atlas_channels
        from interp.locate.channels.weights import Weights
        from interp.measure.effects import measure
        from interp.models.sites import Head

        spec = self.spec
        heads = [h for h in self.ranked(spec.top) if isinstance(h, Head)]
        parts = atlas_channels.read_by(self.subject, edges, heads)
        if not parts:
            self.job.remark("no channel that a retrieval head reads was found, so none was cut")
            return pd.DataFrame()
        plan = atlas_channels.Deletions(Weights(self.subject)).plan
        length = min(spec.measure_lengths)
        niah = self.niah("measure", length, spec.measure_n)
        asked: list[tuple[Task, Role, tuple[str, ...], tuple[int, ...], int]] = [
            (
                niah,
                "target",
                ("accuracy", "logit_diff", "logprob"),
                spec.channel_doses,
                spec.channel_controls,
            ),
            (self.prose(), "off_target", ("nll",), (max(spec.channel_doses),), 0),
        ]
        frames = []
        for task, role, metrics, doses, controls in asked:
            with self.stage(f"delete channels: {task.name}") as report:
                conditions = list(plan(parts, doses, controls, spec.seed))
                found = measure(
                    self.subject,
                    task,
                    conditions,
                    metrics=metrics,
                    off_target=(),
                    role=role,
                    mechanism="channels",
                    locator="Channels",
                    seed=spec.seed,
                    floor="mark",
                    progress=report,
                )
            frames.append(found.assign(task=f"niah {length}") if role == "target" else found)
        return pd.concat(frames, ignore_index=True)

    # -- pictures ----------------------------------------------------------------------------------------------------

    def example(self) -> Example:
        """A short needle that the model answers, for patching and for the picture of attention rows."""
        from interp.measure.known import known_to

        return known_to(self.subject, self.niah("measure", self.spec.patch_length, 8)).examples(self.subject)[
            0
        ]

    def patch(self) -> pd.DataFrame:
        from interp.intervene.patch import patch
        from interp.measure.known import known_to

        try:
            known = known_to(
                self.subject, self.niah("measure", self.spec.patch_length, 4 * self.spec.patch_n)
            )
        except NoAcceptedExample as why:
            self.job.remark(str(why))
            return pd.DataFrame()
        with self.stage("activation patching") as report:
            maps = [
                patch(
                    self.subject,
                    known,
                    kind,
                    corruption="value_swap",
                    direction=self.spec.patch_direction,
                    over=over,
                    n=self.spec.patch_n,
                    progress=report,
                )
                for kind, over in PATCHED
            ]
        return pd.concat(maps, ignore_index=True)

    def rows(self) -> dict[str, Any]:
        """Attention rows of the top heads on one example, for the page; empty where the model knows none."""
        from interp.trace.rows import attention_rows

        try:
            example = self.example()
        except NoAcceptedExample as why:
            self.job.remark(str(why))
            return {}
        return attention_rows(self.subject, example, self.ranked(min(8, self.spec.top)))
