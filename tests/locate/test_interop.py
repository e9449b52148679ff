"""Head lists of the field: read as they are written by others, written so that others read them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import interp
from interp.errors import BrokenData, MissingResource, UsageError
from interp.locate.interop import as_heads, read_heads, write_heads
from interp.models.sites import Head
from tests.planted.retrieval import plant, planted_task

LAYERS, HEADS, N = 3, 4, 5


def reference_text(values: np.ndarray) -> str:
    """The reference's file, as its code writes it: sums that start at the integer 0, heads in order, one line."""
    _, layers, heads = values.shape
    lists = {}
    for layer in range(layers):
        for head in range(heads):
            lists[f"{layer}-{head}"] = [0 if v == 0 else float(v) for v in values[:, layer, head]]
    return json.dumps(lists)


def random_values(seed: int = 0, n: int = N) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.random((n, LAYERS, HEADS)) * 1.8  # counted copies exceed 1
    return np.where(rng.random(values.shape) < 0.5, 0, values)


def put(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_the_reference_file_is_read_and_written_to_the_byte(tmp_path):
    values = random_values()
    text = reference_text(values)
    heads = read_heads(put(tmp_path / "a.json", text))
    assert (heads.format, heads.name, heads.methods) == ("reference", "a", ["copy"])
    np.testing.assert_array_equal(heads.per_instance_["copy"], values)
    frame = heads.scores_
    assert list(frame["component"][:5]) == ["L0H0", "L0H1", "L0H2", "L0H3", "L1H0"]
    np.testing.assert_array_equal(frame["score"], values.mean(0).reshape(-1))
    # Each instance by itself: the plain standard error of the mean.
    np.testing.assert_allclose(frame["se"], values.std(0, ddof=1).reshape(-1) / np.sqrt(N))
    assert set(frame["n"]) == {N}
    assert write_heads(heads, tmp_path / "b.json", "headkv").read_text() == text
    assert not text.endswith("\n") and "\n" not in text  # the reference reads one line


def test_heads_of_a_file_can_be_cut(tmp_path):
    values = np.zeros((2, LAYERS, HEADS))
    values[:, 2, 1], values[:, 0, 3] = 0.9, 0.2
    heads = read_heads(put(tmp_path / "a.json", reference_text(values)))
    assert heads.top(2) == (Head(2, 1), Head(0, 3))
    assert heads.select(0.5) == (Head(2, 1),)


def test_scores_of_a_locator_survive_the_reference_file(tmp_path):
    """From a fitted locator through the file: the same instances, the same ranking."""
    planted = plant("llama", seed=0)
    model = interp.load(planted.module, tokenizer=None)
    located = interp.RetrievalHeads().fit(model, planted_task(planted, 6, 0, 60))
    for method in ("copy", "copy_position"):
        path = write_heads(located, tmp_path / f"{method}.json", "reference", method=method)
        back = read_heads(path, method=method)
        np.testing.assert_array_equal(back.per_instance_[method], located.per_instance_[method])
        assert back.top(5, method) == located.top(5, method)
        assert path.read_text() == reference_text(located.per_instance_[method])


def test_qrhead_scores_and_configs(tmp_path):
    """QRHead's detection writes pairs, best first; its retriever reads names without scores, best first."""
    values = random_values(3)
    source = read_heads(put(tmp_path / "a.json", reference_text(values)))
    path = write_heads(source, tmp_path / "q.json", "qrhead")
    pairs = json.loads(path.read_text())
    best = max(np.ndindex(LAYERS, HEADS), key=lambda p: values.mean(0)[p])
    assert pairs[0] == [f"{best[0]}-{best[1]}", values.mean(0)[best]]
    assert [p[1] for p in pairs] == sorted((p[1] for p in pairs), reverse=True)
    back = read_heads(path)
    assert (back.format, back.methods) == ("qrhead", ["qr"])
    assert back.top(6) == source.top(6)
    again = write_heads(back, tmp_path / "r.json", "qrhead")
    assert again.read_text() == path.read_text()

    config = write_heads(source, tmp_path / "c.yaml", top=3)
    assert config.read_text() == f'attn_head_set: "{",".join(p[0] for p in pairs[:3])}"\n'
    listed = read_heads(config)
    assert listed.listed() and not back.listed()
    assert listed.top(3) == source.top(3)
    commented = put(tmp_path / "d.yaml", 'attn_head_set: "2-1, 0-3" # top2\nmodel_base_class: "x"\n')
    assert read_heads(commented).top(2) == (Head(2, 1), Head(0, 3))
    with pytest.raises(UsageError, match="without scores"):
        write_heads(listed, tmp_path / "e.json", "qrhead")


def test_duo_gates(tmp_path):
    """A row a layer and a column a KV head, written by numpy.savetxt; query heads share their group's gate."""
    gates = np.array([[1.0, -9.5e-5], [0.25, 0.5], [0.9921875, 1e-7]])
    np.savetxt(tmp_path / "g.tsv", gates, delimiter="\t")
    own = read_heads(tmp_path / "g.tsv")
    assert own.unit == "kv_head" and own.methods == ["duo"]
    np.testing.assert_array_equal(own.scores_["score"].to_numpy().reshape(3, 2), gates)
    assert write_heads(own, tmp_path / "h.tsv").read_bytes() == (tmp_path / "g.tsv").read_bytes()
    with pytest.raises(UsageError, match="heads=32"):
        own.top(1)

    spread = read_heads(tmp_path / "g.tsv", heads=6)
    assert spread.top(3) == (Head(0, 0), Head(0, 1), Head(0, 2))
    np.testing.assert_array_equal(
        spread.scores_["score"].to_numpy().reshape(3, 6), np.repeat(gates, 3, axis=1)
    )
    assert write_heads(spread, tmp_path / "i.tsv").read_bytes() == (tmp_path / "g.tsv").read_bytes()
    with pytest.raises(UsageError, match="no multiple"):
        read_heads(tmp_path / "g.tsv", heads=5)

    frame = spread.scores_.copy()
    frame.loc[frame["component"] == "L1H2", "score"] = 0.75  # the best query head decides for its group
    write_heads(frame, tmp_path / "j.tsv")
    assert np.loadtxt(tmp_path / "j.tsv")[1].tolist() == [0.75, 0.5]
    with pytest.raises(UsageError, match="which heads share one"):
        write_heads(frame.drop(columns="kv_head"), tmp_path / "k.tsv")


@pytest.mark.parametrize("ending", [".parquet", ".csv"])
def test_tables_and_run_folders(tmp_path, ending):
    source = read_heads(put(tmp_path / "a.json", reference_text(random_values())))
    frame = pd.concat([source.scores_, source.scores_.assign(method="other", score=0.5)])
    path = write_heads(frame, tmp_path / f"scores{ending}")
    back = read_heads(path)
    pd.testing.assert_frame_equal(back.scores_, frame.reset_index(drop=True))
    assert back.methods == ["copy", "other"]
    assert read_heads(path, method="other").methods == ["other", "copy"]
    with pytest.raises(UsageError, match="copy, other"):
        read_heads(path, method="third")
    if ending == ".parquet":
        pd.testing.assert_frame_equal(read_heads(tmp_path).scores_, back.scores_)
        assert read_heads(tmp_path).format == "run"


GOOD = {f"{la}-{h}": [0, 0.5] for la in range(2) for h in range(2)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not valid JSON"),
        ("{}", "no instance was accepted"),
        ('"heads"', "holds a str"),
        (json.dumps({**GOOD, "1-1": [0]}), "'1-1' has 1 scores and '0-0' has 2"),
        (json.dumps({**GOOD, "1-1": 0.5}), "a list of scores"),
        (json.dumps({**GOOD, "1-1": [0, "0.5"]}), "score 1 of '1-1' is '0.5'"),
        (json.dumps({**GOOD, "1-1": [0, True]}), "score 1 of '1-1' is True"),
        (json.dumps({**GOOD, "1-1": [0, None]}), "a score is a number"),
        (json.dumps({**GOOD, "1-1": [0, float("nan")]}), "score 1 of '1-1' is NaN"),
        (json.dumps({**GOOD, "1-1": [0, -float("inf")]}), "is infinite"),
        (json.dumps(GOOD).replace("0.5]}", "1" + "0" * 400 + "]}"), "is infinite"),
        (json.dumps({**GOOD, "-1-0": [0, 0]}), "'-1-0' names no head"),
        (json.dumps({**GOOD, "1-01": [0, 0]}), "'1-01' names no head"),
        (json.dumps({**GOOD, "L1H1": [0, 0]}), "'L1H1' names no head"),
        (json.dumps({**GOOD, "1-3": [0, 0]}), "head 0-2 is missing"),
        (json.dumps({**GOOD, "999999999-0": [0, 0]}), "no head of any model"),
        (json.dumps(GOOD)[:-1] + ', "0-1": [0, 1]}', "key '0-1' stands twice"),
        (json.dumps({k: [] for k in GOOD}), "no instance was accepted"),
        ("[" * 100_000, "nested too deeply"),
        ("[]", "no list of heads"),
        ('[["0-0"]]', "entry 0"),
        ('[["0-0", NaN]]', "the score of '0-0' is NaN"),
        ('[["0-0", 1], ["0-0", 2]]', "head 0-0 stands twice"),
        ('[["0-1", 1]]', "head 0-0 is missing"),
    ],
)
def test_broken_json_is_refused_with_its_place(tmp_path, text, words):
    path = put(tmp_path / "bad.json", text)
    with pytest.raises(BrokenData) as told:
        read_heads(path)
    assert words in str(told.value) and str(path) in str(told.value)
    assert "\n" not in str(told.value) and len(str(told.value)) < 300


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.tsv", "", "no gates"),
        ("a.tsv", "1\t2\n1\n", "row 1 has 1 gates and row 0 has 2"),
        ("a.tsv", "1,2\n", "tab-separated"),
        ("a.tsv", "1\tnan\n", "row 0, column 1 is NaN"),
        ("a.yaml", "attn_head_set: [1", "not valid YAML"),
        ("a.yaml", "heads: 1-2\n", "attn_head_set"),
        ("a.yaml", "attn_head_set: full_heads\n", "'full_heads' names no head"),
        ("a.yaml", "attn_head_set: ','\n", "names no head"),
        ("a.yaml", "attn_head_set: 1-2,1-2\n", "head 1-2 stands twice"),
        ("a.csv", "", "no table"),
        ("a.csv", "layer,head\n0,0\n", "no column score"),
        ("a.csv", "layer,head,score\n", "no rows"),
        ("a.csv", "layer,head,score\n0,0,\n", "row 0 has a score of nan"),
        ("a.csv", "layer,head,score\n0,0,high\n", "column score"),
        ("a.csv", "layer,head,score\n-1,0,1\n", "row 0 has layer -1"),
        ("a.csv", "layer,head,score\n0,0.5,1\n", "row 0 has head 0.5"),
        ("a.csv", "layer,head,score\n0,0,1\n0,0,1\n", "head 0-0 stands twice"),
        ("a.csv", "layer,head,score\n0,1,1\n", "head 0-0 is missing"),
        ("a.csv", "component,layer,head,score\nL0H1,0,0,1\n", "row 0 is L0H1"),
        ("a.parquet", "PAR1", "no table"),
    ],
)
def test_other_broken_files_are_refused(tmp_path, name, text, words):
    path = put(tmp_path / name, text)
    with pytest.raises(BrokenData) as told:
        read_heads(path)
    assert words in str(told.value) and str(path) in str(told.value)
    assert "\n" not in str(told.value)


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BrokenData, match="UTF-8"):
        read_heads(tmp_path / "a.json")


def test_what_is_not_there_or_not_known(tmp_path):
    with pytest.raises(MissingResource, match="no head list"):
        read_heads(tmp_path / "none.json")
    with pytest.raises(UsageError, match="cannot tell the format"):
        read_heads(put(tmp_path / "heads.txt", "x"))
    with pytest.raises(UsageError, match="unknown format 'wu'"):
        read_heads(put(tmp_path / "a.json", "{}"), "wu")
    with pytest.raises(UsageError, match=r"scores\.parquet"):
        read_heads(tmp_path)
    with pytest.raises(UsageError, match="is a folder"):
        read_heads(tmp_path, "duo")
    with pytest.raises(UsageError, match="not fitted"):
        as_heads(interp.RetrievalHeads())


def test_what_a_source_lacks_is_said(tmp_path):
    source = read_heads(put(tmp_path / "a.json", reference_text(random_values())))
    with pytest.raises(UsageError, match="score of each instance"):
        write_heads(source.scores_, tmp_path / "b.json", "reference")
    with pytest.raises(UsageError, match="cannot tell a format"):
        write_heads(source, tmp_path / "b.json")
    with pytest.raises(UsageError, match="cannot tell a format"):
        write_heads(source, tmp_path / "b", "run")
    with pytest.raises(MissingResource, match="no folder"):
        write_heads(source, tmp_path / "none" / "b.json", "reference")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    source = read_heads(put(tmp_path / "a.json", reference_text(random_values())))
    path = put(tmp_path / "b.json", "old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_heads(source, path, "reference")
    assert path.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "b.json"]
