"""Files of other harnesses as tasks: samples that lm-evaluation-harness logs, and the prepared files of RULER.

- `lm_eval`: a line a document of `samples_TASK_DATE.jsonl` (`--log_samples`). Requests are read from `arguments`: the
  context and its continuations (one of which `target` names by its number), or the context alone and `target` as text.
- `ruler`: a line of a prepared `validation.jsonl`: `input` (and `answer_prefix`, where it is kept apart), `outputs`.

    task("samples", path="samples_arc_easy_2025-01-01.jsonl")

Neither says where the evidence stands, but for one token count of RULER's tokenizer. A line may say it itself, in
characters of the prompt: `"spans": [{"start": 10, "end": 14, "role": "value"}]`, as files of `interp.tasks.jsonl` do.
Without it examples have no spans; `spans=True` refuses such a file and says why, in place of a locator much later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from interp.errors import BrokenData, UsageError
from interp.tasks.base import Task, whole_number
from interp.tasks.jsonl import JsonlTask, file_text, json_lines

Shape = Literal["lm_eval", "ruler"]


class Samples(JsonlTask):
    """The documents of a file of another harness, in its order.

    Args:
        path: the file.
        shape: `lm_eval` or `ruler`; default by what its first line has.
        spans: refuse lines that do not say where the answer stands.
        n: take the first so many; default all.
        seed: there is nothing to draw; kept so that all tasks are asked alike.

    Raises:
        MissingResource: the file cannot be read.
        BrokenData: a line is not of that shape, or says no spans where they are asked for; the message has file, line
            and reason.
    """

    name = "samples"
    source = "a file of the user's, of lm-evaluation-harness or RULER"

    def __init__(
        self,
        path: str | Path,
        shape: Shape | None = None,
        spans: bool = False,
        n: int | None = None,
        seed: int = 0,
    ):
        if shape is not None and shape not in get_args(Shape):
            raise UsageError(f"task samples: no shape '{shape}'; take of {', '.join(get_args(Shape))}")
        self.path = Path(path)
        lines = list(json_lines(self.path, file_text(self.path)))
        if not lines:
            raise BrokenData(f"{self.path}: there is no line in it")
        self.shape = shape or _shape(self.path, lines[0][1])
        read = _lm_eval if self.shape == "lm_eval" else _ruler
        count = len(lines) if n is None else min(whole_number(self.name, "n", n, 1), len(lines))
        self._records = [(number, self._read(read, number, line, spans)) for number, line in lines[:count]]
        Task.__init__(self, n=count, seed=seed, path=str(path), shape=shape, spans=spans)

    def _read(self, read: Any, number: int, line: Any, spans: bool) -> dict[str, Any]:
        where = f"{self.path}, line {number}"
        if not isinstance(line, Mapping):
            raise BrokenData(f"{where}: a document is an object")
        try:
            record: dict[str, Any] = read(line)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            told = f"'{error.args[0]}' is missing" if isinstance(error, KeyError) else str(error)
            raise BrokenData(f"{where}: not as {self.shape} writes it: {told}") from error
        if given := line.get("spans"):
            record["spans"] = given
        elif spans:
            raise BrokenData(
                f"{where}: it does not say where the answer stands ({_WHY[self.shape]}); add spans in "
                'characters of the prompt: "spans": [{"start": 10, "end": 14, "role": "value"}]'
            )
        return record


_WHY = {
    "lm_eval": "lm-evaluation-harness logs the prompt and no offsets",
    "ruler": "its token_position_answer counts tokens of another tokenizer, up to the first place where the answer's "
    "text is found",
}


def _shape(path: Path, line: Any) -> Shape:
    if isinstance(line, Mapping) and "arguments" in line:
        return "lm_eval"
    if isinstance(line, Mapping) and "outputs" in line:
        return "ruler"
    raise BrokenData(
        f"{path}, line 1: neither a sample of lm-evaluation-harness (no 'arguments') nor of RULER (no 'outputs')"
    )


def _lm_eval(line: Mapping[str, Any]) -> dict[str, Any]:
    """A logged sample as a record of `interp.tasks.jsonl`."""
    requests = _requests(line["arguments"])
    contexts = {str(context) for context, _ in requests}
    if len(contexts) != 1:
        raise ValueError(
            f"its {len(requests)} requests have {len(contexts)} contexts, so they are no answers to one question"
        )
    (prompt,) = contexts
    about = {"doc": line.get("doc_id")}
    texts = [answer for _, answer in requests]
    if all(isinstance(t, str) for t in texts):
        right = _right(line, texts)
        others = [t for t in texts if t != texts[right]]
        record: dict[str, Any] = {
            "prompt": prompt,
            "answer": texts[right],
            "candidates": [texts[right], *others],
        }
        if others:
            record["foil"] = others[0]
            record["chance"] = 1 / len(record["candidates"])
    else:
        target = line["target"]
        told = target if isinstance(target, str) else target[0]
        record = {"prompt": prompt, "answer": _behind(prompt, str(told))}
        if not isinstance(target, str) and len(target) > 1:
            record["alternatives"] = [_behind(prompt, str(t)) for t in target[1:]]
    return {**record, "task": "samples", "cluster": str(line.get("doc_id", "")), "meta": about}


def _requests(arguments: Any) -> list[tuple[Any, Any]]:
    """Pairs of context and continuation, or settings of generation, in either form that the harness has logged."""
    rows = list(arguments.values()) if isinstance(arguments, Mapping) else list(arguments)
    out = []
    for row in rows:
        parts = list(row.values()) if isinstance(row, Mapping) else list(row)
        out.append((parts[0], parts[1] if len(parts) > 1 else None))
    if not out:
        raise ValueError("no request in 'arguments'")
    return out


def _right(line: Mapping[str, Any], texts: Sequence[str]) -> int:
    """Number of the right continuation."""
    target = line["target"]
    if len(texts) == 1:
        return 0
    if isinstance(target, str) and target.strip().lstrip("-").isdigit():
        target = int(target)
    if isinstance(target, int) and not isinstance(target, bool) and 0 <= target < len(texts):
        return target
    same = [i for i, text in enumerate(texts) if text.strip() == str(target).strip()]
    if len(same) != 1:
        raise ValueError(f"target {target!r} names none of the {len(texts)} continuations")
    return same[0]


def _ruler(line: Mapping[str, Any]) -> dict[str, Any]:
    """A prepared line as a record of `interp.tasks.jsonl`: the answer is the first output, or all of them in a row."""
    prompt = str(line["input"]) + str(line.get("answer_prefix") or "")
    outputs = [str(o) for o in line["outputs"]]
    if not outputs:
        raise ValueError("'outputs' is empty")
    about = {"index": line.get("index"), "length_told": line.get("length"), "parts": outputs}
    answer = _behind(prompt, ", ".join(outputs))
    return {
        "prompt": prompt,
        "answer": answer,
        "task": "samples",
        "cluster": str(line.get("index", "")),
        "meta": about,
    }


def _behind(prompt: str, answer: str) -> str:
    """An answer with a space in front, unless the prompt ends in white space or the answer begins with it."""
    return answer if prompt[-1:].isspace() or answer[:1].isspace() else f" {answer}"
