"""From the authors' checkpoint to a folder of ours: the same model, all of it or nothing, in little memory."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForImageTextToText, GenerationConfig

import vlora
from tests.export.checkpoints import (
    INDEX,
    OFFICIAL,
    TOWER,
    as_bin,
    as_one_file,
    change_fields,
    copy_official,
    in_two_parts,
    marked,
    tensors_of,
    their_shapes,
    write_large,
)
from tests.helpers import fresh_python
from vlora.errors import CheckpointError, InputError
from vlora.export import Conversion, convert_authors, plan

EXPECTED = json.loads((OFFICIAL / "expected.json").read_text())
USE = """
    import json, sys
    import torch
    from PIL import Image
    from safetensors.torch import save_file
    import vlora
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder, image, question, out = sys.argv[1:]
    model, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    processor = AutoProcessor.from_pretrained(folder)
    talk = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    prompt = processor.apply_chat_template(talk, add_generation_prompt=True)
    inputs = processor(images=Image.open(image), text=prompt, return_tensors="pt")
    written = model.eval().generate(**inputs, max_new_tokens=12, do_sample=False)
    features = model.get_image_features(inputs["pixel_values"]).last_hidden_state
    save_file({"pixel_values": inputs["pixel_values"], "features": features, "written": written}, out)
    asked = vlora.load(folder).ask(image, question, max_new_tokens=12)
    told = {"keys": {name: sorted(map(str, keys)) for name, keys in info.items()}, "prompt": prompt, "asked": asked}
    print(json.dumps(told))
"""
MEASURE = """
    import sys
    from vlora.export import convert_authors

    def peak():  # megabytes of this process, whatever its parent needed
        return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1000

    before = peak()
    convert_authors(*sys.argv[1:])
    print(before, peak())
"""


class Converted(NamedTuple):
    folder: Path
    done: Conversion
    tensors: dict[str, Tensor]


def weights(folder: Path) -> dict[str, Tensor]:
    return {key: tensor for path in folder.glob("*.safetensors") for key, tensor in load_file(path).items()}


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """The official checkpoint, converted as it is; for reading only."""
    folder = tmp_path_factory.mktemp("converted") / "model"
    return Converted(folder, convert_authors(OFFICIAL / "checkpoint", folder), weights(folder))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return copy_official(tmp_path)


def test_it_answers_in_a_fresh_process(converted: Converted, tmp_path: Path) -> None:
    image, out = OFFICIAL / "image.png", tmp_path / "out.safetensors"
    told = json.loads(fresh_python(USE, converted.folder, image, EXPECTED["question"], out))
    theirs, ours = load_file(OFFICIAL / "expected.safetensors"), load_file(out)
    assert not any(told["keys"].values())
    assert told["prompt"] == EXPECTED["prompt"]
    torch.testing.assert_close(ours["pixel_values"], theirs["pixel_values"], rtol=0, atol=1e-6)
    torch.testing.assert_close(ours["features"], theirs["features"], rtol=1e-5, atol=1e-5)
    assert ours["written"][0, -12:].tolist() == EXPECTED["answer_ids"] == theirs["generated"].tolist()
    assert told["asked"] == EXPECTED["answer_text"].strip()


def test_what_it_tells(converted: Converted) -> None:
    done = converted.done
    assert (done.source, done.destination) == (str(OFFICIAL / "checkpoint"), str(converted.folder))
    assert done.written == {"language_model": 39, "generator": 298, "vision": 55}
    assert done.read + len(done.recomputed) == len(tensors_of(OFFICIAL / "checkpoint"))
    assert len(converted.tensors) == sum(done.written.values())
    assert done.dtypes == {"float32": done.nbytes}
    assert done.nbytes == sum(tensor.nbytes for tensor in converted.tensors.values())
    assert done.files == len(list(converted.folder.glob("*.safetensors")))
    assert (done.not_vision, done.image_token_id) == (0, 360)


def test_what_is_written(converted: Converted) -> None:
    names = {path.name for path in converted.folder.iterdir() if path.suffix != ".safetensors"}
    assert names == {
        "config.json",
        "generation_config.json",
        "chat_template.jinja",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        INDEX,
    }
    index = json.loads((converted.folder / INDEX).read_text())
    assert index["metadata"]["total_size"] == converted.done.nbytes
    assert index["weight_map"].keys() == converted.tensors.keys()
    config = json.loads((converted.folder / "config.json").read_text())
    assert (config["model_type"], config["dtype"]) == ("vlora", "float32")
    assert (config["image_placeholder"], config["image_token_id"]) == ("mask", 360)
    assert str(OFFICIAL) not in (converted.folder / "config.json").read_text()
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in (converted.folder, *converted.folder.iterdir()))


def _own_tower(checkpoint: Path) -> None:
    as_one_file(checkpoint, {k: v for k, v in tensors_of(checkpoint).items() if not k.startswith(TOWER)})


FORMS: dict[str, Callable[[Path], Any]] = {
    "one file": lambda checkpoint: as_one_file(checkpoint, tensors_of(checkpoint)),
    "bin": as_bin,
    "bin in parts": lambda checkpoint: as_bin(checkpoint, shards=3),
    "old bin": lambda checkpoint: as_bin(checkpoint, zipped=False),
    "own tower": _own_tower,
    "two parts": in_two_parts,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_model(checkpoint: Path, tmp_path: Path, converted: Converted, form: str) -> None:
    made = FORMS[form](checkpoint)
    llm = made if form == "two parts" else None
    done = convert_authors(checkpoint, tmp_path / "out", language_model=llm)
    tensors = weights(tmp_path / "out")
    assert tensors.keys() == converted.tensors.keys()
    assert all(torch.equal(tensor, converted.tensors[key]) for key, tensor in tensors.items())
    assert done.written == converted.done.written
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == json.loads(
        (converted.folder / "config.json").read_text()
    )
    assert (done.files == 1) == (form in ("one file", "bin", "old bin"))
    assert (tmp_path / "out" / INDEX).is_file() == (done.files > 1)


def test_names_that_share_memory_in_a_pickle(checkpoint: Path, tmp_path: Path) -> None:
    (path,) = as_bin(checkpoint)
    tensors = torch.load(path, weights_only=True)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    torch.save(tensors, path)
    convert_authors(checkpoint, tmp_path / "out")
    ours = weights(tmp_path / "out")
    assert torch.equal(ours["lm_head.weight"], ours["model.language_model.embed_tokens.weight"])


def test_the_precision_is_kept(checkpoint: Path, tmp_path: Path) -> None:
    def precision(key: str) -> torch.dtype:
        return torch.float16 if key.startswith(TOWER) else torch.bfloat16

    before = {key: tensor.to(precision(key)) for key, tensor in tensors_of(checkpoint).items()}
    as_one_file(checkpoint, before)
    done = convert_authors(checkpoint, tmp_path / "out")
    assert done.dtypes.keys() == {"bfloat16", "float16"}
    ours = weights(tmp_path / "out")
    assert {tensor.dtype for key, tensor in ours.items() if "vision_tower" in key} == {torch.float16}
    assert {tensor.dtype for key, tensor in ours.items() if "vision_tower" not in key} == {torch.bfloat16}
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    assert model.lm_head.weight.dtype == torch.bfloat16
    assert torch.equal(model.lm_head.weight, before["lm_head.weight"])


def test_a_tied_head(checkpoint: Path, tmp_path: Path) -> None:
    change_fields(checkpoint, tie_word_embeddings=True)
    as_one_file(checkpoint, {k: v for k, v in tensors_of(checkpoint).items() if k != "lm_head.weight"})
    convert_authors(checkpoint, tmp_path / "out")
    model, info = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert model.lm_head.weight is model.get_input_embeddings().weight


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (
            {"eos_token_id": 7, "max_length": 4096, "temperature": 0.9, "top_p": 0.6},
            {"eos_token_id": 7, "pad_token_id": 0},
        ),
        (
            {"do_sample": True, "temperature": 0.9, "pad_token_id": -1},
            {"do_sample": True, "temperature": 0.9, "eos_token_id": 2},
        ),
    ],
)
def test_generation(checkpoint: Path, tmp_path: Path, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    """Vicuna's own file has a temperature and does not sample, which newer transformers refuse to write."""
    (checkpoint / "generation_config.json").write_text(json.dumps(theirs))
    convert_authors(checkpoint, tmp_path / "out")
    config = GenerationConfig.from_pretrained(tmp_path / "out").to_diff_dict()
    assert {name: value for name, value in config.items() if name != "transformers_version"} == ours | {
        "bos_token_id": 1
    }


# ---- all or nothing ---------------------------------------------------------------------------------


def _lose_a_shard(checkpoint: Path) -> None:
    (checkpoint / "model-00003-of-00004.safetensors").unlink()


def _cut_a_shard(checkpoint: Path) -> None:
    path = checkpoint / "model-00004-of-00004.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


MISTAKES: dict[str, Callable[[Path], Any]] = {
    "a missing shard": _lose_a_shard,
    "a truncated file": _cut_a_shard,
    "an extra key": lambda path: as_one_file(path, tensors_of(path) | {"extra": torch.zeros(1)}),
    "a wrong shape": lambda path: as_one_file(path, tensors_of(path) | {"lm_head.weight": torch.zeros(1)}),
    "another width": lambda path: change_fields(path, vlora_dim=16),
    "no pickle of tensors": lambda path: (as_bin(path), torch.save([], path / "pytorch_model.bin")),
    "a damaged generation config": lambda path: (path / "generation_config.json").write_text("{"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_nothing_is_written_before_all_is_checked(checkpoint: Path, tmp_path: Path, mistake: str) -> None:
    MISTAKES[mistake](checkpoint)
    (tmp_path / "place").mkdir()
    with pytest.raises(CheckpointError):
        convert_authors(checkpoint, tmp_path / "place" / "out")
    assert not any((tmp_path / "place").iterdir())


@pytest.mark.parametrize("after", [0, 1, 3])
def test_an_interrupt_leaves_nothing(tmp_path: Path, after: int) -> None:
    told: list[tuple[int, int]] = []

    def interrupt(done: int, total: int) -> None:
        told.append((done, total))
        if len(told) > after:
            assert any(tmp_path.iterdir())  # it is at work
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_authors(OFFICIAL / "checkpoint", tmp_path / "new" / "out", progress=interrupt)
    assert not any(tmp_path.iterdir())
    assert told[0][0] == 0
    assert all(total == told[0][1] for _, total in told)


def test_progress_ends_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "SHARD_BYTES", 200_000)
    told: list[tuple[int, int]] = []
    done = convert_authors(OFFICIAL / "checkpoint", tmp_path / "out", progress=lambda *bytes_: told.append(bytes_))
    assert told == sorted(told)
    assert told[-1] == (done.nbytes, done.nbytes)
    assert len(told) == done.files + 1 > 10


def test_a_disk_that_is_full_from_the_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(InputError, match=r"out needs 1\.9 MB and .* has 1\.0 MB left"):
        convert_authors(OFFICIAL / "checkpoint", tmp_path / "out")
    assert not any(tmp_path.iterdir())


def test_a_disk_that_becomes_full(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(InputError, match="out cannot be written"):
            convert_authors(OFFICIAL / "checkpoint", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not any(tmp_path.iterdir())


def test_where_it_may_go(tmp_path: Path) -> None:
    taken, file, empty = tmp_path / "taken", tmp_path / "file", tmp_path / "empty"
    empty.mkdir()
    taken.mkdir()
    (taken / "mine.txt").write_text("mine")
    file.write_text("mine")
    for place in (taken, file):
        with pytest.raises(InputError, match="exists already and is no empty folder"):
            convert_authors(OFFICIAL / "checkpoint", place)
    with pytest.raises(InputError, match="is no folder"):
        convert_authors(OFFICIAL / "checkpoint", file / "below")
    convert_authors(OFFICIAL / "checkpoint", empty)
    convert_authors(OFFICIAL / "checkpoint", tmp_path / "not" / "yet" / "there")
    assert (tmp_path / "not" / "yet" / "there" / "config.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "not", "taken"]
    assert (taken / "mine.txt").read_text() == file.read_text() == "mine"


# ---- memory -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_memory_is_that_of_the_largest_file(tmp_path: Path) -> None:
    """Above what Python and its libraries need. The checkpoint has 2.3 GB, in files of 300 MB."""
    sizes = {"hidden_size": 2048, "intermediate_size": 5504, "num_hidden_layers": 20, "vocab_size": 32000}
    checkpoint, total = write_large(tmp_path, shard_bytes=300_000_000, **sizes)
    try:
        largest = max(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
        before, peak = map(float, fresh_python(MEASURE, checkpoint, tmp_path / "out").split())
        assert total > 2 * 2**30
        assert peak - before < largest / 1e6 + 50
        stored = their_shapes(checkpoint)
        ours = weights_by_name(tmp_path / "out")
        for layer in (0, 19):
            key = f"layers.{layer}.mlp.down_proj.weight"
            assert torch.equal(ours("model.language_model." + key), marked("model." + key, stored["model." + key]))
    finally:
        shutil.rmtree(tmp_path)


def weights_by_name(folder: Path) -> Callable[[str], Tensor]:
    where = json.loads((folder / INDEX).read_text())["weight_map"]
    return lambda name: load_file(folder / where[name])[name]


def test_it_is_loaded_by_name(converted: Converted) -> None:
    eyes = vlora.load(converted.folder, device="cpu")
    talk = eyes.tokens([EXPECTED["question"]])["input_ids"]
    theirs = load_file(OFFICIAL / "expected.safetensors")["input_ids"]
    assert torch.equal(talk.masked_fill(talk == 360, -200), theirs)
