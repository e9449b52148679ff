"""From head parts in canonical coordinates to the weights of a Hugging Face module."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from .geometry import (
    CONST,
    Array,
    Canon,
    free_kernel,
    orthonormal,
    residual_basis,
    rotary_kernel,
    spread_codes,
)
from .heads import HeadWriter, Rows
from .placement import Place, Placement

CONTEXT = 128
N_FREQ = 6
N_HOT = 24
SLOW = 0.5
"""Length of the slow cosine in the learned positions."""
GAMMA = 16.0
"""Logit of a token whose code the retrieval heads wrote in full."""
MLP_NORM = 0.1
NEAR = {"support": 1, "previous": 1, "two_back": 2}
"""How far back heads look that attend to a neighbour."""
LAG = (6, 10)
"""How far codes are carried in models with semantic heads: from, and below."""

Blur = Callable[[Array], Array]
State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Layer:
    """Canonical matrices of one attention layer, and the norm of the residual stream before it."""

    q: list[Array]
    k: list[Array]
    v: list[Array]
    o: list[Array]
    norm_attention: float


class Draft:
    """A drawn circuit: sizes, codes, layers; `gpt2` and `llama` write it as a module."""

    def __init__(self, kind: str, where: Placement, rng: np.random.Generator):
        self.rng, self.where = rng, where
        self.learned = kind == "gpt2"
        carries = bool(where.heads_of("semantic"))
        if self.learned:
            self.d_head = int(rng.choice([40, 48])) if where.n_heads <= 8 else 40  # or building takes long
            if carries and where.n_heads == 4:
                self.d_head = 48  # two more codes need the room
            self.d_model = where.n_heads * self.d_head
            self.theta, rotary = 0.0, None
            self.kernel = free_kernel(rng, N_FREQ, CONTEXT)
            rows = Rows.plain(N_FREQ, self.d_head)
        else:
            sizes = [(48, 1e6), (64, 1e5), (64, 1e6)]
            self.d_head, self.theta = sizes[int(rng.integers(len(sizes)))]
            self.d_model = where.n_heads * int(
                np.ceil(rng.integers(192 if carries else 144, 257) / where.n_heads)
            )
            rotary = self.theta ** (-2.0 * np.arange(self.d_head // 2) / self.d_head)
            self.kernel = rotary_kernel(rng, rotary[:N_FREQ], CONTEXT)
            rows = Rows.rotary(N_FREQ, self.d_head, rotary, CONTEXT)
        self.canon = Canon.of(self.d_model, 2 * N_FREQ + 1 if self.learned else 0, carries=carries)
        # The weights end in single precision; to turn them in it too takes half the time.
        self.basis = residual_basis(rng, self.d_model).astype(np.float32)
        self.vocab = int(rng.integers(176, 225))
        self.codes = spread_codes(rng, self.vocab)
        self.codes[0] = 0.0  # BOS has no identity: a head that rests on it copies nothing
        self.hot = np.sort(1 + rng.permutation(self.vocab - 1)[:N_HOT])
        self.offsets: dict[str, int] = {}
        self.places: dict[str, int] = {}
        # Farther than a value is long: where codes are carried to, no token of the value stands.
        self.lag = int(rng.integers(*LAG)) if carries else 0
        self.writer = HeadWriter(self.canon, rows, self.kernel, rotary, CONTEXT, rng)
        # Heads that write the same share it, unevenly.
        self.share: dict[Place, float] = {}
        for kinds in (("support",), ("retrieval", "semantic"), ("silent",), ("carry",), ("carry_key",)):
            heads = where.heads_of(*kinds)
            weight = rng.uniform(0.6, 1.4, len(heads))
            self.share |= dict(zip(heads, weight / weight.sum(), strict=True))
        self.layers: list[Layer] = []
        square = CONST**2 + 1.0 + (1.0 + SLOW**2 / 2 if self.learned else 0.0)
        for layer in range(where.n_layers):
            square = self._add_layer(layer, square)
        self.norm_final = float(np.sqrt(square))

    def _add_layer(self, layer: int, square: float) -> float:
        """Write one layer; takes and returns the square of the residual stream's norm."""
        where, writer, d_head = self.where, self.writer, self.d_head
        reads = [where.reads.get((layer, g)) for g in range(where.n_kv)]
        k = [writer.key(r) for r in reads]
        v = [writer.value(r) for r in reads]
        # Turning a head's own axes changes nothing but hides them; rotary axes cannot be turned.
        turn_qk = [orthonormal(self.rng, d_head, d_head) if self.learned else np.eye(d_head) for _ in reads]
        turn_v = [orthonormal(self.rng, d_head, d_head) for _ in reads]
        q, o = [], []
        before = square
        for head in range(where.n_heads):
            name = where.part.get((layer, head), "random")
            kind = name.split(".")[0]
            offset = {"carry": self.lag, "carry_key": self.lag + 1}.get(kind, NEAR.get(kind, 0))
            if kind == "offset":
                offset = self.offsets[name] = int(self.rng.integers(8, 25))
            if kind == "place":
                offset = self.places[name] = int(self.rng.integers(8, 25))
            share = self.share.get((layer, head), 1.0)
            group = where.group(head)
            q.append(turn_qk[group] @ writer.query(kind, offset))
            o.append(writer.output(kind, share) @ turn_v[group].T)
            square += writer.norm_of(kind, share) ** 2
        k = [turn @ m for turn, m in zip(turn_qk, k, strict=True)]
        v = [turn @ m for turn, m in zip(turn_v, v, strict=True)]
        self.layers.append(Layer(q, k, v, o, float(np.sqrt(before))))
        return square + MLP_NORM**2

    def _embedding(self) -> Float[Array, "vocab d_model"]:
        c = self.canon
        table = np.zeros((self.vocab, c.size))
        table[:, c.token] = self.codes
        table[0, c.bos] = 1.0
        table[self.hot, c.hot] = self.rng.uniform(0.8, 1.2, len(self.hot))
        if not self.learned:
            table[:, c.const] = CONST
        return table @ self.basis.T

    def _positions(self) -> Float[Array, "context d_model"]:
        c = self.canon
        at = np.arange(CONTEXT)
        table = np.zeros((CONTEXT, c.size))
        turn = np.outer(at, self.kernel.freq)
        wave = np.concatenate([np.cos(turn), np.sin(turn)], axis=1) * np.sqrt(np.tile(self.kernel.weight, 2))
        table[:, c.position.start : c.position.stop - 1] = wave
        # From an eighth to three eighths of a turn, where a cosine falls steadily.
        table[:, c.position.stop - 1] = SLOW * np.cos(np.pi / 4 + np.pi / 2 * at / CONTEXT)
        table[:, c.const] = CONST
        return table @ self.basis.T

    def _gain(self) -> Float[Array, " d_model"]:
        return self.rng.uniform(0.5, 1.5, self.d_model)

    def _reader(self, block: Array, norm: float, gain: Array) -> Float[Array, "rows d_model"]:
        """Turn a canonical reading matrix into one that undoes the norm before it."""
        return (block.astype(np.float32) @ self.basis.T) * (norm / np.sqrt(self.d_model) / gain)

    def _mlp(self, width: int, n_in: int) -> tuple[list[Array], Array]:
        """Small random input and output matrices, `(width, d_model)` each input and `(d_model, width)`."""
        d = self.d_model
        read = [self.rng.standard_normal((width, d), dtype=np.float32) / np.sqrt(d) for _ in range(n_in)]
        write = self.basis @ self.rng.standard_normal((self.canon.size, width), dtype=np.float32)
        return read, write * MLP_NORM / (0.6 * np.sqrt(width * d))

    def _attention(self, layer: Layer, gain: Array, blur: Blur) -> dict[str, Array]:
        """Blurred `q`, `k`, `v` `(heads * d_head, d_model)` and `o` `(d_model, heads * d_head)`; a block is a head."""
        out = {}
        for name in ("q", "k", "v"):
            whole = self._reader(np.concatenate(getattr(layer, name)), layer.norm_attention, gain)
            out[name] = np.concatenate([blur(block) for block in np.split(whole, len(getattr(layer, name)))])
        whole = self.basis @ np.concatenate(layer.o, axis=1).astype(np.float32)
        out["o"] = np.concatenate([blur(block) for block in np.split(whole, len(layer.o), axis=1)], axis=1)
        return out

    def gpt2(self, blur: Blur) -> PreTrainedModel:
        """The circuit as a `GPT2LMHeadModel`."""
        width = self.d_model // 2
        config = GPT2Config(
            vocab_size=self.vocab,
            n_positions=CONTEXT,
            n_embd=self.d_model,
            n_layer=self.where.n_layers,
            n_head=self.where.n_heads,
            n_inner=width,
            tie_word_embeddings=False,
            bos_token_id=0,
            eos_token_id=None,
            pad_token_id=None,
        )
        state: dict[str, Array] = {
            "transformer.wte.weight": blur(self._embedding()),
            "transformer.wpe.weight": blur(self._positions()),
        }
        zero = np.zeros(self.d_model)
        for i, layer in enumerate(self.layers):
            at = f"transformer.h.{i}."
            for norm in ("ln_1", "ln_2"):
                state |= {f"{at}{norm}.weight": self._gain(), f"{at}{norm}.bias": zero}
            part = self._attention(layer, state[at + "ln_1.weight"], blur)
            state[at + "attn.c_attn.weight"] = np.concatenate([part["q"], part["k"], part["v"]]).T
            state[at + "attn.c_attn.bias"] = np.zeros(3 * self.d_model)
            state |= {at + "attn.c_proj.weight": part["o"].T, at + "attn.c_proj.bias": zero}
            (read,), write = self._mlp(width, 1)
            state |= {at + "mlp.c_fc.weight": blur(read).T, at + "mlp.c_fc.bias": np.zeros(width)}
            state |= {at + "mlp.c_proj.weight": blur(write).T, at + "mlp.c_proj.bias": zero}
        state |= {"transformer.ln_f.weight": self._gain(), "transformer.ln_f.bias": zero}
        return self._finish(GPT2LMHeadModel, config, state, "transformer.ln_f.weight", blur)

    def llama(self, blur: Blur) -> PreTrainedModel:
        """The circuit as a `LlamaForCausalLM`."""
        width = self.d_model // 2
        config = LlamaConfig(
            vocab_size=self.vocab,
            max_position_embeddings=CONTEXT,
            hidden_size=self.d_model,
            intermediate_size=width,
            num_hidden_layers=self.where.n_layers,
            num_attention_heads=self.where.n_heads,
            num_key_value_heads=self.where.n_kv,
            head_dim=self.d_head,
            rope_parameters={"rope_type": "default", "rope_theta": self.theta},
            tie_word_embeddings=False,
            bos_token_id=0,
            eos_token_id=None,
            pad_token_id=None,
        )
        state: dict[str, Array] = {"model.embed_tokens.weight": blur(self._embedding())}
        for i, layer in enumerate(self.layers):
            at = f"model.layers.{i}."
            state |= {
                at + "input_layernorm.weight": self._gain(),
                at + "post_attention_layernorm.weight": self._gain(),
            }
            part = self._attention(layer, state[at + "input_layernorm.weight"], blur)
            state |= {f"{at}self_attn.{name}_proj.weight": part[name] for name in ("q", "k", "v", "o")}
            read, write = self._mlp(width, 2)
            state |= {at + "mlp.gate_proj.weight": blur(read[0]), at + "mlp.up_proj.weight": blur(read[1])}
            state[at + "mlp.down_proj.weight"] = blur(write)
        state["model.norm.weight"] = self._gain()
        return self._finish(LlamaForCausalLM, config, state, "model.norm.weight", blur)

    def _finish(
        self,
        make: Callable[..., PreTrainedModel],
        config: GPT2Config | LlamaConfig,
        state: dict[str, Array],
        final_norm: str,
        blur: Blur,
    ) -> PreTrainedModel:
        """Add the unembedding, blur the gains, and load the lot; the global generator is left as it was."""
        codes = np.zeros((self.vocab, self.canon.size))
        codes[:, self.canon.output] = GAMMA * self.codes
        state["lm_head.weight"] = blur(self._reader(codes, self.norm_final, state[final_norm]))
        for name, value in state.items():
            if value.ndim == 1 and name.endswith("weight"):
                state[name] = blur(value)
        with torch.random.fork_rng(devices=[]):
            module = make(config)
        module.load_state_dict(
            {k: torch.tensor(v, dtype=torch.float32) for k, v in state.items()}, strict=False
        )
        left = set(dict(module.named_parameters())) - set(state)
        assert not left, f"weights not set: {sorted(left)}"
        return module
