"""(k) A tiny model learns a handful of image-answer pairs, and loses them when the images are shuffled: it looks."""

from __future__ import annotations

import torch

from tests.helpers import images, tiny_model, token_ids

IMAGES, STEPS = 6, 150


def test_it_looks() -> None:
    model = tiny_model(targets=("q", "v", "mlp"), noise=0)
    pixels = images(IMAGES)
    question = token_ids(1, 4).expand(IMAGES, -1)
    answers = torch.arange(10, 10 + 2 * IMAGES).view(IMAGES, 2)
    ids = torch.cat([question, answers], dim=1)
    labels = ids.clone()
    labels[:, :4] = -100

    model.requires_grad_(False)
    model.model.generator.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.model.generator.parameters(), lr=3e-3, weight_decay=0.0)
    losses: list[float] = []
    for _ in range(STEPS):
        loss = model(input_ids=ids, pixel_values=pixels, labels=labels, supervised_only=True, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    def correct(seen: torch.Tensor | None) -> float:
        written = model.generate(question, pixel_values=seen, max_new_tokens=2, do_sample=False)[:, 4:]
        return (written == answers).all(1).float().mean().item()

    print(f"loss {losses[0]:.2f} -> {losses[-1]:.4f}")
    assert correct(pixels) == 1
    assert correct(pixels.roll(1, 0)) == 0
    assert correct(pixels[torch.randperm(IMAGES, generator=torch.Generator().manual_seed(0))]) < 0.5
    assert correct(None) <= 1 / IMAGES
