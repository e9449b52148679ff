"""Edits of one projection by two factors: what those of outputs and those of queries share.

Such an edit changes the weights themselves (`applied`), or stands in for them on activations: at every token of its
site, each row of a batch with its own edit.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int

from interp.errors import UsageError
from interp.intervene.base import Atom
from interp.intervene.where import Where
from interp.models.batch import Batch
from interp.models.engines.base import Tap
from interp.models.sites import Site
from interp.models.subject import CausalLM


class Factored(Atom):
    """An edit that reads along `a` and writes along `b`; two are equal if their digests are."""

    a: Float[torch.Tensor, "d_in r"]
    b: Float[torch.Tensor, "r d_out"]
    digest: str
    """Hash of what is edited, and of the bits of the factors."""

    @property
    @abstractmethod
    def site(self) -> Site:
        """Where the edit acts on activations."""

    @abstractmethod
    def check(self, subject: CausalLM) -> None:
        """Raises UsageError if a model has no such place, or one that the factors do not fit."""

    @abstractmethod
    def tap(self, where: Where) -> Tap:
        """The edit of activations, in the rows of one condition."""

    @property
    def rank(self) -> int:
        """Number of directions."""
        return self.a.shape[1]

    def __eq__(self, other: object) -> bool:
        return self.digest == other.digest if isinstance(other, type(self)) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest)

    def factors(
        self, like: Float[torch.Tensor, ...]
    ) -> tuple[Float[torch.Tensor, "d_in r"], Float[torch.Tensor, "r d_out"]]:
        """`a` and `b` where a tensor is, in its type or fp32 if that is better."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        return self.a.to(like.device, dtype), self.b.to(like.device, dtype)

    def _keep(self, of: str, place: str, **factors: torch.Tensor | None) -> None:
        """Copies of the factors take their places, and the digest tells them; of what is edited it has `of`."""
        digest = hashlib.sha256(of.encode())
        for name, given in factors.items():
            if given is None:
                continue
            factor = _own(given, f"{name} of an edit {place}")
            digest.update(f"{tuple(factor.shape)} {factor.dtype}".encode() + factor.numpy().tobytes())
            object.__setattr__(self, name, factor)
        object.__setattr__(self, "digest", digest.hexdigest()[:16])

    def _described(self, kind: str, **of: Any) -> dict[str, Any]:
        return {"kind": kind, **of, "rank": self.rank, "factors": self.digest, "scope": "all"}

    def group(self) -> tuple[Any, ...]:
        return (self.site,)

    def touches(self, subject: CausalLM, batch: Batch) -> dict[Site, Bool[torch.Tensor, "b t"]]:
        return {self.site: batch.scope_columns("all", 0, batch.width)}

    @classmethod
    def lower_group(
        cls,
        subject: CausalLM,
        batch: Batch,
        atoms: Sequence[tuple[int, Any]],
        of: Int[torch.Tensor, " b"],
        n: int,
    ) -> dict[Site, list[Tap]]:
        for _, atom in atoms:
            atom.check(subject)
        return {atoms[0][1].site: [atom.tap(Where(batch, of, n, number, "all")) for number, atom in atoms]}


def _own(factor: torch.Tensor, what: str) -> torch.Tensor:
    """A copy in fp32 or better: an edit of the tensor handed over must not change what an edit describes."""
    found = factor.detach().cpu()
    found = found.to(torch.promote_types(found.dtype, torch.float32)).contiguous().clone()
    if not bool(found.isfinite().all()):
        raise UsageError(f"factor {what} is not finite")
    return found
