"""What each wrapper does to a prompt, what it refuses, and how it is named."""

from __future__ import annotations

import copy
import re

import pytest

import tests.tokenizers
from interp.errors import BrokenData, UsageError
from interp.models.tokens import Tokens
from interp.tasks import task
from interp.tasks.base import FixedTask, Redraw, check_example
from interp.tasks.wrap import WRAPPERS, chat, distracted, pause, read_twice, repeated, reworded, wrap
from interp.tasks.wrap.base import Added, Kept, Made, Wrapped

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]\n{{ m.content | trim }}[end]\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)


def talking(kind: str, template: str = TEMPLATE) -> Tokens:
    hf = copy.deepcopy(tests.tokenizers.tokens(kind).hf)
    hf.chat_template = template
    return Tokens(hf)


def test_the_context_stands_as_often_as_asked_and_hops_count_copies_and_steps():
    tokens = tests.tokenizers.tokens("qwen")
    hops = task("multi_hop", n=2, length=300, chains=2, shots=0)
    for new, old in zip(repeated(hops, 3).examples(tokens), hops.examples(tokens), strict=True):
        context, asked = old.text.split("\n\nQuestion:")
        assert new.text == f"{context}\n\n{context}\n\n{context}\n\nQuestion:{asked}"
        stride = new.meta["copy_stride"]
        assert (stride, new.meta["copies"]) == (2, 3)
        assert [s.hop for s in new.spans_of("value", 0)] == [0, 2, 4]
        assert [divmod(s.hop, stride) for s in new.spans_of("evidence", 0)] == [
            (c, h) for c in range(3) for h in (0, 1)
        ]
        assert len(new.spans_of("question")) == 1


def test_a_cue_is_the_question_itself():
    new = read_twice(task("colored_objects", n=1, shots=0), cue=True).examples(
        tests.tokenizers.tokens("gpt2")
    )[0]
    first, *_, last, answer = new.text.split("\n")
    assert first == last and first.startswith("Question:") and answer == "Answer:"
    assert [s.hop for s in new.spans_of("query")] == [0, 1]


def test_bare_ids_are_read_twice_behind_one_start_of_text():
    tokens = tests.tokenizers.tokens("llama")
    base = task("induction", n=3, length=8)
    for new, old in zip(read_twice(base).examples(tokens), base.examples(tokens), strict=True):
        bos, *context, query = old.ids
        assert new.ids == (bos, *context, *context, query)


def test_distraction_is_as_long_as_asked_and_free_of_answers_and_prompt():
    tokens = tests.tokenizers.tokens("smollm")
    base = task("niah", n=4, length=128)
    for where in ("before", "after", "between"):
        for new, old in zip(distracted(base, 40, where).examples(tokens), base.examples(tokens), strict=True):
            added = sum(map(len, new.spans_of("added")))
            assert 36 <= added <= 42
            prose = " ".join(tokens.decode(new.ids[s.start : s.end]) for s in new.spans_of("added"))
            assert old.meta["value"] not in prose
            assert not any(s in old.text for s in re.split(r"(?<=[.!?]) ", prose.strip()))
            assert new.meta["base_depth"] == old.meta["depth"]
            evidence, asked = new.spans_of("evidence", 0)[0].start, new.spans_of("question")[0].start
            if where == "before":
                assert evidence > new.spans_of("added")[0].end and new.meta["depth"] > old.meta["depth"] - 0.1
            if where == "after":
                assert evidence < new.spans_of("added")[0].start < asked


def test_prose_between_sentences_parts_no_sentence():
    new = distracted(task("niah", n=4, length=128), 40, "between").examples(tests.tokenizers.tokens("gpt2"))
    for example in new:
        for span in example.spans_of("added"):
            start = example.offsets[span.start][0]
            assert example.text[:start].rstrip()[-1] in ".!"


def test_a_reworded_question_keeps_its_names_and_says_it_otherwise():
    tokens = tests.tokenizers.tokens("llama3")
    base = task("niah", n=6, length=96)
    for new, old in zip(reworded(base).examples(tokens), base.examples(tokens), strict=True):
        (before, asked), (kept, then) = (e.text.split("Question:") for e in (old, new))
        assert before == kept
        question, stem = then.split("\nAnswer:")
        assert question == " " + new.meta["reworded"].replace("{x}", old.meta["key"])
        assert question != asked.split("\nAnswer:")[0] and stem == asked.split("\nAnswer:")[1]


def test_pauses_stand_before_the_answer_or_its_stem():
    tokens = tests.tokenizers.tokens("smollm")
    base = task("colored_objects", n=1)
    end, stem = (pause(base, 5, at=at).examples(tokens)[0] for at in ("end", "stem"))
    assert end.text.endswith("\nAnswer: . . . . .") and stem.text.endswith("?\n . . . . .\nAnswer:")
    assert end.spans_of("pause")[0].end == len(end.ids)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "llama3"])
def test_a_chat_has_the_question_as_the_users_and_the_stem_as_the_assistants(kind):
    tokens = talking(kind)
    for name in ("colored_objects", "niah", "acronym", "ioi"):
        base = task(name, n=2, **({"length": 128} if name == "niah" else {}))
        made = chat(base)
        for new, old in zip(made.examples(tokens), base.examples(tokens), strict=True):
            check_example(new, tokens, copies=base.copies)
            if made.redraws.total() and new.answer_ids != old.answer_ids:
                continue  # a needle in front of a text has a lone space there, and none behind the template
            assert new.answer_ids == old.answer_ids and new.candidates == old.candidates
            start = new.text.removeprefix("<s>")
            assert start.startswith("[user]\n") and new.ids.count(tokens.hf.bos_token_id) == 1
            said = start.removeprefix("[user]\n").split("[end]\n[assistant]\n")
            assert len(said) == 2
            if name in ("colored_objects", "niah"):
                context, stem = old.text.rsplit("\nAnswer:", 1)
                assert said == [context, f"Answer:{stem}"]
            if name == "ioi":
                assert said[1] == old.text
            assert set(new.corrupt) == set(old.corrupt)


def test_a_chat_is_read_twice_behind_its_heading():
    tokens = talking("qwen")
    new = read_twice(chat(task("colored_objects", n=1, shots=0), system="Be brief.")).examples(tokens)[0]
    check_example(new, tokens, copies=True)
    assert new.text.count("[user]") == new.text.count("Be brief.") == new.text.count("[assistant]") == 1
    assert len(new.spans_of("value", 0)) == 2


def test_the_default_models_own_template(smollm2_tokens: Tokens) -> None:
    new = chat(task("colored_objects", n=2)).examples(smollm2_tokens)
    for example in new:
        check_example(example, smollm2_tokens, copies=True)
        assert example.text.count("<|im_start|>") == 3 and example.text.endswith("assistant\nAnswer:")


class Picky(Wrapped):
    """Refuses the first draw of example 1."""

    wrapper = "picky"

    def __init__(self, base):
        super().__init__(base)
        self.seen = []

    def parts(self, example, plan, tokens):
        self.seen.append(example.ids)
        if len(self.seen) == 2:
            raise Redraw("not this one")
        return Made((Kept(0, len(example.text)),))

    def wrap(self, example, rng, tokens):
        from dataclasses import replace

        return super().wrap(replace(example, corrupt={}), rng, tokens)


def test_a_spoilt_draw_is_another_one_of_the_base_and_given_examples_have_no_other():
    tokens = tests.tokenizers.tokens("gpt2")
    base = task("colored_objects", n=3)
    picky = Picky(base)
    made = picky.examples(tokens)
    olds = base.examples(tokens)
    assert [n.ids == o.ids for n, o in zip(made, olds, strict=True)] == [True, False, True]
    assert picky.redraws == {"not this one": 1}
    with pytest.raises(BrokenData, match=r"picky\(fixed\): example 1 cannot be wrapped \(not this one\)"):
        Picky(FixedTask(olds)).examples(tokens)


def test_names_and_configs_say_all():
    made = read_twice(distracted(task("niah", n=2, length=128), 32))
    assert made.name == "read_twice(distracted(niah))" and len(made) == 2
    config = made.config()
    assert config["times"] == 2 and config["base"]["tokens"] == 32 and config["base"]["base"]["length"] == 128
    assert repr(pause(task("ioi", n=2), 4)).startswith("pause(ioi(n=2, seed=0")
    assert "2407.05483" in made.source and "Wu et al." in made.source


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda b: wrap(b, "read_twise"), "did you mean 'read_twice'"),
        (lambda b: wrap(b, "pause", times=2), "no parameter 'times'; it has count, unit, at"),
        (lambda b: repeated(b, 0), "times is 0"),
        (lambda b: distracted(b, 2), "tokens is 2"),
        (lambda b: distracted(b, where="inside"), "take of before, after, between"),
        (lambda b: pause(b, unit=" "), "take a text"),
        (lambda b: pause(b, at="start"), "take of end, stem"),
        (lambda b: reworded(b, -1), "0 or more"),
        (chat, "this tokenizer has no chat template"),
        (lambda b: chat(task("induction", n=1)), "it has ids and no text"),
        (lambda b: reworded(task("reading", n=1)), "no rewording of the question '"),
        (lambda b: read_twice(task("ioi", n=1), cue=True), "no question to stand in front"),
    ],
)
def test_refusals_name_the_way_out(make, message):
    with pytest.raises(UsageError, match=message):
        make(task("colored_objects", n=1)).examples(tests.tokenizers.tokens("gpt2"))


def test_templates_that_change_what_is_said_are_refused():
    base = chat(task("colored_objects", n=1))
    with pytest.raises(UsageError, match="does not put in what the user says once"):
        base.examples(talking("gpt2", "{% for m in messages %}hello{% endfor %}"))
    with pytest.raises(UsageError, match="refuses the messages: no"):
        base.examples(talking("gpt2", "{{ raise_exception('no') }}"))
    with pytest.raises(UsageError, match="it is a chat already"):
        chat(base).examples(talking("gpt2"))


def test_every_wrapper_has_a_name():
    assert {"read_twice", "repeated", "distracted", "reworded", "pause", "chat"} == set(WRAPPERS)
    assert Added("x").role is None
