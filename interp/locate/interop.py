"""Head lists of the field, read and written: what other code calls retrieval heads, in this package's frame.

| format | what it is | written by |
|---|---|---|
| `reference` | JSON in one line: `{"L-H": [score of each instance, ...], ...}` | Wu et al. 2024, HeadKV, RetMask |
| `qrhead` | JSON, `[["L-H", score], ...]`, best first | QRHead's detection |
| `qrhead_config` | YAML, `attn_head_set: "L-H,L-H,..."`, best first, no scores | QRHead's retriever |
| `duo` | tab-separated gates, a row a layer, a column a KV head, no header | DuoAttention |
| `table` | Parquet or CSV of `scores_` | this package |
| `run` | a run folder with `scores.parquet` | this package |

Reading and writing again gives the same bytes for `reference` and `duo`. What breaks a format is refused with its
place: a wrong type, lists of different lengths, a head that is missing or stands twice, NaN.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from interp.errors import BrokenData, MissingResource, UsageError
from interp.locate.base import Scored
from interp.locate.head_scores import HeadScores, checked, means, once, place, rows, whole
from interp.runs import write_bytes

FORMATS = ("reference", "qrhead", "qrhead_config", "duo", "table", "run")
ALIASES = {"headkv": "reference", "retmask": "reference"}
"""Formats that equal another one."""

_ENDINGS = {
    ".parquet": "table",
    ".csv": "table",
    ".tsv": "duo",
    ".yaml": "qrhead_config",
    ".yml": "qrhead_config",
}
_METHODS = {"reference": "copy", "qrhead": "qr", "qrhead_config": "qr", "duo": "duo"}


def read_heads(
    path: str | Path, format: str | None = None, *, method: str | None = None, heads: int | None = None
) -> HeadScores:
    """Read a head list.

    Args:
        format: one of `FORMATS` or `ALIASES`; default by the file's ending and, for JSON, by its content.
        method: name of the score in `scores_`; for a table, the score that is to be primary.
        heads: query heads a layer, for `duo` alone: spreads the gate of a KV head over the query heads that share it.

    Raises:
        MissingResource: there is no such file.
        BrokenData: the file breaks its format; the message says where.
        UsageError: an unknown format, or one that cannot be told from the file.
    """
    path = Path(path)
    if not path.exists():
        raise MissingResource(f"there is no head list '{path}'")
    chosen = ALIASES.get(format, format) if format else _detect(path)
    if chosen not in FORMATS:
        raise UsageError(f"unknown format '{format}'; write one of {', '.join((*FORMATS, *ALIASES))}")
    if chosen == "run":
        return _read_table(path / "scores.parquet", path.name, "run", method)
    if path.is_dir():
        raise UsageError(f"'{path}' is a folder, and format '{chosen}' is a file")
    if chosen == "table":
        return _read_table(path, path.stem, "table", method)
    name = method or _METHODS[chosen]
    if chosen == "duo":
        return _read_duo(path, name, heads)
    if chosen == "qrhead_config":
        return _read_config(path, name)
    found = _json(path)
    return _read_reference(path, found, name) if chosen == "reference" else _read_pairs(path, found, name)


def as_heads(source: HeadScores | Scored | pd.DataFrame | str | Path, name: str | None = None) -> HeadScores:
    """Whatever holds scores of heads, as `HeadScores`: a path, a fitted locator, a frame like `scores_`."""
    if isinstance(source, HeadScores):
        return source
    if isinstance(source, str | Path):
        return read_heads(source)
    if isinstance(source, pd.DataFrame):
        return HeadScores(checked(source, name or "the frame"), name or "frame", "frame")
    source.ranking()  # says so where it is not fitted
    clusters = getattr(source, "clusters_", None)
    return HeadScores(
        checked(source.scores_, type(source).__name__),
        name or type(source).__name__,
        "locator",
        dict(getattr(source, "per_instance_", {})),
        None if clusters is None else tuple(clusters),
    )


def write_heads(
    source: HeadScores | Scored | pd.DataFrame,
    path: str | Path,
    format: str | None = None,
    *,
    method: str | None = None,
    top: int | None = None,
) -> Path:
    """Write a head list, whole or not at all.

    Args:
        format: `reference` (needs per-instance scores), `qrhead`, `qrhead_config` (the order of the best heads), `duo`
            (of query heads that share a KV head the highest score counts) or `table`; default by the file's ending.
        method: the score that is written; default the primary one. A table holds all of them.
        top: heads in a `qrhead_config`; default 16, as many as its authors list.

    Raises:
        UsageError: the source lacks what the format needs.
        MissingResource: the folder is not there.
    """
    path = Path(path)
    chosen = ALIASES.get(format, format) if format else _ENDINGS.get(path.suffix.lower(), "")
    heads = as_heads(source)
    if not path.parent.is_dir():
        raise MissingResource(f"there is no folder '{path.parent}' to write '{path.name}' into")
    if chosen == "reference":
        data = _reference_bytes(heads, method)
    elif chosen == "qrhead":
        ranked = _query_heads(heads, method, "qrhead")
        pairs = zip(ranked["layer"], ranked["head"], ranked["score"], strict=True)
        data = json.dumps([(f"{la}-{h}", _number(s)) for la, h, s in pairs], indent=4).encode()
    elif chosen == "qrhead_config":
        ranked = _query_heads(heads, method, "qrhead_config", scores=False)[: 16 if top is None else top]
        names = ",".join(f"{la}-{h}" for la, h in zip(ranked["layer"], ranked["head"], strict=True))
        data = f'attn_head_set: "{names}"\n'.encode()
    elif chosen == "duo":
        data = _duo_bytes(heads, method)
    elif chosen == "table":
        return _write_table(heads, path)
    else:
        known = ", ".join((*FORMATS[:-1], *ALIASES))
        raise UsageError(f"cannot tell a format to write for '{path.name}'; name one of {known}")
    write_bytes(path, data)
    return path


# -- read ------------------------------------------------------------------------------------------------------------


def _detect(path: Path) -> str:
    if path.is_dir():
        if (path / "scores.parquet").is_file():
            return "run"
        raise UsageError(f"'{path}' is a folder without scores.parquet, so it is no run with scores of heads")
    ending = path.suffix.lower()
    if ending == ".json":
        return "qrhead" if isinstance(_json(path), list) else "reference"
    if ending in _ENDINGS:
        return _ENDINGS[ending]
    raise UsageError(
        f"cannot tell the format of '{path.name}'; name one of {', '.join((*FORMATS, *ALIASES))}"
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BrokenData(f"{path}: not text in UTF-8 (byte {error.start})") from error


def _json(path: Path) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [k for k, _ in pairs]
            twice = next(k for i, k in enumerate(names) if k in names[:i])
            raise BrokenData(f"{path}: key {twice!r} stands twice")
        return found

    try:
        return json.loads(_text(path), object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise BrokenData(
            f"{path}: not valid JSON ({error.msg}, line {error.lineno}, column {error.colno})"
        ) from error
    except RecursionError as error:
        raise BrokenData(f"{path}: no head list (nested too deeply)") from error


def _score(path: Path, where: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BrokenData(f"{path}: {where} is {value!r}; a score is a number")
    try:
        score = float(value)
    except OverflowError:
        score = math.inf
    if not math.isfinite(score):
        raise BrokenData(
            f"{path}: {where} is {'NaN' if score != score else 'infinite'}; a score is a finite number"
        )
    return score


def _read_reference(path: Path, found: Any, method: str) -> HeadScores:
    if not isinstance(found, dict):
        raise BrokenData(
            f'{path}: holds a {type(found).__name__}; the reference writes {{"L-H": [scores], ...}}'
        )
    if not found:
        raise BrokenData(
            f"{path}: holds no heads; the reference writes an empty list where no instance was accepted"
        )
    places = [place(str(path), key) for key in found]
    layers, heads = whole(str(path), places)
    n = None
    values = np.zeros((0, 0, 0))
    for (key, scores), (layer, head) in zip(found.items(), places, strict=True):
        if not isinstance(scores, list):
            raise BrokenData(
                f"{path}: {key!r} holds {scores!r:.40}; a list of scores, one an instance, belongs there"
            )
        if n is None:
            n, first = len(scores), key
            if n == 0:
                raise BrokenData(f"{path}: {key!r} has no scores, so no instance was accepted")
            values = np.zeros((n, layers, heads))
        if len(scores) != n:
            raise BrokenData(
                f"{path}: {key!r} has {len(scores)} scores and {first!r} has {n}; every head has as many"
            )
        values[:, layer, head] = [_score(path, f"score {i} of {key!r}", s) for i, s in enumerate(scores)]
    return HeadScores(means(values, method), path.stem, "reference", {method: values})


def _read_pairs(path: Path, found: Any, method: str) -> HeadScores:
    if not isinstance(found, list) or not found:
        raise BrokenData(f'{path}: no list of heads; QRHead writes [["L-H", score], ...]')
    for i, pair in enumerate(found):
        if not isinstance(pair, list) or len(pair) != 2:
            raise BrokenData(f'{path}: entry {i} is {pair!r:.40}; an entry is ["L-H", score]')
    places = [place(str(path), pair[0]) for pair in found]
    scores = [_score(path, f"the score of {pair[0]!r}", pair[1]) for pair in found]
    once(str(path), places)
    whole(str(path), places)
    frame = rows(places, method, scores)
    return HeadScores(frame, path.stem, "qrhead")


def _read_config(path: Path, method: str) -> HeadScores:
    try:
        found = yaml.safe_load(_text(path))
    except yaml.YAMLError as error:
        raise BrokenData(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    except RecursionError as error:
        raise BrokenData(f"{path}: no head list (nested too deeply)") from error
    text = found.get("attn_head_set") if isinstance(found, dict) else None
    if not isinstance(text, str):
        raise BrokenData(f'{path}: has no attn_head_set: "L-H,L-H,..."')
    places = [place(str(path), part.strip()) for part in text.split(",") if part.strip()]
    if not places:
        raise BrokenData(f"{path}: attn_head_set names no head")
    once(str(path), places)
    return HeadScores(rows(places, method, [math.nan] * len(places)), path.stem, "qrhead_config")


def _gate(path: Path, row: int, column: int, cell: str) -> float:
    try:
        gate = float(cell)
    except ValueError as error:
        raise BrokenData(
            f"{path}: row {row} holds {cell!r:.20}; gates are numbers in tab-separated columns"
        ) from error
    return _score(path, f"row {row}, column {column}", gate)


def _read_duo(path: Path, method: str, heads: int | None) -> HeadScores:
    lines = [line.split("\t") for line in _text(path).splitlines()]
    if not lines:
        raise BrokenData(f"{path}: holds no gates")
    for i, cells in enumerate(lines):
        if len(cells) != len(lines[0]):
            raise BrokenData(f"{path}: row {i} has {len(cells)} gates and row 0 has {len(lines[0])}")
    gates = np.array([[_gate(path, i, j, c) for j, c in enumerate(cells)] for i, cells in enumerate(lines)])
    layers, groups = gates.shape
    if heads is None:
        layer, group = (x.reshape(-1) for x in np.indices(gates.shape))
        frame = pd.DataFrame(
            {
                "component": [f"L{la}KV{g}" for la, g in zip(layer, group, strict=True)],
                "method": method,
                "layer": layer,
                "kv_head": group,
                "score": gates.reshape(-1),
                "se": math.nan,
                "n": 1,
            }
        )
        return HeadScores(frame, path.stem, "duo", unit="kv_head")
    if heads < groups or heads % groups:
        raise UsageError(
            f"{path}: has {groups} KV heads a layer, and {heads} query heads are no multiple of that"
        )
    size = heads // groups
    frame = rows(
        [(la, h) for la in range(layers) for h in range(heads)], method, gates.repeat(size, 1).reshape(-1)
    )
    frame.insert(4, "kv_head", frame["head"] // size)
    return HeadScores(frame, path.stem, "duo")


def _read_table(path: Path, name: str, format: str, method: str | None) -> HeadScores:
    if not path.is_file():
        raise MissingResource(f"there is no table of scores '{path}'")
    try:
        frame = pd.read_csv(path) if path.suffix.lower() == ".csv" else pd.read_parquet(path)
    except (ValueError, OSError) as error:  # what pandas and pyarrow raise for broken files
        raise BrokenData(
            f"{path}: no table that can be read ({' '.join(str(error).split())[:120]})"
        ) from error
    frame = checked(frame, str(path))
    heads = HeadScores(frame, name, format)
    if method is not None:
        own = frame["method"] == heads.ranking(method)["method"].iloc[0]
        heads = HeadScores(pd.concat([frame[own], frame[~own]], ignore_index=True), name, format)
    return heads


# -- write -----------------------------------------------------------------------------------------------------------


def _number(score: float) -> int | float:
    # The reference starts its sums at the integer 0.
    return 0 if score == 0 else float(score)


def _query_heads(heads: HeadScores, method: str | None, format: str, *, scores: bool = True) -> pd.DataFrame:
    if heads.unit == "kv_head":
        raise UsageError(
            f"format '{format}' lists query heads, and {heads.name} scores KV heads; read it with heads="
        )
    if scores and heads.listed(method):
        raise UsageError(f"format '{format}' holds scores, and {heads.name} is a list without scores")
    return heads.ranking(method)


def _reference_bytes(heads: HeadScores, method: str | None) -> bytes:
    chosen = method or heads.methods[0]
    if chosen not in heads.per_instance_:
        raise UsageError(
            f"format 'reference' lists the score of each instance, and {heads.name} has none of '{chosen}'; hand over "
            "the fitted locator, or write a table"
        )
    values = np.asarray(heads.per_instance_[chosen])
    _, layers, width = values.shape
    lists = {
        f"{la}-{h}": [_number(v) for v in values[:, la, h].tolist()]
        for la in range(layers)
        for h in range(width)
    }
    return json.dumps(lists, allow_nan=False).encode()


def _duo_bytes(heads: HeadScores, method: str | None) -> bytes:
    ranked = heads.ranking(method)
    if heads.unit == "head" and heads.listed(method):
        raise UsageError(
            f"format 'duo' holds a gate for each KV head, and {heads.name} is a list without scores"
        )
    if "kv_head" not in ranked:
        raise UsageError(
            f"format 'duo' has a gate for each KV head, and {heads.name} does not say which heads share one"
        )
    gates = ranked.pivot_table(index="layer", columns="kv_head", values="score", aggfunc="max")
    return "".join("\t".join(f"{g:.18e}" for g in row) + "\n" for row in gates.to_numpy()).encode()


def _write_table(heads: HeadScores, path: Path) -> Path:
    from interp.runs import write_frame

    if path.suffix.lower() == ".csv":
        write_bytes(path, heads.scores_.to_csv(index=False).encode())
    elif path.suffix.lower() == ".parquet":
        write_frame(path, heads.scores_)
    else:
        raise UsageError(f"a table is written as .parquet or .csv, not '{path.name}'")
    return path
