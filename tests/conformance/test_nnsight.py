"""The nnsight engine's own: twins and wrappers, exceptions, servers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import interp
from interp.errors import EngineError, MissingResource, UsageError
from interp.intervene.ablate import ablate
from interp.intervene.export import to_nnsight
from interp.models.batch import Batch
from interp.models.engines import nnsight as engines
from interp.models.engines.base import Frame, Record, Rows
from interp.models.engines.nnsight import NnsightEngine, library
from interp.models.engines.program import Program
from interp.models.remote import RemoteLM, remote_model
from interp.models.subject import CausalLM
from interp.models.tokens import Tokens
from tests.conformance.common import CLOSE, batch
from tests.subjects import examples, subject
from tests.tiny import byte_tokenizer, tiny

EVERYWHERE = ablate("L0H1 M2 L1N4", mode="mean", reference=examples()) + ablate("L1H2", mode="uniform")


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape, (a.shape, b.shape)
    return float((a - b).detach().abs().max())


def told(family: str = "llama", **options) -> CausalLM:
    """A tiny model with a tokenizer, so that nnsight wraps it as a TransformersModel; the module is not shared."""
    return CausalLM(tiny(family), Tokens(byte_tokenizer()), name=family, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model as a folder that a server could have."""
    path = tmp_path_factory.mktemp("server") / "tiny-llama"
    tiny("llama").save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return str(path)


# -- wrappers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [None, "bytes"])
def test_the_own_module_and_tokenizer_stay_as_they_were(tokens, tmp_path):
    s = told()
    if tokens is None:
        s = CausalLM(s.hf, None, name="llama")
    else:
        s.tokens.hf.padding_side = "right"
    n = s.with_engine("nnsight")
    assert torch.equal(n.run(batch()).logits, s.run(batch()).logits)
    made = n.engine.model
    assert type(made).__name__ == ("NNsight" if tokens is None else "TransformersModel")
    assert not any("forward" in vars(module) for module in s.hf.modules())
    assert all("forward" in vars(module) for module in made._module.modules())
    assert all(a is b for a, b in zip(s.hf.parameters(), made._module.parameters(), strict=True))
    assert n.engine.model is made
    if tokens:
        assert s.tokens.hf.padding_side == "right" and made.tokenizer.padding_side == "left"
    s.hf.save_pretrained(tmp_path)
    assert not any("_module" in key for key in s.hf.state_dict())


def test_weights_changed_or_replaced_under_the_engine_are_seen():
    s = told()
    n = s.with_engine("nnsight")
    n.run(batch())
    with torch.no_grad():
        s.hf.lm_head.weight.mul_(2)
    assert torch.equal(n.run(batch()).logits, s.run(batch()).logits)
    s.module(1, "mlp.down_proj").weight = nn.Parameter(torch.zeros(48, 80))
    assert torch.equal(n.run(batch()).logits, s.run(batch()).logits)
    s.hf.set_attn_implementation("eager")
    assert torch.equal(n.run(batch()).logits, s.run(batch()).logits)
    assert n.engine.model._module.config._attn_implementation == "eager"


def test_two_wrappers_of_one_module_and_two_models_do_not_disturb_each_other():
    nnsight = library()
    s, other = told(), subject("qwen3").with_engine("nnsight")
    alone, others = s.run(batch()).logits, other.run(batch()).logits
    first, second = nnsight.NNsight(s.hf), nnsight.NNsight(s.hf)
    a, b = interp.load(first, name="first"), interp.load(second, name="second")
    assert a.engine.model is first and a.hf is b.hf is s.hf

    def run_them(value: torch.Tensor) -> None:
        with pytest.raises(EngineError, match="a tap ran the model it taps"):
            b.run(batch())
        assert torch.equal(other.run(batch(), {"z[0]": Record()}).logits, others)

    trace = a.run(batch(), {"z[1]": run_them, "neurons[2]": lambda x: 0 * x})
    assert torch.equal(trace.logits, s.run(batch(), {"neurons[2]": lambda x: 0 * x}).logits)
    assert torch.equal(b.run(batch()).logits, alone)
    assert torch.equal(s.run(batch()).logits, alone)


def test_a_wrapped_model_is_used_as_it_is_with_its_edits():
    s = told()
    handed = library().TransformersModel(s.hf, tokenizer=s.tokens.hf, task="text-generation", device="cpu")
    with handed.edit(inplace=True):
        handed.model.layers[0].mlp.output[:] = 0
    n = interp.load(handed)
    assert n.engine.name == "nnsight" and n.engine.model is handed and n.has_tokens
    assert gap(n.run(batch()).logits, s.run(batch(), {"mlp_out[0]": torch.zeros_like}).logits) <= CLOSE
    handed.clear_edits()
    assert gap(n.run(batch()).logits, s.run(batch()).logits) <= CLOSE
    with pytest.raises(UsageError, match="wraps another module"):
        NnsightEngine(told(), handed)


def test_offloaded_weights_are_refused():
    config = tiny("llama").config
    with torch.device("meta"):
        empty = transformers.LlamaForCausalLM(config)
    with pytest.raises(EngineError, match="offloaded"):
        engines.twin(empty, "nnsight")


# -- what a run does -------------------------------------------------------------------------------------------------


def test_nothing_is_left_patched_after_a_tap_raises():
    s = told()
    n = s.with_engine("nnsight")
    before = n.run(batch()).logits

    def fail(value):
        raise KeyError("on purpose")

    for site in ("embed", "z[1]", "head_out[0].1", "resid_mid[1]", "attention[2]", "q_rot[0].1", "logits"):
        with pytest.raises(KeyError, match="on purpose"):
            n.run(batch(), {site: fail, "resid_post[0]": torch.zeros_like})
        assert torch.equal(n.run(batch()).logits, before)
    with pytest.raises(EngineError, match=r"z\[1\] returned shape \(3, 40, 4\)"):
        n.run(batch(), {"z[1]": lambda z: z[..., 0]})
    with pytest.raises(EngineError, match="before the pass"):
        n.run(batch(), {"z[1]": lambda z: n.run(batch()).logits})
    assert torch.equal(n.run(batch()).logits, before)
    assert sys.gettrace() is None or "coverage" in repr(sys.gettrace())


def test_a_site_that_the_pass_never_reaches_is_an_error():
    s = told()
    s.blocks[1].mlp.forward = lambda x: torch.zeros_like(x)  # down_proj is never called
    n = s.with_engine("nnsight")
    with pytest.raises(EngineError, match=r"neurons\[1\] fired 0x \(model.layers.1.mlp.down_proj\)"):
        n.run(batch(), {"neurons[1]": Record(), "z[1]": Record()})
    assert n.run(batch(), {"z[1]": Record()})["z[1]"].shape == (3, 40, 4, 12)


def test_what_the_engine_cannot_do_it_refuses_by_name():
    n = told().with_engine("nnsight")
    assert n.engine.capabilities == {"rows", "attention", "weights", "grad"}
    for options in ({"use_cache": True}, {"mask": torch.zeros(3, 1, 40, 40)}, {"stop": 1}):
        with pytest.raises(EngineError, match="nnsight"):
            n.run(batch(), **options)
    with pytest.raises(EngineError, match="nnsight"):
        n.generate(batch(), 3)
    with pytest.raises(UsageError, match="layers 0 to 2"):
        n.run(batch(), rows=Rows(torch.tensor([[1]] * 3), layers=frozenset({9})))


def test_a_forward_without_the_attention_interface_is_refused_by_its_path(monkeypatch):
    monkeypatch.setattr("interp.models.engines.program.KERNEL_CALL", "kernel_of_another_library_")
    n = told().with_engine("nnsight")
    with pytest.raises(
        EngineError, match=r"no call of the attention interface in model\.layers\.1\.self_attn"
    ):
        n.run(batch(), {"attention[1]": Record()})
    assert n.run(batch(), {"z[1]": Record()})["z[1]"].shape == (3, 40, 4, 12)


def test_gradients_flow_as_in_the_reference():
    found = []
    for engine in ("hooks", "nnsight"):
        n = told(engine=engine)
        kept: list[torch.Tensor] = []

        def watch(z: torch.Tensor, kept: list[torch.Tensor] = kept) -> torch.Tensor:
            kept.append(z.detach().requires_grad_())
            return kept[0]

        logits = n.run(batch(), {"z[0]": watch}, grad=True, keep=1).logits
        found.append(torch.autograd.grad(logits[..., 7].sum(), kept)[0])
    assert found[0].abs().max() > 1e-3
    with torch.no_grad():
        program = Program(n, {}, None, Frame(batch(), width=40, forwards=1))
    # A server may run with gradients on, and what is sent back must not carry its graph.
    call = engines.forward_arguments(batch(), 1)
    assert not engines.walk(n.engine.model.trace(**call), n.engine.model, program)["logits"].requires_grad
    assert gap(found[0], found[1]) <= CLOSE


def test_applied_interventions_and_projections_hold_as_in_the_reference():
    s = told("gemma2")
    n = s.with_engine("nnsight")
    given = s.batch(examples())
    cut = EVERYWHERE + ablate("L2H0", scope="answer") + ablate("L0N7", scope="value")
    taps = {"z[2]": Record(), "down[1]": lambda x: 2 * x, "o[0]": Record()}
    with s.apply(cut), n.apply(cut):
        a, b = s.run(given, taps), n.run(given, taps)
    assert gap(a.logits, b.logits) <= CLOSE
    assert all(gap(a[site], b[site]) <= CLOSE for site in ("z[2]", "o[0]"))
    assert gap(a.logits, s.run(given).logits) > 0.1
    assert gap(n.run(given).logits, s.run(given).logits) <= CLOSE


def test_the_random_state_is_left_alone(rng_untouched):
    s = told("gpt2")
    s.with_engine("nnsight").run(batch(), {"z[1]": Record()})


def test_the_default_model(smollm2):
    """A site, rows and logits of the real model, padded, under both engines."""
    n = smollm2.with_engine("nnsight")
    texts = ["The capital of France is", "Two and two make four, and three and"]
    given = Batch.of_ids([smollm2.tokens.encode(text).ids for text in texts])
    columns = torch.tensor([[given.width - 1]] * 2)
    taps = {"z[17]": Record(), "resid_post[29]": Record(columns)}
    rows = Rows(columns, layers=frozenset({17}))
    a, b = smollm2.run(given, taps, rows=rows), n.run(given, taps, rows=rows)
    assert gap(a["z[17]"], b["z[17]"]) <= CLOSE and gap(a.logits, b.logits) <= CLOSE
    assert gap(a["resid_post[29]"], b["resid_post[29]"]) <= CLOSE and gap(a.rows[17], b.rows[17]) <= CLOSE


# -- the process -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def away(folder: str) -> dict[str, Any]:
    """What `tests.conformance.away` found in a new process."""
    command = [sys.executable, "-m", "tests.conformance.away", folder]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert not done.returncode, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_importing_waits_until_the_engine_is_used_and_leaves_no_marks(away):
    assert away["marks"] == {
        "imported with interp": False,
        "imported with its modules": False,
        "imported by use": True,
        "backward is torch's": True,
        "objects have save": False,
        "works": True,
    }


# -- servers ---------------------------------------------------------------------------------------------------------


def test_a_remote_run_without_a_key_says_what_is_missing(folder, monkeypatch):
    monkeypatch.delenv("NDIF_API_KEY", raising=False)
    for ask in (
        lambda: interp.load(folder, engine="nnsight", remote=True),
        lambda: remote_model(folder),
        lambda: NnsightEngine(told(), remote=True),
    ):
        with pytest.raises(MissingResource, match="NDIF_API_KEY is not set"):
            ask()
    with pytest.raises(UsageError, match="needs a tokenizer"):
        NnsightEngine(subject("llama"), remote="local")
    with pytest.raises(UsageError, match="a hub id under engine='nnsight'"):
        interp.load(folder, engine="hooks", remote=True)
    with pytest.raises(UsageError, match="takes no device_map"):
        interp.load(folder, remote=True, device_map="auto")
    with pytest.raises(MissingResource, match="could not be fetched"):
        interp.load("nobody/has-this-model", remote="local")


def test_a_rehearsed_remote_run_equals_a_local_one(away):
    """nnsight serialises the trace, reads it back with this project's modules hidden, and runs it."""
    found = away["rehearsal"]
    assert found["weightless"] and not found["gradients"]
    assert found["gap"] <= CLOSE and found["moved"] > 0.1


def test_what_is_sent_names_the_model_and_carries_no_weights(away):
    found = away["request"]
    assert found["key"] == "the key" and '"repo_id": "someone/tiny-llama"' in found["model"]
    assert found["payload"] < 50_000 < found["weights"]
    assert found["logits"] == 3 * 259 and found["record"] == [7.0, 7.0]
    assert found["refusal"].endswith("failed: RemoteError: no such model is deployed")


def test_what_a_model_on_a_server_cannot_do_is_refused(folder):
    n = interp.load(folder, remote="local")
    assert isinstance(n, RemoteLM) and n.weights_hash == remote_model(folder, remote="local").weights_hash
    for cannot in (lambda: n.generate(batch(), 1), lambda: n.with_engine("hooks"), lambda: n.out_weight(0)):
        with pytest.raises(EngineError, match="are not here"):
            cannot()
    with pytest.raises(EngineError, match="no gradients back"):
        n.run(batch(), grad=True)
    with pytest.raises(EngineError, match="on a server"):
        to_nnsight(ablate("L1H2"), n)
    with pytest.raises(UsageError, match="layers 0 to 2"):
        n.run(batch(), {"z[9]": Record()})
