"""A convolution and attention circuit for MQAR, set by hand: which heads retrieve is known, and others are decoys.

The stream has four blocks of channels: the token's code, the code of the token before it, what is read out, and a place
that nobody reads. Every code is in the first two; the convolution moves the second by one token. A retrieval head asks
with the code of its token, finds the token behind the same code, and writes that token's code where it is read out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from interp.models.sites import Head
from interp.models.zoo.config import ZooConfig
from interp.models.zoo.model import ZooForCausalLM, untrained

HEADS = 4
CODE = 32
"""Channels of a code, and of a head."""
HERE, BEFORE, READ, UNREAD = (slice(i * CODE, (i + 1) * CODE) for i in range(4))
SHARP = 6.0
"""Scale of queries: a score of the right code is so many times larger than one of length one."""

DECOYS = {
    "same token": (HERE, HERE, UNREAD, 1.0),
    "before": (BEFORE, HERE, UNREAD, 1.0),
    "same before": (BEFORE, BEFORE, UNREAD, 1.0),
    "noise": (HERE, UNREAD, READ, 0.2),
}
"""What queries and keys read, where the head writes, and how much: heads that look elsewhere and write to nobody, and
one that looks everywhere and writes a little of it."""


@dataclass
class Planted:
    """The module, its heads that retrieve, and what each other head is."""

    module: ZooForCausalLM
    retrieval: tuple[Head, ...]
    decoys: dict[Head, str]


def planted(seed: int, *, retrieval: int = 1, vocab: int = 128, sharp: float = SHARP) -> Planted:
    """A circuit with `retrieval` heads that share the copying, at places that the seed chooses."""
    rng = np.random.default_rng(seed)
    config = ZooConfig(
        vocab_size=vocab,
        hidden_size=4 * CODE,
        num_attention_heads=HEADS,
        positions="none",
        tie_word_embeddings=False,
    )
    module = untrained(config, seed=seed)
    codes = rng.standard_normal((vocab, CODE))
    codes -= codes.mean(1, keepdims=True)  # a norm then takes nothing off
    codes = torch.tensor(codes / np.linalg.norm(codes, axis=1, keepdims=True), dtype=torch.float32)
    chosen = sorted(rng.permutation(HEADS)[:retrieval].tolist())
    rest = [h for h in range(HEADS) if h not in chosen]
    kinds = rng.permutation(list(DECOYS))[: len(rest)].tolist()
    with torch.no_grad():
        _stem(module, codes)
        mixer = module.model.layers[0].mixer
        for projection in (mixer.q_proj, mixer.k_proj, mixer.v_proj, mixer.o_proj):
            projection.weight.zero_()
        for head in chosen:
            share = float(rng.uniform(0.6, 1.4))
            _head(mixer, head, HERE, BEFORE, READ, share, sharp, rng)
        for head, kind in zip(rest, kinds, strict=True):
            _head(mixer, head, *DECOYS[kind], sharp, rng)
        module.lm_head.weight.zero_()
        module.lm_head.weight[:, READ] = codes
    return Planted(
        module,
        tuple(Head(0, h) for h in chosen),
        {Head(0, h): kind for h, kind in zip(rest, kinds, strict=True)},
    )


def _stem(module: ZooForCausalLM, codes: torch.Tensor) -> None:
    """Each token's code, and in the second block the code of the one before it."""
    table = module.model.embed_tokens.weight
    table.zero_()
    table[:, HERE] = codes
    table[:, BEFORE] = codes
    conv = module.model.stem.mixer
    conv.gate.weight.zero_()
    conv.gate.bias.fill_(1.0)
    conv.conv.weight.zero_()
    conv.conv.bias.zero_()
    length = (2 / (4 * CODE)) ** 0.5  # of an embedding, which the norm takes to 1 a channel
    conv.conv.weight[BEFORE, 0, -1] = -length
    conv.conv.weight[BEFORE, 0, -2] = length


def _head(
    mixer: torch.nn.Module,
    head: int,
    asks: slice,
    finds: slice,
    writes: slice,
    share: float,
    sharp: float,
    rng: np.random.Generator,
) -> None:
    """One head whose own axes are turned at random, which changes nothing but hides them."""
    own = slice(head * CODE, (head + 1) * CODE)
    turn, other = (
        torch.tensor(np.linalg.qr(rng.standard_normal((CODE, CODE)))[0], dtype=torch.float32) for _ in "qv"
    )
    mixer.q_proj.weight[own, asks] = sharp * turn  # type: ignore[operator,union-attr]
    mixer.k_proj.weight[own, finds] = turn  # type: ignore[operator,union-attr]
    mixer.v_proj.weight[own, HERE] = other  # type: ignore[operator,union-attr]
    mixer.o_proj.weight[writes, own] = share * other.T  # type: ignore[operator,union-attr]
