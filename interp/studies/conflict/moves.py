"""Interventions that move the balance of held-out facts: heads and MLPs cut, attention scaled, each beside controls.

| family | what is done, at the last token |
|---|---|
| `scale context` | attention to the context's answer times a factor (0: no edges), of heads ranked by `read` |
| `scale against` | the same of heads that read it and speak against it: ranked by `read` with its sign turned |
| `scale memory` | attention to the question's subject times a factor (0: no edges), of heads ranked by `recall` |
| `cut context` | heads cut that are ranked by `context` |
| `cut memory` | heads cut that are ranked by `memory` |
| `cut mlps` | a window of MLPs cut, at the subject's tokens or the last one; `k` is its width |

Controls of heads are other heads (of the same layers, of like norm at the last token), which meet the same fate, and
none is among the heads that the largest move of the family takes; those of windows are other windows of like norm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from interp.errors import UsageError
from interp.intervene.ablate import Ablate
from interp.intervene.attention import set_attention
from interp.intervene.reference import Reference
from interp.intervene.tracing.cells import window_of
from interp.measure.conflict import CONTEXT, MEMORY, Taken, parted
from interp.measure.controls import matched
from interp.measure.effects import AT_CHANCE
from interp.measure.mlp_controls import matched_windows
from interp.measure.plans import Cut
from interp.measure.stats import bootstrap_ci, proportion_ci, sign_flip
from interp.models.sites import MLP, Head
from interp.models.subject import CausalLM
from interp.studies.conflict.spec import ConflictSpec
from interp.tasks.base import Example

COUNTER, SUBJECT = "counter_value", "subject"
SCALED = {
    "scale context": ("read", COUNTER),
    "scale against": ("against", COUNTER),
    "scale memory": ("recall", SUBJECT),
}
"""Of families that scale attention: the method that ranks their heads, and the tokens that are looked at."""
CUT = {"cut context": "context", "cut memory": "memory"}
"""Of families that cut heads: the method that ranks them."""
METHODS = ("context", "memory", "read", "recall")
"""Methods of `ContextHeads` that heads are taken by."""
RANKED = (*METHODS, "against")
WINDOW_SCOPES = ("subject", "answer")
CONFLICT = "conflict"
STATISTICS = (MEMORY, CONTEXT, "margin")


@dataclass(frozen=True)
class Move:
    """One intervention, or one of its controls.

    Attributes:
        k: heads, or layers of a window as it is asked for (at the ends of the model it has fewer).
        factor: of attention; NaN for a cut.
        scope: tokens that are edited.
        control: kind of control, `` for the move itself; draw: its number, else -1.
        gap: how far a control set is from what was chosen, in what it is matched on.
    """

    family: str
    k: int
    factor: float
    scope: str
    intervention: Cut
    control: str = ""
    draw: int = -1
    gap: float = float("nan")

    @property
    def name(self) -> str:
        """Unique among the moves of a study."""
        size = f" x{self.factor:g}" if self.family in SCALED else ""
        draw = f" | {self.control} {self.draw}" if self.control else ""
        return f"{self.family} {self.k}{size} @{self.scope}{draw}"

    def about(self) -> dict[str, object]:
        """What rows say of it."""
        return {
            "condition": self.name,
            "family": self.family,
            "k": self.k,
            "factor": self.factor,
            "scope": self.scope,
            "components": " ".join(map(repr, self.intervention.components)),
            "control": self.control,
            "draw": self.draw,
            "gap": self.gap,
        }

    def needs(self, role: str) -> bool:
        """Whether it edits at, or looks at, tokens of a role."""
        return role in self.intervention.scope or self.intervention.keys_name.startswith(role)


def scaled(heads: Sequence[Head], role: str, factor: float) -> Cut:
    """Attention of heads from the last token to a role times a factor."""
    if factor == 0:
        return Ablate(tuple(heads), "knockout", "answer", keys=(role,))
    return set_attention(heads, role, how="scale", factor=factor)


def moves(
    subject: CausalLM,
    spec: ConflictSpec,
    heads: Mapping[str, Sequence[Head]],
    centres: Mapping[str, int],
    examples: Sequence[Example],
) -> list[Move]:
    """Every move, each followed by its controls.

    Args:
        heads: ranked heads of each of `RANKED`, best first.
        centres: of the windows of MLPs, by scope.
        examples: conflicts that norms, and means, are measured on.
    """
    asked = [parted(e) for e in examples]
    reference = Reference(asked)
    source = reference if spec.mode == "mean" else None
    out: list[Move] = []
    for family, (method, role) in SCALED.items():
        sizes = _sizes(subject, spec, heads[method])
        for k in sizes:
            chosen = tuple(heads[method][:k])
            made = [(f, scaled(chosen, role, f)) for f in spec.factors]
            out += _with_controls(subject, spec, family, chosen, heads[method][: sizes[-1]], made, reference)
    for family, method in CUT.items():
        sizes = _sizes(subject, spec, heads[method])
        for k in sizes:
            chosen = tuple(heads[method][:k])
            whole = Ablate(chosen, spec.mode, "answer", source)
            made = [(float("nan"), whole)]
            out += _with_controls(subject, spec, family, chosen, heads[method][: sizes[-1]], made, reference)
    for scope, centre in centres.items():
        out += _windows(subject, spec, scope, centre, reference)
    return out


def _sizes(subject: CausalLM, spec: ConflictSpec, ranked: Sequence[Head]) -> list[int]:
    """The numbers of heads of which there are as many, and as many others."""
    return [k for k in spec.sizes if k <= len(ranked) and 2 * k <= len(subject.heads())]


def _with_controls(
    subject: CausalLM,
    spec: ConflictSpec,
    family: str,
    chosen: tuple[Head, ...],
    avoid: Sequence[Head],
    made: Sequence[tuple[float, Cut]],
    reference: Reference,
) -> list[Move]:
    """Moves of the same heads by different factors, each followed by its controls.

    Args:
        avoid: heads of the largest move: those next in rank are no controls of a smaller one.
    """
    sets = [
        matched(
            subject,
            chosen,
            spec.controls,
            by,
            seed=spec.seed,
            avoid=avoid,
            data=reference,
            scope="answer",
        )
        for by in spec.match
    ]
    out: list[Move] = []
    for factor, cut in made:
        out.append(Move(family, len(chosen), factor, "answer", cut))
        for found in sets:
            for draw, (others, gap) in enumerate(zip(found, found.gaps, strict=True)):
                item = cut.with_components(others)
                out.append(Move(family, len(chosen), factor, "answer", item, found.by, draw, gap))
    return out


def _windows(
    subject: CausalLM, spec: ConflictSpec, scope: str, centre: int, reference: Reference
) -> list[Move]:
    """Windows of one, of the spec's, and of twice as many layers around the same one."""
    out: list[Move] = []
    at = scope if scope == "answer" else (scope,)
    source = reference if spec.mode == "mean" else None
    chosen: dict[tuple[MLP, ...], int] = {}
    for width in sorted({1, spec.window, 2 * spec.window}):
        chosen.setdefault(tuple(MLP(i) for i in window_of(centre, width, subject.n_layers)), width)
    for parts, width in chosen.items():
        cut = Ablate(parts, spec.mode, at, source)
        out.append(Move("cut mlps", width, float("nan"), scope, cut))
        try:
            found = matched_windows(subject, parts, spec.controls, reference, scope=at)
        except UsageError:
            # As wide as half the model: there is no other window, and the move stands without controls.
            continue
        for draw, (others, gap) in enumerate(zip(found, found.gaps, strict=True)):
            item = cut.with_components(others)
            out.append(Move("cut mlps", width, float("nan"), scope, item, found.by, draw, gap))
    return out


def off_target(every: Sequence[Move], spec: ConflictSpec) -> list[Move]:
    """The moves that are measured off target too: with few controls, but for the cuts that findings are about.

    These, the largest sets of heads and the spec's window, have all: what they cost is held against each.
    """
    judged = {f: max((m.k for m in every if m.family == f), default=0) for f in CUT}
    judged["cut mlps"] = spec.window
    return [m for m in every if m.draw < spec.costs or m.k == judged.get(m.family)]


def rows_of(found: Taken, first: int) -> pd.DataFrame:
    """One row an example and condition: example, cluster, condition, side, margin.

    Args:
        first: number of the first example.
    """
    n, c = found.sides.shape
    return pd.DataFrame(
        {
            "example": np.repeat(np.arange(first, first + n), c),
            "cluster": np.repeat(found.clusters, c),
            "condition": list(found.conditions) * n,
            "side": found.sides.reshape(-1),
            "margin": found.margin.reshape(-1),
        }
    )


def summary(rows: pd.DataFrame, about: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    """Each condition of each task against the intact model, on the same facts.

    The floor rule: where the intact model is at chance on a task that asks for the right answer (of all but `conflict`;
    `margin` above zero in half of the facts, within the interval), its rows say so and tell no change.

    Args:
        rows: of `rows_of`, with `task`; the intact model is the condition ''.
        about: one row a condition, see `Move.about`.

    Returns:
        task, the columns of `Move.about`, memory, context, other (shares of answers; on the task `told` the right
        answer, which stands in the context, counts as `memory`: the answer), margin (nats), and of memory, context and
        margin the change from the intact model with its interval over subjects (`d_memory`, `d_memory_lo`,
        `d_memory_hi`, ...); n, n_clusters, status (`ok`, `at chance`). The intact model's rows have an empty condition.
    """
    out = []
    by_name = about.set_index("condition").to_dict("index")
    nothing: dict[str, object] = {"family": "", "k": 0, "factor": np.nan, "scope": "", "components": ""}
    nothing |= {"control": "", "draw": -1, "gap": np.nan}
    for task, part in rows.groupby("task", sort=False):
        wide = {s: _wide(part, s) for s in STATISTICS}
        clusters = wide["margin"].index.get_level_values("cluster").to_numpy()
        status = "ok" if task == CONFLICT or above_chance(part) else AT_CHANCE
        for name in dict.fromkeys(part["condition"]):
            row: dict[str, object] = {"task": task, "condition": name, **(by_name[name] if name else nothing)}
            for s in STATISTICS:
                value, clean = wide[s][name].to_numpy(), wide[s][""].to_numpy()
                lo, hi = bootstrap_ci(value - clean, clusters, seed=seed)
                row[s] = float(value.mean())
                told = status == "ok"
                row |= {f"d_{s}": float((value - clean).mean()) if told else np.nan}
                row |= {f"d_{s}_lo": lo if told else np.nan, f"d_{s}_hi": hi if told else np.nan}
            row["other"] = 1.0 - float(row["memory"]) - float(row["context"])  # type: ignore[arg-type]
            out.append(row | {"n": len(clusters), "n_clusters": len(set(clusters)), "status": status})
    return pd.DataFrame(out)


def above_chance(part: pd.DataFrame) -> bool:
    """Whether the intact model prefers the answer to the foil in more than half of the examples of a task."""
    own = part[part["condition"] == ""]
    low, _ = proportion_ci((own["margin"] > 0).to_numpy(float), own["cluster"].to_numpy())
    return low > 0.5


def against_controls(rows: pd.DataFrame, about: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    """Each move less the mean of its controls, on the same facts; tasks at chance are left out (see `summary`).

    Returns:
        task, family, k, factor, scope, components, control (kind), statistic, d_move (change from the intact model),
        d_control (mean change over the control sets), value (d_move less d_control), ci_lo, ci_hi (95 %, over
        subjects), p (signs flipped by subject), z (of d_move among the sets' changes), beyond (share of the sets whose
        change reaches d_move, or goes beyond it, on the side where the move is from their mean), n_controls, n,
        n_clusters.
    """
    out = []
    own = about[about["control"] == ""]
    for task, part in rows.groupby("task", sort=False):
        if task != CONFLICT and not above_chance(part):
            continue
        there = set(part["condition"])
        for s in STATISTICS:
            wide = _wide(part, s)
            clusters = wide.index.get_level_values("cluster").to_numpy()
            for move in (m for m in own.to_dict("records") if m["condition"] in there):
                key = ["family", "k", "scope"]
                like = about[(about[key] == pd.Series(move)[key]).all(axis=1) & (about["control"] != "")]
                if not np.isnan(move["factor"]):
                    like = like[like["factor"] == move["factor"]]
                for kind, sets in like.groupby("control", sort=False):
                    names = [c for c in sets["condition"] if c in there]
                    if not names:
                        continue
                    delta = (wide[move["condition"]] - wide[""]).to_numpy()
                    drawn = wide[names].to_numpy() - wide[[""]].to_numpy()
                    over = delta - drawn.mean(axis=1)
                    lo, hi = bootstrap_ci(over, clusters, seed=seed)
                    means, mine = drawn.mean(axis=0), float(delta.mean())
                    sd = float(means.std(ddof=1)) if len(means) > 1 else np.nan
                    sign = np.sign(mine - means.mean()) or 1.0
                    row = {c: move[c] for c in ("family", "k", "factor", "scope", "components")}
                    out.append(
                        {
                            "task": task,
                            **row,
                            "control": kind,
                            "statistic": s,
                            "d_move": mine,
                            "d_control": float(means.mean()),
                            "value": float(over.mean()),
                            "ci_lo": lo,
                            "ci_hi": hi,
                            "p": sign_flip(over, clusters, seed=seed),
                            "z": (mine - float(means.mean())) / sd if sd > 0 else np.nan,
                            "beyond": float((sign * means >= sign * mine).mean()),
                            "n_controls": len(means),
                            "n": len(delta),
                            "n_clusters": len(set(clusters)),
                        }
                    )
    return pd.DataFrame(out)


def _wide(part: pd.DataFrame, statistic: str) -> pd.DataFrame:
    """One row an example, one column a condition."""
    values = part["margin"] if statistic == "margin" else (part["side"] == statistic).astype(float)
    return part.assign(value=values).pivot_table(
        index=["example", "cluster"], columns="condition", values="value"
    )
