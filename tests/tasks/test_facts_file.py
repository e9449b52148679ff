"""Facts of files in other people's shapes: what is read, and what is refused where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tests.tokenizers
from interp.errors import BrokenData, MissingResource, UsageError
from interp.tasks import task
from interp.tasks.base import check_example
from interp.tasks.facts_file import read_facts

TOKENS = tests.tokenizers.tokens("smollm")
SHARED = Path(__file__).parents[3] / "shared" / "data"
LRE = {
    "name": "home",
    "prompt_templates": ["{} comes from the land of", "The home of {} is"],
    "samples": [
        {"subject": "Ann", "object": "Japan"},
        {"subject": "Bob", "object": "Chile"},
        {"subject": "Eve", "object": "Kenya"},
        {"subject": "Eve", "object": "Ghana"},
    ],
}
KNOWN = [
    {
        "subject": "Ann",
        "attribute": "Japan",
        "prompt": "The home of Ann is",
        "relation_id": "P1",
        "template": "no",
    },
    {"subject": "Bob", "attribute": "Chile", "prompt": "Bob comes from", "relation_id": "P1"},
]


def write(path: Path, data: Any) -> Path:
    path.write_text("\n".join(map(json.dumps, data)) if path.suffix == ".jsonl" else json.dumps(data))
    return path


def test_lre(tmp_path: Path) -> None:
    made = task("facts_file", path=write(tmp_path / "home.json", LRE))
    examples = made.examples(TOKENS)
    texts = ["Ann comes from the land of", "The home of Ann is", "Bob comes from the land of"]
    assert [e.text for e in examples[:3]] == texts and len(examples) == 8
    for e in examples:
        check_example(e, TOKENS)
        assert e.text is not None and e.offsets is not None
        (span,) = e.spans_of("subject", 0)
        assert e.text[e.offsets[span.start][0] : e.offsets[span.end - 1][1]].strip() == e.meta["subject"]
        assert e.cluster == e.meta["subject"] and e.meta["relation"] == "home"
    ann, eve = examples[0], examples[4]
    assert [TOKENS.decode(c).strip() for c in ann.candidates] == ["Japan", "Chile", "Kenya", "Ghana"]
    assert ann.chance == 0.25 and ann.foil_ids in ann.candidates[1:]
    # What else is right is no candidate, so it is no foil.
    assert [TOKENS.decode(c).strip() for c in eve.candidates] == ["Kenya", "Japan", "Chile"]
    assert [TOKENS.decode(a).strip() for a in eve.alternatives] == ["Ghana"]
    swapped = [e.corrupt["subject_swap"] for e in examples if e.corrupt]
    assert swapped and all(
        t.meta["object"] == {"Ann": "Japan", "Bob": "Chile", "Eve": "Kenya"}[t.meta["subject"]]
        for t in swapped
    )
    few = task("facts_file", path=tmp_path / "home.json", n=3)
    assert [e.key() for e in few.examples(TOKENS)] == [e.key() for e in examples[:3]]
    assert few.config()["data"] == made.config()["data"]


def test_known(tmp_path: Path) -> None:
    path = write(tmp_path / "known.json", KNOWN)
    (ann, bob) = task("facts_file", path=path).examples(TOKENS)
    assert ann.text == "The home of Ann is" and bob.text == "Bob comes from"
    assert ann.meta["template"] == "The home of {} is" and TOKENS.decode(bob.answer_ids) == " Chile"
    assert TOKENS.decode(ann.foil_ids) == " Chile"
    write(path, [*KNOWN, {**KNOWN[0], "subject": "Zoe"}])
    with pytest.raises(
        BrokenData, match="record 3: its prompt does not hold the subject 'Zoe'; skip=True goes on"
    ):
        read_facts(path)
    assert len(read_facts(path, skip=True)) == 2


def test_pararel(tmp_path: Path) -> None:
    patterns = [
        {"pattern": p}
        for p in ("[X] was born in [Y].", "[Y] is the home of [X].", "The home of [X] is [Y] .")
    ]
    path = write(tmp_path / "P19.jsonl", patterns)
    triples = write(tmp_path / "triples.jsonl", [{"sub_label": "Ann", "obj_label": "Japan"}])
    (born, home) = task("facts_file", path=path, facts=triples).examples(TOKENS)
    assert (born.text, home.text) == ("Ann was born in", "The home of Ann is")
    assert born.meta["relation"] == "P19" and born.meta["where"] == "triples.jsonl line 1"
    with pytest.raises(UsageError, match="holds patterns; pass facts="):
        read_facts(path)
    triples.write_text('{"sub_label": "Ann", "obj_label": "Japan"}\n{"sub_label": "Bob"}\n')
    with pytest.raises(BrokenData, match=r"triples.jsonl, line 2: 'obj_label' is missing"):
        read_facts(path, facts=triples)
    write(path, patterns[1:2])
    write(triples, [{"sub_label": "Ann", "obj_label": "Japan"}])
    with pytest.raises(BrokenData, match="holds no fact that can be asked"):
        read_facts(path, facts=triples)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "record 1: an object is expected, not '1'"),
        ('[{"subject": "Ann", "attribute": "", "prompt": "Ann is"}]', "record 1: 'attribute' is missing, or no text"),
        ('[{"subject": "Ann", "attribute": "Japan", "prompt": "It is Ann"}]', "its prompt ends in the subject"),
        ('[{"subject": "Ann"\n, "x" 3}]', "line 2: not JSON"),
        ('{"name": "home"}', "'prompt_templates' is missing"),
        ('{"name": "x", "prompt_templates": ["of"], "samples": [1]}', "template 1: a wording with one {}"),
        ('{"name": "x", "prompt_templates": ["{} of"], "samples": [{"subject": "A"}]}', "sample 1: 'object' is"),
        ("hello", "is neither a JSON list"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "facts.json"
    path.write_text(text)
    with pytest.raises(BrokenData, match=message):
        task("facts_file", path=path)


def test_bad_calls(tmp_path: Path) -> None:
    with pytest.raises(MissingResource, match="cannot be read"):
        task("facts_file", path=tmp_path / "none.json")
    with pytest.raises(UsageError, match="reads a file; pass path="):
        task("facts_file")
    with pytest.raises(UsageError, match="shape is 'lama'"):
        task("facts_file", path=tmp_path, shape="lama")
    path = write(tmp_path / "home.json", LRE)
    with pytest.raises(UsageError, match="facts= goes with patterns"):
        task("facts_file", path=path, facts=path)


def test_files_at_hand() -> None:
    if not SHARED.is_dir():
        pytest.skip("no ../shared/data")
    known = read_facts(SHARED / "known_1000.json", skip=True)
    assert len(known) > 1150
    assert all(f.template.count("{}") >= 1 for f in known)
    capitals = task("facts_file", path=SHARED / "lre" / "factual" / "country_capital_city.json", n=10)
    for e in capitals.examples(TOKENS):
        check_example(e, TOKENS)
    for e in task("facts_file", path=SHARED / "known_1000.json", skip=True, n=10).examples(TOKENS):
        check_example(e, TOKENS)
