"""A saved folder loads elsewhere, in any number of files, on whatever devices there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.ecosystem.people import CHATS, NEW, prepare, save_folder
from tests.helpers import fresh_python
from vlora.errors import InputError

READER = """
    import sys
    import torch
    import vlora
    from safetensors.torch import save_file
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from tests.ecosystem.people import CHATS, prepare
    torch.set_num_threads(int(sys.argv.pop(1)))  # so that sums are added up in the same order
    for folder in sys.argv[1:]:
        model, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
        assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
        batch = prepare(AutoProcessor.from_pretrained(folder), CHATS)
        with torch.no_grad():
            save_file({"logits": model(**batch).logits}, folder + "/seen")
"""
KINDS: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {}, "50GB"),
    ("gemma2", {"targets": ("k", "gate"), "norms": True, "static_rank": 2}, "50GB"),  # tied embeddings
    ("qwen3", {"targets": ("o", "up"), "head": "dictionary"}, "100KB"),  # several files
]


@torch.no_grad()
def test_a_fresh_process_computes_the_same_bits(tmp_path: Path) -> None:
    folders = [tmp_path / family for family, _, _ in KINDS]
    expected = []
    for folder, (family, generator, shard) in zip(folders, KINDS, strict=True):
        first = save_folder(tmp_path / f"first-{family}", family, **generator)
        model = AutoModelForImageTextToText.from_pretrained(first)
        processor = AutoProcessor.from_pretrained(first)
        model.save_pretrained(folder, max_shard_size=shard)
        processor.save_pretrained(folder)
        assert (len(list(folder.glob("*.safetensors"))) > 1) == (shard == "100KB")
        expected.append(model(**prepare(processor, CHATS)).logits)
    fresh_python(READER, torch.get_num_threads(), *folders)
    for folder, logits in zip(folders, expected, strict=True):
        assert torch.equal(load_file(folder / "seen")["logits"], logits)


def test_tied_embeddings_are_stored_once(tmp_path: Path) -> None:
    folder = save_folder(tmp_path, "gemma2")
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight


def test_a_device_map_for_whatever_there_is(folder: Path, model: Any, processor: Any) -> None:
    spread = AutoModelForImageTextToText.from_pretrained(folder, device_map="auto")
    batch = prepare(processor, CHATS).to(spread.device)
    written = spread.generate(**batch, max_new_tokens=NEW, do_sample=False).cpu()
    here = model.generate(**prepare(processor, CHATS), max_new_tokens=NEW, do_sample=False)
    assert torch.equal(written, here)


@torch.no_grad()
def test_a_language_model_that_stays_on_the_disk(folder: Path, model: Any, processor: Any, tmp_path: Path) -> None:
    device_map = {
        "model.vision_tower": "cpu",
        "model.generator": "cpu",
        "lm_head": "cpu",
        "model.language_model": "cpu",
    }
    blocks = {f"model.language_model.layers.{layer}": "disk" for layer in (1, 2, 3)}  # 1 and 3 wear weights
    model_on_disk = AutoModelForImageTextToText.from_pretrained(
        folder, device_map=_split(device_map, blocks), offload_folder=tmp_path
    )
    assert model_on_disk.model.language_model.layers[3].self_attn.q_proj.weight.is_meta
    batch = prepare(processor, CHATS)
    assert torch.equal(model_on_disk(**batch).logits, model(**batch).logits)
    written = model_on_disk.generate(**batch, max_new_tokens=3, do_sample=False)
    assert torch.equal(written, model.generate(**batch, max_new_tokens=3, do_sample=False))


def test_a_generator_on_the_disk_is_refused(folder: Path, processor: Any, tmp_path: Path) -> None:
    parts = ("model.vision_tower", "model.language_model", "lm_head")
    device_map = dict.fromkeys(parts, "cpu") | {"model.generator": "disk"}
    model = AutoModelForImageTextToText.from_pretrained(folder, device_map=device_map, offload_folder=tmp_path)
    with pytest.raises(InputError, match="The generator is offloaded"):
        model.generate(**prepare(processor, CHATS), max_new_tokens=2)


def _split(device_map: dict[str, str], blocks: dict[str, str]) -> dict[str, str]:
    """A map in which single blocks of the language model lie elsewhere than the rest of it."""
    rest = device_map.pop("model.language_model")
    names = ("embed_tokens", "norm", "rotary_emb", "layers.0")
    return device_map | {f"model.language_model.{name}": rest for name in names} | blocks
