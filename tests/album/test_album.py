"""An opened album: a mapping from names to visual parameters, which a model answers about as about pixels."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import torch

import vlora
from tests.album.conftest import draw, make_eyes
from vlora.album import encode
from vlora.api import Eyes
from vlora.errors import AlbumError, InputError, NotInAlbum


def test_parameters_are_those_of_the_pixels(photos: Path, tmp_path: Path) -> None:
    # In float64: in a batch of four or alone, float32 sums are in another order, on some processors 2e-5 apart.
    eyes = make_eyes("tiny")
    eyes.model.double()
    encode(eyes, photos, tmp_path / "album", batch_size=4, workers=0)
    opened = vlora.album.open(tmp_path / "album")
    for path in opened:
        torch.testing.assert_close(opened[path].values, eyes.perceive(path).values.float(), rtol=1e-5, atol=1e-5)


def test_mapping(album: Path, photos: Path) -> None:
    opened = vlora.album.open(album)
    files = sorted(str(path) for path in photos.rglob("*.*"))
    assert list(opened) == list(opened.keys()) == files
    assert len(opened) == len(files) == 11
    assert opened.info().images == 10
    assert {tuple(seen.values.shape) for seen in opened.values()} == {(1, 3, 2, 16)}
    assert "n3.png" in opened
    assert "n33.png" not in opened
    assert 3 not in opened
    assert opened.get("nothing") is None
    assert "11 files" in repr(opened)


def test_names(album: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = vlora.album.open(album)
    exact = opened.entry(photos / "n0.png")
    assert exact.path == str(photos / "n0.png")
    assert opened.entry("photos/n0.png") == opened.entry("./photos/n0.png") == exact
    assert opened.entry("inner/n0.png").image != exact.image
    assert opened.entry(f"hash:{exact.image[:8]}") == exact
    assert opened.entry("twin.bmp").image == opened.entry("n1.png").image
    assert opened.entry(f"hash:{opened.entry('n1.png').image}").path.endswith("twin.bmp")  # the same picture
    monkeypatch.chdir(photos)  # from here, it is the one that is meant
    assert opened.entry("n0.png") == exact


def test_ambiguous_and_unknown_names(album: Path, photos: Path) -> None:
    opened = vlora.album.open(album)
    with pytest.raises(NotInAlbum, match="2 files with different pictures") as caught:
        opened["n0.png"]
    assert str(photos / "n0.png") in str(caught.value)
    assert str(photos / "inner/n0.png") in str(caught.value)
    with pytest.raises(KeyError, match=r"no 'dog\.jpg'"):
        opened["dog.jpg"]
    with pytest.raises(NotInAlbum):
        opened["0.png"]  # the end of a name is not the end of a path
    with pytest.raises(InputError, match="digits"):
        opened["hash:xyz"]


def test_select(album: Path) -> None:
    opened = vlora.album.open(album)

    def names(*patterns: str) -> list[str]:
        return ["/".join(Path(entry.path).parts[-2:]) for entry in opened.select(*patterns)]

    assert len(names()) == 11
    assert names("n[12].png") == ["photos/n1.png", "photos/n2.png"]
    assert names("n[!0-7].png") == ["photos/n8.png"]
    assert names("inner/*") == ["inner/n0.png", "inner/twin.bmp"]
    assert names("n0.png") == ["inner/n0.png", "photos/n0.png"]
    assert names("n1.png", "twin.*") == ["inner/twin.bmp", "photos/n1.png"]
    assert names(f"hash:{opened.entry('n1.png').image[:6]}") == ["inner/twin.bmp", "photos/n1.png"]
    assert names("1.png") == []
    with pytest.raises(InputError, match="empty"):
        names("")


def test_pages(album: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = list(vlora.album.open(album).select())
    for page in (1, 3, 11):
        monkeypatch.setattr("vlora.album.entries.PAGE", page)
        assert list(vlora.album.open(album).select()) == whole


def test_asked_like_pixels(photos: Path, tmp_path: Path, device: str) -> None:
    eyes = make_eyes("tiny", device=device)
    encode(eyes, photos, album := tmp_path / "album", batch_size=4, workers=0)
    opened = vlora.album.open(album, eyes=eyes)
    name = str(photos / "n5.png")
    assert eyes.ask(opened[name], "what?", max_new_tokens=6) == eyes.ask(name, "what?", max_new_tokens=6)
    both = opened.parameters(["n4.png", "n5.png"])
    assert eyes.ask(both, "what?", max_new_tokens=6) == eyes.ask(
        [str(photos / "n4.png"), name], "what?", max_new_tokens=6
    )


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_ask_many(album: Path, eyes: Eyes, batch_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = vlora.album.open(album)
    expected = {path: eyes.ask(path, "what?", max_new_tokens=5) for path in opened}
    assert len(set(expected.values())) > 3  # it looks
    monkeypatch.setattr(Eyes, "perceive", None)  # no pixel is looked at again
    answers = list(opened.ask(eyes, "what?", batch_size=batch_size, max_new_tokens=5))
    assert [answer.entry.path for answer in answers] == list(opened)
    assert {answer.entry.path: answer.text for answer in answers} == expected
    some = list(opened.ask(eyes, "what?", select="n[34].png", max_new_tokens=5))
    assert {answer.entry.path: answer.text for answer in some}.items() <= expected.items()
    assert len(some) == 2


def test_ask_refuses(album: Path, eyes: Eyes) -> None:
    opened = vlora.album.open(album)
    with pytest.raises(InputError, match="batch of 0"):
        list(opened.ask(eyes, "what?", batch_size=0))
    with pytest.raises(InputError, match="question is empty"):
        list(opened.ask(eyes, " "))
    with pytest.raises(InputError, match="no images to take"):
        opened.parameters([])


def test_another_model(album: Path, photos: Path, other_eyes: Eyes) -> None:
    before = (album / "album.sqlite").read_bytes()
    for use in (
        lambda: vlora.album.open(album, eyes=other_eyes),
        lambda: list(vlora.album.open(album).ask(other_eyes, "what?")),
        lambda: encode(other_eyes, photos, album, workers=0),
    ):
        with pytest.raises(AlbumError, match=r"belongs to another model than 'other' \(its generator"):
            use()
    assert (album / "album.sqlite").read_bytes() == before


def test_no_album(tmp_path: Path) -> None:
    for folder in (tmp_path / "no", tmp_path):
        with pytest.raises(AlbumError, match="There is no album"):
            vlora.album.open(folder)
    (tmp_path / "album.sqlite").write_bytes(b"")
    with pytest.raises(AlbumError, match="cut off"):
        vlora.album.open(tmp_path)


def test_open_while_it_is_compacted(album: Path, photos: Path, eyes: Eyes) -> None:
    """What was found before a compaction can be read after it."""
    opened = vlora.album.open(album)
    entries = list(opened.select())
    draw(photos / "new.png", 77)
    encode(eyes, photos, album, workers=0)  # joins its shard with the old one, and removes both
    assert len(opened.parameters(entries)) == 11
    assert len(opened) == 12


def test_two_threads(album: Path) -> None:
    opened, failures = vlora.album.open(album), list[BaseException]()
    expected = {path: seen.values for path, seen in opened.items()}

    def read() -> None:
        try:
            assert all(torch.equal(opened[path].values, values) for path, values in expected.items())
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_closed_and_opened(album: Path) -> None:
    with vlora.album.open(album) as opened:
        first = opened["n3.png"].values
    assert not [name for name in map(_target, Path("/proc/self/fd").iterdir()) if name.startswith(str(album))]
    assert torch.equal(opened["n3.png"].values, first)


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""
