"""What a cut does to generated answers: batched greedy decoding under many conditions, scored as text.

Rows are those of `measure`, with the metrics of `interp.measure.answers`; the outputs are kept. Several conditions are
rows of one batch, each with its own cut. Where a condition leaves the prompt alone (scope `answer`), the prompt is run
once for all of them, and each goes on from a copy of its KV cache.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from interp.errors import AtChance, NoAcceptedExample, UsageError
from interp.intervene.ablate import Ablate
from interp.intervene.base import Intervention, lower_conditions
from interp.intervene.reference import Reference as Source
from interp.measure.answers import SCORES, Reference, guess_levels, score_output, words
from interp.measure.effects import AT_CHANCE, COLUMNS, Role, effect_rows
from interp.measure.metrics import BINARY
from interp.measure.outcomes import Outcomes, Progress, shares_prefix
from interp.measure.plans import CLEAN, Condition, named_reference, with_controls
from interp.measure.stats import bootstrap_ci, proportion_ci
from interp.models.batch import Batch, plan
from interp.models.subject import CausalLM
from interp.models.tokens import Tokens
from interp.tasks.base import Example, Task

TOKENS = 2048
"""Padded tokens of a batch that is run in full."""

EXTRA = 8
"""Tokens that an output may be longer than the answer."""


@dataclass(frozen=True)
class Generated:
    """Effects on generated answers.

    Attributes:
        effects: one row a condition and metric, with the columns of `measure`.
        outputs: one row a condition and example: condition, k, control, draw, example, output, answer, every metric,
            cluster.
        floor: what each metric comes to by guessing, see `interp.measure.answers.guess_levels`.
    """

    effects: pd.DataFrame
    outputs: pd.DataFrame
    floor: dict[str, float]


def measure_generated(
    subject: CausalLM,
    task: Task,
    intervention: Ablate | Sequence[Condition] = (),
    *,
    controls: int = 5,
    match: str | Sequence[str] = "layer",
    ranking: Any = None,
    given: Any = None,
    metrics: Sequence[str] | None = None,
    extra: int = EXTRA,
    role: Role = "target",
    mechanism: str = "",
    locator: str = "",
    seed: int = 0,
    floor: Literal["raise", "mark"] = "raise",
    progress: Progress | None = None,
) -> Generated:
    """Measure what a cut does to the answers that a model generates, beside matched controls.

    Args:
        intervention: a cut, or a plan of conditions; the intact model is always measured with them, and alone by
            default.
        controls: control draws of each kind, for a cut.
        match, ranking, given: kinds of control, as for `measure`.
        metrics: of `SCORES`, the one that decides about the floor first; default `number` for tasks that have one, else
            `exact`, `f1` and `contains`.
        extra: outputs end at a newline, at the end of text, or when they are so many tokens longer than the answer.
        role, mechanism, locator, seed: what the rows say, as for `measure`.
        floor: what to do where the clean model's interval includes the guess: `raise`, or `mark` the rows of that
            metric and report no delta.
        progress: told about outputs done.

    Raises:
        AtChance: the intact model does not answer above chance by the first metric (the floor rule).
        UsageError: an unknown metric; a component that does not exist.
        EngineError: the engine cannot generate.
    """
    examples = task.examples(subject)
    if metrics is None:
        metrics = ("number",) if all("number" in e.meta for e in examples) else SCORES[:3]
    if unknown := [m for m in metrics if m not in SCORES]:
        raise UsageError(f"unknown metric '{unknown[0]}'; generated answers have {', '.join(SCORES)}")
    source = Source(task)
    if isinstance(intervention, Ablate):
        for part in intervention.components:
            subject.check(part)
        conditions = with_controls(
            subject,
            intervention,
            controls=controls,
            match=match,
            data=source,
            ranking=ranking,
            given=given,
            seed=seed,
        )
    else:
        conditions = list(intervention)
    every = [Condition(None, "clean"), *(named_reference(c, source) for c in conditions)]
    texts = generate_each(
        subject, examples, {c.name: c.intervention for c in every}, extra=extra, progress=progress
    )
    outcomes, outputs = _scored(subject, examples, every, texts)
    clean = texts[CLEAN]
    floors = guess_levels(subject, examples, [o.words for o in clean], [o.text for o in clean], metrics)
    status = {m: _status(outcomes, m, floors[m], seed) for m in metrics}
    if floor == "raise" and status[metrics[0]] == AT_CHANCE:
        value = outcomes.values[CLEAN][metrics[0]]
        low, high = _interval(value, outcomes, metrics[0], seed)
        raise AtChance(
            f"{subject.name} is at chance on the generated answers of {task!r}: {metrics[0]} {np.nanmean(value):.2f} "
            f"[{low:.2f}, {high:.2f}], a guess {floors[metrics[0]]:.2f}; no effect is reported. It said "
            f"{clean[0].text!r} for {outputs.answer[0]!r}. Take an easier task, or one this model can do"
        )
    rows = [row for c in every for m in metrics for row in effect_rows(outcomes, c, (m,), status[m], seed)]
    frame = pd.DataFrame(rows)
    labels: dict[str, Any] = {
        "subject": subject.name,
        "task": task.name,
        "role": role,
        "mechanism": mechanism,
    }
    for name, value in {**labels, "locator": locator, "seed": seed}.items():
        frame[name] = value
    return Generated(frame[COLUMNS], outputs, floors)


@dataclass(frozen=True)
class Output:
    """One generated answer, without what ended it: ids, their text, and the words that are compared."""

    ids: tuple[int, ...]
    text: str
    words: tuple[Any, ...]


def generate_each(
    subject: CausalLM,
    examples: Sequence[Example],
    conditions: Mapping[str, Intervention | None],
    *,
    extra: int = EXTRA,
    share: bool = True,
    progress: Progress | None = None,
) -> dict[str, list[Output]]:
    """The greedy answer of every example under every condition.

    Args:
        conditions: by name; None is the intact model.
        extra: outputs may be so many tokens longer than the forced answer.
        share: run conditions as rows of one batch, and prompts that they leave alone once; False runs every one by
            itself, from the prompt on.
        progress: told about outputs done.

    Raises:
        NoAcceptedExample: there is no example.
    """
    if not examples:
        raise NoAcceptedExample("there is no example to generate from")
    ends = ends_of(subject.tokens) if subject.has_tokens else frozenset()
    out: dict[str, list[Output | None]] = {name: [None] * len(examples) for name in conditions}
    done, total = 0, len(examples) * len(conditions)
    for group in plan([len(e.ids) for e in examples], TOKENS):
        batch = subject.batch([examples[i] for i in group], forced=False)
        limits = [len(examples[i].answer_ids) + extra for i in group]
        room = subject.context_length - batch.width
        limits = [min(limit, room) for limit in limits]
        for name, rows in _decoded(subject, batch, conditions, max(limits), ends, share):
            for i, ids, limit in zip(group, rows, limits, strict=True):
                out[name][i] = _output(subject, ids[:limit], ends)
            done += len(group)
            if progress:
                progress(done, total, name)
    return {name: [o for o in found if o is not None] for name, found in out.items()}


def _decoded(
    subject: CausalLM,
    batch: Batch,
    conditions: Mapping[str, Intervention | None],
    limit: int,
    ends: frozenset[int],
    share: bool,
) -> Iterator[tuple[str, list[list[int]]]]:
    """New tokens of each row of a batch, condition by condition."""
    options: dict[str, Any] = {"eos_token_id": sorted(ends)} if ends else {}
    if not share:
        for name, one in conditions.items():
            with subject.apply(*([one] if one is not None else [])):
                yield name, subject.generate(batch, limit, **options)
        return
    # What every row can be spared: its last token predicts the answer and is run under the cut.
    spared = int(batch.mask.sum(1).min()) > 1
    for shared in (True, False):
        names = [n for n, one in conditions.items() if (spared and shares_prefix(one)) == shared]
        if not names:
            continue
        prefix = _prefix(subject, batch) if shared else None
        many = max(1, (4 if shared else 1) * TOKENS // (len(batch) * batch.width))
        for start in range(0, len(names), many):
            part = names[start : start + many]
            n = len(part)
            rows = torch.arange(len(batch)).repeat_interleave(n)
            wide = batch.select(rows)
            of = torch.arange(n).repeat(len(batch))
            taps = lower_conditions(subject, wide, [conditions[name] for name in part], of)
            more = dict(options)
            if prefix is not None:
                more["past_key_values"] = cache = copy.deepcopy(prefix)
                cache.batch_repeat_interleave(n)
            found = subject.generate(wide, limit, taps=taps, **more)
            for i, name in enumerate(part):
                yield name, found[i::n]


def _prefix(subject: CausalLM, batch: Batch) -> Any:
    """KV cache of all columns but the last."""
    from transformers import DynamicCache

    cut = {name: getattr(batch, name)[:, :-1] for name in ("ids", "mask", "positions")}
    cache = DynamicCache()
    subject.run(replace(batch, answer_start=batch.answer_start - 1, **cut), keep=1, cache=cache)
    return cache


def _output(subject: CausalLM, ids: Sequence[int], ends: frozenset[int]) -> Output:
    stop = next((i for i, t in enumerate(ids) if t in ends), None)
    kept = tuple(ids if stop is None else ids[:stop])
    if not subject.has_tokens:
        return Output(kept, " ".join(map(str, kept)), kept)
    # The token that ends an output may hold its last characters.
    last = () if stop is None or ids[stop] in subject.tokens.special_ids else (ids[stop],)
    text = subject.tokens.decode([*kept, *last]).partition("\n")[0].strip()
    return Output(kept, text, words(text))


@lru_cache(maxsize=8)
def _newlines(fingerprint: str, tokens: Tokens) -> frozenset[int]:
    pieces = tokens.hf.batch_decode([[i] for i in range(tokens.n_vocab)])
    return frozenset(i for i, piece in enumerate(pieces) if "\n" in piece)


def ends_of(tokens: Tokens) -> frozenset[int]:
    """Tokens that end an answer: end of text, and all that hold a newline."""
    end = frozenset() if tokens.eos_id is None else frozenset({tokens.eos_id})
    return _newlines(tokens.fingerprint, tokens) | end


def _scored(
    subject: CausalLM,
    examples: Sequence[Example],
    plan_: Sequence[Condition],
    texts: Mapping[str, Sequence[Output]],
) -> tuple[Outcomes, pd.DataFrame]:
    references = [Reference.of(subject, e) for e in examples]
    answers = [
        subject.tokens.decode(e.answer_ids).strip()
        if subject.has_tokens
        else " ".join(map(str, e.answer_ids))
        for e in examples
    ]
    outcomes = Outcomes(list(examples))
    parts = []
    for c in plan_:
        scores = [score_output(o.words, r, o.text) for o, r in zip(texts[c.name], references, strict=True)]
        outcomes.values[c.name] = {m: np.array([s[m] for s in scores]) for m in SCORES}
        parts.append(
            pd.DataFrame(
                {
                    "condition": c.condition,
                    "k": c.k,
                    "control": c.control,
                    "draw": c.draw,
                    "example": range(len(examples)),
                    "output": [o.text for o in texts[c.name]],
                    "answer": answers,
                    **outcomes.values[c.name],
                    "cluster": outcomes.clusters,
                }
            )
        )
    return outcomes, pd.concat(parts, ignore_index=True)


def _interval(value: np.ndarray, outcomes: Outcomes, metric: str, seed: int) -> tuple[float, float]:
    if metric in BINARY:
        return proportion_ci(value, outcomes.clusters)
    return bootstrap_ci(value, outcomes.clusters, seed=seed)


def _status(outcomes: Outcomes, metric: str, floor: float, seed: int) -> str:
    value = outcomes.values[CLEAN][metric]
    if np.isnan(value).all():
        return "ok"
    low, _ = _interval(value, outcomes, metric, seed)
    return "ok" if low > floor else AT_CHANCE
