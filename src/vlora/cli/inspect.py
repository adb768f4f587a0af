"""`vlora inspect`: what a model is made of, and what an image does to it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._eyes import AsJson, Device, Model, load_eyes
from ._output import command, out, print_json, say
from .ask import read_image

if TYPE_CHECKING:
    from PIL import Image
    from rich.table import Table
    from torch import nn

    from ..api import Eyes

# What every configuration of transformers carries, and no generator has.
_OPTIONS = (
    "queries",
    "rank",
    "static_rank",
    "alpha",
    "dim",
    "depth",
    "heads",
    "mlp_ratio",
    "norms",
)


@command
def inspect(
    image: Annotated[
        str | None, typer.Argument(help="With an image: size and rank of each ΔW; - reads it from stdin.")
    ] = None,
    model: Model = "nano",
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Show what a model is made of, and what an image does to it."""
    picture = None if image is None else read_image(image)
    eyes, _ = load_eyes(model, device)
    facts = describe(eyes, frozen_parts=has_frozen_parts(model))
    if picture is not None:
        facts |= {"image": image, "deltas": measure_image(eyes, picture)}
    if as_json:
        print_json(facts)
    else:
        _show(facts)


def has_frozen_parts(model: str) -> bool:
    """Whether a model is a generator-only checkpoint, of which the other parts were never trained."""
    from ..model.assemble import PARTS_FILE

    return model == "nano" or (Path(model) / PARTS_FILE).is_file()


def describe(eyes: Eyes, *, frozen_parts: bool) -> dict[str, Any]:
    """What a model is made of.

    Args:
        eyes: the model.
        frozen_parts: its language model and vision encoder were not trained.
    """
    model: Any = eyes.model.model  # torch types a submodule as `Tensor | Module`
    generator = eyes.model.model.generator
    layout, config = generator.layout, generator.config
    places = [p for p in layout.places if p.layer == generator.layers[0]]
    item = generator.positions.element_size()
    llm: list[Any] = [model.language_model, eyes.model.lm_head]
    return {
        "model": eyes.name,
        "parts": {
            "vision": _part(model.vision_tower.config.model_type, [model.vision_tower], frozen=frozen_parts),
            "generator": _part(config.model_type, [generator], frozen=False),
            "language_model": _part(model.language_model.config.model_type, llm, frozen=frozen_parts),
        },
        "generator": {name: getattr(config, name) for name in _OPTIONS} | {"scale": layout.scale},
        "targets": [
            {"target": p.target, "in_dim": p.in_dim, "out_dim": p.out_dim, "mergeable": p.target != "mlp"}
            for p in places
        ],
        "layers": list(generator.layers),
        "layers_of_language_model": int(model.language_model.config.num_hidden_layers),
        "features": {"patches": generator.patches, "vision_dim": generator.vision_dim},
        "visual_tokens": 0,
        "visual_parameters_bytes": len(generator.targets) * len(generator.layers) * config.dim * item,
        "perceptual_weights_bytes": layout.numel * item,
    }


def measure_image(eyes: Eyes, picture: Image.Image) -> list[dict[str, Any]]:
    """Size and rank of each ΔW of an image."""
    import torch

    from ..evaluate.deltas import measure

    with torch.inference_mode():
        weights = eyes.model.expand(eyes.perceive(picture))
    deltas = measure(weights, eyes.model.model.language_model)
    return [
        # NaN and infinity, which damaged weights give, are no JSON.
        {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}
        for row in (delta.to_dict() for delta in deltas)
    ]


def _part(kind: str, modules: Iterable[nn.Module], *, frozen: bool) -> dict[str, Any]:
    """Type, size and precision of a part; what modules share is counted once."""
    parameters = list({id(p): p for module in modules for p in module.parameters()}.values())
    return {
        "type": kind,
        "parameters": sum(p.numel() for p in parameters),
        "trainable": not frozen and any(p.requires_grad for p in parameters),
        "dtype": ", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in parameters})),
    }


def _show(facts: dict[str, Any]) -> None:
    out().print(_parts_table(facts["parts"]))
    say("generator  " + "  ".join(f"{name} {value}" for name, value in facts["generator"].items()))
    targets = (f"{t['target']} {t['in_dim']}x{t['out_dim']}{'' if t['mergeable'] else '*'}" for t in facts["targets"])
    say("targets    " + "  ".join(targets))
    if not all(t["mergeable"] for t in facts["targets"]):
        say("           * a bypass, which can be neither merged nor exported")
    say(f"layers     {' '.join(map(str, facts['layers']))}  (of 0 to {facts['layers_of_language_model'] - 1})")
    compact, expanded = facts["visual_parameters_bytes"] / 1024, facts["perceptual_weights_bytes"] / 1024
    say(f"an image   {compact:.0f} KiB of visual parameters, {expanded:.0f} KiB of perceptual weights, 0 visual tokens")
    if "deltas" in facts:
        out().print(_deltas_table(facts["deltas"]))


def _parts_table(parts: dict[str, dict[str, Any]]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("part", "type"):
        table.add_column(heading)
    table.add_column("parameters", justify="right")
    table.add_column("")
    table.add_column("precision")
    for name, part in parts.items():
        state = "trainable" if part["trainable"] else "frozen"
        table.add_row(name.replace("_", " "), part["type"], f"{part['parameters']:,}", state, part["dtype"])
    return table


def _deltas_table(deltas: list[dict[str, Any]]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("layer", "target", "norm of ΔW", "over base", "stable rank", "effective rank"):
        table.add_column(heading, justify="left" if heading == "target" else "right")
    for row in deltas:
        table.add_row(
            str(row["layer"]),
            row["target"],
            _number(row["norm"], "{:.4f}"),
            _number(row["relative_norm"], "{:.2%}"),
            _number(row["stable_rank"], "{:.2f}"),
            _number(row["effective_rank"], "{:.2f}"),
        )
    return table


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
