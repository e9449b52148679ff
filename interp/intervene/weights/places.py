"""Where weights lie in either kind of subject: by part, and by the name of a parameter from the subject's root."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from interp.errors import EngineError, UsageError
from interp.models.parts import Part, module_of

training: set[int] = set()
"""Weights that are being trained now, by id; see `interp.intervene.weights.tuning.tuned`."""


def roots(subject: Any) -> dict[str, nn.Module]:
    """The modules of a subject whose weights can be edited, by the first name of their paths ("" for a model)."""
    if subject.kind == "pipeline":
        found = {name: getattr(subject.pipe, name) for name in ("unet", "text_encoder")}
        return {name: module for name, module in found.items() if module is not None}
    return {"": subject.hf}


def parameters(subject: Any) -> dict[str, nn.Parameter]:
    """All parameters by name ("unet.conv_in.weight", "model.layers.0.mlp.down_proj.weight"); tied ones once."""
    return {
        f"{root}.{name}".lstrip("."): parameter
        for root, module in roots(subject).items()
        for name, parameter in module.named_parameters()
    }


def parameter(subject: Any, name: str) -> nn.Parameter:
    """One parameter by its name.

    Raises:
        UsageError: there is none of that name.
    """
    root, _, rest = name.partition(".")
    every = roots(subject)
    path = rest if root in every else name
    module = every.get(root, every.get(""))
    try:
        assert module is not None
        return module.get_parameter(path)
    except (AssertionError, AttributeError) as error:
        raise UsageError(
            f"{subject.name} has no parameter '{name}'; names are those of parameters(subject)"
        ) from error


def projection(subject: Any, part: Part) -> tuple[nn.Parameter, nn.Parameter | None, bool]:
    """Weight and bias of a part, and whether the weight is kept in x out (GPT-2's Conv1D).

    Raises:
        EngineError: the weight is quantised or not in memory.
    """
    module: Any = module_of(subject, part)
    editable(module.weight, str(part))
    return module.weight, module.bias, type(module).__name__ == "Conv1D"


def editable(weight: torch.Tensor, where: str) -> None:
    """Raise `EngineError` unless a weight can be edited in place."""
    why = "is not in memory" if weight.is_meta else "is quantised" if not weight.is_floating_point() else ""
    if why:
        raise EngineError(
            f"{where}: the weight {why} and cannot be edited in place; load the model whole, in a float type"
        )


def idle(weight: torch.Tensor, where: str) -> None:
    """Raise `EngineError` where a weight is being trained: leaving an edit of it would undo the training."""
    if id(weight) in training:
        raise EngineError(
            f"{where}: the weight is being trained; put edits on before, or leave the block first"
        )


_lent: dict[int, list[nn.Module]] = {}
"""Modules that have a bias for the time of edits, once for each edit that needs it."""


@contextmanager
def lent_bias(subject: Any, part: Part, wanted: bool) -> Iterator[None]:
    """A projection without bias has one of zeros inside the block, until the last edit that needs it is off."""
    module: Any = module_of(subject, part)
    if not wanted or (module.bias is not None and id(module) not in _lent):
        yield
        return
    if module.bias is None:
        weight = module.weight
        out = weight.shape[0]  # Conv1D, the only one that keeps in x out, always has a bias
        module.bias = nn.Parameter(weight.new_zeros(out), requires_grad=False)
    _lent.setdefault(id(module), []).append(module)
    try:
        yield
    finally:
        _lent[id(module)].pop()
        if not _lent[id(module)]:
            del _lent[id(module)]
            module.bias = None
