"""An induction circuit written down: two heads, one channel, nothing learned.

The stream is a sum of orthogonal blocks: token, position, previous token, output, and one that nobody needs. L0H0 looks
one position back (queries and keys read positions) and copies the token it finds there into `previous`. L1H0 looks for
the position whose `previous` is the present token and copies the token it finds there into `output`. All maps are
isometries between blocks, so scores are known exactly: CS_K = 1 / sqrt(m) for m tokens, CS_Q = CS_V = 0. The other head
of each layer moves the block that nobody needs.
"""

from __future__ import annotations

import numpy as np
import torch
import transformers as hf

from interp.models.subject import CausalLM
from interp.tasks.base import Example
from tests.planted.geometry import residual_basis

TOKENS, POSITIONS, SPARE = 16, 24, 12
"""Ids, the first of which only begins a prompt; positions; width of the block that nobody needs."""
D_HEAD, HEADS = 48, 2
SHARP = 40.0
"""Attention logit of what a head looks for."""


def induction(seed: int = 0) -> CausalLM:
    """The circuit as a GPT-2, in a random basis of the stream."""
    d = D_HEAD * HEADS
    rng = np.random.default_rng(seed)
    basis = residual_basis(rng, d)
    sizes = {"token": TOKENS, "position": POSITIONS, "previous": TOKENS, "output": TOKENS, "spare": SPARE}
    ends = np.cumsum([0, *sizes.values()])
    block = {
        name: basis[:, a:b].T for name, a, b in zip(sizes, ends[:-1], ends[1:], strict=True)
    }  # orthonormal rows

    def into(rows: np.ndarray) -> np.ndarray:
        """A head's axes for the rows of a block, d x d_head."""
        return np.concatenate([rows, np.zeros((D_HEAD - len(rows), d))]).T

    back = np.zeros_like(block["position"])
    back[: POSITIONS - 1] = block["position"][1:]  # what stands at t asks for t - 1
    heads = {
        (0, 0): (back, block["position"], block["token"], block["previous"]),
        (0, 1): (block["spare"], block["spare"], block["spare"], block["spare"]),
        (1, 0): (block["token"], block["previous"], block["token"], block["output"]),
        (1, 1): (block["spare"], block["spare"], block["spare"], block["spare"]),
    }
    state = {
        "transformer.wte.weight": block["token"],
        "transformer.wpe.weight": block["position"],
        "transformer.ln_f.weight": np.ones(d),
        "lm_head.weight": block["output"],
    }
    for layer in range(2):
        at = f"transformer.h.{layer}."
        # A norm makes the sum of n blocks of length 1 as long as sqrt(d), each by sqrt(d / n).
        scale = np.sqrt(d / (2 + layer))
        parts = {name: [] for name in "qkvo"}
        for head in range(HEADS):
            q, k, v, o = heads[layer, head]
            parts["q"].append(into(q) * SHARP * np.sqrt(D_HEAD) / scale**2)
            parts["k"].append(into(k))
            parts["v"].append(into(v) / scale)
            parts["o"].append(into(o).T)
        state[at + "ln_1.weight"] = state[at + "ln_2.weight"] = np.ones(d)
        state[at + "attn.c_attn.weight"] = np.concatenate([*parts["q"], *parts["k"], *parts["v"]], axis=1)
        state[at + "attn.c_proj.weight"] = np.concatenate(parts["o"])
    config = hf.GPT2Config(
        vocab_size=TOKENS, n_positions=POSITIONS, n_embd=d, n_layer=2, n_head=HEADS, n_inner=4,
        tie_word_embeddings=False, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        module = hf.GPT2LMHeadModel(config)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            weight.copy_(torch.tensor(state[name]) if name in state else torch.zeros_like(weight))
    return CausalLM(module.eval(), None, name="analytic induction")


def repeated(n: int = 40, length: int = 11, seed: int = 0) -> list[Example]:
    """Random sequences of distinct tokens, said twice up to some token of the second time; the next is asked for."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(n):
        said = (1 + rng.permutation(TOKENS - 1)[:length]).tolist()
        cut = int(rng.integers(1, length))
        out.append(Example("repeated", (0, *said, *said[:cut]), (said[cut],), chance=1 / length))
    return out
