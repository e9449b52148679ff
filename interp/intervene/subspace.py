"""Subspaces: the part of a site's vectors that lies in the span of a few directions, cut out or set to a mean.

A `Subspace` is a site with an orthonormal basis of directions in it. `project_out` removes what the vectors hold there
and leaves the rest of them as it is: x - (x Q^T) Q with the basis Q as rows, and + mean Q^T Q where a mean is put in
its place. Nothing depends on which basis of the same span is given, beyond rounding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from interp.errors import UsageError
from interp.intervene.base import Atom, Scope, scope_name
from interp.intervene.fills import by_class
from interp.intervene.reference import Reference
from interp.intervene.where import Where
from interp.models.batch import Batch
from interp.models.engines.base import Frame, Tap
from interp.models.sites import KV_HEADS, LINEAR, QUERY_HEADS, Site
from interp.models.subject import CausalLM
from interp.tasks.base import Example, Task

Mode = Literal["zero", "mean"]
MODES: tuple[str, ...] = get_args(Mode)
_REFUSED = frozenset({"attention", "logits"}) | LINEAR


@dataclass(frozen=True, eq=False)
class Subspace:
    """Directions at a site, as orthonormal rows; two are equal if their site and the bits of their basis are.

    The vectors of a site with heads and without an index are all heads of a token, one after the other, as the output
    projection reads them.

    Args:
        site: a residual, attention or MLP output, `neurons`, or q, k, v, z (of one head or of all).
        basis: orthonormal rows, r d; `Subspace.spanned` makes them. A basis without rows is the empty subspace.

    Raises:
        UsageError: the rows are not orthonormal, or the site has no vectors to cut.
    """

    site: Site
    basis: Float[torch.Tensor, "r d"]
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        if self.site.kind in _REFUSED or (self.site.kind == "neurons" and self.site.index is not None):
            raise UsageError(
                f"site {self.site} has no vectors that a subspace could be cut from; "
                "take a residual, attn_out, mlp_out, neurons, q, k, v or z"
            )
        # A copy of our own: an edit of the tensor handed over must not change what this describes.
        basis = self.basis.detach().to(
            "cpu", torch.float64 if self.basis.dtype == torch.float64 else torch.float32
        )
        basis = basis.contiguous().clone()
        gram = basis.double() @ basis.double().T
        if not bool(((gram - torch.eye(len(basis), dtype=torch.float64)).abs() < 1e-5).all()):
            raise UsageError(
                f"the basis at {self.site} is not orthonormal; use Subspace.spanned(site, vectors)"
            )
        object.__setattr__(self, "basis", basis)
        head = f"{self.site} {tuple(basis.shape)} {basis.dtype}".encode()
        object.__setattr__(self, "digest", hashlib.sha256(head + basis.numpy().tobytes()).hexdigest()[:16])

    @classmethod
    def spanned(cls, site: Site | str, vectors: Float[torch.Tensor, "k d"] | np.ndarray) -> Subspace:
        """The span of vectors, given as rows.

        Rows that are orthonormal already are kept bit for bit. Others are replaced by right singular vectors, and rows
        that depend on the others add nothing: the rank is the number of singular values above
        max(k, d) * eps * the largest, with eps of the vectors' own data type.

        Raises:
            UsageError: the vectors are no finite (k, d) matrix, or all of them are zero.
        """
        rows = torch.as_tensor(vectors).detach().cpu()
        if rows.ndim != 2 or not rows.is_floating_point() or not bool(rows.isfinite().all()):
            raise UsageError(f"directions at {site} come as rows of one finite (k, d) matrix of floats")
        eps = torch.finfo(rows.dtype).eps
        rows = rows.to(torch.float64 if rows.dtype == torch.float64 else torch.float32)
        k, d = rows.shape
        gram = rows.double() @ rows.double().T
        if k and float((gram - torch.eye(k, dtype=torch.float64)).abs().max()) > 4 * eps * d**0.5:
            _, sizes, right = torch.linalg.svd(rows.double(), full_matrices=False)
            if sizes[0] == 0:
                raise UsageError(f"all directions at {site} are zero; they span nothing")
            rows = right[sizes > max(k, d) * eps * sizes[0]].to(rows.dtype)
        return cls(Site.parse(site), rows)

    @property
    def rank(self) -> int:
        """Number of directions."""
        return self.basis.shape[0]

    @property
    def tapped(self) -> Site:
        """Where the cut is made: for one head in the tensor of all heads, so that a record of that shows it.

        Heads' shares of the output are made one by one, and tapped so.
        """
        return self.site if self.site.kind == "head_out" else self.site.whole

    def coordinates(self, vectors: Float[torch.Tensor, "*b d"]) -> Float[torch.Tensor, "*b r"]:
        """Coefficients of vectors in the basis; in fp32 for half-precision vectors."""
        basis = self.basis_for(vectors)
        return vectors.to(basis.dtype) @ basis.T

    def basis_for(self, vectors: torch.Tensor) -> Float[torch.Tensor, "r d"]:
        """The basis on the device of vectors, in their data type or fp32, whichever is finer."""
        return self.basis.to(vectors.device, torch.promote_types(vectors.dtype, torch.float32))

    def __eq__(self, other: object) -> bool:
        return self.digest == other.digest if isinstance(other, Subspace) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"{self.site}/{self.rank}d:{self.digest[:6]}"


def width(subject: CausalLM, site: Site) -> int:
    """Length of the vectors of a site."""
    subject.check(site)
    if site.kind == "neurons":
        return subject.d_mlp
    if site.kind not in QUERY_HEADS | KV_HEADS:
        return subject.d_model
    heads = 1 if site.index is not None else subject.n_heads
    if site.kind in KV_HEADS and site.index is None:
        heads = subject.n_kv_heads
    return heads * (subject.d_model if site.kind == "head_out" else subject.d_head)


@dataclass(frozen=True)
class ProjectOut(Atom):
    """A subspace that is cut, where, and what is put in its place.

    Attributes:
        space: the directions.
        mode: `zero`, or `mean`: the projection of the reference's mean.
        scope: `all`, `answer`, or span roles.
        reference: where `mean` takes its values from (pooled, by position or by role).
    """

    space: Subspace
    mode: Mode = "zero"
    scope: Scope = "all"
    reference: Reference | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UsageError(f"unknown mode '{self.mode}' of a projection; write one of {', '.join(MODES)}")
        if (self.reference is not None) != (self.mode == "mean"):
            raise UsageError("a projection takes a reference with mode 'mean', and only then")
        if self.reference is not None and self.reference.pool == "twin":
            raise UsageError(
                "mode 'mean' takes no reference pooled as 'twin'; write pooled, position or role"
            )

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "project_out",
            "site": repr(self.space.site),
            "rank": self.space.rank,
            "basis": self.space.digest,
            "mode": self.mode,
            "scope": scope_name(self.scope),
            "reference": self.reference.name if self.reference else "",
        }

    def group(self) -> tuple[Any, ...]:
        return self.space.site, self.mode, self.scope, id(self.reference)

    def touches(self, subject: CausalLM, batch: Batch) -> dict[Site, Bool[torch.Tensor, "b t"]]:
        return {self.space.tapped: batch.scope_columns(self.scope, 0, batch.width)}

    def __repr__(self) -> str:
        ref = f", reference={self.reference.name}" if self.reference else ""
        return f"project_out({self.space}, mode={self.mode}, scope={scope_name(self.scope)}{ref})"

    @classmethod
    def lower_group(
        cls,
        subject: CausalLM,
        batch: Batch,
        atoms: Sequence[tuple[int, Any]],
        of: Int[torch.Tensor, " b"],
        n: int,
    ) -> dict[Site, list[Tap]]:
        taps: list[Tap] = []
        for number, atom in atoms:
            check_width(subject, atom.space)
            where = Where(batch, of, n, number, atom.scope)
            taps.append(_Project(atom.space, where, _target(atom, subject, batch)))
        return {atoms[0][1].space.tapped: taps}


@dataclass(frozen=True)
class _Project:
    """One atom's cut; `target` gives the coordinates put in place, 1|b 1|t r, or None for zero."""

    space: Subspace
    where: Where
    target: Any

    def edit(self, value: torch.Tensor, frame: Frame) -> torch.Tensor:
        mask = None if self.where.everywhere else self.where.mask(frame).to(value.device)

        def change(c: torch.Tensor) -> torch.Tensor:
            if self.target is None:
                return -c
            target = self.target(frame).to(c.device, c.dtype)
            return (target if mask is None else target.expand(*mask.shape, -1)[mask]) - c

        return change_coordinates(self.space, value, mask, change)


def change_coordinates(
    space: Subspace,
    value: torch.Tensor,
    mask: Bool[torch.Tensor, "b t"] | None,
    change: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """A site's tensor with something added to coordinates of its tokens; what is orthogonal to the basis stays.

    Args:
        value: at the site that the subspace taps, b t and whatever a token has.
        mask: which tokens; None for all.
        change: what is added to their coordinates, from these: b t r, or n r where there is a mask.
    """
    basis = space.basis_for(value)
    head = space.site.index if space.tapped.index is None else None
    tokens = value if head is None else value[:, :, head]
    chosen = tokens if mask is None else tokens[mask]
    flat = chosen.flatten(2 if mask is None else 1).to(basis.dtype)
    new = (flat + change(flat @ basis.T) @ basis).reshape(chosen.shape).to(value.dtype)
    if mask is None and head is None:
        return new
    out = value.clone()
    part = out if head is None else out[:, :, head]
    part[slice(None) if mask is None else mask] = new
    return out


def check_width(subject: CausalLM, space: Subspace) -> None:
    """Raise `UsageError` unless the basis is of vectors as long as the site's."""
    size = width(subject, space.site)
    if space.basis.shape[1] != size:
        raise UsageError(
            f"{space}: vectors at {space.site} of {subject.name} have {size} numbers, "
            f"those of the basis {space.basis.shape[1]}"
        )


def _target(cut: ProjectOut, subject: CausalLM, batch: Batch) -> Any:
    if cut.reference is None:
        return None
    reference, site = cut.reference, cut.space.site
    layer = site.layer if site.layer is not None else 0
    coordinates = {}
    for name, value in reference.means(subject, site.kind).items():
        unit = value if site.index is None else value[:, site.index]
        coordinates[name] = cut.space.coordinates(unit.flatten(1))
    if reference.pool == "pooled":
        pooled = coordinates[""][layer][None, None]
        return lambda frame: pooled
    return lambda frame: by_class(reference, coordinates, layer, batch, frame, cut.scope)


def project_out(
    site: Site | str,
    basis: Float[torch.Tensor, "k d"] | np.ndarray,
    scope: str | Iterable[str] = "all",
    mode: Mode = "zero",
    reference: Reference | Task | Sequence[Example] | None = None,
) -> ProjectOut:
    """Describe the cut of a subspace; nothing runs until it is applied or measured.

    Several cuts at one site are made one after the other; for the span of all of them give one basis with all rows.

    Args:
        site: `resid_post[12]`, `z[12].3` (one head), `z[12]` (all heads, one after the other), `neurons[12]`, ...
        basis: directions as rows, k d; made orthonormal where they are not (see `Subspace.spanned`).
        scope: `all`, `answer`, or one or more span roles.
        mode: `zero`, or `mean` of the reference.
        reference: for `mean`: a task or examples (pooled), or a `Reference`.

    >>> project_out("resid_post[3]", np.eye(4)[:2], scope="answer").space.rank
    2
    """
    if reference is not None and not isinstance(reference, Reference):
        reference = Reference(reference)
    where: Scope = scope if isinstance(scope, str) else tuple(scope)
    return ProjectOut(Subspace.spanned(site, basis), mode, where, reference)
