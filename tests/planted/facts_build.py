"""Weights of planted fact models: what neurons and heads read and write, in canonical coordinates and as a module."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from interp.models.sites import Neuron

from .geometry import Array, residual_basis

BOS, N_FILLER, N_A, N_B, N_R, N_KEY, N_O = 0, 5, 3, 3, 2, 5, 10
SUBJECTS = 5
VOCAB = 1 + N_FILLER + N_A + N_B + N_R + N_KEY + N_O
CONTEXT, D_MODEL, HEADS, D_HEAD, WIDTH = 32, 256, 4, 64, 96
CONST, CODE, WRITTEN = 2.0, 2.0, 4.0
"""Lengths of the constant direction, of codes, and of what fact neurons write."""
LOUD = WRITTEN * ((N_R + 1) / 4) ** 0.5
"""What the loud MLP writes along each spare direction: as much as the fact MLP writes in all."""
SHARP = 40.0
"""Slope of neurons: one that fires reads `SHARP` times how far its sum is beyond its threshold."""
THETA = 1e7


def _tokens(start: int, n: int) -> list[int]:
    return list(range(start, start + n))


FILLER = _tokens(1, N_FILLER)
A = _tokens(FILLER[-1] + 1, N_A)
B = _tokens(A[-1] + 1, N_B)
R = _tokens(B[-1] + 1, N_R)
KEY = _tokens(R[-1] + 1, N_KEY)
O = _tokens(KEY[-1] + 1, N_O)  # noqa: E741

_SLOTS = {"raw": VOCAB, "tok": VOCAB, "prev": VOCAB, "heads": VOCAB, "out": VOCAB, "attr": N_R * N_O}
_SLOTS |= {"const": 1, "flag": 1, "sign": 1, "spare": 4, "position": CONTEXT}


def _layout() -> dict[str, np.ndarray]:
    at, out = 0, {}
    for name, size in _SLOTS.items():
        out[name] = np.arange(at, at + size)
        at += size
    return out


AT = _layout()
CANON = D_MODEL - 1


@dataclass(frozen=True)
class Fact:
    """A planted fact, and the neurons that hold it."""

    a: int
    b: int
    relation: int
    answer: int
    neurons: tuple[Neuron, ...]


class Draft:
    """Canonical matrices of a model, layer by layer."""

    def __init__(self, seed: int, gated: bool):
        self.rng = np.random.default_rng([seed, int(gated)])
        self.gated = gated
        self.n_layers = int(self.rng.integers(6, 9))
        n, rng = self.n_layers, self.rng
        fact = int(rng.integers(2, n - 2))
        reads = int(rng.integers(fact + 1, n - 1))
        self.layers = {
            "tokens": 0,
            "enabler": int(rng.integers(1, fact)),
            "facts": fact,
            "extraction": reads,
            "copying": int(rng.integers(2, n - 1)),
        }
        self.layers["output"] = n - 1
        free = [
            i
            for i in range(1, n - 1)
            if i not in self.layers.values() or i in (reads, self.layers["copying"])
        ]
        free = [i for i in free if i not in (fact, self.layers["enabler"])]
        if free:
            self.layers["loud"] = int(rng.choice(free))
        self.basis = residual_basis(rng, D_MODEL)
        # Lengths of the residual stream: embedded, at most tokens, and at a subject's last token before and after the
        # facts.
        plain = 1 + CONST**2 + CODE**2 + CODE**2 + (0 if gated else 1)
        self.norms = {
            "embedded": float(np.sqrt(1 + CONST**2 + (0 if gated else 1))),
            "plain": float(np.sqrt(plain)),
        }
        loud = LOUD**2 * len(AT["spare"])
        enabling = plain + (loud if self.layers.get("loud", n) < self.layers["enabler"] else 0)
        asked = plain + CODE**2 + (loud if self.layers.get("loud", n) < fact else 0)
        told = plain + CODE**2 + (N_R + 1) * WRITTEN**2 + (loud if self.layers.get("loud", n) < reads else 0)
        squares = {"enabling": enabling, "asked": asked, "recalled": told}
        self.norms |= {name: float(np.sqrt(square)) for name, square in squares.items()}
        self._facts()

    def _facts(self) -> None:
        rng = self.rng
        pairs = [(a, b) for a in A for b in B]
        chosen = [pairs[i] for i in sorted(rng.permutation(len(pairs))[:SUBJECTS])]
        self.per_fact = int(rng.integers(1, 3))
        slots = iter(rng.permutation(WIDTH))
        self.facts: list[Fact] = []
        for a, b in chosen:
            for r in range(N_R):
                where = tuple(Neuron(self.layers["facts"], int(next(slots))) for _ in range(self.per_fact))
                self.facts.append(Fact(a, b, r, int(rng.choice(O)), where))
        self.busy = [Neuron(self.layers["facts"], int(next(slots))) for _ in range(24)]

    # -- MLPs --------------------------------------------------------------------------------------------------------

    def mlp(self, layer: int) -> tuple[Array, Array, str]:
        """Reading matrix (WIDTH x canon), writing matrix (canon x WIDTH), and the norm that it reads at."""
        rng = self.rng
        read = 0.3 * rng.standard_normal((WIDTH, CANON)) / np.sqrt(CANON)
        write = 0.02 * rng.standard_normal((CANON, WIDTH)) / np.sqrt(WIDTH)
        norm = "plain"
        names = [name for name, at in self.layers.items() if at == layer]
        if "tokens" in names:
            norm = "embedded"
            for j, token in zip(rng.permutation(WIDTH), range(VOCAB), strict=False):
                self._neuron(read, write, j, {AT["raw"][token]: 1.0}, 0.5, {AT["tok"][token]: CODE}, 1.0)
        if "enabler" in names:
            norm = "enabling"
            for j, b in zip(rng.permutation(WIDTH), B, strict=False):
                self._neuron(read, write, j, {AT["tok"][b]: 1 / CODE}, 0.5, {AT["sign"][0]: CODE}, 1.0)
        if "facts" in names:
            norm = "asked"
            shares = [1.0] if self.per_fact == 1 else [0.6, 0.4]
            for fact in self.facts:
                wanted = {AT["prev"][fact.a]: 1 / CODE, AT["tok"][fact.b]: 1 / CODE, AT["sign"][0]: 1 / CODE}
                slot = AT["attr"][fact.relation * N_O + O.index(fact.answer)]
                for share, neuron in zip(shares, fact.neurons, strict=True):
                    told = {slot: WRITTEN, AT["flag"][0]: WRITTEN / N_R}
                    self._neuron(read, write, neuron.i, wanted, 2.5, told, share)
            for neuron in self.busy:
                b, spare = rng.choice(B), rng.choice(AT["spare"])
                self._neuron(read, write, neuron.i, {AT["tok"][b]: 1 / CODE}, 0.5, {spare: 0.3}, 1.0)
        if "loud" in names:
            for j, b in zip(rng.permutation(WIDTH), B, strict=False):
                self._neuron(
                    read, write, j, {AT["tok"][b]: 1 / CODE}, 0.5, dict.fromkeys(AT["spare"], LOUD), 1.0
                )
        if "output" in names:
            for j, o in zip(rng.permutation(WIDTH), O, strict=False):
                self._neuron(read, write, j, {AT["heads"][o]: 1 / CODE}, 0.4, {AT["out"][o]: 6.0}, 0.6 / 0.5)
        return read, write, norm

    def _neuron(
        self, read: Array, write: Array, j: int, wanted: dict, threshold: float, told: dict, share: float
    ) -> None:
        """A neuron that fires where the sum of what it reads is above a threshold, and what it then writes."""
        read[j], write[:, j] = 0.0, 0.0
        for slot, weight in wanted.items():
            read[j, slot] = SHARP * weight
        read[j, AT["const"][0]] = -SHARP * threshold / CONST
        for slot, amount in told.items():
            write[slot, j] = amount * share / (0.5 * SHARP)

    # -- heads -------------------------------------------------------------------------------------------------------

    def heads(self, layer: int) -> list[tuple[Array, Array, Array, Array, str]]:
        """Query, key, value (D_HEAD x canon), output (canon x D_HEAD) and the norm that keys are read at."""
        rng = self.rng
        out = []
        for _ in range(HEADS):
            weak = [0.05 * rng.standard_normal((D_HEAD, CANON)) / np.sqrt(CANON) for _ in range(3)]
            out.append((*weak, 0.02 * rng.standard_normal((CANON, D_HEAD)) / np.sqrt(D_HEAD), "plain"))
        if layer == 1:
            self.previous = int(rng.integers(HEADS))
            out[self.previous] = self._previous()
        free = [h for h in range(HEADS) if not (layer == 1 and h == self.previous)]
        order = list(rng.permutation(free))
        if layer == self.layers["copying"]:
            head = int(order.pop())
            self.copying = layer, head
            out[head] = self._copying()
        if layer == self.layers["extraction"]:
            self.extraction = []
            for r in range(N_R):
                head = int(order.pop())
                self.extraction.append((layer, head))
                out[head] = self._extraction(r)
        return out

    def _empty(self) -> tuple[Array, Array, Array, Array]:
        return (*(np.zeros((D_HEAD, CANON)) for _ in range(3)), np.zeros((CANON, D_HEAD)))

    def _content(self) -> np.ndarray:
        """Axes of a head that rotary positions hardly turn: the slowest pairs."""
        half = D_HEAD // 2
        slow = np.arange(half - VOCAB // 2 - 1, half)
        return np.concatenate([slow, slow + half])

    def _previous(self) -> tuple[Array, Array, Array, Array, str]:
        q, k, v, o = self._empty()
        if self.gated:
            half, n = D_HEAD // 2, 10
            speed = THETA ** (-np.arange(half) / half)
            for f in range(n):
                k[f, AT["const"][0]] = np.sqrt(400.0 / n * 8) / CONST
                q[f, AT["const"][0]] = np.sqrt(400.0 / n * 8) * np.cos(speed[f]) / CONST
                q[f + half, AT["const"][0]] = -np.sqrt(400.0 / n * 8) * np.sin(speed[f]) / CONST
        else:
            for p in range(1, CONTEXT):
                q[p, AT["position"][p]] = np.sqrt(40.0 * 8)
                k[p, AT["position"][p - 1]] = np.sqrt(40.0 * 8)
        v[np.arange(VOCAB), AT["tok"]] = 1.0
        o[AT["prev"], np.arange(VOCAB)] = 1.0
        return q, k, v, o, "plain"

    def _copying(self) -> tuple[Array, Array, Array, Array, str]:
        q, k, v, o = self._empty()
        at = self._content()[:VOCAB]
        q[at, AT["tok"]] = np.sqrt(60.0 * 8) / CODE
        k[at, AT["prev"]] = np.sqrt(60.0 * 8) / CODE
        # Where nothing matches it rests on BOS, whose value is left out.
        rest = self._content()[VOCAB]
        q[rest, AT["const"][0]] = np.sqrt(30.0 * 8) / CONST
        k[rest, AT["tok"][BOS]] = np.sqrt(30.0 * 8) / CODE
        v[np.arange(1, VOCAB), AT["tok"][1:]] = 1.0
        o[AT["heads"], np.arange(VOCAB)] = 1.0
        return q, k, v, o, "plain"

    def _extraction(self, r: int) -> tuple[Array, Array, Array, Array, str]:
        q, k, v, o = self._empty()
        at, rest = self._content()[:2]
        q[at, AT["tok"][R[r]]] = np.sqrt(60.0 * 8) * 2 / CODE
        q[at, AT["const"][0]] = -np.sqrt(60.0 * 8) / CONST
        k[at, AT["flag"][0]] = np.sqrt(60.0 * 8) / WRITTEN
        q[rest, AT["const"][0]] = np.sqrt(15.0 * 8) / CONST
        k[rest, AT["tok"][BOS]] = np.sqrt(15.0 * 8) / CODE
        v[np.arange(N_O), AT["attr"][r * N_O : (r + 1) * N_O]] = CODE / WRITTEN
        o[AT["heads"][O], np.arange(N_O)] = 1.0
        return q, k, v, o, "recalled"

    # -- modules -----------------------------------------------------------------------------------------------------

    def embedding(self) -> Array:
        table = np.zeros((VOCAB, CANON))
        table[np.arange(VOCAB), AT["raw"]] = 1.0
        table[:, AT["const"][0]] = CONST
        return table @ self.basis.T

    def reader(self, block: Array, norm: str, gain: Array) -> Array:
        """A canonical reading matrix that undoes the norm before it."""
        return (block @ self.basis.T) * (self.norms[norm] / np.sqrt(D_MODEL) / gain)

    def gain(self) -> Array:
        return self.rng.uniform(0.5, 1.5, D_MODEL)

    def state(self) -> dict[str, Array]:
        """Weights by the names of the Hugging Face module."""
        names = _LLAMA if self.gated else _GPT2
        state = {names["embed"]: self.embedding()}
        if not self.gated:
            table = np.zeros((CONTEXT, CANON))
            table[np.arange(CONTEXT), AT["position"]] = 1.0
            state["transformer.wpe.weight"] = table @ self.basis.T
        for layer in range(self.n_layers):
            before, between = self.gain(), self.gain()
            at = names["block"].format(layer)
            state[at + names["norm_1"]], state[at + names["norm_2"]] = before, between
            heads = self.heads(layer)
            # Queries are read at the last token, keys and values where facts may have been recalled.
            plain = "embedded" if layer == 0 else "plain"
            q = np.concatenate([self.reader(h[0], plain, before) for h in heads])
            k = np.concatenate([self.reader(h[1], h[4] if layer else plain, before) for h in heads])
            v = np.concatenate([self.reader(h[2], h[4] if layer else plain, before) for h in heads])
            o = self.basis @ np.concatenate([h[3] for h in heads], 1)
            read, write, norm = self.mlp(layer)
            read, write = self.reader(read, norm, between), self.basis @ write
            if self.gated:
                up = np.zeros((WIDTH, CANON))
                up[:, AT["const"][0]] = 1 / CONST
                state |= {
                    f"{at}self_attn.{n}_proj.weight": w for n, w in zip("qkvo", (q, k, v, o), strict=True)
                }
                state[at + "mlp.gate_proj.weight"] = read
                state[at + "mlp.up_proj.weight"] = self.reader(up, norm, between)
                state[at + "mlp.down_proj.weight"] = write
            else:
                state[at + "attn.c_attn.weight"] = np.concatenate([q, k, v]).T
                state[at + "attn.c_proj.weight"] = o.T
                state[at + "mlp.c_fc.weight"], state[at + "mlp.c_proj.weight"] = read.T, write.T
        final = self.gain()
        state[names["final"]] = final
        codes = np.zeros((VOCAB, CANON))
        codes[np.arange(VOCAB), AT["out"]] = 2.0
        state["lm_head.weight"] = self.reader(codes, "plain", final)
        return state

    def module(self) -> torch.nn.Module:
        shared = {"vocab_size": VOCAB, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
        shared["tie_word_embeddings"] = False
        state = self.state()
        with torch.random.fork_rng(devices=[]):
            if self.gated:
                module: torch.nn.Module = LlamaForCausalLM(
                    LlamaConfig(
                        **shared, hidden_size=D_MODEL, intermediate_size=WIDTH, num_hidden_layers=self.n_layers,
                        num_attention_heads=HEADS, num_key_value_heads=HEADS, head_dim=D_HEAD,
                        max_position_embeddings=CONTEXT, rope_parameters={"rope_type": "default", "rope_theta": THETA},
                    )
                )  # fmt: skip
            else:
                module = GPT2LMHeadModel(
                    GPT2Config(
                        **shared, n_embd=D_MODEL, n_inner=WIDTH, n_layer=self.n_layers, n_head=HEADS,
                        n_positions=CONTEXT,
                    )
                )  # fmt: skip
        with torch.no_grad():
            for name, weight in module.named_parameters():
                weight.copy_(
                    torch.tensor(state[name], dtype=torch.float32) if name in state else torch.zeros(())
                )
        assert not set(state) - set(dict(module.named_parameters()))
        return module.eval()


_GPT2 = {
    "embed": "transformer.wte.weight", "block": "transformer.h.{}.", "norm_1": "ln_1.weight", "norm_2": "ln_2.weight",
    "final": "transformer.ln_f.weight",
}  # fmt: skip
_LLAMA = {
    "embed": "model.embed_tokens.weight", "block": "model.layers.{}.", "norm_1": "input_layernorm.weight",
    "norm_2": "post_attention_layernorm.weight", "final": "model.norm.weight",
}  # fmt: skip
