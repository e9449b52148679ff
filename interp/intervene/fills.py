"""What is written in the place of units that are cut: zero, a mean, or values of other tokens or of the twin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from interp.errors import UsageError
from interp.intervene.base import Scope
from interp.intervene.reference import Reference
from interp.intervene.where import Units
from interp.models.batch import Batch
from interp.models.engines.base import Frame
from interp.models.sites import Site
from interp.models.subject import CausalLM
from interp.tasks.base import Example, stable_seed

Fill = Callable[[Frame], "torch.Tensor | float"]
"""What replaces the units of a site in a pass: a number, or a tensor of shape (1|b, 1|t, *unit shape)."""


@dataclass(frozen=True)
class Replace:
    """A tap that writes a fill into the units that are cut.

    Attributes:
        keep_length: give what is written the length of what it replaces, unit by unit.
    """

    where: Units
    fill: Fill
    keep_length: bool = False

    def edit(self, value: torch.Tensor, frame: Frame) -> torch.Tensor:
        mask = self.where.mask(frame).to(value.device)
        units = mask.shape[-1]
        view = value.reshape(*value.shape[:2], units, -1)
        fill = self.fill(frame)
        if isinstance(fill, torch.Tensor):
            fill = fill.to(value.device, value.dtype).reshape(*fill.shape[:2], units, -1)
            if self.keep_length:
                length = fill.float().norm(dim=-1, keepdim=True).clamp(min=1e-12)
                fill = (fill * (view.float().norm(dim=-1, keepdim=True) / length)).to(value.dtype)
        return torch.where(mask[..., None], fill, view).view(value.shape)


def nothing(frame: Frame) -> float:
    """Zero."""
    return 0.0


def mean_fill(subject: CausalLM, batch: Batch, site: Site, reference: Reference, scope: Scope) -> Fill:
    """The mean of a reference at a site: of all its tokens, or of those in the position or role of the token."""
    layer = _layer(site)
    means = reference.means(subject, site.kind)
    if reference.pool == "pooled":
        value = means[""][layer][None, None]
        return lambda frame: value
    return lambda frame: by_class(reference, means, layer, batch, frame, scope)


def resample_fill(subject: CausalLM, batch: Batch, site: Site, reference: Reference, seed: int) -> Fill:
    """Values at a site of tokens drawn from a reference, or of the same tokens of the examples' twins."""
    layer = _layer(site)
    if reference.pool == "twin":
        if not batch.examples:
            raise UsageError("resampling from the twin needs examples, not bare ids")
        # Before the pass, not in it: the twins are runs of the same model.
        own = {id(e): e for e in batch.examples}
        found = {i: reference.twins(subject, e, site.kind, len(own))[layer] for i, e in own.items()}  # type: ignore[arg-type]
        twins = [found[id(e)] for e in batch.examples]
        return lambda frame: _by_twin(twins, batch, frame)
    bank = reference.bank(subject, site.kind)[layer]

    def draw(frame: Frame) -> torch.Tensor:
        # One donor token for each position, the same for all units and layers, whatever the batch.
        places = _positions(batch, frame)
        donors = torch.stack(
            [
                _donors(seed, _example(batch, row), int(at.max()) + 1, len(bank)).to(at.device)[at]
                for row, at in enumerate(places)
            ]
        )
        return bank[donors.to(bank.device)]

    return draw


def _layer(site: Site) -> int:
    assert site.layer is not None
    return site.layer


def _donors(seed: int, example: Example | None, n: int, bank: int) -> torch.Tensor:
    rng = np.random.default_rng(stable_seed("resample", seed, example.key() if example else ""))
    return torch.from_numpy(rng.integers(bank, size=n))


def _positions(batch: Batch, frame: Frame) -> torch.Tensor:
    """Token index of each column of the pass, also of columns that are generated; b t."""
    columns = torch.arange(frame.past, frame.past + frame.width, device=batch.ids.device)
    if frame.past + frame.width <= batch.width:
        return batch.positions[:, frame.columns]
    return (columns[None] - batch.pad[:, None]).clamp(min=0)


def _example(batch: Batch, row: int) -> Example | None:
    return batch.examples[row] if batch.examples else None  # type: ignore[return-value]


def by_class(
    reference: Reference,
    means: dict[str, torch.Tensor],
    layer: int,
    batch: Batch,
    frame: Frame,
    scope: Scope,
) -> torch.Tensor:
    """Mean of each token's class, b t *unit shape; zeros where the reference lacks it and no scope needs it."""
    out = []
    covered = batch.scope_columns(scope, frame.past, frame.width).tolist()
    none = torch.zeros_like(next(iter(means.values()))[layer])
    for row, places in enumerate(_positions(batch, frame)):
        example = _example(batch, row)
        if example is None:
            raise UsageError("a mean by position or role needs examples, not bare ids")
        names = reference.classes(example, int(places.max()) + 1)
        missing = {names[p] for p, needed in zip(places.tolist(), covered[row], strict=True) if needed}
        missing -= set(means)
        if missing:
            raise UsageError(
                f"reference {reference.name} has no {reference.pool} {sorted(missing)[0]}; "
                "give reference examples that have it, or pool='pooled'"
            )
        values = {name: means[name][layer] for name in set(names) & set(means)}
        out.append(torch.stack([values.get(names[p], none) for p in places.tolist()]))
    return torch.stack(out)


def _by_twin(twins: list[torch.Tensor], batch: Batch, frame: Frame) -> torch.Tensor:
    places = _positions(batch, frame)
    for values, at in zip(twins, places, strict=True):
        if int(at.max()) >= len(values):
            raise UsageError(
                "resampling from the twin does not reach generated tokens; force the answer instead"
            )
    return torch.stack([values[at] for values, at in zip(twins, places, strict=True)])
