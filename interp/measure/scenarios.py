"""Why a model says what it says of a fact: exact recall, heuristics, guesswork, or plain language modelling.

After Saynova et al. (Findings of ACL 2025, PrISM), for the model at hand and without a network: facts, wordings and
fictional subjects are this package's own. Each prediction of each wording gets flags, and those that meet the rules
a scenario; `interp.measure.scenario_sets` makes examples of them. What is done otherwise than in the reference:
consistency is a share of distinct wordings and counts only the best predictions (the reference counts rows, third
guesses included), one threshold holds for facts and for heuristics, a confident prediction needs a probability too, and
popularity is a proxy, which is named in the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from interp.errors import UsageError
from interp.measure.next_token import Speaker, likeliest, speaker
from interp.models.subject import CausalLM
from interp.models.tokens import Tokens
from interp.tasks.base import Piece, continuations, listed, stable_seed, token_spans
from interp.tasks.facts import Relation, relation, worded
from interp.tasks.fictional import Sort, named, sort_of
from interp.tasks.generic import Opening, openings
from interp.tasks.jsonl import file_text

EXACT, HEURISTICS, GUESSWORK, GENERIC = "exact recall", "heuristics recall", "guesswork", "generic"
SCENARIOS = (EXACT, HEURISTICS, GUESSWORK, GENERIC)
BIASES = ("prompt_bias", "person_name", "string_overlap")
NONE = "none"
_LEAST = 3
"""Letters of a prediction that says something."""

_TRIES = 40
"""Other subjects that are tried for an opening's twin."""

_EMPTY = frozenset(
    ("the", "this", "that", "these", "those", "his", "her", "its", "their", "and", "but", "not", "they")
)

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Rules:
    """What counts as what.

    Attributes:
        rank: predictions up to this rank count (0 is the likeliest token).
        confident: share of a relation's wordings that have to agree on a confident prediction.
        unsure: a guess is shared by at most this share of the wordings.
        probability: mean probability of a confident prediction, at least.
        popular: quantile of popularity, within a relation, from which a fact may be recalled and under which a guess
            lies; None asks for no popularity.
        ranks: predictions kept of each prompt.
        bias_top: a prediction among so many of a neutral prompt is biased.
    """

    rank: int = 0
    confident: float = 0.75
    unsure: float = 0.25
    probability: float = 0.1
    popular: float | None = 0.5
    ranks: int = 3
    bias_top: int = 10

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.ranks:
            raise UsageError(f"rank={self.rank}: take 0 to {self.ranks - 1}, the ranks that are kept")
        for name in ("confident", "unsure", "probability", "popular"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UsageError(f"{name}={value}: take a number from 0 to 1")
        if self.unsure >= self.confident:
            raise UsageError(f"unsure={self.unsure} is not below confident={self.confident}")


@dataclass(frozen=True)
class Scenarios:
    """What a model said, with flags and scenarios.

    Attributes:
        frame: one row a prompt and rank: relation, subject, fictional, template, prompt, rank, token_id, prediction,
            probability, gold, correct (it begins a right answer), ambiguous (and a wrong one), label (it begins some
            answer of the relation), content (it says something), `BIASES`, bias (their names), consistency (share of
            wordings with this prediction and bias), agreement (with this prediction), mean_probability, popularity,
            popularity_rank (share of the relation's subjects that are not above), scenario (or ""), twin and twin_id
            (of generic rows: another subject of as many tokens, and what the model says of it).
        meta: model, rules, popularity proxy, seed.
    """

    frame: pd.DataFrame
    tokens: Tokens
    meta: Mapping[str, Any]

    def census(self, by: Sequence[str] = ("relation",)) -> pd.DataFrame:
        """How often which scenario comes up, and how much of what is known may rest on heuristics.

        Returns:
            one row a group: subjects, prompts (of real subjects), known (best prediction right), biased (share of the
            known with a bias flag), pure (share of the known that is exact recall), and rows of each scenario.
        """
        rows = []
        for key, part in self.frame.groupby(list(by), sort=True):
            best = part[~part["fictional"] & (part["rank"] == 0) & (part["relation"] != GENERIC)]
            known = best[best["correct"]]
            counts = part["scenario"].value_counts()
            rows.append(
                {
                    **dict(zip(by, key, strict=True)),
                    "subjects": best["subject"].nunique(),
                    "prompts": len(best),
                    "known": len(known),
                    "biased": (known["bias"] != NONE).mean() if len(known) else math.nan,
                    "pure": (known["scenario"] == EXACT).mean() if len(known) else math.nan,
                    **{name: int(counts.get(name, 0)) for name in SCENARIOS},
                }
            )
        return pd.DataFrame(rows)


def scenarios(
    subject: CausalLM,
    *,
    relations: str | Sequence[str] | None = None,
    subjects: int | None = None,
    sentences: int = 200,
    rules: Rules | None = None,
    popularity: str | Mapping[str, float] | None = "token_rank",
    texts: Mapping[str, str] | None = None,
    seed: int = 0,
    speak: Speaker | None = None,
    progress: Progress | None = None,
) -> Scenarios:
    """Ask the model every wording about real and fictional subjects, and sort what it says into scenarios.

    Args:
        relations: of `interp.tasks.fictional.named()`; default all.
        subjects: real subjects of each relation, and as many fictional ones, drawn by the seed; default all.
        sentences: openings of plain sentences.
        popularity: `token_rank`, a count for each subject (`corpus_counts`, or page views at hand), or None.
        texts: what the sentences are of; default the text of the task `prose`.
        speak: how the model is asked; default its own logits.

    Raises:
        UsageError: a relation without fictional subjects, or a popularity that is none.
    """
    rules = rules or Rules()
    tokens = subject.tokens
    speak = speak or speaker(subject)
    chosen = (
        named() if relations is None else tuple(dict.fromkeys(listed("scenarios", "relations", relations)))
    )
    if popularity is None and rules.popular is not None:
        raise UsageError("popularity=None goes with rules that ask for none: Rules(popular=None)")
    if isinstance(popularity, str) and popularity != "token_rank":
        raise UsageError(f"popularity is {popularity!r}; take token_rank, counts by subject, or None")
    parts = []
    for name in chosen:
        table, sort = relation(name), sort_of(name)
        draw = np.random.default_rng(stable_seed("scenarios", name, seed))
        real = _drawn(list(table.facts), subjects, draw)
        made_up = _drawn(list(sort.fictional), subjects, draw)
        part = _said(tokens, speak, table, real, made_up, rules, progress)
        part = _flagged(part, table, _bias(tokens, speak, table, sort, real + made_up, rules))
        part["popularity"] = math.nan
        if popularity is not None:
            part["popularity"] = part["subject"].map(_popularity(tokens, real, popularity))
        parts.append(_counted(part, len(table.wordings), rules))
    parts.append(_generic(tokens, speak, openings(sentences, texts, seed), rules, seed))
    frame = pd.concat(parts, ignore_index=True)
    proxy = popularity if isinstance(popularity, str) else "counts" if popularity else None
    meta = {"model": subject.name, "rules": asdict(rules), "popularity_proxy": proxy, "seed": seed}
    return Scenarios(frame, tokens, meta)


def token_rank(tokens: Tokens, subjects: Sequence[str]) -> dict[str, float]:
    """Popularity by the tokenizer: log-frequency of a subject's tokens by Zipf's law, the sum of -log(1 + id).

    Ids of a BPE tokenizer are given in order of merging, so by frequency in the text that it was trained on. A weak
    proxy: long names count as rare, and names of common words as common.
    """
    ids = continuations(tokens, "of", [" " + s for s in subjects])
    return {s: -float(np.log1p(i).sum()) for s, i in zip(subjects, ids, strict=True)}


def corpus_counts(path: str | Path, subjects: Sequence[str]) -> dict[str, float]:
    """How often each subject stands in a text file.

    Raises:
        MissingResource: the file cannot be read.
        BrokenData: it is no UTF-8 text.
    """
    text = file_text(path)
    return {s: float(text.count(s)) for s in subjects}


def _drawn(names: list[str], n: int | None, rng: np.random.Generator) -> list[str]:
    order = rng.permutation(len(names))
    return [names[i] for i in sorted(order[: n if n is not None else len(names)])]


def text_of(pieces: Sequence[Piece]) -> str:
    """The text of pieces."""
    return "".join(p.text for p in pieces)


def _said(
    tokens: Tokens,
    speak: Speaker,
    table: Relation,
    real: Sequence[str],
    made_up: Sequence[str],
    rules: Rules,
    progress: Progress | None,
) -> pd.DataFrame:
    """One row a subject, wording and rank."""
    asked = [(s, t) for s in (*real, *made_up) for t in range(len(table.wordings))]
    texts = [worded(table.wordings[t], s) for s, t in asked]
    said = likeliest(speak, [tokens.encode(x).ids for x in texts], rules.ranks, progress=progress)
    invented = set(made_up)
    return pd.DataFrame(
        [
            {
                "relation": table.name,
                "subject": s,
                "fictional": s in invented,
                "template": t,
                "prompt": text,
                "rank": rank,
                "token_id": token,
                "prediction": tokens.decode([token]).strip(),
                "probability": p,
            }
            for (s, t), text, best in zip(asked, texts, said, strict=True)
            for rank, (token, p) in enumerate(best)
        ]
    )


Biased = tuple[list[set[str]], dict[str, set[str]]]
"""What each wording says without a subject, and what each subject's names say on their own."""


def _bias(
    tokens: Tokens, speak: Speaker, table: Relation, sort: Sort, subjects: Sequence[str], rules: Rules
) -> Biased:
    def best(texts: Sequence[str]) -> list[set[str]]:
        said = likeliest(speak, [tokens.encode(x).ids for x in texts], rules.bias_top)
        return [{tokens.decode([i]).strip().casefold() for i, _ in row} for row in said]

    by_wording = [set().union(*best([worded(w, s) for s in sort.neutral])) for w in table.wordings]
    by_name: dict[str, set[str]] = {}
    if sort.name_probes:
        names = sorted({part for s in subjects for part in s.split()})
        probes = [p.replace("{x}", part) for part in names for p in sort.name_probes]
        said = best(probes)
        each = len(sort.name_probes)
        by_part = {part: set().union(*said[i * each : (i + 1) * each]) for i, part in enumerate(names)}
        by_name = {s: set().union(*(by_part[part] for part in s.split())) for s in subjects}
    return by_wording, by_name


def _flagged(frame: pd.DataFrame, table: Relation, biased: Biased) -> pd.DataFrame:
    """The frame with what each prediction is, and which bias may have made it."""
    by_wording, by_name = biased
    every = {a for s in table.facts for a in table.answers(s)}
    capital = all(o[0].isupper() for o in table.objects)
    rows = []
    for r in frame.itertuples():
        said = str(r.prediction)
        right = () if r.fictional else table.answers(r.subject)
        begins = {a for a in every if len(said) >= _LEAST and a.startswith(said)}
        says = capital and said[:1].isupper() and said.isalpha() and said.casefold() not in _EMPTY
        low = said.casefold()
        flags = {
            "prompt_bias": low in by_wording[r.template],
            "person_name": low in by_name.get(r.subject, ()),
            "string_overlap": bool(low) and low in r.subject.casefold(),
        }
        rows.append(
            {
                "gold": right[0] if right else "",
                "correct": bool(begins & set(right)),
                "ambiguous": bool(begins & set(right)) and bool(begins - set(right)),
                "label": bool(begins),
                "content": len(said) >= _LEAST and (bool(begins) or says),
                **flags,
                "bias": "+".join(k for k in BIASES if flags[k]) or NONE,
            }
        )
    return frame.join(pd.DataFrame(rows, index=frame.index))


def _popularity(
    tokens: Tokens, subjects: Sequence[str], popularity: str | Mapping[str, float]
) -> Mapping[str, float]:
    if isinstance(popularity, str):
        return token_rank(tokens, subjects)
    if missing := [s for s in subjects if s not in popularity]:
        raise UsageError(f"popularity has no count for {missing[0]!r}, and {len(missing) - 1} others")
    return {s: float(popularity[s]) for s in subjects}


def _counted(frame: pd.DataFrame, wordings: int, rules: Rules) -> pd.DataFrame:
    """The frame with consistency over wordings, ranks of popularity, and scenarios."""
    hits = frame[frame["rank"] <= rules.rank]
    about = ["relation", "subject", "prediction"]
    same = hits.groupby([*about, "bias"]).agg(
        consistency=("template", "nunique"), mean_probability=("probability", "mean")
    )
    any_bias = hits.groupby(about).agg(agreement=("template", "nunique"))
    frame = frame.merge(same.reset_index(), how="left", on=[*about, "bias"])
    frame = frame.merge(any_bias.reset_index(), how="left", on=about)
    for name in ("consistency", "agreement"):
        frame[name] = frame[name].fillna(0) / wordings
    frame["mean_probability"] = frame["mean_probability"].fillna(0.0)
    each = frame[~frame["fictional"]].drop_duplicates("subject").set_index("subject")["popularity"]
    frame["popularity_rank"] = frame["subject"].map(each.rank(pct=True))
    common = frame["popularity_rank"] >= rules.popular if rules.popular is not None else True
    rare = frame["popularity_rank"] < rules.popular if rules.popular is not None else True
    counts = (frame["rank"] <= rules.rank) & frame["content"]
    sure = (frame["consistency"] >= rules.confident) & (frame["mean_probability"] >= rules.probability)
    exact = sure & frame["correct"] & ~frame["ambiguous"] & (frame["bias"] == NONE) & common
    guess = (frame["agreement"] <= rules.unsure) & frame["label"] & rare
    shortcut = sure & frame["bias"].isin(BIASES)
    frame = frame.assign(scenario="", twin="", twin_id=-1)
    frame.loc[counts & ~frame["fictional"] & exact, "scenario"] = EXACT
    frame.loc[counts & ~frame["fictional"] & guess, "scenario"] = GUESSWORK
    frame.loc[counts & frame["fictional"] & shortcut, "scenario"] = HEURISTICS
    return frame


def _generic(
    tokens: Tokens, speak: Speaker, found: Sequence[Opening], rules: Rules, seed: int
) -> pd.DataFrame:
    """One row an opening: its likeliest next token, and that after another opening's subject."""
    prompts = [tokens.encode(text_of(o.pieces())) for o in found]
    twins = [_twin(tokens, o, found, seed) for o in found]
    said = likeliest(speak, [p.ids for p in prompts], 1)
    swapped = [text_of(o.pieces(twin)) for o, twin in zip(found, twins, strict=True)]
    other = likeliest(speak, [tokens.encode(x).ids for x in swapped], 1)
    rows = []
    for i, o in enumerate(found):
        ((token, p),), ((twin_id, _),) = said[i], other[i]
        prediction = tokens.decode([token]).strip()
        rows.append(
            {
                "relation": GENERIC,
                "subject": o.subject,
                "fictional": False,
                "template": i,
                "prompt": text_of(o.pieces()),
                "rank": 0,
                "token_id": token,
                "prediction": prediction,
                "probability": p,
                "gold": o.last,
                "correct": bool(prediction) and o.last.startswith(prediction),
                "ambiguous": False,
                "label": False,
                "content": False,
                **dict.fromkeys(BIASES, False),
                "bias": NONE,
                "popularity": math.nan,
                "consistency": math.nan,
                "mean_probability": p,
                "agreement": math.nan,
                "popularity_rank": math.nan,
                "scenario": GENERIC,
                "twin": twins[i] or "",
                "twin_id": twin_id if twins[i] else -1,
            }
        )
    return pd.DataFrame(rows)


def _twin(tokens: Tokens, opening: Opening, found: Sequence[Opening], seed: int) -> str | None:
    """Another opening's subject of as many tokens, before and after which all tokenises alike.

    Subjects are tried in an order of the opening's own, so that not all openings have the same few twins.
    """
    pieces = opening.pieces()
    prompt = tokens.encode(text_of(pieces))
    (span,) = (s for s in token_spans(prompt, pieces) if s.role == "subject")
    others = sorted({o.subject for o in found} - {opening.subject})
    rng = np.random.default_rng(stable_seed("twin", text_of(pieces), seed))
    for i in rng.permutation(len(others))[:_TRIES]:
        swapped = tokens.encode(text_of(opening.pieces(others[i]))).ids
        alike = (
            swapped[: span.start] == prompt.ids[: span.start]
            and swapped[span.end :] == prompt.ids[span.end :]
        )
        if len(swapped) == len(prompt.ids) and alike:
            return others[i]
    return None
