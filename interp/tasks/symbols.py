"""Toy vocabularies: real tokenizers whose words are numbered symbols, for models that know no language.

A task over bare ids can be asked of such a model and of any language model alike: `ordinary_ids` says which tokens may
be drawn, and `encode` and `decode` work as for text.

    >>> tokens = symbols(64)
    >>> tokens.encode("s5 s63").ids, tokens.decode((5, 63))
    ((5, 63), 's5 s63')
"""

from __future__ import annotations

from functools import cache

from interp.errors import UsageError
from interp.models.tokens import Tokens

PAD = 0
"""The symbol that fills a sequence and is never drawn."""


@cache
def symbols(n: int) -> Tokens:
    """A tokenizer with `n` ids: the pad symbol `.`, the unknown symbol `?` and `s2` to `s{n-1}`.

    Raises:
        UsageError: `n` is less than 4.
    """
    if n < 4:
        raise UsageError(f"a toy vocabulary has 4 symbols or more, not {n}")
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = [".", "?", *(f"s{i}" for i in range(2, n))]
    inner = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="?"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return Tokens(PreTrainedTokenizerFast(tokenizer_object=inner, pad_token=".", unk_token="?"))
