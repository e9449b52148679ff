"""Weights that accelerate keeps elsewhere: under `device_map` with "cpu" or "disk" they are on the module only while it
runs, and on the meta device, without data, between runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn


def present(module: nn.Module) -> AbstractContextManager[None]:
    """A context in which a module's own weights are there, on the device it runs on."""
    from accelerate.utils import align_module_device

    context: AbstractContextManager[None] = align_module_device(module)
    return context


def device_of(module: nn.Module) -> torch.device:
    """Where a module with weights of its own runs."""
    weight = next(module.parameters(recurse=False))
    if not weight.is_meta:
        return weight.device
    hook: Any = getattr(module, "_hf_hook", None)
    where = getattr(hook, "execution_device", None)
    return weight.device if where is None else torch.device(where)


def weights(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The state dict, item by item, with the weights that are kept elsewhere fetched one at a time."""
    for name, tensor in module.state_dict().items():
        if not tensor.is_meta:
            yield name, tensor
            continue
        path, _, own = name.rpartition(".")
        owner = module.get_submodule(path)
        with present(owner):
            yield name, getattr(owner, own).detach()
