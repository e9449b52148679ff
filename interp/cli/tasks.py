"""`interp tasks`: what a model can be asked, and one example of each with its spans."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from interp.cli.console import Json, console, emit, say
from interp.errors import MissingResource, UsageError

if TYPE_CHECKING:
    from interp.models.tokens import Tokens
    from interp.tasks.base import Example, Task

app = typer.Typer(help="The tasks: what there is, and what they look like.", no_args_is_help=True)

# Okabe and Ito's colours, which stay apart for readers who see red and green alike.
_STYLES = {
    "key": "bold #0072b2",
    "value": "bold #d55e00",
    "query": "bold #56b4e9",
    "evidence": "#009e73",
    "subject": "bold #0072b2",
    "relation": "#009e73",
    "stale_value": "#cc79a7",
    "stale_key": "#cc79a7",
    "stale_link": "#cc79a7",
    "stale": "dim #cc79a7",
    "stale_step": "dim #cc79a7",
    "order_mark": "bold #009e73",
    "link": "bold #56b4e9",
    "change": "bold #d55e00",
    "distractor": "dim #e69f00",
    "filler": "dim",
    "distractor_key": "#cc79a7",
    "distractor_value": "#e69f00",
    "distractor_link": "#cc79a7",
    "instruction": "italic",
    "added": "#999999",
    "pause": "bold #f0e442",
    "template": "italic #999999",
}
_CONTEXT = 160
"""Characters of filler shown on each side of a span."""


@app.command("list")
def list_tasks(json: Json = False) -> None:
    """Show the tasks."""
    from interp.tasks.registry import NAMES

    rows: list[dict[str, Any]]
    if json:
        rows = [
            {"name": t.name, "summary": t.summary, "source": t.source, "params": t.params}
            for t in NAMES.values()
        ]
    else:
        rows = [
            {"name": t.name, "summary": t.summary, "parameters": _written(t.params)} for t in NAMES.values()
        ]
    emit(rows, json)


def _written(params: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in params.items())


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A name that `interp tasks list` shows.")],
    model: Annotated[
        str, typer.Option(help="Whose tokenizer: a default model, a hub id or a folder.")
    ] = "smollm2",
    index: Annotated[int, typer.Option(min=0, help="Number of the example.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the task.")] = 0,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A parameter of the task; repeatable."),
    ] = None,
    wrap: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:PARAM=VALUE,...]",
            help="A wrapper around the task (read_twice, repeated:times=3, distracted, reworded, pause, chat); "
            "repeatable, the first one is the innermost.",
        ),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Show the filler too.")] = False,
    json: Json = False,
) -> None:
    """Show one example: its prompt with typed spans, its answer, its corruptions and its chance level."""
    task = wrapped(build(name, index + 1, seed, set_), wrap)
    if len(task) <= index:
        raise UsageError(f"task {name} has {len(task)} examples, so there is no number {index}")
    tokens = _tokens(model)
    example = task.examples(tokens)[index]
    if json:
        emit(_as_dict(task, example, tokens), json)
    else:
        _print(task, example, tokens, full)


@app.command()
def export(
    name: Annotated[str, typer.Argument(help="A name that `interp tasks list` shows, or a .jsonl file.")],
    out: Annotated[Path, typer.Option(help="A .jsonl file; or a folder, for a `datasets.Dataset`.")],
    model: Annotated[
        str, typer.Option(help="Whose tokenizer: a default model, a hub id or a folder.")
    ] = "smollm2",
    n: Annotated[int | None, typer.Option("-n", min=1, help="Number of examples.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the task.")] = 0,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A parameter of the task; repeatable."),
    ] = None,
) -> None:
    """Write examples to a file that `interp` reads as a task again, or to a folder that `datasets` loads."""
    task = build(name, n, seed, set_)
    tokens = _tokens(model)
    if out.suffix == ".jsonl":
        from interp.tasks.jsonl import write_jsonl

        write_jsonl(task.stream(tokens), tokens, out)
    else:
        from interp.tasks.export import to_dataset

        to_dataset(task, tokens).save_to_disk(out)
    say("done", f"{len(task)} examples in {out}")


def build(name: str, n: int | None, seed: int, set_: list[str] | None) -> Task:
    """The task that the options name; a .jsonl file has all its examples and no seed unless `--set` asks.

    Args:
        n: number of examples; None for as many as the task has by itself.
    """
    import interp

    given = parameters(set_)
    return interp.task(name, **(given if name.endswith(".jsonl") else {"n": n, "seed": seed, **given}))


def wrapped(task: Task, wraps: list[str] | None) -> Task:
    """A task in the wrappers that `--wrap` names, the first one innermost."""
    from interp.tasks.wrap import wrap

    for text in wraps or []:
        name, _, given = text.partition(":")
        task = wrap(task, name, **dict(_parameter(item, "--wrap") for item in given.split(",") if item))
    return task


def parameters(items: list[str] | None) -> dict[str, Any]:
    """Repeated `--set NAME=VALUE` options as a mapping."""
    return dict(_parameter(item) for item in items or [])


def _parameter(item: str, option: str = "--set") -> tuple[str, Any]:
    """`length=256` as a name and a value read as YAML, so that numbers, lists and booleans are what they look like."""
    import yaml

    name, equals, value = item.partition("=")
    if not equals or not name:
        raise UsageError(f"{option} takes NAME=VALUE, not '{item}'")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError:
        raise UsageError(f"{option} {name}: '{value}' is not a YAML value") from None


def _tokens(model: str) -> Tokens:
    """The tokenizer of a model, without its weights.

    Raises:
        MissingResource: there is no such model, or it has no tokenizer.
    """
    from interp.models import registry
    from interp.models.tokens import Tokens

    path: Any = registry.fetch(model) if model in registry.REGISTRY else model
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError):
        raise MissingResource(
            f"no tokenizer for '{model}': it is no default model ({', '.join(registry.REGISTRY)}), no folder with a "
            "tokenizer, and the hub did not give one (no such id, or no network)"
        ) from None
    return Tokens(tokenizer)


def _differences(example: Example, twin: Example, tokens: Tokens) -> list[tuple[int, str, str]]:
    """Runs of neighbouring tokens that the corruption changes: first token, clean text, corrupt text."""
    changed = [i for i, (a, b) in enumerate(zip(example.ids, twin.ids, strict=True)) if a != b]
    runs: list[list[int]] = []
    for i in changed:
        if runs and i == runs[-1][-1] + 1:
            runs[-1].append(i)
        else:
            runs.append([i])
    return [
        (run[0], tokens.decode([example.ids[i] for i in run]), tokens.decode([twin.ids[i] for i in run]))
        for run in runs
    ]


def _as_dict(task: Task, example: Example, tokens: Tokens) -> dict[str, Any]:
    spans = [
        {
            "start": s.start,
            "end": s.end,
            "role": s.role,
            "item": s.item,
            "hop": s.hop,
            "text": tokens.decode(example.ids[s.start : s.end]),
        }
        for s in example.spans
    ]
    corrupt = {
        kind: {
            "changes": [
                {"token": at, "clean": clean, "corrupt": other}
                for at, clean, other in _differences(example, twin, tokens)
            ],
            "answer": tokens.decode(twin.answer_ids),
        }
        for kind, twin in example.corrupt.items()
    }
    return {
        "task": task.config(),
        "source": task.source,
        "text": example.text,
        "ids": list(example.ids),
        "answer": tokens.decode(example.answer_ids),
        "answer_ids": list(example.answer_ids),
        "foil": tokens.decode(example.foil_ids) if example.foil_ids else None,
        "candidates": [tokens.decode(c) for c in example.candidates],
        "chance": example.chance,
        "cluster": example.cluster,
        "group": example.group,
        "spans": spans,
        "corrupt": corrupt,
        "meta": dict(example.meta),
    }


def _print(task: Task, example: Example, tokens: Tokens, full: bool) -> None:
    console.print(Text.assemble((repr(task), "bold"), f"  {len(example.ids)} tokens"), soft_wrap=True)
    console.print(Text(f"source: {task.source}", style="dim"), soft_wrap=True)
    console.print()
    console.print(_prompt(example, tokens, full), soft_wrap=True)
    console.print()
    rows: dict[str, Any] = {"answer": repr(tokens.decode(example.answer_ids))}
    if example.foil_ids:
        rows["foil"] = repr(tokens.decode(example.foil_ids))
    if example.candidates:
        shown = ", ".join(repr(tokens.decode(c)) for c in example.candidates[:8])
        more = f", … ({len(example.candidates)} in all)" if len(example.candidates) > 8 else ""
        rows["candidates"] = shown + more
    rows["chance"] = f"{example.chance:.3g}"
    for kind, twin in example.corrupt.items():
        changes = "; ".join(f"{a!r} → {b!r}" for _, a, b in _differences(example, twin, tokens))
        rows[f"corrupt: {kind}"] = f"{changes}; its answer is {tokens.decode(twin.answer_ids)!r}"
    emit(rows, json=False)


def _prompt(example: Example, tokens: Tokens, full: bool) -> Text:
    """The prompt with each token in the colour of its innermost span; `⟦role: …⟧` where there is no colour."""
    roles: list[str | None] = [None] * len(example.ids)
    for span in sorted(example.spans, key=len, reverse=True):
        roles[span.start : span.end] = [span.role + (f" {span.item}" if span.item > 0 else "")] * len(span)
    out = Text()
    start = 0
    while start < len(roles):
        end = start
        while end < len(roles) and roles[end] == roles[start]:
            end += 1
        text = _text_of(example, tokens, start, end)
        role = roles[start]
        if role is None:
            out.append(
                text if full else _shorten(text, first=start == 0, last=end == len(roles)), style="dim"
            )
        else:
            style = _STYLES.get(role.split()[0], "underline")
            out.append(f"⟦{role}: ", style="dim").append(text, style=style).append("⟧", style="dim")
        start = end
    return out


def _text_of(example: Example, tokens: Tokens, start: int, end: int) -> str:
    if example.text is None or example.offsets is None:
        return tokens.decode(example.ids[start:end])
    # Between two tokens there may be characters that no token covers; they go with the token before them.
    a = example.offsets[start][0] if start else 0
    b = example.offsets[end][0] if end < len(example.offsets) else len(example.text)
    return example.text[a:b]


def _shorten(text: str, *, first: bool, last: bool) -> str:
    """Filler with its middle left out; the ends that touch a span stay, and both ends where there is no span."""
    if len(text) <= 2 * _CONTEXT + 20:
        return text
    alone = first and last
    head = "" if first and not alone else text[:_CONTEXT]
    tail = "" if last and not alone else text[-_CONTEXT:]
    return f"{head} […] {tail}"
