"""Streaming sums of what enters a part: squares of each column, or products of all columns.

Both are readers of `interp.trace.passes.stream`. Sums are kept by part, by step (the number of the denoising step,
since a scheduler may visit a timestep twice; 0 in a language model) and by half of guidance, in float64; of the
activations themselves nothing is kept. Whatever share, number of steps or rule is wanted later comes from the same
sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Bool, Float, Int

from interp.errors import UsageError

if TYPE_CHECKING:
    from interp.models.parts import Part, Pass

Half = Literal["conditional", "unconditional"]
Norm = Literal["raw", "unit"]
HALVES: tuple[Half, ...] = ("conditional", "unconditional")
_STATISTICS = ("raw", "unit", "sum")


class ColumnMoments:
    """Per item: sums of squares and sums of each column, as it is (`raw`) and with each token of length one (`unit`).

    Memory is items x columns for each part, step and half, whatever the number of tokens.

    Args:
        items: number of items.
        of: the item of each row of the corpus, where one item has several (seeds); default, row i is item i.

    Attributes:
        timesteps: the timestep of each step that was read, as the UNet gets it.
    """

    def __init__(self, items: int, of: Int[torch.Tensor, " rows"] | None = None):
        self.items = items
        self.of = torch.arange(items) if of is None else of
        self.timesteps: dict[int, int] = {}
        self._sums: dict[tuple[Part, int, Half], Float[torch.Tensor, "three items d"]] = {}
        self._tokens: dict[tuple[Part, int, Half], Float[torch.Tensor, " items"]] = {}

    def __call__(self, part: Part, x: Float[torch.Tensor, "b t d"], pass_: Pass) -> None:
        x = x.detach().float()
        counted = _counted(x, pass_)
        squares = x.square()
        length = squares.sum(-1)
        # A token of zeros has no direction: it counts as a token and adds nothing.
        unit = torch.where(length > 0, counted / length.clamp(min=torch.finfo(length.dtype).tiny), 0.0)
        raw_unit = torch.stack([counted, unit], 1) @ squares
        values = torch.cat([raw_unit, counted[:, None] @ x], 1).to(_wide(x))  # b 3 d
        self.timesteps[pass_.index] = pass_.key
        conditional = pass_.conditional.to(x.device)
        items = self.of.to(values.device)[pass_.items.to(values.device)]
        for half in HALVES:
            rows = (conditional == (half == "conditional")).nonzero()[:, 0].to(values.device)
            if not len(rows):
                continue
            at = part, pass_.index, half
            if at not in self._sums:
                self._sums[at] = values.new_zeros(len(_STATISTICS), self.items, values.shape[-1])
                self._tokens[at] = values.new_zeros(self.items)
            self._sums[at].index_add_(1, items[rows], values[rows].transpose(0, 1))
            self._tokens[at].index_add_(0, items[rows], counted.sum(1).to(values.device, values.dtype)[rows])

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps that were read."""
        return tuple(sorted(self.timesteps))

    @property
    def parts(self) -> tuple[Part, ...]:
        """Parts that were read, in order of execution."""
        return tuple(dict.fromkeys(part for part, _, _ in self._sums))

    @property
    def halves(self) -> tuple[Half, ...]:
        """Halves of guidance that ran."""
        present = {half for _, _, half in self._sums}
        return tuple(half for half in HALVES if half in present)

    def sums(
        self, part: Part, step: int, half: Half = "conditional", norm: Norm = "raw"
    ) -> Float[torch.Tensor, "items d"]:
        """Sum over tokens of the squares of each column.

        Raises:
            UsageError: no such part, step or half was read.
        """
        return self._of(self._sums, part, step, half)[_STATISTICS.index(norm)]

    def totals(self, part: Part, step: int, half: Half = "conditional") -> Float[torch.Tensor, "items d"]:
        """Sum over tokens of each column."""
        return self._of(self._sums, part, step, half)[_STATISTICS.index("sum")]

    def tokens(self, part: Part, step: int, half: Half = "conditional") -> Float[torch.Tensor, " items"]:
        """Tokens that were counted."""
        return self._of(self._tokens, part, step, half)

    def rms(
        self, part: Part, steps: Sequence[int], half: Half = "conditional", norm: Norm = "raw"
    ) -> Float[torch.Tensor, "items d"]:
        """Root mean square of each column over the tokens of the given steps, each step weighing the same."""
        means = [
            self.sums(part, step, half, norm) / self.tokens(part, step, half)[:, None].clamp(min=1)
            for step in steps
        ]
        return torch.stack(means).mean(0).sqrt()

    @property
    def bytes(self) -> int:
        """Memory of the sums."""
        return sum(t.numel() * t.element_size() for t in self._sums.values())

    def _of(
        self, of: dict[tuple[Part, int, Half], torch.Tensor], part: Part, step: int, half: Half
    ) -> torch.Tensor:
        if (part, step, half) not in of:
            raise UsageError(
                f"nothing was read at {part}, step {step}, {half}: there are steps {list(self.steps)} of "
                f"{len(self.parts)} parts, {' and '.join(self.halves) or 'no passes'}"
            )
        return of[part, step, half]


class ProductMoments:
    """Sums of the products of all columns over the tokens of groups of items: not centred, d x d a group.

    Args:
        groups: the group of each row of the corpus, from 0 on.
        steps: steps that count; None for all. All of them go into one sum.
        norm: `raw`, or `unit`: each token is brought to length one.
    """

    def __init__(
        self, groups: Int[torch.Tensor, " rows"], steps: Sequence[int] | None = None, norm: Norm = "raw"
    ):
        self.groups = groups
        self.steps = None if steps is None else tuple(steps)
        self.norm = norm
        self._sums: dict[tuple[Part, Half], Float[torch.Tensor, "groups d d"]] = {}
        self._tokens: dict[tuple[Part, Half], Float[torch.Tensor, " groups"]] = {}

    def __call__(self, part: Part, x: Float[torch.Tensor, "b t d"], pass_: Pass) -> None:
        if self.steps is not None and pass_.index not in self.steps:
            return
        x = x.detach().float()
        counted = _counted(x, pass_)
        if self.norm == "unit":
            x = torch.nn.functional.normalize(x, dim=-1)
        x = x * counted[..., None]
        groups = self.groups.to(x.device)[pass_.items.to(x.device)]
        conditional = pass_.conditional.to(x.device)
        n = int(self.groups.max()) + 1
        for half in HALVES:
            mine = conditional == (half == "conditional")
            for group in groups[mine].unique().tolist():
                rows = x[mine & (groups == group)].flatten(0, 1)
                at = part, half
                if at not in self._sums:
                    self._sums[at] = _wide(rows).new_zeros(n, rows.shape[1], rows.shape[1])
                    self._tokens[at] = _wide(rows).new_zeros(n)
                self._sums[at][group] += (rows.T @ rows).to(self._sums[at])
                self._tokens[at][group] += counted[mine & (groups == group)].sum().to(self._tokens[at])

    @property
    def parts(self) -> tuple[Part, ...]:
        """Parts that were read, in order of execution."""
        return tuple(dict.fromkeys(part for part, _ in self._sums))

    def mean(
        self, part: Part, groups: Bool[torch.Tensor, " groups"] | None = None, half: Half = "conditional"
    ) -> Float[torch.Tensor, "d d"]:
        """E[x x^T] over the tokens of the chosen groups, each token weighing the same.

        Raises:
            UsageError: nothing was read there.
        """
        if (part, half) not in self._sums:
            raise UsageError(f"nothing was read at {part}, {half}")
        sums, tokens = self._sums[part, half], self._tokens[part, half]
        weight = torch.ones_like(tokens) if groups is None else groups.to(tokens)
        out: torch.Tensor = torch.tensordot(weight, sums, 1) / (weight @ tokens).clamp(min=1)
        return out


def _counted(x: torch.Tensor, pass_: Pass) -> Float[torch.Tensor, "b t"]:
    """1 for tokens that count."""
    if pass_.valid is None:
        return x.new_ones(x.shape[:2])
    return pass_.valid.to(x.device, x.dtype)


def _wide(x: torch.Tensor) -> torch.Tensor:
    """An empty tensor of the dtype and device that sums are kept in: float64, on the CPU where a device has none."""
    device = torch.device("cpu") if x.device.type == "mps" else x.device
    return torch.empty(0, dtype=torch.float64, device=device)
