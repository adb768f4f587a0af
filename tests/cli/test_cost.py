"""`vlora cost`: prints a bill, needs neither network nor weights, refuses in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Process, Run, one_sentence
from vlora.cost import cost

PAPER = ("cost", "--llm", "vicuna-7b", "--vision", "clip-vit-l-14-336")


def test_offline_in_a_process_of_its_own(process: Process) -> None:
    done = process(*PAPER, "--text-tokens", 32, "--json", HF_HUB_OFFLINE="0", HTTPS_PROXY="http://127.0.0.1:9")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == json.loads(json.dumps(cost(text_tokens=32).to_dict()))


def test_text(run: Run) -> None:
    result = run(*PAPER)
    assert (result.exit_code, result.stderr) == (0, "")
    for words in (
        "vicuna-7b looks through clip-vit-l-14-336, and wears rank 64 at q k v o mlp in 8 of its 32 layers",
        "576 visual tokens",
        "8,228",
        "9.8% of the FLOPs of the visual-token model; 5.6% if the encoder",
        "for any number of questions about an image",
        "generator 851.9 M, language model 6,738.4 M",
        "40 KiB",
        "288 MiB",
    ):
        assert words in result.stdout
    assert "sliding window" not in result.stdout


def test_every_option_reaches_the_bill(run: Run) -> None:
    options = {
        "text-tokens": 20,
        "answer-tokens": 5,
        "questions": 3,
        "visual-tokens": 64,
        "logits": "needed",
        "dtype": "float32",
        "targets": "q,down",
        "layers": "2 5",
        "rank": 8,
        "static-rank": 2,
        "dim": 64,
        "depth": 1,
        "heads": 4,
        "mlp-ratio": 2.5,
        "queries": "joint",
        "head": "dictionary",
        "dictionary-size": 16,
        "factors": "ab",
    }
    flags = [part for name, value in options.items() for part in (f"--{name}", value)]
    facts = json.loads(run("cost", "--llm", "qwen3-0.6b", "--vision", "dinov2-s", *flags, "--norms", "--json").stdout)
    generator = facts["shapes"]["generator"]
    expected = {"rank": 8, "static_rank": 2, "dim": 64, "depth": 1, "mlp": 160, "trunks": 1, "queries": 4}
    expected |= {"atoms": 16, "factors": "ab", "norms": True, "targets": ["q", "down"], "worn_layers": [2, 5]}
    assert expected.items() <= generator.items()
    assert facts["inputs"] == {
        "llm": "qwen3-0.6b",
        "vision": "dinov2-s",
        "text_tokens": 20,
        "answer_tokens": 5,
        "questions": 3,
        "visual_tokens": 64,
        "logits": "needed",
        "dtype": "float32",
    }
    assert json.loads(run(*PAPER, "--layer-step", 16, "--json").stdout)["shapes"]["generator"]["worn_layers"] == [
        15,
        31,
    ]


def test_checkpoints(run: Run, tiny: Path) -> None:
    nano = json.loads(run("cost", "--model", "nano", "--json").stdout)
    assert nano["parameters"]["language_model"] == 134_515_008
    assert nano["shapes"]["views"] == 5
    assert "nano looks through nano, 5 times at an image, and wears" in run("cost", "--model", "nano").stdout
    assert nano == json.loads(run("cost", "--llm", "nano", "--json").stdout)
    facts = json.loads(run("cost", "--model", tiny, "--json").stdout)
    assert facts["shapes"]["generator"]["worn_layers"] == [0, 1]
    file = json.loads(run("cost", "--llm", tiny / "config.json", "--json").stdout)
    assert file["shapes"] == facts["shapes"]


def test_few_visual_tokens(run: Run) -> None:
    """Where VLoRA does not pay, that is what is said."""
    result = run("cost", "--llm", "smollm2-135m", "--vision", "clip-vit-b-32", "--visual-tokens", 1, "--dim", 1024)
    assert "for no number of questions about an image does VLoRA compute less than one that keeps" in result.stdout


def test_a_window_that_is_felt_is_told(run: Run) -> None:
    result = run("cost", "--llm", "gemma-3-1b")
    assert "layers with a sliding window of 512 positions" in result.stdout
    assert "sliding" not in run("cost", "--llm", "gemma-3-1b", "--visual-tokens", 400).stdout


def test_plot(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "figure.png"
    assert str(path) in run(*PAPER, "--plot", path).stdout
    assert path.read_bytes().startswith(b"\x89PNG")
    assert json.loads(run(*PAPER, "--plot", path, "--json").stdout)["plot"] == str(path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--llm", "vicuna7b"], "did you mean vicuna-7b"),
        (["--llm", "clip-vit-b-32"], "cannot wear perceptual weights"),
        (["--vision", "vicuna-7b"], "does not state image_size"),
        (["--model", "vicuna-7b"], "not a VLoRA checkpoint"),
        (["--text-tokens", "-1"], "text_tokens is -1; it must be at least 1"),
        (["--layers", "3,x"], "--layers '3,x' is no list of numbers"),
        (["--plot", "figure.jpg"], "does not end in .png"),
        (["--plot", "no/figure.png"], "which does not exist"),
    ],
)
def test_mistakes(run: Run, arguments: list[str], words: str) -> None:
    assert words in one_sentence(run("cost", *arguments))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rank", "0"], "rank: 0 must be at least 1"),
        (["--targets", "q,x"], "targets: x is not a target"),
        (["--layers", "40"], "layers: 40 asked of a language model with layers 0 to 31"),
    ],
)
def test_mistakes_of_the_generator(run: Run, arguments: list[str], words: str) -> None:
    result = run("cost", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_a_mistake_draws_nothing(run: Run, tmp_path: Path) -> None:
    assert run(*PAPER, "--rank", "0", "--plot", tmp_path / "figure.png").exit_code == 2
    assert not list(tmp_path.iterdir())
