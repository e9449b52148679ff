"""`CausalLM`: a language model with what is needed to run it under taps and interventions.

It holds the Hugging Face module untouched, the tokenizer, the row of the site table and an engine. `run` traces,
`generate` decodes, and `apply` is a context in which interventions hold for both; leaving it, by an exception too,
restores every bit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import nn

from interp.errors import EngineError, UsageError
from interp.models import engines, names, offload
from interp.models.batch import Batch, Prompt
from interp.models.engines.base import Engine, Frame, Record, Rows, Tap, Taps, Trace
from interp.models.engines.hooks import Session
from interp.models.engines.resume import Checkpoint, unedited
from interp.models.engines.visits import as_list, by_heads
from interp.models.families import Family, resolve
from interp.models.sites import INDEXED, KV_HEADS, LINEAR, MLP, QUERY_HEADS, Component, Head, Neuron, Site
from interp.models.tokens import Tokens


class Lowers(Protocol):
    """An intervention, as a subject sees it: it lowers to taps for a batch."""

    def lower(self, subject: CausalLM, batch: Batch) -> dict[Site, list[Tap]]: ...

    def key(self) -> str: ...


@runtime_checkable
class Subject(Protocol):
    """A model that can be looked at: language models here, diffusion pipelines and small memory models behind it."""

    name: str

    @property
    def fingerprint(self) -> str: ...

    def run(self, batch: Any, taps: Any = None, **options: Any) -> Any: ...


class CausalLM:
    """A causal language model.

    Args:
        hf: a Hugging Face causal language model; it is put into eval mode and otherwise left alone.
        tokens: its tokenizer, or None for models over bare ids.
        name: what tables and figures call it.
        family: row of the site table; default by `config.model_type`.
        engine: what runs it: `hooks`, `lens` (TransformerLens) or `nnsight`.

    Raises:
        UnknownArchitecture: the model fits no row of the site table.
    """

    kind: Literal["causal_lm"] = "causal_lm"

    def __init__(
        self,
        hf: nn.Module,
        tokens: Tokens | None,
        *,
        name: str,
        family: Family | str | None = None,
        engine: str = "hooks",
    ):
        self.hf: Any = hf.eval()
        self._tokens = tokens
        self.name = name
        self.family = resolve(hf, family)
        self.config: Any = hf.config
        self.blocks: nn.ModuleList = hf.get_submodule(self.family.layers)  # type: ignore[assignment]
        self._layer_ids = {id(block): i for i, block in enumerate(self.blocks)}
        self._edits: tuple[Lowers, ...] = ()
        self.hooked = False
        self._hashed: tuple[tuple[str, tuple[tuple[int, int], ...]], str] | None = None
        self.engine: Engine = engines.make(engine, self)

    def with_engine(self, engine: str) -> CausalLM:
        """The same model under another engine; weights are shared, and this subject is left as it is."""
        return CausalLM(self.hf, self._tokens, name=self.name, family=self.family, engine=engine)

    # -- shape -------------------------------------------------------------------------------------------------------

    @property
    def tokens(self) -> Tokens:
        """The tokenizer; asking for it where there is none is an error that says how to give one."""
        return self._tokens if self._tokens is not None else Tokens(None)

    @property
    def has_tokens(self) -> bool:
        """Whether the model came with a tokenizer."""
        return self._tokens is not None

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def n_heads(self) -> int:
        """Query heads a layer."""
        return int(self.config.num_attention_heads)

    @property
    def n_kv_heads(self) -> int:
        """Key-value heads (groups) a layer."""
        return int(getattr(self.config, "num_key_value_heads", None) or self.n_heads)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(self.config.hidden_size)

    @property
    def d_head(self) -> int:
        """Width of a head."""
        return int(getattr(self.config, "head_dim", None) or self.d_model // self.n_heads)

    @cached_property
    def d_mlp(self) -> int:
        """Hidden units of an MLP."""
        down: Any = self.module(0, self.family.sites["neurons"].module)
        # GPT-2 keeps (in, out); a quantised weight is packed, so its own shape says nothing.
        return int(down.in_features if hasattr(down, "in_features") else down.weight.shape[0])

    @property
    def context_length(self) -> int:
        """Longest sequence the positions allow, in tokens."""
        return int(getattr(self.config, "max_position_embeddings", 0) or 2**31 - 1)

    @property
    def device(self) -> torch.device:
        """Where the embeddings live, so where inputs go."""
        return offload.device_of(self.hf.get_input_embeddings())

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the weights."""
        return next(p.dtype for p in self.hf.parameters() if p.is_floating_point())

    def kv_head(self, head: int) -> int:
        """The KV group that a query head reads."""
        return head // (self.n_heads // self.n_kv_heads)

    def heads(self) -> list[Head]:
        """All query heads, layer by layer."""
        return [Head(i, h) for i in range(self.n_layers) for h in range(self.n_heads)]

    # -- parts -------------------------------------------------------------------------------------------------------

    def module(self, layer: int, path: str) -> nn.Module:
        """A module of a block, by its path."""
        return self.blocks[layer].get_submodule(path)

    def layer_of(self, block: nn.Module) -> int:
        """Index of a block."""
        return self._layer_ids[id(block)]

    def out_weight(self, layer: int) -> Float[torch.Tensor, "h d_head d"]:
        """W_O of each head, such that z @ W_O is its share of the projection's output."""
        projection = self.module(layer, self.family.out_proj)
        with offload.present(projection):
            return by_heads(projection, self.n_heads, self.d_head, layer)

    def check(self, item: Site | Component) -> None:
        """Raise `UsageError` unless the site or component exists in this model, saying what does."""
        if isinstance(item, (Head, MLP, Neuron)):
            if not 0 <= item.layer < self.n_layers:
                raise UsageError(f"{item}: {self.name} has layers 0 to {self.n_layers - 1}")
            if isinstance(item, Head) and not 0 <= item.head < self.n_heads:
                raise UsageError(f"{item}: {self.name} has heads 0 to {self.n_heads - 1} in each layer")
            if isinstance(item, Neuron) and not 0 <= item.i < self.d_mlp:
                raise UsageError(f"{item}: {self.name} has neurons 0 to {self.d_mlp - 1} in each layer")
            return
        if item.layer is not None and item.layer >= self.n_layers:
            raise UsageError(f"site {item}: {self.name} has layers 0 to {self.n_layers - 1}")
        if item.kind in LINEAR and "weights" not in self.engine.capabilities:
            raise EngineError(
                f"engine '{self.engine.name}' cannot tap projections (capability 'weights'), as at {item}: "
                "use engine 'hooks', or edit the weights themselves"
            )
        known = {*self.family.sites, *LINEAR, "embed", "logits", "attention", "q_rot", "k_rot", "head_out"}
        if item.kind not in known:
            why = (
                "attention and MLP are parallel in it" if self.family.parallel else "its row has no such site"
            )
            raise UsageError(f"site {item}: {self.name} ({self.family.name}) has none: {why}")
        if item.index is not None and item.kind in INDEXED:
            size = self.n_heads if item.kind in QUERY_HEADS else self.n_kv_heads
            size = size if item.kind in QUERY_HEADS | KV_HEADS else self.d_mlp
            if not 0 <= item.index < size:
                raise UsageError(f"site {item}: {self.name} has indices 0 to {size - 1} there")

    def site(self, where: str | Site) -> Site:
        """The site by that name: `z[12].3`, a TransformerLens hook, or a path of nnsight or Hugging Face.

        A path names the tensor, not what an edit of it does: at `resid_mid`, for one, an edit here reaches the
        residual stream, and not the norm alone that reads it.

        Raises:
            UsageError: there is no such site; the message names near ones.

        Example:
            model.site("blocks.12.attn.hook_z"), model.site("model.layers.12.self_attn.o_proj.input")  # both z[12]
        """
        return names.site(self, where)

    # -- running -----------------------------------------------------------------------------------------------------

    def batch(self, examples: Sequence[Prompt], *, forced: bool = True) -> Batch:
        """Examples as a left-padded batch on the model's device.

        Raises:
            UsageError: an example is longer than the model's context.
        """
        for example in examples:
            self.check_length(len(example.ids) + len(example.answer_ids))
        pad = self._tokens.pad_id if self._tokens else 0
        return Batch.of(examples, forced=forced, pad_id=pad, device=self.device)

    def check_length(self, n: int) -> None:
        """Raise `UsageError` if `n` tokens do not fit the context."""
        if n > self.context_length:
            raise UsageError(
                f"{n} tokens do not fit the context of {self.name}, {self.context_length}; ask for a shorter length"
            )

    def run(
        self,
        batch: Batch | Sequence[Prompt],
        taps: Taps | Mapping[str, Tap] | None = None,
        *,
        rows: Rows | None = None,
        keep: int | None = None,
        start: Checkpoint | None = None,
        stop: int | None = None,
        grad: bool = False,
        **options: Any,
    ) -> Trace:
        """One forward pass under taps and the interventions applied; see `Trace`.

        Args:
            batch: a batch, or examples (their answers are forced).
            taps: what is watched and edited, by site or by name (see `site`); the trace is read by the same.
            rows: attention rows to reduce.
            keep: logits of this many last columns; default those that predict answers.
            start: go on from a checkpoint of this batch; the layers below it are not run.
            stop: run only the layers below this one; `trace.checkpoint` then says where to go on.
            grad: keep the graph.
            options: cache, use_cache, mask, past: see `HooksEngine.run`.
        """
        if (start is not None or stop is not None) and "resume" not in self.engine.capabilities:
            raise EngineError(f"engine '{self.engine.name}' cannot resume: run without start and stop")
        if keep is not None and keep < 1:
            raise UsageError(f"keep={keep}: logits of at least one column are kept")
        if not isinstance(batch, Batch):
            batch = self.batch(batch)
        every = self._with_edits(taps or {}, batch, start, stop)
        if start is not None or stop is not None:
            options |= {"start": start, "stop": stop}
        with torch.set_grad_enabled(grad):
            trace = self.engine.run(batch, every, rows=rows, keep=keep, **options)
        trace.names = {where: self.site(where) for where in taps or () if isinstance(where, str)}
        if trace.checkpoint is not None:
            trace.checkpoint = replace(trace.checkpoint, edits=self._edits)
        return trace

    def each(
        self,
        interventions: Iterable[Any],
        batch: Batch | Sequence[Prompt],
        *,
        keep: int | None = None,
        budget: int | None = None,
        progress: Any = None,
        spent: Any = None,
        **options: Any,
    ) -> Iterator[tuple[int, Float[torch.Tensor, "b keep v"]]]:
        """Logits of a batch under each intervention (None: intact), sharing all work; see `interp.trace.each`.

        Example:
            for i, logits in model.each([ablate(h) for h in model.heads()], batch, keep=1): ...
        """
        from interp.trace.each import each

        if not isinstance(batch, Batch):
            batch = self.batch(batch)
        return each(
            self, interventions, batch, keep=keep, budget=budget, progress=progress, spent=spent, **options
        )

    def checkpoint(
        self, batch: Batch | Sequence[Prompt], layer: int, *, after_attention: bool = False
    ) -> Checkpoint:
        """Run a batch up to a layer (and through its attention), under the interventions applied.

        Returns:
            where `run(batch, start=...)` can go on as often as is wanted.
        """
        if not after_attention and layer:
            found = self.run(batch, stop=layer).checkpoint
            assert found is not None
            return found
        attention = Site("z" if after_attention else "resid_pre", layer)
        self.check(attention)
        module = self.module(layer, self.family.out_proj) if after_attention else self.blocks[layer]
        with unedited({layer: module}) as given:
            trace = self.run(batch, {Site("resid_pre", layer): Record()}, stop=layer + 1)
        if not after_attention:
            return Checkpoint(layer, given[layer], edits=self._edits)
        z = given[layer].unflatten(-1, (self.n_heads, self.d_head))
        return Checkpoint(layer, trace[Site("resid_pre", layer)], z, self._edits)

    def _with_edits(
        self,
        taps: Mapping[Any, Any],
        batch: Batch,
        start: Checkpoint | None = None,
        stop: int | None = None,
    ) -> dict[Site, list[Tap]]:
        """Taps of the applied interventions first, then the caller's: what is recorded is what flows on.

        Of the interventions those of the layers that are run.
        """
        every: dict[Site, list[Tap]] = {}
        for edit in self._edits:
            for site, edits in edit.lower(self, batch).items():
                if stop is not None and (site.kind == "logits" or (site.layer or 0) >= stop):
                    continue
                if start is not None and (site.kind == "embed" or site < start.site):
                    if any(edit is known or edit.key() == known.key() for known in start.edits):
                        continue  # its effect below the checkpoint is part of the checkpoint
                    raise UsageError(
                        f"{edit} edits {site}, before the checkpoint at {start.site}: make the checkpoint under it"
                    )
                every.setdefault(site, []).extend(edits)
        for where, tap in taps.items():
            every.setdefault(self.site(where), []).extend(as_list(tap))
        return every

    def generate(
        self,
        batch: Batch | Sequence[Prompt],
        max_new_tokens: int,
        *,
        taps: Taps | Mapping[str, Tap] | None = None,
        **options: Any,
    ) -> list[list[int]]:
        """Continue each prompt, greedily by default, batched and with KV cache, under taps and interventions.

        Args:
            batch: a batch of prompts, or examples (their answers are not fed).
            max_new_tokens: at most so many tokens are added.
            taps: fire once a step, on the new columns.
            options: handed to transformers' `generate` (sampling, stop criteria, ...).

        Returns:
            new token ids of each row, without padding, up to and with the end-of-text token.
        """
        if not isinstance(batch, Batch):
            batch = self.batch(batch, forced=False)
        if "generate" not in self.engine.capabilities:
            raise EngineError(
                f"engine '{self.engine.name}' cannot generate: use subject.with_engine('hooks')"
            )
        if batch.forced:
            raise UsageError("generation starts from prompts; build the batch with forced=False")
        self.check_length(batch.width + max_new_tokens)
        session = Session(self, self._with_edits(taps or {}, batch), None, Frame(batch))
        pad = self._tokens.pad_id if self._tokens else 0
        settings: dict[str, Any] = {
            "max_new_tokens": max_new_tokens,
            "do_sample": False,
            "use_cache": True,
            "pad_token_id": pad,
            "temperature": None,
            "top_p": None,
            "top_k": None,
            # Greedy means the most likely token: penalties that a checkpoint brings along are off unless asked for.
            "repetition_penalty": 1.0,
            "no_repeat_ngram_size": 0,
            **options,
        }
        with torch.no_grad(), session.installed():
            out = self.hf.generate(batch.ids, attention_mask=batch.mask, **settings)
        eos = self.hf.generation_config.eos_token_id
        stops = {eos} if isinstance(eos, int) else set(eos or ())
        return [_upto(row, stops) for row in out[:, batch.width :].tolist()]

    @contextmanager
    def apply(self, *interventions: Lowers) -> Iterator[CausalLM]:
        """Interventions hold for every run and generation inside the block; leaving it restores every bit."""
        before = self._edits
        self._edits = (*before, *interventions)
        try:
            yield self
        finally:
            self._edits = before

    @property
    def edited(self) -> bool:
        """Whether interventions are applied."""
        return bool(self._edits)

    # -- identity ----------------------------------------------------------------------------------------------------

    @property
    def weights_hash(self) -> str:
        """Hash of all weights (names, shapes, types, data) and of the config that says how they are used.

        It is computed once, and again when a weight has changed since.
        """
        state = self.hf.state_dict()
        config = json.dumps(_numeric(self.config), sort_keys=True, default=str)
        now = config, tuple((t.data_ptr(), t._version) for t in state.values())
        if self._hashed is None or self._hashed[0] != now:
            digest = hashlib.blake2b(config.encode(), digest_size=16)
            for name, tensor in offload.weights(self.hf):
                digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
                digest.update(tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)
            self._hashed = now, digest.hexdigest()
        return self._hashed[1]

    @property
    def fingerprint(self) -> str:
        """Identity of the model as it runs now: its weights and the interventions applied."""
        edits = "".join("+" + e.key() for e in self._edits)
        return self.weights_hash + edits

    def __repr__(self) -> str:
        return (
            f"CausalLM({self.name}: {self.family.name}, {self.n_layers} layers x {self.n_heads} heads "
            f"({self.n_kv_heads} KV), d {self.d_model}, {str(self.dtype).removeprefix('torch.')} on {self.device})"
        )


def _upto(row: list[int], stops: set[int]) -> list[int]:
    for i, token in enumerate(row):
        if token in stops:
            return row[: i + 1]
    return row


_BOOKKEEPING = frozenset(
    {"transformers_version", "architectures", "dtype", "quantization_config", "use_cache"}
)
_BOOKKEEPING |= {"initializer_range", "model_type", "bos_token_id", "eos_token_id", "pad_token_id"}


def _numeric(config: Any) -> dict[str, Any]:
    """The part of a config that changes what a model computes."""
    return {k: v for k, v in config.to_dict().items() if k not in _BOOKKEEPING and not k.startswith("_")}
