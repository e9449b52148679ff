"""What the model would say at every layer: the logit lens, attributes in the subject's state, and their extraction.

A state is read as the model reads its last one: through the final norm and the unembedding (`norm=False` takes the bare
unembedding, as the code of Geva et al. 2023, arXiv 2304.14767, does, which tied GPT-2 weights forgive). All functions
run the model as it is at the time, so that `with subject.apply(ablate(...))` shows what a cut does to the states.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from interp.errors import UsageError
from interp.intervene.tracing.places import LAST, LAST_OF, places_of
from interp.locate.facts.flow import TOKENS, asked_all
from interp.measure.stats import proportion_ci
from interp.models.batch import plan
from interp.models.engines.base import Record
from interp.models.sites import Site
from interp.models.subject import CausalLM
from interp.tasks.base import Example, Task
from interp.trace.each import tail

ANY = -1
"""The layer of a row that counts prompts extracted in any layer."""

SUBLAYERS = ("attn_out", "mlp_out")
"""What extracts."""


def read(
    subject: CausalLM, hidden: Float[torch.Tensor, "n d"], *, norm: bool = True
) -> Float[torch.Tensor, "n v"]:
    """Logits of states as if the last block had left them; with `norm=False` by the bare unembedding."""
    with torch.no_grad():
        if not norm:
            head = subject.hf.get_output_embeddings()
            return head(hidden.to(head.weight.device)).float()
        return tail(subject, hidden).float()


def logit_lens(
    subject: CausalLM,
    task: Task | Sequence[Example],
    kind: str = "resid_post",
    *,
    places: Sequence[str] = (LAST_OF, LAST),
    layers: Iterable[int] | None = None,
    role: str = "subject",
    norm: bool = True,
    n: int | None = None,
) -> pd.DataFrame:
    """How the answer stands in the states of some tokens, layer by layer.

    Args:
        kind: which state: `resid_post`, `resid_mid`, `attn_out`, `mlp_out`, ...
        places: of tokens, see `interp.intervene.trace.places_of`; those of one place are averaged.
        norm: read through the final norm.

    Returns:
        one row a prompt, place and layer: example, cluster, kind, place, layer, probability and logprob (nats) of the
        answer, rank (1 is best, over the whole vocabulary), top (the best token's id, at the first token of the place).
    """
    rows: list[dict[str, Any]] = []
    examples = asked_all(subject, task, n)
    for i, example, where, states in _states(subject, examples, kind, places, layers, role):
        answer = example.answer_ids[0]
        for layer, hidden in states.items():
            logits = read(subject, hidden, norm=norm)
            logprob = logits.log_softmax(-1)[:, answer]
            rank = 1 + (logits > logits[:, [answer]]).sum(-1)
            top = logits.argmax(-1)
            for place in dict.fromkeys(where):
                at = [j for j, name in enumerate(where) if name == place]
                rows.append(
                    {
                        "example": i,
                        "cluster": example.cluster or example.key(),
                        "kind": kind,
                        "place": place,
                        "layer": layer,
                        "probability": float(logprob[at].exp().mean()),
                        "logprob": float(logprob[at].mean()),
                        "rank": float(rank[at].float().mean()),
                        "top": int(top[at[0]]),
                    }
                )
    return pd.DataFrame(rows)


def _states(
    subject: CausalLM,
    examples: Sequence[Example],
    kind: str,
    places: Sequence[str],
    layers: Iterable[int] | None,
    role: str,
) -> list[tuple[int, Example, list[str], dict[int, torch.Tensor]]]:
    """Of each prompt the places that it has, token by token, and their states by layer."""
    chosen = list(range(subject.n_layers) if layers is None else layers)
    found: dict[int, tuple[list[str], dict[int, torch.Tensor]]] = {}
    for group in plan([len(e.ids) for e in examples], TOKENS):
        batch = subject.batch([examples[i] for i in group])
        trace = subject.run(batch, {Site(kind, layer): Record() for layer in chosen}, keep=1)
        for row, i in enumerate(group):
            names = places_of(examples[i], role)
            at = [p for p, place in enumerate(names) if place in places]
            columns = torch.tensor(at, dtype=torch.long) + int(batch.pad[row])
            states = {layer: trace[Site(kind, layer)][row][columns] for layer in chosen}
            found[i] = [names[p] for p in at], states
    if not any(where for where, _ in found.values()):
        raise UsageError(f"places={list(places)}: no example has such a token")
    return [(i, examples[i], *found[i]) for i in range(len(examples)) if found[i][0]]


def extracted(
    subject: CausalLM,
    task: Task | Sequence[Example],
    *,
    layers: Iterable[int] | None = None,
    norm: bool = True,
    n: int | None = None,
) -> pd.DataFrame:
    """Whether a sublayer alone names what the model then says, at the last token of each prompt.

    Returns:
        one row a prompt, kind (`attn_out`, `mlp_out`) and layer: example, cluster, kind, layer, hit (the prompt's first
        predicted token is the sublayer's first).
    """
    examples = asked_all(subject, task, n)
    chosen = list(range(subject.n_layers) if layers is None else layers)
    hits = {kind: np.zeros((len(examples), len(chosen)), dtype=bool) for kind in SUBLAYERS}
    for group in plan([len(e.ids) for e in examples], TOKENS):
        batch = subject.batch([examples[i] for i in group])
        last = batch.answer_start[:, None]
        sites = [Site(kind, layer) for kind in SUBLAYERS for layer in chosen]
        trace = subject.run(batch, {site: Record(last) for site in sites}, keep=1)
        said = trace.logits[:, -1].argmax(-1)
        for kind in SUBLAYERS:
            for j, layer in enumerate(chosen):
                named = read(subject, trace[Site(kind, layer)][:, 0], norm=norm).argmax(-1)
                hits[kind][group, j] = (named.to(said.device) == said).cpu().numpy()
    each = len(SUBLAYERS) * len(chosen)
    return pd.DataFrame(
        {
            "example": np.arange(len(examples)).repeat(each),
            "cluster": np.array([e.cluster or e.key() for e in examples]).repeat(each),
            "kind": list(np.repeat(SUBLAYERS, len(chosen))) * len(examples),
            "layer": chosen * (len(SUBLAYERS) * len(examples)),
            "hit": np.concatenate([hits[kind] for kind in SUBLAYERS], axis=1).ravel(),
        }
    )


def extraction(
    subject: CausalLM,
    task: Task | Sequence[Example],
    *,
    layers: Iterable[int] | None = None,
    norm: bool = True,
    n: int | None = None,
) -> pd.DataFrame:
    """Attribute extraction rate: how often a sublayer alone names what the model then says, at the last token.

    Returns:
        one row a kind (`attn_out`, `mlp_out`) and layer, and one with layer -1 for prompts extracted in any of them:
        kind, layer, rate (share of prompts whose first predicted token is the sublayer's first), lo, hi (95 %, over
        clusters), n.
    """
    return extraction_rates(extracted(subject, task, layers=layers, norm=norm, n=n))


def extraction_rates(hits: pd.DataFrame) -> pd.DataFrame:
    """The table of `extraction`, from that of `extracted`."""
    rows = []
    for kind, part in hits.groupby("kind", sort=False):
        wide = part.pivot(index=["example", "cluster"], columns="layer", values="hit")
        clusters = wide.index.get_level_values("cluster").to_numpy()
        columns = [(int(layer), wide[layer]) for layer in part["layer"].unique()]
        for layer, column in [*columns, (ANY, wide.any(axis=1))]:
            lo, hi = proportion_ci(column.to_numpy(float), clusters)
            rate = float(column.mean())
            rows.append({"kind": kind, "layer": layer, "rate": rate, "lo": lo, "hi": hi, "n": len(wide)})
    return pd.DataFrame(rows)


def enrichment(
    subject: CausalLM,
    task: Task | Sequence[Example],
    *,
    k: int = 50,
    attributes: dict[str, Sequence[int]] | None = None,
    place: str = LAST_OF,
    kind: str = "resid_post",
    layers: Iterable[int] | None = None,
    role: str = "subject",
    norm: bool = True,
    n: int | None = None,
) -> pd.DataFrame:
    """How many of a subject's attributes the lens finds in its state, against the states of other subjects.

    Geva et al. count words of the subject's encyclopedia page; here attributes are known facts, so that it runs
    offline. The control looks for the same attributes in the states of the other subjects of the data, so that a lens
    that shows the same tokens for every subject finds no difference.

    Args:
        k: tokens that count as found.
        attributes: token ids by cluster (the subject); default the tokens that are asked for of all its examples.
        place: of the token that is read.

    Returns:
        one row a prompt and layer: example, cluster, place, layer, rate (share of the subject's attributes in the first
        k tokens), control (share of the same attributes there in the states of the others: mean over subjects).

    Raises:
        UsageError: a subject has no attributes, or there is but one subject.
    """
    examples = asked_all(subject, task, n)
    if attributes is None:
        asked_of: dict[str, dict[int, None]] = {}
        for e in examples:
            asked_of.setdefault(e.cluster or e.key(), {})[e.answer_ids[0]] = None
        attributes = {name: list(tokens) for name, tokens in asked_of.items()}
    if lacking := [e.cluster for e in examples if not attributes.get(e.cluster or e.key())]:
        raise UsageError(f"attributes: there are none of {lacking[0]!r}; name its token ids")
    rows: list[dict[str, Any]] = []
    shown: dict[int, dict[str, list[set[int]]]] = {}
    for i, example, _, states in _states(subject, examples, kind, [place], layers, role):
        cluster = example.cluster or example.key()
        for layer, hidden in states.items():
            top = read(subject, hidden, norm=norm).topk(k, dim=-1).indices
            best = [set(row) for row in top.tolist()]
            shown.setdefault(layer, {}).setdefault(cluster, []).extend(best)
            rate = _share(set(attributes[cluster]), best)
            rows.append({"example": i, "cluster": cluster, "place": place, "layer": layer, "rate": rate})
    if len({row["cluster"] for row in rows}) < 2:
        raise UsageError("enrichment compares with the states of other subjects, and the data has none")
    for row in rows:
        own, found = set(attributes[row["cluster"]]), shown[row["layer"]]
        row["control"] = float(
            np.mean([_share(own, best) for c, best in found.items() if c != row["cluster"]])
        )
    return pd.DataFrame(rows)


def _share(attributes: set[int], shown: Sequence[set[int]]) -> float:
    """Share of the attributes that are among the first tokens: mean over states."""
    return float(np.mean([len(attributes & best) / len(attributes) for best in shown]))
