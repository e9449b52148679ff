"""Ties of heads, neurons and tokens: equal to whole matrices, and planted ones are found."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from interp.errors import UsageError
from interp.locate.channels.factors import Factors
from interp.locate.channels.neurons import ties
from interp.locate.channels.null import cosine_p
from interp.locate.channels.parts import readers, writers
from interp.locate.channels.weights import Weights
from interp.locate.readout import final_norm
from interp.models.subject import CausalLM
from tests.locate.channels.planting import Planting
from tests.subjects import examples, subject
from tests.tiny import tiny


def layer_of(s, side):
    """Directions that one side of a row is about, by layer."""
    w = Weights(s)
    out = {}
    for i in range(s.n_layers):
        factors, mlp = Factors(w.layer(i)), w.neurons(i)
        norm, (_, between) = final_norm(s), w.norms(i)
        assert norm is not None and (between is not None or s.family.reads[1] is None)
        if side == "heads":
            out[i] = writers(factors).rows
        elif side in ("Q", "K", "V"):
            out[i] = readers(factors, side, "full" if s.name == "gpt2" else "side").rows
        else:
            found = {"neurons": mlp.out, "up": mlp.up.mT, "gate": None if mlp.gate is None else mlp.gate.mT}[
                side
            ]
            out[i] = found if found is None else found / found.norm(dim=1, keepdim=True)
    return out


def causal(s, kind, i, mode, j):
    """Whether the writer is done before the reader reads; attention, then MLP, or both at once."""
    behind = i < j
    return behind or (i == j and kind == "heads" and mode in ("up", "gate") and not s.family.parallel)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "neox"])
def test_ties_are_cosines_of_all_pairs_that_can_meet(family):
    s = subject(family)
    frame = ties(s, ("heads", "neurons"), ("Q", "V", "up", "gate"), top=15)
    tests = 0
    for kind in ("heads", "neurons"):
        left = layer_of(s, kind)
        for mode in ("Q", "V", "up", "gate"):
            right = layer_of(s, mode)
            if right[0] is None:
                assert mode == "gate" and not (frame["mode"] == "gate").any()
                continue
            best = []
            for i in range(3):
                for j in range(3):
                    if causal(s, kind, i, mode, j):
                        cosines = (left[i] @ right[j].mT).abs()
                        tests += cosines.numel()
                        best.append(cosines.flatten().topk(15).values)
            wanted = torch.cat(best).topk(15).values.numpy()
            own = frame[(frame["kind"] == kind) & (frame["mode"] == mode)]
            assert own["value"].to_numpy() == pytest.approx(wanted, abs=2e-6)
            row = own.iloc[0]
            if kind == "neurons" and mode in ("up", "gate"):
                i, j = row["writer_layer"], row["reader_layer"]
                assert (row["writer"], row["reader"]) == (f"M{i}", f"M{j}")
                at = left[i][row["component"]] @ right[j][row["reader_component"]]
                assert abs(float(at)) == pytest.approx(row["value"], abs=2e-6)
    assert frame["p"].to_numpy() == pytest.approx(cosine_p(frame["value"].to_numpy(), s.d_model), rel=1e-9)
    assert frame["q"].iloc[0] == pytest.approx(
        min(1, (frame["p"] * tests / (np.arange(len(frame)) + 1)).min())
    )
    assert frame["p_null"].between(0, 1).all() and frame["q_null"].between(0, 1).all()


def test_neurons_read_and_write_what_the_model_has():
    """Folded weights against a pass: what gates and inputs see up to the norm's scale, and what the MLP adds."""
    for family in ("gpt2", "llama", "gemma2"):
        s = subject(family)
        mlp, (_, norm) = Weights(s).neurons(1), Weights(s).norms(1)
        seen = {}
        path = {"gpt2": "mlp.c_fc"}.get(family, "mlp.up_proj")
        handle = s.module(1, path).register_forward_hook(lambda m, args, out, seen=seen: seen.update(up=out))
        try:
            trace = s.run(
                s.batch(examples((16,)), forced=False),
                {"resid_mid[1]": lambda x: None, "neurons[1]": lambda x: None, "mlp_out[1]": lambda x: None},
            )
        finally:
            handle.remove()
        x = trace["resid_mid[1]"][0]
        x = x - x.mean(-1, keepdim=True) if norm.centred else x
        x = x / x.square().mean(-1, keepdim=True).sqrt()
        bias = getattr(s.module(1, path), "bias", None)
        constant = 0 if bias is None else bias + norm.bias @ s.module(1, path).weight
        torch.testing.assert_close(x @ mlp.up + constant, seen["up"][0].detach(), atol=2e-3, rtol=2e-3)
        written = trace["neurons[1]"][0] @ mlp.out
        added = trace["mlp_out[1]"][0]
        if family == "gpt2":
            added = added - s.module(1, "mlp.c_proj").bias.detach()
        scale = (written * added).sum(-1, keepdim=True) / (written * written).sum(-1, keepdim=True)
        torch.testing.assert_close(scale * written, added, atol=2e-3, rtol=2e-3)
        if family != "gemma2":  # there a norm stands behind the MLP
            torch.testing.assert_close(scale, torch.ones_like(scale), atol=1e-3, rtol=1e-3)


# -- planted -----------------------------------------------------------------------------------------------------------


class Tied(Planting):
    """A fact's neuron that a head asks by, a head that a gate reads, tokens at both ends; and a decoy."""

    def plant(self):
        s = self.subject
        v = [self.direction() for _ in range(5)]
        self.neuron(0, 7, "out", v[0])
        self.read(2, 3, "Q", v[0])
        self.write(0, 1, v[1])
        self.neuron(1, 13, "up" if self.family == "gpt2" else "gate", v[1])
        self.neuron(1, 9, "out", v[2])
        self.neuron(2, 4, "up", v[2])
        with torch.no_grad():
            s.hf.get_input_embeddings().weight[42] = v[3]
            norm = final_norm(s)
            s.hf.get_output_embeddings().weight[17] = v[4] / norm.gain
        self.neuron(0, 21, "up", v[3])
        self.neuron(2, 30, "out", v[4])
        # Written behind its reader.
        behind = self.direction()
        self.neuron(2, 5, "out", behind)
        self.read(1, 0, "Q", behind)
        gate = "up" if self.family == "gpt2" else "gate"
        return {
            ("M0", 7, "L2H3", "Q"),
            ("L0H1", 0, "M1", gate),
            ("M1", 9, "M2", "up"),
            ("embed", 42, "M0", "up"),
            ("M2", 30, "logits", "logits"),
        }

    def neuron(self, layer, i, side, v):
        s = self.subject
        _, norm = self.weights.norms(layer)
        path = {"up": "c_fc", "out": "c_proj"} if self.family == "gpt2" else {}
        weight = s.module(
            layer, "mlp." + path.get(side, {"out": "down_proj"}.get(side, f"{side}_proj"))
        ).weight
        gain = self.weights.gain_behind(layer, 1) if side == "out" else norm.gain
        change = self.strength * (v if gain is None else v / gain)
        with torch.no_grad():
            if (side == "out") == (self.family == "gpt2"):
                weight[i] += change
            else:
                weight[:, i] += change


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_planted_ties_are_found_and_nothing_else(family):
    model = Tied(family, 4)
    s = model.subject
    with torch.no_grad():  # where the two are one matrix, a token's own ends would be tied
        s.hf.get_output_embeddings().weight = torch.nn.Parameter(s.hf.get_output_embeddings().weight.clone())
    wanted = model.plant()
    frame = ties(s)
    found = frame[frame["q"] < 1e-3]
    named = {
        (r.writer, r.component, r.reader, r.mode)
        for r in found.itertuples()
        if (r.writer, r.reader) != ("embed", "logits")
    }
    assert wanted <= named
    assert len(named - wanted) <= 0.1 * len(named) + 1e-9
    heads = found[(found["reader"] == "L2H3") & (found["writer"] == "M0")].iloc[0]
    assert heads["reader_component"] == 0 and heads["value"] > 0.8 and heads["p_null"] < 1e-3
    tokens = found[(found["writer"] == "M2") & (found["reader"] == "logits")].iloc[0]
    assert tokens["reader_component"] == 17 and np.isnan(tokens["p_null"])
    few = ties(s, ("neurons", "embed"), ("logits", "up"), tokens=[17, 42, 3])
    assert set(few.loc[few["reader"] == "logits", "reader_component"]) <= {17, 42, 3}
    assert set(few.loc[few["writer"] == "embed", "component"]) <= {17, 42, 3}


def test_by_chance_no_neurons_are_tied():
    found = [
        ties(CausalLM(copy.deepcopy(tiny("llama", 70 + i)), None, name="random"), top=20) for i in range(6)
    ]
    # Of random models a twentieth shows anything; of 6, 3 or more would by 0.2 % chance.
    assert sum((f["q"] < 0.05).any() for f in found) <= 2


def test_bad_requests_say_what_is_wrong():
    s = subject("llama")
    for bad in ({"from_": ("heads", "tokens")}, {"to": ()}, {"top": 0}):
        with pytest.raises(UsageError, match="write some of heads, neurons, embed"):
            ties(s, **bad)
    with pytest.raises(UsageError, match="nothing in"):
        ties(subject("gpt2"), ("neurons",), ("gate",))
