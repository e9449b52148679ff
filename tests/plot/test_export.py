"""Files of figures: formats, sizes, fonts, determinism, and what happens without a browser."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import warnings
from pathlib import Path

import plotly.graph_objects as go
import pytest

from interp.errors import MissingResource, UsageError
from interp.plot import attention_rows, find_browser, head_map, write, write_all
from interp.plot.export import spec
from tests.conftest import missing
from tests.plot.frames import HOSTILE, scores_frame

FIG = head_map(scores_frame(), width="single")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def no_browser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROWSER_PATH", "/nowhere/chromium")


def test_json_is_the_figure(tmp_path: Path) -> None:
    (path,) = write(FIG, tmp_path / "heads", ["json"])
    assert path == tmp_path / "heads.json"
    told = json.loads(path.read_text())
    assert told["data"][0]["z"] == FIG.data[0].z.tolist(), "as numbers that can be read, not packed"
    back = go.Figure(told)
    assert back.layout.width == 312 and back.data[0].zmax == FIG.data[0].zmax


def test_json_is_the_same_for_the_same_figure(tmp_path: Path) -> None:
    (first,) = write(head_map(scores_frame()), tmp_path / "a", ["json"])
    marked = head_map(scores_frame())
    marked.data[0].uid = "3f9a1c"
    (second,) = write(marked, tmp_path / "b", ["json"])
    assert first.read_bytes() == second.read_bytes()
    (other,) = write(head_map(scores_frame(seed=1)), tmp_path / "c", ["json"])
    assert other.read_bytes() != first.read_bytes()


def test_width_is_set_on_a_copy(tmp_path: Path) -> None:
    (path,) = write(FIG, tmp_path / "x", ["json"], width="double")
    assert json.loads(path.read_text())["layout"]["width"] == 648
    assert FIG.layout.width == 312
    (path,) = write(FIG, tmp_path / "y", ["json"], width=500)
    assert json.loads(path.read_text())["layout"]["width"] == 500


def test_html_holds_plotly_or_shares_it(tmp_path: Path) -> None:
    (whole,) = write(FIG, tmp_path / "whole" / "a", ["html"])
    assert whole.stat().st_size > 4_000_000
    write_all(
        {tmp_path / "shared" / "a": FIG, tmp_path / "shared" / "b": FIG}, ["html"], plotlyjs="directory"
    )
    assert names(tmp_path / "shared") == ["a.html", "b.html", "plotly.min.js"]
    text = (tmp_path / "shared" / "a.html").read_text()
    assert len(text) < 200_000 and 'src="plotly.min.js"' in text
    assert not re.findall(r'(?:src|href)="https?:', text)


def test_html_shows_a_hostile_token_as_text(tmp_path: Path) -> None:
    fig = attention_rows([HOSTILE, "</script><script>alert(2)</script>"], {"L0H0": [[0.5, 0.5]]})
    fig.layout.meta = {"alt": f'"{HOSTILE}'}
    (path,) = write(fig, tmp_path / HOSTILE.replace("/", "_"), ["html"], plotlyjs="directory")
    text = path.read_text()
    assert "<script>alert" not in text


def test_without_a_browser_the_rest_is_written_and_said(tmp_path: Path, no_browser: None) -> None:
    with pytest.warns(UserWarning, match="no pdf, svg, png: BROWSER_PATH=/nowhere/chromium is no executable"):
        paths = write(FIG, tmp_path / "heads")
    assert [p.suffix for p in paths] == [".json", ".html"]
    assert names(tmp_path) == ["heads.html", "heads.json"]


@pytest.mark.parametrize("formats", [["pdf"], ("json", "svg"), "png"])
def test_without_a_browser_static_files_asked_for_are_an_error(
    tmp_path: Path, no_browser: None, formats: object
) -> None:
    with pytest.raises(MissingResource, match="apt-get install chromium") as why:
        write(FIG, tmp_path / "heads", formats)  # type: ignore[arg-type]
    assert why.value.exit_code == 3


def test_a_browser_that_does_not_start_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROWSER_PATH", shutil.which("true") or "/bin/true")
    with pytest.raises(MissingResource, match=r"the browser .*true does not start; install Chromium"):
        write(FIG, tmp_path / "heads", ["svg"])


def test_without_kaleido_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("interp.plot.export.find_spec", lambda name: None)
    with pytest.raises(MissingResource, match=r"pip install 'interp-memory\[figures\]'"):
        write(FIG, tmp_path / "heads", ["svg"])


def test_browser_is_found_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "own"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    monkeypatch.setenv("BROWSER_PATH", str(own))
    assert find_browser() == str(own)
    monkeypatch.delenv("BROWSER_PATH")
    (tmp_path / "google-chrome").symlink_to(own)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_browser() == str(tmp_path / "google-chrome")


@pytest.mark.parametrize("formats", [["jpg"], ["json", "eps"], []])
def test_unknown_formats(tmp_path: Path, formats: list[str]) -> None:
    with pytest.raises(UsageError, match="use json, html, pdf, svg, png"):
        write(FIG, tmp_path / "x", formats)  # type: ignore[arg-type]
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MissingResource, match="give a folder that can be written"):
        write(FIG, tmp_path / "file" / "heads", ["json"])


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = write(FIG, tmp_path / "heads", ["json"])
    before = path.read_bytes()

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MissingResource, match="No space left on device"):
        write(head_map(scores_frame(seed=1)), tmp_path / "heads", ["json"])
    assert path.read_bytes() == before and names(tmp_path) == ["heads.json"]


@pytest.fixture(scope="module")
def static(browser: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("static")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_all({folder / "a": FIG, folder / "b": FIG}, ["pdf", "svg", "png"])
    return folder


def test_all_static_formats_from_one_browser(static: Path) -> None:
    assert names(static) == ["a.pdf", "a.png", "a.svg", "b.pdf", "b.png", "b.svg"]


def test_pdf_has_the_width_of_a_column(static: Path) -> None:
    box = re.search(rb"/MediaBox\s*\[\s*0 0 ([\d.]+) ([\d.]+)", (static / "a.pdf").read_bytes())
    assert box is not None
    assert float(box[1]) / 72 == pytest.approx(3.25, abs=0.01)
    assert float(box[2]) / 72 == pytest.approx(FIG.layout.height / 96, abs=0.01)


def test_pdf_fonts_are_embedded(static: Path) -> None:
    if shutil.which("pdffonts") is None:
        missing("no pdffonts: install poppler-utils")
    lines = subprocess.run(
        ["pdffonts", str(static / "a.pdf")], capture_output=True, text=True, check=True
    ).stdout
    fonts = [line for line in lines.splitlines()[2:] if line]
    assert fonts
    for font in fonts:
        assert "LiberationSans" in font and "TrueType" in font and " yes yes yes " in font


def test_png_has_300_dots_to_the_inch(static: Path) -> None:
    data = (static / "a.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert int.from_bytes(data[16:20], "big") == 975  # 3.25 in


def test_svg_and_png_are_the_same_for_the_same_figure(static: Path) -> None:
    for suffix in ("svg", "png"):
        assert (static / f"a.{suffix}").read_bytes() == (static / f"b.{suffix}").read_bytes()
    assert b"$" not in (static / "a.svg").read_bytes()
    assert "copy score" in (static / "a.svg").read_text()


def test_gaps_are_null() -> None:
    fig = head_map(scores_frame(2, 2).drop(index=1))
    assert json.loads(spec(fig))["data"][0]["z"][1][0] is None


def test_spec_has_no_random_parts() -> None:
    assert '"uid"' not in spec(FIG) and spec(FIG).endswith("\n")
