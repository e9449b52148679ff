"""The published protocol of retrieval heads on a model of the user's, its figures beside the published ones.

Wu et al. (2024, arXiv 2404.15574): a grid of lengths x depths x needles; greedy output; instances with a ROUGE-1 recall
above 0.5 count; a head's score is its copying steps over the needle's length, mean over those; heads from 0.1 on are
retrieval heads; the best k are then masked at the rows that predict the answer, and random others instead. `run` does
that with needles and prose of this package, and `DEVIATIONS` lists all that is done otherwise.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from interp.errors import NoAcceptedExample, UsageError
from interp.published import COLUMNS, table
from interp.runs import Run

if TYPE_CHECKING:
    from interp.locate.retrieval_heads import RetrievalHeads
    from interp.models.subject import CausalLM
    from interp.tasks.base import Task

Report = Callable[[int, int, str], None]
Stage = Callable[[str], AbstractContextManager[Report | None]]

TOP = 10
"""Scores of the best heads that are told one by one."""

MASKED_SHARE = 30 / 1024
"""What part of a model's heads the published run masked; as many are masked here beside the numbers asked for."""

DEVIATIONS = (
    "no chat template: instruct models get the plain prompt",
    "the needle's tokens are known by construction; the published run searches for them by overlap of token sets, "
    "which can be a token off",
    "an output ends at a newline, at the end of text or after max_new_tokens, and where it is the whole answer it ends "
    "there; the published run goes on, and copies made later count",
    "ROUGE-1 recall is taken over lower-case words without stemming",
    "control heads are drawn once from a seed, as many in each layer as the masked ones and none of them; the "
    "published run draws anew in each cell, unseeded, from all heads, retrieval heads included",
    "intervals resample clusters (haystacks of the grid, of which there is one a needle); the published run has none",
)
"""What is done otherwise than in the published run, whatever the model."""

GRID_DEVIATIONS = (
    "needles, questions and prose are this package's own: those of the published run have no licence; values are "
    "shorter than the published answers, and the prompt's wording is another",
    "lengths count all tokens of the prompt and start at the first length that holds a needle; the published run "
    "trims the context to 200 tokens less, and from 0 on, so that some of its cells are one empty prompt",
    "the needle stands at the depth asked for, to half a sentence, with every tokenizer; the published run puts it at "
    "the start in 9 of 10 cells for tokenizers other than Llama 2's",
    "masked on needles of other kinds in other prose, and on fewer cells than the published 40 lengths x 10 depths",
)
"""The same, of the grids that are made here."""

OWN_TASKS = "the needles are given by the user, and so are their lengths and depths"


class ReproduceSpec(BaseModel):
    """What a reproduction does; the defaults are the published protocol's, with its `few samples` lengths."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    start: int = Field(128, ge=64, description="shortest prompt, in tokens; 0 in the published run")
    max_length: int = Field(5000, ge=64, description="longest prompt; 50000 in the full published run")
    lengths: int = Field(20, ge=1, description="lengths, equally spaced")
    depths: int = Field(10, ge=1, description="depths, equally spaced from 0 to 1")
    needles: int = Field(3, ge=1)
    accept: float = Field(0.5, ge=0, lt=1, description="ROUGE-1 recall above which an instance counts")
    max_new_tokens: int = Field(50, ge=1)
    masked: tuple[int, ...] = Field((10, 30, 50), description="numbers of heads masked, beside 2.9 % of them")
    controls: int = Field(5, ge=0, description="control draws for each number")
    mask_lengths: int = Field(3, ge=1, description="lengths that masking is measured on")
    mask_depths: int = Field(5, ge=1)

    @classmethod
    def quick(cls, model: str, **changes: Any) -> ReproduceSpec:
        """The same steps on few and short cells: minutes on two cores."""
        small: dict[str, Any] = {
            "max_length": 512, "lengths": 3, "depths": 3, "masked": (30,), "controls": 2, "mask_lengths": 1,
            "mask_depths": 2, "max_new_tokens": 24,
        }  # fmt: skip
        return cls(model=model, **{**small, **changes})


def run(
    spec: ReproduceSpec,
    folder: str | Path,
    *,
    subject: CausalLM | None = None,
    tasks: tuple[Task, Task] | None = None,
    stage: Stage | None = None,
    static: bool | None = None,
) -> Run:
    """Run the protocol into a folder, going on where an earlier run of the same spec stopped.

    Args:
        folder: gets spec.yaml, plan.json, instances, copied, scores, masking and comparison (Parquet), deviations.json,
            provenance.json and the figure `reproduction`.
        subject: the model, if it is loaded already.
        tasks: what to score on and what to mask on, in place of the two grids: the user's own needles.
        stage: shows progress; called with the name of each stage, gives a `report(done, total, what)`.
        static: write PDF, SVG and PNG too; default where a browser is found.

    Raises:
        NoAcceptedExample: the model answers no needle.
        UsageError: the folder holds another run, or the model's context is too short.
    """
    job = Run(Path(folder), spec)
    _Reproduction(spec, job, subject, tasks, stage or (lambda name: nullcontext(None))).run(static)
    return job


class _Reproduction:
    """The stages of one run; the model is loaded when one needs it."""

    def __init__(
        self,
        spec: ReproduceSpec,
        job: Run,
        subject: CausalLM | None,
        tasks: tuple[Task, Task] | None,
        stage: Stage,
    ):
        self.spec, self.job, self.given, self.stage = spec, job, tasks, stage
        self._subject = subject

    @property
    def subject(self) -> CausalLM:
        if self._subject is None:
            from interp.models.load import load

            with self.stage("load model"):
                self._subject = load(self.spec.model, device=self.spec.device, dtype=self.spec.dtype)
        return self._subject

    def run(self, static: bool | None) -> None:
        from interp.plot.export import write
        from interp.plot.reproduction import reproduction

        s = self.subject
        self.job.provenance(
            model=s.name, fingerprint=s.fingerprint, dtype=str(s.dtype).removeprefix("torch."), device=str(s.device),
            seed=self.spec.seed, layers=s.n_layers, heads=s.n_heads, kv_heads=s.n_kv_heads,
        )  # fmt: skip
        self.plan = self.job.json("plan", lambda: plan(self.spec, s, grids=self.given is None))
        for why in self.plan["capped"]:
            self.job.remark(why)
        self.instances = self.job.table("instances", self.score)
        self.heads = located(self.instances, self.job.table("copied", self.score_copied), s)
        self.scores = self.job.table("scores", lambda: self.heads.scores_)
        self.masking = self.job.table("masking", self.mask)
        comparison = self.job.table("comparison", self.compare)
        self.job.json("deviations", self.deviations)
        with self.stage("figure"):
            write(reproduction(comparison, s.name), self.job.folder / "reproduction", formats(static))

    def deviations(self) -> list[str]:
        """What was done otherwise here than in the published run."""
        grids = GRID_DEVIATIONS if self.given is None else (OWN_TASKS,)
        return [*self.plan["capped"], *grids, *DEVIATIONS]

    # -- scores ------------------------------------------------------------------------------------------------------

    def grid(self, use: str) -> Task:
        """Needles to score on, or to mask on: other kinds, in other prose."""
        from interp.tasks.registry import task

        if self.given is not None:
            return self.given[0 if use == "score" else 1]
        spec, score = self.spec, use == "score"
        return task(
            "niah_grid",
            lengths=self.plan["lengths" if score else "mask_lengths"],
            depths=spec.depths if score else spec.mask_depths,
            needles=spec.needles,
            kinds=("words", "numbers") if score else ("names", "phrases"),
            haystack="train" if score else "test",
            seed=spec.seed + (not score),
        )

    @cached_property
    def fitted(self) -> RetrievalHeads:
        """All instances scored, whatever their recall: acceptance is by words here."""
        from interp.locate.retrieval_heads import RetrievalHeads

        locator = RetrievalHeads(count=True, accept=-1.0, max_new_tokens=self.spec.max_new_tokens, scores=())
        with self.stage("attention rows") as report:
            return locator.fit(
                self.subject, self.grid("score"), folder=self.job.folder / "fit", progress=report
            )

    def score(self) -> pd.DataFrame:
        out = self.fitted.instances_
        out["recall"] = [rouge1(a, o) for a, o in zip(out["answer"], out["output"], strict=True)]
        out["accepted"] = out["recall"] > self.spec.accept
        if not out["accepted"].any():
            best = out.loc[out["recall"].idxmax()]
            raise NoAcceptedExample(
                f"{self.subject.name} answers none of {len(out)} needles (best ROUGE-1 recall {best['recall']:.2f}, "
                f"needed above {self.spec.accept}); asked for {best['answer']!r} it said {best['output']!r}. Take "
                "shorter contexts with --max-length"
            )
        return out

    def score_copied(self) -> pd.DataFrame:
        """Score of each head in each instance; what was fitted is there already."""
        values = self.fitted.per_instance_["copy"]
        names = [repr(h) for h in self.subject.heads()]
        return pd.DataFrame({
            "example": np.repeat(np.arange(len(values)), len(names)),
            "component": np.tile(names, len(values)), "score": values.reshape(-1),
        })  # fmt: skip

    # -- masking -----------------------------------------------------------------------------------------------------

    def mask(self) -> pd.DataFrame:
        """Recall of each example with the best k heads masked, and with others instead."""
        from interp.intervene.ablate import ablate
        from interp.measure.effects import Condition, dose
        from interp.measure.generation import generate_each

        s, spec = self.subject, self.spec
        examples = self.grid("mask").examples(s)
        sizes = self.plan["masked"]
        conditions = [Condition(None, "clean")]
        conditions += dose(
            s,
            self.heads.top(max(sizes)),
            sizes,
            ablate([], "uniform", "answer"),
            controls=spec.controls,
            seed=spec.seed,
        )
        extra = max(0, spec.max_new_tokens - max(len(e.answer_ids) for e in examples))
        with self.stage("masked heads") as report:
            said = generate_each(
                s, examples, {c.name: c.intervention for c in conditions}, extra=extra, progress=report
            )
        rows: list[dict[str, Any]] = []
        for c in conditions:
            heads = " ".join(map(repr, c.intervention.components)) if c.intervention else ""
            how = c.intervention.describe() if c.intervention else {"mode": "", "scope": ""}
            label = {"condition": c.condition, "k": c.k, "draw": c.draw, "components": heads}
            label |= {name: how[name] for name in ("mode", "scope")}
            for i, (e, output) in enumerate(zip(examples, said[c.name], strict=True)):
                answer = s.tokens.decode(e.answer_ids) if s.has_tokens else " ".join(map(str, e.answer_ids))
                where = {name: e.meta.get(name, np.nan) for name in ("length_asked", "depth_asked")}
                told = {"answer": answer, "output": output.text, "recall": rouge1(answer, output.text)}
                rows.append({**label, "example": i, "cluster": e.cluster or e.key(), **where, **told})
        return pd.DataFrame(rows)

    # -- beside the published figures --------------------------------------------------------------------------------

    def compare(self) -> pd.DataFrame:
        s, seed = self.subject, self.spec.seed
        total = s.n_layers * s.n_heads
        rows = [*head_figures(self.heads, s.name), *mask_figures(self.masking, s.name, total, seed)]
        ours = pd.DataFrame(rows).reindex(columns=COLUMNS)
        ours[["kind", "tag", "source"]] = ["ours", "measured", f"this run, seed {seed}"]
        kinds = {"value": float, "ci_lo": float, "ci_hi": float, "n": float, "note": str}
        return pd.concat([table(), ours.fillna({"note": ""}).astype(kinds)], ignore_index=True)


def plan(spec: ReproduceSpec, subject: CausalLM, *, grids: bool = True) -> dict[str, Any]:
    """Lengths and numbers of masked heads as this model and machine take them, and what was cut down.

    Args:
        grids: the needles are made here, so lengths are needed.

    Raises:
        UsageError: the context of the model holds no needle, or the lengths start beyond their end.
    """
    total, capped = subject.n_layers * subject.n_heads, []
    masked = sorted({k for k in spec.masked if k <= total // 2} | {max(1, round(MASKED_SHARE * total))})
    if left_out := [k for k in spec.masked if k not in masked]:
        capped.append(
            f"{left_out} heads are not masked: the model has {total}, and as many controls are needed"
        )
    if not grids:
        return {"masked": masked, "capped": capped}
    ends = {
        "asked for": spec.max_length, "the model's context": subject.context_length - spec.max_new_tokens,
        "the free memory": memory_tokens(subject),
    }  # fmt: skip
    why = min(ends, key=lambda name: ends[name])
    end = ends[why]
    if end < spec.start:
        raise UsageError(
            f"lengths go from {spec.start} to {end} tokens ({why}); write --set start=64 and a --max-length beyond it, "
            "or take a model with a longer context"
        )
    if end < spec.max_length:
        capped.append(f"lengths end at {end} tokens in place of {spec.max_length}: {why}")
    middle = [(spec.start + end) // 2]
    return {
        "masked": masked, "capped": capped, "lengths": spaced(spec.start, end, spec.lengths),
        "mask_lengths": spaced(spec.start, end, spec.mask_lengths) if spec.mask_lengths > 1 else middle,
    }  # fmt: skip


def spaced(start: int, end: int, n: int) -> list[int]:
    """`round(linspace(start, end, n))`, as published, each length once.

    >>> spaced(0, 5000, 20)[:4]
    [0, 263, 526, 789]
    """
    return sorted({int(x) for x in np.round(np.linspace(start, end, n))})


def memory_tokens(subject: CausalLM) -> int:
    """Tokens whose KV cache and activations fit in a quarter of the memory that is free."""
    import torch

    if subject.device.type == "cuda":
        free = torch.cuda.mem_get_info(subject.device)[0]
    else:
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    kv = 2 * subject.n_layers * subject.n_kv_heads * subject.d_head
    size = torch.finfo(subject.dtype).bits // 8
    return int(free // 4 // ((kv + 4 * (subject.d_model + subject.d_mlp)) * size))


def rouge1(answer: str, output: str) -> float:
    """ROUGE-1 recall: the share of the answer's words, with multiplicity, that stand in the output.

    >>> rouge1("the Golden gate, the bay", "The gate of the park")
    0.6
    """
    wanted, said = (Counter(re.findall(r"[^\W_]+", text.lower())) for text in (answer, output))
    total = wanted.total()
    return (wanted & said).total() / total if total else float(answer.strip() == output.strip())


def located(instances: pd.DataFrame, copied: pd.DataFrame, subject: CausalLM) -> RetrievalHeads:
    """The locator as its tables tell it: the scores of accepted instances, and their means."""
    from interp.locate.retrieval_heads import RetrievalHeads, _frame

    values = copied["score"].to_numpy().reshape(len(instances), subject.n_layers, subject.n_heads)
    keep = instances["accepted"].to_numpy(bool)
    out = RetrievalHeads(count=True)
    out.instances_ = instances
    out.per_instance_ = {"copy": values[keep]}
    out.clusters_ = [
        c or f"example {e}" for c, e in instances[keep][["cluster", "example"]].itertuples(index=False)
    ]
    out.acceptance_ = float(keep.mean())
    out.scores_ = _frame(subject, "copy", out.per_instance_["copy"], out.clusters_)
    return out


def head_figures(heads: RetrievalHeads, subject: str) -> list[dict[str, Any]]:
    """Our row for each published figure of heads."""
    from interp.locate.properties import sparse

    found, values = sparse(heads).frame.set_index("statistic"), heads.per_instance_["copy"]
    n, total = len(values), values[0].size
    rows = [{"statistic": "heads", "value": total, "n": n}]
    for name in ("share_over_0.1", "share_over_0.5", "share_zero"):
        rows.append({"statistic": name, "n": n, **found.loc[name, ["value", "ci_lo", "ci_hi"]].to_dict()})
    rows.append({"statistic": "always_active", "value": int((values > 0).all(0).sum()), "n": n})
    for i, best in enumerate(heads.ranking().head(TOP).itertuples(), 1):
        rows.append({"statistic": f"top_{i}", "value": best.score, "n": n, "note": best.component})
    return [{"subject": subject, **row} for row in rows]


def mask_figures(masking: pd.DataFrame, subject: str, total: int, seed: int) -> list[dict[str, Any]]:
    """Recall, in per cent, of the intact model, and for each k with the top k and with matched others masked."""
    from interp.measure.stats import bootstrap_ci

    rows = []
    for (condition, k), part in masking.groupby(["condition", "k"], sort=False):
        name = {"clean": "recall_clean", "cut": f"recall_top_{k}", "control": f"recall_matched_{k}"}[
            condition
        ]
        # The draws of a control are averaged first: they are no further examples.
        by = part.groupby("example").agg(recall=("recall", "mean"), cluster=("cluster", "first"))
        low, high = bootstrap_ci(100 * by["recall"].to_numpy(), by["cluster"].to_numpy(), seed=seed)
        note = f"{k} of {total} heads ({k / total:.1%})" if k else ""
        note += f", mean of {part['draw'].nunique()} draws" if condition == "control" else ""
        rows.append({
            "subject": subject, "statistic": name, "value": 100 * by["recall"].mean(), "ci_lo": low, "ci_hi": high,
            "n": len(by), "note": note,
        })  # fmt: skip
    return rows


def formats(static: bool | None) -> tuple[Any, ...] | None:
    """Formats of the figure: all of them, those that need no browser, or what can be had."""
    from interp.plot.export import FORMATS, STATIC, find_browser

    if static is None:
        static = find_browser() is not None
    return FORMATS if static else tuple(f for f in FORMATS if f not in STATIC)
