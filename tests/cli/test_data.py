"""`vlora data`: what is in the data is shown, and shards are made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.conftest import Run, one_sentence
from tests.cli.tiny import TEMPLATE, save_in_parts, save_whole, tiny_language_model, tiny_tokenizer
from tests.data.made import llava_row, messages_row, png, write_tar
from vlora.errors import ModelNotFound
from vlora.loading import text_processor


@pytest.fixture
def llm(tmp_path: Path) -> Path:
    """A tokenizer, without a model: none is loaded."""
    folder = tmp_path / "llm"
    tiny_tokenizer().save_pretrained(folder)
    tiny_language_model().config.save_pretrained(folder)
    return folder


@pytest.fixture
def config(tmp_path: Path, llm: Path) -> Path:
    """Two sources: LLaVA's JSON, and tars."""
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    (tmp_path / "l.json").write_text(json.dumps([llava_row(number) for number in range(4)]))
    write_tar(tmp_path / "t.tar", [(f"{n}", {"png": png(n), "txt": b"a [bold] text"}) for n in range(3)])
    sources = [
        {"format": "llava", "path": str(tmp_path / "l.json"), "weight": 2},
        {"format": "webdataset", "path": str(tmp_path / "t.tar"), "prompts": ["Describe it."], "weight": 1},
    ]
    path = tmp_path / "config.yaml"
    content: dict[str, Any] = {
        "model": {"language_model": str(llm), "chat_template": TEMPLATE},
        "data": {"sources": sources},
        "train": {"steps": 1},
    }
    path.write_text(yaml.safe_dump(content))
    return path


def test_inspect(run: Run, config: Path) -> None:
    result = run("data", "inspect", config, "--samples", 1)
    assert result.exit_code == 0, result.output
    assert "l: 4 samples" in result.stdout
    assert "⟦Tür 0.</s>⟧" in result.stdout
    assert "⟦a [bold] text</s>⟧" in result.stdout
    assert "4 conversations, 4 images, 0 samples without one" in result.stdout
    assert "images    4 decoded, 0 broken" in result.stdout


def test_inspect_one_source_as_json(run: Run, config: Path) -> None:
    result = run("data", "inspect", config, "--source", "t", "--json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert answer["ok"]
    (source,) = answer["sources"]
    assert (source["name"], source["samples"], source["images"], source["images_checked"]) == ("t", 3, 3, 3)
    assert source["rendered"][0]["pieces"][-1] == {"text": "a [bold] text</s>", "learned": True}
    assert source["tokens"]["min"] == source["tokens"]["max"]
    assert "choose from l, t" in one_sentence(run("data", "inspect", config, "--source", "x"))


def test_what_is_wrong_is_listed_and_the_exit_code_says_so(run: Run, llm: Path, tmp_path: Path) -> None:
    rows = [messages_row(0), messages_row(1, messages=[{"role": "user", "content": "q"}]), messages_row(2)]
    (tmp_path / "0.png").write_bytes(png())
    path = tmp_path / "m.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    # The template of the tokenizer's own folder is given by the config; here by the folder.
    (llm / "chat_template.jinja").write_text(TEMPLATE)
    result = run("data", "inspect", path, "--format", "messages", "--language-model", llm)
    assert result.exit_code == 2
    assert f"error     {path} line 2 has nothing to learn from" in result.stdout
    assert f"broken    {path} line 3: {tmp_path / '2.png'} does not exist" in result.stdout


def test_convert_and_verify(run: Run, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("data", "convert", config, out, "--shard-size", "10rows", "--workers", 1)
    assert result.exit_code == 0, result.output
    assert "7 samples with 7 images" in result.stdout
    result = run("data", "convert", config, out, "--shard-size", "10rows", "--json")
    assert json.loads(result.stdout)["kept"] == 2
    result = run("data", "verify", out, "--json")
    assert json.loads(result.stdout) == {
        "folder": str(out),
        "shards": 2,
        "samples": 7,
        "problems": [],
        "ok": True,
    }
    (out / "data-00001.arrow").write_bytes(b"x")
    result = run("data", "verify", out)
    assert result.exit_code == 2
    assert "hash differs" in result.stdout
    result = run("data", "inspect", out, "--format", "shards")
    assert "another size" in one_sentence(result)


def test_convert_data_without_a_config(run: Run, config: Path, tmp_path: Path) -> None:
    words = ("--format", "webdataset", "--prompt", "What?", "--limit", 2, "--json", "--workers", 1)
    result = run("data", "convert", tmp_path / "t.tar", tmp_path / "out", *words)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["samples"] == 2


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["convert", "out"], "No source is named"),
        (["convert", "none.yaml", "out"], "no config file 'none.yaml'"),
        (["convert", "x", "out", "--format", "xml"], "no format 'xml'"),
        (["convert", "x", "out", "--format", "llava"], "no file 'x'"),
        (["convert", "configs/easy-vqa.yaml", "out", "--limit", "3"], "without --format"),
        (["convert", "configs/easy-vqa.yaml", "out", "--shard-size", "big"], "as 256MB"),
        (["convert", "x", "out", "--format", "captions", "--column", "image"], "NAME=COLUMN"),
        (["inspect", "configs/easy-vqa.yaml", "--scan", "many"], "a number, or all"),
        (["inspect", "x.json", "--format", "llava", "--language-model", "no-such"], "no language model 'no-such'"),
        (["verify", "none"], "holds no shards"),
    ],
)
def test_mistakes(run: Run, words: list[str], answer: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "configs").symlink_to(Path(__file__).parents[2] / "configs")
    monkeypatch.chdir(tmp_path)
    assert answer in one_sentence(run("data", *words))


def test_a_checkpoint_brings_its_template(tmp_path: Path) -> None:
    folder = save_in_parts(tmp_path)
    in_parts = text_processor("no-such", checkpoint=folder)
    whole = text_processor("no-such", checkpoint=save_whole(tmp_path / "whole"))
    assert in_parts.chat_template == whole.chat_template == TEMPLATE
    assert in_parts.tokenizer.get_vocab() == whole.tokenizer.get_vocab()
    assert (whole.image_token, whole.image_placeholder) == ("<image>", "erase")
    assert text_processor("no-such", checkpoint=folder, chat_template="x").chat_template == "x"
    with pytest.raises(ModelNotFound, match="no checkpoint"):
        text_processor("nano", checkpoint=tmp_path)
