"""Scenarios of what is said of facts: a speaker whose predictions are known, so that every flag can be told."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from interp.errors import BrokenData, NoAcceptedExample, UsageError
from interp.intervene.tracing.cells import How
from interp.intervene.tracing.maps import trace_maps
from interp.measure.scenario_sets import combination, examples
from interp.measure.scenarios import (
    EXACT,
    GENERIC,
    GUESSWORK,
    HEURISTICS,
    Rules,
    Scenarios,
    corpus_counts,
    scenarios,
)
from interp.models.subject import CausalLM
from interp.models.tokens import Tokens
from interp.tasks.base import Ids, check_example
from interp.tasks.facts import relation, wording_pieces
from interp.tasks.fictional import named, sort_of, sorts
from interp.tasks.generic import LEADS, Opening, openings
from tests.tiny import byte_tokenizer, tiny


def whole_words() -> Tokens:
    """A byte-level tokenizer in which every word of an answer is one token."""
    words = {w for r in named() for o in relation(r).objects for w in o.split()} | {"San"}
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=9000, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([f"of {w}" for w in sorted(words)] * 2, trainer)
    return Tokens(hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer))


TOKENS = whole_words()
PEOPLE, COUNTRIES = "person_country", "continent"


@cache
def first(word: str) -> int:
    return TOKENS.encode("of " + word).ids[len(TOKENS.encode("of").ids)]


def text(token: int) -> str:
    return TOKENS.decode([token]).strip()


def prompt(name: str, wording: int, subject: str) -> str:
    return "".join(p.text for p in wording_pieces(relation(name).wordings[wording], subject))


class Planted:
    """Says what it is told after a prompt, and a line break after others.

    `said` maps a prompt to tokens with probabilities; what is left goes to all tokens alike.
    """

    def __init__(self) -> None:
        self.said: dict[str, dict[int, float]] = {}

    def say(self, where: str, **tokens: float) -> None:
        self.said[where] = {first(word): p for word, p in tokens.items()}

    def __call__(self, prompts: Sequence[Ids]) -> torch.Tensor:
        rows = torch.zeros(len(prompts), TOKENS.n_vocab)
        # What is left goes to all tokens, a little more to single bytes, so that no rank is a tie.
        slope = torch.linspace(1.1, 0.9, TOKENS.n_vocab) / TOKENS.n_vocab
        for row, ids in zip(rows, prompts, strict=True):
            found = self.said.get(TOKENS.decode(ids), {first("\n"): 0.9})
            row += slope * (1 - sum(found.values()))
            for token, p in found.items():
                row[token] += p
        return rows.log()


@cache
def planted() -> tuple[Planted, Scenarios]:
    """What the speaker says of ten countries and ten persons, real and fictional."""
    speak = Planted()
    eight = range(8)
    # A fact in all eight wordings; in six (the least); in five; with little probability; as the second guess.
    for subject, wordings, p in [("Kenya", 8, 0.6), ("Ghana", 6, 0.6), ("Mali", 5, 0.6), ("Togo", 8, 0.05)]:
        for t in eight[:wordings]:
            speak.say(prompt(COUNTRIES, t, subject), Africa=p)
    for t in eight:
        speak.say(prompt(COUNTRIES, t, "Chad"), Asia=0.6, Africa=0.3)
    # A fact in two wordings only, another thing in each of the others; a wrong one in one wording.
    speak.say(prompt(COUNTRIES, 0, "Nepal"), Asia=0.3)
    speak.say(prompt(COUNTRIES, 1, "Nepal"), Asia=0.3)
    speak.say(prompt(COUNTRIES, 4, "Nepal"), Europe=0.2)
    # What the wording says of itself: all real and fictional things of wordings 0 to 7 that say Europe are biased.
    for t in eight:
        speak.say(prompt(COUNTRIES, t, "it"), Europe=0.5)
        speak.say(prompt(COUNTRIES, t, "France"), Europe=0.8)
        speak.say(prompt(COUNTRIES, t, "Velloria"), Europe=0.4)
        speak.say(prompt(COUNTRIES, t, "Zembalia"), Africa=0.4)
        speak.say(prompt(PEOPLE, t, "Kenji Tanamoto"), Japan=0.7)
        speak.say(prompt(PEOPLE, t, "Akira Kurosawa"), Japan=0.7)
        speak.say(prompt(PEOPLE, t, "Bob Marley"), Jamaica=0.7)
    speak.say("Kenji is a common name in the following country:", Japan=0.4)
    speak.say("Akira is a first name or a surname often heard in", Japan=0.4)
    return speak, run(speak)


def run(speak: Planted, **options: Any) -> Scenarios:
    subject: Any = SimpleNamespace(tokens=TOKENS, name="planted")
    options = {"relations": [COUNTRIES, PEOPLE], "sentences": 20, "rules": Rules(popular=None), **options}
    return scenarios(subject, speak=speak, **options)


def rows(about: str, said: str | None = None) -> pd.DataFrame:
    frame = planted()[1].frame
    part = frame[(frame["subject"] == about) & (frame["rank"] == 0)]
    return part if said is None else part[part["prediction"] == text(first(said))]


def test_exact_recall_needs_three_quarters_of_the_wordings() -> None:
    assert set(rows("Kenya")["scenario"]) == {EXACT} and len(rows("Kenya")) == 8
    ghana = rows("Ghana", "Africa")
    assert set(ghana["scenario"]) == {EXACT} and set(ghana["consistency"]) == {0.75} and len(ghana) == 6
    assert set(rows("Ghana")["scenario"]) == {EXACT, ""}
    mali = rows("Mali", "Africa")
    assert set(mali["scenario"]) == {""} and set(mali["consistency"]) == {0.625}
    assert mali["correct"].all()


def test_exact_recall_needs_probability_and_the_first_rank() -> None:
    togo = rows("Togo", "Africa")
    assert len(togo) == 8 and set(togo["consistency"]) == {1.0} and set(togo["scenario"]) == {""}
    assert togo["mean_probability"].iloc[0] == pytest.approx(0.05, rel=0.1)
    frame = planted()[1].frame
    chad = frame[(frame["subject"] == "Chad") & (frame["prediction"] == text(first("Africa")))]
    assert set(chad["rank"]) == {1} and chad["correct"].all() and set(chad["consistency"]) == {0.0}
    assert set(chad["scenario"]) == {""}
    second = run(planted()[0], relations=COUNTRIES, rules=Rules(popular=None, rank=1)).frame
    chad = second[(second["subject"] == "Chad") & (second["prediction"] == text(first("Africa")))]
    assert set(chad["scenario"]) == {EXACT}


def test_guesses_are_rare_and_may_be_wrong() -> None:
    nepal = rows("Nepal")
    guesses = nepal[nepal["scenario"] == GUESSWORK]
    assert set(guesses["prediction"]) == {text(first("Asia")), text(first("Europe"))}
    assert guesses.set_index("template")["correct"].to_dict() == {0: True, 1: True, 4: False}
    assert guesses.set_index("template")["agreement"].to_dict() == {0: 0.25, 1: 0.25, 4: 0.125}


def test_bias_of_the_wording() -> None:
    france = rows("France")
    assert france["prompt_bias"].all() and france["correct"].all() and set(france["bias"]) == {"prompt_bias"}
    assert set(france["scenario"]) == {""}, "what a wording says of itself is not recalled"
    assert set(rows("Velloria")["scenario"]) == {HEURISTICS}
    # Said of a country that is not there, as sure as anything, and by no bias that is known.
    zembalia = rows("Zembalia")
    assert set(zembalia["bias"]) == {"none"} and set(zembalia["scenario"]) == {""}


def test_bias_of_a_name() -> None:
    for who, scenario in [("Kenji Tanamoto", HEURISTICS), ("Akira Kurosawa", ""), ("Bob Marley", EXACT)]:
        part = rows(who)
        assert set(part["scenario"]) == {scenario}, who
        assert part["person_name"].all() == (who != "Bob Marley")
    assert not rows("Kenji Tanamoto")["correct"].any() and set(rows("Kenji Tanamoto")["gold"]) == {""}


def test_string_overlap_and_two_biases() -> None:
    speak = Planted()
    for t in range(8):
        speak.say(prompt("capital", t, "Tunisia"), Tunis=0.9)
    for t in range(2):
        speak.say(prompt("capital", t, "it"), Tunis=0.5)
    frame = run(speak, relations="capital").frame
    tunisia = frame[(frame["subject"] == "Tunisia") & (frame["rank"] == 0)].set_index("template")
    both = "prompt_bias+string_overlap"
    assert tunisia["bias"].to_dict() == {t: both if t < 2 else "string_overlap" for t in range(8)}
    # Wordings agree where they have the same bias.
    assert tunisia["consistency"].to_dict() == {t: 0.25 if t < 2 else 0.75 for t in range(8)}
    assert (
        set(tunisia["agreement"]) == {1.0} and tunisia["correct"].all() and set(tunisia["scenario"]) == {""}
    )


def test_what_begins_two_answers_is_ambiguous() -> None:
    speak = Planted()
    for t in range(8):
        speak.say(prompt("capital", t, "Chile"), San=0.9)  # Santiago, and Santo Domingo
    frame = run(speak, relations="capital").frame
    part = frame[(frame["subject"] == "Chile") & (frame["rank"] == 0)]
    assert part["correct"].all() and part["ambiguous"].all() and set(part["scenario"]) == {""}
    assert set(part["consistency"]) == {1.0}


def test_popularity_splits_facts_from_guesses(tmp_path: Any) -> None:
    speak, _ = planted()
    book = tmp_path / "book.txt"
    book.write_text("Kenya and Kenya and Ghana. " * 5)
    counts = corpus_counts(book, list(relation(COUNTRIES).facts))
    assert counts["Kenya"] == 10 and counts["Ghana"] == 5 and counts["Nepal"] == 0
    (tmp_path / "bytes.txt").write_bytes(b"\xff")
    with pytest.raises(BrokenData, match=r"bytes\.txt is not UTF-8"):
        corpus_counts(tmp_path / "bytes.txt", ["Kenya"])
    common = run(speak, relations=COUNTRIES, popularity={**counts, "Nepal": -1.0}, rules=Rules(popular=0.995))
    found = common.frame[common.frame["scenario"] != GENERIC].groupby("scenario")["subject"].unique()
    assert list(found[EXACT]) == ["Kenya"] and "Nepal" in found[GUESSWORK]
    assert common.meta["popularity_proxy"] == "counts"
    by_token = run(speak, relations=COUNTRIES, rules=Rules()).frame
    short, long = (
        by_token[by_token["subject"] == s]["popularity"].iloc[0] for s in ("Chad", "the Dominican Republic")
    )
    assert short > long
    with pytest.raises(UsageError, match="popularity has no count for"):
        run(speak, relations=COUNTRIES, popularity={"Kenya": 1.0})


def test_census() -> None:
    table = planted()[1].census().set_index("relation")
    countries = table.loc[COUNTRIES]
    known = {"Kenya": 8, "Ghana": 6, "Mali": 5, "Togo": 8, "Nepal": 2, "France": 8}
    assert countries["known"] == sum(known.values())
    assert countries["biased"] == pytest.approx(8 / 37) and countries["pure"] == pytest.approx(14 / 37)
    assert countries["prompts"] == 8 * len(relation(COUNTRIES).facts)
    assert [countries[s] for s in (EXACT, HEURISTICS, GUESSWORK)] == [14, 8, 3]
    assert table.loc[GENERIC, GENERIC] == 20


def test_examples_have_spans_and_twins() -> None:
    found = planted()[1]
    made = examples(found, EXACT).examples(TOKENS)
    assert len(made) == 22
    twins = 0
    for e in made:
        check_example(e, TOKENS)
        assert e.meta["scenario"] == EXACT and e.meta["rules"]["confident"] == 0.75
        row = found.frame[(found.frame["prompt"] == e.text) & (found.frame["rank"] == 0)].iloc[0]
        assert e.answer_ids == (row["token_id"],)
        (span,) = e.spans_of("subject")
        assert TOKENS.decode(e.ids[span.start : span.end]).strip() == e.meta["subject"]
        twin = e.corrupt.get("subject_swap")
        if twin:
            twins += 1
            said = found.frame[(found.frame["prompt"] == twin.text) & (found.frame["rank"] == 0)].iloc[0]
            assert twin.answer_ids == (said["token_id"],) == e.foil_ids != e.answer_ids
            changed = [i for i, (a, b) in enumerate(zip(e.ids, twin.ids, strict=True)) if a != b]
            assert span.start <= changed[0] and changed[-1] < span.end
    assert twins > 10
    few = examples(found, EXACT, 5).examples(TOKENS)
    assert [e.key() for e in few] == [e.key() for e in made[:5]]
    assert [e.key() for e in examples(found, EXACT, seed=1).examples(TOKENS)] != [e.key() for e in made]


def test_combination_takes_as_many_of_each() -> None:
    found = planted()[1]
    made = combination(found).examples(TOKENS)
    assert [e.meta["scenario"] for e in made] == [EXACT, HEURISTICS, GUESSWORK] * 3
    with pytest.raises(
        NoAcceptedExample, match="3 predictions are of the scenario 'guesswork', and 4 are wanted"
    ):
        combination(found, 4)
    with pytest.raises(UsageError, match="no scenario 'recall'"):
        examples(found, "recall")


def plain(o: Opening) -> str:
    return o.lead + o.subject + o.rest


def test_twins_of_openings_are_spread() -> None:
    found = openings(60)
    frame = run(Planted(), relations=COUNTRIES, subjects=1, sentences=60).frame
    twins = frame[(frame["scenario"] == GENERIC) & (frame["twin"] != "")]["twin"]
    assert len(twins) > 30 and twins.nunique() > len(twins) / 3
    assert twins.value_counts().iloc[0] < len(twins) / 5
    assert len({o.lead for o in found}) == len(LEADS)


def test_openings_are_plain_and_their_twins_aligned() -> None:
    found = openings(50)
    assert len({o.subject + o.rest for o in found}) == 50
    for o in found:
        words = (o.subject + o.rest + " " + o.last).split()
        assert 5 <= len(words) <= 10 and o.last.islower() and o.subject[0].isupper()
        assert sum(c.isupper() for c in o.subject + o.rest) <= 3
    assert openings(10) == found[:10] and openings(10, seed=1) != found[:10]
    speak = Planted()
    for o in found[:20]:
        speak.said[plain(o)] = {first(o.last): 0.5}
    frame = run(speak, relations=COUNTRIES, subjects=1)
    made = examples(frame, GENERIC).examples(TOKENS)
    assert len(made) == 20
    by_text = {plain(o): o for o in found[:20]}
    for e in made:
        check_example(e, TOKENS)
        own = by_text[str(e.text)]
        (span,) = e.spans_of("subject")
        assert TOKENS.decode(e.ids[span.start : span.end]) == " " + own.subject
        assert TOKENS.decode(e.ids[: span.start]) + " " == own.lead and span.start > 0
        sizes = {
            o.subject: len(TOKENS.encode(" " + o.subject).ids) for o in found[:20] if o.subject != own.subject
        }
        # A twin of which the model says the same is none; of the others it says nothing.
        other = e.answer_ids[0] != first("\n")
        assert bool(e.corrupt) == (len(span) in sizes.values() and other)
        for twin in e.corrupt.values():
            assert sizes[TOKENS.decode(twin.ids[span.start : span.end])[1:]] == len(span)
    assert sum(bool(e.corrupt) for e in made) >= 2


def test_the_same_again(rng_untouched: None) -> None:
    speak, found = planted()
    pd.testing.assert_frame_equal(run(speak).frame, found.frame)
    few = run(speak, subjects=4)
    again = run(speak, subjects=4)
    pd.testing.assert_frame_equal(few.frame, again.frame)
    assert few.frame[~few.frame["fictional"]].groupby("relation")["subject"].nunique()[PEOPLE] == 4
    assert set(run(speak, subjects=4, seed=1).frame["subject"]) != set(few.frame["subject"])


def test_fictional_subjects_do_not_exist() -> None:
    real = {s for r in named() for s in relation(r).facts} | {o for r in named() for o in relation(r).objects}
    for sort in sorts().values():
        assert len(set(sort.fictional)) == 20 and not set(sort.fictional) & real
        assert len(sort.neutral) >= 3
    assert sort_of("capital").name == "country"
    with pytest.raises(UsageError, match="relation opposite has no fictional subjects"):
        sort_of("opposite")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 3}, "rank=3: take 0 to 2"),
        ({"confident": 1.5}, "confident=1.5"),
        ({"unsure": 0.8}, "unsure=0.8 is not below"),
    ],
)
def test_rules_that_are_none(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Rules(**options)
    with pytest.raises(UsageError, match="goes with rules that ask for none"):
        run(Planted(), popularity=None, rules=Rules())


def test_a_census_of_the_default_model(smollm2: CausalLM) -> None:
    found = scenarios(smollm2, relations="capital", subjects=3, sentences=4)
    table = found.census().set_index("relation")
    assert table.loc["capital", "known"] > 0.2 * table.loc["capital", "prompts"]
    made = examples(found, GENERIC).examples(smollm2)
    logits = smollm2.run(smollm2.batch(made), keep=1).logits[:, -1]
    assert logits.argmax(-1).tolist() == [e.answer_ids[0] for e in made]


def test_maps_can_be_split_by_scenario() -> None:
    model = CausalLM(tiny("llama"), Tokens(byte_tokenizer()), name="tiny")
    found = scenarios(model, relations=COUNTRIES, subjects=1, sentences=3)
    made = [e for e in examples(found, GENERIC).examples(model) if e.corrupt][:1]
    logits = model.run(model.batch(made), keep=1).logits[0, -1]
    assert made and made[0].answer_ids == (int(logits.argmax()),)
    maps = trace_maps(model, made, How(corruption=("subject_swap",), layers=(0,)), by=["scenario"])
    assert set(maps["scenario"]) == {GENERIC} and set(maps["token_id"]) == {made[0].answer_ids[0]}
    (twin,) = made[0].corrupt.values()
    swapped = model.run(model.batch([twin]), keep=1).logits[0, -1].softmax(-1)
    assert maps["low"].iloc[0] == pytest.approx(float(swapped[made[0].answer_ids[0]]), abs=1e-5)
