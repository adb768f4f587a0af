"""What vLLM and SGLang themselves read of an exported adapter, as far as their code runs on a CPU.

Neither is installed here: each wants another torch. Where one is, or its unpacked wheel and what that imports are on
PYTHONPATH, these tests run; docs/export.md says when they last did.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from tests.helpers import images, plain_llm, shared_model
from vlora.export.adapter import adapter_of, base_of, completed
from vlora.export.peft import save_folder

TARGETS = ("v", "o", "gate", "up")  # nano's

VLLM = """
    import sys, torch
    from safetensors.torch import load_file
    from vllm.config.lora import LoRAConfig
    from vllm.lora import lora_model
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.lora_weights import PackedLoRALayerWeights
    from vllm.lora.peft_helper import PEFTHelper

    folder, lora_model.PIN_MEMORY = sys.argv[1], False  # there is no accelerator to pin it for
    helper = PEFTHelper.from_local_dir(folder, 64)
    assert (helper.r, helper.vllm_lora_scaling_factor) == (4, 1.5)
    helper.validate_legal(LoRAConfig(max_lora_rank=8))
    try:
        helper.validate_legal(LoRAConfig(max_lora_rank=1))
    except ValueError as error:
        assert "LoRA rank 4 is greater than max_lora_rank 1" in str(error)
    else:
        raise AssertionError("a rank of 4 in a room for 1")
    wrapped = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    model = LoRAModel.from_local_checkpoint(folder, wrapped, helper, lora_model_id=1, device="cpu")
    tensors = load_file(folder + "/adapter_model.safetensors")
    assert len(model.loras) == len(tensors) // 2 == 8
    for name, pair in model.loras.items():
        assert torch.equal(pair.lora_a, tensors[f"base_model.model.{name}.lora_A.weight"])
        assert torch.equal(pair.lora_b, tensors[f"base_model.model.{name}.lora_B.weight"])
    parts = [model.get_lora(f"model.layers.1.self_attn.{name}") for name in ("q_proj", "k_proj", "v_proj")]
    packed = PackedLoRALayerWeights.pack(parts)
    assert [a is None for a in packed.lora_a] == [True, True, False]
    print("read")
"""
# SGLang imports torchvision, for images, wherever it imports anything; an adapter needs nothing of it.
SGLANG = """
    import importlib.machinery, importlib.util, sys, types
    import torch
    import transformers.image_transforms, transformers.processing_utils

    class Blank(types.ModuleType):
        def __getattr__(self, name):
            if name.startswith("__"):
                raise AttributeError(name)
            return type(name, (), {})

    if importlib.util.find_spec("torchvision") is None:
        for name in ("", ".io", ".transforms", ".transforms.functional", ".transforms.v2", ".transforms.v2.functional"):
            blank = sys.modules["torchvision" + name] = Blank("torchvision" + name)
            blank.__path__, blank.__spec__ = [], importlib.machinery.ModuleSpec("torchvision" + name, None)

    from transformers import AutoConfig
    from safetensors.torch import load_file
    from sglang.srt.lora.lora import LoRAAdapter
    from sglang.srt.lora.lora_config import LoRAConfig
    from sglang.srt.lora.utils import get_normalized_target_modules, get_target_module_name

    folder, base, whole = sys.argv[1], sys.argv[2], sys.argv[3] == "whole"
    config = LoRAConfig(folder)
    assert (config.r, config.lora_alpha) == (4, 6)
    taken = get_normalized_target_modules(config.target_modules)
    assert taken == {"qkv_proj", "o_proj", "gate_up_proj"}
    adapter = LoRAAdapter("id", config, AutoConfig.from_pretrained(base), None, None)
    assert adapter.scaling == 1.5
    tensors = load_file(folder + "/adapter_model.safetensors")
    adapter.initialize_weights_from_tensors(dict(tensors))
    if not whole:
        stray = [name for name in adapter.layers[1].weights if "v_proj" in name and "qkv" not in name]
        assert len(stray) == 2
        for name in stray:
            try:
                get_target_module_name(name, taken)
            except ValueError:
                continue
            raise AssertionError("v alone has a place: `completed` is no longer needed")
    for layer in (1, 3) if whole else ():
        weights = adapter.layers[layer].weights
        for name in weights:
            get_target_module_name(name, taken)  # raises for what has no buffer
        prefix = f"base_model.model.model.layers.{layer}.self_attn."
        for letter in "AB":
            parts = [tensors[f"{prefix}{name}_proj.lora_{letter}.weight"] for name in "qkv"]
            assert torch.equal(weights[f"{prefix}qkv_proj.lora_{letter}.weight"], torch.cat(parts))
        assert weights[f"{prefix}qkv_proj.lora_B.weight"].shape == (128, 4)
    print("read")
"""


def read_by(engine: str, code: str, *arguments: Path | str) -> None:
    if importlib.util.find_spec(engine) is None:
        pytest.skip(f"{engine} is not installed")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.stdout.splitlines()[-1:] == ["read"], done.stderr[-3000:]


@torch.no_grad()
def test_vllm_reads_the_folder(tmp_path: Path) -> None:
    model = shared_model(targets=TARGETS)
    save_folder(adapter_of(model.expand(model.perceive(images(1))), base_of(model)), tmp_path / "out")
    read_by("vllm", VLLM, tmp_path / "out")


@pytest.mark.parametrize("form", ["whole", "part"])
@torch.no_grad()
def test_sglang_reads_a_completed_folder_only(tmp_path: Path, form: str) -> None:
    model = shared_model(targets=TARGETS)
    adapter = adapter_of(model.expand(model.perceive(images(1))), base_of(model))
    save_folder(completed(adapter) if form == "whole" else adapter, tmp_path / "out")
    plain_llm(model).config.save_pretrained(tmp_path / "base")  # type: ignore[union-attr]
    read_by("sglang", SGLANG, tmp_path / "out", tmp_path / "base", form)
