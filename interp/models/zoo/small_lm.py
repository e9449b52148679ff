"""A small language model, trained from nothing on a few texts in about a minute: a subject whose whole past is known.

It is a Llama of less than a million weights over a byte-level BPE that is trained on the same texts. `train` is one
plain loop: windows of the texts in batches, and among them sequences at chosen steps, so that how often and when a
sequence was seen is part of the plan. Everything is drawn from a seed; the global random state is left alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import nn

from interp.errors import UsageError
from interp.models import cache
from interp.models.cache import Progress, quiet
from interp.models.subject import CausalLM
from interp.models.tokens import Tokens

VERSION = 1
"""Of the recipe; part of the name of the cached folder."""


@dataclass(frozen=True)
class Recipe:
    """A model and its training.

    Attributes:
        d: width of the residual stream; an MLP has three times as many neurons.
        layers, heads: blocks, and heads of each.
        vocab: tokens of the BPE, at most.
        window: tokens of a row.
        rows: rows of a batch.
        steps: updates.
        lr: of AdamW, after a warm-up; it falls to a tenth as a cosine.
    """

    d: int = 96
    layers: int = 4
    heads: int = 4
    vocab: int = 1024
    window: int = 64
    rows: int = 16
    steps: int = 600
    lr: float = 3e-3


PRESETS = {
    "quick": Recipe(),
    "tiny": Recipe(d=48, layers=2, vocab=512, window=48, rows=8, steps=150, lr=1e-2),
}
"""`quick` trains about a minute on one core, `tiny` a few seconds."""


def small_lm(
    texts: Sequence[str], preset: str = "quick", *, seed: int = 0, progress: Progress = quiet
) -> CausalLM:
    """The small model of a preset, trained on texts; from the cache where it was trained before.

    Args:
        texts: what it reads; `interp.tasks.prose.topics().values()` ships with Python.

    Raises:
        UsageError: no such preset, or hardly any text.
        MissingResource: the cache cannot be written.
    """
    if preset not in PRESETS:
        raise UsageError(f"no preset '{preset}' of the small model; write one of {', '.join(PRESETS)}")
    recipe = PRESETS[preset]
    about = {"version": VERSION, "seed": seed, "texts": _digest(texts), **asdict(recipe)}
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache.cache_dir() / "small_lm" / f"{preset}-{seed}-{key}"

    def build(new: Path, scratch: Path) -> Mapping[str, Any]:
        subject = untrained(texts, recipe, seed=seed)
        train(subject, texts, steps=recipe.steps, recipe=recipe, seed=seed, progress=progress)
        subject.hf.save_pretrained(new)
        subject.tokens.hf.save_pretrained(new)
        return about

    cache.install(folder, build, ready=lambda: cache.manifest(folder) is not None, progress=progress)
    from transformers import AutoTokenizer, LlamaForCausalLM

    hf = LlamaForCausalLM.from_pretrained(folder)
    return CausalLM(hf, Tokens(AutoTokenizer.from_pretrained(folder)), name=f"small-{preset}-{seed}")


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()


def tokenizer(texts: Sequence[str], vocab: int) -> Tokens:
    """A byte-level BPE trained on texts; `</s>` ends a text, and nothing is put before one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=["</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    return Tokens(PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>"))


def untrained(texts: Sequence[str], recipe: Recipe, *, seed: int = 0) -> CausalLM:
    """The model of a recipe with random weights, and its tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokens = tokenizer(texts, recipe.vocab)
    config = LlamaConfig(
        vocab_size=tokens.n_vocab,
        hidden_size=recipe.d,
        intermediate_size=3 * recipe.d,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokens.eos_id,
        pad_token_id=tokens.eos_id,
    )
    with torch.random.fork_rng(devices=[]):
        hf = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in hf.parameters():
            if weight.ndim > 1:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.02)
    return CausalLM(hf, tokens, name=f"small-{seed}")


def train(
    subject: CausalLM,
    texts: Sequence[str],
    *,
    steps: int,
    recipe: Recipe,
    shown: Mapping[int, Sequence[Sequence[int]]] | None = None,
    constant: float | None = None,
    watch: Callable[[int], None] | None = None,
    seed: int = 0,
    progress: Progress = quiet,
    optimizer: torch.optim.Optimizer | None = None,
) -> torch.optim.Optimizer:
    """Train a model in place on windows of texts.

    Args:
        texts: what it reads.
        steps: updates.
        shown: by step, sequences that take the places of that many rows of the batch; text fills the rest of each row.
        constant: a fixed learning rate in place of the recipe's course.
        watch: called before the first step (0) and after each (1, 2, ...), in evaluation mode.
        seed: of the windows.
        optimizer: of an earlier training of this model, whose moments go on; default a fresh one.

    Returns:
        the optimizer.

    Raises:
        UsageError: less text than a window, more sequences at a step than rows, or one that is longer than a window.
    """
    shown = shown or {}
    corpus = _corpus(subject, texts)
    if len(corpus) <= recipe.window:
        raise UsageError(
            f"{len(corpus)} tokens of text are less than a window of {recipe.window}; give more text"
        )
    for step, sequences in shown.items():
        if len(sequences) > recipe.rows or any(len(s) > recipe.window for s in sequences):
            raise UsageError(
                f"step {step}: {len(sequences)} sequences do not fit {recipe.rows} rows of {recipe.window} tokens"
            )
    rng = np.random.default_rng([seed, steps])
    hf = subject.hf
    optimizer = optimizer or torch.optim.AdamW(
        hf.parameters(), lr=recipe.lr, betas=(0.9, 0.99), weight_decay=0.01
    )
    if watch:
        watch(0)
    for step in range(steps):
        rate = constant if constant is not None else recipe.lr * _course(step, steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        ids = _rows(corpus, rng, recipe, shown.get(step, ()))
        hf.train()
        with torch.enable_grad():
            logits = hf(input_ids=ids[:, :-1].to(subject.device), use_cache=False).logits
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten().to(logits.device))
            loss.backward()
        nn.utils.clip_grad_norm_(hf.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        hf.eval()
        progress(step + 1, steps, "training steps")
        if watch:
            watch(step + 1)
    return optimizer


def _course(step: int, steps: int) -> float:
    warm = min(1.0, (step + 1) / max(1, steps // 20))
    return float(warm * (0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * step / steps))))


def _corpus(subject: CausalLM, texts: Sequence[str]) -> Int[np.ndarray, " n"]:
    """All texts one after the other, each followed by the end of text."""
    end = subject.tokens.eos_id
    closing = [] if end is None else [end]
    return np.array(
        [i for text in texts for i in [*subject.tokens.encode(text).ids, *closing]], dtype=np.int64
    )


def _rows(
    corpus: np.ndarray, rng: np.random.Generator, recipe: Recipe, shown: Sequence[Sequence[int]]
) -> Int[torch.Tensor, "rows window"]:
    starts = rng.integers(0, len(corpus) - recipe.window, size=recipe.rows)
    rows = np.stack([corpus[start : start + recipe.window] for start in starts])
    for row, sequence in zip(rows, shown, strict=False):
        row[: len(sequence)] = sequence
    return torch.from_numpy(rows)
