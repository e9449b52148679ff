"""Composition scores of all pairs of heads: against TransformerLens at GPT-2 small's shape, and at Llama-3-8B's."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import pandas as pd
import torch
import transformers as hf

from interp.locate.channels.composition import Readers, composition
from interp.locate.channels.factors import MODES, Factors, Mode
from interp.locate.channels.weights import LayerHeads, Weights
from interp.models.subject import CausalLM
from tests.benchmarks.harness import Builder, Job, Reach, Results


def random_gpt2(layers: int, heads: int, d: int) -> CausalLM:
    """Random weights in GPT-2's architecture, with few embeddings, which take no part."""
    config = hf.GPT2Config(
        vocab_size=64,
        n_positions=64,
        n_layer=layers,
        n_head=heads,
        n_embd=d,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        module = hf.GPT2LMHeadModel(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in module.parameters():
            weight.normal_(0, 0.02, generator=generator)
    return CausalLM(module, None, name="random GPT-2")


def all_pairs(subject: CausalLM, layers: int = 12, heads: int = 12, d: int = 768) -> Job:
    """Composition scores of all causal pairs of heads in all modes, at GPT-2 small's shape, random weights."""
    model = random_gpt2(layers, heads, d)
    weights = Weights(model, fold=False)
    bridge = weights.bridge
    tables: dict[Mode, np.ndarray] = {}
    calls = count()

    def ours() -> pd.DataFrame:
        return composition(model, score="full", anticausal=False, weights=weights)

    def lens() -> None:
        """A mode a call, each in its turn; only the scores are kept."""
        mode = MODES[next(calls) % len(MODES)]
        with torch.no_grad():
            tables[mode] = bridge.all_composition_scores(mode).numpy()

    def equal(found: Results) -> float:
        frame = found["ours"]
        worst = 0.0
        for mode, table in tables.items():
            own = frame[frame["mode"] == mode]
            a, b = (
                own[end].str.extract(r"L(\d+)H(\d+)").astype(int).to_numpy().T for end in ("writer", "reader")
            )
            worst = max(worst, float(np.abs(table[*a, *b] - own["value"].to_numpy()).max()))
        return worst

    def numbers(found: Results) -> dict[str, float]:
        frame = found["ours"]
        return {
            "pairs": float(len(frame)),
            "modes compared": float(len(tables)),
            "mean": frame["value"].mean(),
        }

    return Job(
        f"composition scores of all causal pairs of {layers * heads} heads, Q, K and V, d = {d}, random weights",
        (
            Reach(">= 5 x faster than TransformerLens", "TransformerLens/ours", ">=", 5.0),
            Reach("<= 1/10 of its extra memory", "memory ours/TransformerLens", "<=", 0.1),
        ),
        ours=ours,
        peers={"TransformerLens": lens},
        units={"ours": 3, "TransformerLens": 1},
        equal=equal,
        tolerance=1e-6,
        numbers=numbers,
        memory={"ours": ours, "TransformerLens": lens},
        notes=(
            "ours comes with the null's mean and sd, z and alignment of each pair; of TransformerLens only the scores",
            "a call of TransformerLens (all_composition_scores) is one mode; the three take turns",
            "both read the same TransformerBridge, made beforehand",
        ),
    )


@dataclass(frozen=True)
class Shape:
    """Heads of a model that is made layer by layer."""

    layers: int = 32
    heads: int = 32
    kv_heads: int = 8
    d_head: int = 128
    d: int = 4096

    def layer(self, i: int) -> LayerHeads:
        """Random weights of a layer, the same each time."""
        generator = torch.Generator().manual_seed(i)

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator)

        q, k, v = (draw(n, self.d, self.d_head) for n in (self.heads, self.kv_heads, self.kv_heads))
        zero = [torch.zeros(n, self.d_head) for n in (self.heads, self.kv_heads, self.kv_heads)]
        return LayerHeads(i, q, k, v, draw(self.heads, self.d_head, self.d), *zero)

    def dense(self, writer: int, reader: int, at: tuple[int, int, Mode]) -> float:
        """The side score of one pair of heads by whole d x d matrices in float64."""
        a, b, mode = at
        first, second = self.layer(writer), self.layer(reader)
        share = self.heads // self.kv_heads
        ov = first.v[a // share].double() @ first.o[a].double()
        side = {"Q": second.q, "K": second.k, "V": second.v}[mode][b if mode == "Q" else b // share].double()
        return float((ov @ side).norm() / (ov.norm() * side.norm()))


def large(
    subject: CausalLM, shape: Shape = Shape(), writers: tuple[int, ...] = (0, 30), reader: int = 31
) -> Job:
    """Composition scores by blocks of layer pairs at Llama-3-8B's shape, random weights made layer by layer."""
    total = shape.layers * (shape.layers - 1) // 2

    def blocks() -> Iterator[tuple[int, Mode, np.ndarray]]:
        readers = Readers(Factors(shape.layer(reader)), MODES, "side")
        for writer in writers:
            for mode, value, *_ in readers.of(Factors(shape.layer(writer))):
                yield writer, mode, value

    def ours() -> dict[str, Any]:
        start = time.process_time()
        found = {(writer, mode): value for writer, mode, value in blocks()}
        return {"scores": found, "seconds": time.process_time() - start}

    def equal(found: Results) -> float:
        rng = np.random.default_rng(0)
        worst = 0.0
        for (writer, mode), value in found["ours"]["scores"].items():
            a, b = (int(h) for h in rng.integers(shape.heads, size=2))
            worst = max(worst, abs(float(value[a, b]) - shape.dense(writer, reader, (a, b, mode))))
        return worst

    def numbers(found: Results) -> dict[str, float]:
        each = found["ours"]["seconds"] / len(writers)
        return {
            "seconds a layer pair": each,
            "hours for all causal layer pairs, extrapolated": each * total / 3600,
            "pairs of heads and modes scored": float(sum(v.size for v in found["ours"]["scores"].values())),
        }

    return Job(
        f"composition scores at Llama-3-8B's shape ({shape.layers} layers, {shape.heads} heads, {shape.kv_heads} KV, "
        f"d = {shape.d}, random weights), Q, K and V, {len(writers)} layer pairs",
        (Reach("at most 2 GB of extra memory", "memory ours", "<=", 2.0, over=1024.0),),
        ours=ours,
        units={"ours": len(writers)},
        equal=equal,
        tolerance=1e-6,
        numbers=numbers,
        memory={"ours": ours},
        warm=lambda: None,
        notes=(
            f"{len(writers)} of {total} causal layer pairs are run, their weights drawn anew; time for all is a "
            "multiple of theirs, not measured",
            "side scores, as for any model that rotates; extra memory includes the weights of the two layers at hand",
            "equality: one pair of heads of each block and mode against whole d x d matrices in float64",
            "TransformerLens' all_composition_scores would hold a product of 69 GB at this shape, and is not run",
        ),
    )


JOBS: dict[str, Builder] = {"composition": all_pairs, "composition-8b": large}
