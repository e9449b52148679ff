"""MEMIT: many facts written over a window of layers at once (Meng et al. 2022, arXiv 2210.07229).

For each fact, what the residual stream should be at the last token of its subject, behind the window, is searched (see
`values`). Then, layer by layer, each down projection takes an equal share of what is still missing: the change of
rank n that brings its n keys K to their shares R and costs least on other keys,

    W + a b,    a = (lambda C + K K^T)^-1 K,    b = R

with keys and residuals measured again after each layer. C are the second moments of the keys and lambda says how much
they weigh against the facts; for lambda -> 0 all n keys get their whole share, and one fact in one layer is ROME.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float

from interp.errors import UsageError
from interp.intervene.edit import WeightEdit
from interp.intervene.facts.covariance import Moments
from interp.intervene.facts.delta import FactEdit
from interp.intervene.facts.requests import Prefixes, Rewrite
from interp.intervene.facts.rome import RIDGE, check_moments, default_prefixes, shared_recipe
from interp.intervene.facts.values import Search, mean_at, search_delta
from interp.models.cache import Progress, quiet
from interp.models.sites import Site
from interp.models.subject import CausalLM

SEARCH = Search(step=0.1, clamp=0.75)
"""How changes of the residual stream are searched, which is longer than what an MLP adds to it."""


@dataclass(frozen=True, eq=False)
class Residuals:
    """What facts lack behind a layer.

    Attributes:
        layer: the layer.
        deltas: what has to be added to the residual stream at the last token of each fact's subject, n d.
        history: of each fact, the steps of its search.
        prefixes, search: how they were found.
    """

    layer: int
    deltas: Float[torch.Tensor, "n d"]
    history: tuple[tuple[Mapping[str, float], ...], ...]
    prefixes: Prefixes
    search: Search

    def of(self, numbers: Sequence[int]) -> Residuals:
        """Those of some of the facts."""
        chosen = list(numbers)
        return replace(self, deltas=self.deltas[chosen], history=tuple(self.history[i] for i in chosen))


def memit(
    subject: CausalLM,
    rewrites: Sequence[Rewrite],
    layers: Sequence[int],
    moments: Moments | None,
    *,
    weight: float = 1.0,
    prefixes: Prefixes | None = None,
    search: Search | None = None,
    ridge: float = RIDGE,
    found: Residuals | None = None,
    progress: Progress = quiet,
) -> FactEdit:
    """Edits of a window of layers after which the model says every target, computed under the interventions applied.

    Args:
        layers: whose down projections are edited, each taking its share.
        moments: of this model (see `second_moments`); None takes all directions for equally common.
        weight: lambda, in units of d_mlp: k^T C^-1 k averages to d_mlp over text, so that at 1 an average key gets
            half of its share. The reference's 15000 and 20000 are 0.9 for GPT-J and 3.1 for GPT-2 XL.
        prefixes, ridge: as for `rome`.
        search: how residuals are searched; default `SEARCH`.
        found: residuals of these facts, in this order, behind the last layer; `prefixes` and `search` are then theirs.
        progress: told about facts whose residual is found.

    Raises:
        UsageError: no rewrites or layers; keys that depend on each other at weight 0; residuals of other facts or
            another layer; a family whose MLPs write through a norm (Gemma 2 and 3, OLMo 2), so that no share of a
            residual is a change of weights; and as for `rome`.
    """
    window = sorted(set(layers))
    if not rewrites or not window:
        raise UsageError("memit needs at least one rewrite and one layer")
    if weight < 0:
        raise UsageError(f"weight is {weight}; take 0 or more")
    for layer in window:
        subject.check(Site("down", layer))
    check_moments(subject, moments)
    if found is None:
        found = residuals(subject, rewrites, window[-1], prefixes=prefixes, search=search, progress=progress)
    elif found.layer != window[-1] or len(found.deltas) != len(rewrites):
        raise UsageError(
            f"residuals of {len(found.deltas)} facts behind layer {found.layer}, for {len(rewrites)} facts and a "
            f"window that ends with layer {window[-1]}; take those of these facts and that layer"
        )
    prefixes = found.prefixes
    end = Site("resid_post", window[-1])
    target = mean_at(subject, rewrites, [end], prefixes)[end] + found.deltas.double().cpu()
    edits: list[WeightEdit] = []
    for number, layer in enumerate(window):
        with ExitStack() as stack:
            if edits:
                stack.enter_context(subject.apply(*edits))
            read = mean_at(subject, rewrites, [Site("neurons", layer), end], prefixes)
        keys, missing = read[Site("neurons", layer)].T, target - read[end]
        a = shares(keys, layer, moments, weight * subject.d_mlp, ridge)
        b = missing / (len(window) - number)
        edits.append(WeightEdit(layer, "down", a.float(), b.float()))
    recipe = {"method": "memit", "layers": window, "weight": weight}
    recipe |= shared_recipe(prefixes, found.search, moments, ridge)
    return FactEdit(tuple(edits), tuple(rewrites), subject.fingerprint, recipe, found.history)


def residuals(
    subject: CausalLM,
    rewrites: Sequence[Rewrite],
    layer: int,
    *,
    prefixes: Prefixes | None = None,
    search: Search | None = None,
    progress: Progress = quiet,
) -> Residuals:
    """What each fact lacks behind a layer, found by itself: the longest part of `memit`, and the same for all windows
    that end there, weights, and choices among the facts.

    Raises:
        UsageError: no such layer; a family whose MLPs write through a norm.
        EngineError: the engine keeps no graph.
    """
    end = Site("resid_post", layer)
    subject.check(end)
    if subject.family.post_norm:
        raise UsageError(
            f"{subject.name} ({subject.family.name}): its MLPs write through a norm, so a residual cannot be shared "
            "out among them; take rome"
        )
    prefixes = prefixes or default_prefixes(subject)
    search = search or SEARCH
    deltas, history = [], []
    for number, rewrite in enumerate(rewrites):
        found = search_delta(subject, rewrite, end, prefixes, search)
        deltas.append(found.delta.float().cpu())
        history.append(found.history)
        progress(number + 1, len(rewrites), "residuals")
    return Residuals(layer, torch.stack(deltas), tuple(history), prefixes, search)


def shares(
    keys: Float[torch.Tensor, "m n"], layer: int, moments: Moments | None, lam: float, ridge: float
) -> Float[torch.Tensor, "m n"]:
    """(lambda C + K K^T)^-1 K, as C^-1 K (lambda + K^T C^-1 K)^-1: n x n in place of m x m, and lambda may be 0.

    Raises:
        UsageError: the keys depend on each other and lambda does not set them apart.
    """
    keys = keys.double()
    white = keys if moments is None else moments.whitened(layer, keys, ridge).cpu()
    inner = keys.T @ white
    inner = (inner + inner.T) / 2 + lam * torch.eye(len(inner), dtype=inner.dtype)
    factor, failed = torch.linalg.cholesky_ex(inner)
    pivots = factor.diagonal()
    if failed or float(pivots.min()) < 1e-6 * float(pivots.max()):
        raise UsageError(
            f"layer {layer}: the keys of two facts depend on each other (the same subject twice?); take a larger weight"
        )
    return torch.cholesky_solve(white.T, factor).T
