"""Real tokenizers of the common kinds, trained on our own prose in a second each.

They differ in all that can shift a span: BOS or none, a space that belongs to the word after it or stands alone,
offsets with or without that space, digits one by one or in threes, line breaks that join the full stop before them.
"""

from __future__ import annotations

import json
from functools import cache

import transformers as hf
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from interp.models.tokens import Tokens
from interp.tasks.haystack import fillers, pieces

VOCAB = 2500
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


def _corpus() -> list[str]:
    prose = ["\n\n".join(s.text for s in piece) for piece in pieces().values()]
    return [*prose, *fillers(), "Question: Who?\nAnswer: No.", " ".join(str(i * 37) for i in range(3000))]


def _bpe(pre: pre_tokenizers.PreTokenizer, alphabet: list[str] | None = None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet or [], show_progress=False
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    return tokenizer


def _fast(tokenizer: Tokenizer) -> Tokens:
    return Tokens(hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>"))


def _byte_level(pre: pre_tokenizers.PreTokenizer) -> Tokenizer:
    tokenizer = _bpe(pre, pre_tokenizers.ByteLevel.alphabet())
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _with_bos(tokenizer: Tokenizer) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )


def gpt2() -> Tokenizer:
    """Byte-level, no BOS, runs of digits merge."""
    tokenizer = _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def smollm() -> Tokenizer:
    """Byte-level with single digits: the space before a number is a token of its own."""
    return _byte_level(
        pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    )


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def qwen() -> Tokenizer:
    """Byte-level behind a split of its own: single digits, line breaks join the punctuation before them."""
    tokenizer = _byte_level(_split(QWEN))
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def llama3() -> Tokenizer:
    """Byte-level behind a split of its own, with BOS, digits in threes, offsets without the space in front."""
    tokenizer = _byte_level(_split(LLAMA3))
    tokenizer.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=True), _with_bos(tokenizer)]
    )
    return tokenizer


def _sentencepiece(normalizer: normalizers.Normalizer) -> Tokenizer:
    """Metaspace BPE with byte fallback: trained on words, then run over the whole text without a split."""
    trained = _bpe(
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split("\n", "isolated"),
                pre_tokenizers.Metaspace(prepend_scheme="never"),
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.Punctuation(),
            ]
        )
    )
    state = json.loads(trained.to_str())["model"]
    vocab = dict(state["vocab"])
    for name in ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]:
        vocab[name] = len(vocab)
    tokenizer = Tokenizer(
        models.BPE(
            vocab, [tuple(m) for m in state["merges"]], byte_fallback=True, unk_token="<unk>", fuse_unk=True
        )
    )
    tokenizer.add_special_tokens(["<s>", "</s>", "<unk>"])
    tokenizer.normalizer = normalizer
    tokenizer.post_processor = _with_bos(tokenizer)
    return tokenizer


def llama() -> Tokenizer:
    """Metaspace with a space put before the text, BOS, byte fallback."""
    tokenizer = _sentencepiece(
        normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def gemma() -> Tokenizer:
    """Metaspace without a prefix, BOS, byte fallback."""
    tokenizer = _sentencepiece(normalizers.Replace(" ", "▁"))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer


KINDS = {"gpt2": gpt2, "smollm": smollm, "llama": llama, "llama3": llama3, "qwen": qwen, "gemma": gemma}


@cache
def tokens(kind: str) -> Tokens:
    """A tokenizer by kind, trained when first asked for."""
    return _fast(KINDS[kind]())
