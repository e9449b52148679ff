"""Addresses inside a model: `Site`, a named place in the forward pass, and `Component`, a part that can be cut.

Names and shapes follow TransformerLens. Heads are *query* heads, read and cut at `z`, the input of the output
projection, before heads are mixed; keys and values belong to KV groups and their sites have that many heads. The
neuron is the input of the down projection. `attn_out` and `mlp_out` are what is added to the residual stream.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import total_ordering
from typing import TYPE_CHECKING, Any

from interp.errors import UsageError

if TYPE_CHECKING:
    from interp.models.families import Family

KINDS: dict[str, str] = {
    "embed": "token embeddings, b t d",
    "resid_pre": "residual stream entering the block, b t d",
    "q": "queries before rotation, b t h d_head",
    "k": "keys before rotation, b t kv d_head",
    "v": "values, b t kv d_head",
    "q_rot": "queries as the attention kernel gets them, b t h d_head",
    "k_rot": "new keys as the attention kernel gets them, b t kv d_head",
    "attention": "the kernel's (q, k, v, mask), where patterns are read and edited",
    "z": "head outputs before the output projection, b t h d_head",
    "o": "input and output of the output projection, side by side, b t (h d_head + d)",
    "head_out": "each head's share of the output projection's output, without its bias, b t h d",
    "attn_out": "what attention adds to the residual stream, b t d",
    "resid_mid": "residual stream between attention and MLP, b t d",
    "neurons": "input of the down projection, b t d_mlp",
    "down": "input and output of the down projection, side by side, b t (d_mlp + d)",
    "mlp_out": "what the MLP adds to the residual stream, b t d",
    "resid_post": "residual stream leaving the block, b t d",
    "logits": "logits over the vocabulary, of the columns that are kept, b keep v",
}
"""Every kind of site in order of execution within a block, with its meaning and shape."""

_ORDER = {kind: i for i, kind in enumerate(KINDS)}
_GLOBAL = frozenset({"embed", "logits"})
QUERY_HEADS = frozenset({"q", "q_rot", "z", "head_out"})
KV_HEADS = frozenset({"k", "v", "k_rot"})
KERNEL_KINDS = frozenset({"attention", "q_rot", "k_rot"})
"""Kinds that lie in the call of the attention kernel."""
LINEAR = frozenset({"o", "down"})
"""Kinds that hold what a projection reads and what it gives; an edit of the first half is without effect."""
INDEXED = QUERY_HEADS | KV_HEADS | {"neurons"}

LENS_HOOKS: dict[str, str] = {
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "q": "attn.hook_q",
    "k": "attn.hook_k",
    "v": "attn.hook_v",
    "q_rot": "attn.hook_rot_q",
    "k_rot": "attn.hook_rot_k",
    "z": "attn.hook_z",
    "head_out": "attn.hook_result",
    "neurons": "mlp.hook_post",
}
"""TransformerLens' name of each kind of site that it has a hook for, within a block."""
_HOOK = re.compile(r"^blocks\.(?P<layer>\d+)\.(?P<hook>[a-z0-9_.]+)$")
_PATH = re.compile(r"^[\w.\[\]]+\.(inputs?|output)(\[0\]|\.0)*$")
_TEXT = re.compile(r"^(?P<kind>[a-z_]+)(\[(?P<layer>\d+)\](\.(?P<index>\d+))?)?$")


@total_ordering
@dataclass(frozen=True)
class Site:
    """A named place in the forward pass: a kind, a layer, and optionally one head or neuron of it.

    Sites are hashable and ordered by execution.

    >>> Site("z", 12, 3)
    z[12].3
    >>> sorted([Site("logits"), Site("mlp_out", 0), Site("z", 1), Site("z", 0)])
    [z[0], mlp_out[0], z[1], logits]
    """

    kind: str
    layer: int | None = None
    index: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            near = difflib.get_close_matches(self.kind, KINDS, n=1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise UsageError(f"unknown kind of site '{self.kind}'; {hint}Kinds are {' '.join(KINDS)}")
        if self.kind in _GLOBAL:
            if self.layer is not None or self.index is not None:
                raise UsageError(f"site '{self.kind}' belongs to no layer; write Site('{self.kind}')")
        elif self.layer is None or self.layer < 0:
            raise UsageError(f"site '{self.kind}' needs a layer >= 0; write Site('{self.kind}', 12)")
        if self.index is not None and self.kind not in INDEXED:
            raise UsageError(f"site '{self.kind}' has no heads or neurons to index")

    @classmethod
    def parse(cls, text: str | Site) -> Site:
        """Read `z[12]`, `z[12].3`, `logits`, or TransformerLens' name of a hook.

        Paths of nnsight and Hugging Face need a model to be read: `subject.site(path)`, or hand them to `subject.run`.

        >>> Site.parse("neurons[4].1000").index
        1000
        >>> Site.parse("blocks.12.attn.hook_z")
        z[12]
        """
        if isinstance(text, Site):
            return text
        text = text.strip()
        if text == "hook_embed":
            return cls("embed")
        if hook := _HOOK.match(text):
            return cls(_kind_of(text, hook["hook"]), int(hook["layer"]))
        if is_path(text):
            raise UsageError(
                f"'{text}' is a path, and only a model can read it; write subject.site('{text}')"
            )
        match = _TEXT.match(text)
        if not match:
            raise UsageError(f"'{text}' is not a site; write kind[layer] or kind[layer].index, as in z[12].3")
        layer, index = match["layer"], match["index"]
        return cls(
            match["kind"], None if layer is None else int(layer), None if index is None else int(index)
        )

    @property
    def whole(self) -> Site:
        """The site without its index."""
        return replace(self, index=None) if self.index is not None else self

    def lens_name(self) -> str:
        """Name of the TransformerLens hook at this site.

        >>> Site("z", 12).lens_name()
        'blocks.12.attn.hook_z'
        """
        if self.kind == "embed":
            return "hook_embed"
        if self.kind == "logits":
            raise UsageError("TransformerLens has no hook for the logits; they are what the model returns")
        if self.kind == "attention":
            raise UsageError(f"TransformerLens has no hook for the kernel's (q, k, v, mask), as {self} is")
        if self.kind in LINEAR:
            raise UsageError(
                f"TransformerLens has no hook that sees both ends of a projection, as {self} does"
            )
        return f"blocks.{self.layer}.{LENS_HOOKS[self.kind]}"

    def nnsight_path(self, family: Family) -> str:
        """Path of this site's tensor in nnsight, which is that of a Hugging Face module and its side.

        Queries, keys and values of a fused projection have the same path; the index of a site is not part of it.

        >>> from interp.models.families import FAMILIES
        >>> Site("z", 12).nnsight_path(FAMILIES["gpt2"])
        'transformer.h.12.attn.c_proj.input'

        Raises:
            UsageError: it is no module's input or output.
        """
        place = family.sites.get(self.kind)
        if place is None:
            raise UsageError(f"site {self} is no input or output of a module in the blocks of {family.name}")
        parts = (family.layers, str(self.layer), place.module, "input" if place.side == "in" else "output")
        return ".".join(part for part in parts if part)

    def _key(self) -> tuple[float, int, int]:
        place = {"embed": -1.0, "logits": float("inf")}.get(self.kind)
        if place is None:
            assert self.layer is not None
            place = float(self.layer)
        return place, _ORDER[self.kind], -1 if self.index is None else self.index

    def __lt__(self, other: object) -> bool:
        return self._key() < other._key() if isinstance(other, Site) else NotImplemented

    def __repr__(self) -> str:
        layer = "" if self.layer is None else f"[{self.layer}]"
        return f"{self.kind}{layer}" + ("" if self.index is None else f".{self.index}")


def is_path(text: str) -> bool:
    """Whether a text has the form of an nnsight path: modules, then `input` or `output`."""
    return _PATH.match(text) is not None


def _kind_of(text: str, hook: str) -> str:
    for kind, name in LENS_HOOKS.items():
        if name == hook:
            return kind
    if hook in ("attn.hook_pattern", "attn.hook_attn_scores"):
        raise UsageError(
            f"'{text}' has no site: to read attention ask for rows=Rows(columns), to change it tap attention[layer]"
        )
    near = difflib.get_close_matches(hook, LENS_HOOKS.values(), n=2)
    hint = (
        f"did you mean {' or '.join(near)}?" if near else f"those that have: {' '.join(LENS_HOOKS.values())}"
    )
    raise UsageError(f"the TransformerLens hook '{text}' has no site; {hint}")


@dataclass(frozen=True, order=True)
class Head:
    """A query head; cut at `z`.

    >>> Head(17, 3)
    L17H3
    """

    layer: int
    head: int

    @property
    def site(self) -> Site:
        """Where this component is read and cut."""
        return Site("z", self.layer, self.head)

    def __repr__(self) -> str:
        return f"L{self.layer}H{self.head}"


@dataclass(frozen=True, order=True)
class MLP:
    """A whole MLP layer; cut at `mlp_out`."""

    layer: int

    @property
    def site(self) -> Site:
        """Where this component is read and cut."""
        return Site("mlp_out", self.layer)

    def __repr__(self) -> str:
        return f"M{self.layer}"


@dataclass(frozen=True, order=True)
class Neuron:
    """One hidden unit of an MLP, the input of the down projection; cut at `neurons`."""

    layer: int
    i: int

    @property
    def site(self) -> Site:
        """Where this component is read and cut."""
        return Site("neurons", self.layer, self.i)

    def __repr__(self) -> str:
        return f"L{self.layer}N{self.i}"


Component = Head | MLP | Neuron

_COMPONENT = re.compile(r"^(?:L(?P<l>\d+)(?P<t>[HN])(?P<i>\d+)|M(?P<m>\d+)|(?P<a>\d+)-(?P<b>\d+))$")


def component(text: str | Component) -> Component:
    """Read `L17H3` (or the field's `17-3`), `M12`, `L12N100`.

    >>> component("17-3")
    L17H3
    """
    if not isinstance(text, str):
        return text
    match = _COMPONENT.match(text.strip())
    if not match:
        raise UsageError(
            f"'{text}' is no component; write a head as L17H3, an MLP as M12, a neuron as L12N100"
        )
    if match["m"]:
        return MLP(int(match["m"]))
    if match["a"]:
        return Head(int(match["a"]), int(match["b"]))
    cls: Any = Head if match["t"] == "H" else Neuron
    return cls(int(match["l"]), int(match["i"]))


def components(items: str | Component | Iterable[str | Component]) -> tuple[Component, ...]:
    """One or several components (or their names), in the order given, each once.

    >>> components("L0H1 L0H2, L0H1")
    (L0H1, L0H2)
    """
    if isinstance(items, str):
        items = items.replace(",", " ").split()
    elif isinstance(items, Component):
        items = [items]
    return tuple(dict.fromkeys(component(i) for i in items))
