"""The retrieval-head study: score a grid of needles, cut what scores, and see what goes and what stays.

`run` goes from a spec to a folder of tables, part by part: `scores` (every score type on lengths x depths x needles),
`map` (held-out needles uncut, cut and with matched others cut), `dose` (curves by score type), `sufficient` (only the
first k heads may see the needle), `specificity` (cut x task) and `agreement` (scores with each other, and one needle a
context with several). Running it again goes on where it stopped; each part depends on the spec and the weights only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pandas as pd

from interp.errors import BrokenData, NoAcceptedExample
from interp.studies.base import Study
from interp.studies.spec import MECHANISM, HeadsSpec

if TYPE_CHECKING:
    from interp.intervene.ablate import Ablate
    from interp.intervene.reference import Reference
    from interp.locate.retrieval_heads import RetrievalHeads
    from interp.measure.effects import Measured
    from interp.measure.plans import Condition
    from interp.models.sites import Component
    from interp.tasks.base import Task

REFERENCE = 16
"""Examples that means of heads are taken over."""

GRIDS = ("scores", "own", "several")
"""Fits of the part `scores`: the grid, the scores with passes of their own, the grid with several needles a context."""


class HeadsStudy(Study[HeadsSpec]):
    """The parts of a study of retrieval heads."""

    def tables(self) -> None:
        """Every part of the spec, in order.

        Raises:
            NoAcceptedExample: the model recalls no needle of the grid, so no head can be scored.
        """
        self.score()
        from interp.studies import cuts

        for part in self.spec.parts:
            make: Callable[[HeadsStudy], None] | None = cuts.PARTS.get(part)
            if make is not None:
                make(self)
        if "agreement" in self.spec.parts:
            self.agree()

    # -- scores ------------------------------------------------------------------------------------------------------

    def score(self) -> None:
        """Scores of all types, instances, and the prompt tokens that were run for them."""
        grids = [g for g in GRIDS if self._wanted(g)]
        self.scores = self.job.table(
            "scores",
            lambda: pd.concat([self.fit(g).scores_ for g in grids if g != "several"], ignore_index=True),
        )
        self.job.table("groups", lambda: self.fit("scores").groups_)
        self.job.table(
            "instances",
            lambda: pd.concat([self.fit(g).instances_.assign(grid=g) for g in grids], ignore_index=True),
        )
        self.job.table("prefill", lambda: pd.DataFrame([self._spent(g) for g in grids]))

    def _wanted(self, grid: str) -> bool:
        return {"scores": True, "own": bool(self.spec.own_scores), "several": self.spec.several}[grid]

    @cached_property
    def _fits(self) -> dict[str, RetrievalHeads]:
        return {}

    def fit(self, grid: str) -> RetrievalHeads:
        """The locator fitted on a grid; what is in its folder already is read."""
        if grid not in self._fits:
            from interp.locate.retrieval_heads import RetrievalHeads

            spec = self.spec
            names = spec.own_scores if grid == "own" else spec.scores
            first = spec.method if spec.method in names else names[0]
            locator = RetrievalHeads(first, mode=spec.decoding, scores=names)
            with self.stage(f"score heads: {grid}") as report:
                self._fits[grid] = locator.fit(
                    self.subject, self.grid(grid), folder=self.job.folder / "parts" / grid, progress=report
                )
        return self._fits[grid]

    def grid(self, use: str) -> Task:
        """Needles over lengths and depths: those that heads are scored on, or (`map`) held-out ones."""
        from interp.tasks.registry import task

        spec = self.spec
        held = use == "map"
        return task(
            "niah_grid",
            lengths=spec.own_lengths if use == "own" else spec.lengths,
            depths=spec.depths,
            needles={"own": spec.own_needles, "map": spec.map_needles}.get(use, spec.needles),
            kinds=spec.held_kinds if held else spec.kinds,
            haystack="test" if held else "train",
            mode="several" if use == "several" else "exact",
            seed=spec.seed,
        )

    def _spent(self, grid: str) -> dict[str, Any]:
        fit = self.fit(grid)
        found = fit.instances_
        return {
            "grid": grid,
            "instances": len(found),
            "accepted": int(found["accepted"].sum()),
            "run": fit.prefill_tokens_,
            "naive": fit.naive_tokens_,
            "share": fit.prefill_tokens_ / fit.naive_tokens_,
        }

    def ranked(self, method: str, k: int) -> list[Component]:
        """The first k heads by a score."""
        from interp.models.sites import component

        own = self.scores[self.scores["method"] == method]
        best = own.sort_values(["score", "layer", "head"], ascending=[False, True, True], kind="stable")
        return [component(c) for c in best["component"][:k]]

    @property
    def methods(self) -> list[str]:
        """Every score type, the one of the main cut first."""
        return list(dict.fromkeys([self.spec.method, *self.spec.scores, *self.spec.own_scores]))

    # -- cuts --------------------------------------------------------------------------------------------------------

    def sizes(self, wanted: Sequence[int]) -> tuple[int, ...]:
        """The numbers of heads that leave as many to draw controls from."""
        most = self.subject.n_layers * self.subject.n_heads // 2
        return tuple(k for k in wanted if k <= most) or (max(1, most),)

    @property
    def top(self) -> int:
        """Heads of the main cut."""
        return self.sizes((self.spec.top,))[0]

    @cached_property
    def reference(self) -> Reference:
        """What means are of: the kinds of needle that heads are scored on, at the length of the dose curve."""
        from interp.intervene.reference import Reference

        return Reference(self.niah("scores", self.spec.dose_length, REFERENCE))

    def cut(self, mode: str, scope: str) -> Ablate:
        """A cut of no head yet."""
        from interp.intervene.ablate import NEEDS_REFERENCE, ablate

        reference = self.reference if mode in NEEDS_REFERENCE else None
        return ablate([], mode, scope, reference, seed=self.spec.seed)  # type: ignore[arg-type]

    def niah(self, use: str, length: int, n: int) -> Task:
        """Single needles of one length, of the kinds and the half of the haystack for that use."""
        from interp.tasks.registry import task

        held = use == "held"
        return task(
            "niah",
            length=length,
            kinds=self.spec.held_kinds if held else self.spec.kinds,
            haystack="test" if held else "train",
            n=n,
            seed=self.spec.seed,
        )

    def measured(
        self, task: Task, plan: Mapping[str, Sequence[Condition]], what: str, *, role: str = "target"
    ) -> tuple[pd.DataFrame, Measured]:
        """Effects of the plans of all score types on one task, each cut run once, and what lies behind them."""
        from interp.measure.effects import measure
        from interp.studies.tables import METRICS, by_locator, joined

        into: dict[str, Measured] = {}
        with self.stage(what) as report:
            rows = measure(
                self.subject,
                task,
                joined(plan),
                metrics=("nll",) if role == "off_target" else METRICS,
                off_target=(),
                role=role,  # type: ignore[arg-type]
                mechanism=MECHANISM,
                locator=self.spec.method,
                seed=self.spec.seed,
                floor="mark",
                progress=report,
                into=into,
            )
        return by_locator(rows, plan, ("cut", "keep")), into[task.name]

    def maybe(self, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """A table, empty with a remark where the model or its tokenizer can do nothing of what is asked."""
        try:
            return make()
        except (NoAcceptedExample, BrokenData) as why:
            self.job.remark(str(why))
            return pd.DataFrame()

    # -- agreement ---------------------------------------------------------------------------------------------------

    def agree(self) -> None:
        """Score types against each other, and one needle a context against several."""
        from interp.studies.agreement import modes, pairs

        spec = self.spec
        own = (lambda: self.fit("own")) if spec.own_scores else None
        self.job.table(
            "pairs", lambda: pairs(lambda: self.fit("scores"), own, self.scores, top=self.top, seed=spec.seed)
        )
        if spec.several:
            self.job.table(
                "modes", lambda: modes(self.fit("scores"), self.fit("several"), top=self.top, seed=spec.seed)
            )


run = HeadsStudy.run
