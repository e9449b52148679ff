"""How well each score of heads finds what is planted: one row a model and score.

    python -m tests.planted.table

writes `figures/data/planted_heads/scores.parquet` (and what made it, `provenance.json`), which
`figures/planted_heads.py` draws. Every model is scored on forced answers, so that a score is told also where the model
has begun to fail. Heads with equal scores share the places that are left among the top k.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import rankdata

import interp
from interp.locate.duo import DuoGates
from interp.locate.options import Options
from interp.locate.scores import SCORES
from interp.tasks.base import FixedTask
from tests.planted.naive import accuracy
from tests.planted.placement import Place
from tests.planted.retrieval import KINDS, Planted, plant, planted_task

OUT = Path(__file__).parents[2] / "figures" / "data" / "planted_heads" / "scores.parquet"

ROLES = (
    "retrieval", "semantic", "silent", "offset", "place", "salient", "ahead", "duplicate", "sink", "previous",
    "two_back", "support", "carrier", "random",
)  # fmt: skip
"""What a planted head may be."""

BY_NEEDLE = ("needle_mass", "r2", "anchor", "temporal", "spatial", "locos")
"""Scores that take as needle the value, or its whole evidence: where semantic heads look."""

CIRCUITS = ("literal", "distance", "place", "semantic", "mixed")
"""`literal`: retrieval heads beside silent ones. `distance`, `place`: the same, asked for needles that all stand where
a positional decoy looks. `semantic`: semantic heads beside silent ones. `mixed`: both kinds share the answer."""

NOISE = (0.0, 0.1, 0.2, 0.3, 0.6)
N = 4
N_EACH = 2
"""Heads of each kind that is planted on purpose."""
QUESTION = 2
TOLERANCE = 0.01
"""Scores are compared in steps of this share of the highest: attention of 0.999 and of 1 say the same."""


@dataclass(frozen=True)
class Unit:
    """A planted model and the questions that it is asked."""

    family: str
    circuit: str
    noise: float
    seed: int

    def planted(self) -> Planted:
        """The model."""
        literal, semantic = self.circuit != "semantic", self.circuit in ("semantic", "mixed")
        return plant(
            self.family,
            seed=self.seed,
            noise=self.noise,
            n_planted=N_EACH * literal,
            n_semantic=N_EACH * semantic,
            n_silent=N_EACH,
            n_place=int(self.circuit == "place"),
            n_decoys=7,
        )

    def task(self, planted: Planted) -> FixedTask:
        """The questions."""
        length = 96 if planted.lag else 64
        distance = {
            "distance": planted.offsets["offset"],
            "place": length - 1 - planted.places.get("place", 0),
        }
        return planted_task(planted, N, 0, length, distance=distance.get(self.circuit), question=QUESTION)


def units() -> Iterator[Unit]:
    """Every unit of the table: noise blurs the two circuits that each have one kind of head."""
    for circuit in CIRCUITS:
        for family in KINDS if circuit != "place" else KINDS[:1]:
            for noise in NOISE if circuit in ("literal", "semantic") else NOISE[:1]:
                yield from (Unit(family, circuit, noise, seed) for seed in range(2 if noise else 3))


def roles(planted: Planted) -> dict[Place, str]:
    """What each head is."""
    out = dict.fromkeys(planted.others, "random")
    for role in ("retrieval", "semantic", "silent", "support"):
        out |= dict.fromkeys(getattr(planted, role), role)
    out |= dict.fromkeys(planted.carriers, "carrier")
    return out | {at: name.split(".")[0] for name, at in planted.decoys.items()}


def steps(values: Float[np.ndarray, "l h"]) -> Float[np.ndarray, " n"]:
    """Scores of all heads in whole steps."""
    flat: np.ndarray = np.round(values.ravel() / (TOLERANCE * max(np.abs(values).max(), 1e-12)))
    return flat


def selected(values: Float[np.ndarray, "l h"], k: int) -> Float[np.ndarray, "l h"]:
    """How much of each head is among the top k: 1 or 0, and a share where heads with equal scores compete."""
    flat = steps(values)
    last = np.sort(flat)[::-1][k - 1]
    above, equal = flat > last, flat == last
    return (above + equal * (k - above.sum()) / equal.sum()).reshape(values.shape)


def auroc(values: Float[np.ndarray, "l h"], truth: frozenset[Place]) -> float:
    """Chance that a planted head scores above another; a tie counts half."""
    flat = steps(values)
    mine = np.array([at in truth for at in np.ndindex(values.shape)])
    n, m = mine.sum(), (~mine).sum()
    return float((rankdata(flat)[mine].sum() - n * (n + 1) / 2) / (n * m))


def scored(
    unit: Unit, planted: Planted, task: FixedTask, *, gates: bool = True
) -> dict[tuple[str, str], Float[np.ndarray, "l h"]]:
    """Every score of every head, by name and needle; gates are trained for clear circuits only."""
    model = interp.load(planted.module, tokenizer=None)
    out: dict[tuple[str, str], np.ndarray] = {}
    for needle, names in (("value", tuple(SCORES)), ("evidence", BY_NEEDLE)):
        options = Options(null=(0,), needle=needle)  # type: ignore[arg-type]
        fitted = interp.RetrievalHeads(names[0], scores=names, mode="forced", options=options).fit(
            model, task
        )
        out |= {(name, needle): fitted.per_instance_[name].mean(0) for name in names}
    if gates and unit.noise == 0 and unit.circuit in ("literal", "semantic"):
        found = DuoGates(steps=24, lr=0.1, sink=1, recent=4, batch=2).fit(model, task).gates_
        out["duo", "value"] = found.repeat(planted.n_heads // planted.n_kv_heads, axis=1)
    return out


def rows(unit: Unit, *, gates: bool = True) -> list[dict[str, Any]]:
    """The rows of one model, with or without trained gates."""
    planted = unit.planted()
    task = unit.task(planted)
    examples = task.examples(None)
    truth = planted.retrieval | planted.semantic
    role = roles(planted)
    clean = accuracy(planted, examples)
    out = []
    for (score, needle), values in scored(unit, planted, task, gates=gates).items():
        chosen = selected(values, len(truth))
        top = np.argsort(-steps(values), kind="stable")[: len(truth)]
        cut = [(int(i) // planted.n_heads, int(i) % planted.n_heads) for i in top]
        row: dict[str, Any] = {
            "family": unit.family,
            "circuit": unit.circuit,
            "noise": unit.noise,
            "seed": unit.seed,
            "score": score,
            "needle": needle,
            "heads": values.size,
            "k": len(truth),
            "found": sum(chosen[at] for at in truth) / len(truth),
            "auroc": auroc(values, truth),
            "clean": clean,
            "cut": accuracy(planted, examples, cut),
        }
        for name in ROLES:
            mine = [chosen[at] for at, its in role.items() if its == name]
            row[name] = float(np.mean(mine)) if mine else np.nan
        out.append(row)
    return out


def provenance() -> dict[str, Any]:
    """What made the table; the models themselves are made of their seeds."""
    libraries = ("numpy", "torch", "transformers")
    return {
        "command": "python -m tests.planted.table",
        "models": len(list(units())),
        "examples": N,
        "python": platform.python_version(),
        **{name: version(name) for name in libraries},
    }


def main() -> None:
    every = list(units())
    start = time.time()
    table = []
    for i, unit in enumerate(every):
        table += rows(unit)
        print(f"{i + 1}/{len(every)} {unit} {time.time() - start:.0f} s", file=sys.stderr, flush=True)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(table).to_parquet(OUT, index=False)
    (OUT.parent / "provenance.json").write_text(json.dumps(provenance(), indent=1) + "\n")


if __name__ == "__main__":
    main()
