"""The study of priors, part by part: from a spec to a folder of tables, going on where it stopped.

Parts: `tasks` (at which setting the model is above the floor), `accuracy` (by the prior of the answer), `layers` (which
go with the prior), `prompts` (asked not to rely on priors), `tuning` (the layers found, and random ones, tuned lightly
on some answers and tested on others). Metrics of an answer: `accuracy` (greedy decoding gives it), `choice` (its first
telling token beats those of seven others), `pair` (all of it is likelier than its foil, which is a step away and of the
other prior; chance is 1/2), `logprob` (nats) and `margin` (to the foil, nats). Thirds and gaps are by the log-prior of
the answer; of `pair` and `margin` by that log-prior less the foil's.

Tables, and their columns:

- tasks: one row a setting tried. task, settings (JSON), n, judged (metric), accuracy, choice, logit_diff, ci_lo, ci_hi
  (of the judged metric), chance, status (`ok`, `at chance`, `not asked`), taken.
- items: one row a question. task, example, answer, foil, cluster, level (`high` or `low`, as the task means it), tokens
  (of the answer), log_prior, foil_log_prior (nats, on the model), chance, accuracy, choice, pair, logprob, margin.
- accuracy: task, metric, prior (`low`, `middle`, `high` third, `all`), n, n_clusters, mean_prior (nats), value, ci_lo,
  ci_hi (95 %, over answers), chance, status.
- gaps: task, metric, gap (likeliest less unlikeliest third), gap_lo, gap_hi, rho (Spearman's, of errors and priors), p,
  rho_within (the same within answers of equal length), p_within (shuffled answers), n, status.
- layers: one row a task, method and layer. task, status, and `scores_` of `PriorLayers`: component, layer, method
  (`added`, `added_mlp`, `added_attn`, `lens`, `probe`, `probe_mlp`, `probe_attn`), score, se, n, n_answers, null_lo,
  null_hi, p, q, given_right.
- prompts: task, preface, control (whether it is one), metric, prior (thirds, `all`, and `gap`: high less low), before,
  after, delta, ci_lo, ci_hi, p_cluster, n, n_clusters, status.
- prompts_contrast: the same columns without p_cluster; before is the mean of the control prefaces.
- arms: one row a tuning. arm, kind (`chosen`, `random`, `all`), seed, draw, layers, steps, examples, parameters,
  first_loss, last_loss (nats a token; means of the first and last quarter of steps), moved (length of the change over
  that of the weights), restored (all weights bit for bit).
- tuning: what tuning does to held-out answers. arm, kind, seed, draw, layers, task, and the columns of `prompts` from
  metric on.
- tuning_contrast: chosen less random, mean of runs item by item. task, metric, prior, chosen, random (mean change),
  delta, ci_lo, ci_hi (over answers), n_chosen, n_random (runs), beaten (share of random runs below the mean of the
  chosen ones), n, n_clusters, status. The interval leaves out how runs, and draws of random layers, differ: with three
  of each it is too narrow for a claim about random layers in general.
- tuning_gaps: task, run (an arm's name, or `untuned`), kind, metric, and gap to p_within as in gaps.
- drift: what tuning costs elsewhere. arm, kind, seed, draw, layers, task, metric (`nll`, and `choice` where there are
  candidates), before, after, delta, ci_lo, ci_hi, p_cluster, n, n_clusters.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from interp.studies.floors import TaskStudy
from interp.studies.prior.spec import PriorSpec

if TYPE_CHECKING:
    from interp.models.subject import CausalLM
    from interp.runs import Run
    from interp.studies.base import Stage
    from interp.studies.prior.tuning import Arm
    from interp.tasks.base import Example


class PriorStudy(TaskStudy[PriorSpec]):
    """The parts of a study of priors."""

    def tables(self) -> None:
        """Every part of the spec, in order."""
        parts = self.spec.parts
        self.write("tasks", self.floors)
        if "accuracy" in parts:
            self.accuracy()
        if {"layers", "tuning"} & set(parts) and self.taken:
            self.write("layers", self.layers)
        if "prompts" in parts and self.taken:
            self.prompts()
        if "tuning" in parts and self.taken:
            self.tuning()

    # -- tasks -------------------------------------------------------------------------------------------------------

    def asked(self, name: str, settings: Mapping[str, Any]) -> list[Example]:
        """Examples that the floor of a task is judged on."""
        from interp.tasks.registry import task

        return task(name, n=self.spec.floor_n, seed=self.spec.seed, **settings).examples(self.subject)

    @cached_property
    def status(self) -> dict[str, str]:
        """Of every task that could be asked: whether the model is above the floor at its last setting."""
        asked = self.floors[self.floors["n"] > 0]
        return {str(r.task): str(r.status) for r in asked.itertuples()}

    # -- accuracy ----------------------------------------------------------------------------------------------------

    def accuracy(self) -> None:
        """Every task that can be asked, at its last setting, by the prior of the answer."""
        from interp.studies.prior.tables import accuracies, gaps

        items = pd.concat(
            [self.job.table(f"parts/items-{name}", partial(self._items, name)) for name in self.status],
            ignore_index=True,
        )
        self.write("items", items)
        self.write("accuracy", accuracies(items, self.status))
        self.write("gaps", gaps(items, self.status, ["task"], self.spec.seed))

    def _items(self, name: str) -> pd.DataFrame:
        from interp.studies.prior.items import items
        from interp.tasks.registry import task

        row = self.floors[(self.floors["task"] == name) & (self.floors["n"] > 0)].iloc[-1]
        # A task at chance is told of by as many examples as it was judged by.
        n = self.spec.n if name in self.taken else min(self.spec.n, self.spec.floor_n)
        asked = task(name, n=n, seed=self.spec.seed + 1, **json.loads(row["settings"]))
        with self.stage(f"accuracy: {name}") as report:
            return items(self.subject, asked.examples(self.subject), name, progress=report)

    # -- layers ------------------------------------------------------------------------------------------------------

    @cached_property
    def layers(self) -> pd.DataFrame:
        """Scores of every layer on every task, of answers that are not held out."""
        found = [
            self.job.table(f"parts/layers-{name}", partial(self._layers, name)).assign(
                task=name, status=self.status[name]
            )
            for name in self.taken
        ]
        return pd.concat(found, ignore_index=True)

    def _layers(self, name: str) -> pd.DataFrame:
        from interp.locate.facts.prior_layers import PriorLayers

        spec = self.spec
        with self.stage(f"layers: {name}") as report:
            locator = PriorLayers(permutations=spec.permutations, n=spec.locate_n, seed=spec.seed)
            return locator.fit(self.subject, self.split(name)[0], progress=report).scores_

    def split(self, name: str) -> tuple[list[Example], list[Example]]:
        """Questions of a task to find and tune layers on, and others with held-out answers."""
        if name not in self._splits:
            from interp.studies.prior.items import split

            spec = self.spec
            n = max(spec.locate_n, 2 * self.per_task)
            self._splits[name] = split(
                self.subject, name, self.taken[name], n, spec.tune_n, spec.held, spec.seed
            )
        return self._splits[name]

    @cached_property
    def _splits(self) -> dict[str, tuple[list[Example], list[Example]]]:
        return {}

    @property
    def per_task(self) -> int:
        """Examples of each task that one tuning sees."""
        return -(-self.spec.tune_steps * self.spec.tune_batch // len(self.taken))

    # -- prompts -----------------------------------------------------------------------------------------------------

    def prompts(self) -> None:
        """Held-out seeds of every task, with each preface in front."""
        from interp.studies.prior.tables import is_control, paired, prompts_contrast

        frames, contrasts = [], []
        for name in self.taken:
            plain = self.job.table(f"parts/prompt-{name}-none", partial(self._asked, name, None, None))
            told = {
                preface: self.job.table(f"parts/prompt-{name}-{i}", partial(self._asked, name, text, plain))
                for i, (preface, text) in enumerate(self.spec.prefaces.items())
            }
            about = {"task": name, "status": self.status[name]}
            for preface, items in told.items():
                head = {**about, "preface": preface, "control": is_control(preface)}
                frames.append(paired(plain, items, self.spec.seed).assign(**head))
            contrasts.append(prompts_contrast(told, self.spec.seed).assign(**about))
        self.write("prompts", pd.concat(frames, ignore_index=True))
        self.write("prompts_contrast", pd.concat(contrasts, ignore_index=True))

    def _asked(self, name: str, text: str | None, plain: pd.DataFrame | None) -> pd.DataFrame:
        from interp.studies.prior.items import items, prefaced
        from interp.tasks.registry import task

        asked = task(name, n=self.spec.prompt_n, seed=self.spec.seed + 1, **self.taken[name])
        examples = asked.examples(self.subject)
        told = examples if text is None else prefaced(self.subject, examples, text)
        with self.stage(f"prompts: {name}") as report:
            return items(self.subject, told, name, known=plain, progress=report)

    # -- tuning ------------------------------------------------------------------------------------------------------

    def tuning(self) -> None:
        """The layers found, random ones and all, tuned on the same examples and tested on held-out answers."""
        from interp.studies.prior import tables, tuning

        seed = self.spec.seed
        plain, drift = self.together(("parts/tuned-none", "parts/drift-none"), partial(self._measured, None))
        arms = tuning.arms(self.layers, self.subject.n_layers, self.spec)
        rows, effects, costs, runs = [], [], [], {}
        for arm in arms:
            names = [f"parts/{kind}-{arm.name.replace(' ', '-')}" for kind in ("tuned", "drift", "arm")]
            after, moved, row = self.together(names, partial(self._tuned, arm, plain))
            rows.append(row.assign(**arm.columns()))
            runs[arm.name] = after
            for name in self.taken:
                before, own = (f[f["task"] == name].reset_index(drop=True) for f in (plain, after))
                about = {**arm.columns(), "task": name, "status": self.status[name]}
                effects.append(tables.paired(before, own, seed).assign(**about))
            costs.append(tables.costs(drift, moved, seed).assign(**arm.columns()))
        self.write("arms", pd.concat(rows, ignore_index=True))
        self.write("tuning", pd.concat(effects, ignore_index=True))
        self.write("tuning_contrast", tables.tuning_contrast(plain, runs, arms, self.status, seed))
        every = [plain.assign(run="untuned", kind="none")]
        every += [runs[arm.name].assign(run=arm.name, kind=arm.kind) for arm in arms]
        by = ["task", "run", "kind"]
        self.write("tuning_gaps", tables.gaps(pd.concat(every, ignore_index=True), self.status, by, seed))
        self.write("drift", pd.concat(costs, ignore_index=True))

    def _measured(self, known: pd.DataFrame | None) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The model as it is now: on held-out answers of every task, and off target."""
        from interp.studies.prior.items import items, off_target

        frames = []
        for name in self.taken:
            own = known[known["task"] == name] if known is not None else None
            with self.stage(f"held-out answers: {name}") as report:
                frames.append(items(self.subject, self.split(name)[1], name, known=own, progress=report))
        with self.stage("off target") as report:
            drift = off_target(self.subject, self.spec.off_target, self.spec.off_n, self.spec.seed, report)
        return pd.concat(frames, ignore_index=True), drift

    def _tuned(self, arm: Arm, plain: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
        """What the model does after one tuning, and how the tuning went; its weights are put back."""
        from interp.studies.prior import tuning

        spec, subject = self.spec, self.subject
        examples = tuning.mixed([self.split(name)[0] for name in self.taken], self.per_task, arm.seed, spec)
        before = subject.weights_hash
        with (
            self.stage(f"tuning: {arm.name}") as report,
            tuning.tuned(
                subject, arm.layers, examples, batch=spec.tune_batch, rate=spec.tune_rate, progress=report
            ) as told,
        ):
            items, drift = self._measured(plain)
        restored = subject.weights_hash == before
        return items, drift, pd.DataFrame([{**told, "restored": restored}])


def run(
    spec: PriorSpec, folder: str | Path, *, subject: CausalLM | None = None, stage: Stage | None = None
) -> Run:
    """Run the study into a folder, see `Study.run`."""
    return PriorStudy.run(spec, folder, subject=subject, stage=stage)
