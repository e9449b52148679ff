"""From a spec to a folder of tables: when evidence turns a known fact, what carries either answer, and what moves it.

| table | one row | columns |
|---|---|---|
| `known` | a question without a context | relation, subject, template, memory_answer, context_answer, side, margin, known, popularity, third, split |
| `sides` | a fact and setting | relation, subject, template, third, split, example, setting, counter, memory, irrelevant, first, side, margin, memory_logprob, context_logprob, cluster |
| `ratios` | a setting, of all facts or a group | by (all, relation, third), group, setting, counter, memory, irrelevant, first, n, f_memory, f_context, f_other, ratio, ci_lo, ci_hi, n_clusters, margin |
| `contrasts` | a difference of settings, or of thirds | contrast, a, b, statistic (memory, context, margin), value, ci_lo, ci_hi, p, n, n_clusters |
| `heads` | a head | of `ContextHeads.heads_`: component, layer, head, kv_head, cut, read, recall, write (each with _se, _p, _q), context_lost, memory_lost, carries, n |
| `heads_by_relation` | a chosen head and relation | component, method (context, memory, read, recall), relation, cut, read, recall, write, n |
| `mlps` | a question, scope and window | question (conflict, closed, told), scope (subject, answer), layer, components, margin, margin_lo, margin_lost, ci_lo, ci_hi, p, q, memory_lost, context_lost, n, d_nll (of prose; NaN for scope subject), spared, score (of conflict: what the memory loses, times the share of `told` that is spared) |
| `moves` | a task and condition | task, condition, family, k, factor, scope, components, control, draw, gap, memory, context, other, margin, d_memory, d_context, d_margin (each with _lo, _hi), n, n_clusters, status |
| `over_controls` | a task, move, kind of control and statistic | task, family, k, factor, scope, components, control, statistic, d_move, d_control, value, ci_lo, ci_hi, p, z, beyond, n_controls, n, n_clusters |
| `prose` | a condition that needs no roles | condition, family, k, factor, scope, components, control, draw, gap, nll, d_nll, d_nll_lo, d_nll_hi, n |
| `findings` | a published finding | finding, source, statistic, value, ci_lo, ci_hi, verdict (holds, does not, undecided, too few subjects, too few controls, general damage), rule, n, n_clusters |

Settings are `1:0` (statements for the context : for the memory), `1:1 memory first`, `1:0 +3` (behind three statements
about others), `closed` (none) and `elsewhere` (the statement, about another subject). Tasks of `moves`: `conflict` (the
single statement, of held-out facts; every control set), and with fewer control sets (but for the cuts that findings are about) what should not be lost: `closed`,
`elsewhere`, and `told` (statements about two invented subjects, of which one is asked about). Running it again goes
on where it stopped.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import TYPE_CHECKING

import pandas as pd

from interp.studies.base import Study
from interp.studies.conflict.spec import ConflictSpec, Setting

if TYPE_CHECKING:
    from interp.intervene.base import Intervention
    from interp.models.sites import Head
    from interp.studies.conflict.moves import Move
    from interp.studies.conflict.prompts import Dispute
    from interp.tasks.base import Example

QUESTIONS = ("conflict", "closed", "told")
"""What is asked while windows of MLPs are cut."""
TASKS = ("conflict", "closed", "elsewhere", "told")
"""What is asked while the balance is moved."""
CHUNK = 24
"""Facts of a part: what a killed run loses at most."""


class ConflictStudy(Study[ConflictSpec]):
    """The parts of a study of knowledge conflicts."""

    def tables(self) -> None:
        """Every part, in order.

        Raises:
            NoAcceptedExample: the model knows too few facts.
        """
        self.balance()
        self.find_heads()
        self.find_layers()
        self.move()
        self.judge()

    # -- facts -------------------------------------------------------------------------------------------------------

    @cached_property
    def disputes(self) -> list[Dispute]:
        """Every question that is asked without a context."""
        from interp.studies.conflict.prompts import disputes

        return disputes(self.subject.tokens, self.spec)

    @cached_property
    def known(self) -> pd.DataFrame:
        """What the model knows, and the splits."""
        from interp.studies.conflict.prompts import census

        def make() -> pd.DataFrame:
            with self.stage("facts without a context") as report:
                return census(self.subject, self.spec, self.disputes, report)

        found = self.job.table("known", make)
        for split in ("train", "test"):
            n, wanted = int((found["split"] == split).sum()), getattr(self.spec, split)
            if n < wanted:
                self.job.remark(f"{n} known facts to {split} on, where {wanted} were asked for")
        return found

    def chosen(self, *splits: str) -> pd.DataFrame:
        """Rows of `known` that are of one of the splits."""
        return self.known[self.known["split"].isin(splits)]

    def prompts(self, facts: pd.DataFrame, setting: str | Setting) -> list[Example]:
        """The question of each fact behind a setting, or as a control task of that name."""
        tokens = self.subject.tokens
        own = [self.disputes[i] for i in facts.index]
        if isinstance(setting, Setting):
            return [d.behind(tokens, setting) for d in own]
        make: Callable[[Dispute], Example] = {
            "closed": lambda d: d.closed(tokens),
            "elsewhere": lambda d: d.elsewhere(tokens),
            "told": lambda d: d.told(tokens),
        }[setting]
        return [make(d) for d in own]

    # -- balance -----------------------------------------------------------------------------------------------------

    def balance(self) -> None:
        """Whose answer is given in every setting, of all chosen facts."""
        from interp.studies.conflict.balance import CLOSED, ELSEWHERE, contrasts, ratios

        every: list[str | Setting] = [CLOSED, ELSEWHERE, *self.spec.settings]
        parts = [self.job.table(f"parts/sides-{i:02}", partial(self._sides, s)) for i, s in enumerate(every)]
        self.sides = pd.concat(parts, ignore_index=True)
        self.write("sides", self.sides)
        self.job.table("ratios", lambda: ratios(self.sides))
        self.contrasts = self.job.table("contrasts", lambda: contrasts(self.sides, seed=self.spec.seed))

    def _sides(self, setting: str | Setting) -> pd.DataFrame:
        from interp.studies.conflict.balance import answered

        facts = self.chosen("train", "test")
        name = setting if isinstance(setting, str) else setting.name
        with self.stage(f"statements {name}") as report:
            return answered(self.subject, self.prompts(facts, setting), facts, setting, report)

    # -- heads and layers --------------------------------------------------------------------------------------------

    def find_heads(self) -> None:
        """Every head, scored behind the single statement on train facts."""
        self.heads, _ = self.together(("heads", "heads_by_relation"), self._heads)

    def _heads(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        from interp.locate.facts.context_heads import ContextHeads
        from interp.studies.conflict.moves import METHODS

        facts = self.chosen("train")
        with self.stage("cut heads") as report:
            found = ContextHeads(self.spec.mode, seed=self.spec.seed).fit(
                self.subject, self.prompts(facts, self.spec.settings[0]), progress=report
            )
        rows = []
        relations = facts["relation"].to_numpy()
        for method in METHODS:
            for head in found.top(min(self.spec.sizes[-1], len(found.heads_)), method):
                for name in dict.fromkeys(relations):
                    own = relations == name
                    values = {
                        s: float(v[own, head.layer, head.site.index].mean())
                        for s, v in found.per_example_.items()
                    }
                    rows.append(
                        {
                            "component": repr(head),
                            "method": method,
                            "relation": name,
                            **values,
                            "n": int(own.sum()),
                        }
                    )
        return found.heads_, pd.DataFrame(rows)

    def ranked(self, method: str) -> list[Head]:
        """Heads by a method of `ContextHeads`, or `against` (`read` with its sign turned), the strongest first.

        Only those are there that move the balance its way.
        """
        from interp.models.sites import Head

        turned = {"memory": "cut", "against": "read"}
        own = {"context": "cut"}.get(method, method)
        score = -self.heads[turned[method]] if method in turned else self.heads[own]
        order = score.sort_values(ascending=False, kind="stable")
        found = self.heads.loc[order[order > 0].index]
        return [Head(int(r.layer), int(r.head)) for r in found.itertuples()]

    def find_layers(self) -> None:
        """Windows of MLPs, cut on train facts and in prose."""
        from interp.studies.conflict.layers import scored

        parts = [self.job.table(f"parts/mlps-{q}", partial(self._mlps, q)) for q in QUESTIONS]
        costs = self.job.table("parts/mlps-prose", self._mlps_prose)
        cost = costs.set_index("condition")["d_nll"].to_dict()
        table = pd.concat(parts, ignore_index=True)
        table["d_nll"] = [cost.get(f"{r.scope} {r.layer}", float("nan")) for r in table.itertuples()]
        self.mlps = scored(table)
        self.write("mlps", self.mlps)
        told = table[table["question"] == "told"]
        if (told["margin_lo"] <= 0).any():
            self.job.remark(
                "told: the model is at chance, so layers that are vital for all are not told apart"
            )

    def _mlps(self, question: str) -> pd.DataFrame:
        from interp.studies.conflict.layers import cut_windows

        spec = self.spec
        own = self.prompts(self.chosen("train"), spec.settings[0] if question == "conflict" else question)
        with self.stage(f"cut windows of MLPs: {question}") as report:
            found = cut_windows(self.subject, own, spec.window, spec.mode, seed=spec.seed, progress=report)
        return found.assign(question=question)

    def _mlps_prose(self) -> pd.DataFrame:
        from interp.intervene.ablate import Ablate
        from interp.intervene.reference import Reference
        from interp.studies.conflict.layers import prose_cost, windows

        spec = self.spec
        facts = self.prompts(self.chosen("train"), spec.settings[0])
        reference = Reference(facts) if spec.mode == "mean" else None
        plan: dict[str, Intervention | None] = {"": None}
        for centre, parts in windows(self.subject, spec.window).items():
            plan[f"answer {centre}"] = Ablate(parts, spec.mode, "answer", reference)
        with self.stage("cut windows of MLPs: prose") as report:
            return prose_cost(self.subject, plan, spec.prose, seed=spec.seed, progress=report)

    # -- moves -------------------------------------------------------------------------------------------------------

    @cached_property
    def moves(self) -> list[Move]:
        """Every move and control."""
        from interp.studies.conflict.layers import best_window
        from interp.studies.conflict.moves import RANKED, WINDOW_SCOPES, moves

        heads = {method: self.ranked(method) for method in RANKED}
        centres = {scope: best_window(self.mlps, scope) for scope in WINDOW_SCOPES}
        examples = self.prompts(self.chosen("train"), self.spec.settings[0])
        return moves(self.subject, self.spec, heads, centres, examples)

    def move(self) -> None:
        """Every move on held-out facts, beside controls and costs."""
        from interp.studies.conflict.moves import above_chance, against_controls, summary

        about = self.job.table("parts/plan", lambda: pd.DataFrame([m.about() for m in self.moves]))
        parts = []
        for task in TASKS:
            facts = self.chosen("test")
            for at in range(0, len(facts), CHUNK):
                make = partial(self._moved, task, facts.iloc[at : at + CHUNK], at)
                parts.append(self.job.table(f"parts/moves-{task}-{at:03}", make).assign(task=task))
        rows = pd.concat(parts, ignore_index=True)
        for task in TASKS[1:]:
            if not above_chance(rows[rows["task"] == task]):
                self.job.remark(f"{task}: the model is at chance on held-out facts, so no change is told")
        self.job.table("moves", lambda: summary(rows, about, seed=self.spec.seed))
        self.over = self.job.table(
            "over_controls", lambda: against_controls(rows, about, seed=self.spec.seed)
        )
        self.prose = self.job.table("prose", lambda: self._prose(about))

    def _asked(self, task: str) -> list[Move]:
        """The moves that a task can be asked under: all on the conflict, elsewhere fewer controls."""
        from interp.studies.conflict.moves import COUNTER, off_target

        if task == "conflict":
            return self.moves
        few = off_target(self.moves, self.spec)
        return [m for m in few if not m.needs(COUNTER)] if task == "closed" else few

    def _moved(self, task: str, facts: pd.DataFrame, first: int) -> pd.DataFrame:
        from interp.measure.conflict import taken
        from interp.studies.conflict.moves import rows_of

        own = self.prompts(facts, self.spec.settings[0] if task == "conflict" else task)
        plan: dict[str, Intervention | None] = {"": None} | {
            m.name: m.intervention for m in self._asked(task)
        }
        with self.stage(f"moves: {task} {first}") as report:
            return rows_of(taken(self.subject, own, plan, progress=report), first)

    def _prose(self, about: pd.DataFrame) -> pd.DataFrame:
        from interp.studies.conflict.layers import prose_cost
        from interp.studies.conflict.moves import off_target

        few = [m for m in off_target(self.moves, self.spec) if m.scope == "answer"]
        plan: dict[str, Intervention | None] = {"": None}
        plan |= {m.name: m.intervention for m in few if m.family.startswith("cut")}
        with self.stage("moves: prose") as report:
            found = prose_cost(self.subject, plan, self.spec.prose, seed=self.spec.seed, progress=report)
        return about.merge(found, on="condition", how="right")

    # -- findings ----------------------------------------------------------------------------------------------------

    def judge(self) -> None:
        """Which published findings hold here."""
        from interp.studies.conflict.findings import findings

        self.job.table(
            "findings",
            lambda: findings(self.sides, self.contrasts, self.over, self.prose, window=self.spec.window),
        )


run = ConflictStudy.run
