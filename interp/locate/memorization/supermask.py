"""BalancedSubnet: a mask of weights, learned so that what is kept forgets the target items and keeps the others.

Each weight has a score; the weights of highest score make the subnet, and gradients pass the choice straight through,
as if every weight were multiplied with its score (Ramanujan et al. 2020; on memorization Sakarvadia et al. 2024, arXiv
2410.02159). The score falls where a weight serves the target items and not the others. The lowest weights are cut.

Two things differ from the published rule. The objective of an item stops counting once it is at the level of knowing
nothing, since without an end to it the search spends itself on one item. And scores start equal, so that the order of
the weights is what the items say and not what the draw of the start was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float

from interp.errors import UsageError
from interp.intervene.weights import Stack
from interp.intervene.weights.ranking import pruned, top_masks
from interp.intervene.weights.tuning import substituted
from interp.locate.memorization.gating import frozen, together
from interp.locate.memorization.units import UnitLocator, unit_table
from interp.measure.memorization.objective import ignorance, loss
from interp.models.cache import Progress
from interp.models.parts import Part, weight_of
from interp.models.subject import CausalLM

if TYPE_CHECKING:
    from interp.models.pipeline import Pipeline

Weights = Mapping[Part, Float[torch.Tensor, "out in"]]


class BalancedSubnet(UnitLocator[Sequence[Any]]):
    """Weights that serve the target items and not the others, by a learned mask.

    Args:
        share: of each part's weights that the mask leaves out while it is learned.
        steps, rate, momentum, decay: of stochastic gradient descent on the scores.
        balance: weight of the target items against the others.
        kind: of the parts, see `interp.models.parts.parts`.
        draws: of (t, eps) in a pipeline, new ones at each step. seed: of the draws.

    After `fit(subject, items, reference=others)` (see `UnitLocator`):
        weights_: by part, the fall of each weight's score: the higher, the more it serves the target items alone.
        scores_: a unit's is the mean over its column; the method is `balanced_subnet`.
        history_: of each step the mean objective of the target items, and of the others.

    Raises:
        UsageError: no reference items, or a share outside 0 to 1.
    """

    keeps = True

    def __init__(
        self,
        share: float = 0.05,
        steps: int = 40,
        rate: float = 0.1,
        momentum: float = 0.9,
        decay: float = 5e-4,
        balance: float = 1.0,
        kind: str = "ff_out",
        draws: int = 8,
        seed: int = 0,
    ):
        self.share = share
        self.steps = steps
        self.rate = rate
        self.momentum = momentum
        self.decay = decay
        self.balance = balance
        self.kind = kind
        self.draws = draws
        self.seed = seed

    def _check(self, subject: CausalLM | Pipeline) -> None:
        if not 0 < self.share < 1:
            raise UsageError(f"share={self.share}: write a share of the weights between 0 and 1")

    def _learn(self, sides: tuple[Sequence[Any], ...], progress: Progress) -> None:
        (data, reference), subject = sides, self.subject_
        own = {part: weight_of(subject, part) for part in self.parts_}
        scores = {part: torch.ones_like(w, dtype=torch.float32).requires_grad_() for part, w in own.items()}
        optimizer = torch.optim.SGD(
            list(scores.values()), lr=self.rate, momentum=self.momentum, weight_decay=self.decay
        )
        self.history_: list[tuple[float, float]] = []
        end = ignorance(subject)
        for step in range(self.steps):
            optimizer.zero_grad()
            means = []
            for items, weight in ((data, -self.balance), (reference, 1.0)):
                means.append(self._descend(subject, items, weight / len(items), end, own, scores, step))
            optimizer.step()
            self.history_.append((means[0], means[1]))
            progress(step + 1, self.steps, "balanced subnet")
        self.weights_ = {part: 1 - values.detach() for part, values in scores.items()}
        self.scores_ = unit_table(
            "balanced_subnet", {p: w.mean(0, keepdim=True) for p, w in self.weights_.items()}
        )

    def _descend(
        self,
        subject: CausalLM | Pipeline,
        items: Sequence[Any],
        weight: float,
        end: float,
        own: Weights,
        scores: Weights,
        step: int,
    ) -> float:
        """Add one side's gradients to those of the scores; its mean objective."""
        total = 0.0
        size = together(subject, items, self.draws)
        with frozen(subject):
            for at in range(0, len(items), size):
                masked: dict[str | Part, torch.Tensor] = {
                    p: own[p] * _through(scores[p], self._kept(scores[p])) for p in scores
                }
                with substituted(subject, masked):
                    losses = loss(subject, items[at : at + size], draws=self.draws, seed=self.seed + step)
                    (weight * (losses.clamp(max=end) if weight < 0 else losses).sum()).backward()
                total += float(losses.detach().sum())
        return total / len(items)

    def _kept(self, score: Float[torch.Tensor, "out in"]) -> Bool[torch.Tensor, "out in"]:
        """All but the lowest share, by size of the score as published; none while all are equal."""
        size = score.detach().abs()
        if float(size.max()) == float(size.min()):
            return torch.ones_like(size, dtype=torch.bool)
        kept = torch.ones(size.numel(), dtype=torch.bool, device=size.device)
        kept[size.flatten().topk(max(1, int(self.share * size.numel())), largest=False).indices] = False
        return kept.view_as(size)

    def edit(self, k: int | None = None, *, share: float | None = None, method: str | None = None) -> Stack:
        """The weights that serve the target items most set to zero.

        Args:
            k: in place of single weights, whole units, as many. share: of the weights of each part; default that of the
                locator.
        """
        if k is not None:
            return super().edit(k, share=share, method=method)
        self.ranking(method)
        return pruned(self.subject_, top_masks(self.weights_, share or self.share, per="part"))


def _through(
    score: Float[torch.Tensor, "out in"], kept: Bool[torch.Tensor, "out in"]
) -> Float[torch.Tensor, "out in"]:
    """The mask as a number, with the gradient of the score."""
    return kept.to(score.dtype) + score - score.detach()
