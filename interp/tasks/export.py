"""Examples as a `datasets.Dataset`, for whoever trains on them or shares them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from interp.errors import BrokenData, MissingResource
from interp.models.tokens import as_tokens
from interp.tasks.base import Example, Task
from interp.tasks.jsonl import plain, record_of

if TYPE_CHECKING:
    import datasets

_NESTED = ("corrupt", "meta")
"""Fields whose shape differs from example to example; they are JSON texts."""


def to_dataset(examples: Task | Iterable[Example], source: Any) -> datasets.Dataset:
    """One row an example, with the fields of a line of `interp.tasks.jsonl` (`corrupt` and `meta` as JSON texts).

    `Dataset.to_json` writes rows that differ from such a file in these two fields alone.

    Args:
        source: model or tokenizer.

    Raises:
        MissingResource: `datasets` is not installed.
        BrokenData: there is no example.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingResource(
            "to_dataset needs a package that is not installed: pip install datasets"
        ) from error
    tokens = as_tokens(source)
    found = examples.examples(tokens) if isinstance(examples, Task) else list(examples)
    if not found:
        raise BrokenData("there is no example to export")
    rows = []
    for example in found:
        row = json.loads(json.dumps(record_of(example, tokens), default=plain))
        rows.append(
            row | {name: json.dumps(row[name], ensure_ascii=False) for name in _NESTED if name in row}
        )
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return datasets.Dataset.from_list([{name: row.get(name) for name in columns} for row in rows])
