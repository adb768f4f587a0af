"""The folder of an adapter is the one that PEFT itself writes; it names its base, and appears whole or not at all."""

from __future__ import annotations

import json
import resource
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file

import vlora
from tests.helpers import images, plain_llm, shared_model, tiny_llm, token_ids
from vlora.errors import CheckpointError, InputError
from vlora.export.adapter import Adapter, Origin, adapter_of, base_of
from vlora.export.peft import (
    CARD_FILE,
    CONFIG_FILE,
    FILES,
    IDENTITY_FILE,
    WEIGHTS_FILE,
    check_folder,
    lora_config,
    read_base,
    save_folder,
    state_dict,
)
from vlora.model.weights import MERGEABLE
from vlora.nano.parts import language_model_folder

ROOT = Path(__file__).parents[2]
IMAGES = (Origin("pixels", "ab" * 32),)


@torch.no_grad()
def adapter_for(targets: tuple[str, ...] = MERGEABLE, **options: Any) -> Adapter:
    model = shared_model(targets=targets, **options)
    return adapter_of(model.expand(model.perceive(images(1))), base_of(model, name="owner/name"), images=IMAGES)


def written_by_peft(adapter: Adapter, folder: Path, **options: Any) -> Path:
    model = plain_llm(shared_model(targets=adapter.targets, **options))
    model.name_or_path = "owner/name"  # as from_pretrained sets it
    adapted = get_peft_model(model, LoraConfig(**lora_config(adapter)))  # type: ignore[arg-type]
    set_peft_model_state_dict(adapted, state_dict(adapter))
    adapted.save_pretrained(str(folder))
    return folder


def data_of(path: Path) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file, and all that follows it."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


@pytest.mark.parametrize(
    "options", [{}, {"factors": "b"}, {"factors": "ab", "static_rank": 2, "layers": (0, 3)}], ids=str
)
@pytest.mark.parametrize("targets", [MERGEABLE, ("v",)], ids=str)
def test_as_peft_writes_it(tmp_path: Path, targets: tuple[str, ...], options: dict[str, Any]) -> None:
    adapter = adapter_for(targets, **options)
    save_folder(adapter, tmp_path / "ours")
    theirs = written_by_peft(adapter, tmp_path / "theirs", **options)
    assert data_of(tmp_path / "ours" / WEIGHTS_FILE) == data_of(theirs / WEIGHTS_FILE)
    configs = [(folder / CONFIG_FILE).read_text() for folder in (tmp_path / "ours", theirs)]
    fields = [json.loads(text) for text in configs]
    for config in fields:  # PEFT writes a set, in any order
        config["target_modules"] = sorted(config["target_modules"])
    assert fields[0] == fields[1]
    # The form as well: indentation, order, end.
    assert configs[0] == json.dumps(fields[1], indent=2, sort_keys=True)


def test_only_what_is_in_use(tmp_path: Path) -> None:
    adapter = adapter_for(("q", "up"), layers=(0, 2))
    save_folder(adapter, tmp_path / "out")
    config = json.loads((tmp_path / "out" / CONFIG_FILE).read_text())
    assert (config["layers_to_transform"], config["target_modules"]) == ([0, 2], ["q_proj", "up_proj"])
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (4, 6, "owner/name")
    names = load_file(tmp_path / "out" / WEIGHTS_FILE)
    assert len(names) == 2 * 2 * 2
    assert names["base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight"].shape == (4, 48)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@torch.no_grad()
def test_peft_loads_the_folder(tmp_path: Path, dtype: torch.dtype) -> None:
    adapter, model = adapter_for(), shared_model(targets=MERGEABLE)
    sizes = save_folder(adapter, tmp_path / "out", dtype=dtype)
    assert sizes == {name: (tmp_path / "out" / name).stat().st_size for name in FILES}
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / WEIGHTS_FILE).values()} == {dtype}
    ids = token_ids(1, 9)
    adapted = PeftModel.from_pretrained(plain_llm(model), str(tmp_path / "out")).eval()  # type: ignore[arg-type]
    expected = model(input_ids=ids, perceptual_weights=adapter.weights).logits
    # Each rounding of a factor moves ΔW by half a unit of its last place; a few of them add up on the way.
    tolerance = 1e-4 if dtype == torch.float32 else 32 * torch.finfo(dtype).eps
    torch.testing.assert_close(adapted(input_ids=ids).logits, expected, rtol=0, atol=tolerance)


def test_others_may_read_it(tmp_path: Path) -> None:
    save_folder(adapter_for(), tmp_path / "out")
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o755
    assert {stat.S_IMODE(path.stat().st_mode) & 0o444 for path in (tmp_path / "out").iterdir()} == {0o444}


def test_the_same_image_is_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_folder(adapter_for(), tmp_path / name)
    for name in FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_the_card_names_image_and_base(tmp_path: Path) -> None:
    adapter = adapter_for()
    save_folder(adapter, tmp_path / "out")
    _, front, text = (tmp_path / "out" / CARD_FILE).read_text().split("---\n", 2)
    assert yaml.safe_load(front)["base_model"] == "owner/name"
    for words in (IMAGES[0].sha256, adapter.base.fingerprint, "owner/name", "float32", " q k v o gate up down |"):
        assert words in text


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    adapter, model = adapter_for(), shared_model(targets=MERGEABLE)
    folder = tmp_path / "out"
    save_folder(adapter, folder)
    assert read_base(folder) == adapter.base
    check_folder(folder, model)
    check_folder(folder, plain_llm(model))
    with pytest.raises(CheckpointError, match=r"was made for the language model owner/name \(fingerprint .*\.$"):
        check_folder(folder, tiny_llm("llama"))


@pytest.mark.parametrize(
    "content", [None, "", "[]", '{"format_version": 1}', '{"format_version": 1, "base_model": {}}']
)
def test_a_damaged_identity(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / IDENTITY_FILE).write_text(content)
    with pytest.raises(CheckpointError, match=r"vlora\.json is missing or damaged: export the image again\.$"):
        read_base(tmp_path)


def test_an_identity_of_the_future(tmp_path: Path) -> None:
    save_folder(adapter_for(), tmp_path / "out")
    path = tmp_path / "out" / IDENTITY_FILE
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 9'))
    with pytest.raises(CheckpointError, match="has format 9; this version reads up to 1: update vlora"):
        read_base(tmp_path / "out")


def test_a_place_that_is_taken(tmp_path: Path) -> None:
    save_folder(adapter_for(), tmp_path / "out")
    before = (tmp_path / "out" / WEIGHTS_FILE).read_bytes()
    with pytest.raises(InputError, match="exists already: give another place, or replace it with force"):
        save_folder(adapter_for(("v",)), tmp_path / "out")
    assert (tmp_path / "out" / WEIGHTS_FILE).read_bytes() == before
    save_folder(adapter_for(("v",)), tmp_path / "out", force=True)
    assert (tmp_path / "out" / WEIGHTS_FILE).read_bytes() != before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_force_takes_nothing_of_others(tmp_path: Path) -> None:
    save_folder(adapter_for(), tmp_path / "out")
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds mine\.txt, which would be lost"):
        save_folder(adapter_for(), tmp_path / "out", force=True)
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("force", [False, True])
def test_a_disk_that_becomes_full(tmp_path: Path, force: bool) -> None:
    if force:
        save_folder(adapter_for(), tmp_path / "out")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_500, hard))
    try:
        with pytest.raises(InputError, match="out cannot be written"):
            save_folder(adapter_for(("v",)), tmp_path / "out", force=force)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_numbers_that_half_precision_cannot_hold(tmp_path: Path) -> None:
    adapter = adapter_for()
    adapter.weights.values[0, 0] = 1e6
    with pytest.raises(InputError, match="float16 cannot hold"):
        save_folder(adapter, tmp_path / "out", dtype=torch.float16)
    assert not any(tmp_path.iterdir())


@torch.no_grad()
def test_nano_in_peft(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    eyes = vlora.load("nano", device="cpu")
    paths = [ROOT / "examples" / "images" / f"shape-{number}.png" for number in (1, 2)]
    # In float64, as logits reach 40, of which float32 through 30 blocks leaves no 1e-4 to spare.
    plain = AutoModelForCausalLM.from_pretrained(language_model_folder(), dtype=torch.float64).eval()
    for number, image in enumerate([paths[0], paths]):
        adapter = eyes.adapter(image)
        save_folder(adapter, tmp_path / f"{number}")
        check_folder(tmp_path / f"{number}", plain)
    inputs = eyes.tokens(["what color is the shape?", "is there a circle?"])
    weights = [eyes.model.expand(eyes.perceive(given)).composed() for given in (paths[:1], paths)]
    adapted = PeftModel.from_pretrained(plain, str(tmp_path / "0"), adapter_name="one").eval()
    adapted.load_adapter(str(tmp_path / "1"), adapter_name="both")
    found = adapted.double()(**inputs, adapter_names=["one", "both"]).logits
    worn = vlora.PerceptualWeights.stack(weights).to(torch.float64)
    expected = eyes.model.double()(**inputs, perceptual_weights=worn).logits
    mask = inputs["attention_mask"].bool()
    torch.testing.assert_close(found[mask], expected[mask], rtol=0, atol=1e-4)
