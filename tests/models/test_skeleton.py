"""Plans checked on meta weights: shapes are those of the model, and the first intervention that cannot run is told."""

from __future__ import annotations

import pytest
import torch

from interp.errors import EngineError, MissingResource, UsageError
from interp.intervene.ablate import ablate
from interp.models.batch import Batch
from interp.models.engines.base import Record, Reduce
from interp.models.sites import KINDS, Site
from interp.models.skeleton import skeleton, validate
from tests.subjects import ALL, examples, subject
from tests.tiny import byte_tokenizer, tiny

EVERYWHERE = ablate("L0H1 M2 L1N4", mode="mean", reference=examples()) + ablate("L1H2", mode="uniform")


def batch() -> Batch:
    """Bare ids, padded."""
    return Batch.of_ids([e.ids for e in examples()])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model in a folder."""
    path = tmp_path_factory.mktemp("models") / "tiny-llama"
    tiny("llama").save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return str(path)


def test_the_random_state_is_left_alone(rng_untouched):
    validate(tiny("gpt2").config, [ablate("L1H2")], batch())


@pytest.mark.parametrize("family", ALL)
def test_a_plan_on_meta_weights_has_the_shapes_of_the_model(family):
    s = subject(family)
    empty = skeleton(s.config, family=s.family)
    assert all(p.is_meta for p in empty.hf.parameters())
    kinds = [kind for kind in KINDS if kind not in ("embed", "resid_mid", "logits")]
    plan = [{Site(kind, 1): Record() for kind in kinds}, EVERYWHERE]
    found = validate(
        empty, [*plan, {"embed": Record(), "logits": Record(), "z[2].1": torch.zeros_like}], examples()
    )
    real = s.run(examples(), {site: Record() for site in found})
    shapes = {site: tuple((real[site].q if site.kind == "attention" else real[site]).shape) for site in found}
    assert found == shapes and len(found) == 20


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ([ablate("L0H1"), ablate("L9H1")], r"intervention 2 of 2, ablate\(L9H1.*layers 0 to 2"),
        ([ablate("L0H1 L2H3"), ablate("L0H7")], r"intervention 2 of 2, ablate\(L0H7.*heads 0 to 3"),
        (
            [{"z[1]": Record()}, {"neurons[0].80": torch.zeros_like}],
            "intervention 2 of 2, taps at neurons.*indices 0 to 79",
        ),
        (
            [{"z[1]": Record()}, {"z[1]": lambda z: z[..., 0]}, ablate("M9")],
            r"2 of 3.*\(3, 40, 4\), not \(3, 40, 4, 12",
        ),
        ([{"attn_out[1]": lambda x: x @ torch.zeros(12, 12)}], "1 of 1.*RuntimeError.*cannot be multiplied"),
        (
            [{"attention[1]": Reduce(lambda call, frame: call.q[:, 99])}],
            "1 of 1.*IndexError",
        ),
        ([ablate("L0H1", scope="subject")], "1 of 1.*no span of that role"),
        ([ablate("L0H1", mode="mean")], "1 of 1.*needs a reference"),
    ],
)
def test_the_first_intervention_that_cannot_run_is_told(plan, message):
    given = examples() if plan[0] == ablate("L0H1", scope="subject") else batch()
    with pytest.raises(UsageError, match=message):
        validate(subject("llama").config, plan, given)


def test_a_plan_is_checked_from_a_name(folder):
    with pytest.raises(UsageError, match=r"tiny-llama has layers 0 to 2"):
        validate(folder, [ablate("M7")], batch())
    assert validate(folder, [EVERYWHERE], batch())[Site("mlp_out", 2)] == (3, 40, 48)
    with pytest.raises(MissingResource, match="no config of it could be read"):
        validate("nobody/has-this-model", [ablate("M7")], batch())
    with pytest.raises(EngineError, match="are not here"):
        skeleton(folder).generate(batch(), 3)


def test_a_site_that_the_pass_never_reaches_is_told_with_its_intervention():
    empty = skeleton(tiny("llama").config)
    empty.blocks[1].mlp.forward = lambda x: torch.zeros_like(x)  # down_proj is never called
    with pytest.raises(UsageError, match=r"intervention 2 of 3, ablate\(L1N3.*neurons\[1\] fired 0x"):
        validate(empty, [ablate("L0H1"), ablate("L1N3"), ablate("L2H0")], batch())
