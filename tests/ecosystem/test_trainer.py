"""transformers' `Trainer` and TRL's `SFTTrainer`, with and without gradient checkpointing of either kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor, Trainer, TrainingArguments

from tests.ecosystem.people import chat, prepare
from tests.helpers import picture

pytestmark = [
    # Frozen parts under re-entrant checkpoints, and names that later versions prefer.
    pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
CHECKPOINTING = [None, False, True]  # none, and the two values of use_reentrant
# Batches of two: with one picture and with two, then without any, which leaves the generator nothing to learn from.
ROWS = [chat("what is this", 1, answer="a thing"), chat("is it", 2, 3, answer="this")]
ROWS += [chat("what colour", answer="what"), chat("what", answer="is this a thing")]
ROWS += [chat("is this", answer="the"), chat("what is this", 4, answer="colour")]


class _Collate:
    """Chats -> a padded batch with labels."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        batch = prepare(self.processor, [row["chat"] for row in rows], generate=False)
        return dict(batch) | {"labels": batch["input_ids"].where(batch["attention_mask"].bool(), -100)}


def _learner(folder: Path) -> Any:
    """A model of which only the generator learns."""
    model = AutoModelForImageTextToText.from_pretrained(folder)
    model.requires_grad_(False)
    model.model.generator.requires_grad_(True)
    return model


def _options(out: Path, reentrant: bool | None) -> dict[str, Any]:
    return {
        "output_dir": str(out),
        "per_device_train_batch_size": 2,
        "max_steps": 3,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "train_sampling_strategy": "sequential",
        "gradient_checkpointing": reentrant is not None,
        "gradient_checkpointing_kwargs": None if reentrant is None else {"use_reentrant": reentrant},
        "remove_unused_columns": False,
    }


def _changed(model: Any, folder: Path) -> dict[str, Tensor]:
    """Parameters that differ from those of the folder."""
    before = AutoModelForImageTextToText.from_pretrained(folder).state_dict()
    return {name: tensor for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


def _check_learned(model: Any, folder: Path, history: list[dict[str, Any]]) -> dict[str, Tensor]:
    losses = torch.tensor([entry["loss"] for entry in history if "loss" in entry])
    assert len(losses) == 3
    assert losses.isfinite().all()
    changed = _changed(model, folder)
    assert all(name.startswith("model.generator.") for name in changed)
    assert any(name.startswith("model.generator.b.") for name in changed)
    assert any(name.startswith("model.generator.trunks.") for name in changed)
    return changed


def test_trainer_learns_the_same_with_and_without_checkpointing(folder: Path, processor: Any, tmp_path: Path) -> None:
    learned: list[dict[str, Tensor]] = []
    for reentrant in CHECKPOINTING:
        model = _learner(folder)
        trainer = Trainer(
            model=model,
            args=TrainingArguments(**_options(tmp_path, reentrant)),
            train_dataset=[{"chat": row} for row in ROWS],
            data_collator=_Collate(processor),
        )
        trainer.train()
        learned.append(_check_learned(model, folder, trainer.state.log_history))
    for other in learned[1:]:
        assert other.keys() == learned[0].keys()
        for name, tensor in learned[0].items():
            torch.testing.assert_close(other[name], tensor, rtol=1e-3, atol=1e-4)


def test_a_batch_without_pictures_trains_a_frozen_model_without_complaint(folder: Path, processor: Any) -> None:
    """It teaches nothing, and must not stop a run."""
    model = _learner(folder).train()
    batch = _Collate(processor)([{"chat": ROWS[2]}, {"chat": ROWS[3]}])
    assert "pixel_values" not in batch
    model(**batch).loss.backward()
    gradients = [parameter.grad for parameter in model.model.generator.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, model.eval()(**batch).logits)


# ---- TRL --------------------------------------------------------------------------------------------


def _dataset(structured: bool) -> Any:
    """`messages` and `images`: one picture, none, two; contents as strings, or as lists that place the pictures."""
    datasets = pytest.importorskip("datasets")
    rows = [("what is this", (1,), "a thing"), ("is this", (), "the"), ("which", (2, 3), "this")]
    rows = [*rows, ("what colour", (4,), "what"), ("what", (), "is this"), ("is it", (), "a")]

    def content(text: str, pictures: int) -> Any:
        parts = [{"type": "image", "text": None}] * pictures + [{"type": "text", "text": text}]
        return parts if structured else text

    return datasets.Dataset.from_list(
        [
            {
                "messages": [
                    {"role": "user", "content": content(text, len(seeds))},
                    {"role": "assistant", "content": content(answer, 0)},
                ],
                "images": [picture(seed) for seed in seeds],
            }
            for text, seeds, answer in rows
        ]
    ).cast_column("images", datasets.List(datasets.Image()))


@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize("reentrant", CHECKPOINTING)
def test_sft_trainer(folder: Path, tmp_path: Path, reentrant: bool | None, structured: bool) -> None:
    trl = pytest.importorskip("trl")
    model = _learner(folder)
    options = _options(tmp_path, reentrant) | {"max_length": None}
    trainer = trl.SFTTrainer(
        model=model,
        args=trl.SFTConfig(**options),
        train_dataset=_dataset(structured),
        processing_class=AutoProcessor.from_pretrained(folder),
    )
    trainer.train()
    _check_learned(model, folder, trainer.state.log_history)


def test_what_trl_makes_of_the_rows(folder: Path) -> None:
    """Its texts are padded on the right; each row has the logits that it has alone."""
    pytest.importorskip("trl")
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    batch = DataCollatorForVisionLanguageModeling(processor)(list(_dataset(structured=False))[:3])
    assert batch["image_index"].tolist() == [[0, -1], [-1, -1], [1, 2]]
    rows = [
        chat("what is this", 1, answer="a thing"),
        chat("is this", answer="the"),
        chat("which", 2, 3, answer="this"),
    ]
    with torch.no_grad():
        logits = model(**{name: batch[name] for name in batch if name != "labels"}).logits
        for row, one in enumerate(rows):
            alone = prepare(processor, [one], generate=False)
            length = alone["input_ids"].shape[1]
            assert torch.equal(batch["input_ids"][row, :length], alone["input_ids"][0])
            assert batch["attention_mask"][row].sum() == length
            torch.testing.assert_close(logits[row, :length], model(**alone).logits[0], rtol=1e-4, atol=1e-4)
