"""Half precision, and weights in several places: the model under taps is the model, wherever it runs.

Several places are simulated on one CPU: accelerate puts its hooks on all modules, keeps weights in RAM or on disk, and
brings each to where it runs when it runs, as it does with GPUs. What needs a GPU is marked so.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from interp.intervene.ablate import ablate
from interp.measure.outcomes import evaluate
from interp.models.batch import Batch
from interp.models.engines.base import Record, Rows
from interp.models.offload import device_of
from interp.models.sites import Site
from interp.models.subject import CausalLM
from tests.subjects import ALL, examples, subject
from tests.tiny import tiny

KINDS = ("resid_pre", "q", "k", "v", "q_rot", "z", "head_out", "attn_out", "neurons", "mlp_out", "resid_post")
PLACES = ("ram", "disk", "map")


def everything(s: CausalLM) -> dict[Site, Record]:
    return {Site(kind, i): Record() for kind in KINDS for i in range(s.n_layers)}


def last_rows(batch: Batch) -> Rows:
    return Rows(torch.tensor([[batch.width - 3, batch.width - 1]] * len(batch)))


def bare(s: CausalLM, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        return s.hf(input_ids=batch.ids, attention_mask=batch.mask, position_ids=batch.positions).logits


# -- half precision --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def half(request) -> Callable[[str], CausalLM]:
    made: dict[str, CausalLM] = {}

    def of(family: str) -> CausalLM:
        if family not in made:
            made[family] = CausalLM(tiny(family).to(request.param), None, name=family)
        return made[family]

    return of


@pytest.mark.parametrize("family", ALL)
def test_half_precision_logits_are_the_models_own_bit_for_bit(half, family):
    s = half(family)
    batch = s.batch(examples())
    trace = s.run(batch, everything(s), rows=last_rows(batch), keep=batch.width)
    real = batch.mask.bool()
    assert trace.logits.dtype == s.dtype != torch.float32
    assert torch.equal(trace.logits[real], bare(s, batch)[real])
    for site, value in trace.records.items():
        assert value.dtype == s.dtype, site
    exact = subject(family).run(batch, rows=last_rows(batch)).rows
    for layer, rows in trace.rows.items():  # statistics are in fp32 whatever the model is in
        assert rows.dtype == torch.float32
        torch.testing.assert_close(rows.sum(-1), torch.ones(rows.shape[:-1]), atol=1e-5, rtol=0)
        assert (rows - exact[layer]).abs().max() < 0.1


@pytest.mark.parametrize("family", ALL)
def test_half_precision_edits_are_those_of_a_plain_hook(half, family):
    s = half(family)
    batch = s.batch(examples())
    projection: Any = s.module(1, s.family.out_proj)

    def zero(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        z = args[0].clone()
        z[..., 2 * s.d_head : 3 * s.d_head] = 0
        return (z,)

    handle = projection.register_forward_pre_hook(zero)
    try:
        naive = bare(s, batch)
    finally:
        handle.remove()
    real = batch.mask.bool()
    with s.apply(ablate("L1H2")):
        cut = s.run(batch, keep=batch.width).logits
        said = s.generate(examples(), 4)
    assert torch.equal(cut[real], naive[real])
    assert (cut - bare(s, batch))[real].abs().max() > 0.01
    assert len(said) == len(examples()) and all(len(row) == 4 for row in said)
    shares = s.run(batch, {"head_out[1].2": torch.zeros_like}, keep=batch.width).logits
    assert (shares - naive)[real].abs().max() < 0.1 * naive[real].abs().max()
    found = evaluate(s, examples(), {"cut": ablate("L1H2", scope="answer"), "clean": None})
    assert all(abs(found.values[c]["nll"] - found.values["clean"]["nll"]).max() < 5 for c in found.values)


# -- several places --------------------------------------------------------------------------------------------------


def placed(family: str, place: str, folder: Path) -> CausalLM:
    """A tiny model under accelerate's hooks: between calls its weights are in RAM, on disk, or both."""
    from accelerate import cpu_offload, disk_offload, dispatch_model

    model, row = tiny(family), subject(family).family
    if place == "ram":
        cpu_offload(model, execution_device=torch.device("cpu"))
    elif place == "disk":
        disk_offload(model, str(folder), execution_device=torch.device("cpu"))
    else:
        body, _, blocks = row.layers.partition(".")
        outside = [name for name, _ in model.named_children() if name != body]
        inside = [
            f"{body}.{name}" for name, _ in model.get_submodule(body).named_children() if name != blocks
        ]
        where: dict[str, Any] = dict.fromkeys([*outside, *inside], "cpu")
        where |= {f"{row.layers}.{i}": ("cpu", "disk", "disk")[i] for i in range(3)}
        dispatch_model(model, where, main_device="cpu", offload_dir=str(folder), force_hooks=True)
    return CausalLM(model, None, name=family)


@pytest.fixture(
    scope="module", params=[(f, p) for f in ("llama", "gpt2", "gemma2") for p in PLACES], ids="-".join
)
def both(request, tmp_path_factory) -> tuple[CausalLM, CausalLM]:
    """The plain model and the same one with its weights elsewhere."""
    family, place = request.param
    return subject(family), placed(family, place, tmp_path_factory.mktemp(f"{family}-{place}"))


def test_weights_are_elsewhere_and_found_again(both):
    plain, s = both
    offloaded = [name for name, weight in s.hf.named_parameters() if weight.is_meta]
    assert any("2" in name for name in offloaded)
    assert s.device == plain.device == device_of(s.hf.get_input_embeddings())
    assert s.dtype == plain.dtype and s.d_mlp == plain.d_mlp
    assert s.weights_hash == plain.weights_hash
    for layer in range(s.n_layers):
        assert torch.equal(s.out_weight(layer), plain.out_weight(layer))
    assert [name for name, weight in s.hf.named_parameters() if weight.is_meta] == offloaded


def test_taps_rows_and_edits_are_the_plain_models(both):
    plain, s = both
    batch = s.batch(examples())
    found, wanted = (x.run(batch, everything(x), rows=last_rows(batch)) for x in (s, plain))
    assert torch.equal(found.logits, wanted.logits)
    for site in everything(s):
        assert torch.equal(found[site], wanted[site]), site
    for layer in range(s.n_layers):
        assert torch.equal(found.rows[layer], wanted.rows[layer])
    for site in (
        "z[1].2",
        "head_out[2].1",
        "neurons[2].5",
        "mlp_out[1]",
        "q_rot[2]",
        "resid_mid[1]",
        "embed",
    ):
        cut, same = (x.run(batch, {site: torch.zeros_like}).logits for x in (s, plain))
        assert torch.equal(cut, same), site
        assert not torch.equal(cut, found.logits), site


def test_interventions_generation_and_shared_prefixes_are_the_plain_models(both):
    cut = ablate("L1H2 L2H0") + ablate("M2", scope="answer")
    uniform = ablate("L2H1", mode="uniform", scope="answer")
    said = []
    for x in both:
        with x.apply(cut):
            said.append((x.run(examples()).logits, x.generate(examples(), 4)))
    assert torch.equal(said[0][0], said[1][0]) and said[0][1] == said[1][1]
    assert said[0][1] != both[0].generate(examples(), 4)
    conditions = {"heads": ablate("L1H2 L2H0", scope="answer"), "uniform": uniform, "all": cut, "clean": None}
    found, wanted = (evaluate(x, examples(), conditions).values for x in both)
    for name in conditions:
        assert found[name]["nll"].tolist() == wanted[name]["nll"].tolist(), name


def test_a_mean_is_the_plain_models(both):
    data = examples((20, 30), seed=1)
    means = []
    for x in both:
        with x.apply(ablate("L1H2 M2", mode="mean", reference=data)):
            means.append(x.run(examples()).logits)
    assert torch.equal(*means)


def test_resumed_and_stopped_runs_are_the_plain_models(both):
    plain, s = both
    batch = s.batch(examples())
    whole = plain.run(batch, {"z[2].1": torch.zeros_like}).logits
    for after in (False, True):
        start = s.checkpoint(batch, 2, after_attention=after)
        again = s.run(batch, {"z[2].1": torch.zeros_like}, start=start).logits
        torch.testing.assert_close(again, whole, atol=1e-5, rtol=0)
    stopped = s.run(batch, {"resid_post[1]": Record()}, stop=2)
    assert torch.equal(
        stopped["resid_post[1]"], plain.run(batch, {"resid_post[1]": Record()})["resid_post[1]"]
    )


def test_many_interventions_at_once_are_the_plain_models(both):
    plain, s = both
    batch = s.batch(examples())
    cuts = [None, *(ablate([head]) for head in s.heads()), ablate("M1"), ablate("L0H1 M2", scope="answer")]
    found = dict(s.each(cuts, batch, keep=1))
    for i, cut in enumerate(cuts):
        with plain.apply(*([] if cut is None else [cut])):
            torch.testing.assert_close(found[i], plain.run(batch, keep=1).logits, atol=1e-4, rtol=0)


# -- GPU -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def on_gpu() -> CausalLM:
    return CausalLM(tiny("llama").to("cuda"), None, name="llama")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gpu_logits_are_the_models_own_bit_for_bit(dtype):
    s = CausalLM(tiny("llama").to("cuda", dtype), None, name="llama")
    batch = s.batch(examples())
    assert batch.ids.is_cuda
    trace = s.run(batch, everything(s), rows=last_rows(batch), keep=batch.width)
    real = batch.mask.bool()
    assert torch.equal(trace.logits[real], bare(s, batch)[real])
    assert all(value.is_cuda and value.dtype == dtype for value in trace.records.values())


@pytest.mark.gpu
def test_gpu_equals_cpu(on_gpu):
    plain = subject("llama")
    cut = ablate("L1H2 L2H0") + ablate("M2", scope="answer")
    with plain.apply(cut), on_gpu.apply(cut):
        there, here = on_gpu.run(examples()).logits, plain.run(examples()).logits
        assert on_gpu.generate(examples(), 4) == plain.generate(examples(), 4)
    torch.testing.assert_close(there.cpu(), here, atol=1e-4, rtol=0)
    conditions = {"heads": ablate("L1H2", scope="answer"), "clean": None}
    found, wanted = (evaluate(x, examples(), conditions).values for x in (on_gpu, plain))
    for name in conditions:
        assert found[name]["nll"] == pytest.approx(wanted[name]["nll"], abs=1e-4)
    assert on_gpu.weights_hash == plain.weights_hash


@pytest.mark.gpu
def test_layers_on_different_devices_are_the_plain_models():
    """The first layers run on the CPU and the others on the GPU: every tensor that crosses has to be brought over."""
    from accelerate import dispatch_model

    model = tiny("llama")
    where = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.rotary_emb": "cpu"}
    where |= {"model.layers.1": 0, "model.layers.2": 0, "model.norm": 0, "lm_head": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dispatch_model(model, where, main_device="cpu", force_hooks=True)
    s, plain = CausalLM(model, None, name="llama"), subject("llama")
    batch = s.batch(examples())
    assert {str(p.device) for p in s.hf.parameters()} == {"cpu", "cuda:0"}
    found, wanted = (x.run(batch, everything(x), rows=last_rows(batch)) for x in (s, plain))
    torch.testing.assert_close(found.logits.cpu(), wanted.logits, atol=1e-4, rtol=0)
    for site in everything(s):
        torch.testing.assert_close(found[site].cpu(), wanted[site], atol=1e-4, rtol=0)
    cut = ablate("L0H1 L2H0") + ablate("M1", scope="answer") + ablate("L1H3", mode="uniform")
    with s.apply(cut), plain.apply(cut):
        torch.testing.assert_close(s.run(batch).logits.cpu(), plain.run(batch).logits, atol=1e-4, rtol=0)
        assert s.generate(examples(), 4) == plain.generate(examples(), 4)
    cuts = [ablate([head]) for head in s.heads()]
    for (_, there), (_, here) in zip(
        s.each(cuts, batch, keep=1), plain.each(cuts, batch, keep=1), strict=True
    ):
        torch.testing.assert_close(there.cpu(), here, atol=1e-4, rtol=0)
