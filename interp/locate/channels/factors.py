"""Heads as products of low rank, whitened so that a score is one matrix product and no d x d matrix is ever made.

With W = A B of rank k, any product on the side of B keeps its length when A is replaced by the triangle of its QR
decomposition: ||A B M|| = ||R B M||. So a writer is the k x d matrix X = R B of its OV, with the same singular values
and right singular vectors, and a reader is the d x k matrix Y of its QK or OV. QR and not Cholesky, which would square
the condition number of heads that are nearly of lower rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float

from interp.locate.channels.weights import LayerHeads

Mode = Literal["Q", "K", "V"]
MODES: tuple[Mode, ...] = ("Q", "K", "V")


def triangle(a: Float[torch.Tensor, "*n rows k"]) -> Float[torch.Tensor, "*n m k"]:
    """R of a QR decomposition: A^T A = R^T R, so A may stand for R wherever only lengths count."""
    if a.shape[-2] <= a.shape[-1]:
        return a
    found: torch.Tensor = torch.linalg.qr(a, mode="r").R
    return found


def spectrum(a: Float[torch.Tensor, "*n rows k"]) -> Float[torch.Tensor, "*n m"]:
    """Squared singular values."""
    found: torch.Tensor = torch.linalg.svdvals(triangle(a)).square()
    return found


@dataclass(frozen=True, eq=False)
class Components:
    """Singular components of the heads of a layer, strongest first.

    Attributes:
        s: singular values.
        read: unit vectors that a component reads, one a row; of the residual stream, if nothing stands for it.
        write: unit vectors that it writes.
    """

    s: Float[torch.Tensor, "h k"]
    read: Float[torch.Tensor, "h k m"]
    write: Float[torch.Tensor, "h k d"]


@dataclass(frozen=True, eq=False)
class Factors:
    """The heads of one layer as writers and readers."""

    heads: LayerHeads

    @property
    def layer(self) -> int:
        """The layer."""
        return self.heads.layer

    @cached_property
    def writer(self) -> Float[torch.Tensor, "h k d"]:
        """X of each query head's OV: ||X M|| = ||W_V W_O M||."""
        return self.heads.of_query_heads(triangle(self.heads.written)) @ self.heads.o

    def reader(self, mode: Mode) -> Float[torch.Tensor, "h d k"]:
        """Y of each query head: ||M Y|| = ||M W_Q W_K^T|| (Q), ||M W_K W_Q^T|| (K), ||M W_V W_O|| (V)."""
        heads = self.heads
        if mode == "Q":
            return heads.q @ heads.of_query_heads(triangle(heads.offered)).mT
        if mode == "K":
            return heads.of_query_heads(heads.k) @ triangle(heads.asked).mT
        return heads.of_query_heads(heads.v) @ triangle(heads.o.mT).mT

    def side(self, mode: Mode) -> Float[torch.Tensor, "n d k"]:
        """What a head reads with, alone: W_Q of query heads, W_K and W_V of KV groups. Rotations leave it as it is."""
        return {"Q": self.heads.q, "K": self.heads.k, "V": self.heads.v}[mode]

    @cached_property
    def ov(self) -> Components:
        """Singular components of each query head's W_V W_O."""
        return _components(self.heads.of_query_heads(self.heads.v), self.heads.o)

    @cached_property
    def output(self) -> Components:
        """Components of what each query head writes: those of `ov`, or with biases or moments in front of W_O.

        `read` is then in the coordinates of what stands there.
        """
        if self.heads.written is self.heads.v:
            return self.ov
        return _components(self.heads.of_query_heads(self.heads.written), self.heads.o)

    def reading(self, mode: Mode) -> Components:
        """Components of what a head reads through its query, key or value: `read` is on that side."""
        heads = self.heads
        if mode == "V":
            return self.ov
        if not heads.augmented:
            return self.qk if mode == "Q" else _turned(self.qk)
        if mode == "Q":
            return _components(heads.q, heads.of_query_heads(heads.offered).mT)
        return _components(heads.of_query_heads(heads.k), heads.asked.mT)

    @cached_property
    def qk(self) -> Components:
        """Singular components of each query head's W_Q W_K^T: `read` is the query's side, `write` the key's."""
        return _components(self.heads.q, self.heads.of_query_heads(self.heads.k).mT)


def _components(a: Float[torch.Tensor, "h m k"], b: Float[torch.Tensor, "h k d"]) -> Components:
    """Thin SVD of A B by the QR decompositions of both and the SVD of a k x k matrix."""
    q_a, r_a = torch.linalg.qr(a)
    q_b, r_b = torch.linalg.qr(b.mT)
    u, s, vh = torch.linalg.svd(r_a @ r_b.mT)
    return Components(s, (q_a @ u).mT, (q_b @ vh.mT).mT)


def _turned(found: Components) -> Components:
    """Components of the transposed matrix."""
    return Components(found.s, found.write, found.read)


def squares(a: Float[torch.Tensor, "w k d"], b: Float[torch.Tensor, "r d m"]) -> Float[torch.Tensor, "w r"]:
    """Squared Frobenius length of every product, from one matrix product."""
    w, k, d = a.shape
    r, _, m = b.shape
    product = a.reshape(w * k, d) @ b.transpose(0, 1).reshape(d, r * m)
    return product.square_().view(w, k, r, m).sum((1, 3))


def grouped_squares(
    a: Float[torch.Tensor, "w k d"], shared: Float[torch.Tensor, "g d m"], own: Float[torch.Tensor, "h m m"]
) -> Float[torch.Tensor, "w h"]:
    """Squared length of A S_g R_h^T, where R_h^T R_h = `own`: the large product is made once for each KV group."""
    w, k, d = a.shape
    g, _, m = shared.shape
    product = (a.reshape(w * k, d) @ shared.transpose(0, 1).reshape(d, g * m)).view(w, k, g, m)
    grams = torch.einsum("wkga,wkgb->wgab", product, product)
    return torch.einsum("wgab,gsab->wgs", grams, own.view(g, -1, m, m)).reshape(w, -1)
