"""Tasks of likely and unlikely answers: the rules give the answers, and what a prior is worth is measured right."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import tests.tokenizers
from interp.errors import UsageError
from interp.measure.priors import answer_priors, by_prior, prior_effect
from interp.models.subject import CausalLM
from interp.models.tokens import Tokens
from interp.tasks import task
from interp.tasks.base import Example, Ids
from interp.tasks.pairs import data

TOKENS = tests.tokenizers.tokens("smollm")
WORDS = set(data("prior")["answers"])


def last(example: Example) -> tuple[str, str]:
    """List and stem of the question asked."""
    lines = str(example.text).split("\n")
    return lines[-2].split(":", 1)[1], lines[-1]


def solve(name: str, listed: str, shift: int = 1) -> str:
    if name == "acronym":
        return "".join(w.strip()[0].upper() for w in listed.split(","))
    if name == "shift_cipher":
        return " ".join(chr(65 + (ord(x) - 65 - shift) % 26) for x in listed.split())
    counted, rest = listed.split(":")
    return str(rest.split().count(counted.strip()))


def likely(answer: str) -> bool:
    return answer.replace(" ", "") in WORDS or answer.endswith("0")


@pytest.mark.parametrize(
    ("name", "params"),
    [("acronym", {}), ("shift_cipher", {"shift": 13}), ("counting", {"largest": 100, "shots": 2})],
)
def test_the_rule_gives_the_answer(name: str, params: dict[str, Any]) -> None:
    shift = params.get("shift", 1)
    twins, levels, asked = 0, [], task(name, n=20, **params)
    for e in asked.examples(TOKENS):
        assert e.meta["answer" if e.meta["prior"] == "high" else "foil"] in asked.likely
        assert e.meta["foil" if e.meta["prior"] == "high" else "answer"] not in asked.likely
        answer = TOKENS.decode(e.answer_ids).strip()
        assert answer == e.meta["answer"] == solve(name, last(e)[0], shift)
        assert likely(answer) == (e.meta["prior"] == "high") != likely(e.meta["foil"])
        assert len(e.candidates) == 8 and e.chance == 1 / 8
        levels.append(e.meta["prior"])
        # Solved questions are solved by the rule, and give other answers.
        for solved in str(e.text).split("\n\n")[:-1]:
            given, said = solved.split("\n")
            assert solve(name, given.split(":", 1)[1], shift) == said.split(":")[1].strip() != answer
        twin = e.corrupt.get("value_swap")
        if twin:
            twins += 1
            assert solve(name, last(twin)[0], shift) == e.meta["foil"] == twin.meta["answer"]
            assert twin.answer_ids == e.foil_ids and twin.foil_ids == e.answer_ids
    assert levels.count("high") == 10
    assert twins
    for prior in ("high", "low"):
        assert {e.meta["prior"] for e in task(name, n=6, prior=prior).examples(TOKENS)} == {prior}


@pytest.mark.parametrize("name", ["shift_cipher", "counting"])
def test_with_the_default_model_every_example_has_a_twin(name: str, smollm2_tokens: Tokens) -> None:
    assert all(e.corrupt for e in task(name, n=24).examples(smollm2_tokens))


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("acronym", {"prior": "even"}, "prior is 'even'; take of high, low, both"),
        ("shift_cipher", {"shift": 26}, "shift is 26; take 1 to 25"),
        ("counting", {"largest": 50}, "largest is 50; take a whole number, 80 or more"),
        ("counting", {"shots": 1}, "1 shots of other numbers; largest=80 has 0"),
        ("counting", {"shots": "2"}, "shots is '2'; take a whole number, 0 or more"),
    ],
)
def test_bad_parameters(name: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        task(name, **params)


def test_priors_are_means_over_neutral_prompts() -> None:
    def speak(prompts: Sequence[Ids]) -> torch.Tensor:
        """A model that finds token t likely by t and by how long the prompt is."""
        scale = torch.tensor([[len(p) / 1000] for p in prompts])
        return torch.arange(TOKENS.n_vocab)[None] * scale

    subject: Any = SimpleNamespace(tokens=TOKENS, name="planted")
    examples = task("shift_cipher", n=6).examples(TOKENS)
    found = answer_priors(subject, examples, speak=speak)
    for e, prior in zip(examples, found, strict=True):
        wanted = []
        for text in e.meta["neutral"]:
            ids, total = TOKENS.encode(text).ids, 0.0
            for i, token in enumerate(e.answer_ids):
                total += float(speak([ids + e.answer_ids[:i]])[0].log_softmax(-1)[token])
            wanted.append(total)
        assert len(wanted) == 3 and prior == pytest.approx(np.mean(wanted), rel=1e-5)
    one = answer_priors(subject, examples, neutral=["Plain:"], speak=speak)
    assert np.abs(one - found).max() > 1e-3


def test_accuracy_by_prior() -> None:
    priors = np.array([-9.0, -1.0, -8.0, -5.0, -4.0, -2.0, -7.0, -3.0, -6.0])
    right = np.array([0.0, 1, 0, 1, 0, 1, 1, 1, 0])
    clusters = [str(i) for i in range(9)]
    table = by_prior(right, priors, clusters)
    assert table["prior"].tolist() == ["low", "middle", "high"] and table["n"].tolist() == [3, 3, 3]
    assert table["mean_prior"].tolist() == [-8.0, -5.0, -2.0]
    assert table["accuracy"].tolist() == pytest.approx([1 / 3, 1 / 3, 1.0])
    effect = prior_effect(right, priors, clusters)
    assert effect["gap"] == pytest.approx(2 / 3)
    assert effect["gap_lo"] < 2 / 3 <= effect["gap_hi"] + 1e-9
    # Ranks of the priors against errors: errors at ranks 1, 2, 4, 6 of 9.
    ranks, wrong = np.argsort(np.argsort(priors)) + 1.0, 1 - right
    assert effect["rho"] == pytest.approx(np.corrcoef(ranks, wrong)[0, 1]) and effect["rho"] < -0.4
    assert np.isnan(prior_effect(np.ones(9), priors, clusters)["rho"])
    with pytest.raises(UsageError, match="2 examples cannot be split"):
        by_prior(right[:2], priors[:2], clusters[:2])


def test_words_are_likelier_to_the_default_model(smollm2: CausalLM) -> None:
    examples = task("acronym", n=16).examples(smollm2)
    priors = answer_priors(smollm2, examples)
    high = np.array([e.meta["prior"] == "high" for e in examples])
    assert priors[high].mean() > priors[~high].mean() + 1
