"""`benchmarks/train.py` on tiny models: what it compares does the same work, and it runs to its last line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import train
import yaml
from torch.utils.flop_counter import FlopCounterMode
from training import gpu, parity
from training.counts import Counter, Size
from training.recipe import Recipe
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tests.helpers import IMAGE_SIZE, VOCABULARY, tiny_model
from vlora.model import GeneratorConfig
from vlora.nano.parts import language_model_folder
from vlora.train.learner import Learner

TINY = (
    {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 101,
    },
    {
        "model_type": "clip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    },
)


def tiny_learner(**generator: Any) -> Learner:
    model = tiny_model(**generator)
    model.requires_grad_(False)
    model.model.generator.requires_grad_(True)
    # Its sources are only read by what the tests do not touch.
    return Learner(model.train(), processor=None, config=None, parts=object())  # type: ignore[arg-type]


def batch_of(rows: int = 3, width: int = 9) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, VOCABULARY, (rows, width))
    labels, mask = ids.clone(), torch.ones_like(ids)
    labels[:, :4] = -100
    mask[0, 7:], labels[0, 7:] = 0, -100
    weights = torch.tensor([0.5, 0.3, 0.2])[:rows]
    pixels = torch.randn(rows, 3, IMAGE_SIZE, IMAGE_SIZE)
    return {
        "input_ids": ids,
        "labels": labels,
        "attention_mask": mask,
        "pixel_values": pixels,
        "loss_weights": weights,
    }


@pytest.mark.parametrize(
    "generator", [{}, {"factors": "b"}, {"queries": "joint", "norms": True, "targets": ("v", "o", "gate", "up")}]
)
def test_the_recipe_does_the_same_work(generator: dict[str, Any]) -> None:
    torch.manual_seed(0)
    # In float64: in float32 the sums of some processors are in an order of their own, and gradients 2e-4 apart. Both by
    # eager attention, as the recipe has it, whose softmax is float32 in any case: torch's own differs by 1e-4 of some.
    learner, other = tiny_learner(**generator), tiny_learner(**generator)
    learner.model.double()
    learner.language_model.set_attn_implementation("eager")  # type: ignore[operator]
    batch = {name: value.double() if value.is_floating_point() else value for name, value in batch_of().items()}
    agreed = parity.check(learner, Recipe(other.model.double()).train(), batch, rows=3)
    assert agreed["loss"] < 1e-6
    assert agreed["gradients"] < 1e-9


def test_other_work_is_noticed() -> None:
    torch.manual_seed(0)
    other = tiny_learner()
    next(iter(other.bridge.b.values())).data.mul_(1.05)  # type: ignore[operator, union-attr]
    with pytest.raises(SystemExit, match="differ"):
        parity.check(tiny_learner(), Recipe(other.model).train(), batch_of(), rows=3)


def test_the_recipe_is_as_plain_as_it_says() -> None:
    recipe = Recipe(tiny_learner(layers=(3,)).model).train()
    embeddings = recipe.model.get_input_embeddings()
    seen: list[torch.Tensor] = []
    embeddings.register_forward_hook(lambda _module, _args, output: output.register_hook(seen.append) and None)
    runs: list[int] = []
    recipe.model.model.language_model.layers[0].mlp.register_forward_hook(lambda *_: runs.append(1))
    recipe(batch_of()).backward()
    assert len(seen) == 1  # the backward pass goes down to the embeddings
    assert len(runs) == 2  # and every block is run twice


def test_flops_are_those_that_torch_counts() -> None:
    torch.manual_seed(0)
    batch = batch_of()
    learner = tiny_learner(targets=("v", "o", "gate", "up"))
    counter, size = Counter.of(learner.model.config), Size.of(batch)
    learner.language_model.set_attn_implementation("eager")  # type: ignore[operator]
    with FlopCounterMode(display=False) as counted:
        learner.model(**batch, supervised_only=True, use_cache=False).loss.backward()
    assert counter.ours(size) == pytest.approx(counted.get_total_flops(), rel=0.05)
    recipe = Recipe(learner.model).train()
    with FlopCounterMode(display=False) as counted:
        recipe(batch).backward()
    assert counter.recipe(size) == pytest.approx(counted.get_total_flops(), rel=0.05)


def test_the_7b_job_is_built_and_trains() -> None:
    generator = GeneratorConfig(targets=("q", "k", "v", "o", "mlp"), layer_step=2, rank=4, dim=16, depth=1, heads=2)
    job = gpu.build(*TINY, generator, batch=2, text_tokens=6, device=torch.device("cpu"))
    weights = job.model.model.generator
    assert {parameter.dtype for parameter in job.model.model.language_model.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in weights.parameters()} == {torch.float32}
    optimizer = torch.optim.AdamW(weights.parameters(), lr=1e-2)
    before = {name: value.clone() for name, value in weights.b.items()}
    job.step(job.ours, optimizer)
    assert all(not torch.equal(before[name], value) for name, value in weights.b.items())
    recipe = Recipe(job.model).train()
    before = {name: value.clone() for name, value in weights.b.items()}
    job.step(recipe, optimizer)
    assert all(not torch.equal(before[name], value) for name, value in weights.b.items())


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_7b_without_a_gpu_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["train.py", "--shape", "7b"])
    with pytest.raises(SystemExit, match="needs a CUDA GPU"):
        train.main()


def test_the_script_on_a_tiny_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py", "--quick", "--threads", "1", "--config", str(config)])
    train.main()
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    captions = report["captions"]
    assert captions["parity"]["gradients"] < captions["parity"]["tolerance"]
    assert set(captions["ways"]) == {"ours", "recipe", "visual tokens"}
    assert captions["ways"]["ours"]["padding_share"] < captions["ways"]["recipe"]["padding_share"]
    assert captions["fewer_flops_than"]["visual tokens"] > 2
    assert len(captions["levers"]) == 6
    assert set(report["questions"]["ways"]) == {"ours", "recipe"}


def tiny_config(folder: Path) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(language_model_folder())
    llm = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=len(tokenizer),
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(llm).save_pretrained(folder / "llm")
    tokenizer.save_pretrained(folder / "llm")
    nano = yaml.safe_load(train.CONFIG.read_text(encoding="utf-8"))
    fields = {
        "model": {
            "language_model": str(folder / "llm"),
            "vision_options": {"image_size": 32, "stages": [3]},
            "chat_template": nano["model"]["chat_template"],
            "generator": {"targets": ["v", "down"], "layers": [0, 1], "rank": 2, "dim": 16, "depth": 1, "heads": 2},
        },
        "data": {"questions_per_image": 2},
        "train": {"steps": 1},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(fields), encoding="utf-8")
    return path
