"""Every task over its ladder, part by part: from a spec to a folder of tables and a page.

A rung is a task at one size. Each is asked once, of the intact model, and what the model answers is held against a
uniform guess among the candidates: a rung is `at chance` where the 95 % interval of the judged metric (the choice among
candidates, else greedy accuracy) does not lie above what such a guess scores. A choice is read off one token, so of
candidates that share it (numbers by their first digit, lists that begin alike) all count as right, for the model and
for the guess. Of a hundred rungs at chance two or three will pass by luck. A task that cannot be asked at a size (this
tokenizer spoils its draws, the prompt does not fit) is `not asked`, with the reason.

Tables, and their columns:

- recall: one row a rung. family, task, param, size (as JSON), at (as a number), rung (place in the ladder), n,
  n_clusters, tokens (mean of the prompts), redraws, chance (of giving all of the answer by a uniform guess), judged
  (metric), guess (what a uniform guess scores by it), status (`ok`, `at chance`, `not asked`);
  accuracy, choice, logit_diff, logprob, rank, nll, each with _lo and _hi (95 %, over clusters: of proportions exact,
  else bootstrapped; NaN where the task has no foil or no candidates); reason.
- recall_curves: one row a point. family, task, axis (`length`, `depth`, `distance`, `position`, `updates`, `set size`,
  `steps`, `other sizes`), by (the parameter or column), line (of positions in lists: the length of the list), metric,
  x, x_lo, x_hi (least and largest of a bin), value, ci_lo, ci_hi, n, n_clusters, chance (what a guess scores).

- recall_ages: where a task of updates was asked, one row an age of each number of updates. task, updates, age (0 is the
  value that holds, 1 the one before, ...), share (of the answers among the candidates), ci_lo, ci_hi, n, n_clusters,
  chance.

Under parts/ is one table a rung, a row an example: its numbers of `meta`, metrics, cluster, chance, guess, tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from interp.errors import MissingResource, NoAcceptedExample, UsageError
from interp.models.cache import Progress
from interp.studies.base import Study
from interp.studies.recall.spec import RecallSpec, Rung

if TYPE_CHECKING:
    from interp.models.subject import CausalLM
    from interp.runs import Run
    from interp.studies.base import Stage
    from interp.tasks.base import Task

AGED = {"updates": "updates"}
"""Tasks whose values grow old, and the ladder that says how often."""


class RecallStudy(Study[RecallSpec]):
    """Every rung of every task of the spec."""

    def tables(self) -> None:
        """Ask every question once, then write what it says."""
        from interp.studies.recall.tables import curves_table, rungs_table

        rungs = [rung for name in self.spec.tasks for rung in self.spec.rungs(name)]
        questions = {rung.question: rung for rung in reversed(rungs)}  # the first that asks it names the part
        frames: dict[str, pd.DataFrame] = {}
        with self.stage("recall") as report:
            for rung in rungs:
                if rung.question not in frames:
                    told = _counted(report, len(frames), len(questions), str(rung))
                    make = partial(self._asked, rung, told)
                    frames[rung.question] = self.job.table(f"parts/{self._part(rung)}", make)
        self.write("recall", rungs_table(rungs, frames, self.spec.seed))
        self.write("recall_curves", curves_table(rungs, frames, self.spec.seed))
        self._write_ages([r for r in rungs if "reason" not in frames[r.question]])

    def _write_ages(self, asked: Sequence[Rung]) -> None:
        """How old the values are that are answered where values were updated."""
        aged = [rung for rung in asked if AGED.get(rung.task) == rung.param]
        if not aged:
            return
        parts = []
        with self.stage("ages") as report:
            for i, rung in enumerate(aged):
                if report is not None:
                    report(i, len(aged), str(rung))
                parts.append(self.job.table(f"parts/{self._part(rung)}-ages", partial(self._ages, rung)))
        self.write("recall_ages", pd.concat(parts, ignore_index=True))

    def _ages(self, rung: Rung) -> pd.DataFrame:
        from interp.measure.staleness import choices, stale_rank

        examples = self._task(rung).examples(self.subject)
        found = stale_rank(examples, choices(self.subject, examples))
        return found.assign(task=rung.task)[["task", *found.columns]]

    def _part(self, rung: Rung) -> str:
        task = re.sub(r"\W+", "-", rung.task).strip("-")
        number = f"{self.spec.tasks.index(rung.task):02d}"
        return f"{number}-{task}" + (f"-{rung.param}-{rung.place}" if rung.param else "")

    def _task(self, rung: Rung) -> Task:
        from interp.tasks.registry import task

        return task(rung.task, **{"n": self.spec.n, "seed": self.spec.seed, **rung.settings})

    def _asked(self, rung: Rung, progress: Progress | None) -> pd.DataFrame:
        """One row an example; or, where the task cannot be asked, why."""
        from interp.measure.effects import AT_CHANCE, at_chance, floor_metric
        from interp.measure.metrics import guess_of
        from interp.measure.outcomes import evaluate
        from interp.measure.plans import CLEAN

        try:
            made = self._task(rung)
            examples = made.examples(self.subject)
            found = evaluate(self.subject, examples, {CLEAN: None}, progress=progress)
        except (NoAcceptedExample, MissingResource, UsageError) as why:
            # What a task raises on purpose: other errors are of the program, and end the run.
            self.job.remark(f"{rung}: {why}")
            return pd.DataFrame([{"reason": str(why)}])
        frame = found.frame()
        told = frame.select_dtypes("number").assign(cluster=frame["cluster"].astype(str))
        judged = floor_metric(found, ("accuracy",))
        return told.assign(
            guess=[guess_of(e, judged) for e in examples],
            tokens=[len(e.ids) for e in examples],
            redraws=sum(made.redraws.values()),
            judged=judged,
            status=AT_CHANCE if at_chance(found) else "ok",
        )


def _counted(report: Progress | None, asked: int, of: int, what: str) -> Progress | None:
    """Progress of one question as that of the whole run."""
    if report is None:
        return None
    return lambda done, total, note: report(round(100 * (asked + done / total)), 100 * of, what)


def run(
    spec: RecallSpec, folder: str | Path, *, subject: CausalLM | None = None, stage: Stage | None = None
) -> Run:
    """Run the tasks into a folder and write its page, see `Study.run`."""
    from interp.report import render

    job = RecallStudy.run(spec, folder, subject=subject, stage=stage)
    render(job.folder)
    return job
