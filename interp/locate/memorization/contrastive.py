"""Contrastive gradients: the weights that move the target items most, and an edit that moves nothing else.

After Stoehr et al. 2024 (arXiv 2403.19851): the weights of largest gradient of the target items' objective are found,
and these alone are trained until the target is forgotten, while KL divergence holds the predictions on items to keep.

At the intact model that divergence is zero, and so is its gradient: the published choice of weights sees the target
items alone. `guarded` divides by how strongly a weight moves single items to keep, and so is a contrast from the start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import pandas as pd
import torch
from jaxtyping import Float

from interp.errors import UsageError
from interp.intervene.weights import Delta, Stack
from interp.intervene.weights.ranking import pruned, top_masks
from interp.intervene.weights.tuning import substituted
from interp.locate.memorization.gating import frozen, together
from interp.locate.memorization.units import UnitLocator, unit_table
from interp.measure.memorization.objective import drift, ignorance, loss, predictions
from interp.models.cache import Progress, quiet
from interp.models.parts import Part, weight_of
from interp.models.subject import CausalLM

if TYPE_CHECKING:
    from interp.models.pipeline import Pipeline

Rule = Literal["guarded", "gradient"]
RULES: tuple[Rule, ...] = get_args(Rule)
Weights = dict[Part, Float[torch.Tensor, "out in"]]


class ContrastiveGradients(UnitLocator[Sequence[Any]]):
    """Weights by the gradient of the target items' objective, against that of single items to keep.

    Args:
        rule: `guarded`, |g| over the root mean square of the gradients of items to keep; or `gradient`, |g| alone.
        share: of all weights of the parts, that are edited.
        damping: added to what `guarded` divides by, as a share of its root mean square over all weights.
        kind: of the parts, see `interp.models.parts.parts`.
        draws, seed: of (t, eps) in a pipeline, see `interp.measure.memorization.objective.loss`.

    After `fit(subject, items, reference=others)` (see `UnitLocator`):
        weights_: by rule and part, the score of each weight.
        scores_: a unit's is the length of its column of scores; methods are the rules, the chosen one first.

    Raises:
        UsageError: no such rule, or no items to keep.
    """

    keeps = True

    def __init__(
        self,
        rule: Rule = "guarded",
        share: float = 0.001,
        damping: float = 0.1,
        kind: str = "ff_out",
        draws: int = 8,
        seed: int = 0,
    ):
        self.rule = rule
        self.share = share
        self.damping = damping
        self.kind = kind
        self.draws = draws
        self.seed = seed

    def _check(self, subject: CausalLM | Pipeline) -> None:
        if self.rule not in RULES:
            raise UsageError(f"rule={self.rule!r}: write one of {', '.join(RULES)}")

    def _learn(self, sides: tuple[Sequence[Any], ...], progress: Progress) -> None:
        """One backward pass for the target items together, one for each item to keep."""
        self.items_, self.keep_ = (tuple(side) for side in sides)
        leaves = self._leaves()
        change = {part: torch.zeros_like(w) for part, w in leaves.items()}
        squares = {part: torch.zeros_like(w) for part, w in leaves.items()}
        size = together(self.subject_, self.items_, self.draws)
        for at in range(0, len(self.items_), size):
            for part, grad in self._gradient(leaves, self.items_[at : at + size]).items():
                change[part] += grad / len(self.items_)
        for i, item in enumerate(self.keep_):
            for part, grad in self._gradient(leaves, [item]).items():
                squares[part] += grad.square() / len(self.keep_)
            progress(i + 1, len(self.keep_), "gradients of items to keep")
        total = sum(float(s.sum()) for s in squares.values()) / sum(s.numel() for s in squares.values())
        floor = self.damping * total**0.5
        self.weights_: dict[str, Weights] = {
            "guarded": {p: change[p].abs() / (squares[p].sqrt() + floor) for p in change},
            "gradient": {p: change[p].abs() for p in change},
        }
        order = [self.rule, *(rule for rule in RULES if rule != self.rule)]
        self.scores_ = pd.concat([self._table(rule) for rule in order], ignore_index=True)

    def _table(self, rule: str) -> pd.DataFrame:
        return unit_table(rule, {p: w.norm(dim=0, keepdim=True) for p, w in self.weights_[rule].items()})

    def _leaves(self) -> Weights:
        own = {part: weight_of(self.subject_, part) for part in self.parts_}
        return {part: w.detach().float().clone().requires_grad_() for part, w in own.items()}

    def _gradient(self, leaves: Weights, items: Sequence[Any]) -> Mapping[Part, torch.Tensor]:
        """Of the sum of the items' objectives by the weights."""
        with frozen(self.subject_), substituted(self.subject_, {p: w for p, w in leaves.items()}):
            value = loss(self.subject_, items, draws=self.draws, seed=self.seed).sum()
            grads = torch.autograd.grad(value, list(leaves.values()))
        return dict(zip(leaves, grads, strict=True))

    def edit(
        self,
        k: int | None = None,
        *,
        share: float | None = None,
        method: str | None = None,
        level: float | None = None,
        keep: float = 1.0,
        steps: int = 50,
        rate: float = 0.1,
        progress: Progress = quiet,
    ) -> Stack:
        """The chosen weights trained until the target items are forgotten and the others are predicted as before.

        Args:
            k: in place of single weights, whole units, as many, set to zero.
            share: of all weights, that are trained; default that of the locator. method: the rule; default likewise.
            level: objective at which an item counts as forgotten; default that of who knows nothing, which is far from
                where an image that was never trained on lies: give its objective in a pipeline.
            keep: weight of the divergence on the items to keep.
            steps, rate: of Adam, at most; its rate is in root mean squares of a part's weights.
        """
        if k is not None:
            return super().edit(k, share=share, method=method)
        masks = self._masks(share, method)
        subject = self.subject_
        own, leaves = self._leaves(), self._leaves()
        groups = [
            {"params": [w], "lr": self.rate_of(own[part], rate)}
            for part, w in leaves.items()
            if masks[part].any()
        ]
        optimizer = torch.optim.Adam(groups)
        end = ignorance(subject) if level is None else level
        with torch.no_grad():
            before = predictions(subject, self.keep_, draws=self.draws, seed=self.seed)
        for step in range(steps):
            optimizer.zero_grad()
            with frozen(subject), substituted(subject, {p: w for p, w in leaves.items()}):
                losses = loss(subject, self.items_, draws=self.draws, seed=self.seed)
                if bool((losses >= end).all()):
                    break
                now = predictions(subject, self.keep_, draws=self.draws, seed=self.seed)
                (keep * drift(subject, now, before).mean() - losses.clamp(max=end).mean()).backward()
            for part, leaf in leaves.items():
                assert leaf.grad is not None
                leaf.grad.mul_(masks[part])
            optimizer.step()
            progress(step + 1, steps, "forgetting")
        changes = {part: (leaf - own[part]).detach() for part, leaf in leaves.items() if masks[part].any()}
        return Stack(tuple(Delta(p, c, None, self.fingerprint_) for p, c in sorted(changes.items())))

    @staticmethod
    def rate_of(weight: Float[torch.Tensor, "out in"], rate: float) -> float:
        """Step of Adam in a weight's own size."""
        return rate * float(weight.detach().square().mean().sqrt())

    def cut(self, share: float | None = None, method: str | None = None) -> Stack:
        """The chosen weights set to zero."""
        return pruned(self.subject_, self._masks(share, method))

    def _masks(self, share: float | None, method: str | None) -> dict[Part, torch.Tensor]:
        self.ranking(method)
        self._unchanged()
        scores = self.weights_[method or self.rule]
        found = top_masks(scores, share or self.share, per="all")
        return {part: mask.to(scores[part].device) for part, mask in found.items()}
