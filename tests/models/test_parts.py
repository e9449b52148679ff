"""Parts are the matrices they are called after, in the order they run, in both kinds of subject."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from interp.errors import EngineError, UsageError
from interp.intervene.ablate import ablate
from interp.models.batch import Batch
from interp.models.engines.base import Record
from interp.models.parts import Part, Pass, module_of, parts, passing, replacing, run_ids, watching, weight_of
from interp.models.sites import Neuron, Site
from tests.pipelines import pixels, tiny_pipeline
from tests.subjects import ALL, subject

IDS = [list(b"abcdefgh"), list(b"xyz")]
UNET = ["ff_in", "ff_out"] + [
    f"{side}_{role}" for side in ("self", "cross") for role in ("q", "k", "v", "out")
]


def run_order(pipeline: Any) -> list[str]:
    """Names of the UNet's linear layers in the order they run, found without knowing what they are."""
    order: list[str] = []
    handles = [
        module.register_forward_hook(lambda *_, name=name: order.append(f"unet.{name}"))
        for name, module in pipeline.pipe.unet.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    with torch.no_grad():
        pipeline.noise(pipeline.latents([0]), 5, pipeline.embed([""]))
    for handle in handles:
        handle.remove()
    return order


@pytest.mark.parametrize("make", [pixels, tiny_pipeline])
def test_parts_of_a_unet_are_numbered_as_they_run(make: Any) -> None:
    pipeline = make()
    order = run_order(pipeline)
    n = {"pixels": 7, "tiny-sd": 16}[pipeline.name]
    covered = set()
    for kind in UNET:
        found = parts(pipeline, kind)
        places = [order.index(part.path) for part in found]
        assert len(found) == n and places == sorted(places), kind
        assert [part.number for part in found] == list(range(n))
        covered |= {part.path for part in found}
    blocks = {name for name in order if "transformer_blocks" in name}
    assert covered == blocks, "some matrix of a transformer block is no part"


def test_parts_of_a_pipeline_are_what_they_say() -> None:
    pipeline = tiny_pipeline()
    for i, block in enumerate(parts(pipeline, "ff_out")):
        d, hidden = weight_of(pipeline, block).shape
        assert block.path.endswith("transformer_blocks.0.ff.net.2") and hidden == 4 * d
        assert weight_of(pipeline, parts(pipeline, "ff_in")[i]).shape == (2 * hidden, d)  # values and gates
        assert weight_of(pipeline, parts(pipeline, "cross_k")[i]).shape == (d, 16)  # reads the text
        assert parts(pipeline, "cross_v")[i].path.endswith("attn2.to_v")
        assert parts(pipeline, "self_v")[i].path.endswith("attn1.to_v")
    texts = parts(pipeline, "text_ff_out")
    assert [p.path.split("layers.")[1] for p in texts] == ["0.mlp.fc2", "1.mlp.fc2"]
    assert [tuple(weight_of(pipeline, p).shape) for p in texts] == [(16, 24)] * 2
    with pytest.raises(UsageError, match="no parts of kind 'ff'; it has cross_k"):
        parts(pipeline, "ff")
    with pytest.raises(UsageError, match=r"ff_out\[3\]: tiny-sd has no module"):
        module_of(pipeline, Part("unet.nowhere", "ff_out", 3))


def test_parts_print_and_sort() -> None:
    found = parts(tiny_pipeline(), "ff_out") + parts(tiny_pipeline(), "cross_v")
    assert repr(found[3]) == f"{found[3]}" == "ff_out[3]"
    assert sorted(found)[:2] == list(parts(tiny_pipeline(), "cross_v")[:2])
    assert [p.number for p in sorted(parts(tiny_pipeline()), reverse=True)] == list(range(16))[::-1]
    assert len({*found, *parts(tiny_pipeline())}) == 32


@pytest.mark.parametrize("family", ALL)
def test_parts_of_language_models(family: str) -> None:
    model = subject(family)
    down = parts(model)
    assert [p.number for p in down] == [0, 1, 2]
    seen: dict[Part, torch.Tensor] = {}
    kinds = ["ff_in", "ff_out", "self_out"]
    watched = [p for kind in kinds for p in parts(model, kind)]
    with watching(model, watched, lambda part, x, _: seen.update({part: x})):
        trace = run_ids(model, IDS[:1])
    rows = Batch.of_ids(IDS[:1])
    sites = {Site(kind, i): Record() for kind in ("neurons", "z") for i in range(3)}
    traced = model.run(rows, sites)
    for i in range(3):
        assert torch.equal(seen[down[i]], traced[Site("neurons", i)])
        assert torch.equal(seen[parts(model, "self_out")[i]], traced[Site("z", i)].flatten(-2))
        wide = weight_of(model, parts(model, "ff_in")[i])
        assert wide.shape == (model.d_mlp, model.d_model)
        assert weight_of(model, down[i]).shape == (model.d_model, model.d_mlp)
        module = module_of(model, down[i])
        x = seen[down[i]]
        with torch.no_grad():
            bias = 0 if module.bias is None else module.bias
            torch.testing.assert_close(
                x @ weight_of(model, down[i]).T + bias, module(x), atol=1e-4, rtol=1e-4
            )
    assert trace.logits.shape[1] == len(IDS[0])


@pytest.mark.parametrize(
    ("family", "kinds"),
    [
        ("llama", {"ff_gate": 3, "self_v": 3}),
        ("gpt2", {"self_qkv": 3}),
        ("neox", {"self_qkv": 3}),
    ],
)
def test_kinds_that_only_some_language_models_have(family: str, kinds: dict[str, int]) -> None:
    model = subject(family)
    assert {kind: len(parts(model, kind)) for kind in kinds} == kinds
    absent = "self_v" if "self_qkv" in kinds else "self_qkv"
    with pytest.raises(UsageError, match="no parts of kind"):
        parts(model, absent)
    if "ff_gate" in kinds:
        assert parts(model, "ff_gate")[1].path == "model.layers.1.mlp.gate_proj"
        assert parts(model, "ff_in")[1].path == "model.layers.1.mlp.up_proj"


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_weights_are_views(family: str) -> None:
    model = subject(family)
    part = parts(model)[1]
    weight, before = weight_of(model, part), model.fingerprint
    assert not weight.requires_grad
    kept = float(weight[2, 5])
    weight[2, 5] = 9.0
    own = module_of(model, part).weight.detach()
    assert float(own[5, 2] if family == "gpt2" else own[2, 5]) == 9.0 and model.fingerprint != before
    weight[2, 5] = kept
    assert model.fingerprint == before


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_padded_rows_say_which_tokens_count(family: str) -> None:
    model = subject(family)
    part = parts(model)[2]
    seen: list[tuple[torch.Tensor, Pass]] = []
    with watching(model, [part], lambda _, x, p: seen.append((x, p))):
        padded = run_ids(model, IDS, items=[7, 4], read_from=1)
        alone = run_ids(model, IDS[1:], read_from=[2])
    x, pass_ = seen[0]
    assert pass_.valid is not None and pass_.items.tolist() == [7, 4] and pass_.conditional.all()
    assert pass_.valid.tolist() == [[False] + [True] * 7, [False] * 6 + [True] * 2]
    assert seen[1][1].valid is not None and seen[1][1].valid.tolist() == [[False, False, True]]
    torch.testing.assert_close(x[1, -3:], seen[1][0][0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(padded.logits[1, -3:], alone.logits[0], atol=1e-4, rtol=1e-4)


def test_watchers_see_what_interventions_leave() -> None:
    model = subject("llama")
    part = parts(model)[1]
    seen: list[torch.Tensor] = []
    with (
        watching(model, [part], lambda _, x, __: seen.append(x)),
        model.apply(ablate(Neuron(1, 5), mode="zero")),
    ):
        run_ids(model, IDS)
    with (
        watching(model, [part], lambda _, x, __: seen.append(x)),
        replacing(model, {part: lambda x, _: x * 0}),
    ):
        run_ids(model, IDS)
    assert not seen[0][..., 5].any() and seen[0][..., 4].any()
    assert not seen[1].any()


@pytest.mark.parametrize("make", [pixels, lambda: subject("gpt2")])
def test_replacing_inputs_is_as_editing_weights(make: Any) -> None:
    model = make()

    def run() -> torch.Tensor:
        if model.kind == "pipeline":
            return model.denoise(["zorax"], [1], steps=2)
        return run_ids(model, IDS).logits

    first, second = parts(model)[:2]
    mask = (torch.arange(weight_of(model, first).shape[1]) % 3 > 0).float()
    intact = run()
    with replacing(model, {first: lambda x, _: x * mask}):
        replaced = run()
    weight = weight_of(model, first)
    kept = weight.clone()
    weight *= mask
    edited = run()
    weight.copy_(kept)
    torch.testing.assert_close(replaced, edited, atol=1e-4, rtol=1e-4)
    assert (replaced - intact).abs().max() > 1e-3
    # Outputs: the same, where a row of the weight is what is taken away.
    with replacing(model, {second: lambda y, _: y * 0}, outputs=True):
        silent = run()
    module = module_of(model, second)
    saved = [p.detach().clone() for p in module.parameters()]
    with torch.no_grad():
        for p in module.parameters():
            p.zero_()
    emptied = run()
    with torch.no_grad():
        for p, old in zip(module.parameters(), saved, strict=True):
            p.copy_(old)
    torch.testing.assert_close(silent, emptied, atol=1e-4, rtol=1e-4)
    assert torch.equal(run(), intact), "something was left behind"


def test_gradients_flow_through_changes() -> None:
    pipeline = pixels()
    part = parts(pipeline)[2]
    gate = torch.ones(weight_of(pipeline, part).shape[1], requires_grad=True)
    x, embedding = pipeline.latents([1, 2]), pipeline.embed(["a", "zorax"])
    with replacing(pipeline, {part: lambda x, _: x * gate}):
        pipeline.noise(x, 100, embedding).square().sum().backward()
    assert gate.grad is not None and (gate.grad != 0).float().mean() > 0.9


def test_changes_know_the_half_and_the_step() -> None:
    """A change of the unconditional half alone acts as an edit that only this half sees."""
    pipeline = pixels()
    part = parts(pipeline)[0]
    steps: list[Any] = []

    def cut(x: torch.Tensor, pass_: Pass) -> torch.Tensor:
        keep = pass_.conditional | torch.tensor(pass_.index != 1)
        return x * keep[:, None, None]

    with replacing(pipeline, {part: cut}):
        pipeline.denoise(["zorax"], [1], steps=3, guidance=1.0, both=True, each=steps.append)
    plain: list[Any] = []
    pipeline.denoise(["zorax"], [1], steps=3, guidance=1.0, both=True, each=plain.append)
    same = [torch.allclose(a.unconditional, b.unconditional) for a, b in zip(steps, plain, strict=True)]
    assert same == [True, False, True]
    assert all(torch.allclose(a.conditional, b.conditional) for a, b in zip(steps, plain, strict=True))


def test_silent_parts_and_wrong_shapes_are_errors() -> None:
    pipeline, model = pixels(), subject("llama")
    owners = (pipeline.pipe.unet, pipeline.pipe.text_encoder, model.hf)

    def hooks() -> list[int]:
        # transformers puts hooks of its own on a model that gave its hidden states once.
        return [len(m._forward_hooks) + len(m._forward_pre_hooks) for o in owners for m in o.modules()]

    before = hooks()
    first = parts(pipeline, "text_ff_out")[:1]
    with (
        pytest.raises(EngineError, match=r"text_ff_out\[0\] of pixels did not run"),
        watching(pipeline, first, lambda *_: None),
    ):
        pipeline.denoise(pipeline.latents([0]).new_zeros(1, 10, 16), [1], steps=1, guidance=1.0)
    with (
        pytest.raises(EngineError, match="keep the shape"),
        replacing(model, {parts(model)[0]: lambda x, _: x[:1]}),
    ):
        run_ids(model, IDS)
    with pytest.raises(ZeroDivisionError), watching(model, parts(model), lambda *_: 1 // 0):
        run_ids(model, IDS)
    assert hooks() == before


def test_passes_nest() -> None:
    pipeline = pixels()
    part = parts(pipeline)[0]
    keys: list[tuple[int, list[int]]] = []
    x, embedding = pipeline.latents([1, 2]), pipeline.embed(["a"])
    with torch.no_grad(), watching(pipeline, [part], lambda _, __, p: keys.append((p.key, p.items.tolist()))):
        with passing(pipeline, Pass.of(x, 77)):
            pipeline.noise(x, 100, embedding)
            pipeline.noise(x, torch.tensor([3, 4]), embedding)
            pipeline.pipe.unet(x, 5, encoder_hidden_states=embedding.expand(2, -1, -1))
        pipeline.pipe.unet(x, 5, encoder_hidden_states=embedding.expand(2, -1, -1))
    assert keys == [(100, [0, 1]), (-1, [0, 1]), (77, [0, 1]), (0, [0, 1])]
