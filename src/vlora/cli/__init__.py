"""The command line, one file per command.

| command | what it does |
|---|---|
| `ask` | answers a question about an image, or about the images of an album |
| `encode` | looks at many images once, and keeps what was seen in an album |
| `album` | says what is in an album, checks, exports, joins and prunes it |
| `demo` | answers questions about the images of this repository |
| `train` | trains a generator from a config file |
| `plot` | the losses of training runs against steps, samples and seconds |
| `evaluate` | accuracy on a task, with 95 % intervals and controls |
| `inspect` | what a model is made of, and the size and rank of each ΔW of an image |
| `cost` | FLOPs, parameters and bytes by formula, against the same model with visual tokens |
| `data` | looks at training data, makes shards of them, and fetches the pictures of nano |
| `export` | writes an image as a LoRA adapter for peft, vLLM, SGLang or llama.cpp |
| `convert` | makes a checkpoint of the VLoRA authors one of ours |
| `doctor` | what is installed, what is missing, and how to get it |

A user's mistake is one sentence on stderr and exit code 2. What takes long to import is imported inside the
commands, so that `vlora --help` answers at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from .. import __version__
from ._output import set_debug
from .album import album
from .ask import ask
from .convert import convert
from .cost import cost
from .data import data
from .demo import demo
from .doctor import doctor
from .encode import encode
from .evaluate import evaluate
from .export import export
from .inspect import inspect
from .plot import plot
from .train import train

__all__ = ["app", "main"]

app = typer.Typer(
    name="vlora",
    help="A language model that sees an image through its weights, without a single visual token.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vlora {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", envvar="VLORA_DEBUG", help="Show tracebacks, and what the libraries say.")
    ] = False,
) -> None:
    """Take the options that stand before a command."""
    set_debug(debug)


for command in (ask, demo, train, plot, evaluate, inspect, cost, export, encode, doctor):
    app.command()(command)
app.add_typer(album, name="album")
app.add_typer(convert, name="convert")
app.add_typer(data, name="data")


def main() -> None:
    """Run the command line."""
    app()
