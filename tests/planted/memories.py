"""Planted memories: small language models, built by hand, whose known MLP neurons hold known sequences.

Each sequence has its own neurons in one layer, `spread` of them a token: each fires where that token is to come, and
writes towards it. What could be taken for them:

| decoy | fires | writes |
|---|---|---|
| loud | everywhere | much, on an axis that nothing reads |
| eager | only where the sequences continue, as the memory does | much, on the same axis |
| others' | where another sequence continues | towards its tokens |

The remaining neurons are random, and so is attention. GPT-2 (LayerNorm, GELU, biases) and Llama (RMS norm, gated).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import transformers as hf

from interp.models.sites import Neuron
from interp.models.subject import CausalLM
from interp.tasks.memorized import TextItem

VOCAB, WIDTH, HIDDEN, LAYERS = 128, 64, 96, 4
PREFIX, SUFFIX = 6, 5
LOUD, EAGER = 3, 3
SHARP = 8.0
"""What a memory's neuron gives where it fires."""


@dataclass(eq=False)
class Memories:
    """A model and what is known of it.

    Attributes:
        items: the sequences it holds.
        fresh: sequences of the same length that it does not hold.
        neurons: those that hold each item, by its name.
        loud, eager: decoys.
    """

    subject: CausalLM
    items: tuple[TextItem, ...]
    fresh: tuple[TextItem, ...]
    neurons: dict[str, frozenset[Neuron]]
    loud: frozenset[Neuron]
    eager: frozenset[Neuron]


def memories(
    kind: str = "llama",
    seed: int = 0,
    *,
    layers: tuple[int, ...] = (1, 2),
    spread: int = 1,
    strength: float = 3.0,
) -> Memories:
    """A model with one sequence held in each of `layers`.

    Args:
        spread: neurons a token; each writes as much less.
        strength: what is written towards a token, in lengths of the residual stream; less is harder to find.
    """
    rng = torch.Generator().manual_seed(seed)
    module = _random(kind, rng)
    subject = CausalLM(module, None, name=f"memories {kind} {seed}")
    items = [
        TextItem(f"item {i}", tuple(_draw(rng)), PREFIX, "memorized", exposures=1)
        for i, _ in enumerate(layers)
    ]
    fresh = [TextItem(f"fresh {i}", tuple(_draw(rng)), PREFIX, "never seen") for i in range(8)]
    background = torch.randint(0, VOCAB, (48, PREFIX + SUFFIX), generator=rng)
    free = {layer: torch.randperm(HIDDEN, generator=rng).tolist() for layer in range(LAYERS)}
    neurons: dict[str, frozenset[Neuron]] = {}
    loud: list[Neuron] = []
    eager: list[Neuron] = []
    for layer in range(LAYERS):
        # Layers below are final by now, and those above do not matter to what this one reads.
        states = _states(subject, layer, background).flatten(0, 1)
        size = _size(subject, layer, background)
        detect = _Detector(states)
        for _ in range(LOUD):
            key = torch.randn(WIDTH, generator=rng) / WIDTH**0.5
            loud.append(_plant(subject, layer, free[layer].pop(), key, loud=True))
            _write(subject, loud[-1], _unread() * size / 8)
        for item, home in zip(items, layers, strict=True):
            if home != layer:
                continue
            found = _states(subject, layer, torch.tensor([item.ids]))[0]
            mine = []
            for at in range(item.prefix, len(item.ids)):
                key = detect(found[at - 1])
                towards = _towards(module, item.ids[at]) * size * strength / SHARP / spread
                for _ in range(spread):
                    mine.append(_plant(subject, layer, free[layer].pop(), key))
                    _write(subject, mine[-1], towards)
            for at in range(item.prefix, item.prefix + EAGER):
                eager.append(_plant(subject, layer, free[layer].pop(), detect(found[at - 1])))
                _write(subject, eager[-1], _unread() * size / SHARP)
            neurons[item.name] = frozenset(mine)
    return Memories(subject, tuple(items), tuple(fresh), neurons, frozenset(loud), frozenset(eager))


def _draw(rng: torch.Generator) -> list[int]:
    return torch.randperm(VOCAB, generator=rng)[: PREFIX + SUFFIX].tolist()


def _unread() -> torch.Tensor:
    """The axis that nothing reads; its entries sum to zero, so LayerNorm's mean does not see it either."""
    axis = torch.zeros(WIDTH)
    axis[0], axis[1] = 2**-0.5, -(2**-0.5)
    return axis


_SHARED = {"vocab_size": VOCAB, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}


def _random(kind: str, rng: torch.Generator) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        module: torch.nn.Module
        if kind == "gpt2":
            module = hf.GPT2LMHeadModel(
                hf.GPT2Config(
                    **_SHARED,
                    n_layer=LAYERS,
                    n_head=4,
                    n_embd=WIDTH,
                    n_inner=HIDDEN,
                    n_positions=64,
                    tie_word_embeddings=False,
                )
            )
        else:
            module = hf.LlamaForCausalLM(
                hf.LlamaConfig(
                    **_SHARED,
                    hidden_size=WIDTH,
                    intermediate_size=HIDDEN,
                    num_hidden_layers=LAYERS,
                    num_attention_heads=4,
                    max_position_embeddings=64,
                )
            )
    readers = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "c_attn", "c_fc")
    axis = _unread()
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if weight.ndim < 2:
                continue
            weight.copy_(torch.randn(weight.shape, generator=rng) / WIDTH**0.5)
            if "embed" in name or "wte" in name or "wpe" in name:
                weight.mul_(4)
            if "lm_head" in name:
                weight.mul_(2)
            if any(part in name for part in (*readers, "lm_head", "embed", "wte", "wpe")):
                if weight.shape[-1] == WIDTH and "c_attn" not in name and "c_fc" not in name:
                    weight.sub_((weight @ axis)[:, None] * axis)
                else:  # GPT-2 keeps (in, out)
                    weight.sub_(axis[:, None] * (axis @ weight))
    return module.eval()


class _Detector:
    """Directions that are 1 at one state, and near 0 at those of other texts."""

    def __init__(self, states: torch.Tensor):
        centred = states - states.mean(0)
        self.inverse = torch.linalg.inv(centred.T @ centred / len(states) + 1e-2 * torch.eye(WIDTH))

    def __call__(self, state: torch.Tensor) -> torch.Tensor:
        direction = self.inverse @ state
        return direction / (direction @ state)


def _states(subject: CausalLM, layer: int, ids: torch.Tensor) -> torch.Tensor:
    """What the MLP of a layer reads, normed."""
    found: list[torch.Tensor] = []
    block = subject.blocks[layer]
    handle = block.mlp.register_forward_pre_hook(lambda m, args: found.append(args[0].detach()))
    with torch.no_grad():
        subject.hf(ids)
    handle.remove()
    return found[0]


def _size(subject: CausalLM, layer: int, ids: torch.Tensor) -> float:
    """Length of the residual stream where it enters a layer, without the axis that nothing reads."""
    with torch.no_grad():
        states = subject.hf(ids, output_hidden_states=True).hidden_states[layer]
    return float((states - (states @ _unread())[..., None] * _unread()).norm(dim=-1).mean())


def _towards(module: torch.nn.Module, token: int) -> torch.Tensor:
    unembedding: torch.Tensor = module.lm_head.weight.detach()  # type: ignore[union-attr, assignment]
    direction = unembedding[token] - unembedding.mean(0)
    return direction / direction.norm()


def _plant(subject: CausalLM, layer: int, i: int, key: torch.Tensor, *, loud: bool = False) -> Neuron:
    """Make a neuron read along `key`: it gives `SHARP` where that is 1, and little where it is 0 (`loud`: about 1)."""
    mlp = subject.blocks[layer].mlp
    with torch.no_grad():
        if hasattr(mlp, "gate_proj"):
            mlp.gate_proj.weight[i] = key * (2 if loud else SHARP)
            mlp.up_proj.weight[i] = key
        else:
            mlp.c_fc.weight[:, i] = key if loud else key * 2 * SHARP
            mlp.c_fc.bias[i] = 1 if loud else -SHARP
    return Neuron(layer, i)


def _write(subject: CausalLM, neuron: Neuron, vector: torch.Tensor) -> None:
    mlp = subject.blocks[neuron.layer].mlp
    with torch.no_grad():
        if hasattr(mlp, "down_proj"):
            mlp.down_proj.weight[:, neuron.i] = vector
        else:
            mlp.c_proj.weight[neuron.i] = vector
