"""`vlora demo`: questions about the images of this repository."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ._eyes import Answer, AsJson, Device, Model, load_eyes, timed_answer
from ._output import command, out, print_json, printable

if TYPE_CHECKING:
    from rich.table import Table

LIST = Path("examples", "demo.json")
MAX_NEW_TOKENS = 16


@dataclass(frozen=True)
class Example:
    """A question about an image of the repository, and its right answer."""

    image: Path
    question: str
    expected: str


@command
def demo(model: Model = "nano", device: Device = None, as_json: AsJson = False) -> None:
    """Answer questions about the images of this repository."""
    from ..data.images import open_image

    examples = read_examples(find_list())
    pictures = [open_image(example.image) for example in examples]
    eyes, load_ms = load_eyes(model, device)
    answers = [
        timed_answer(eyes, [picture], example.question, MAX_NEW_TOKENS)
        for picture, example in zip(pictures, examples, strict=True)
    ]
    if as_json:
        rows = [_row(example, answer) for example, answer in zip(examples, answers, strict=True)]
        print_json({"model": model, "timings_ms": {"load": load_ms}, "answers": rows})
    else:
        out().print(_table(examples, answers))


def find_list() -> Path:
    """Find the list of examples, above the working folder or above this package.

    Raises:
        InputError: it is nowhere.
    """
    for start in (Path.cwd() / "here", Path(__file__)):
        for folder in start.parents:
            if (folder / LIST).is_file():
                return folder / LIST
    raise InputError(
        f"The demo needs {LIST.as_posix()} of the VLoRA repository, which is neither here nor beside the package: "
        "run it in a clone, or ask about an image of your own with `vlora ask IMAGE QUESTION`."
    )


def read_examples(path: Path) -> list[Example]:
    """Read a list of examples; image names are relative to the folder `images` beside it.

    Raises:
        InputError: not such a list.
    """
    try:
        entries: list[dict[str, str]] = json.loads(path.read_text(encoding="utf-8"))
        examples = [
            Example(path.parent / "images" / Path(e["image"]).name, e["question"], e["expected"]) for e in entries
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is not a list of objects with image, question and expected: get it from the repository again."
        ) from error
    if not examples:
        raise InputError(f"{path} lists no question: get it from the repository again.")
    return examples


def _row(example: Example, answer: Answer) -> dict[str, Any]:
    return {
        "image": example.image.name,
        "question": example.question,
        "expected": example.expected,
        "answer": answer.text,
        "visual_tokens": 0,
        "text_tokens": answer.text_tokens,
        "visual_parameters_bytes": answer.visual_parameters_bytes,
        "timings_ms": {"encode": answer.encode_ms, "answer": answer.answer_ms},
    }


def _table(examples: list[Example], answers: list[Answer]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("image", "question", "answer"):
        table.add_column(heading)
    for heading in ("visual tokens", "visual parameters (KiB)", "ms (encode + answer)"):
        table.add_column(heading, justify="right")
    for cells in _cells(examples, answers):
        table.add_row(*cells)
    return table


def _cells(examples: list[Example], answers: list[Answer]) -> Iterator[list[Any]]:
    from rich.text import Text

    for example, answer in zip(examples, answers, strict=True):
        right = answer.text.strip().lower().removesuffix(".") == example.expected.strip().lower()
        shown = printable(answer.text) if right else f"{printable(answer.text)} (expected {example.expected})"
        yield [
            Text(example.image.name),
            Text(example.question),
            Text(shown, style="green" if right else "yellow"),
            "0",
            f"{answer.visual_parameters_bytes / 1024:.0f}",
            f"{answer.encode_ms:.0f} + {answer.answer_ms:.0f}",
        ]
