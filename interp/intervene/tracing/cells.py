"""One prompt traced: its corrupted runs, its cells, and what every cell brings back of each target and metric.

All cells of all kinds go through one call of `subject.each`, so each costs the suffix from its token on and the layers
from its first one up, and equals a run of its own. Cells that cannot change anything (tokens before the first one that
differs) are not run.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from interp.errors import UsageError
from interp.intervene.base import Intervention
from interp.intervene.patch import Patch, Source
from interp.intervene.tracing.noise import SAMPLE, Noise, noise_level, noisy, span_of
from interp.intervene.tracing.places import PLACES, places_of
from interp.intervene.tracing.sever import Held, Sever
from interp.measure.metrics import score_at
from interp.models.engines.base import Record
from interp.models.sites import Site
from interp.models.subject import CausalLM
from interp.tasks.base import Example
from interp.trace.each import Progress, Spent

Kind = Literal["resid_post", "attn_out", "mlp_out"]
Metric = Literal["probability", "logprob", "logit_diff"]
KINDS: tuple[str, ...] = get_args(Kind)
METRICS: tuple[str, ...] = get_args(Metric)
WINDOWED = ("attn_out", "mlp_out")
NOISE = "noise"


@dataclass(frozen=True)
class How:
    """How prompts are traced.

    Attributes:
        kinds: which states are restored.
        window: layers of a window, for `attn_out` and `mlp_out`.
        corruption: `noise`, or names of corrupt twins, each of which is a draw.
        samples: draws of the noise.
        sigma: standard deviation of the noise.
        role: of the span that is corrupted.
        layers: centres of the windows; None for all.
        places: of the tokens that are restored (see `places_of`); None for all.
        sever: variants of `resid_post` in which the token's later MLPs or attention stay corrupted.
        targets: tokens that are asked for: `answer`, `foil`, `top0`, `top1` ... (of the clean run), or token ids.
        metrics: of each target: `probability`, `logprob` (nats), `logit_diff` (against the foil).
        seed: of the noise.

    Raises:
        UsageError: a value that means nothing.
    """

    kinds: tuple[str, ...] = ("resid_post",)
    window: int = 1
    corruption: tuple[str, ...] = (NOISE,)
    samples: int = 10
    sigma: float | None = None
    role: str = "subject"
    layers: tuple[int, ...] | None = None
    places: tuple[str, ...] | None = None
    sever: tuple[str, ...] = ()
    targets: tuple[str | int, ...] = ("answer",)
    metrics: tuple[str, ...] = ("probability",)
    seed: int = 0

    def __post_init__(self) -> None:
        for name, given, known in (
            ("kind", self.kinds, KINDS),
            ("sever", self.sever, WINDOWED),
            ("metric", self.metrics, METRICS),
            ("places", self.places or (), PLACES),
        ):
            if wrong := [g for g in given if g not in known]:
                raise UsageError(f"{name}={wrong[0]!r}: write one of {', '.join(map(repr, known))}")
        if self.window < 1 or (self.window != 1 and not set(self.kinds) & set(WINDOWED)):
            raise UsageError(
                f"window={self.window} of {' '.join(self.kinds)}: windows are of attn_out or mlp_out, one layer wide "
                "or more; write window=1"
            )
        if self.samples < 1:
            raise UsageError(f"samples={self.samples}: the map needs at least one draw of the noise")
        if self.sever and "resid_post" not in self.kinds:
            raise UsageError(f"sever={self.sever[0]!r} is a variant of resid_post; name that kind too")
        for name, some in (("kind", self.kinds), ("targets", self.targets), ("metric", self.metrics)):
            if not some:
                raise UsageError(f"{name} is empty: name one")

    @property
    def noise(self) -> bool:
        """Whether the corruption is Gaussian noise."""
        return self.corruption == (NOISE,)


def window_of(layer: int, window: int, n_layers: int) -> tuple[int, ...]:
    """Layers of a window around one, cut off at the ends of the model.

    >>> window_of(1, 4, 6), window_of(5, 4, 6), window_of(3, 1, 6)
    ((0, 1, 2), (3, 4, 5), (3,))
    """
    return tuple(range(max(0, layer - window // 2), min(n_layers, layer + (window + 1) // 2)))


@dataclass(frozen=True)
class Cell:
    """What is restored: a kind of state at a token, in a layer or the window around it; and what is severed."""

    kind: str
    severed: str
    layer: int
    position: int


@dataclass(frozen=True, eq=False)
class Traced:
    """One prompt's map.

    Attributes:
        example: the prompt as it was run, up to the token that is asked for.
        targets: name and token id of each target.
        value: of each cell restored; `low` of the corrupted runs; `high` of the clean run.
    """

    example: Example
    how: How
    cells: tuple[Cell, ...]
    targets: tuple[tuple[str, int], ...]
    value: Float[np.ndarray, "c m k s"]
    low: Float[np.ndarray, "m k s"]
    high: Float[np.ndarray, "m k"]

    def table(self, subject: CausalLM) -> pd.DataFrame:
        """One row a cell, metric and target, in the order of `value` over its draws."""
        ids = self.example.ids
        labels = subject.tokens.pieces(ids) if subject.has_tokens else [str(i) for i in ids]
        places = places_of(self.example, self.how.role)
        return pd.DataFrame(
            {
                "kind": cell.kind,
                "severed": cell.severed,
                "window": self.how.window if cell.kind in WINDOWED else 1,
                "layer": cell.layer,
                "position": cell.position,
                "token": labels[cell.position],
                "role": _role(self.example, cell.position),
                "place": places[cell.position],
                "corruption": "+".join(self.how.corruption),
                "metric": metric,
                "target": name,
                "token_id": token,
            }
            for cell in self.cells
            for metric in self.how.metrics
            for name, token in self.targets
        )


def _role(example: Example, position: int) -> str:
    """Role of the smallest span that holds a token."""
    inside = [s for s in example.spans if s.start <= position < s.end]
    if position == len(example.ids) - 1 and not inside:
        return "last"
    return min(inside, key=len).role if inside else "other"


def asked(example: Example) -> Example:
    """The prompt up to the first answer token that tells the candidates apart; that token is the answer."""
    at = int(example.meta.get("score_at", score_at(example)))
    return replace(
        example,
        ids=example.ids + example.answer_ids[:at],
        answer_ids=example.answer_ids[at : at + 1],
        foil_ids=_rest(example.foil_ids, example.answer_ids, at),
        alternatives=(),
        candidates=(),
        meta={k: v for k, v in example.meta.items() if k != "score_at"},
    )


def _rest(foil: tuple[int, ...], answer: tuple[int, ...], at: int) -> tuple[int, ...]:
    """The foil's token where the answer is scored; nothing if they part elsewhere."""
    return foil[at : at + 1] if foil[:at] == answer[:at] and foil[at : at + 1] != answer[at : at + 1] else ()


def trace_cells(
    subject: CausalLM,
    example: Example,
    how: How,
    *,
    budget: int | None = None,
    progress: Progress | None = None,
    spent: Spent | None = None,
) -> Traced:
    """Every cell of one prompt.

    Raises:
        UsageError: no span to corrupt, no such layer or twin, or no foil to compare with.
    """
    clean = asked(example)
    spent = spent if spent is not None else Spent()
    every = list(range(subject.n_layers) if how.layers is None else how.layers)
    for kind in (*how.kinds, *how.sever):
        for layer in every:
            subject.check(Site(kind, layer))
    corrupt, begin = _corrupted(clean, example, how)
    sources, intact = _clean_run(subject, clean, how.kinds)
    targets = _targets(clean, intact, how.targets)
    foil = clean.foil_ids[0] if clean.foil_ids else None
    if foil is None and "logit_diff" in how.metrics:
        raise UsageError(f"{clean.task}: an example has no foil; take metric 'probability' or 'logprob'")
    score = partial(_values, metrics=how.metrics, targets=[token for _, token in targets], foil=foil)
    batch = subject.batch(corrupt)
    spent.token_layers += (len(clean.ids) + len(how.sever) * batch.width * len(batch)) * subject.n_layers
    places = places_of(clean, how.role)
    positions = [p for p, place in enumerate(places) if how.places is None or place in how.places]
    variants = [(k, "") for k in how.kinds] + [("resid_post", k) for k in how.sever]
    cells = tuple(Cell(k, cut, layer, p) for k, cut in variants for layer in every for p in positions)
    sigma = noise_level(subject, clean, how.role) if how.sigma is None else how.sigma
    found: dict[int, np.ndarray] = {}
    with subject.apply(Noise(sigma, how.role, how.seed)) if how.noise else nullcontext():
        held = {kind: Held.of(subject, batch, kind) for kind in how.sever}
        cuts: list[Intervention | None] = [None]
        for cell in cells:
            # What differs reaches no token before it, so restoring there changes nothing.
            cuts.append(
                None
                if cell.position < begin
                else _restored(cell, how.window, subject.n_layers, sources[cell.kind], held.get(cell.severed))
            )
        for i, logits in subject.each(cuts, batch, keep=1, budget=budget, progress=progress, spent=spent):
            found[i] = score(logits[:, -1])
    value = np.stack([found[i + 1] for i in range(len(cells))]) if cells else np.zeros((0, *found[0].shape))
    return Traced(clean, how, cells, targets, value, found[0], score(intact[None])[..., 0])


def _corrupted(clean: Example, example: Example, how: How) -> tuple[list[Example], int]:
    """The corrupted prompt of each draw, and the first token that differs from the clean one."""
    span = span_of(clean, how.role)
    if how.noise:
        return noisy(clean, how.samples), span[0]
    draws = []
    for number, name in enumerate(how.corruption):
        if name not in example.corrupt:
            have = ", ".join([NOISE, *example.corrupt])
            raise UsageError(f"{example.task}: no corruption '{name}'; it has {have}")
        ids = (*example.corrupt[name].ids, *clean.ids[len(example.ids) :])
        if len(ids) != len(clean.ids) or ids == clean.ids:
            raise UsageError(f"{example.task}: corruption '{name}' is no other prompt of as many tokens")
        draws.append(replace(clean, ids=ids, meta={**clean.meta, SAMPLE: number}))
    begin = min(i for e in draws for i, (a, b) in enumerate(zip(clean.ids, e.ids, strict=True)) if a != b)
    return draws, begin


def _clean_run(
    subject: CausalLM, clean: Example, kinds: Sequence[str]
) -> tuple[dict[str, Source], Float[torch.Tensor, " v"]]:
    """What is restored, and the logits of the token that is asked for, from one pass."""
    layers = range(subject.n_layers)
    trace = subject.run([clean], {Site(kind, i): Record() for kind in kinds for i in layers}, keep=1)
    sources = {k: Source(k, {i: trace[Site(k, i)][0] for i in layers}) for k in kinds}
    return sources, trace.logits[0, -1]


def _restored(cell: Cell, window: int, n_layers: int, source: Source, held: Held | None) -> Intervention:
    """The clean state at a cell, and what is severed after it."""
    layers = window_of(cell.layer, window if cell.kind in WINDOWED else 1, n_layers)
    patch = Patch(source, layers, (cell.position,))
    later = tuple(range(cell.layer + 1, n_layers))
    return patch if held is None or not later else patch + Sever(held, later, (cell.position,))


def _targets(
    clean: Example, logits: Float[torch.Tensor, " v"], wanted: Sequence[str | int]
) -> tuple[tuple[str, int], ...]:
    """Name and token of each target."""
    out = []
    for target in wanted:
        if isinstance(target, int):
            if not 0 <= target < len(logits):
                raise UsageError(f"target {target}: token ids run from 0 to {len(logits) - 1}")
            out.append((str(target), target))
        elif target == "answer":
            out.append((target, clean.answer_ids[0]))
        elif target == "foil" and clean.foil_ids:
            out.append((target, clean.foil_ids[0]))
        elif target.startswith("top") and target[3:].isdigit():
            out.append((target, int(logits.topk(int(target[3:]) + 1).indices[-1])))
        else:
            raise UsageError(
                f"{clean.task}: no target {target!r}; write answer, foil (if examples have one), top0, top1 or an id"
            )
    return tuple(out)


def _values(
    logits: Float[torch.Tensor, "b v"], metrics: Sequence[str], targets: Sequence[int], foil: int | None
) -> Float[np.ndarray, "m k b"]:
    """Each metric of each target in each row."""
    logits = logits.float()
    own = logits[:, list(targets)]
    logprob = own - logits.logsumexp(-1, keepdim=True)
    by_name = {"probability": logprob.exp(), "logprob": logprob}
    if foil is not None:
        by_name["logit_diff"] = own - logits[:, [foil]]
    found: np.ndarray = torch.stack([by_name[m].T for m in metrics]).double().cpu().numpy()
    return found
