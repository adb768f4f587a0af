"""What every command shares: consoles, JSON, errors of one sentence, and silence of the libraries."""

from __future__ import annotations

import functools
import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NoReturn, ParamSpec

import typer
from rich.console import Console
from rich.text import Text

from ..errors import VLoRAError

P = ParamSpec("P")

MISTAKE, BUG, INTERRUPTED = 2, 1, 130
"""Exit codes: the user's mistake, ours, and Ctrl-C."""

PIPE_WIDTH = 160

_debug: ContextVar[bool] = ContextVar("debug", default=False)

# Read by the libraries when they are imported.
_SILENCE = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "TORCH_LOGS": "-all",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
}


def set_debug(on: bool) -> None:
    """Show tracebacks, and let the libraries speak."""
    _debug.set(on)


def debugging() -> bool:
    """Whether tracebacks, and what the libraries say, are shown."""
    return _debug.get()


def out() -> Console:
    """The console of answers; a pipe has no width of its own, and gets one that tables fit into."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)


def err() -> Console:
    """The console of everything that is not an answer."""
    return Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """Write a line of plain text to stdout, unwrapped."""
    out().print(printable(text), markup=False, soft_wrap=True)


def note(text: str) -> None:
    """Write a line about what is going on to stderr."""
    err().print(printable(text), markup=False, soft_wrap=True, style="dim")


def print_json(answer: dict[str, Any]) -> None:
    """Write the one JSON object of a command; indented where a person reads it."""
    sys.stdout.write(json.dumps(answer, indent=2 if sys.stdout.isatty() else None) + "\n")
    sys.stdout.flush()


def printable(text: str) -> str:
    """Text without control characters, which could command a terminal, and without halves of characters."""
    kept = "".join(letter for letter in text if letter.isprintable() or letter in "\n\t")
    return kept.encode("utf-8", "replace").decode("utf-8")


def command(function: Callable[P, None]) -> Callable[P, None]:
    """Make a function a command: quiet, and with errors of one sentence."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            with _quiet():
                function(*args, **kwargs)
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except VLoRAError as error:
            _fail("Error", str(error), MISTAKE)
        except KeyboardInterrupt:
            _fail("Interrupted", "nothing more was done.", INTERRUPTED)
        except Exception as error:
            if _debug.get():
                traceback.print_exc()
            what = " ".join(f"{type(error).__name__}: {error}".split())
            advice = "" if _debug.get() else " (`vlora --debug ...` shows where)"
            _fail("This is a bug in vlora", f"please report it{advice}: {what}", BUG)

    return run


def _fail(head: str, message: str, code: int) -> NoReturn:
    line = Text(f"{head}: ", style="bold red") + Text(printable(message), style="default")
    err().print(line, soft_wrap=True)
    raise typer.Exit(code)


@contextmanager
def _quiet() -> Generator[None, None, None]:
    """Keep warnings, logs and progress bars of the libraries from the user."""
    if _debug.get():
        yield
        return
    for name, value in _SILENCE.items():
        os.environ.setdefault(name, value)
    root, nowhere = logging.getLogger(), logging.NullHandler()
    root.addHandler(nowhere)  # without any handler, Python prints warnings to stderr
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.removeHandler(nowhere)
