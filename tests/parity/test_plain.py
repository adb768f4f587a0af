"""(a) With B = 0 a model that wears an image is the plain language model; (g) a wearer comes off without a trace."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.helpers import KINDS, add_noise, images, padded, plain_llm, shared_model, tiny_llm, tiny_model, token_ids
from vlora.model.inject import SUPPORTED, Wearer


@pytest.mark.parametrize("family", SUPPORTED)
@torch.no_grad()
def test_a_fresh_model_is_the_plain_one_to_the_last_bit(family: str) -> None:
    model = tiny_model(family, noise=0, targets=("q", "v", "mlp"))
    ids, pixels = token_ids(3, 9), images(3)
    expected = plain_llm(model)(input_ids=ids).logits

    assert torch.equal(model(input_ids=ids, pixel_values=pixels).logits, expected)
    assert torch.equal(model(input_ids=ids).logits, expected)

    add_noise(model, 0.1)  # the test above would see it if weights were there
    assert not torch.allclose(model(input_ids=ids, pixel_values=pixels).logits, expected, atol=0.1)
    assert torch.equal(model(input_ids=ids).logits, expected)


@pytest.mark.parametrize("options", [*KINDS[1:], {"norms": True}, {"targets": ("mlp",)}], ids=str)
@torch.no_grad()
def test_so_is_a_fresh_model_of_every_kind(options: dict[str, object]) -> None:
    model = tiny_model(noise=0, **options)
    ids = token_ids(2, 9)
    assert torch.equal(model(input_ids=ids, pixel_values=images(2)).logits, plain_llm(model)(input_ids=ids).logits)


@torch.no_grad()
def test_a_fresh_model_writes_what_the_plain_one_writes() -> None:
    model = tiny_model(noise=0)
    batch = padded([token_ids(1, length)[0] for length in (4, 9)], "left")
    batch.pop("position_ids")
    options = {"max_new_tokens": 6, "do_sample": False}
    seen = model.generate(**batch, pixel_values=images(2), **options)
    assert torch.equal(seen, plain_llm(model).generate(**batch, **options))


@pytest.mark.parametrize("family", SUPPORTED)
@torch.no_grad()
def test_wrapping_leaves_no_trace(family: str) -> None:
    llm = tiny_llm(family)
    before, state, hooks = copy.deepcopy(llm), copy.deepcopy(llm.state_dict()), _hooks(llm)
    ids = token_ids(2, 9)

    wearer = Wearer(llm.model)
    assert _hooks(llm) != hooks
    assert list(llm.state_dict()) == list(state)
    assert torch.equal(llm(input_ids=ids).logits, before(input_ids=ids).logits)

    wearer.remove()
    assert _hooks(llm) == hooks
    assert list(llm.state_dict()) == list(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in llm.state_dict().items())
    assert [type(module) for module in llm.modules()] == [type(module) for module in before.modules()]
    assert all("forward" not in vars(module) for module in llm.modules())
    assert torch.equal(llm(input_ids=ids).logits, before(input_ids=ids).logits)


@torch.no_grad()
def test_nothing_stays_after_a_call() -> None:
    model = shared_model()
    ids = token_ids(2, 9)
    bare = model(input_ids=ids).logits
    model(input_ids=ids, pixel_values=images(2))
    assert not any(hooks.worn for hooks in _blocks(model))
    assert torch.equal(model(input_ids=ids).logits, bare)


@torch.no_grad()
def test_nothing_stays_after_a_call_that_failed() -> None:
    model = tiny_model()
    ids = token_ids(2, 9)
    bare = model(input_ids=ids).logits

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    handle = model.model.language_model.layers[1].mlp.up_proj.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        model(input_ids=ids, pixel_values=images(2))
    handle.remove()
    assert torch.equal(model(input_ids=ids).logits, bare)


def _blocks(model: nn.Module) -> list[object]:
    """What the hooks of each decoder block are bound to."""
    blocks = model.model.language_model.layers
    return [hook.__self__ for block in blocks for hook in block.self_attn._forward_pre_hooks.values()]


def _hooks(model: nn.Module) -> list[tuple[str, str, int]]:
    """Every hook table of every module, with how much is in it."""
    return [
        (name, table, len(entries))
        for name, module in model.named_modules()
        for table, entries in vars(module).items()
        if "hooks" in table and isinstance(entries, dict)
    ]
