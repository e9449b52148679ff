"""`interp facts`, `interp trace`, `interp edit`: what a model knows by heart, where it is, and writing it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli.circuits import Figure, Out, _check_out, _write
from interp.cli.console import Json, emit, progress, say
from interp.cli.options import Device, Dtype, Model, Save, Seed
from interp.cli.work import _load, _save
from interp.errors import UsageError

if TYPE_CHECKING:
    from interp.intervene.facts import FactEdit, Rewrite
    from interp.measure.edits import EditRecord
    from interp.models.subject import CausalLM
    from interp.tasks.base import Example

Top = Annotated[int, typer.Option(min=1, help="Rows shown.")]
About = Annotated[str, typer.Option("--subject", help="What the fact is about, as the prompt names it.")]


def facts(
    model: Model,
    n: Annotated[
        int, typer.Option("-n", min=1, help="Facts asked, drawn from all relations and wordings.")
    ] = 240,
    relations: Annotated[
        str | None, typer.Option(help="Relations joined by commas; default all that are asked by default.")
    ] = None,
    scenarios: Annotated[
        int,
        typer.Option(min=0, help="Subjects a relation whose answers are sorted into scenarios; 0 for none."),
    ] = 4,
    traced: Annotated[
        int, typer.Option(min=0, help="Known facts that fact MLPs are located on; 0 for none.")
    ] = 32,
    window: Annotated[int, typer.Option(min=1, help="Layers restored, and cut, together.")] = 3,
    exact: Annotated[
        int, typer.Option(min=1, help="Neurons of the best layers zeroed one by one, a fact.")
    ] = 32,
    top: Top = 10,
    seed: Seed = 0,
    out: Out = None,
    figure: Figure = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    json: Json = False,
) -> None:
    """What does the model know by heart, how much of it may be a shortcut, and which MLPs recall it?"""
    from interp.atlas_facts import SWAP, ask, census, traceable
    from interp.locate.facts.fact_mlps import NEURONS, FactMLPs
    from interp.tasks.facts import Facts
    from interp.tasks.prose import Prose

    _check_out(out, figure)
    chosen = None if relations is None else [r.strip() for r in relations.split(",")]
    task = Facts(relations=chosen, n=n, seed=seed)
    subject = _load(model, device, dtype)
    examples = task.examples(subject)
    with progress("facts") as report:
        asked = ask(subject, examples, report)
    tables = {"fact_census": census(asked)}
    if scenarios:
        tables |= _sorted(subject, chosen, scenarios, seed)
    known = [e for e, right in zip(examples, asked["known"], strict=True) if right]
    if locate := traceable(known, traced):
        best = min(3, subject.n_layers)
        locator = FactMLPs(
            SWAP, window=window, metric="logprob", n_layers=best, exact=exact, check=8, seed=seed
        )
        with progress("causal maps and cuts") as report:
            locator.fit(
                subject, locate, reference=Prose(prompt=24, answer=24, n=8, seed=seed), progress=report
            )
        ranked = locator.layers_.sort_values("score", ascending=False, kind="stable", ignore_index=True)
        tables |= {"fact_layers": ranked, "fact_neurons": locator.ranking(NEURONS)}
    _write(out, tables, _figures(tables, locator.maps_ if locate else None), figure)
    shown = {name: frame if name.endswith("census") else frame.head(top) for name, frame in tables.items()}
    shown = {
        name: frame[_SHOWN.get(name, list(frame))] for name, frame in shown.items() if name != "scenarios"
    }
    if json:
        emit(shown, json)
    else:
        for frame in shown.values():
            emit(frame, json)
    share = asked["known"].mean()
    say(
        "found",
        f"{len(known)} of {len(examples)} facts known ({share:.0%})" + _best(tables.get("fact_layers")),
    )


_SHOWN = {
    "fact_layers": [
        "component",
        "aie",
        "aie_lo",
        "aie_hi",
        "share",
        "fact_loss",
        "off_loss",
        "spared",
        "score",
        "n",
    ],
    "fact_neurons": ["component", "score", "se", "n"],
}


def _sorted(subject: CausalLM, relations: list[str] | None, subjects: int, seed: int) -> dict[str, Any]:
    """Everything the model said with its scenario, and how often which comes up."""
    from interp.measure.scenarios import scenarios
    from interp.tasks.fictional import named

    wanted = None if relations is None else [r for r in relations if r in named()]
    if wanted == []:
        say("left out", "scenarios: none of these relations has fictional subjects to compare with")
        return {}
    with progress("scenarios") as report:
        found = scenarios(subject, relations=wanted, subjects=subjects, seed=seed, progress=report)
    return {"scenario_census": found.census(), "scenarios": found.frame}


def _best(layers: Any) -> str:
    if layers is None:
        return ""
    best = layers.iloc[0]
    return (
        f"; best around {best['component']}: clean output there brings back {best['share']:.1%} of the answer "
        f"(AIE {best['aie']:.3f}, 95 % {best['aie_lo']:.3f} to {best['aie_hi']:.3f})"
    )


def _figures(tables: dict[str, Any], maps: Any) -> dict[str, Any]:
    """Figures by name, each made when it is asked for."""

    def known() -> Any:
        from interp.plot import fact_census

        return fact_census(tables["fact_census"], tables.get("scenario_census"))

    def profiles() -> Any:
        from interp.intervene.tracing.aggregate import aggregate
        from interp.plot import effect_profiles

        averages = aggregate(maps).assign(said="facts it knows")
        return effect_profiles(averages, "said", places=("last subject",))

    return {"fact-census": known} | ({} if maps is None else {"fact-profile": profiles})


def trace(
    model: Model,
    prompt: Annotated[str, typer.Argument(help="It ends where the answer follows.")],
    about: About,
    answer: Annotated[str | None, typer.Option(help="Default what the model says.")] = None,
    other: Annotated[
        str | None,
        typer.Option(
            help="Another subject of as many tokens that takes its place; default noise on the subject."
        ),
    ] = None,
    kind: Annotated[str, typer.Option(help="States that are restored.")] = "resid_post,mlp_out,attn_out",
    window: Annotated[
        int, typer.Option(min=1, help="Layers restored together, of mlp_out and attn_out.")
    ] = 1,
    samples: Annotated[int, typer.Option(min=1, help="Draws of the noise.")] = 10,
    metric: Annotated[
        str, typer.Option(help="probability, logprob, or with --other logit_diff.")
    ] = "probability",
    top: Top = 20,
    seed: Seed = 0,
    figure: Annotated[Path | None, typer.Option(help="Write the maps here (.html, .pdf, .png, ...).")] = None,
    save: Save = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    json: Json = False,
) -> None:
    """Where does an answer come from? Corrupt the subject, restore one state: layer by layer, token by token."""
    import interp
    from interp.tasks.stated import answered, stated

    subject = _load(model, device, dtype)
    example = stated(subject.tokens, prompt, about, other)
    given = None if answer is None else answered(subject.tokens, example, answer)
    example = _asked(subject, example, given)
    with progress("cells") as report:
        frame = interp.trace_map(
            subject,
            example,
            [k.strip() for k in kind.split(",") if k.strip()],
            window=window,
            corruption="noise" if other is None else "subject_swap",
            samples=samples,
            metric=metric,
            seed=seed,
            progress=report,
        )
    _save(frame, save)
    if figure is not None:
        from interp.plot import patch_map, write

        for path in write(patch_map(frame), figure.with_suffix(""), (figure.suffix.lstrip(".") or "html",)):  # type: ignore[arg-type]
            say("wrote", str(path))
    columns = ["kind", "layer", "position", "token", "place", "value", "effect", "se", "recovery"]
    emit(frame if json else frame.sort_values("effect", ascending=False)[columns].head(top), json)
    said = subject.tokens.decode(example.answer_ids)
    first = frame.iloc[0]
    say(
        "found",
        f"answer {said!r}: {metric} {first['high']:.3f} with the subject, {first['low']:.3f} with it "
        f"{'changed' if other else 'under noise'}; recovery 1 is all of it",
    )


def _asked(subject: CausalLM, example: Example, answer: tuple[int, ...] | None) -> Example:
    """The example with an answer, by default the likeliest token; so has its twin, whose answer is the foil."""
    said = _says(subject, [example.ids, *(e.ids for e in example.corrupt.values())])
    corrupt = {
        name: replace(twin, answer_ids=own)
        for (name, twin), own in zip(example.corrupt.items(), said[1:], strict=True)
    }
    own = answer or said[0]
    foil = next((s for s in said[1:] if s[:1] != own[:1]), ())
    return replace(example, answer_ids=own, foil_ids=foil, corrupt=corrupt)


def edit(
    model: Model,
    prompt: Annotated[
        str | None, typer.Option(help="It ends where the answer follows, with {} for the subject.")
    ] = None,
    about: Annotated[str | None, typer.Option("--subject", help="What the fact is about.")] = None,
    target: Annotated[str | None, typer.Option(help="What the model is to say.")] = None,
    true: Annotated[
        str | None, typer.Option(help="What is right; default what the model says before the edit.")
    ] = None,
    layer: Annotated[
        int | None, typer.Option(min=0, help="Whose MLP is edited; default a third of the way up.")
    ] = None,
    paraphrase: Annotated[
        list[str] | None, typer.Option(help="Another wording, with {}, that should change too; repeatable.")
    ] = None,
    neighbour: Annotated[
        list[str] | None,
        typer.Option(help="Another subject, in the same wording, that should not change; repeatable."),
    ] = None,
    passages: Annotated[
        int,
        typer.Option(
            min=1,
            help="Passages of text that tell how common keys are, taken once a model; plain text is apart from them. "
            "With --load as many as the edit was made with.",
        ),
    ] = 200,
    out: Annotated[Path | None, typer.Option(help="Write the edit here, as .safetensors.")] = None,
    load: Annotated[
        Path | None, typer.Option(help="Measure an edit that was written, in place of a new one.")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    json: Json = False,
) -> None:
    """Write one fact into the weights (ROME), and measure it: the fact, other wordings, other subjects, plain text."""
    from interp.intervene.facts import FactEdit, common_text
    from interp.measure.edits import drift
    from interp.tasks.base import FixedTask
    from interp.tasks.prose import unseen

    told: dict[str, Any] = {"--prompt": prompt, "--subject": about, "--target": target}
    if load is None and (missing := [name for name, value in told.items() if value is None]):
        raise UsageError(
            f"{missing[0]} is missing: an edit needs {', '.join(told)}; or --load a file with one"
        )
    other = {**told, "--true": true, "--layer": layer}
    if load is not None and (given := [name for name, value in other.items() if value is not None]):
        raise UsageError(f"{given[0]} and --load: the file says what was written")
    if out is not None and out.suffix != ".safetensors":
        raise UsageError(f"--out {out}: write a name that ends in .safetensors")
    subject = _load(model, device, dtype)
    common = common_text(passages).examples(subject)
    if load is not None:
        done = FactEdit.load(load, subject)
        records = _records(subject, done.rewrites, paraphrase or [], neighbour or [])
    else:
        assert prompt is not None and about is not None and target is not None
        fact = _request(subject, prompt, about, target, true)
        records = _records(subject, (fact,), paraphrase or [], neighbour or [])
        done = _written(subject, records[0].rewrite, layer, common)
    rows = _before_and_after(subject, done, records)
    # Other topics than those that the edit was told to spare.
    plain = FixedTask(unseen(subject, common), name="prose")
    cost = drift(subject, {"edit": done}, plain)["perplexity"].iloc[0]
    if out is not None:
        size = done.save(out).stat().st_size
        say("wrote", f"{out} ({size:,} bytes); FactEdit.load('{out}', model) reads it")
    emit({"prompts": rows, "perplexity": cost} if json else rows, json)
    layers = ", ".join(str(e.layer) for e in done.edits)
    say("edited", f"layer {layers}; perplexity of plain text x {cost:.3f}")


def _request(subject: CausalLM, prompt: str, about: str, target: str, true: str | None) -> Rewrite:
    """The fact that is to be written."""
    from interp.intervene.facts import Rewrite
    from interp.tasks.base import Redraw

    try:
        return Rewrite.of_text(subject, prompt, about, target, true or "")
    except Redraw as why:
        raise UsageError(f"'{prompt}' cannot be answered with '{target}': {why}") from why


def _records(
    subject: CausalLM, facts: Sequence[Rewrite], paraphrases: list[str], neighbours: list[str]
) -> list[EditRecord]:
    """What each fact is judged by; what nobody said is right is what the model says now."""
    from interp.measure.edits import EditRecord, Neighbour
    from interp.measure.metrics import divergence
    from interp.tasks.stated import stated

    if (paraphrases or neighbours) and len(facts) != 1:
        raise UsageError(f"the edit writes {len(facts)} facts: wordings and neighbours are of one")
    tokens = subject.tokens
    records = []
    for fact in facts:
        fact = fact if fact.true else replace(fact, true=_says(subject, [fact.ids])[0])
        about = tokens.decode(fact.ids[slice(*fact.span)]).strip()
        wording = tokens.decode(fact.ids[fact.lead :]).replace(about, "{}", 1)
        others = [stated(tokens, wording, other).ids for other in neighbours]
        trues = _says(subject, others)
        for name, true in [(about, fact.true), *zip(neighbours, trues, strict=True)]:
            if divergence(true, fact.target) is None:
                new = tokens.decode(fact.target).strip()
                raise UsageError(
                    f"'{wording.format(name)}' is answered with '{new}' already: take another subject"
                )
        record = EditRecord(
            fact,
            tuple(stated(tokens, wording, about).ids for wording in paraphrases),
            tuple(Neighbour(*pair) for pair in zip(others, trues, strict=True)),
            name=fact.text,
        )
        records.append(record)
    return records


def _written(subject: CausalLM, fact: Rewrite, layer: int | None, text: Sequence[Example]) -> FactEdit:
    """The edit that writes a fact."""
    from interp.intervene.facts import rome, second_moments

    at = subject.n_layers // 3 if layer is None else layer
    with progress("second moments of keys") as report:
        moments = second_moments(subject, text, layers=[at], progress=report)
    with progress("search of the value"):
        return rome(subject, fact, at, moments)


def _says(subject: CausalLM, prompts: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The likeliest token after each prompt."""
    from interp.measure.next_token import likeliest, speaker

    return [(best[0][0],) for best in likeliest(speaker(subject), prompts, 1)]


def _before_and_after(
    subject: CausalLM, done: FactEdit, records: Sequence[EditRecord]
) -> list[dict[str, Any]]:
    """One row a prompt: what the model says, and how likely the new and the true answer are, before and after."""
    from interp.measure.edits import score_edits

    words = subject.tokens.decode
    rows = []
    for record in records:
        prompts = [ids for _, ids, _ in record.prompts()]
        scores = score_edits(subject, [record], [done]).set_index(["prompt", "state"])
        before = _says(subject, prompts)
        with subject.apply(done):
            after = _says(subject, prompts)
        for i, (kind, ids, true) in enumerate(record.prompts()):
            row = {"what": kind, "prompt": words(ids[record.rewrite.lead :])}
            row |= {"says before": words(before[i]), "says after": words(after[i])}
            for name, answer in (("new", record.rewrite.target), ("true", true)):
                values = [scores.loc[(i, state), f"p_{name}"] for state in ("before", "after")]
                row |= {
                    name: words(answer).strip(),
                    f"p({name}) before": values[0],
                    f"p({name}) after": values[1],
                }
            rows.append(row)
    return rows
