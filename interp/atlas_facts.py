"""The fact part of an atlas: which facts the model knows, which MLPs recall them, and what cutting those costs.

Facts are asked closed book. A window of layers, and neurons in it, are chosen on the known facts of one half of the
subjects (`FactMLPs`); what cutting them does is measured on the known facts of the other half, on needles, which the
context answers, and on natural prose, beside windows of layers that write as much and neurons that are as active.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from interp.errors import NoAcceptedExample
from interp.intervene.ablate import Ablate
from interp.intervene.tracing.places import LAST, LAST_OF, places_of
from interp.locate.facts.fact_mlps import NEURONS, FactMLPs
from interp.measure.effects import Role, measure
from interp.measure.mlp_controls import matched_neurons, matched_windows
from interp.measure.plans import Condition
from interp.measure.stats import proportion_ci
from interp.models.sites import MLP, Component, component
from interp.models.subject import CausalLM
from interp.runs import Run
from interp.tasks.base import Example, FixedTask, Task, stable_seed

if TYPE_CHECKING:
    from interp.atlas import AtlasSpec

Report = Callable[[int, int, str], None]
Stage = Callable[[str], AbstractContextManager[Report | None]]

RIGHT, WRONG = "facts it knows", "what it says where it is wrong"
"""Groups of the profile: prompts whose answer is the fact, and others, whose answer is what the model says instead."""

SWAP = "subject_swap"
LEAST = 4
"""Subjects that a half needs, so that intervals mean something."""

MANY = 10**9
"""More distinct control sets than this are told as so many: sets of neurons are too many to count in a table."""

KEPT_NEURONS = 200
"""Rows kept of the neurons' scores, best first."""


def ask(subject: CausalLM, examples: Sequence[Example], report: Report | None = None) -> pd.DataFrame:
    """What the model answers right.

    Returns:
        one row an example, in order: relation, subject, template, cluster, chance, known.
    """
    from interp.measure.outcomes import evaluate

    found = evaluate(subject, examples, {"clean": None}, progress=report).values["clean"]["accuracy"]
    about = [{k: e.meta.get(k, "") for k in ("relation", "subject", "template")} for e in examples]
    return pd.DataFrame(about).assign(
        cluster=[e.cluster or e.key() for e in examples],
        chance=[e.chance for e in examples],
        known=found > 0.5,
    )


def census(asked: pd.DataFrame) -> pd.DataFrame:
    """How much the model knows, relation by relation.

    Returns:
        one row a relation, and one `all`: relation, shots (0), asked, subjects, known, accuracy, lo, hi (95 %, of the
        accuracy, subjects being the clusters), chance (of a guess among the relation's answers).
    """
    rows = []
    for name, part in [*asked.groupby("relation", sort=True), ("all", asked)]:
        known = part["known"].to_numpy(float)
        low, high = proportion_ci(known, part["cluster"].to_numpy())
        rows.append(
            {
                "relation": str(name),
                "shots": 0,
                "asked": len(part),
                "subjects": part["cluster"].nunique(),
                "known": int(known.sum()),
                "accuracy": float(known.mean()),
                "lo": low,
                "hi": high,
                "chance": float(part["chance"].mean()),
            }
        )
    return pd.DataFrame(rows)


def halves(clusters: Sequence[str], seed: int) -> np.ndarray:
    """Whether each example is of the half of the subjects that layers are chosen on."""
    names = sorted(set(clusters))
    order = np.random.default_rng(stable_seed("halves of facts", seed)).permutation(len(names))
    first = {names[i] for i in order[: (len(names) + 1) // 2]}
    return np.array([c in first for c in clusters], dtype=bool)


def traceable(examples: Sequence[Example], n: int) -> list[Example]:
    """The first `n` examples whose subject can be swapped, and whose prompt goes on behind it."""
    return [e for e in examples if SWAP in e.corrupt and LAST_OF in places_of(e)][:n]


def profile(
    subject: CausalLM,
    groups: dict[str, list[Example]],
    window: int,
    seed: int,
    report: Report | None = None,
) -> pd.DataFrame:
    """What clean MLP or attention outputs bring back, by layer, at the subject's last token and at the last one.

    The answer is what the model itself says (of its first token that tells answers apart), so that prompts which it
    gets wrong can stand beside those that it knows.

    Returns:
        the rows of `interp.intervene.trace.aggregate`, with `said`: the group.
    """
    from interp.intervene.tracing.aggregate import aggregate
    from interp.intervene.tracing.cells import How
    from interp.intervene.tracing.maps import trace_maps

    how = How(
        kinds=("mlp_out", "attn_out"),
        window=window,
        corruption=(SWAP,),
        places=(LAST_OF, LAST),
        targets=("top0",),
        seed=seed,
    )
    parts = [
        trace_maps(subject, examples, how, progress=report).assign(said=said)
        for said, examples in groups.items()
        if examples
    ]
    return aggregate(pd.concat(parts, ignore_index=True), ["said"], seed=seed)


def plan_of(
    subject: CausalLM,
    sets: Sequence[Sequence[Component]],
    controls: int,
    data: Sequence[Example],
    seed: int,
    avoid: Sequence[Component] = (),
) -> list[Condition]:
    """Sets of layers, or of neurons, zeroed everywhere; for each others that write as much or are as active.

    Args:
        data: what norms and activations are measured on.
        avoid: further parts that no control may have.
    """
    out = []
    for chosen in sets:
        k = len(chosen)
        out.append(Condition(Ablate(tuple(chosen)), "cut", k))
        if not controls:
            continue
        if isinstance(chosen[0], MLP):
            found = matched_windows(subject, chosen, controls, data, seed=seed, avoid=avoid)
        else:
            found = matched_neurons(subject, chosen, controls, data, seed=seed, avoid=avoid)
        for draw, (parts, gap) in enumerate(zip(found, found.gaps, strict=True)):
            told = min(found.n_distinct, MANY)
            out.append(Condition(Ablate(parts), "control", k, draw, told, found.by, gap))
    return out


class FactSection:
    """The stages of the section, each a table of the run.

    Tables: `parts/facts-asked` (of `ask`), `fact_census` (of `census`), `fact_profile` (of `profile`), `fact_layers`
    (`FactMLPs.layers_`), `fact_neurons` (component, layer, score, se, n of the best layer's neurons, best first),
    `fact_effects` (columns of `measure`; mechanism `fact MLPs` or `fact neurons`; tasks `held-out facts`, `niah N` and
    `prose`).

    Args:
        subject: gives the model, loaded when it is first needed.
        niah: needles by their use (`measure`), length and number.
    """

    def __init__(
        self,
        spec: AtlasSpec,
        job: Run,
        subject: Callable[[], CausalLM],
        stage: Stage,
        niah: Callable[[Literal["locate", "measure"], int, int], Task],
    ):
        self.spec, self.job, self._subject, self.stage, self.niah = spec, job, subject, stage, niah

    @property
    def subject(self) -> CausalLM:
        return self._subject()

    @cached_property
    def examples(self) -> list[Example]:
        """The facts that are asked."""
        from interp.tasks.registry import task

        return task("facts", n=self.spec.facts_n, seed=self.spec.seed).examples(self.subject)

    @cached_property
    def asked(self) -> pd.DataFrame:
        """What the model answers right of them."""

        def make() -> pd.DataFrame:
            with self.stage("facts the model knows") as report:
                return ask(self.subject, self.examples, report)

        return self.job.table("parts/facts-asked", make)

    def known(self) -> list[Example]:
        """The facts that the model knows.

        Raises:
            NoAcceptedExample: there is none.
        """
        kept = [e for e, known in zip(self.examples, self.asked["known"], strict=True) if known]
        if not kept:
            raise NoAcceptedExample(
                f"{self.subject.name} answers none of the {len(self.examples)} facts right"
            )
        return kept

    def tables(self) -> None:
        """All tables of the section; those that need known facts only where there are enough, else a remark."""
        self.job.table("fact_census", lambda: census(self.asked))
        first = halves(self.asked["cluster"], self.spec.seed)
        known = self.asked["known"].to_numpy(bool)

        def pick(mask: np.ndarray) -> list[Example]:
            return [self.examples[i] for i in np.flatnonzero(mask)]

        locate, held_out = traceable(pick(known & first), self.spec.fact_trace_n), pick(known & ~first)
        for name, some in (("can be traced", locate), ("are held out", held_out)):
            if (found := len({e.cluster for e in some})) < LEAST:
                self.job.remark(
                    f"known facts of {found} subjects {name}, and {LEAST} are needed: no fact MLPs were looked for"
                )
                return
        wrong = traceable(pick(~known), self.spec.fact_trace_n)
        self.job.table("fact_profile", lambda: self.profile(locate, wrong))
        layers, neurons = self.located(locate)
        held_out = held_out[: self.spec.facts_keep]
        self.job.table("fact_effects", lambda: self.effects(layers, neurons, locate, held_out))

    def profile(self, right: list[Example], wrong: list[Example]) -> pd.DataFrame:
        with self.stage("causal profile of facts") as report:
            groups = {RIGHT: right, WRONG: wrong}
            return profile(self.subject, groups, self.window, self.spec.seed, report)

    @property
    def window(self) -> int:
        """Layers of a window; at most a third of the model's, so that others of that width are left."""
        return min(self.spec.fact_window, max(1, self.subject.n_layers // 3))

    def located(self, examples: list[Example]) -> tuple[list[Component], list[Component]]:
        """The MLPs of the best window, and neurons of the best layers, best first."""
        spec = self.spec
        locator = FactMLPs(
            SWAP,
            window=self.window,
            metric="logprob",
            n_layers=min(spec.fact_neuron_layers, self.subject.n_layers),
            exact=spec.fact_exact,
            check=8,
            seed=spec.seed,
        )

        @cache
        def fit() -> FactMLPs:
            text = FixedTask(self.reference, name="prose")
            with self.stage("locate fact MLPs") as report:
                return locator.fit(self.subject, examples, reference=text, progress=report)

        layers = self.job.table("fact_layers", lambda: fit().layers_)
        neurons = self.job.table("fact_neurons", lambda: fit().ranking(NEURONS).head(KEPT_NEURONS))
        best = layers.sort_values("score", ascending=False, kind="stable")["layer"].iloc[0]
        return list(locator.around(self.subject, int(best))), [component(c) for c in neurons["component"]]

    @cached_property
    def reference(self) -> list[Example]:
        """Short passages of natural prose that parts are chosen on."""
        from interp.tasks.prose import Prose

        return Prose(prompt=24, answer=24, n=self.spec.prose_n, seed=self.spec.seed + 1).examples(
            self.subject
        )

    def prose(self) -> Task:
        """Passages that cuts are measured on: of other topics, or at least other places, than the reference."""
        from interp.tasks.prose import unseen

        return FixedTask(
            unseen(self.subject, self.reference, n=self.spec.prose_n, seed=self.spec.seed), name="prose"
        )

    def effects(
        self,
        layers: list[Component],
        neurons: list[Component],
        chosen_on: list[Example],
        held_out: list[Example],
    ) -> pd.DataFrame:
        """Cuts of layers and of neurons on facts of other subjects, needles and prose; each a part of the run."""
        spec = self.spec
        asked: dict[str, tuple[Callable[[], Task], Role]] = {
            "held-out facts": (lambda: FixedTask(held_out, name="facts"), "target"),
            f"niah {spec.fact_length}": (
                lambda: self.niah("measure", spec.fact_length, spec.measure_n),
                "control_task",
            ),
            "prose": (self.prose, "off_target"),
        }
        sizes = sorted({min(k, len(neurons)) for k in spec.fact_neuron_cuts})
        cuts: dict[str, tuple[list[list[Component]], list[Component]]] = {
            "fact MLPs": ([layers], []),
            "fact neurons": ([neurons[:k] for k in sizes], neurons),
        }
        frames = []
        for mechanism, (sets, avoid) in cuts.items():
            plan = cache(
                partial(plan_of, self.subject, sets, spec.fact_controls, chosen_on, spec.seed, avoid)
            )
            for task, (ask_for, role) in asked.items():
                name = f"parts/{mechanism}-{task}".replace(" ", "-")
                make = partial(self.measured, task, ask_for, role, mechanism, plan)
                frames.append(self.job.table(name, make))
        return pd.concat(frames, ignore_index=True)

    def measured(
        self,
        name: str,
        task: Callable[[], Task],
        role: Role,
        mechanism: str,
        plan: Callable[[], list[Condition]],
    ) -> pd.DataFrame:
        with self.stage(f"cut {mechanism}: {name}") as report:
            found = measure(
                self.subject,
                task(),
                plan(),
                metrics=("nll",) if role == "off_target" else ("accuracy", "logit_diff", "logprob"),
                off_target=(),
                role=role,
                mechanism=mechanism,
                locator="FactMLPs",
                seed=self.spec.seed,
                floor="mark",
                progress=report,
            )
        return found.assign(task=name)
