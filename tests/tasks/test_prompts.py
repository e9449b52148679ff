"""Lists of prompts as users have them, and pictures beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from interp.errors import BrokenData, MissingResource
from interp.tasks.prompts import Prompt, images_in, read_image, read_prompts, with_images


def _file(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_the_published_list_is_read_as_it_is(tmp_path: Path) -> None:
    rows = [
        "\ufeff;Caption;URL;type;Index",
        '0;"A ""cat""; sitting";https://x;VM;12',
        '1;"Two,\n dogs";https://y;TM;40',
    ]
    found = read_prompts(_file(tmp_path, "list.csv", "\n".join(rows) + "\n"))
    assert found == (Prompt("12", 'A "cat"; sitting'), Prompt("40", "Two,\n dogs"))


def test_other_formats_and_their_names(tmp_path: Path) -> None:
    lines = read_prompts(_file(tmp_path, "a.txt", "one\n\n two \none\n"))
    assert lines == (Prompt("0", "one"), Prompt("2", "two"))
    comma = read_prompts(_file(tmp_path, "b.csv", "name,prompt,image\ncat,a cat,pics/cat.png\ndog,a dog,\n"))
    assert comma == (Prompt("cat", "a cat", tmp_path / "pics" / "cat.png"), Prompt("dog", "a dog"))
    tab = read_prompts(_file(tmp_path, "c.tsv", "prompt\tindex\na, b; c\t3\nd\t3\n"))
    assert tab == (Prompt("0", "a, b; c"), Prompt("1", "d"))  # a name that is there twice is none
    told = read_prompts(_file(tmp_path, "d.jsonl", '{"caption": "x", "name": "n"}\n\n{"prompt": "y"}\n'))
    assert told == (Prompt("n", "x"), Prompt("1", "y"))


def test_what_is_wrong_with_a_list_is_said(tmp_path: Path) -> None:
    for name, text, message in (
        ("a.csv", "text,url\nx,y\n", "item 0 has no 'prompt' or 'caption'; it has text, url"),
        ("b.jsonl", '{"prompt": "x"}\n[1]\n', "line 2: write an object"),
        ("c.jsonl", "{\n", "line 1"),
        ("d.txt", "\n\n", "has no prompts"),
    ):
        with pytest.raises(BrokenData, match=message):
            read_prompts(_file(tmp_path, name, text))
    with pytest.raises(MissingResource, match="no file"):
        read_prompts(tmp_path / "none.csv")


def test_pictures_are_cut_to_the_middle_and_scaled(tmp_path: Path) -> None:
    wide = np.zeros((8, 16, 3), np.uint8)
    wide[:, :4], wide[:, 12:] = 255, 255  # what is cut off
    wide[:, 4:12, 1] = 102
    Image.fromarray(wide).save(tmp_path / "3.png")
    image = read_image(tmp_path / "3.png", (3, 4, 4))
    assert image.shape == (3, 4, 4) and image[1, 1:3, 1:3].allclose(torch.tensor(0.4), atol=0.01)
    assert image[0].max() < 0.15
    grey = read_image(tmp_path / "3.png", (1, 8, 8))
    assert grey.shape == (1, 8, 8) and float(grey.mean()) == pytest.approx(0.587 * 0.4, abs=0.01)
    (item,) = with_images([Prompt("3", "wide")], (3, 4, 4), tmp_path, group="targeted", exposures=2)
    assert (item.name, item.prompt, item.group, item.exposures) == ("3", "wide", "targeted", 2)
    assert item.image.equal(image) and images_in(tmp_path, (3, 4, 4)).equal(image[None])
    (tmp_path / "no.png").write_text("text")
    with pytest.raises(BrokenData, match="no picture"):
        read_image(tmp_path / "no.png", (3, 4, 4))
    with pytest.raises(MissingResource, match=r"no 9\.png in"):
        with_images([Prompt("9", "x")], (3, 4, 4), tmp_path)
    with pytest.raises(MissingResource, match="no column 'image'"):
        with_images([Prompt("9", "x")], (3, 4, 4))
