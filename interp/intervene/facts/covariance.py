"""Second moments of what the down projections read: how common a direction is among the keys of natural text.

C = E[k k^T] (not centred) over the tokens of a corpus, for all layers in one pass. Each batch's share is summed inside
the forward pass, so nothing grows with the text. The moments of a model and a text are kept in the cache folder as
safetensors; a run that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save

from interp.errors import BrokenData, UsageError
from interp.models.batch import Prompt, plan
from interp.models.cache import Progress, cache_dir, quiet
from interp.models.engines.base import Frame, Reduce
from interp.models.sites import Site
from interp.models.subject import CausalLM
from interp.runs import write_bytes
from interp.tasks.base import Task
from interp.tasks.prose import Prose

VERSION = "1"
TOKENS = 2048
"""Padded tokens of a batch."""

EVERY = 16
"""Batches between two checkpoints of a pass that is kept."""


def common_text(passages: int = 200) -> Prose:
    """The text that moments are taken of by default; what edits do to text is measured beside it (`unseen`)."""
    return Prose(prompt=128, answer=1, n=passages)


@dataclass(eq=False)
class Moments:
    """Second moments of the down projections' inputs.

    Attributes:
        by_layer: E[k k^T] of each layer, m m.
        tokens: how many tokens they are means over.
        model: fingerprint of the model.
        data: hash of the text's ids.
    """

    by_layer: dict[int, Float[torch.Tensor, "m m"]]
    tokens: int
    model: str = ""
    data: str = ""
    _factors: dict[tuple[int, float], torch.Tensor] = field(default_factory=dict, repr=False)

    def whitened(
        self, layer: int, keys: Float[torch.Tensor, "m n"], ridge: float
    ) -> Float[torch.Tensor, "m n"]:
        """(C + ridge * mean diagonal)^-1 keys, by a Cholesky factor in fp64 that is kept for the next call.

        Raises:
            UsageError: the layer was not measured, or C with this ridge is not positive definite.
        """
        if (layer, ridge) not in self._factors:
            if layer not in self.by_layer:
                raise UsageError(f"moments are of layers {sorted(self.by_layer)}, not of layer {layer}")
            c = self.by_layer[layer].double()
            c = c + ridge * c.diagonal().mean() * torch.eye(len(c), dtype=c.dtype, device=c.device)
            factor, failed = torch.linalg.cholesky_ex(c)
            if failed:
                raise UsageError(
                    f"the moments of layer {layer} over {self.tokens} tokens have no inverse with a ridge of {ridge}: "
                    f"take more than {len(c)} tokens, or a larger ridge"
                )
            self._factors = {(layer, ridge): factor}  # one at a time: a factor is as large as a weight
        factor = self._factors[layer, ridge]
        return torch.cholesky_solve(keys.to(factor.device, factor.dtype), factor)

    def about(self) -> dict[str, Any]:
        """JSON-able description."""
        return {"tokens": self.tokens, "data": self.data}


def second_moments(
    subject: CausalLM,
    data: Task | Sequence[Prompt] | None = None,
    *,
    layers: Sequence[int] | None = None,
    cache: bool | str | Path = True,
    dtype: torch.dtype = torch.float32,
    budget: int = TOKENS,
    progress: Progress = quiet,
) -> Moments:
    """E[k k^T] of what the down projections read, for all layers in one pass, under the interventions applied.

    Every token of the prompts and their answers counts once; padding does not.

    Args:
        data: a task (its examples are drawn one at a time) or prompts; default `common_text`: 200 passages of 128
            tokens of the prose that ships with Python. `Prose(file=...)` takes a text of the user's.
        layers: default all. A layer takes d_mlp^2 numbers.
        cache: whether to keep the result, and what an interrupted pass reached, in the cache folder, or in which.
        dtype: of the sums, over the whole text; float32 or float64.
        budget: padded tokens of a batch.
        progress: told about batches done.

    Raises:
        UsageError: a layer that does not exist; sums in half precision.
        EngineError: the engine has no such site.
    """
    wanted = list(range(subject.n_layers)) if layers is None else sorted(set(layers))
    sites = {Site("neurons", layer): layer for layer in wanted}
    for site in sites:
        subject.check(site)
    if dtype not in (torch.float32, torch.float64):
        raise UsageError(f"moments are summed in float32 or float64, not in {dtype}")
    if data is None:
        data = common_text()
    prompts: Sequence[Prompt] = data.examples(subject) if isinstance(data, Task) else list(data)
    if not prompts:
        raise UsageError("no text to take moments of: give at least one prompt")
    rows = [p.ids + p.answer_ids for p in prompts]
    groups = plan([len(r) for r in rows], budget)
    text = hashlib.sha256(repr(rows).encode()).hexdigest()[:16]
    about = {"version": VERSION, "model": subject.fingerprint, "data": text, "dtype": str(dtype)}
    about |= {"layers": ",".join(map(str, wanted)), "budget": str(budget)}
    path = None
    if cache is not False:
        folder = cache_dir() / "moments" if cache is True else Path(cache)
        folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
        path = folder / f"{name}.safetensors"
    sums, done, tokens = _reached(path, about, wanted)
    if not sums:
        m = subject.d_mlp
        sums = {layer: torch.zeros(m, m, dtype=dtype) for layer in wanted}
    for number in range(done, len(groups)):
        batch = subject.batch([_Row(rows[i]) for i in groups[number]], forced=False)
        taps = {site: Reduce(_adder(sums, layer)) for site, layer in sites.items()}
        subject.run(batch, taps, keep=1, **_upto(subject, wanted))
        tokens += int(batch.mask.sum())
        finished = number + 1 == len(groups)
        if path is not None and (finished or (number + 1) % EVERY == 0):
            state = about | {"done": str(number + 1), "tokens": str(tokens), "of": str(len(groups))}
            write_bytes(path, save({str(layer): s.cpu() for layer, s in sums.items()}, metadata=state))
        progress(number + 1, len(groups), "batches of text")
    means = {layer: s / tokens for layer, s in sums.items()}
    return Moments(means, tokens, subject.fingerprint, text)


@dataclass(frozen=True)
class _Row:
    ids: tuple[int, ...]
    answer_ids: tuple[int, ...] = ()
    spans: tuple[Any, ...] = ()


def _upto(subject: CausalLM, layers: Sequence[int]) -> dict[str, Any]:
    """No layer above the last one that is asked for needs to run."""
    return {"stop": layers[-1] + 1} if "resume" in subject.engine.capabilities else {}


def _adder(sums: dict[int, torch.Tensor], layer: int) -> Callable[[torch.Tensor, Frame], None]:
    def add(value: torch.Tensor, frame: Frame) -> None:
        own = value[frame.batch.mask.to(value.device).bool()].detach()
        total = sums[layer] = sums[layer].to(own.device)
        own = own.to(total.dtype)
        total += own.T @ own

    return add


def _reached(
    path: Path | None, about: dict[str, str], layers: Sequence[int]
) -> tuple[dict[int, torch.Tensor], int, int]:
    """Sums, batches and tokens of a pass that was kept, whole or interrupted."""
    if path is None or not path.exists():
        return {}, 0, 0
    try:
        with safe_open(path, "pt") as file:
            state = file.metadata()
            sums = {layer: file.get_tensor(str(layer)).clone() for layer in layers}
    except Exception as error:
        raise BrokenData(f"{path} cannot be read as moments ({error}); delete it") from error
    if {k: state.get(k) for k in about} != about:
        raise BrokenData(f"{path} is not what its name says; delete it")
    return sums, int(state["done"]), int(state["tokens"])
