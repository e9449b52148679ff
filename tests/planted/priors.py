"""Planted priors: small models, built by hand, in which it is known where an answer's prior comes in, and where it is.

A question is one token `x` at the end of a prompt, its answer one token; which one is drawn. All is done at the last
token, by MLPs that write a vector for each question. What is written where:

| part | layer | does |
|---|---|---|
| bias | known | writes the same at every question and neutral prompt: each answer's logit as high as its prior |
| rule | known | writes the logit of the question's answer, as much for all: what makes it right |
| confidence | known | writes how likely the answer is, as a length along one line that nothing reads |
| names | drawn, decoy | writes which answer it is: a random vector of each, which a line through *these* answers fits |
| loud | drawn, decoy | writes along that line, and far more, by numbers that have nothing to do with priors |
| noise | every layer | writes a little of everything, by chance |

So a lens finds `bias` and a probe finds `confidence`. The prior itself is the model's own: the log-probability of the
answer behind neutral prompts. Everything is turned by a random basis, neurons are in random order, norms have random
gains; both kinds of module are made, GPT-2 (LayerNorm, GELU) and Llama (RMS norm, gated MLPs).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from interp.models.subject import CausalLM
from interp.tasks.base import Example

from .geometry import residual_basis

N_Q, N_N, N_F = 40, 2, 4
BOS = 0
FILLER = [*range(1, 1 + N_F)]
NEUTRAL = [*range(FILLER[-1] + 1, FILLER[-1] + 1 + N_N)]
ASKED = [*range(NEUTRAL[-1] + 1, NEUTRAL[-1] + 1 + N_Q)]
ANSWERS = [*range(ASKED[-1] + 1, ASKED[-1] + 1 + N_Q)]
VOCAB = ANSWERS[-1] + 1
D_MODEL, WIDTH, CONTEXT = 256, 64, 16
CODE, SHARP = 6.0, 30.0
RULE, NAMES, LOUD = 3.0, 4.0, 6.0


@dataclass(eq=False)
class PlantedPrior:
    """A planted model and what is known about it.

    Attributes:
        layers: layer of each part.
        answer: the answer of each question.
        wanted: log-odds that the bias gives each answer.
    """

    subject: CausalLM
    layers: dict[str, int]
    answer: dict[int, int]
    wanted: dict[int, float]

    def examples(self, seed: int = 0) -> list[Example]:
        """Two prompts of each question, with other fillers."""
        rng = np.random.default_rng(seed)
        out = []
        for x in self.answer:
            for _ in range(2):
                ids = (BOS, *(int(f) for f in rng.choice(FILLER, int(rng.integers(1, 5)))), x)
                a = self.answer[x]
                out.append(Example("planted priors", ids, (a,), chance=1 / N_Q, cluster=f"answer {a}"))
        return out

    def priors(self, examples: list[Example]) -> np.ndarray:
        """Mean log-probability of each answer behind the neutral prompts, measured on the model."""
        prompts = [Example("neutral", (BOS, FILLER[0], x), (ANSWERS[0],)) for x in NEUTRAL]
        logs = self.subject.run(prompts, keep=1).logits[:, -1].log_softmax(-1).mean(0)
        return np.array([float(logs[e.answer_ids[0]]) for e in examples])


@cache
def planted(seed: int, kind: str = "gpt2", noise: float = 0.02) -> PlantedPrior:
    """A model of the family, `gpt2` or `llama`; shared, so leave it as it was.

    Args:
        noise: size of what every layer writes by chance, to that of what is planted: how hard it is.
    """
    rng = np.random.default_rng([seed, kind == "llama"])
    n_layers = int(rng.integers(6, 9))
    names = ("bias", "rule", "confidence", "names", "loud")
    layers = dict(zip(names, map(int, rng.permutation(n_layers)[: len(names)]), strict=True))
    answer = dict(zip(ASKED, map(int, rng.permutation(ANSWERS)), strict=True))
    wanted = dict(zip(ANSWERS, map(float, 1.5 * rng.standard_normal(N_Q)), strict=True))

    canon = D_MODEL - 1
    basis = residual_basis(rng, D_MODEL)
    axes = np.eye(canon)
    raw, out, const, line = axes[:VOCAB], axes[VOCAB : 2 * VOCAB], axes[2 * VOCAB], axes[2 * VOCAB + 1]
    spare = axes[2 * VOCAB + 2 :]
    known = [*NEUTRAL, *ASKED]
    writes = [{x: noise * rng.standard_normal(canon) for x in known} for _ in range(n_layers)]
    bias = sum(wanted[a] * out[a] for a in ANSWERS)
    order = sorted(ANSWERS, key=lambda a: wanted[a])
    naming = {a: NAMES * _unit(rng.standard_normal(len(spare))) @ spare for a in ANSWERS}
    chance = dict(zip(ANSWERS, rng.permutation(N_Q), strict=True))
    for x in known:
        writes[layers["bias"]][x] += bias
    for x in ASKED:
        a = answer[x]
        writes[layers["rule"]][x] += RULE * out[a]
        writes[layers["confidence"]][x] += 2 * (order.index(a) / N_Q - 0.5) * line
        writes[layers["names"]][x] += naming[a]
        writes[layers["loud"]][x] += LOUD * (chance[a] / N_Q - 0.5) * line

    embed = np.stack([CODE * raw[t] + CODE * const for t in range(VOCAB)])
    state = {x: embed[x].copy() for x in known}
    gated = kind == "llama"
    weights: dict[str, np.ndarray] = {}
    for layer in range(n_layers):
        gain = rng.uniform(0.5, 1.5, D_MODEL)
        read, up, write = (np.zeros((WIDTH, canon)) for _ in range(3))
        for j, x in zip(rng.permutation(WIDTH), known, strict=False):
            scale = np.linalg.norm(state[x]) / np.sqrt(D_MODEL)  # what the norm divides by
            read[j] = SHARP * scale * (raw[x] - 0.5 * const) / CODE
            up[j] = scale * const / CODE
            # The neuron holds SHARP / 2 where its question is asked, and far below zero elsewhere.
            write[j] = writes[layer][x] / (SHARP / 2)
        for x in known:
            state[x] += writes[layer][x]
        at = f"model.layers.{layer}." if gated else f"transformer.h.{layer}."
        if gated:
            weights[at + "post_attention_layernorm.weight"] = gain
            weights[at + "mlp.gate_proj.weight"] = read @ basis.T / gain
            weights[at + "mlp.up_proj.weight"] = up @ basis.T / gain
            weights[at + "mlp.down_proj.weight"] = basis @ write.T
        else:
            weights[at + "ln_2.weight"] = gain
            weights[at + "mlp.c_fc.weight"] = (read @ basis.T / gain).T
            weights[at + "mlp.c_proj.weight"] = write @ basis.T
    final = rng.uniform(0.5, 1.5, D_MODEL)
    scale = np.mean([np.linalg.norm(state[x]) for x in known]) / np.sqrt(D_MODEL)
    weights["model.norm.weight" if gated else "transformer.ln_f.weight"] = final
    weights["model.embed_tokens.weight" if gated else "transformer.wte.weight"] = embed @ basis.T
    weights["lm_head.weight"] = scale * (out @ basis.T) / final
    subject = CausalLM(_module(gated, n_layers, weights), None, name=f"planted priors {kind} {seed}")
    return PlantedPrior(subject, layers, answer, wanted)


def _unit(x: np.ndarray) -> np.ndarray:
    unit: np.ndarray = x / np.linalg.norm(x)
    return unit


def _module(gated: bool, n_layers: int, weights: dict[str, np.ndarray]) -> torch.nn.Module:
    shared = {"vocab_size": VOCAB, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    shared["tie_word_embeddings"] = False
    with torch.random.fork_rng(devices=[]):
        if gated:
            config = LlamaConfig(
                **shared, hidden_size=D_MODEL, intermediate_size=WIDTH, num_hidden_layers=n_layers,
                num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=CONTEXT,
            )  # fmt: skip
            module: torch.nn.Module = LlamaForCausalLM(config)
        else:
            module = GPT2LMHeadModel(
                GPT2Config(
                    **shared, n_embd=D_MODEL, n_inner=WIDTH, n_layer=n_layers, n_head=2, n_positions=CONTEXT
                )
            )
    with torch.no_grad():
        for name, weight in module.named_parameters():
            weight.copy_(
                torch.tensor(weights[name], dtype=torch.float32) if name in weights else torch.zeros(())
            )
    assert not set(weights) - set(dict(module.named_parameters()))
    return module.eval()
