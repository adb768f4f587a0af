"""`vlora inspect`: what a model is made of, and what an image does to it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError
from ._eyes import AsJson, Device, Model, load_eyes
from ._output import command, note, out, print_json, printable, say
from .ask import STDIN, read_image

if TYPE_CHECKING:
    from PIL import Image
    from rich.table import Table
    from torch import nn

    from ..api import Eyes
    from ..evaluate.deltas import Delta

# Of the generator, as its configuration names them.
_OPTIONS = (
    "queries",
    "head",
    "dictionary_size",
    "factors",
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
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="With an image: draw its ΔW, and where the perceptual queries looked, into this folder as PNG.",
        ),
    ] = None,
    model: Model = "nano",
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Show what a model is made of, and what an image does to it."""
    if plot is not None:
        _check_plot(plot, image)
    picture = None if image is None else read_image(image)
    eyes, _ = load_eyes(model, device)
    facts = describe(eyes, frozen_parts=has_frozen_parts(model))
    if picture is not None:
        deltas = measure_image(eyes, picture)
        facts |= {"image": image, "deltas": [_as_json(delta) for delta in deltas]}
        if plot is not None:
            about = f"{_short_name(image or '')} · {_short_name(model)}"
            facts["plots"] = [str(path) for path in draw(eyes, picture, deltas, plot, about)]
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
    options = [name for name in _OPTIONS if name != "dictionary_size" or config.head == "dictionary"]
    return {
        "model": eyes.name,
        "parts": {
            "vision": _part(model.vision_tower.config.model_type, [model.vision_tower], frozen=frozen_parts),
            "generator": _part(config.model_type, [generator], frozen=False),
            "language_model": _part(model.language_model.config.model_type, llm, frozen=frozen_parts),
        },
        "generator": {name: getattr(config, name) for name in options} | {"scale": layout.scale},
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


def measure_image(eyes: Eyes, picture: Image.Image) -> list[Delta]:
    """Size and rank of each ΔW of an image."""
    import torch

    from ..evaluate.deltas import measure

    with torch.inference_mode():
        weights = eyes.model.expand(eyes.perceive(picture))
    return measure(weights, eyes.model.model.language_model)


def draw(eyes: Eyes, picture: Image.Image, deltas: list[Delta], folder: Path, about: str) -> list[Path]:
    """Draw an image's ΔW, and where the perceptual queries looked; tell where the latter is not possible.

    Args:
        eyes: the model.
        picture: the image.
        deltas: what `measure_image` found.
        folder: for the files.
        about: which image and which model, as the figures say it.

    Returns:
        The files written.

    Raises:
        InputError: they cannot be written there.
    """
    import torch

    from ..evaluate import plots
    from ..evaluate.attention import cross_attention, find_grid, picture_seen

    processor, generator = eyes.processor.image_processor, eyes.model.model.generator
    pixels: torch.Tensor = processor([picture], return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        features: Any = eyes.model.get_image_features(pixels.to(eyes.model.device)).last_hidden_state
    figures = {"deltas.png": plots.draw_deltas(deltas, rank=generator.layout.rank, caption=about)}
    vision = eyes.model.config.vision_config
    grid = find_grid(vision, (pixels.shape[-2], pixels.shape[-1]), features.shape[1])
    if grid is None:
        note(
            f"Where the perceptual queries looked cannot be drawn: the {features.shape[1]} features of an encoder of "
            f"type {vision.model_type!r} form no grid that is known here."
        )
    else:
        last = cross_attention(generator, features, average_heads=True)[0, :, :, -1]
        depth, heads = generator.config.depth, generator.config.heads
        figures["attention.png"] = plots.draw_attention(
            picture_seen(pixels[0], processor),
            grid.place(last).cpu().numpy(),
            grid,
            targets=generator.targets,
            layers=generator.layers,
            caption=f"{about} · cross-attention of block {depth} of {depth}, mean of {heads} heads",
        )
    return plots.write(figures, folder)


def _check_plot(folder: Path, image: str | None) -> None:
    from ..figures import check_folder

    if image is None:
        raise InputError("--plot draws what an image does to the model, and there is none: name an IMAGE as well.")
    check_folder(folder)


def _short_name(path: str) -> str:
    """The last part of a path, short enough for a caption."""
    name = printable("stdin" if path == STDIN else Path(path).name or path)
    return name if len(name) <= 40 else f"{name[:39]}…"


def _as_json(delta: Delta) -> dict[str, Any]:
    """NaN and infinity, which damaged weights give, are no JSON."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in delta.to_dict().items()
    }


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
    for path in facts.get("plots", ()):
        say(f"written    {path}")


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
