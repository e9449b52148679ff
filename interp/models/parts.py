"""Parts: the linear weights that locators, edits and attacks share, of language models and of pipelines alike.

A part is a named matrix, found by class and structure: `parts(subject, "ff_out")`. `watching` shows what each part
reads, as often as it runs, and `replacing` changes it; both know through `Pass` which timestep, which rows of the
caller's list and which half of guidance a forward pass is of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import total_ordering
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import nn

from interp.errors import EngineError, UsageError

if TYPE_CHECKING:
    from interp.models.engines.base import Trace
    from interp.models.pipeline import Pipeline
    from interp.models.subject import CausalLM

    Source: TypeAlias = CausalLM | Pipeline


@total_ordering
@dataclass(frozen=True)
class Part:
    """A named linear weight of a subject; prints as `ff_out[3]`.

    Attributes:
        path: its module, from the root: `unet.down_blocks.0...ff.net.2`, `model.layers.3.mlp.down_proj`.
        kind: what it is for, see `parts`.
        number: its place among its kind, in order of execution.
    """

    path: str
    kind: str
    number: int

    def __repr__(self) -> str:
        return f"{self.kind}[{self.number}]"

    def __lt__(self, other: Part) -> bool:
        return (self.kind, self.number, self.path) < (other.kind, other.number, other.path)


@dataclass(frozen=True, eq=False)
class Pass:
    """Which forward pass a part runs in, row by row.

    Attributes:
        key: the timestep as the UNet gets it (rounded; -1 where rows differ in it); 0 for text.
        items: numbers of the rows in the caller's list of prompts or sequences.
        conditional: False for rows that are the unconditional half of guidance.
        valid: tokens that count: no padding, and none before `read_from`. None: all.
        index: the number of the denoising step. A scheduler may visit one timestep twice (PNDM does).
    """

    key: int
    items: Int[torch.Tensor, " b"]
    conditional: Bool[torch.Tensor, " b"]
    valid: Bool[torch.Tensor, "b t"] | None = None
    index: int = 0

    @classmethod
    def of(cls, x: torch.Tensor, key: int = 0) -> Pass:
        """The pass of an input of which nothing is said: its rows are numbered as they come."""
        items = torch.arange(len(x), device=x.device)
        return cls(key, items, torch.ones_like(items, dtype=torch.bool))


Reader = Callable[[Part, torch.Tensor, Pass], None]
Change = Callable[[torch.Tensor, Pass], torch.Tensor]


# -- finding ---------------------------------------------------------------------------------------------------------


def parts(subject: Source, kind: str = "ff_out") -> tuple[Part, ...]:
    """All parts of a kind, in order of execution.

    Args:
        subject: a pipeline or a language model.
        kind: of a pipeline's UNet `ff_in`, `ff_out` (the matrix behind the activation), `self_q`, `self_k`, `self_v`,
            `self_out`, `cross_q`, `cross_k`, `cross_v`, `cross_out`, of its text encoder `text_ff_in`, `text_ff_out`;
            of a language model `ff_in`, `ff_gate` (where the MLP is gated), `ff_out`, `self_q`, `self_k`, `self_v`
            (`self_qkv` where they are one matrix), `self_out`.

    Raises:
        UsageError: the subject has no part of this kind.
    """
    found = _found(subject)
    if kind not in found:
        raise UsageError(f"{subject.name} has no parts of kind '{kind}'; it has {', '.join(sorted(found))}")
    return tuple(Part(path, kind, i) for i, path in enumerate(found[kind]))


def module_of(subject: Source, part: Part) -> Any:
    """The module that holds a part's weight.

    Raises:
        UsageError: the subject has no such part.
    """
    try:
        return _root(subject).get_submodule(part.path)
    except AttributeError:
        raise UsageError(f"{part}: {subject.name} has no module '{part.path}'") from None


def weight_of(subject: Source, part: Part) -> Float[torch.Tensor, "out in"]:
    """A part's weight, (out, in): a view without a graph that shares the memory of `module_of(...).weight`."""
    module = module_of(subject, part)
    weight: torch.Tensor = module.weight.detach()
    return weight.T if type(module).__name__ == "Conv1D" else weight


class _Roots(nn.Module):
    """The modules of a pipeline under their names in it."""

    def __init__(self, **modules: nn.Module):
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)


def _root(subject: Source) -> nn.Module:
    if subject.kind == "pipeline":
        return _Roots(unet=subject.pipe.unet, text_encoder=subject.pipe.text_encoder)
    return subject.hf


def _found(subject: Source) -> dict[str, list[str]]:
    """Paths of each kind."""
    found: dict[str, list[str]] = {}
    pairs = _of_pipeline(subject.pipe) if subject.kind == "pipeline" else _of_language_model(subject)
    for kind, path in pairs:
        found.setdefault(kind, []).append(path)
    return found


def _of_pipeline(pipe: Any) -> Iterator[tuple[str, str]]:
    from diffusers.models.attention import FeedForward
    from diffusers.models.attention_processor import Attention

    for name, module in pipe.text_encoder.named_modules():
        for kind, child in _mlp_ends(module):
            yield f"text_ff_{kind}", f"text_encoder.{name}.{child}"
    # The UNet registers its up blocks before its middle, and runs them after it.
    blocks = sorted(pipe.unet.named_children(), key=lambda it: _rank(it[0]))
    for name, module in ((f"{top}.{n}" if n else top, m) for top, b in blocks for n, m in b.named_modules()):
        if isinstance(module, FeedForward):
            linear = [n for n, m in module.named_modules() if isinstance(m, nn.Linear)]
            yield "ff_in", f"unet.{name}.{linear[0]}"
            yield "ff_out", f"unet.{name}.{linear[-1]}"
        elif isinstance(module, Attention):
            side = "cross" if module.is_cross_attention else "self"
            for role, child in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("out", "to_out.0")):
                if isinstance(getattr(module, child.split(".")[0], None), nn.Module):
                    yield f"{side}_{role}", f"unet.{name}.{child}"


def _rank(name: str) -> int:
    return next((i for i, word in enumerate(("down", "mid", "up")) if word in name), -1)


def _mlp_ends(module: nn.Module) -> Iterator[tuple[str, str]]:
    """The linear layers of a module that widen and, as the last, narrow again."""
    linear = [(n, m) for n, m in module.named_children() if isinstance(m, nn.Linear)]
    if len(linear) < 2:
        return
    (first, wide), (last, narrow) = linear[0], linear[-1]
    d_in, d_ff = wide.in_features, wide.out_features
    if d_in != d_ff and (narrow.in_features, narrow.out_features) == (d_ff, d_in):
        yield "in", first
        yield "out", last


def _of_language_model(subject: CausalLM) -> Iterator[tuple[str, str]]:
    family = subject.family
    down = family.sites["neurons"].module
    mlp = down.rpartition(".")[0]
    for layer in range(subject.n_layers):
        here = f"{family.layers}.{layer}."
        separate = family.sites["q"].part == "heads"
        for letter in "qkv" if separate else "q":
            yield f"self_{letter}" if separate else "self_qkv", here + family.sites[letter].module
        yield "self_out", here + family.out_proj
        for name, child in subject.module(layer, mlp).named_children():
            if getattr(child, "weight", torch.empty(0)).ndim != 2 or f"{mlp}.{name}" == down:
                continue
            yield "ff_gate" if "gate" in name else "ff_in", f"{here}{mlp}.{name}"
        yield "ff_out", here + down


# -- the pass --------------------------------------------------------------------------------------------------------

_passes: WeakKeyDictionary[Any, Pass] = WeakKeyDictionary()
_replaced: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


@contextmanager
def passing(subject: Source, pass_: Pass) -> Iterator[None]:
    """Forward passes inside the block are of this `Pass`."""
    before = _passes.get(subject)
    _passes[subject] = pass_
    try:
        yield
    finally:
        if before is None:
            del _passes[subject]
        else:
            _passes[subject] = before


def current(subject: Source, x: torch.Tensor) -> Pass:
    """The pass that runs now, with input `x`; where none was set, rows are numbered as they come."""
    return _passes.get(subject) or Pass.of(x)


def run_ids(
    subject: CausalLM,
    ids: Sequence[Sequence[int]],
    *,
    items: Sequence[int] | None = None,
    read_from: int | Sequence[int] = 0,
    keep: int | None = None,
    grad: bool = False,
) -> Trace:
    """One forward pass of a language model over bare token ids, left-padded, under a `Pass`.

    Args:
        ids: the sequences.
        items: their numbers in the caller's list; default 0, 1, ...
        read_from: tokens before this one, in all or in each, are not valid: they are read as context, and readers
            leave them out.
        keep: logits of this many last columns; default all.
        grad: keep the graph.
    """
    from interp.models.batch import Batch

    pad = subject.tokens.pad_id if subject.has_tokens else 0
    batch = Batch.of_ids(ids, pad_id=pad, device=subject.device)
    subject.check_length(batch.width)
    first = torch.as_tensor(read_from, device=subject.device).reshape(-1, 1)
    valid = batch.mask.bool() & (batch.positions >= first)
    numbers = torch.tensor(list(range(len(ids)) if items is None else items), device=subject.device)
    pass_ = Pass(0, numbers, torch.ones_like(numbers, dtype=torch.bool), valid)
    with passing(subject, pass_):
        return subject.run(batch, keep=batch.width if keep is None else keep, grad=grad)


# -- watching and replacing ------------------------------------------------------------------------------------------


@contextmanager
def watching(subject: Source, parts: Sequence[Part], reader: Reader) -> Iterator[None]:
    """`reader(part, x, pass_)` is called with what each part reads, (b, t, in), each time it runs.

    What is shown is what the part multiplies: interventions and `replacing` have acted on it.

    Raises:
        EngineError: a part did not run inside the block.
    """
    fired = dict.fromkeys(parts, 0)

    def hook_of(part: Part) -> Callable[..., None]:
        # A hook behind the module sees the input as all hooks before it have left it, also those put on later.
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            fired[part] += 1
            x = args[0] if args else next(iter(kwargs.values()))
            reader(part, x, current(subject, x))

        return hook

    with ExitStack() as stack:
        for part in fired:
            handle = module_of(subject, part).register_forward_hook(hook_of(part), with_kwargs=True)
            stack.callback(handle.remove)
        yield
    if silent := [part for part, n in fired.items() if not n]:
        raise EngineError(
            f"{', '.join(map(repr, silent))} of {subject.name} did not run while watched: run prompts, not embeddings, "
            "for parts of a text encoder, and the engine 'hooks' for a language model"
        )


@contextmanager
def replacing(subject: Source, changes: Mapping[Part, Change], *, outputs: bool = False) -> Iterator[None]:
    """What each part reads, or gives (`outputs`), is `change(x, pass_)` inside the block; gradients flow.

    Nested blocks act in the order they were entered, and before the interventions of `subject.apply` on inputs.

    Raises:
        EngineError: a change gave another shape.
    """

    def changed(part: Part, x: torch.Tensor) -> torch.Tensor:
        new = changes[part](x, current(subject, x))
        if new.shape != x.shape:
            raise EngineError(
                f"a change of {part} made {tuple(new.shape)} of {tuple(x.shape)}: keep the shape"
            )
        return new

    def before(part: Part) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
            if args:
                return (changed(part, args[0]), *args[1:]), kwargs
            name = next(iter(kwargs))
            return args, {**kwargs, name: changed(part, kwargs[name])}

        return hook

    def behind(part: Part) -> Callable[..., Any]:
        return lambda module, args, output: changed(part, output)

    with ExitStack() as stack:
        for part in changes:
            module = module_of(subject, part)
            handle = (
                module.register_forward_hook(behind(part))
                if outputs
                else module.register_forward_pre_hook(before(part), with_kwargs=True)
            )
            stack.callback(handle.remove)
        _replaced[subject] = _replaced.get(subject, 0) + 1
        stack.callback(lambda: _replaced.update({subject: _replaced[subject] - 1}))
        yield


def replaced(subject: Source) -> bool:
    """Whether some part's input or output is being replaced."""
    return _replaced.get(subject, 0) > 0
