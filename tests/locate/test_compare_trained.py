"""Base against fine-tuned: heads of a small trained model keep their parts, heads of another seed do not.

Three layers learn to repeat what stood before. Where copying happens is settled by the layers, in every seed, so two
seeds correlate highly; which heads of the layer do it differs, and only the null within layers can tell.
"""

from __future__ import annotations

import copy

import pytest
import torch
import transformers as hf

import interp
from interp.locate.compare import Comparison, compare
from interp.tasks.base import Example, FixedTask, Span

pytestmark = pytest.mark.slow  # two trainings of 300 steps: 20 s on a core of one's own

VOCAB, LAYERS, HEADS = 40, 3, 6
STEPS, TUNING = 300, 40


def model(seed: int) -> hf.LlamaForCausalLM:
    config = hf.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return hf.LlamaForCausalLM(config)


def repeated(generator: torch.Generator, n: int, half: int, kinds: int) -> torch.Tensor:
    """A first token, distinct random tokens, and the same tokens again; n rows."""
    once = torch.stack([torch.randperm(kinds - 1, generator=generator)[:half] + 1 for _ in range(n)])
    return torch.cat([torch.zeros(n, 1, dtype=torch.long), once, once], dim=1)


def train(module: hf.LlamaForCausalLM, steps: int, rate: float, seed: int, kinds: int = VOCAB) -> None:
    """Repeat sequences of 6 to 13 tokens: the distance varies, so that it takes an induction head."""
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=0.01)
    for _ in range(steps):
        half = int(torch.randint(6, 14, (1,), generator=generator))
        ids = repeated(generator, 32, half, kinds)
        logits = module(input_ids=ids).logits[:, half + 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, VOCAB), ids[:, half + 2 :].reshape(-1))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    module.eval()


def task(n: int = 24) -> FixedTask:
    generator = torch.Generator().manual_seed(9)
    examples = []
    for i in range(n):
        ids = repeated(generator, 1, 12, VOCAB)[0].tolist()
        at = 1 + int(torch.randint(1, 8, (1,), generator=generator))
        answer = tuple(ids[at : at + 4])
        span = Span(at, at + 4, "value", 0)
        examples.append(
            Example("repeat", tuple(ids[: 12 + at]), answer, spans=(span,), chance=1 / VOCAB, cluster=str(i))
        )
    return FixedTask(examples, name="repeat")


def scored(module: hf.LlamaForCausalLM) -> interp.RetrievalHeads:
    located = interp.RetrievalHeads(scores=("copy", "needle_mass"), mode="forced")
    return located.fit(interp.load(module, tokenizer=None), task())


@pytest.fixture(scope="module")
def found() -> dict[str, Comparison]:
    base, other = model(0), model(1)
    train(base, STEPS, 3e-3, 0)
    train(other, STEPS, 3e-3, 1)
    tuned = copy.deepcopy(base)
    train(tuned, TUNING, 1e-3, 77, kinds=20)  # half of the tokens alone
    with torch.no_grad():
        pairs = zip(tuned.parameters(), base.parameters(), strict=True)
        moved = sum(float((a - b).square().sum()) for a, b in pairs)
        size = sum(float(b.square().sum()) for b in base.parameters())
    assert (moved / size) ** 0.5 > 0.05  # it is another model
    heads = scored(base)
    assert heads.instances_["exact"].mean() > 0.5  # by heads that copy: a guess is right once in 40
    return {
        "tuned": compare(heads, scored(tuned), top=5, method="needle_mass", names=("base", "tuned")),
        "seed": compare(heads, scored(other), top=5, method="needle_mass", names=("base", "other seed")),
    }


def test_a_fine_tune_keeps_its_heads(found: dict[str, Comparison]) -> None:
    told = found["tuned"]
    assert told.value("overlap", "top 5") >= 0.8
    assert told.value("overlap", "top 5", column="of_ceiling") > 0.9
    assert told.value("spearman") > 0.9 and told.value("pearson") > 0.9
    assert told.value("spearman", column="p_layers") < 0.01


def test_another_seed_shares_the_layers_and_not_the_heads(found: dict[str, Comparison]) -> None:
    told, tuned = found["seed"], found["tuned"]
    assert told.value("pearson", column="p") < 0.01  # far above chance, and all of it by layer
    assert told.value("pearson", column="p_layers") > 0.05
    assert told.value("spearman", column="p_layers") > 0.05
    assert told.value("pearson") < tuned.value("pearson")
    assert told.value("spearman") < tuned.value("spearman")
