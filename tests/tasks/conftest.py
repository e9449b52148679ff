"""Fixtures of the task tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from interp.models.tokens import Tokens


@pytest.fixture(scope="session")
def smollm2_tokens(smollm2_path: Path) -> Tokens:
    """The default model's tokenizer, without its weights."""
    from transformers import AutoTokenizer

    return Tokens(AutoTokenizer.from_pretrained(smollm2_path))
