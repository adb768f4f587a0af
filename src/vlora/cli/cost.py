"""`vlora cost`: what an image takes, seen through weights and as visual tokens, by formula."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..errors import InputError
from ._eyes import AsJson
from ._output import command, out, print_json, say

if TYPE_CHECKING:
    from rich.table import Table

    from ..cost import Bill
    from ..cost.bill import Advantage

_GENERATOR = "The generator, where it differs from the checkpoint's, or from the authors'"


@command
def cost(
    llm: Annotated[
        str | None,
        typer.Option(help="A known model (vicuna-7b ...), a config.json, or a folder with one; default vicuna-7b."),
    ] = None,
    vision: Annotated[str | None, typer.Option(help="The same; default clip-vit-l-14-336.")] = None,
    model: Annotated[
        str | None, typer.Option(help="nano, or a folder with a VLoRA checkpoint, for all parts not given.")
    ] = None,
    text_tokens: Annotated[int, typer.Option(help="Of one question.")] = 32,
    answer_tokens: Annotated[int, typer.Option(help="Of one answer.")] = 32,
    questions: Annotated[int, typer.Option(help="About one image.")] = 1,
    visual_tokens: Annotated[
        int | None, typer.Option(help="Of the model compared with; default: one for each feature of the encoder.")
    ] = None,
    logits: Annotated[
        Literal["all", "needed"],
        typer.Option(
            help="Where they are computed: at every position, or only where generating and training need them."
        ),
    ] = "all",
    dtype: Annotated[Literal["bfloat16", "float16", "float32"], typer.Option(help="Of the bytes.")] = "bfloat16",
    targets: Annotated[
        str | None, typer.Option(help="Such as q,k,v,o,mlp.", rich_help_panel=_GENERATOR, metavar="LIST")
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="Such as 3,7,11.", rich_help_panel=_GENERATOR, metavar="LIST")
    ] = None,
    layer_step: Annotated[
        int | None, typer.Option(help="Every so many layers wear weights.", rich_help_panel=_GENERATOR)
    ] = None,
    rank: Annotated[int | None, typer.Option(help="Of each ΔW.", rich_help_panel=_GENERATOR)] = None,
    static_rank: Annotated[
        int | None, typer.Option(help="Of a learned pair beside it.", rich_help_panel=_GENERATOR)
    ] = None,
    dim: Annotated[int | None, typer.Option(help="Width of the trunk.", rich_help_panel=_GENERATOR)] = None,
    depth: Annotated[int | None, typer.Option(help="Blocks of the trunk.", rich_help_panel=_GENERATOR)] = None,
    heads: Annotated[int | None, typer.Option(help="Must divide dim.", rich_help_panel=_GENERATOR)] = None,
    mlp_ratio: Annotated[float | None, typer.Option(help="Of the trunk's MLP.", rich_help_panel=_GENERATOR)] = None,
    queries: Annotated[
        Literal["separate", "joint"] | None,
        typer.Option(help="A trunk for each target, or one for all.", rich_help_panel=_GENERATOR),
    ] = None,
    head: Annotated[
        Literal["linear", "dictionary"] | None,
        typer.Option(help="How a code becomes a factor.", rich_help_panel=_GENERATOR),
    ] = None,
    dictionary_size: Annotated[
        int | None, typer.Option(help="Atoms of a dictionary.", rich_help_panel=_GENERATOR)
    ] = None,
    factors: Annotated[
        Literal["a", "b", "ab"] | None, typer.Option(help="What the image generates.", rich_help_panel=_GENERATOR)
    ] = None,
    norms: Annotated[
        bool | None, typer.Option("--norms/--no-norms", help="Normed features, scales.", rich_help_panel=_GENERATOR)
    ] = None,
    figure: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE.png", help="Draw FLOPs against visual tokens.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Count what an image takes, against the same model with visual tokens; no weight is loaded."""
    options: dict[str, Any] = {
        "targets": None if targets is None else tuple(_split(targets)),
        "layers": None if layers is None else _numbers(layers),
        "layer_step": layer_step,
        "rank": rank,
        "static_rank": static_rank,
        "dim": dim,
        "depth": depth,
        "heads": heads,
        "mlp_ratio": mlp_ratio,
        "queries": queries,
        "head": head,
        "dictionary_size": dictionary_size,
        "factors": factors,
        "norms": norms,
    }
    from ..cost import cost as count
    from ..cost.plot import plot
    from ..figures import check_file

    if figure is not None:
        check_file(figure)
    bill = count(
        llm,
        vision,
        model=model,
        options={name: value for name, value in options.items() if value is not None},
        text_tokens=text_tokens,
        answer_tokens=answer_tokens,
        questions=questions,
        visual_tokens=visual_tokens,
        logits=logits,
        dtype=dtype,
    )
    if figure is not None:
        plot(bill, figure)
    if as_json:
        print_json(bill.to_dict() | ({} if figure is None else {"plot": str(figure)}))
    else:
        _show(bill)
        if figure is not None:
            say(f"figure       {figure}")


def _split(text: str) -> list[str]:
    return text.replace(",", " ").split()


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in _split(text))
    except ValueError as error:
        raise InputError(f"--layers {text!r} is no list of numbers: give some such as 3,7,11.") from error


def _show(bill: Bill) -> None:
    inputs, ratios, parameters, training = bill.inputs, bill.ratios, bill.parameters, bill.training
    views = bill.shapes.views
    often = f", {views} times at an image," if views > 1 else ","
    say(f"{inputs.llm} looks through {inputs.vision}{often} and wears {_worn(bill)}")
    out().print(_work_table(bill))
    say(
        f"first token  {ratios.first_token:.1%} of the FLOPs of the visual-token model; "
        f"{ratios.language_side:.1%} if the encoder, which both need, is left out"
    )
    say(f"questions    {_questions(bill.advantage, 'a visual-token model that reads the image for each of them')}")
    say(f"             {_questions(bill.advantage_cached, 'one that keeps the image in its cache')}")
    say(
        f"training     a step on the image and {_counted(inputs.questions, 'question')}: "
        f"{_giga(training.vlora_stage1.total)} GFLOPs with the language model frozen "
        f"({ratios.training_stage1:.1%} of the visual-token model), "
        f"{_giga(training.vlora_stage2.total)} with it trained ({ratios.training_stage2:.1%})"
    )
    say(
        f"parameters   {_millions(parameters.vlora)}: encoder {_millions(parameters.encoder)}, generator "
        f"{_millions(parameters.generator)}, language model {_millions(parameters.language_model)} "
        f"(a projector: {_millions(parameters.projector)})"
    )
    out().print(_state_table(bill))
    if window := _overrun(bill):
        say(
            f"note         this language model has layers with a sliding window of {window} positions; they are "
            "counted as if they had none, so the visual-token model may take less than is said here"
        )
    say("FLOPs are not time: see docs/cost.md for what is counted.")


def _worn(bill: Bill) -> str:
    generator, layers = bill.shapes.generator, bill.shapes.language_model.layers
    return (
        f"rank {generator.worn_rank} at {' '.join(generator.targets)} in {len(generator.worn_layers)} of its {layers} "
        "layers"
    )


def _work_table(bill: Bill) -> Table:
    from rich import box
    from rich.table import Table

    inputs, models = bill.inputs, (bill.vlora, bill.visual_tokens, bill.visual_tokens_cached)
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("GFLOPs")
    for heading in ("VLoRA", f"{inputs.visual_tokens:,} visual tokens", "the same, image cached"):
        table.add_column(heading, justify="right")

    def row(label: str, name: str, *, style: str | None = None, section: bool = False) -> None:
        cells = [_giga(getattr(one, name)) for one in models]
        table.add_row(label, *cells, style=style, end_section=section)

    row("once: vision encoder", "encoder")
    row("      generator, or projector", "bridge")
    row("      visual tokens into the cache", "prefix")
    row(f"a question: prefill, {_counted(inputs.text_tokens, 'text token')}", "prefill")
    row(f"            answer, {_counted(inputs.answer_tokens, 'token')}", "answer")
    row("            (a decoding step of it)", "decode", style="dim", section=True)
    row(f"image and {_counted(inputs.questions, 'question')}", "total", style="bold")
    table.add_row("VLoRA over this", *(f"{bill.vlora.total / one.total:.1%}" for one in models))
    return table


def _state_table(bill: Bill) -> Table:
    from rich import box
    from rich.table import Table

    state, inputs = bill.state_bytes, bill.inputs
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column(f"to keep one image, {inputs.dtype}")
    table.add_column("bytes", justify="right")
    table.add_column("", justify="right")
    for label, size in (
        ("visual parameters", state.visual_parameters),
        ("features", state.features),
        ("perceptual weights", state.perceptual_weights),
        (f"keys and values of {_counted(inputs.visual_tokens, 'visual token')}", state.kv_cache),
    ):
        table.add_row(label, f"{size:,}", _binary(size))
    return table


def _questions(advantage: Advantage | None, other: str) -> str:
    less = f"VLoRA computes less than {other}"
    if advantage is None:
        return f"for no number of questions about an image does VLoRA compute less than {other}"
    if advantage.last is not None:
        return f"up to {_counted(advantage.last, 'question')} about an image, and no more, {less}"
    if advantage.first > 1:
        return f"from {advantage.first:,} questions about an image on, {less}"
    return f"for any number of questions about an image, {less}"


def _overrun(bill: Bill) -> int:
    """The sliding window, if the visual-token model would feel it."""
    inputs, window = bill.inputs, bill.shapes.language_model.window
    context = inputs.visual_tokens + inputs.text_tokens + inputs.answer_tokens
    return window if context > window else 0


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _giga(flops: int) -> str:
    value = flops / 1e9
    if not flops:
        return "-"
    for least, form in ((100, ",.0f"), (10, ".1f"), (1, ".2f")):
        if value >= least:
            return format(value, form)
    return f"{value:.3g}"


def _millions(number: int) -> str:
    return f"{number / 1e6:,.1f} M"


def _binary(size: int) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= scale:
            return f"{size / scale:.4g} {unit}"
    return f"{size} B"
