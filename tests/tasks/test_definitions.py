"""Definitions, their readers, and items made of texts."""

from __future__ import annotations

from pathlib import Path

import pytest

from interp.errors import BrokenData, MissingResource, UsageError
from interp.tasks.definitions import Definition, definitions, read_definitions, text_items
from interp.tasks.passages import read_passages
from tests.tokenizers import tokens

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data" / "mempi"


def test_definitions_have_names_of_their_own_and_texts_that_share_little() -> None:
    many = definitions(300)
    assert len({d.name for d in many}) == 300
    assert all(d.name in d.text and "{" not in d.text for d in many)
    assert definitions(5) == many[:5]
    assert not {d.text for d in definitions(300, seed=1)} & {d.text for d in many}
    ends = [" ".join(d.text.split()[-8:]) for d in many]
    assert len(set(ends)) > 280


def test_items_are_the_text_cut_by_tokens() -> None:
    said = tokens("gpt2")
    found = text_items(said, definitions(4), prefix=9, length=30, group="held", halves=True, exposures=3)
    for item, text in zip(found, definitions(4), strict=True):
        assert item.ids == said.encode(text.text).ids[:30]
        assert item.suffix == item.ids[9:]
        assert item.example.ids + item.example.answer_ids == item.ids
        assert (item.group, item.exposures) == ("held", 3)
    assert [i.split for i in found] == ["locate", "test", "locate", "test"]


def test_texts_that_start_alike_or_are_too_short_are_refused() -> None:
    said = tokens("gpt2")
    twins = [Definition("a", "The bell rang for the baker"), Definition("b", "The bell rang for the king")]
    with pytest.raises(UsageError, match="'a' and 'b' start with the same 3 tokens"):
        text_items(said, twins, prefix=3)
    with pytest.raises(UsageError, match="fewer than length 99"):
        text_items(said, twins, prefix=3, length=99)


def test_files_are_read_line_by_line_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "ecbd_x.jsonl"
    path.write_text('{"definition": "A  b\\u00a0c."}\n{"definition": "D."}\n')
    assert read_definitions(path) == (Definition("ecbd 1", "A b c."), Definition("ecbd 2", "D."))
    path.write_text('{"definition": "A."}\n{"text": "D."}\n')
    with pytest.raises(BrokenData, match="line 2: a line is a JSON object with definition"):
        read_definitions(path)
    with pytest.raises(MissingResource, match=r"none\.jsonl cannot be read"):
        read_definitions(tmp_path / "none.jsonl")
    path.write_text('{"all": "x y", "category": ["poems", "z"]}\n')
    assert [(p.name, p.group, p.text) for p in read_passages(path)] == [("line 1", "poems", "x y")]


@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared/data/mempi beside the checkout")
def test_the_files_of_mempi_are_read_whole() -> None:
    assert len(read_definitions(SHARED / "ecbd_2021_definition_dedup.jsonl")) == 156
    assert len(read_definitions(SHARED / "ecbd_2021_22_23_definition_dedup.jsonl")) == 328
    passages = read_passages(SHARED / "memorized_data-gpt2-xl.jsonl")
    assert len(passages) == 105
    assert passages[1].group == "Bible"
