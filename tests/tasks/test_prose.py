"""Natural prose: what is kept of Python's documentation, a user's file, and where prompts end."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest

import tests.tokenizers
from interp.errors import BrokenData, MissingResource, UsageError
from interp.models.tokens import Tokens
from interp.tasks import task
from interp.tasks.base import Example
from interp.tasks.prose import sections, topics, unseen


def ask(family: str = "llama", **params: Any) -> list[Example]:
    return task("prose", **params).examples(tests.tokenizers.tokens(family))


def test_documentation_is_prose() -> None:
    texts = topics()
    paragraphs = [p for text in texts.values() for p in text.split("\n")]
    assert len(texts) > 30 and sum(map(len, texts.values())) > 80_000
    assert len(set(paragraphs)) == len(paragraphs), "a paragraph is in two topics, so clusters would overlap"
    for p in paragraphs:
        assert "::=" not in p and ">>>" not in p and "***" not in p and "  " not in p
        assert p[0].isupper() and p[-1] in ".:"


def test_prompt_and_answer_are_one_text(smollm2_tokens: Tokens) -> None:
    examples = task("prose", n=30).examples(smollm2_tokens)
    texts = topics()
    for e in examples:
        assert len(e.ids) == 128 and len(e.answer_ids) == 64
        assert not e.candidates and not e.foil_ids and e.chance == 1 / smollm2_tokens.n_vocab
        whole = smollm2_tokens.decode(e.full_ids)
        assert texts[e.cluster][e.meta["start"] :].startswith(whole)
        assert e.meta["start"] == 0 or re.search(r"\s$", texts[e.cluster][: e.meta["start"]])
    assert len({e.cluster for e in examples}) >= 12, "topics take turns"


@pytest.mark.parametrize("family", list(tests.tokenizers.KINDS))
def test_prompt_ends_where_its_text_does(family: str) -> None:
    """Tokens are cut off a longer text; a prompt whose last word would tokenise differently on its own is not asked."""
    tokens = tests.tokenizers.tokens(family)
    for e in ask(family, n=24):
        assert len(e.ids) == 128 and len(e.answer_ids) == 64
        text = topics()[e.cluster][e.meta["start"] :]
        assert text.startswith(str(e.text))
        whole = tokens.encode(text[: len(str(e.text)) + 1000]).ids
        assert whole[:192] == e.full_ids


def test_a_file_in_sections(tmp_path: Path) -> None:
    rng = random.Random(0)
    words = ["alpha", "beta", "gamma", "delta", "naïve", "café", "—"]
    blocks = [" ".join(rng.choice(words) for _ in range(120)) + "." for _ in range(40)]
    path = tmp_path / "mine.txt"
    path.write_text("\n\n".join(blocks), "utf-8")
    found = sections(path)
    assert len(found) > 3 and "\n".join(found.values()) == "\n".join(blocks)
    assert min(len(t) for t in list(found.values())[:-1]) >= 3000
    for family in tests.tokenizers.KINDS:
        for e in ask(family, file=str(path), prompt=20, answer=5, n=12):
            assert e.cluster in found and e.cluster.startswith("mine ")
            assert tests.tokenizers.tokens(family).encode(str(e.text)).ids == e.ids


def test_a_text_that_just_fits(tmp_path: Path) -> None:
    tokens = tests.tokenizers.tokens("llama")
    path = tmp_path / "short.txt"
    path.write_text("So it was and so it went on for ever and a day.")
    n = len(tokens.encode(path.read_text()))
    (e,) = ask(file=str(path), prompt=n - 4, answer=4, n=1)
    assert e.ids + e.answer_ids == tokens.encode(path.read_text()).ids
    with pytest.raises(UsageError, match=rf"no section of .*short.txt holds {n + 1} tokens"):
        ask(file=str(path), prompt=n - 4, answer=5, n=1)


def test_the_text_is_part_of_what_identifies_the_task(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("One sentence here. Another one there.")
    before = task("prose", file=str(path)).config()
    path.write_text("One sentence here. Another one everywhere.")
    assert task("prose", file=str(path)).config()["data"] != before["data"]
    assert {k: v for k, v in before.items() if k != "data"} == {
        "task": "prose", "n": 16, "seed": 0, "prompt": 128, "answer": 64, "file": str(path),
    }  # fmt: skip


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(MissingResource, match=r"nothing.txt cannot be read: No such file"):
        task("prose", file=str(tmp_path / "nothing.txt"))
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(BrokenData, match=r"latin.txt is not UTF-8 text \(byte 3\)"):
        task("prose", file=str(tmp_path / "latin.txt"))
    (tmp_path / "empty.txt").write_text(" \n\n ")
    with pytest.raises(BrokenData, match=r"empty.txt holds no text"):
        task("prose", file=str(tmp_path / "empty.txt"))
    with pytest.raises(UsageError, match="prompt is 0"):
        task("prose", prompt=0)
    with pytest.raises(UsageError, match="no topic holds"):
        ask(prompt=100_000)


# -- what was not seen -----------------------------------------------------------------------------------------------


def covered(e: Example, tokens: Tokens) -> tuple[str, int, int]:
    """Topic and characters of a passage, found by its words."""
    whole = tokens.decode(e.full_ids)
    assert topics()[e.cluster][e.meta["start"] :].startswith(whole)
    return e.cluster, e.meta["start"], e.meta["start"] + len(whole)


def test_unseen_passages_are_of_other_topics_than_those_that_were_seen(smollm2_tokens: Tokens) -> None:
    seen = task("prose", prompt=128, answer=1, n=200).examples(smollm2_tokens)
    # Another seed draws what was seen again.
    other = task("prose", prompt=32, answer=32, n=16, seed=1).examples(smollm2_tokens)
    taken = {e.cluster for e in seen}
    assert any(e.cluster in taken for e in other)
    found = unseen(smollm2_tokens, seen)
    assert len(found) == 16 == len({e.cluster for e in found}) and not taken & {e.cluster for e in found}
    assert {(len(e.ids), len(e.answer_ids)) for e in found} == {(32, 32)}
    again, moved = unseen(smollm2_tokens, seen), unseen(smollm2_tokens, seen, seed=1)
    assert [e.key() for e in again] == [e.key() for e in found] != [e.key() for e in moved]


def test_where_topics_run_out_no_character_is_shared(smollm2_tokens: Tokens) -> None:
    seen = task("prose", prompt=128, answer=1, n=200).examples(smollm2_tokens)
    found = unseen(smollm2_tokens, seen, n=40)
    taken = {e.cluster for e in seen}
    later = [e.cluster in taken for e in found]
    assert len(found) == 40 and later == sorted(later) and any(later), "topics apart come first"
    ranges = [covered(e, smollm2_tokens) for e in (*seen, *found)]
    for topic, low, high in ranges[len(seen) :]:
        own = [r for r in ranges if r[0] == topic and r != (topic, low, high)]
        assert all(high <= a or b <= low for _, a, b in own)
    with pytest.raises(UsageError, match="are left beside the 1 passages"):
        unseen(smollm2_tokens, seen[:1], prompt=20_000, answer=1)
