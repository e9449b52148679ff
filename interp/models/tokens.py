"""The one place where text becomes token ids.

Every engine, task and metric gets ids, mask and positions from here, so that a BOS token, a merge over a boundary or
a tokenizer's default never differs between two of them. Special tokens are added as the tokenizer does by default;
no chat template is applied unless a task builds its text with one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from interp.errors import MissingResource, UsageError
from interp.models.sentences import Sentences


@dataclass(frozen=True)
class Encoded:
    """Token ids of one text, with the half-open character range `[start, end)` that each token covers."""

    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return len(self.ids)


class Tokens:
    """A Hugging Face *fast* tokenizer seen through the two verbs the toolkit needs: `encode` and `decode`.

    Args:
        tokenizer: a `PreTrainedTokenizerFast`; slow tokenizers give no offsets and are refused.
    """

    def __init__(self, tokenizer: Any):
        if tokenizer is None:
            raise MissingResource(
                "the model came without a tokenizer; pass one: interp.load(module, tokenizer=...)"
            )
        if not getattr(tokenizer, "is_fast", False):
            raise UsageError(
                f"{type(tokenizer).__name__} is a slow tokenizer, which gives no character offsets; load the fast one"
            )
        self.hf = tokenizer

    def encode(self, text: str) -> Encoded:
        """Tokenise `text` whole, with the tokenizer's own default special tokens and character offsets."""
        backend = self.hf.backend_tokenizer
        usual = backend.truncation is None and backend.padding is None
        if self._plain and usual and backend.encode_special_tokens == self.hf.split_special_tokens:
            if self._sentences.able:
                return Encoded(*self._sentences.encode(text))
            # What the class around it adds to a short text is two thirds of the time.
            plain = backend.encode(text)
            return Encoded(tuple(plain.ids), tuple(plain.offsets))
        out = self.hf(text, return_offsets_mapping=True, return_attention_mask=False, verbose=False)
        return Encoded(tuple(out["input_ids"]), tuple((a, b) for a, b in out["offset_mapping"]))

    @cached_property
    def _plain(self) -> bool:
        """Whether the tokenizer's class does nothing to a text but hand it to its backend."""
        from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

        kind = type(self.hf)
        return (
            kind.__call__ is PreTrainedTokenizerBase.__call__
            and kind._encode_plus is PreTrainedTokenizerFast._encode_plus
            and not hasattr(kind, "_switch_to_input_mode")
        )

    @cached_property
    def _sentences(self) -> Sentences:
        return Sentences(self.hf.backend_tokenizer)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens included, without clean-up of spaces."""
        return str(self.hf.decode(list(ids), clean_up_tokenization_spaces=False))

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Each id decoded on its own: the labels of figures."""
        return [self.decode([i]) for i in ids]

    @property
    def n_vocab(self) -> int:
        """Number of ids, added tokens included."""
        return len(self.hf)

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that are not text."""
        return frozenset(self.hf.all_special_ids)

    @property
    def eos_id(self) -> int | None:
        """Id that ends a text, if the tokenizer has one."""
        return self.hf.eos_token_id

    @property
    def pad_id(self) -> int:
        """Id used to fill: the pad token, else EOS, else 0. It is always masked."""
        for candidate in (self.hf.pad_token_id, self.hf.eos_token_id):
            if candidate is not None:
                return int(candidate)
        return 0

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the vocabulary and of the whole tokenisation pipeline."""
        backend = getattr(self.hf, "backend_tokenizer", None) or self.hf._tokenizer
        state = json.loads(backend.to_str())
        state.pop("truncation", None)
        state.pop("padding", None)
        return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:16]


def as_tokens(source: Any) -> Tokens:
    """`Tokens` of a Subject (its `.tokens`), of a Hugging Face tokenizer, or of `Tokens` itself."""
    if isinstance(source, Tokens):
        return source
    inner = getattr(source, "tokens", None)
    if isinstance(inner, Tokens):
        return inner
    return Tokens(source)
