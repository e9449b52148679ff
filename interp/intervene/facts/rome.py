"""ROME: one fact written into one down projection by an edit of rank one (Meng et al. 2022, arXiv 2202.05262).

The down projection is read as a memory of key and value pairs. The key k of a fact is what the projection reads at the
last token of its subject, averaged over contexts. The value is what it has to give there so that the model says the
new object (see `values`). Among all changes of W under which k gives that value, the edit is the one that moves the
values of other keys least, in mean square over text: it is read along C^-1 k, C the second moments of the keys.

One key is used throughout. Where numerator and denominator have different ones, W k = v does not hold, and repeated
edits break models (Gupta et al. 2024, "Rebuilding ROME").
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float

from interp.errors import UsageError
from interp.intervene.edit import WeightEdit
from interp.intervene.facts.covariance import Moments
from interp.intervene.facts.delta import FactEdit
from interp.intervene.facts.requests import Prefixes, Rewrite
from interp.intervene.facts.values import Search, mean_at, search_delta
from interp.models.sites import Site
from interp.models.subject import CausalLM

RIDGE = 1e-3
"""What is added to the diagonal of C, as a share of its mean."""


def rome(
    subject: CausalLM,
    rewrite: Rewrite,
    layer: int,
    moments: Moments | None,
    *,
    prefixes: Prefixes | None = None,
    search: Search | None = None,
    ridge: float = RIDGE,
) -> FactEdit:
    """An edit of rank one after which the model says `rewrite.target`, computed under the interventions applied.

    Args:
        layer: whose down projection is edited.
        moments: of this model (see `second_moments`); None takes all directions for equally common.
        prefixes: contexts that key and value are averaged over; default ten that the model writes itself, and none;
            without a tokenizer ten of random tokens, and none.
        search: how the value is searched.
        ridge: added to the diagonal of the moments, as a share of its mean.

    Raises:
        UsageError: no such layer; moments of another model, or not of this layer.
        EngineError: the engine taps no projections or keeps no graph.

    Example:
        edit = rome(model, Rewrite.of_text(model, "The capital of {} is", "France", "Rome"), 8, second_moments(model))
        with model.apply(edit): ...
    """
    site = Site("down", layer)
    subject.check(site)
    check_moments(subject, moments)
    prefixes = prefixes or default_prefixes(subject)
    search = search or Search()
    (key,) = mean_at(subject, [rewrite], [Site("neurons", layer)], prefixes).values()
    found = search_delta(subject, rewrite, site, prefixes, search)
    a = rank_one(key[0], layer, moments, ridge)
    edit = WeightEdit(layer, "down", a[:, None].float(), found.delta[None])
    recipe = {
        "method": "rome",
        "layers": [layer],
        **shared_recipe(prefixes, search, moments, ridge),
    }
    return FactEdit((edit,), (rewrite,), subject.fingerprint, recipe, (found.history,))


def rank_one(
    key: Float[torch.Tensor, " m"], layer: int, moments: Moments | None, ridge: float
) -> Float[torch.Tensor, " m"]:
    """The direction a that an edit is read along: C^-1 k, scaled so that k a = 1, and k' a = 0 where k' C^-1 k = 0."""
    u = key.double() if moments is None else moments.whitened(layer, key[:, None], ridge)[:, 0].cpu()
    return u / (key.double() @ u)


def default_prefixes(subject: CausalLM) -> Prefixes:
    """Ten contexts, and none: what the model writes, or random tokens where it has no tokenizer."""
    return Prefixes.written(subject) if subject.has_tokens else Prefixes.random(subject)


def check_moments(subject: CausalLM, moments: Moments | None) -> None:
    """Raise `UsageError` unless the moments are this model's (with or without the interventions applied)."""
    if moments is not None and moments.model.partition("+")[0] != subject.weights_hash:
        raise UsageError(
            f"the moments are of another model than {subject.name}: second_moments(model) takes them"
        )


def shared_recipe(
    prefixes: Prefixes, search: Search, moments: Moments | None, ridge: float
) -> dict[str, Any]:
    """What both methods say of themselves; JSON-able."""
    return {
        "prefixes": prefixes.rule,
        "search": search.about(),
        "moments": None if moments is None else moments.about(),
        "ridge": ridge,
    }
