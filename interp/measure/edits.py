"""How well facts were written: efficacy, paraphrases, neighbours, fluency and drift (Meng et al. 2022, section 3.3).

Of each record two answers are compared, the new one and the true one, with and without the edit:

- `efficacy` (ES, magnitude EM): the edited prompt itself should give the new answer;
- `paraphrase` (PS, PM): so should other wordings;
- `neighbour` (NS, NM): prompts about other subjects should give their own true answer.

In CounterFact a neighbour's true answer is always the edited fact's, so that NS there says whether the new answer came
up at subjects of the same object. Records of our tables (`relation_records`) have neighbours of other objects too,
which are easier to keep: their NS is not CounterFact's. Where rows have a column `same_object`, `scoreboard` has NS of
both kinds apart (`NS same`, `NS other`); the first is the one to compare with published numbers.

A score is the share of prompts at which the wanted answer is the more likely one, a magnitude the mean difference of
the two probabilities; both are means over a record's prompts first, then over records. S is the harmonic mean of the
three scores. Answers of several tokens are compared where they part ways (`rule="divergence"`): what they share is
forced, and the two tokens that follow are events of one distribution. `rule="mean"` is the reference's: exp of the mean
log-likelihood of a token, which compares events of different kinds where answers have different lengths, since what
comes late in a word is nearly certain; take it to compare with published numbers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch

from interp.errors import NoAcceptedExample, UsageError
from interp.intervene.base import Intervention
from interp.intervene.facts.covariance import common_text
from interp.intervene.facts.requests import Rewrite, sampled
from interp.measure.metrics import divergence
from interp.measure.outcomes import evaluate
from interp.measure.stats import bootstrap_ci, proportion_ci
from interp.models.subject import CausalLM
from interp.tasks.base import Example, FixedTask, Ids, Task
from interp.tasks.prose import unseen

Rule = Literal["divergence", "mean"]
KINDS = {"efficacy": "E", "paraphrase": "P", "neighbour": "N"}
"""Kinds of prompts, with the letter of their score and magnitude."""


@dataclass(frozen=True)
class Neighbour:
    """A prompt that an edit should leave alone, with its right answer."""

    ids: Ids
    true: Ids


@dataclass(frozen=True)
class EditRecord:
    """An edit to be judged.

    Attributes:
        rewrite: the fact, with the answer it had.
        paraphrases: other prompts for it.
        neighbours: prompts about other subjects.
        openings: prompts about the subject that text is generated from.
        name: of the record; the unit of resampling.
        relation: what kind of fact it is.
    """

    rewrite: Rewrite
    paraphrases: tuple[Ids, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    openings: tuple[Ids, ...] = ()
    name: str = ""
    relation: str = ""

    def __post_init__(self) -> None:
        for true in (self.rewrite.true, *(n.true for n in self.neighbours)):
            if not true or divergence(true, self.rewrite.target) is None:
                raise UsageError(
                    f"record {self.name!r}: new and true answer must be there, and neither begin the other"
                )

    def prompts(self) -> list[tuple[str, Ids, Ids]]:
        """Kind, prompt and true answer of all prompts that are compared."""
        true = self.rewrite.true
        out = [("efficacy", self.rewrite.ids, true)]
        out += [("paraphrase", ids, true) for ids in self.paraphrases]
        return out + [("neighbour", n.ids, n.true) for n in self.neighbours]


# -- scores ----------------------------------------------------------------------------------------------------------


def score_edits(
    subject: CausalLM,
    records: Sequence[EditRecord],
    edits: Sequence[Intervention] | Intervention,
    *,
    rule: Rule = "divergence",
) -> pd.DataFrame:
    """The two answers of every prompt, before and after.

    Args:
        edits: one for each record, each measured alone, or one for all.
        rule: how answers are compared.

    Returns:
        one row a prompt and state (`before`, `after`): record, relation, kind, prompt (its number), state, rule, p_new,
        p_true, success (the wanted answer is the more likely one), top (greedy decoding gives it where the two part;
        NaN for rule "mean"), magnitude (how much more likely it is).

    Raises:
        UsageError: not as many edits as records; an unknown rule.
        NoAcceptedExample: no records.
    """
    if rule not in get_args(Rule):
        raise UsageError(f"unknown rule '{rule}'; take {' or '.join(get_args(Rule))}")
    if not records:
        raise NoAcceptedExample("no edit to be judged: give at least one record")
    alone = not isinstance(edits, Intervention)
    every = list(edits) if not isinstance(edits, Intervention) else [edits] * len(records)
    if len(every) != len(records):
        raise UsageError(f"{len(every)} edits for {len(records)} records; give one for each, or one for all")
    rows = []
    for number, (record, edit) in enumerate(zip(records, every, strict=True)):
        prompts = record.prompts()
        new = record.rewrite.target
        asked = [e for _, ids, true in prompts for e in _asked(ids, new, true, rule)]
        batch = subject.batch(asked)
        for i, logits in subject.each([None, edit], batch):
            found = _probabilities(logits.float(), batch, asked, new, [t for _, _, t in prompts], rule)
            for at, ((kind, _, _), (p_new, p_true, says)) in enumerate(zip(prompts, found, strict=True)):
                wanted = "true" if kind == "neighbour" else "new"
                gain = p_true - p_new if wanted == "true" else p_new - p_true
                rows.append(
                    {
                        "record": record.name or str(number),
                        "relation": record.relation,
                        "kind": kind,
                        "prompt": at,
                        "state": "after" if i else "before",
                        "rule": rule,
                        "alone": alone,
                        "p_new": p_new,
                        "p_true": p_true,
                        "success": float(gain > 0),
                        "top": math.nan if says is None else float(says == wanted),
                        "magnitude": gain,
                    }
                )
    return pd.DataFrame(rows)


def _asked(ids: Ids, new: Ids, true: Ids, rule: Rule) -> list[Example]:
    if rule == "mean":
        return [Example("edit", ids, answer) for answer in (new, true)]
    at = divergence(new, true)
    assert at is not None  # records are checked
    return [Example("edit", ids + new[:at], new[at : at + 1])]


def _probabilities(
    logits: torch.Tensor, batch: Any, asked: Sequence[Example], new: Ids, trues: Sequence[Ids], rule: Rule
) -> list[tuple[float, float, str | None]]:
    """Of each prompt the probability of the new and the true answer, which of them greedy decoding gives."""
    first = batch.width - logits.shape[1]
    out: list[tuple[float, float, str | None]] = []
    if rule == "divergence":
        for row, true in enumerate(trues):
            at = divergence(new, true)
            assert at is not None
            p = logits[row, batch.answer_columns(row).start - first].softmax(-1)
            says = {new[at]: "new", true[at]: "true"}.get(int(p.argmax()), "")
            out.append((float(p[new[at]]), float(p[true[at]]), says))
        return out
    means = []
    for row, example in enumerate(asked):
        columns = batch.answer_columns(row)
        lines = logits[row, columns.start - first : columns.stop - first].log_softmax(-1)
        answer = torch.tensor(example.answer_ids, device=lines.device)
        means.append(math.exp(float(lines.gather(-1, answer[:, None]).mean())))
    return [(means[2 * i], means[2 * i + 1], None) for i in range(len(trues))]


def scoreboard(frame: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Scores, magnitudes and their harmonic mean, from the rows of `score_edits`.

    Args:
        frame: with a column `same_object`, NS is also told of neighbours whose true answer is the edited fact's and of
            the others; with a column `cluster` (one a record), these are resampled in place of records.

    Returns:
        one row a state and measure (ES EM PS PM NS NM; ET PT NT, the share that is also greedy decoding's; NS same, NS
        other; S): value, ci_lo, ci_hi (records resampled; exact where each record is all right or all wrong), n
        (records that have such prompts).
    """
    unit = frame.drop_duplicates("record").set_index("record")
    names = unit["cluster"].to_dict() if "cluster" in frame else {r: r for r in unit.index}
    rows = []
    for state, part in frame.groupby("state", sort=False):
        scores = []
        for kind, letter in KINDS.items():
            own = part[part["kind"] == kind].groupby("record", sort=False)
            if not len(own):
                continue
            means = own[["success", "top", "magnitude"]].mean()
            for column, measure in (("success", "S"), ("top", "T"), ("magnitude", "M")):
                values = means[column].to_numpy(float)
                if np.isnan(values).all():
                    continue
                about = _interval(values, [names[r] for r in means.index], column != "magnitude", seed)
                rows.append({"state": state, "measure": letter + measure, **about})
                if column == "success":
                    scores.append(about["value"])
        for name, own in _neighbours(part).items():
            if len(own):
                means = own.groupby("record", sort=False)["success"].mean()
                about = _interval(means.to_numpy(float), [names[r] for r in means.index], True, seed)
                rows.append({"state": state, "measure": name, **about})
        if len(scores) == len(KINDS):
            about = {"value": harmonic(scores), "ci_lo": math.nan, "ci_hi": math.nan}
            rows.append({"state": state, "measure": "S", **about, "n": part["record"].nunique()})
    return pd.DataFrame(rows)


def _neighbours(part: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Neighbours by whether their true answer is that of the edited fact, where this is told."""
    if "same_object" not in part:
        return {}
    own = part[part["kind"] == "neighbour"]
    alike = own["same_object"].astype(bool)
    return {"NS same": own[alike], "NS other": own[~alike]}


def _interval(values: np.ndarray, clusters: Sequence[str], share: bool, seed: int) -> dict[str, Any]:
    """Mean of one number a record, with its interval."""
    if share and set(values) <= {0.0, 1.0}:
        # Of one prompt a record: the bootstrap would say nothing where all are right.
        low, high = proportion_ci(values, list(clusters))
    else:
        low, high = bootstrap_ci(values, list(clusters), seed=seed)
    return {"value": float(np.nanmean(values)), "ci_lo": low, "ci_hi": high, "n": len(values)}


def harmonic(values: Sequence[float]) -> float:
    """Harmonic mean; 0 where one of them is.

    >>> harmonic([1.0, 1.0, 0.5])
    0.75
    """
    return 0.0 if min(values) <= 0 else len(values) / sum(1 / v for v in values)


# -- side effects ----------------------------------------------------------------------------------------------------

FLUENCY = {2: 2 / 3, 3: 4 / 3}
"""Lengths of n-grams whose entropies are averaged, and their weights."""


def ngram_entropy(ids: Sequence[int]) -> float:
    """Weighted mean entropy of the 2- and 3-grams of a text, in bits: low where a text repeats itself.

    Published numbers are 100 times this, of words and not of tokens.

    >>> ngram_entropy([1, 1, 1, 1, 1]), ngram_entropy([1, 2, 1, 2, 1])
    (0.0, 0.945...)
    """
    out = 0.0
    for n, weight in FLUENCY.items():
        counts = Counter(tuple(ids[i : i + n]) for i in range(len(ids) - n + 1))
        p = np.array(list(counts.values()), dtype=float) / max(counts.total(), 1)
        out += weight * float(-(p * np.log2(p)).sum()) / len(FLUENCY)
    return out


def fluency(
    subject: CausalLM,
    records: Sequence[EditRecord],
    edits: Sequence[Intervention] | Intervention,
    *,
    tokens: int = 100,
    seed: int = 0,
) -> pd.DataFrame:
    """Entropy of text that is generated about each record's subject, before and after.

    Tokens are drawn from the five most likely ones, with the same draws in both states; text starts at the record's
    openings, or at "<subject> is a" where there are none.

    Returns:
        one row a record, opening and state: record, opening, state, entropy (bits), ids.
    """
    every = list(edits) if not isinstance(edits, Intervention) else [edits] * len(records)
    rows = []
    for number, (record, edit) in enumerate(zip(records, every, strict=True)):
        openings = record.openings or (record.rewrite.essence,)
        for state, applied in (("before", ()), ("after", (edit,))):
            with subject.apply(*applied):
                texts = sampled(subject, openings, tokens, seed=seed)
            for at, ids in enumerate(texts):
                about = {"record": record.name or str(number), "opening": at, "state": state}
                rows.append({**about, "entropy": ngram_entropy(ids), "ids": list(ids)})
    return pd.DataFrame(rows)


def drift(subject: CausalLM, edits: Mapping[str, Intervention], task: Task | None = None) -> pd.DataFrame:
    """What edits cost on text that has nothing to do with them.

    Args:
        edits: by name.
        task: text to continue; default 16 passages of the prose that ships with Python, 32 tokens of each scored, of
            which the default moments saw nothing (`interp.tasks.prose.unseen`): an edit spares the keys of the text
            that its moments are of. For moments of another text, give a task of passages apart from it.

    Returns:
        one row an edit: edit, nll_before, nll_after (nats a token), perplexity (after over before).
    """
    if task is None:
        task = FixedTask(unseen(subject, common_text().examples(subject)), name="prose")
    found = evaluate(subject, task.examples(subject), {"": None, **edits}).values
    before = float(found[""]["nll"].mean())
    rows = []
    for name in edits:
        after = float(found[name]["nll"].mean())
        rows.append(
            {"edit": name, "nll_before": before, "nll_after": after, "perplexity": math.exp(after - before)}
        )
    return pd.DataFrame(rows)
