"""Small language models with planted retrieval heads, as ordinary Hugging Face modules.

The circuit: `support` heads in early layers attend to the token before and write its code into a subspace of its own;
retrieval heads in later layers look for the place whose previous token is the token they stand on, and copy the token
there to the output. Greedy decoding then continues from the context what stood after the last token. All other heads
are decoys or random; MLPs are small noise. `noise` blurs every weight, from a perfect circuit to none.

A semantic head does the same without ever attending to what it copies: two early heads carry the codes of the tokens
`lag` and `lag + 1` places back to a later place (a *summary* of the needle), and the semantic head looks for the place
to which the token it stands on was carried and copies what was carried there with it. What stands there itself is
another token, behind the value.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedModel

from .build import CONTEXT, Draft
from .geometry import Array
from .placement import NoRoom, Place, place
from .questions import planted_task

__all__ = ["CONTEXT", "NoRoom", "Planted", "plant", "planted_task"]


KINDS = ("gpt2", "llama", "llama-mha")
WORKING = ("support", "retrieval", "silent", "semantic", "carry", "carry_key")
"""Parts that are no decoys."""


@dataclass(frozen=True, eq=False)
class Planted:
    """A model and the truth about it.

    Attributes:
        module: the model in eval mode, fp32, with the library's default attention.
        kind: `gpt2`, `llama` or `llama-mha`.
        retrieval: heads (layer, query head) that copy from the context to the output.
        support: heads that write the previous token's identity, without which the retrieval heads find nothing. They
            work at the places of the context: cut at the answer's rows only, they are not missed.
        silent: heads that attend exactly as the retrieval heads do and write nothing that is read: a score of
            attention alone cannot tell them from retrieval heads, a cut can.
        semantic: heads that write the answer as retrieval heads do, but read it `lag` places behind the token copied.
        carriers: heads that carry codes there, and without which the semantic heads find nothing.
        lag: how far codes are carried; farther than a value is long. 0 where there is no semantic head.
        decoys: name -> head. `duplicate` attends to the earlier same token and copies it to the output, `ahead` to the
            token after the one to copy, `salient` to the most striking token (in the needle, or one already copied
            from it), `sink` to BOS, `offset` to a fixed distance, `place` to a fixed place of the context,
            `two_back` and `previous` to that neighbour. Of these `duplicate` alone writes to the output; `sink`,
            `offset`, `place` and `previous` write with a large norm.
        offsets: fixed distance that each `offset` decoy looks back.
        places: fixed place that each `place` decoy looks at.
        others: heads without a part, with random weights.
        vocab: number of token ids; 0 is BOS.
        hot: ids that `salient` heads look for; the values of the needles that are asked for are made of them.
        context_length: longest sequence.
    """

    module: PreTrainedModel
    kind: str
    seed: int
    noise: float
    retrieval: frozenset[Place]
    support: frozenset[Place]
    silent: frozenset[Place]
    semantic: frozenset[Place]
    carriers: frozenset[Place]
    lag: int
    decoys: dict[str, Place]
    offsets: dict[str, int]
    places: dict[str, int]
    others: frozenset[Place]
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    vocab: int
    hot: tuple[int, ...]
    context_length: int = CONTEXT


def plant(
    kind: str = "gpt2",
    *,
    seed: int,
    noise: float = 0.0,
    n_planted: int | None = None,
    n_decoys: int | None = None,
    n_silent: int = 0,
    n_semantic: int = 0,
    n_place: int = 0,
) -> Planted:
    """Build a model with planted retrieval heads.

    Args:
        kind: `gpt2` (LayerNorm, learned positions), `llama` (RMSNorm, rotary positions, grouped KV heads) or
            `llama-mha` (the same with keys and values of its own for each head).
        seed: everything random is drawn from it.
        noise: standard deviation of the Gaussian added to each weight (biases stay 0), in units of the root mean
            square of the weights of its block (one head's query matrix, the unembedding, ...).
        n_planted: number of retrieval heads; None: 1 to 4.
        n_decoys: number of typed decoys; None: one of each kind, as far as there is room.
        n_silent: number of heads that only attend as retrieval heads do.
        n_semantic: number of semantic heads. They share the answer with the retrieval heads; with `n_planted=0` it is
            theirs alone.
        n_place: number of `place` decoys; learned positions only, since rotary ones tell distances and no places.

    Raises:
        NoRoom: no model of the family holds that many heads.
    """
    if kind not in KINDS:
        raise ValueError(f"no planted model of kind {kind!r}; write 'gpt2', 'llama' or 'llama-mha'")
    # The blur has a generator of its own: one seed is one circuit, at every level of noise.
    rng, blur_rng = (np.random.default_rng([seed, KINDS.index(kind), stream]) for stream in (0, 1))
    where = place(
        rng,
        grouped=kind == "llama",
        n_planted=n_planted,
        n_decoys=n_decoys,
        n_silent=n_silent,
        n_semantic=n_semantic,
        n_place=n_place,
    )
    draft = Draft(kind, where, rng)

    def blur(block: Array) -> Array:
        if not noise:
            return block
        rms = float(np.sqrt(np.mean(block**2)))
        return block + noise * rms * blur_rng.standard_normal(block.shape, dtype=np.float32)

    module = draft.gpt2(blur) if kind == "gpt2" else draft.llama(blur)
    decoys = {name: at for at, name in sorted(where.part.items()) if name.split(".")[0] not in WORKING}
    every = {(layer, head) for layer in range(where.n_layers) for head in range(where.n_heads)}
    return Planted(
        module=module.eval(),
        kind=kind,
        seed=seed,
        noise=noise,
        retrieval=frozenset(where.heads_of("retrieval")),
        support=frozenset(where.heads_of("support")),
        silent=frozenset(where.heads_of("silent")),
        semantic=frozenset(where.heads_of("semantic")),
        carriers=frozenset(where.heads_of("carry", "carry_key")),
        lag=draft.lag,
        decoys=decoys,
        offsets=draft.offsets,
        places=draft.places,
        others=frozenset(every - set(where.part)),
        n_layers=where.n_layers,
        n_heads=where.n_heads,
        n_kv_heads=where.n_kv,
        d_head=draft.d_head,
        vocab=draft.vocab,
        hot=tuple(int(i) for i in draft.hot),
    )
