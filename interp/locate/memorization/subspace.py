"""Directions that target items move and a null does not: the contrastive subspace of what a part reads or writes.

With C the second moments over tokens (not centred, since an edit acts on what is there), the directions solve
C_target v = l (C_null + ridge I) v: along v the target has l times the energy of the null. A mask of units is the
special case in which v lies along an axis. How many directions there are is not read from l, which rises with every
direction that is fitted: directions of one half of the items are measured on the other half, against the same
procedure after random exchanges of target and null.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int

from interp.errors import UsageError
from interp.locate.memorization.base import ItemLocator
from interp.locate.memorization.contrast import null_of, seeded
from interp.models.cache import Progress
from interp.models.parts import Part, weight_of
from interp.models.subject import CausalLM
from interp.tasks.base import stable_seed
from interp.trace.moments import Half, Norm, ProductMoments
from interp.trace.passes import ROWS, Corpus, stream

if TYPE_CHECKING:
    from interp.intervene.weights import Stack
    from interp.models.pipeline import Pipeline


class ContrastSubspace(ItemLocator[Corpus | Sequence[Any]]):
    """Directions of each part in which target items have more energy than a null.

    Args:
        null: `paired` (the unconditional half of the same runs) or `prompts` (the reference items). Default: `prompts`
            where there are some, else `paired`.
        kind: of the parts. side: `in`, directions of what a part reads; `out`, of what it writes (W C W', no more
            runs).
        ridge: added to the null's moments, in parts of their mean diagonal.
        limit: the problem is solved in so many leading directions of both sides' moments together.
        most: of each part, at most so many directions.
        groups: items are summed in so many groups of each side; memory is groups x columns^2 of each part.
        draws, level: exchanges of target and null, and the level at which a direction is told from chance.
        tau, steps, guidance, seeds, norm, batch: as of `WandaContrast`; `norm` of tokens, `raw` or `unit`.

    After `fit(subject, items, reference=others)`:
        scores_: one row a direction: component, part, unit (its number), method, score (mean log of its energy on the
            target over that on the null, in items it was not fitted on), ratio (l, on all items), threshold (of the
            score, over all directions of the exchanges), p, kept, norm (||dW||_F when it and those before it are taken
            out), n (groups).
        ranks_: of each part, how many leading directions are told from chance.

    Example:
        found = ContrastSubspace().fit(pipe, memorized)
        with found.edit().applied(pipe): ...

    Raises:
        UsageError: fewer than two items on a side, no such side, or a null that this subject has not.
    """

    def __init__(
        self,
        null: Literal["paired", "prompts"] | None = None,
        kind: str = "ff_out",
        side: Literal["in", "out"] = "in",
        ridge: float = 0.01,
        limit: int = 64,
        most: int = 8,
        groups: int = 8,
        draws: int = 99,
        level: float = 0.05,
        tau: int = 10,
        steps: int = 25,
        guidance: float = 1.5,
        seeds: tuple[int, ...] = (0,),
        norm: Norm = "raw",
        batch: int = ROWS,
        seed: int = 0,
    ):
        self.null = null
        self.kind = kind
        self.side = side
        self.ridge = ridge
        self.limit = limit
        self.most = most
        self.groups = groups
        self.draws = draws
        self.level = level
        self.tau = tau
        self.steps = steps
        self.guidance = guidance
        self.seeds = seeds
        self.norm = norm
        self.batch = batch
        self.seed = seed

    def _check(self, subject: CausalLM | Pipeline) -> None:
        if self.side not in ("in", "out"):
            raise UsageError(f"side={self.side!r}: write one of in, out")

    def _learn(self, sides: tuple[Corpus | Sequence[Any], ...], progress: Progress) -> None:
        """Sum the moments on the items and on the null, and solve."""
        subject = self.subject_
        self.null_ = null_of(subject, self.null, len(sides) > 1, ("paired", "prompts"))
        sides = sides[:1] if self.null_ == "paired" else sides
        if min(map(len, sides)) < 2 or self.groups < 2:
            raise UsageError(
                "directions are tested across items: give at least two of each side, in groups>=2"
            )
        sums = [self._sums(side, progress) for side in sides]
        target, other = sums[0], sums[-1]
        half: Half = "unconditional" if self.null_ == "paired" else "conditional"
        self._directions: dict[Part, Float[torch.Tensor, "d most"]] = {}
        self._frames: dict[Part, Float[torch.Tensor, "d r"]] = {}
        self._moments: dict[Part, tuple[Float[torch.Tensor, "g r r"], Float[torch.Tensor, "h r r"]]] = {}
        self.ranks_: dict[Part, int] = {}
        frames = []
        for part in self.parts_:
            weight = weight_of(subject, part).double().cpu()
            a, b = _by_group(target, part, "conditional"), _by_group(other, part, half)
            if self.side == "out":
                a, b = weight @ a @ weight.T, weight @ b @ weight.T
            frames.append(self._solved(part, weight, a, b))
        self.scores_ = pd.concat(frames, ignore_index=True)

    def _sums(self, data: Corpus | Sequence[Any], progress: Progress) -> ProductMoments:
        corpus, of = seeded(
            self.subject_, data, self.seeds, steps=self.steps, stop=self.tau, guidance=self.guidance
        )
        moments = ProductMoments(of % self.groups, None, self.norm)
        stream(self.subject_, corpus, self.parts_, moments, batch=self.batch, progress=progress)
        return moments

    def _solved(
        self,
        part: Part,
        weight: Float[torch.Tensor, "out in"],
        target: Float[torch.Tensor, "g d d"],
        null: Float[torch.Tensor, "h d d"],
    ) -> pd.DataFrame:
        """Directions of one part, their held-out energy, and what chance gives."""
        basis = leading(target.mean(0) + null.mean(0), self.limit)
        a, b = (basis.T @ side @ basis for side in (target, null))
        self._frames[part], self._moments[part] = basis, (a, b)
        most = min(self.most, basis.shape[1])
        labels = torch.tensor([True] * len(a) + [False] * len(b))
        pool = torch.cat([a, b])
        fold = torch.cat([torch.arange(len(a)), torch.arange(len(b))]) % 2
        drawn = self._exchanges(part, labels, fold, len(a))
        scores = torch.stack([held_out(pool, one, fold, most, self.ridge) for one in (labels, *drawn)])
        found, chance = scores[0], scores[1:].amax(1)
        ratio, vectors = contrast(a.mean(0), b.mean(0), self.ridge)
        vectors = torch.linalg.qr((basis @ vectors)[:, :most]).Q
        p = (1 + (chance[:, None] >= found).sum(0)) / (1 + len(chance))
        kept = int((p <= self.level).long().cumprod(0).sum())
        self._directions[part], self.ranks_[part] = vectors, kept
        moved = (weight @ vectors) if self.side == "in" else weight.T @ vectors
        return pd.DataFrame(
            {
                "component": [f"{part}:{i}" for i in range(most)],
                "part": repr(part),
                "unit": range(most),
                "method": "subspace",
                "score": found.numpy(),
                "ratio": ratio[:most].numpy(),
                "threshold": float(torch.quantile(chance, 1 - self.level)),
                "p": p.numpy(),
                "kept": np.arange(most) < kept,
                "norm": moved.square().sum(0).cumsum(0).sqrt().numpy(),
                "n": len(a),
            }
        )

    def _exchanges(
        self, part: Part, labels: Bool[torch.Tensor, " g"], fold: Int[torch.Tensor, " g"], pairs: int
    ) -> list[Bool[torch.Tensor, " g"]]:
        """Labels after random exchanges of target and null, within pairs or else within folds."""
        rng = np.random.default_rng(stable_seed("subspace", self.seed, part.path))
        out = []
        for _ in range(self.draws):
            if self.null_ == "paired":
                swap = torch.from_numpy(rng.integers(0, 2, pairs).astype(bool))
                out.append(labels ^ torch.cat([swap, swap]))
                continue
            new = labels.clone()
            for one in (0, 1):
                at = (fold == one).nonzero()[:, 0]
                new[at] = labels[at[torch.from_numpy(rng.permutation(len(at)))]]
            out.append(new)
        return out

    def basis(self, part: Part, rank: int | None = None) -> Float[torch.Tensor, "d r"]:
        """Orthonormal leading directions of a part; default those told from chance, which may be none.

        Raises:
            UsageError: it is not fitted, no such part, or more directions than were solved for.
        """
        if not hasattr(self, "_directions"):
            raise UsageError("ContrastSubspace is not fitted yet; call fit(subject, items) first")
        if part not in self._directions:
            raise UsageError(
                f"no directions of {part}; there are those of {', '.join(map(repr, self.parts_))}"
            )
        vectors = self._directions[part]
        rank = self.ranks_[part] if rank is None else rank
        if not 0 <= rank <= vectors.shape[1]:
            raise UsageError(
                f"rank={rank}: {vectors.shape[1]} directions were solved for; fit with most={rank}"
            )
        return vectors[:, :rank]

    def directions(self, part: Part, groups: Sequence[int], rank: int) -> Float[torch.Tensor, "d r"]:
        """Orthonormal leading directions by some of the target's groups alone (item i is in group i % groups).

        With the paired null it is of the same groups, else of all reference items.

        Raises:
            UsageError: it is not fitted, or there is no such group.
        """
        self.basis(part, 0)
        target, null = self._moments[part]
        if not len(groups) or not all(0 <= g < len(target) for g in groups):
            raise UsageError(f"groups={list(groups)}: write some of 0 to {len(target) - 1}")
        frame = self._frames[part]
        a = target[list(groups)].mean(0)
        b = (null[list(groups)] if self.null_ == "paired" else null).mean(0)
        return torch.linalg.qr((frame @ contrast(a, b, self.ridge)[1])[:, :rank]).Q

    def edit(self, rank: int | None = None, *, norm: float | None = None) -> Stack:
        """The directions are taken out of the parts: W (I - V V'), or (I - V V') W.

        Args:
            rank: of each part; default those that are told from chance.
            norm: take directions of all parts, in the order of their ratio, as long as ||dW||_F of all is at most this.

        Raises:
            UsageError: there is no direction to take out, or both arguments are given.
        """
        from interp.intervene.weights import ProjectOut, Stack

        if rank is not None and norm is not None:
            raise UsageError("a rank and a norm: give one of them")
        ranks = {part: rank for part in self.parts_} if norm is None else self._within(norm)
        found = [(part, self.basis(part, ranks[part])) for part in self.parts_]
        edits = [ProjectOut(p, v.float(), self.side, self.fingerprint_) for p, v in found if v.shape[1]]
        if not edits:
            raise UsageError(
                "no direction is told from chance, or fits the norm; write rank=1, or a larger norm"
            )
        return Stack(tuple(edits))

    def _within(self, norm: float) -> dict[Part, int | None]:
        """Ranks whose change is at most the norm, of directions taken in the order of their ratio."""
        by_name = {repr(part): part for part in self.parts_}
        squares = dict.fromkeys(self.parts_, 0.0)
        ranks: dict[Part, int | None] = dict.fromkeys(self.parts_, 0)
        for row in self.scores_.sort_values("ratio", ascending=False, kind="stable").to_dict("records"):
            part = by_name[str(row["part"])]
            new = {**squares, part: float(row["norm"]) ** 2}
            if sum(new.values()) > norm**2:
                break
            squares, ranks[part] = new, int(row["unit"]) + 1
        return ranks


def leading(moments: Float[torch.Tensor, "d d"], limit: int) -> Float[torch.Tensor, "d r"]:
    """The `limit` leading eigenvectors, without those that hold nothing."""
    values, vectors = torch.linalg.eigh(moments)
    some = int((values > 1e-12 * values[-1].clamp(min=1e-300)).sum())
    return vectors.flip(1)[:, : max(1, min(limit, some))]


def contrast(
    target: Float[torch.Tensor, "r r"], null: Float[torch.Tensor, "r r"], ridge: float
) -> tuple[Float[torch.Tensor, " r"], Float[torch.Tensor, "r r"]]:
    """Solutions of target v = l (null + ridge I) v, the largest l first; the ridge in parts of the mean diagonal."""
    floor = ridge * null.diagonal().mean().clamp(min=1e-300)
    lower = torch.linalg.cholesky(null + floor * torch.eye(len(null), dtype=null.dtype, device=null.device))
    half = torch.linalg.solve_triangular(lower, target, upper=False)
    inner = torch.linalg.solve_triangular(lower, half.T, upper=False)
    values, vectors = torch.linalg.eigh((inner + inner.T) / 2)
    return values.flip(0), torch.linalg.solve_triangular(lower.T, vectors.flip(1), upper=True)


def held_out(
    pool: Float[torch.Tensor, "g r r"],
    labels: Bool[torch.Tensor, " g"],
    fold: Int[torch.Tensor, " g"],
    most: int,
    ridge: float,
) -> Float[torch.Tensor, " most"]:
    """Mean log of the target's energy over the null's, along directions of the other fold; both folds have both."""
    out = []
    for one in (0, 1):
        a, b, c, d = (
            pool[(fold == f) & (labels == side)].mean(0) for f in (1 - one, one) for side in (True, False)
        )
        vectors = contrast(a, b, ridge)[1][:, :most]
        floor = ridge * d.diagonal().mean()
        on = (vectors * (c @ vectors)).sum(0)
        off = (vectors * (d @ vectors)).sum(0) + floor * vectors.square().sum(0)
        out.append((on.clamp(min=1e-300) / off).log())
    return torch.stack(out).mean(0)


def _by_group(moments: ProductMoments, part: Part, half: Half) -> Float[torch.Tensor, "g d d"]:
    """Moments of each group that has items."""
    n = int(moments.groups.max()) + 1
    at = torch.eye(n, dtype=torch.bool)
    return torch.stack([moments.mean(part, at[i], half) for i in range(n)]).cpu()
