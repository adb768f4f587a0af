"""(j) Threads that use one model at the same time never mix their images."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers import images, shared_model, token_ids

THREADS, ROUNDS = 4, 12


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads take turns every 10 microseconds."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def _forward(pixels: Tensor | None) -> Tensor:
    return shared_model()(input_ids=token_ids(2, 7), pixel_values=pixels).logits


def _generate(pixels: Tensor | None) -> Tensor:
    options: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "output_logits": True}
    out = shared_model().generate(token_ids(1, 5), pixel_values=pixels, return_dict_in_generate=True, **options)
    return torch.stack(out.logits)


@pytest.mark.usefixtures("restless")
def test_each_thread_sees_its_own_image() -> None:
    looks = [None, *images(THREADS - 1).split(1)]
    with torch.no_grad():
        alone = [[work(pixels) for work in (_forward, _generate)] for pixels in looks]
    assert all(not torch.allclose(alone[0][0], other[0], atol=0.1) for other in alone[1:])

    start, failures = threading.Barrier(THREADS), list[BaseException]()

    def hammer(number: int) -> None:
        try:
            start.wait()
            with torch.no_grad():
                for turn in range(ROUNDS):
                    work, expected = ((_forward, _generate)[turn % 2], alone[number][turn % 2])
                    torch.testing.assert_close(work(looks[number]), expected, rtol=1e-5, atol=1e-5)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=hammer, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]
    blocks = shared_model().model.language_model.layers
    assert not any(hook.__self__.worn for block in blocks for hook in block.self_attn._forward_pre_hooks.values())
