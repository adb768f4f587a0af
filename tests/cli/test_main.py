"""The command line as a whole: quick help, one-sentence errors, silence."""

from __future__ import annotations

import subprocess
import sys
import time
import warnings
from collections.abc import Callable

import pytest
import typer
from typer.testing import CliRunner

import vlora
from tests.cli.conftest import Process, Run
from vlora.cli._output import command, print_json, printable, say, set_debug
from vlora.errors import ConfigError, InputError

COMMANDS = ("ask", "convert", "cost", "demo", "train", "evaluate", "export", "inspect", "doctor")


def run_body(body: Callable[[], None]) -> tuple[int, str, str]:
    """A body as the only command of a program."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(command(body))
    result = CliRunner().invoke(app, [])
    return result.exit_code, result.stdout, result.stderr


def test_help_lists_every_command(run: Run) -> None:
    result = run("--help")
    assert result.exit_code == 0
    assert all(name in result.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command(run: Run, name: str) -> None:
    assert run(name, "--help").exit_code == 0


def test_version(run: Run) -> None:
    result = run("--version")
    assert (result.exit_code, result.stdout.strip()) == (0, f"vlora {vlora.__version__}")


def test_help_takes_less_than_a_second() -> None:
    def seconds() -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "vlora.cli", "--help"], check=True, capture_output=True, timeout=60)
        return time.perf_counter() - began

    # The best of three, with a second to spare for a loaded machine.
    assert min(seconds() for _ in range(3)) < 2


def test_own_error_is_one_sentence() -> None:
    def body() -> None:
        raise InputError("This is wrong:\x1b[31m do that.")

    assert run_body(body) == (2, "", "Error: This is wrong:[31m do that.\n")


def test_long_error_is_not_wrapped() -> None:
    def body() -> None:
        raise InputError("word " * 100 + "[bold]end[/bold].")

    code, _, stderr = run_body(body)
    assert code == 2
    assert stderr == f"Error: {'word ' * 100}[bold]end[/bold].\n"


def test_config_error_lists_every_field() -> None:
    def body() -> None:
        raise ConfigError("a.yaml", ["train.steps: wrong", "model.dim: unknown"])

    _, _, stderr = run_body(body)
    assert stderr.splitlines() == ["Error: a.yaml has 2 wrong fields:", "  train.steps: wrong", "  model.dim: unknown"]


def test_interrupt() -> None:
    def body() -> None:
        raise KeyboardInterrupt

    code, stdout, stderr = run_body(body)
    assert (code, stdout, stderr.count("\n")) == (130, "", 1)


def test_bug_is_one_line() -> None:
    def body() -> None:
        raise ZeroDivisionError("over\nnothing")

    code, stdout, stderr = run_body(body)
    assert (code, stdout) == (1, "")
    assert stderr.startswith("This is a bug in vlora")
    assert stderr.endswith("ZeroDivisionError: over nothing\n")
    assert stderr.count("\n") == 1


def test_bug_with_debug_has_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def body() -> None:
        set_debug(True)
        raise ZeroDivisionError

    try:
        code, _, stderr = run_body(body)
    finally:
        set_debug(False)
    assert code == 1
    assert "Traceback (most recent call last)" in stderr


def test_libraries_are_silent() -> None:
    def body() -> None:
        import logging

        warnings.warn("noise", stacklevel=1)
        logging.getLogger("some.library").warning("more noise")
        print_json({"answer": "é"})

    assert run_body(body) == (0, '{"answer": "\\u00e9"}\n', "")


def test_text_cannot_command_a_terminal() -> None:
    def body() -> None:
        say("a\x1b[2Jb [red]c[/red] \udcff é 图")

    assert run_body(body) == (0, "a[2Jb [red]c[/red]  é 图\n", "")
    assert printable("a\tb\nc\x07") == "a\tb\nc"


def test_exit_code_of_a_command_is_kept() -> None:
    def body() -> None:
        raise typer.Exit(3)

    assert run_body(body) == (3, "", "")


def test_as_a_module(process: Process) -> None:
    done = process("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"vlora {vlora.__version__}\n", "")
