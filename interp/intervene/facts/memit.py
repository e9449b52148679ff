"""MEMIT: many facts written over a window of layers at once (Meng et al. 2022, arXiv 2210.07229).

For each fact, what the residual stream should be at the last token of its subject, behind the window, is searched (see
`values`). Then, layer by layer, each down projection takes an equal share of what is still missing: the change of
rank n that brings its n keys K to their shares R and costs least on other keys,

    W + a b,    a = (lambda C + K K^T)^-1 K,    b = R

with keys and residuals measured again after each layer. C are the second moments of the keys and lambda says how much
they weigh against the facts; for lambda -> 0 all n keys get their whole share, and one fact in one layer is ROME.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

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
        progress: told about facts whose residual is found.

    Raises:
        UsageError: no rewrites or layers; keys that depend on each other at weight 0; a family whose MLPs write
            through a norm, so that no share of a residual is a change of weights; and as for `rome`.
    """
    window = sorted(set(layers))
    if not rewrites or not window:
        raise UsageError("memit needs at least one rewrite and one layer")
    if weight < 0:
        raise UsageError(f"weight is {weight}; take 0 or more")
    for layer in window:
        subject.check(Site("down", layer))
    if subject.family.post_norm:
        raise UsageError(
            f"{subject.name} ({subject.family.name}): its MLPs write through a norm, so a residual cannot be shared "
            "out among them; take rome"
        )
    check_moments(subject, moments)
    prefixes = prefixes or default_prefixes(subject)
    search = search or SEARCH
    end = Site("resid_post", window[-1])
    wanted, history = [], []
    for number, rewrite in enumerate(rewrites):
        found = search_delta(subject, rewrite, end, prefixes, search)
        wanted.append(found.delta.double().cpu())
        history.append(found.history)
        progress(number + 1, len(rewrites), "residuals")
    target = mean_at(subject, rewrites, [end], prefixes)[end] + torch.stack(wanted)
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
    recipe |= shared_recipe(prefixes, search, moments, ridge)
    return FactEdit(tuple(edits), tuple(rewrites), subject.fingerprint, recipe, tuple(history))


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
