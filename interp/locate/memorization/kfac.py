"""Memory as flat curvature: what a weight does in directions that ordinary items hardly use, found without labels.

The curvature of the objective by a weight W is taken as a product of the second moments of what it reads, A = E[a a'],
and of the gradients by what it gives, G = E[g g'] (K-FAC, Martens and Grosse 2015). In their eigenvectors W falls into
components u_i v_j' with curvature Pi_ij = lambda_i mu_j. Skills that many items share lie where it is high; a memory of
one item, averaged over many, leaves it flat (arXiv 2510.24256). The edit keeps the components of highest curvature.
No item has to be named, so what is deleted is all that is flat: rare facts and arithmetic too.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float

from interp.errors import UsageError
from interp.intervene.weights import Delta, Stack
from interp.locate.memorization.gating import frozen, together
from interp.locate.memorization.units import UnitLocator, unit_table
from interp.measure.memorization.objective import loss
from interp.models.cache import Progress
from interp.models.parts import Part, Pass, replacing, weight_of
from interp.models.subject import CausalLM

if TYPE_CHECKING:
    from interp.models.pipeline import Pipeline


@dataclass(frozen=True, eq=False)
class Factors:
    """Eigenvectors (columns) and eigenvalues of what a part reads, and of the gradients by what it gives."""

    read: Float[torch.Tensor, "in in"]
    read_values: Float[torch.Tensor, " in"]
    write: Float[torch.Tensor, "out out"]
    write_values: Float[torch.Tensor, " out"]

    @property
    def curvature(self) -> Float[torch.Tensor, "out in"]:
        """Pi: of each component."""
        return self.write_values[:, None] * self.read_values

    def kept(self, mass: float) -> Bool[torch.Tensor, "out in"]:
        """The fewest components that hold this share of the curvature."""
        values, order = self.curvature.flatten().sort(descending=True)
        reached = values.cumsum(0) / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
        count = min(len(values), int((reached < mass).sum()) + 1)
        mask = torch.zeros(len(values), dtype=torch.bool, device=values.device)
        mask[order[:count]] = True
        return mask.view(self.curvature.shape)

    def without(
        self, weight: Float[torch.Tensor, "out in"], kept: Bool[torch.Tensor, "out in"]
    ) -> Float[torch.Tensor, "out in"]:
        """What the weight changes by when all other components are dropped."""
        own = self.write.T @ weight.to(self.write) @ self.read
        return -(self.write @ (own * ~kept) @ self.read.T)


class FlatDirections(UnitLocator[Sequence[Any]]):
    """Components of the weights in directions of low curvature.

    Args:
        mass: share of each part's curvature that is kept.
        kind: of the parts, see `interp.models.parts.parts`.
        draws, seed: of (t, eps) in a pipeline, see `interp.measure.memorization.objective.loss`.

    After `fit(subject, reference=ordinary_items)` (without a reference the items are those; what is memorized need not
    be known, and may be among them):
        factors_: by part. kept_: by part, the share of its components that is kept at `mass`.
        scores_: of each unit how much of its column is dropped, as a length; the method is `flat`.

    The gradients are those of the items themselves (the empirical Fisher), from one pass over them.
    """

    def __init__(self, mass: float = 0.9, kind: str = "ff_out", draws: int = 8, seed: int = 0):
        self.mass = mass
        self.kind = kind
        self.draws = draws
        self.seed = seed

    def _check(self, subject: CausalLM | Pipeline) -> None:
        self._share(self.mass)

    def _sides(self, data: Sequence[Any] | None, reference: Sequence[Any] | None) -> tuple[Sequence[Any]]:
        """Ordinary items, those of the reference where there are some."""
        (items,) = super()._sides(data if reference is None else reference, None)
        return (items,)

    def _learn(self, sides: tuple[Sequence[Any], ...], progress: Progress) -> None:
        """Sum the moments over ordinary items."""
        (items,), subject = sides, self.subject_
        sums = _Moments()
        size = together(subject, items, self.draws)
        for at in range(0, len(items), size):
            some = items[at : at + size]
            with frozen(subject), ExitStack() as stack:
                stack.enter_context(replacing(subject, {p: sums.reads(p) for p in self.parts_}))
                stack.enter_context(
                    replacing(subject, {p: sums.writes(p) for p in self.parts_}, outputs=True)
                )
                loss(subject, some, draws=self.draws, seed=self.seed).sum().backward()
            progress(min(at + size, len(items)), len(items), "curvature")
        self.factors_ = {part: sums.factors(part) for part in self.parts_}
        self.kept_, dropped = {}, {}
        for part, factors in self.factors_.items():
            weight = weight_of(subject, part)
            kept = factors.kept(self.mass)
            self.kept_[part] = float(kept.double().mean())
            dropped[part] = factors.without(weight, kept).norm(dim=0)[None]
        self.scores_ = unit_table("flat", dropped)

    @staticmethod
    def _share(mass: float) -> None:
        if not 0 < mass < 1:
            raise UsageError(f"mass={mass}: write a share of the curvature between 0 and 1")

    def edit(
        self,
        k: int | None = None,
        *,
        share: float | None = None,
        method: str | None = None,
        mass: float | None = None,
        parts: Sequence[Part] | None = None,
    ) -> Stack:
        """The weights without their flat components.

        Args:
            k, share: in place of components, whole units of the flattest columns set to zero, as many.
            mass: of the curvature that is kept; default that of the locator.
            parts: which are edited; default all.
        """
        if k is not None or share is not None:
            return super().edit(k, share=share, method=method)
        self.ranking(method)
        mass = self.mass if mass is None else mass
        self._share(mass)
        self._unchanged()
        edits = []
        for part in parts or self.parts_:
            factors = self.factors_[part]
            change = factors.without(weight_of(self.subject_, part), factors.kept(mass))
            edits.append(Delta(part, change.float(), None, self.fingerprint_))
        return Stack(tuple(edits))


class _Moments:
    """Sums of products of what goes into parts, and of the gradients by what comes out, over tokens that count."""

    def __init__(self) -> None:
        self.sums: dict[tuple[Part, str], torch.Tensor] = {}

    def reads(self, part: Part) -> Any:
        def change(x: torch.Tensor, pass_: Pass) -> torch.Tensor:
            self._add(part, "read", x.detach(), pass_)
            return x

        return change

    def writes(self, part: Part) -> Any:
        def change(y: torch.Tensor, pass_: Pass) -> torch.Tensor:
            # Below the first part no graph is needed, so the graph begins there.
            y = y if y.requires_grad else y.detach().requires_grad_()
            y.register_hook(lambda grad: self._add(part, "write", grad, pass_))
            return y

        return change

    def _add(self, part: Part, side: str, values: torch.Tensor, pass_: Pass) -> None:
        rows = values if pass_.valid is None else values[pass_.valid.to(values.device)]
        rows = rows.reshape(-1, values.shape[-1]).double()
        found = rows.T @ rows
        at = part, side
        self.sums[at] = self.sums[at] + found if at in self.sums else found

    def factors(self, part: Part) -> Factors:
        a, u = torch.linalg.eigh(self.sums[part, "read"])
        g, v = torch.linalg.eigh(self.sums[part, "write"])
        return Factors(u, a.clamp(min=0), v, g.clamp(min=0))
