"""A three-layer model built by hand that continues a repeated pair, in which every edge that matters is known.

The residual stream has four blocks: token, position, previous token, output, turned by a random orthonormal basis. In
the first layer one head looks one token back and writes the token it sees into "previous token"; in the last layer one
head looks for the position whose previous token is the present one and writes the token there into "output". All other
heads and the MLPs are decoys: they copy the present token to the output, write to blocks that nobody needs, or a
constant that a bias takes away again; all leak a little everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from interp.models.subject import CausalLM
from interp.tasks.base import Example

VOCAB = CONTEXT = SIZE = 16
LAYERS, HEADS = 3, 4
WIDTH = 4 * SIZE
TOKEN, POSITION, PREVIOUS, OUTPUT = (slice(i * SIZE, (i + 1) * SIZE) for i in range(4))
GAIN = 10.0
"""Logit of a token that is copied in full."""


@dataclass(frozen=True)
class Planted:
    """A planted model: the subject, the heads of its circuit, and the circuit's edges.

    Attributes:
        carries: edges whose content tells a prompt from its `key_swap` twin.
        needed: all edges that the computation rests on, also those that carry the same in both.
    """

    subject: CausalLM
    previous: str
    match: str
    constant: str
    carries: frozenset[str]
    needed: frozenset[str]


def planted(seed: int, *, sharp: float = 4.0, leak: float = 0.02) -> Planted:
    """Draw a model; `sharp` is the score by which the right key wins, `leak` the size of what decoys write anywhere."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0]
    first, last, still = (int(rng.integers(HEADS)) for _ in range(3))
    eye = np.eye(SIZE)
    back = np.eye(SIZE, k=1)  # the query at position t is the key at position t - 1
    config = GPT2Config(
        vocab_size=VOCAB,
        n_positions=CONTEXT,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        n_inner=32,
        bos_token_id=None,
        eos_token_id=None,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        module = GPT2LMHeadModel(config).eval()
    module.transformer.ln_f = nn.Identity()

    def put(weight: torch.Tensor, value: np.ndarray) -> None:
        with torch.no_grad():
            weight.copy_(torch.from_numpy(value))

    def block(where: slice, value: np.ndarray) -> np.ndarray:
        out = np.zeros((len(value), WIDTH))
        out[:, where] = value
        return out

    put(module.transformer.wte.weight, block(TOKEN, eye) @ basis)
    put(module.transformer.wpe.weight, block(POSITION, eye) @ basis)
    put(module.lm_head.weight, block(OUTPUT, GAIN * eye) @ basis)
    root = (sharp * SIZE**0.5) ** 0.5  # scores are divided by the root of the head size
    for layer, b in enumerate(module.transformer.h):
        b.ln_1, b.ln_2 = nn.Identity(), nn.Identity()
        q, k, v, bias = (np.zeros((HEADS, WIDTH, SIZE)) for _ in range(4))
        o = leak * rng.normal(size=(HEADS, SIZE, WIDTH))
        constant = np.zeros(WIDTH)
        for h in range(HEADS):
            if (layer, h) == (0, first):
                q[h, POSITION], k[h, POSITION], v[h, TOKEN] = root * back.T, root * eye, eye
                o[h] = block(PREVIOUS, eye)
            elif (layer, h) == (LAYERS - 1, last):
                q[h, TOKEN], k[h, PREVIOUS], v[h, TOKEN] = root * eye, root * eye, eye
                o[h] = block(OUTPUT, eye)
            elif (layer, h) == (1, still):
                bias[h] = 1.0  # its values are the same at every token
                o[h] += block(OUTPUT, rng.normal(size=(SIZE, SIZE)) / 4)
                constant = bias[h, 0] @ o[h]
            elif h % 2:  # looks at itself and copies to the output
                q[h, POSITION], k[h, POSITION], v[h, TOKEN] = root * eye, root * eye, eye
                o[h] += block(OUTPUT, 0.1 * eye)
            else:  # looks at equal tokens and writes into positions
                q[h, TOKEN], k[h, TOKEN], v[h, TOKEN] = root * eye, root * eye, eye
                o[h] += block(POSITION, rng.normal(size=(SIZE, SIZE)) / 4)
        flat = np.concatenate([np.concatenate(list(basis.T @ x), axis=1) for x in (q, k, v)], axis=1)
        put(b.attn.c_attn.weight, flat)
        put(b.attn.c_attn.bias, np.concatenate([np.zeros(2 * WIDTH), bias[:, 0].ravel()]))
        put(b.attn.c_proj.weight, np.concatenate(list(o)) @ basis)
        put(b.attn.c_proj.bias, -constant @ basis)
        put(b.mlp.c_fc.weight, rng.normal(size=(WIDTH, 32)) / WIDTH**0.5)
        put(b.mlp.c_fc.bias, np.zeros(32))
        into = leak * rng.normal(size=(32, WIDTH)) + block(POSITION, rng.normal(size=(32, SIZE)) / 8)
        put(b.mlp.c_proj.weight, into @ basis)
        put(b.mlp.c_proj.bias, np.zeros(WIDTH))
    a, z = f"L0H{first}", f"L{LAYERS - 1}H{last}"
    group_a, group_z = a.replace("H", "KV"), z.replace("H", "KV")
    carries = {f"embed->{group_a}.v", f"{a}->{group_z}.k", f"{z}->logits"}
    same = {f"embed->{a}.q", f"embed->{group_a}.k", f"embed->{z}.q", f"embed->{group_z}.v"}
    subject = CausalLM(module, None, name=f"planted {seed}")
    return Planted(subject, a, z, f"L1H{still}", frozenset(carries), frozenset(carries | same))


def pairs(n: int = 12, seed: int = 0, length: int = 12) -> list[Example]:
    """Prompts `... A B ... A`, answer B, foil another token of the prompt; `key_swap` has no A before the B."""
    rng = np.random.default_rng(seed)
    out = []
    for i in range(n):
        ids = [int(x) for x in rng.permutation(VOCAB)[: length + 1]]
        spare = ids.pop()
        at = int(rng.integers(1, length - 4))
        ids[-1] = ids[at]
        answer = ids[at + 1]
        foil = int(rng.choice([x for j, x in enumerate(ids) if j not in (at, at + 1, length - 1)]))
        twin = [*ids[:at], spare, *ids[at + 1 :]]
        corrupt = Example("pair", tuple(twin), (answer,), foil_ids=(foil,), chance=0.5)
        out.append(
            Example(
                "pair",
                tuple(ids),
                (answer,),
                foil_ids=(foil,),
                corrupt={"key_swap": corrupt},
                chance=0.5,
                cluster=f"c{i}",
            )
        )
    return out
