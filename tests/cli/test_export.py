"""`vlora export`: an adapter that others load, or one sentence about what is wrong, and nothing left behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import gguf
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import vlora
from tests.cli.conftest import Process, Run, one_sentence
from tests.cli.tiny import tiny_language_model, tiny_model, tiny_processor
from vlora.data.images import image_hash
from vlora.export.peft import FILES
from vlora.nano.parts import language_model_folder

KEYS = {
    "output",
    "to",
    "images",
    "model",
    "base_model",
    "base_fingerprint",
    "targets",
    "layers",
    "rank",
    "alpha",
    "dtype",
    "bytes",
    "timings_ms",
}


@pytest.fixture
def matrices(monkeypatch: pytest.MonkeyPatch) -> vlora.Eyes:
    """Every command gets a tiny model whose targets are matrices."""
    eyes = vlora.Eyes(tiny_model(targets=("q", "v", "down"), static_rank=1), tiny_processor(), name="tiny")
    monkeypatch.setattr("vlora.loading.load", lambda *_, **__: eyes)
    monkeypatch.setattr("vlora.nano.parts.language_model_folder", lambda *_: None)
    return eyes


def test_a_folder_for_peft(run: Run, matrices: vlora.Eyes, photo: Path, tmp_path: Path) -> None:
    result = run("export", photo, "-o", tmp_path / "out", "--to", "peft", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    facts = json.loads(result.stdout)
    assert set(facts) == KEYS
    assert facts["images"] == [{"image": str(photo), "sha256": image_hash(photo)}]
    assert (facts["targets"], facts["layers"], facts["rank"], facts["alpha"]) == (["q", "v", "down"], [0, 1], 5, 5)
    assert facts["bytes"] == {name: (tmp_path / "out" / name).stat().st_size for name in FILES}
    adapted = PeftModel.from_pretrained(tiny_language_model(), str(tmp_path / "out")).eval()
    inputs = matrices.tokens(["what is this?"])
    weights = matrices.model.expand(matrices.perceive(photo))
    with torch.no_grad():
        expected = matrices.model(**inputs, perceptual_weights=weights).logits
        torch.testing.assert_close(adapted(**inputs).logits, expected, rtol=0, atol=1e-4)


@pytest.mark.usefixtures("matrices")
def test_a_folder_for_sglang(run: Run, photo: Path, tmp_path: Path) -> None:
    result = run("export", photo, "-o", tmp_path / "out", "--to", "sglang", "--json")
    assert result.exit_code == 0, result.stderr
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["down_proj", "k_proj", "q_proj", "v_proj"]


def test_a_file_for_llama_cpp(run: Run, matrices: vlora.Eyes, photo: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.gguf"
    result = run("export", photo, "-o", path, "--to", "gguf", "--dtype", "float16", "--base-model", "me/tiny", "--json")
    assert result.exit_code == 0, result.stderr
    facts = json.loads(result.stdout)
    assert facts["bytes"] == {"out.gguf": path.stat().st_size}
    assert facts["base_model"] == "me/tiny"
    reader = gguf.GGUFReader(path)
    assert reader.fields["general.base_model.0.name"].contents() == "me/tiny"
    assert {tensor.tensor_type.name for tensor in reader.tensors} == {"F16"}


@pytest.mark.usefixtures("matrices")
def test_text(run: Run, photo: Path, tmp_path: Path) -> None:
    result = run("export", photo, "--and", photo, "-o", tmp_path / "out")
    assert (result.exit_code, result.stderr) == (0, "")
    for words in (
        f"exported    {photo}, {photo}\n",
        f"to          {tmp_path / 'out'}  (",
        "of 2 images composed; alpha 5",
    ):
        assert words in result.stdout


@pytest.mark.usefixtures("matrices")
def test_an_image_from_stdin(run: Run, photo: Path, tmp_path: Path) -> None:
    result = run("export", "-", "-o", tmp_path / "out", "--json", stdin=photo.read_bytes())
    assert json.loads(result.stdout)["images"] == [{"image": "-", "sha256": image_hash(photo)}]


@pytest.mark.usefixtures("loaded")
def test_mlp_is_refused(run: Run, photo: Path, tmp_path: Path) -> None:
    assert "train a generator with the targets gate, up and down" in one_sentence(
        run("export", photo, "-o", tmp_path / "out")
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_loading")
@pytest.mark.parametrize("to", ["peft", "gguf"])
def test_mistakes_are_told_before_the_model_is_loaded(run: Run, photo: Path, tmp_path: Path, to: str) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("mine")
    place = taken if to == "peft" else taken / "mine.txt"
    assert str(place) in one_sentence(run("export", photo, "-o", place, "--to", to))
    assert "no-image.png" in one_sentence(run("export", tmp_path / "no-image.png", "-o", tmp_path / "new", "--to", to))
    below = photo / "below"
    assert f"{photo} is no folder" in one_sentence(run("export", photo, "-o", below, "--to", to))
    assert [path.name for path in taken.iterdir()] == ["mine.txt"]


def test_force(run: Run, matrices: vlora.Eyes, photo: Path, tmp_path: Path) -> None:
    for to, name in (("peft", "folder"), ("gguf", "file.gguf")):
        arguments = ("export", photo, "-o", tmp_path / name, "--to", to)
        assert run(*arguments).exit_code == 0
        assert "--force" in one_sentence(run(*arguments))
        assert run(*arguments, "--force").exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.gguf", "folder", "photo.png"]


@pytest.mark.usefixtures("matrices")
@pytest.mark.parametrize("to", ["peft", "gguf"])
def test_a_full_disk(run: Run, photo: Path, tmp_path: Path, to: str, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    assert "has 0.0 MB left: give another place" in one_sentence(run("export", photo, "-o", tmp_path / "a", "--to", to))
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]


@pytest.mark.usefixtures("matrices")
@pytest.mark.parametrize("to", ["peft", "gguf"])
def test_a_folder_that_cannot_be_written(
    run: Run, photo: Path, tmp_path: Path, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> str:  # whoever runs this may be root, who may write anywhere
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    message = one_sentence(run("export", photo, "-o", tmp_path / "a", "--to", to))
    assert "cannot be written (Permission denied): give another place" in message
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]


def test_nano(process: Process, tmp_path: Path) -> None:
    image = Path(__file__).parents[2] / "examples" / "images" / "shape-1.png"
    done = process("export", image, "-o", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert "base model  HuggingFaceTB/SmolLM2-135M-Instruct, fingerprint c73004c0" in done.stdout
    plain = AutoModelForCausalLM.from_pretrained(language_model_folder(), dtype=torch.float32)
    adapted = PeftModel.from_pretrained(plain, str(tmp_path / "out")).eval()
    eyes = vlora.load("nano", device="cpu")
    inputs = eyes.tokens(["what color is the shape?"])
    ids = adapted.generate(**inputs, max_new_tokens=4, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert eyes.processor.tokenizer.decode(ids, skip_special_tokens=True) == "green"
