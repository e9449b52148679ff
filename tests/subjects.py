"""Subjects and id-only examples over the tiny models, shared by the tests of tracing, cutting and measuring."""

from __future__ import annotations

from functools import cache

import torch
import transformers as hf

from interp.models.subject import CausalLM
from interp.tasks.base import Example, Span
from tests.tiny import _LLAMA_LIKE, FAMILIES, VOCAB, tiny

EXTRA = {
    "neox sequential": lambda: hf.GPTNeoXForCausalLM(
        hf.GPTNeoXConfig(
            vocab_size=VOCAB,
            bos_token_id=None,
            eos_token_id=None,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=512,
            use_parallel_residual=False,
        )
    ),
    "olmo2": lambda: hf.Olmo2ForCausalLM(hf.Olmo2Config(**_LLAMA_LIKE)),
}
FAMILIES.update(EXTRA)
ALL = list(FAMILIES)


@cache
def subject(family: str) -> CausalLM:
    """A tiny model of the family as a subject without tokenizer; shared, so leave it as it was."""
    return CausalLM(tiny(family), None, name=family)


def examples(lengths: tuple[int, ...] = (24, 17, 40), seed: int = 0) -> list[Example]:
    """Random prompts with key and value spans and a value_swap twin; longer than the tiny models' windows."""
    generator = torch.Generator().manual_seed(seed)
    out = []
    for i, n in enumerate(lengths):
        ids = torch.randint(0, 256, (n,), generator=generator).tolist()
        answer = tuple(ids[3:6])
        twin = list(ids)
        twin[3], twin[4] = (twin[3] + 1) % 256, (twin[4] + 1) % 256
        spans = (Span(1, 3, "key", 0), Span(3, 6, "value", 0))
        foil = ((answer[0] + 1) % 256, *answer[1:])
        corrupt = Example("tiny", tuple(twin), foil, spans=spans, chance=0.1)
        out.append(
            Example(
                "tiny",
                tuple(ids),
                answer,
                spans=spans,
                foil_ids=foil,
                candidates=(answer, foil),
                corrupt={"value_swap": corrupt},
                chance=0.5,
                cluster=f"c{i}",
            )
        )
    return out
