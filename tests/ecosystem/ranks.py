"""One of several processes of `torchrun`, as `test_ddp.py` starts them: gradients of its rows, averaged over all."""

from __future__ import annotations

import faulthandler
import sys
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForImageTextToText, AutoProcessor

import vlora  # registers the models with the Auto classes
from tests.ecosystem.people import chat, prepare
from tests.helpers import checkpoint_gradients

assert vlora.__version__
# The rows of the first process have images, those of the second have none; then the other way round.
ROWS = [
    [chat("what is this", 1, answer="a thing"), chat("is it", 2, 3, answer="this")],
    [chat("what colour", answer="what"), chat("what", answer="is this a thing")],
]
FORMS = {"none": None, "plain": False, "reentrant": True}


def learner(folder: str, form: str) -> Any:
    """A model of which only the generator learns, with a form of gradient checkpointing."""
    model = AutoModelForImageTextToText.from_pretrained(folder).train()
    model.requires_grad_(False)
    model.model.generator.requires_grad_(True)
    reentrant = FORMS[form]
    if reentrant is not None:
        checkpoint_gradients(model, reentrant=reentrant)
    return model


def batch_of(folder: str, rows: list[Any]) -> dict[str, Tensor]:
    """Rows with labels; the loss is a mean per row, so that rows of any length count the same."""
    batch = dict(prepare(AutoProcessor.from_pretrained(folder), rows, generate=False))
    return batch | {"labels": batch["input_ids"].where(batch["attention_mask"].bool(), -100)}


def gradients(model: Any) -> dict[str, Tensor]:
    """Of everything that learns."""
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.requires_grad}


def main(folder: str) -> None:
    """Two steps for each form, without a search for unused parameters."""
    faulthandler.dump_traceback_later(120, exit=True)  # a process that waits for another for ever says where
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    for form in FORMS:
        parallel = DistributedDataParallel(learner(folder, form), find_unused_parameters=False)
        for step in range(2):
            parallel.zero_grad()
            batch = batch_of(folder, ROWS[(rank + step) % 2])
            parallel(**batch, supervised_only=True, use_cache=False).loss.backward()
            if rank == 0:
                save_file(gradients(parallel.module), f"{folder}/{form}-{step}")
        del parallel  # while its group is there: torch can deadlock when it outlives it
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
