"""Every image a user may have becomes RGB; everything else becomes one `ImageError` of one sentence."""

from __future__ import annotations

import contextlib
import io
import os
import random
import struct
import sys
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlora.data import images
from vlora.data.images import FORMATS, ImageLike, image_hash, open_image
from vlora.errors import ImageError

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 128, 0), (0, 0, 255), (255, 255, 255)


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(width: int = 24, height: int = 16) -> Image.Image:
    """Something with detail, so that a compressed file of it has a body worth damaging."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def png_header(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be as large as asked."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 1024)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def refuse(source: object, *words: str) -> str:
    """Open what must be refused; check that the message is one sentence with these words in it."""
    with pytest.raises(ImageError) as caught:
        open_image(source)  # pyright: ignore[reportArgumentType]
    message = str(caught.value)
    for word in words:
        assert word in message
    assert message.endswith(".")
    assert "\n" not in message
    assert len(message) < 300
    assert caught.value.__cause__ is None
    return message


# -- what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "http://example.org/cat.png",
        "https://example.org/cat.png",
        "HTTPS://example.org/cat.png",
        " https://example.org/cat.png",
        "file:///etc/passwd",
        "file:cat.png",
        "ftp://example.org/cat.png",
        "s3://bucket/cat.png",
    ],
)
def test_address_is_never_opened(address: str) -> None:
    refuse(address, address.strip(), "download it first")


def test_address_as_path_object() -> None:
    refuse(Path("https://example.org/cat.png"), "download it first")


def test_data_address() -> None:
    message = refuse("data:image/png;base64," + "A" * 5000, "give its bytes")
    assert "A" * 100 not in message


def test_missing_file(tmp_path: Path) -> None:
    refuse(tmp_path / "none.png", "none.png", "does not exist", "PNG, JPEG, WEBP, GIF, BMP or TIFF")


def test_file_used_as_folder(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(encode(photo()))
    refuse(tmp_path / "a" / "b.png", "does not exist")


@pytest.mark.parametrize("path", ["", "\0", "cat\0.png"])
def test_no_path(path: str) -> None:
    refuse(path)


def test_base64_given_as_path() -> None:
    refuse("iVBORw0KGgo" * 1000, "cannot be read")


def test_name_with_control_letters(tmp_path: Path) -> None:
    message = refuse(tmp_path / "a\nb\x1b[31m\udcff.png", "a?b?[31m?.png")
    message.encode()


def test_folder(tmp_path: Path) -> None:
    refuse(tmp_path, "is a folder", "give the path of one")


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes")
def test_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    refuse(tmp_path / "pipe.png", "a pipe or a device")


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret.png"
    path.write_bytes(encode(photo()))

    def forbidden(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(images, "open", forbidden, raising=False)  # root may read anything: chmod will not do
    refuse(path, "secret.png", "permission denied")


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    refuse(tmp_path / "empty.png", "empty.png", "is empty (0 bytes)")


def test_empty_bytes() -> None:
    refuse(b"", "the given data is empty")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"hello, this is no image", "a text file"),
        ("caf\u00e9 ".encode() * 500, "a text file"),
        (b"BMW is a text", "a text file"),
        (b"<!DOCTYPE html><html>404</html>", "a web page"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing"),
        (b"%PDF-1.7\n%\xe2\xe3", "a PDF document"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "a PostScript file"),
        (b"8BPS\0\1" + bytes(40), "a Photoshop file"),
        (b"PK\x03\x04" + bytes(40), "a ZIP archive"),
        (b"\x1f\x8b" + bytes(40), "a gzip archive"),
        (b"\0\0\0\x18ftypheic" + bytes(40), "a HEIC or AVIF image"),
        (b"\x93\x01\x02\x80" * 20, "of an unknown kind"),
        (b"BM\x80\x01" * 20, "a BMP file that is damaged"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "a WEBP file that is damaged"),
    ],
)
def test_other_kinds_are_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "cat.png"
    path.write_bytes(content)
    refuse(path, "cat.png is", words, "PNG")
    refuse(content, "the given data is", words)


@pytest.mark.parametrize("kind", ["ICO", "PPM", "TGA", "PCX"])
def test_other_decoders_are_not_tried(kind: str) -> None:
    refuse(encode(photo(), kind))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_truncated_file(tmp_path: Path, kind: str) -> None:
    content = encode(photo(64, 64), kind)
    path = tmp_path / f"half.{kind.lower()}"
    path.write_bytes(content[: len(content) // 2])
    message = refuse(path, path.name, f"a {kind} file that is damaged").removeprefix(str(path))
    for leak in ("truncated", "bytes", "0x", "decoder"):
        assert leak not in message


@pytest.mark.parametrize("other", [None, 7, 1.5, ["cat.png"], io.BytesIO(), object()])
def test_other_objects(other: object) -> None:
    refuse(other, f"given as {type(other).__name__}", "give a path")


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4), np.uint16),
        np.zeros((4, 4), np.bool_),
        np.zeros((3, 4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros(4, np.uint8),
        np.array(3, np.uint8),
        np.array("cat"),
    ],
)
def test_other_arrays(array: Any) -> None:
    refuse(array, "the given array is", "height x width x 3")


@pytest.mark.parametrize("shape", [(0, 5, 3), (5, 0), (0, 0, 3)])
def test_array_without_pixels(shape: tuple[int, ...]) -> None:
    refuse(np.zeros(shape, np.uint8), "without a pixel")


def test_pil_image_without_pixels() -> None:
    refuse(Image.new("RGB", (0, 5)), "without a pixel")


def test_pil_image_of_damaged_file() -> None:
    content = encode(photo(64, 64), "JPEG")
    refuse(Image.open(io.BytesIO(content[: len(content) // 2])), "the given PIL image (mode RGB)")


# -- size, before decoding ----------------------------------------------------------------------------


@pytest.fixture
def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*_: object) -> None:
        pytest.fail("pixels were decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decode)


@pytest.mark.usefixtures("no_decoding")
@pytest.mark.parametrize("width", [60_000, 40_000])
def test_decompression_bomb(tmp_path: Path, width: int) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(width, 60_000))
    refuse(path, "bomb.png", "50 million pixels")


@pytest.mark.usefixtures("no_decoding")
def test_size_below_pillows_limit() -> None:
    refuse(png_header(8000, 8000), "8000x8000", "50 million pixels")


@pytest.mark.usefixtures("no_decoding")
@pytest.mark.filterwarnings("error")
def test_pillows_warning_as_error() -> None:
    refuse(png_header(10_000, 10_000), "50 million pixels")


@pytest.mark.usefixtures("no_decoding")
@pytest.mark.filterwarnings("ignore")
def test_own_limit_holds_without_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(png_header(10_000, 10_000), "10000x10000")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    refuse(png_header(60_000, 60_000), "60000x60000")


def test_pillows_limit_is_left_alone() -> None:
    before = Image.MAX_IMAGE_PIXELS
    open_image(photo())
    assert before == Image.MAX_IMAGE_PIXELS


def test_size_of_pil_image_and_array(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    assert open_image(np.zeros((10, 10), np.uint8)).size == (10, 10)
    refuse(np.zeros((10, 11), np.uint8), "11x10")
    refuse(Image.new("RGB", (101, 1)), "101x1")


def test_too_many_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_BYTES", 1 << 20)
    (tmp_path / "big.png").write_bytes(encode(photo()) + bytes(1 << 20))
    refuse(tmp_path / "big.png", "big.png", "1 MiB")


@pytest.mark.parametrize("size", [(1, 1), (8000, 10), (10, 8000), (1, 50_000)])
def test_odd_sides_are_fine(size: tuple[int, int]) -> None:
    assert open_image(encode(Image.new("RGB", size, GREEN))).size == size


# -- what is accepted ---------------------------------------------------------------------------------


def test_every_kind_of_source(tmp_path: Path) -> None:
    image = photo()
    path = tmp_path / "photo.png"
    image.save(path)
    sources: list[ImageLike] = [str(path), path, path.read_bytes(), image, np.asarray(image)]
    for source in sources:
        opened = open_image(source)
        assert opened.mode == "RGB"
        assert opened.info == {}
        assert opened.tobytes() == image.tobytes()
    assert len({image_hash(source) for source in sources}) == 1


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "no_extension"
    path.write_bytes(encode(Image.new("RGB", (8, 6), GREEN), kind))
    opened = open_image(path)
    assert (opened.mode, opened.size) == ("RGB", (8, 6))
    assert np.abs(np.asarray(opened, np.int16) - GREEN).max() <= 3


def test_wrong_extension_is_fine(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(encode(photo(), "PNG"))
    assert open_image(tmp_path / "photo.jpg").tobytes() == photo().tobytes()


def test_result_is_a_copy() -> None:
    image, array = photo(), np.asarray(photo()).copy()
    open_image(image).putpixel((0, 0), RED)
    open_image(array).putpixel((0, 0), RED)
    assert image.tobytes() == array.tobytes() == photo().tobytes()


def test_array_that_is_not_contiguous() -> None:
    array = np.asarray(photo())[::-1, ::2]
    assert np.array_equal(np.asarray(open_image(array)), array)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE, WHITE)]
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert open_image(content).getpixel((4, 4)) == RED


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(kind: str, orientation: int) -> None:
    upright = Image.new("RGB", (32, 16), WHITE)
    upright.paste(RED, (0, 0, 16, 8))  # red top left, blue bottom left
    upright.paste(BLUE, (0, 8, 16, 16))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # how a camera would have stored it
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    opened = open_image(encode(stored, kind, exif=exif, quality=100))
    for _ in range(2):  # and not once more, the second time
        assert opened.size == upright.size
        for point in ((4, 3), (4, 12), (24, 8)):  # far from the edges, which JPEG and WEBP smear
            shown, meant = np.array(opened.getpixel(point)), np.array(upright.getpixel(point))
            assert np.abs(shown - meant).max() < 32
        opened = open_image(opened)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_broken_exif_does_not_matter() -> None:
    content = encode(photo(), exif=b"Exif\0\0" + b"MM\0*\xff\xff\xff\xff" + b"\x01" * 20)
    assert open_image(content).tobytes() == photo().tobytes()


def test_cmyk_jpeg() -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    opened = open_image(encode(image, "JPEG", quality=100))  # Pillow writes it as Adobe does: inverted
    assert np.abs(np.asarray(opened, np.int16) - RED).max() <= 3


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_of_16_bits_is_scaled(kind: str) -> None:
    values = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    opened = open_image(encode(Image.fromarray(values), kind))
    assert np.asarray(opened)[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]


def test_grey_of_16_bits_big_endian() -> None:
    image = Image.frombytes("I;16B", (2, 1), b"\xff\xff\x80\x80")
    assert np.asarray(open_image(image))[0, :, 0].tolist() == [255, 128]


def test_grey_of_16_bits_with_transparent_value() -> None:
    content = encode(Image.fromarray(np.array([[1000, 2570]], np.uint16)), transparency=1000)
    assert np.asarray(open_image(content))[0, :, 0].tolist() == [255, 10]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[-1000, 0, 1000]], np.int32), [0, 128, 255]),
        (np.array([[0, 2**31 - 1, -(2**31)]], np.int32), [128, 255, 0]),
        (np.array([[0.0, 0.25, 1.0]], np.float32), [0, 64, 255]),
        (np.array([[0.0, np.nan, 2.0, np.inf, -np.inf]], np.float32), [0, 0, 255, 255, 0]),
        (np.array([[-3e38, 3e38]], np.float32), [0, 255]),
        (np.array([[7, 7]], np.int32), [0, 0]),
        (np.array([[np.nan, np.nan]], np.float32), [0, 0]),
    ],
)
@pytest.mark.filterwarnings("error")
def test_32_bits_are_stretched(values: Any, expected: list[int]) -> None:
    for source in (encode(Image.fromarray(values), "TIFF"), Image.fromarray(values)):
        assert np.asarray(open_image(source))[0, :, 0].tolist() == expected


def rgba_half() -> Image.Image:
    return Image.new("RGBA", (2, 2), (255, 0, 0, 128))


@pytest.mark.parametrize(
    ("image", "colour"),
    [
        (Image.new("RGBA", (2, 2), (255, 0, 0, 0)), WHITE),
        (Image.new("RGBA", (2, 2), (255, 0, 0, 255)), RED),
        (rgba_half(), (255, 127, 127)),
        (Image.new("LA", (2, 2), (0, 0)), WHITE),
        (Image.new("LA", (2, 2), (0, 128)), (127, 127, 127)),
        (rgba_half().convert("RGBa"), (255, 127, 127)),
        (Image.new("LA", (2, 2), (0, 128)).convert("La"), (127, 127, 127)),
        (Image.new("1", (2, 2), 1), WHITE),
        (Image.new("1", (2, 2), 0), (0, 0, 0)),
        (Image.new("L", (2, 2), 77), (77, 77, 77)),
        (Image.new("P", (2, 2), 0), (0, 0, 0)),
        (Image.new("HSV", (2, 2), (0, 255, 255)), RED),
        (Image.new("YCbCr", (2, 2), (255, 128, 128)), WHITE),
        (Image.new("LAB", (2, 2), (255, 128, 128)), None),
    ],
)
def test_every_mode(image: Image.Image, colour: tuple[int, int, int] | None) -> None:
    opened = open_image(image)
    assert opened.mode == "RGB"
    assert colour is None or opened.getpixel((1, 1)) == colour


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP"])
def test_transparent_palette_is_laid_on_white(kind: str) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 255, 255, 0, 0])  # 0 blue, and transparent; 1 red
    image.paste(0, (0, 0, 4, 2))
    if kind == "WEBP":
        image.info["transparency"] = 0
        content = encode(image.convert("RGBA"), kind, lossless=True)
    else:
        content = encode(image, kind, transparency=0)
    opened = open_image(content)
    assert opened.getpixel((0, 0)) == WHITE
    assert opened.getpixel((0, 3)) == RED


@pytest.mark.parametrize(
    ("image", "key"),
    [(Image.new("RGB", (2, 2), RED), RED), (Image.new("L", (2, 2), 9), 9), (Image.new("1", (2, 2), 0), 0)],
)
def test_transparent_colour_is_laid_on_white(image: Image.Image, key: Any) -> None:
    assert open_image(encode(image, transparency=key)).getpixel((0, 0)) == WHITE


def test_palette_with_alpha_bytes() -> None:
    image = Image.new("P", (2, 1), 0)
    image.putpalette([255, 0, 0, 255, 0, 0])
    image.putpixel((1, 0), 1)
    opened = open_image(encode(image, transparency=b"\x80\xff"))
    assert [opened.getpixel((0, 0)), opened.getpixel((1, 0))] == [(255, 127, 127), RED]


# -- the hash -----------------------------------------------------------------------------------------


def test_hash_is_of_pixels_not_of_files() -> None:
    assert image_hash(encode(photo(), "PNG")) == image_hash(encode(photo(), "BMP"))
    assert image_hash(photo()) != image_hash(Image.new("RGB", photo().size))


def test_hash_knows_the_shape() -> None:
    assert image_hash(Image.new("RGB", (2, 8))) != image_hash(Image.new("RGB", (8, 2)))


def test_hash_is_stable() -> None:
    expected = "d6e38e360b61a9ad007eed5263046f0b6179709d470e0e59fdb00f25fb468085"
    assert image_hash(Image.new("RGB", (2, 1), RED)) == expected


# -- noise, files and threads -------------------------------------------------------------------------


def cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def flip(content: bytes, rng: random.Random) -> bytes:
    noisy = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        noisy[rng.randrange(len(noisy))] ^= 1 << rng.randrange(8)
    return bytes(noisy)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("harm", [cut, flip])
@pytest.mark.parametrize("kind", FORMATS)
def test_noise_raises_nothing_else(
    kind: str, harm: Callable[[bytes, random.Random], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 1_000_000)  # a flipped size must not cost seconds
    rng = random.Random(f"{kind} {harm.__name__}")
    content = encode(photo(), kind)
    for _ in range(200):
        with contextlib.suppress(ImageError):
            assert open_image(harm(content, rng)).mode == "RGB"


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files as Linux shows them")
def test_no_file_stays_open(tmp_path: Path) -> None:
    good, animated, bad = tmp_path / "good.png", tmp_path / "animated.gif", tmp_path / "bad.jpg"
    good.write_bytes(encode(photo()))
    animated.write_bytes(encode(photo(), "GIF", save_all=True, append_images=[Image.new("RGB", (24, 16))]))
    bad.write_bytes(encode(photo(), "JPEG")[:200])
    before = len(os.listdir("/proc/self/fd"))
    kept = [open_image(good), open_image(animated)]
    refuse(bad)
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(kept) == 2


def test_threads_do_not_disturb_each_other() -> None:
    good, bomb = encode(photo()), png_header(60_000, 60_000)
    wrong: list[object] = []

    def work(source: bytes, fails: bool) -> None:
        for _ in range(20):
            try:
                opened = open_image(source)
            except ImageError as error:
                wrong.extend([] if fails else [error])
            else:
                wrong.extend([opened] if fails else [])

    threads = [threading.Thread(target=work, args=args) for args in [(good, False), (bomb, True)] for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
