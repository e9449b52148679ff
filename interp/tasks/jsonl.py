"""A task from a file: one JSON object a line, and a writer that gives such a file back.

A line in text form, where spans are characters of the prompt (`item` 0 is the one asked for, and the default):

    {"prompt": "Ann has a cat. Ann has a", "answer": " cat", "foil": " dog",
     "spans": [{"start": 9, "end": 13, "role": "value"}],
     "corrupt": {"value_swap": {"prompt": "Ann has a dog. Ann has a", "answer": " dog"}}}

Also known: `alternatives`, `candidates` (lists of answers), `chance`, `cluster`, `group`, `meta`, `task`. A line in ids
form has `ids` and `answer_ids` instead, spans in tokens, answers as lists of ids, and the `tokenizer` it belongs to.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from interp.errors import BrokenData, MissingResource, UsageError
from interp.models.tokens import Tokens
from interp.tasks.base import (
    Example,
    Ids,
    Redraw,
    Span,
    Task,
    answer_after,
    check_example,
    continuations,
    is_copy,
    overlapping,
    whole_number,
)

_SHARED = (
    "foil",
    "candidates",
    "alternatives",
    "spans",
    "chance",
    "cluster",
    "group",
    "meta",
    "task",
    "corrupt",
)
_TEXT = ("prompt", "answer")
_IDS = ("ids", "answer_ids", "tokenizer")
_SPAN = ("start", "end", "role", "item", "hop")
_MANY = 4
_TAIL = 60
"""Characters of a prompt behind which many answers are tokenised."""

_TYPES: dict[str, tuple[type, str]] = {
    "prompt": (str, "a string"),
    "answer": (str, "a string"),
    "ids": (list, "a list of ids"),
    "answer_ids": (list, "a list of ids"),
    "tokenizer": (str, "a string"),
    "candidates": (list, "a list"),
    "alternatives": (list, "a list"),
    "spans": (list, "a list of objects"),
    "task": (str, "a string"),
    "cluster": (str, "a string"),
    "group": (str, "a string"),
    "meta": (dict, "an object"),
    "corrupt": (dict, "an object of objects"),
}


class JsonlTask(Task):
    """The examples of a JSONL file.

    Args:
        path: the file.
        n: take the first so many; default all.
        seed: there is nothing to draw; kept so that all tasks are asked alike.
    """

    name = "jsonl"
    source = "a file of the user's"
    max_redraws: ClassVar[int] = 1

    def __init__(self, path: str | Path, n: int | None = None, seed: int = 0):
        self.path = Path(path)
        self._records = read_records(self.path)
        if n is not None:
            self._records = self._records[: whole_number(self.name, "n", n, 1)]
        super().__init__(n=len(self._records), seed=seed, path=str(path))

    def config(self) -> dict[str, Any]:
        """What identifies the task, the lines of the file included."""
        data = hashlib.sha256(json.dumps([r for _, r in self._records]).encode()).hexdigest()[:16]
        return {**super().config(), "data": data}

    def make(self, index: int, rng: np.random.Generator, tokens: Tokens) -> Example:
        number, record = self._records[index]
        try:
            return read_example(record, tokens)
        except BrokenData as why:
            raise BrokenData(f"{self.path}, line {number}: {why}") from None

    def examples(self, source: Any) -> list[Example]:
        """The examples of the file.

        Raises:
            BrokenData: a line breaks the contract with this tokenizer; the message names file and line.
        """
        out = super().examples(source)
        self.copies = all(is_copy(e) for e in out)  # type: ignore[misc]
        return out


def file_text(path: str | Path) -> str:
    """The text of a file.

    Raises:
        MissingResource: the file cannot be read.
        BrokenData: it is no UTF-8 text.
    """
    try:
        return Path(path).read_text("utf-8")
    except OSError as why:
        raise MissingResource(f"{path} cannot be read: {why.strerror or why}") from None
    except UnicodeDecodeError as why:
        raise BrokenData(f"{path} is not UTF-8 text (byte {why.start})") from None


def json_lines(path: str | Path, text: str) -> Iterator[tuple[int, Any]]:
    """What the lines of a file hold, with their numbers; empty lines are skipped.

    Raises:
        BrokenData: a line is no JSON; the message names file and line.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as why:
                raise BrokenData(
                    f"{path}, line {number}: not JSON: {why.msg} at column {why.colno}"
                ) from None


def read_records(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """The objects of a JSONL file with their line numbers; empty lines are skipped.

    Raises:
        MissingResource: the file cannot be read.
        BrokenData: a line is no JSON object, lacks a field or has one that is not known.
    """
    out = []
    for number, record in json_lines(path, file_text(path)):
        try:
            _check_record(record)
        except BrokenData as why:
            raise BrokenData(f"{path}, line {number}: {why}") from None
        out.append((number, record))
    if not out:
        raise BrokenData(f"{path} holds no example")
    return out


def _check_record(record: Any) -> None:
    if not isinstance(record, dict):
        raise BrokenData("an example is a JSON object, {...}")
    in_ids = "ids" in record
    own = _IDS if in_ids else _TEXT
    for name in own[:2]:
        if name not in record:
            raise BrokenData(f"'{name}' is missing")
    _check_fields(record, (*own, *_SHARED))
    for kind, twin in record.get("corrupt", {}).items():
        if not isinstance(twin, dict) or own[0] not in twin:
            raise BrokenData(f"corruption {kind} takes an object with '{own[0]}'")
        _check_fields(twin, (*own, *_SHARED[:-1]), f"corruption {kind}: ")


def _check_fields(record: Mapping[str, Any], known: tuple[str, ...], where: str = "") -> None:
    for name, value in record.items():
        if name not in known:
            raise BrokenData(f"{where}unknown field '{name}'; known are {', '.join(known)}")
        kind, words = _TYPES.get(name, (object, ""))
        if not isinstance(value, kind):
            raise BrokenData(f"{where}'{name}' takes {words}")
    chance = record.get("chance", 1.0)
    if isinstance(chance, bool) or not isinstance(chance, int | float):
        raise BrokenData(f"{where}'chance' takes a number")
    for span in record.get("spans", []):
        if not isinstance(span, dict) or not {"start", "end", "role"} <= set(span) <= set(_SPAN):
            raise BrokenData(f"{where}a span takes start, end, role, and may have item and hop, not {span!r}")
        whole = all(isinstance(span[k], int) for k in _SPAN if k in span and k != "role")
        if not whole or not isinstance(span["role"], str):
            raise BrokenData(f"{where}a span has whole numbers and a role in quotes, not {span!r}")


def read_example(record: Mapping[str, Any], tokens: Tokens) -> Example:
    """The example of one record.

    Raises:
        BrokenData: a span outside the text, an answer that merges with the prompt, a twin that is not aligned, ...
    """
    clean = _read(record, tokens, None)
    twins = {kind: _read(twin, tokens, clean) for kind, twin in record.get("corrupt", {}).items()}
    example = replace(clean, corrupt=twins)
    try:
        check_example(example, tokens)
    except BrokenData as why:
        raise BrokenData(str(why).removeprefix(f"{example.task}: ")) from None
    return example


def _read(record: Mapping[str, Any], tokens: Tokens, clean: Example | None) -> Example:
    """One prompt with its answer; what a corrupt twin leaves out is as it is in the clean example."""
    form: _Text | _Ids = _Ids(record, tokens, clean) if "ids" in record else _Text(record, tokens, clean)
    answer = form.answer_ids
    base = clean or Example("jsonl", form.ids, answer)
    if "candidates" in record:
        options = form.answers("candidates")
    else:
        options = list(base.candidates) if answer in base.candidates else []
    if answer in options:
        options = [answer, *(o for o in options if o != answer)]
    if "alternatives" in record:
        others = tuple(form.answers("alternatives"))
    else:
        others = base.alternatives if answer == base.answer_ids else ()
    if "foil" in record:
        foil: Ids = form.answers("foil")[0]
    else:
        foil = base.foil_ids if answer == base.answer_ids else base.answer_ids
    return Example(
        task=record.get("task", base.task),
        ids=form.ids,
        answer_ids=answer,
        text=form.text,
        offsets=form.offsets,
        spans=form.spans() if "spans" in record else base.spans,
        alternatives=others,
        foil_ids=foil,
        candidates=tuple(options),
        chance=float(record.get("chance", 1 / len(options) if options else 1 / tokens.n_vocab)),
        cluster=record.get("cluster", base.cluster),
        group=record.get("group", base.group),
        meta=record.get("meta", base.meta),
    )


class _Text:
    """A record in text form."""

    def __init__(self, record: Mapping[str, Any], tokens: Tokens, clean: Example | None):
        self.record = record
        self.tokens = tokens
        self.text: str = record["prompt"]
        self.prompt = tokens.encode(self.text)
        self.ids, self.offsets = self.prompt.ids, self.prompt.offsets
        if "answer" in record or clean is None:
            self.answer_ids = self._after(record["answer"])
        else:
            self.answer_ids = clean.answer_ids

    def _after(self, answer: str) -> Ids:
        try:
            return answer_after(self.tokens, self.prompt, self.text, answer)
        except Redraw:
            raise BrokenData(
                f"'{answer}' does not start a token of its own behind the prompt; end the prompt without a space and "
                "begin the answer with one"
            ) from None

    def answers(self, name: str) -> list[Ids]:
        given = self.record[name] if isinstance(self.record[name], list) else [self.record[name]]
        for answer in given:
            if not isinstance(answer, str):
                raise BrokenData(f"'{name}' takes text, not {answer!r}")
        if len(given) < _MANY:
            return [self._after(answer) for answer in given]
        # How an answer tokenises depends on the end of the prompt; the first one shows that this end is long enough.
        tail = self.text[-_TAIL:].partition(" ")[2] or self.text
        try:
            found = continuations(self.tokens, tail, given)
        except Redraw:
            found = []
        return found if found[:1] == [self._after(given[0])] else [self._after(answer) for answer in given]

    def spans(self) -> tuple[Span, ...]:
        out = []
        for span in self.record["spans"]:
            start, end = span["start"], span["end"]
            if not 0 <= start < end <= len(self.text):
                raise BrokenData(
                    f"span {start}:{end} ({span['role']}) lies outside the prompt of {len(self.text)} characters"
                )
            try:
                ((first, last),) = overlapping(self.prompt, [(start, end)])
            except Redraw:
                raise BrokenData(f"no token covers span {start}:{end} ({span['role']})") from None
            out.append(Span(first, last, span["role"], span.get("item", 0), span.get("hop", 0)))
        return tuple(sorted(out))


class _Ids:
    """A record in ids form."""

    text = None
    offsets = None

    def __init__(self, record: Mapping[str, Any], tokens: Tokens, clean: Example | None):
        self.record = record
        self.tokens = tokens
        theirs = record.get("tokenizer", tokens.fingerprint)
        if theirs != tokens.fingerprint:
            raise BrokenData(f"its ids belong to tokenizer {theirs}, and the model's is {tokens.fingerprint}")
        self.ids = self._checked(record["ids"])
        if "answer_ids" in record or clean is None:
            self.answer_ids = self._checked(record["answer_ids"])
        else:
            self.answer_ids = clean.answer_ids

    def _checked(self, ids: Any) -> Ids:
        known = self.tokens.n_vocab
        if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < known for i in ids):
            raise BrokenData(f"ids are whole numbers from 0 to {known - 1}, not {str(ids)[:40]}")
        return tuple(ids)

    def answers(self, name: str) -> list[Ids]:
        given = [self.record[name]] if name == "foil" else self.record[name]
        return [self._checked(ids) for ids in given]

    def spans(self) -> tuple[Span, ...]:
        return tuple(
            sorted(
                Span(s["start"], s["end"], s["role"], s.get("item", 0), s.get("hop", 0))
                for s in self.record["spans"]
            )
        )


def write_jsonl(examples: Iterable[Example], tokens: Tokens, path: str | Path) -> Path:
    """Write examples to a file that reads back as the same examples; whole or not at all.

    An example is written as text where text gives the same tokens again, else as ids.

    Raises:
        MissingResource: the file cannot be written.
    """
    target = Path(path)
    lines = [json.dumps(record_of(e, tokens), ensure_ascii=False, default=plain) for e in examples]
    try:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as out:
                out.write("".join(line + "\n" for line in lines))
                out.flush()
                os.fsync(out.fileno())
            os.replace(name, target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as why:
        raise MissingResource(f"{target} cannot be written: {why.strerror or why}") from None
    return target


def plain(value: Any) -> Any:
    """What JSON has for a number or array of numpy; `default` of `json.dumps`.

    Raises:
        UsageError: it is neither.
    """
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise UsageError(f"meta holds {value!r}, which JSON cannot")


def record_of(example: Example, tokens: Tokens) -> dict[str, Any]:
    """The record of an example: in text form if that reads back the same, else in ids form."""
    as_ids = _write(example, tokens, lambda before, ids: list(ids), in_ids=True)
    as_ids["tokenizer"] = tokens.fingerprint
    if example.text is None:
        return as_ids

    def text(before: Example, ids: Ids) -> str:
        # Decoded behind the prompt's last token: some decoders drop a space in front.
        last = before.ids[-1:]
        return tokens.decode(last + ids)[len(tokens.decode(last)) :]

    record = _write(example, tokens, text, in_ids=False)
    try:
        again = read_example(json.loads(json.dumps(record, default=plain)), tokens)
    except BrokenData:
        return as_ids
    return record if _same(example, again) else as_ids


def _write(
    example: Example, tokens: Tokens, answer: Callable[[Example, Ids], Any], *, in_ids: bool
) -> dict[str, Any]:
    if in_ids:
        out: dict[str, Any] = {"ids": list(example.ids), "answer_ids": list(example.answer_ids)}
    else:
        out = {"prompt": example.text, "answer": answer(example, example.answer_ids)}
    if example.foil_ids:
        out["foil"] = answer(example, example.foil_ids)
    for name in ("candidates", "alternatives"):
        options = getattr(example, name)
        if options:
            out[name] = [answer(example, o) for o in options]
    spans = []
    for s in example.spans:
        ends = (s.start, s.end)
        if not in_ids and example.offsets is not None:
            # From where the token before it ends: offsets may leave out the space in front.
            before = example.offsets[s.start - 1][1] if s.start else 0
            ends = (before, example.offsets[s.end - 1][1])
        spans.append({"start": ends[0], "end": ends[1], "role": s.role, "item": s.item, "hop": s.hop})
    out["spans"] = spans
    out |= {"chance": example.chance, "cluster": example.cluster, "group": example.group}
    out |= {"meta": dict(example.meta), "task": example.task}
    if example.corrupt:
        out["corrupt"] = {k: _write(t, tokens, answer, in_ids=in_ids) for k, t in example.corrupt.items()}
    return out


def _same(a: Example, b: Example) -> bool:
    def state(e: Example) -> Any:
        fields = {**vars(e), "corrupt": {k: state(t) for k, t in e.corrupt.items()}}
        return json.loads(json.dumps({**fields, "spans": [vars(s) for s in e.spans]}, default=plain))

    return bool(state(a) == state(b))
