"""Locator of the layers through which an answer's prior gets into what a model says.

How likely an answer is before the question (`interp.measure.priors`) is held, layer by layer, against what the layer
does where the answer is predicted, over many questions. Two views, since a prior can be in a state in two ways:

- *lens*: what the state says already. `lens` correlates log P(answer), read from the state by the final norm and the
  unembedding, with the prior. `added` correlates what the layer itself writes to the answer's logit (less the mean over
  the vocabulary), `added_attn` and `added_mlp` what its attention and its MLP write: where the prior comes in. Of the
  final norm they have the gain, and one scale for all: with scales of their own, what one layer writes would shrink
  what the others wrote, and a layer that tells nothing of priors would go with them.
- *probe*: whether the prior can be read out of the last prompt token along a line that is the same for all answers,
  also of answers that the line was not fitted on: ridge regression, whole answers left out in turn. `probe` reads the
  residual stream, `probe_attn` and `probe_mlp` what attention and MLP write. A layer that only knows *which* answer it
  is scores nothing, as answers differ in all sorts of ways.

Answers of many tokens are less likely before and after any question, in every layer. So all correlations are of ranks
within answers of equal length, and the null shuffles priors among these (whole answers at a time; probes are fitted
again to each shuffle, which is exact and cheap as they are linear).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy import stats

from interp.errors import NoAcceptedExample, UsageError
from interp.locate.base import Locator
from interp.locate.facts.lens import read
from interp.locate.readout import Readout
from interp.measure.metrics import score_answer
from interp.measure.priors import answer_priors
from interp.measure.stats import fdr
from interp.models.batch import plan
from interp.models.cache import Progress
from interp.models.engines.base import Record
from interp.models.offload import present
from interp.models.sites import MLP, Site
from interp.models.subject import CausalLM
from interp.tasks.base import Example, Task, stable_seed

TOKENS = 2048
LENSES = ("added", "added_mlp", "added_attn", "lens")
PROBES = ("probe", "probe_mlp", "probe_attn")
METHODS = (*LENSES, *PROBES)
"""Scores of a layer; the first is the primary one."""

_READ = {"probe": "resid_post", "probe_mlp": "mlp_out", "probe_attn": "attn_out"}
_BOOTSTRAPS = 400
LEAST = 8
"""Answers that a correlation needs."""


class PriorLayers(Locator):
    """Layers whose work where the answer is predicted goes with the answer's prior.

    Args:
        folds: parts of the answers, each predicted by probes that were fitted on the others.
        ridge: penalty of the probes, in mean squared lengths of their standardised inputs.
        permutations: shuffles of the priors.
        neutral: prompts that priors are measured behind; default those of the examples.
        n: use at most so many examples. seed: of folds, shuffles and intervals.

    After `fit(model, task)` or `fit(model, examples, reference=priors)`:
        priors_: log-prior of each example's answer, nats.
        right_: 1 where the model gives the answer (greedily).
        values_: one row an example, method and layer: example, method, layer, value (of `lens` nats, of `added` logits,
            of probes the prediction of the prior).
        scores_: one row a layer and method (`METHODS`): component (`M12` stands for layer 12), layer, method, score
            (Spearman's rank correlation with the prior within answers of equal length, -1 to 1), se (answers
            resampled), n, n_answers, null_lo, null_hi (95 % of shuffles), p (share of shuffles that reach it, of lenses
            on either side of zero, of probes above), q (adjusted for the false discovery rate over the layers of the
            method), given_right (the correlation among examples alike in whether they are right, too; NaN where none or
            all are).

    Example:
        found = PriorLayers().fit(model, task("acronym", n=96))
        found.top(3), found.top(3, "probe_mlp")
    """

    mechanism = "prior_layers"

    def __init__(
        self,
        folds: int = 5,
        ridge: float = 1.0,
        permutations: int = 1000,
        neutral: tuple[str, ...] | None = None,
        n: int | None = None,
        seed: int = 0,
    ):
        self.folds = folds
        self.ridge = ridge
        self.permutations = permutations
        self.neutral = neutral
        self.n = n
        self.seed = seed

    def fit(
        self,
        subject: CausalLM,
        data: Task | Sequence[Example] | None = None,
        *,
        reference: Sequence[float] | Float[np.ndarray, " n"] | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Learn from questions whose answers differ in their priors.

        Args:
            data: a task, or examples.
            reference: log-prior of each example's answer; default measured on the model, see `answer_priors`.

        Raises:
            UsageError: no data, fewer than eight different answers, numbers that do not fit, or a prior each.
            NoAcceptedExample: there is no example.
        """
        if data is None:
            raise UsageError("PriorLayers learns from questions: fit(model, task('acronym', n=96))")
        if self.folds < 2 or self.ridge <= 0 or self.permutations < 20:
            raise UsageError(
                f"folds={self.folds}, ridge={self.ridge}, permutations={self.permutations}: take 2 folds or more, a "
                "penalty above 0 and 20 shuffles or more"
            )
        examples = list(data.examples(subject) if isinstance(data, Task) else data)[: self.n]
        if not examples:
            raise NoAcceptedExample("there is no example whose answer could be likely")
        if reference is None:
            self.priors_ = answer_priors(subject, examples, neutral=self.neutral)
        else:
            self.priors_ = np.asarray(reference, dtype=float)[: self.n]
        if len(self.priors_) != len(examples):
            raise UsageError(f"{len(self.priors_)} priors of {len(examples)} examples")
        answers = _numbered([e.answer_ids for e in examples])
        lengths = np.array([len(e.answer_ids) for e in examples])
        shuffled = _shuffles(self.priors_, answers, lengths, self.permutations, self.seed)
        seen, self.right_ = _watched(subject, examples, progress)
        states = {m: seen.pop(m) for m in PROBES}
        for method, state in states.items():
            seen[method] = np.stack(
                [_predicted(x, answers, shuffled, lengths, self) for x in state.transpose(1, 0, 2)]
            )
        self.values_ = _values(seen)
        self.scores_ = self._scores(seen, answers, lengths, shuffled)
        return self

    def _scores(
        self,
        seen: dict[str, np.ndarray],
        answers: Int[np.ndarray, " n"],
        lengths: Int[np.ndarray, " n"],
        shuffled: Float[np.ndarray, "s n"],
    ) -> pd.DataFrame:
        """Correlations of every method and layer; `seen` holds l n, of probes l s n (one prediction a shuffle)."""
        right = lengths * 2 + (self.right_ > 0.5)
        frames = []
        for method in (m for m in METHODS if m in seen):
            rows = []
            for layer, value in enumerate(seen[method]):
                own = value[0] if value.ndim == 2 else value
                null = within(value, shuffled, lengths)
                score, null = null[0], null[1:]
                sided = np.abs(null) >= abs(score) - 1e-12 if method in LENSES else null >= score - 1e-12
                low, high = np.quantile(null, [0.025, 0.975])
                rows.append(
                    {
                        "component": repr(MLP(layer)),
                        "layer": layer,
                        "method": method,
                        "score": score,
                        "se": self._error(own, answers, lengths),
                        "n": len(answers),
                        "n_answers": int(answers.max()) + 1,
                        "null_lo": low,
                        "null_hi": high,
                        "p": (1 + int(sided.sum())) / (1 + len(null)),
                        "given_right": within(own, self.priors_[None], right)[0]
                        if 0 < self.right_.mean() < 1
                        else np.nan,
                    }
                )
            frames.append(fdr(pd.DataFrame(rows)))
        return pd.concat(frames, ignore_index=True)

    def _error(
        self, value: Float[np.ndarray, " n"], answers: Int[np.ndarray, " n"], lengths: Int[np.ndarray, " n"]
    ) -> float:
        """Standard deviation of the correlation when answers are resampled; ranks are those of the sample."""
        x, y = (_ranked(v[None], lengths)[0] for v in (value, self.priors_))
        sums = np.zeros((int(answers.max()) + 1, 3))
        np.add.at(sums, answers, np.stack([x * y, x * x, y * y], 1))
        rng = np.random.default_rng(stable_seed("prior layers, errors", self.seed))
        drawn = sums[rng.integers(0, len(sums), (_BOOTSTRAPS, len(sums)))].sum(1)
        scale = np.sqrt(drawn[:, 1] * drawn[:, 2])
        return float((drawn[scale > 0, 0] / scale[scale > 0]).std()) if (scale > 0).any() else float("nan")


# -- what the model does ---------------------------------------------------------------------------------------------


def _watched(
    subject: CausalLM, examples: Sequence[Example], progress: Progress | None
) -> tuple[dict[str, np.ndarray], Float[np.ndarray, " n"]]:
    """Lens values of every layer (l n), states at the last prompt token (n l d), and whether answers are right."""
    readout = Readout(subject)
    assert readout.norm is not None
    head = subject.hf.get_output_embeddings()
    with present(head):
        middle = readout.norm.back(head.weight.detach().float().mean(0)).cpu()
    layers, n = range(subject.n_layers), len(examples)
    states = {m: np.zeros((n, subject.n_layers, subject.d_model), dtype=np.float32) for m in PROBES}
    lens, attn, mlp = (np.zeros((subject.n_layers, n)) for _ in range(3))
    right, scales, done = np.zeros(n), [], 0
    for group in plan([len(e.full_ids) for e in examples], TOKENS):
        own = [examples[i] for i in group]
        batch = subject.batch(own)
        width = max(len(e.answer_ids) for e in own)
        # Rows of shorter answers are read at their last token again, and not counted.
        rows = [batch.answer_columns(r) for r in range(len(own))]
        columns = torch.tensor([[c[min(j, len(c) - 1)] for j in range(width)] for c in rows])
        taps = {Site(kind, i): Record(columns.to(subject.device)) for kind in _READ.values() for i in layers}
        trace = subject.run(batch, taps, keep=batch.keep)
        first = batch.width - trace.logits.shape[1]
        for row, i in enumerate(group):
            logits = trace.logits[row, rows[row].start - first : rows[row].stop - first]
            right[i] = score_answer(logits, examples[i])["accuracy"]
        for method, kind in _READ.items():
            for layer in layers:
                states[method][group, layer] = trace[Site(kind, layer)][:, 0].float().cpu().numpy()
        answers = _Answers.of(own)
        vectors = readout.vectors(answers.tokens[None])[0].cpu() - middle
        for layer in layers:
            written = trace[Site("resid_post", layer)][answers.rows, answers.places]
            logs = read(subject, written).log_softmax(-1).cpu()
            lens[layer, group] = answers.summed(logs.gather(1, answers.tokens[:, None])[:, 0])
            for out, kind in ((attn, "attn_out"), (mlp, "mlp_out")):
                written = trace[Site(kind, layer)][answers.rows, answers.places].float().cpu()
                out[layer, group] = answers.summed((written * vectors).sum(-1))
        last = trace[Site("resid_post", subject.n_layers - 1)][answers.rows, answers.places]
        scales.append(readout.norm.scale(last).cpu())
        done += len(group)
        if progress:
            progress(done, n, "examples")
    scale = float(torch.cat(scales).mean())
    attn, mlp = attn * scale, mlp * scale
    seen = {"lens": lens, "added": attn + mlp, "added_attn": attn, "added_mlp": mlp}
    return {**seen, **states}, right


@dataclass(frozen=True)
class _Answers:
    """The answers' tokens of a batch one after another: whose they are, and which of its tokens each is."""

    rows: Int[torch.Tensor, " m"]
    places: Int[torch.Tensor, " m"]
    tokens: Int[torch.Tensor, " m"]
    n: int

    @classmethod
    def of(cls, examples: Sequence[Example]) -> _Answers:
        every = [(row, j, t) for row, e in enumerate(examples) for j, t in enumerate(e.answer_ids)]
        rows, places, tokens = (torch.tensor(x) for x in zip(*every, strict=True))
        return cls(rows, places, tokens, len(examples))

    def summed(self, values: Float[torch.Tensor, " m"]) -> Float[np.ndarray, " n"]:
        """Sums over the tokens of each answer."""
        out = np.zeros(self.n)
        np.add.at(out, self.rows.numpy(), values.double().numpy())
        return out


# -- probes ----------------------------------------------------------------------------------------------------------


def _predicted(
    states: Float[np.ndarray, "n d"],
    answers: Int[np.ndarray, " n"],
    shuffled: Float[np.ndarray, "s n"],
    lengths: Int[np.ndarray, " n"],
    how: PriorLayers,
) -> Float[np.ndarray, "s n"]:
    """What ridge probes say of answers that they were not fitted on, for the priors and for each shuffle of them.

    Priors are taken less their mean among answers of equal length, so that probes are not fitted to the length.
    """
    rng = np.random.default_rng(stable_seed("prior layers, folds", how.seed))
    number = int(answers.max()) + 1
    fold = (rng.permutation(number) % min(how.folds, number))[answers]
    wanted = np.stack([y - _means(y, lengths) for y in shuffled], 1)
    out = np.zeros_like(wanted)
    x = states.astype(np.float64)
    for part in range(fold.max() + 1):
        left = fold == part
        mean, spread = x[~left].mean(0), x[~left].std(0)
        known = spread > 1e-6 * max(spread.max(), 1e-12)
        if not known.any():
            continue  # a state that is the same for all questions predicts none of them
        z = (x[:, known] - mean[known]) / spread[known]
        kernel = z @ z[~left].T
        inner = kernel[~left]
        penalty = how.ridge * np.trace(inner) / len(inner)
        y = wanted[~left] - wanted[~left].mean(0)
        out[left] = kernel[left] @ np.linalg.solve(inner + penalty * np.eye(len(inner)), y)
        out[left] += wanted[~left].mean(0)
    return out.T


# -- correlations ----------------------------------------------------------------------------------------------------


def within(
    values: Float[np.ndarray, "*s n"], priors: Float[np.ndarray, "s n"], strata: Int[np.ndarray, " n"]
) -> Float[np.ndarray, " s"]:
    """Rank correlation of values and priors within strata: ranks less their mean in the stratum, then Pearson.

    Args:
        values: one row, or one for each row of priors.

    Returns:
        one number a row; 0 where a side does not vary within any stratum.
    """
    x, y = _ranked(np.atleast_2d(values), strata), _ranked(priors, strata)
    scale = np.sqrt((x**2).sum(1) * (y**2).sum(1))
    told = (x * y).sum(1)
    return np.divide(told, scale, out=np.zeros_like(told), where=scale > 1e-12)


def _ranked(rows: Float[np.ndarray, "s n"], strata: Int[np.ndarray, " n"]) -> Float[np.ndarray, "s n"]:
    """Ranks within each stratum as places from -1/2 to 1/2, so that strata of all sizes count alike."""
    out = np.zeros(rows.shape)
    for name in np.unique(strata):
        here = strata == name
        ranks = stats.rankdata(np.round(rows[:, here], 9), axis=1)
        out[:, here] = (ranks - (here.sum() + 1) / 2) / here.sum()
    return out


def _means(values: Float[np.ndarray, " n"], strata: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    _, at = np.unique(strata, return_inverse=True)
    sums: np.ndarray = np.bincount(at, weights=values) / np.bincount(at)
    return sums[at]


def _numbered(answers: Sequence[tuple[int, ...]]) -> Int[np.ndarray, " n"]:
    """The number of each example's answer, in order of appearance."""
    order = {a: i for i, a in enumerate(dict.fromkeys(answers))}
    if len(order) < LEAST:
        raise UsageError(
            f"{len(order)} different answers tell nothing of priors; take examples with {LEAST} or more"
        )
    return np.array([order[a] for a in answers])


def _shuffles(
    priors: Float[np.ndarray, " n"],
    answers: Int[np.ndarray, " n"],
    lengths: Int[np.ndarray, " n"],
    draws: int,
    seed: int,
) -> Float[np.ndarray, "s n"]:
    """The priors, and below them shuffles of the priors of whole answers among those of equal length.

    Raises:
        UsageError: examples of one answer have different priors.
    """
    _, first = np.unique(answers, return_index=True)
    own, long = priors[first], lengths[first]
    if np.abs(own[answers] - priors).max() > 1e-6 or not np.isfinite(priors).all():
        raise UsageError("priors are finite numbers, and examples of one answer have one prior")
    rng = np.random.default_rng(stable_seed("prior layers, shuffles", seed))
    out = [own]
    for _ in range(draws):
        drawn = own.copy()
        for length in np.unique(long):
            at = np.flatnonzero(long == length)
            drawn[at] = own[rng.permutation(at)]
        out.append(drawn)
    return np.stack(out)[:, answers]


def _values(seen: dict[str, np.ndarray]) -> pd.DataFrame:
    frames = []
    for method in (m for m in METHODS if m in seen):
        value = seen[method][:, 0] if seen[method].ndim == 3 else seen[method]
        layers, n = value.shape
        frames.append(
            pd.DataFrame(
                {
                    "example": np.tile(np.arange(n), layers),
                    "method": method,
                    "layer": np.repeat(np.arange(layers), n),
                    "value": value.reshape(-1),
                }
            )
        )
    return pd.concat(frames, ignore_index=True)
