"""`vlora ask`: an answer, or one sentence about what is wrong with the image, the question or the device."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import Process, Run, one_sentence
from vlora.api import Eyes
from vlora.nano.parts import language_model_folder

KEYS = {
    "answer",
    "images",
    "question",
    "model",
    "visual_tokens",
    "text_tokens",
    "visual_parameters_bytes",
    "timings_ms",
}


def noise(mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header claims a size that its data does not have."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


# -- answers -------------------------------------------------------------------------------------------


def test_json(run: Run, photo: Path, tiny: Path) -> None:
    result = run("ask", photo, "what is it?", "--model", tiny, "--json", "--max-new-tokens", 5)
    assert (result.exit_code, result.stderr) == (0, "")
    answer = json.loads(result.stdout)
    assert set(answer) == KEYS
    assert (answer["images"], answer["question"], answer["model"]) == ([str(photo)], "what is it?", str(tiny))
    assert answer["visual_tokens"] == 0
    assert answer["text_tokens"] == len("what is it?") + 3  # <s> and </s> around it, <s> before the answer
    assert answer["visual_parameters_bytes"] == 3 * 2 * 16 * 4  # targets, layers, dim, float32
    assert set(answer["timings_ms"]) == {"load", "encode", "answer"}
    assert all(time > 0 for time in answer["timings_ms"].values())


def test_text_is_the_answer_of_the_library(run: Run, loaded: Eyes, photo: Path) -> None:
    expected = loaded.ask(str(photo), "what is it?", max_new_tokens=12)
    result = run("ask", photo, "what is it?", "--max-new-tokens", 12)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.strip() == "".join(c for c in expected if c.isprintable() or c in "\n\t").strip()


def test_stdin(run: Run, loaded: Eyes, photo: Path) -> None:
    from_file = run("ask", photo, "what?", "--json", "--max-new-tokens", 5)
    from_stdin = run("ask", "-", "what?", "--json", "--max-new-tokens", 5, stdin=photo.read_bytes())
    assert from_stdin.exit_code == 0
    assert json.loads(from_stdin.stdout)["answer"] == json.loads(from_file.stdout)["answer"]
    assert json.loads(from_stdin.stdout)["images"] == ["-"]


def test_several_images(run: Run, loaded: Eyes, photo: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.png"
    Image.effect_noise((24, 24), 80).save(other)
    both = run("ask", photo, "what?", "--and", other, "--json", "--max-new-tokens", 9)
    assert json.loads(both.stdout)["images"] == [str(photo), str(other)]
    answer = json.loads(both.stdout)["answer"]
    assert answer == loaded.ask([str(other), str(photo)], "what?", max_new_tokens=9)
    assert answer != loaded.ask(str(photo), "what?", max_new_tokens=9)
    refused = run("ask", "-", "what?", "--and", "-", stdin=photo.read_bytes())
    assert refused.exit_code == 2
    assert "Only one image can come from stdin" in refused.stderr


def test_terminal_gets_a_stream(run: Run, loaded: Eyes, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run("ask", photo, "what?", "--max-new-tokens", 6).stdout
    monkeypatch.setattr("typer.testing._NamedTextIOWrapper.isatty", lambda self: self.name == "<stdout>", raising=False)
    monkeypatch.setattr(Eyes, "ask", None)
    result = run("ask", photo, "what?", "--max-new-tokens", 6)
    if result.exit_code == 1:
        pytest.skip("this typer has no terminal to pretend")
    assert result.stdout.strip() == expected.strip()


@pytest.mark.parametrize(
    ("image", "options"),
    [
        (noise(size=(1, 1)), {"format": "PNG"}),
        (noise(size=(8000, 10)), {"format": "PNG"}),
        (noise(), {"format": "GIF", "save_all": True, "append_images": [noise("L")]}),
        (noise(), {"format": "WEBP", "save_all": True, "append_images": [noise("L")]}),
        (noise("CMYK"), {"format": "JPEG"}),
        (Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50), {"format": "PNG"}),
        (noise("P"), {"format": "PNG"}),
        (noise("RGBA"), {"format": "PNG"}),
        (
            noise(),
            {"format": "JPEG", "exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"},
        ),
    ],
    ids=["1x1", "8000x10", "gif", "webp", "cmyk", "16-bit", "palette", "alpha", "exif"],
)
def test_unusual_images_are_answered(run: Run, loaded: Eyes, image: Image.Image, options: dict[str, object]) -> None:
    data = io.BytesIO()
    image.save(data, **options)  # pyright: ignore[reportArgumentType]
    result = run("ask", "-", "what is it?", "--json", "--max-new-tokens", 3, stdin=data.getvalue())
    assert (result.exit_code, result.stderr) == (0, "")
    assert "answer" in json.loads(result.stdout)


# -- refusals, all before the model is loaded ----------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"just some words\n", "a text file"),
        (None, "does not exist"),
        (png_of(50_000, 50_000), "million pixels"),
        (b"\x89PNG\r\n\x1a\nnonsense", "damaged"),
        (b"%PDF-1.7 ...", "a PDF document"),
    ],
    ids=["empty", "text", "missing", "bomb", "damaged", "pdf"],
)
@pytest.mark.usefixtures("no_loading")
def test_bad_image(run: Run, tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "image.png"
    if content is not None:
        path.write_bytes(content)
    assert words in one_sentence(run("ask", path, "what?"))


@pytest.mark.usefixtures("no_loading")
def test_truncated_jpeg(run: Run, tmp_path: Path) -> None:
    data = io.BytesIO()
    noise(size=(400, 300)).save(data, "JPEG")
    path = tmp_path / "cut.jpg"
    path.write_bytes(data.getvalue()[:2000])
    assert "JPEG file that is damaged" in one_sentence(run("ask", path, "what?"))


@pytest.mark.usefixtures("no_loading")
def test_folder(run: Run, tmp_path: Path) -> None:
    assert "is a folder" in one_sentence(run("ask", tmp_path, "what?"))


@pytest.mark.usefixtures("no_loading")
def test_address(run: Run) -> None:
    assert "is an address" in one_sentence(run("ask", "https://example.org/a.png", "what?"))


@pytest.mark.usefixtures("no_loading")
def test_nothing_on_stdin(run: Run) -> None:
    assert "is empty" in one_sentence(run("ask", "-", "what?", stdin=b""))


@pytest.mark.parametrize("question", ["", "  \n"])
@pytest.mark.usefixtures("no_loading")
def test_empty_question(run: Run, photo: Path, question: str) -> None:
    assert "question is empty" in one_sentence(run("ask", photo, question))


@pytest.mark.usefixtures("no_loading")
def test_question_that_is_not_text(run: Run, photo: Path) -> None:
    assert "UTF-8" in one_sentence(run("ask", photo, "what \udcff?"))


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cuda:x"])
@pytest.mark.usefixtures("no_loading")
def test_bad_device(run: Run, photo: Path, device: str) -> None:
    assert repr(device) in one_sentence(run("ask", photo, "what?", "--device", device))


@pytest.mark.parametrize(
    "arguments",
    [
        ("ask",),
        ("ask", "a.png"),
        ("ask", "a.png", "b", "--max-new-tokens", "0"),
        ("ask", "a", "b", "--nonsense"),
        ("sak",),
    ],
)
def test_usage(run: Run, arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Usage: " in result.stderr


def test_refusal_in_a_process_of_its_own(process: Process, tmp_path: Path) -> None:
    done = process("ask", tmp_path / "no.png", "what?", "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1


# -- nano ----------------------------------------------------------------------------------------------


def test_nano(process: Process, photo: Path) -> None:
    language_model_folder()  # the first use of all says that it converts
    done = process("ask", photo, "what is the color of the shape?", "--json", "--max-new-tokens", 4)
    assert (done.returncode, done.stderr) == (0, "")
    answer = json.loads(done.stdout)
    assert set(answer) == KEYS
    assert answer["answer"].strip()
    assert answer["visual_tokens"] == 0
    assert 5 < answer["text_tokens"] < 60
    assert 10_000 < answer["visual_parameters_bytes"] < 200_000
    times = answer["timings_ms"]
    assert 0 < times["encode"] + times["answer"] < 200_000  # sanity only: the benchmarks measure
