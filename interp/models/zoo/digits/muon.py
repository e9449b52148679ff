"""An optimiser that brings the tiny pipeline to memory in a third of AdamW's steps.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/): the momentum of a weight matrix is made nearly
orthogonal before it is added, so that all its directions move at one rate. PyTorch has it for matrices; here kernels of
convolutions count as matrices too, and matrices of one shape are made orthogonal together.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

_MOMENTUM = 0.95
_STEPS = 5
_QUINTIC = (3.4445, -4.7750, 2.0315)


class Muon:
    """Updates matrices by the rule above, and every other weight by AdamW.

    Args:
        modules: their embeddings, gains and biases, and a UNet's first and last convolution, are left to AdamW.
        rate, matrix_rate: learning rates of AdamW and of the matrices.
        weight_decay: of both.
    """

    def __init__(self, modules: Iterable[nn.Module], rate: float, matrix_rate: float, weight_decay: float):
        weights = {name: w for module in modules for name, w in _weights(module)}
        matrices = [w for name, w in weights.items() if _is_matrix(name, w)]
        self.by_shape: dict[tuple[int, int], list[nn.Parameter]] = {}
        for w in matrices:
            self.by_shape.setdefault((w.shape[0], w[0].numel()), []).append(w)
        self.momentum = {shape: torch.zeros(len(ws), *shape) for shape, ws in self.by_shape.items()}
        taken = set(map(id, matrices))
        rest = [w for w in weights.values() if id(w) not in taken]
        self.rest = torch.optim.AdamW(rest, lr=rate, weight_decay=weight_decay, fused=True)
        self.weights = list(weights.values())
        self.rate, self.matrix_rate, self.weight_decay = rate, matrix_rate, weight_decay

    def zero_grad(self) -> None:
        for w in self.weights:
            w.grad = None

    @torch.no_grad()
    def step(self, share: float) -> None:
        """One update at this share of the learning rates."""
        self.rest.param_groups[0]["lr"] = share * self.rate
        self.rest.step()
        rate = share * self.matrix_rate
        for (out, inner), ws in self.by_shape.items():
            gradient = torch.stack([w.grad.reshape(out, inner) for w in ws if w.grad is not None])
            momentum = self.momentum[out, inner].lerp_(gradient, 1 - _MOMENTUM)
            change = orthogonal(gradient.lerp(momentum, _MOMENTUM)) * max(1, out / inner) ** 0.5
            for w, by in zip(ws, change, strict=True):
                w.mul_(1 - rate * self.weight_decay).sub_(by.reshape(w.shape), alpha=rate)


def orthogonal(x: Float[Tensor, "n out in"]) -> Float[Tensor, "n out in"]:
    """Matrices with the singular vectors of `x` and singular values near 1 (0.7 to 1.2), by Newton-Schulz steps."""
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = _QUINTIC
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def _weights(module: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    prefix = type(module).__name__
    return ((f"{prefix}.{name}", w) for name, w in module.named_parameters())


def _is_matrix(name: str, w: Tensor) -> bool:
    return w.ndim in (2, 4) and not any(part in name for part in (".conv_in.", ".conv_out.", "embedding."))
