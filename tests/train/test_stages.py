"""Stage two: a language model that learns with the generator, from rows with images and rows without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import LlamaForCausalLM

import vlora
from tests.helpers import picture
from tests.train.processes import load_weights, losses
from vlora.model.assemble import fingerprint
from vlora.model.loss import IGNORED
from vlora.train.config import TrainConfig, load_config
from vlora.train.learner import build
from vlora.train.loader import MicroBatches, World, looks_of, steps_of
from vlora.train.run import train

FULL = ("stage=finetune", "train.language_model=full", "train.language_model_rate=0.003")
LORA = ("stage=finetune", "train.language_model=lora", "train.language_model_rate=0.05", "train.lora.rank=4")
ANSWERS = ["It is red.", "A dog, I think.", "Four of them.", "Nothing at all."]


def instruct(folder: Path, *, images: bool) -> Path:
    """LLaVA's instruction mix in small: rows with an image, rows without one, several turns."""
    rows = []
    for number in range(8):
        seen = images and number % 2 == 0
        turns = [
            {"from": "human", "value": ("<image>\n" if seen else "") + f"What about number {number}?"},
            {"from": "gpt", "value": ANSWERS[number % 4]},
        ]
        if number % 4 < 2:
            turns += [{"from": "human", "value": "Are you sure?"}, {"from": "gpt", "value": "Yes."}]
        row = {"id": str(number), "conversations": turns}
        if seen:
            picture(number).save(folder / f"{number}.png")
            row["image"] = f"{number}.png"
        rows.append(row)
    path = folder / "mix.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def config(tiny_config: Path, tmp_path: Path, *overrides: str, images: bool = True, steps: int = 20) -> TrainConfig:
    fields = yaml.safe_load(tiny_config.read_text(encoding="utf-8"))
    source = {"format": "llava", "path": str(instruct(tmp_path, images=images))}
    fields["data"] = {"sources": [source]}
    fields["train"] |= {"steps": steps, "save_steps": 1000, "decay_steps": 0, "warmup_steps": 0}
    fields["train"] |= {"learning_rate": 0.003, "stored_dtype": "float32"}
    path = tmp_path / "stage.yaml"
    path.write_text(yaml.safe_dump(fields), encoding="utf-8")
    return load_config(path, list(overrides))


@pytest.mark.parametrize("stage", [FULL, LORA], ids=["full", "lora"])
def test_stage_two_learns_from_rows_with_and_without_images(
    tiny_config: Path, tmp_path: Path, stage: tuple[str, ...]
) -> None:
    settings = config(tiny_config, tmp_path, *stage)
    final = train(settings, run_dir=tmp_path / "run")
    told = losses(tmp_path / "run")
    first, last = (sum(told[step] for step in steps) / 5 for steps in (range(1, 6), range(16, 21)))
    # A frozen random language model can say little by LoRA, but that little is learnt.
    assert last < (0.9 if stage is FULL else 0.997) * first
    eyes, before = vlora.load(final), build(settings, torch.device("cpu")).model
    assert fingerprint(eyes.model.model.language_model) != fingerprint(before.model.language_model)
    assert fingerprint(eyes.model.model.vision_tower) == fingerprint(before.model.vision_tower)
    assert any(bool(b.any()) for b in eyes.model.model.generator.b.values())
    assert not any("lora" in name for name in load_weights(final))
    assert isinstance(eyes.ask(tmp_path / "0.png", "What is it?", max_new_tokens=2), str)


def test_rows_without_an_image_train_the_plain_language_model(tiny_config: Path, tmp_path: Path) -> None:
    """Three steps of ours, and of a plain loop over the language model alone: the same weights."""
    settings = config(tiny_config, tmp_path, *FULL, images=False, steps=3)
    final = train(settings, run_dir=tmp_path / "run")
    learner = build(settings, torch.device("cpu"))
    plain = LlamaForCausalLM.from_pretrained(settings.model.language_model)
    optimiser = torch.optim.AdamW(plain.parameters(), lr=0.003, betas=settings.train.betas, weight_decay=0.0)
    looks = looks_of(settings, learner)
    micro = MicroBatches(steps_of(settings, looks), first=0, last=3, world=World(1, 0, 1))
    for tasks in micro:
        batch = learner.collator()([looks[task] for task in tasks])
        logits = plain(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        rows = []
        for row, labels in zip(logits, batch["labels"], strict=True):
            rows.append(
                torch.nn.functional.cross_entropy(row[:-1], labels[1:])
            )  # its own mean, over what is supervised
        torch.stack(rows).mean().backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
    trained = vlora.load(final).model.model.language_model
    fresh = LlamaForCausalLM.from_pretrained(settings.model.language_model).model
    for name, weight in plain.model.state_dict().items():
        torch.testing.assert_close(trained.state_dict()[name], weight, atol=2e-5, rtol=1e-4, msg=name)
    assert fingerprint(trained) != fingerprint(fresh)


def test_each_part_has_its_rate(tiny_config: Path, tmp_path: Path) -> None:
    rates = ("train.learning_rate=0.1", "train.output_rate=3", "train.vision_rate=0.01", "train.weight_decay=0.5")
    settings = config(tiny_config, tmp_path, *FULL, *rates, "train.vision=trained")
    learner = build(settings, torch.device("cpu"))
    groups = learner.groups(settings.train)
    members = {parameter: group for group in groups for parameter in group["params"]}
    learns = [parameter for parameter in learner.model.parameters() if parameter.requires_grad]
    assert len(members) == sum(len(group["params"]) for group in groups) == len(learns)
    generator, llm = learner.model.model.generator, learner.model.model.language_model
    expected = [
        (generator.project.weight, 0.1, 0.5),
        (generator.project.bias, 0.1, 0.0),
        (generator.positions, 0.1, 0.0),
        (next(iter(generator.b.values())), pytest.approx(0.3), 0.0),
        (llm.layers[0].self_attn.q_proj.weight, 0.003, 0.5),
        (llm.norm.weight, 0.003, 0.0),
        (next(iter(learner.vision.parameters())), 0.01, 0.5),
    ]
    for parameter, rate, decay in expected:
        assert (members[parameter]["lr"], members[parameter]["weight_decay"]) == (rate, decay)


def test_stage_two_begins_where_stage_one_ended(tiny_config: Path, tmp_path: Path) -> None:
    first = train(config(tiny_config, tmp_path, steps=2), run_dir=tmp_path / "one")
    settings = config(tiny_config, tmp_path, *FULL, f"model.checkpoint={first}", steps=2)
    learner = build(settings, torch.device("cpu"))
    for name, weight in load_weights(first).items():
        torch.testing.assert_close(learner.model.model.generator.state_dict()[name], weight, msg=name)
    second = train(settings, run_dir=tmp_path / "two")
    assert (second / "model.safetensors").is_file()  # all of it: the language model has learnt
    third = config(tiny_config, tmp_path, f"model.checkpoint={second}", "train.vision=trained", steps=2)
    assert isinstance(vlora.load(train(third, run_dir=tmp_path / "three")).ask(None, "Hm?", max_new_tokens=1), str)


def _hidden(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


def test_nothing_before_the_first_worn_layer_has_a_backward_pass(tiny_config: Path, tmp_path: Path) -> None:
    settings = config(tiny_config, tmp_path, "model.generator.layers=[1]", steps=1)
    learner = build(settings, torch.device("cpu"))
    grows: dict[int, bool] = {}
    for number, block in enumerate(learner.language_model.layers):  # type: ignore[arg-type]
        block.register_forward_hook(lambda _m, _a, out, n=number: grows.update({n: _hidden(out).requires_grad}))
    looks = looks_of(settings, learner)
    tasks = next(iter(MicroBatches(steps_of(settings, looks), first=0, last=1, world=World(1, 0, 1))))
    batch = learner.collator()([looks[task] for task in tasks])
    supervised = int((batch["labels"] != IGNORED).sum())
    batch.pop("seen")
    outputs = learner.model.train()(**batch, supervised_only=True, use_cache=False)
    assert grows == {0: False, 1: True}
    assert len(outputs.logits) == supervised < batch["input_ids"].numel()
    outputs.loss.backward()
    for name, parameter in learner.model.named_parameters():
        assert (parameter.grad is not None) == name.startswith("model.generator."), name
