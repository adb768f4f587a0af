"""`vlora encode`, and `vlora ask` of an album."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vlora
from tests.cli.conftest import Process, Run, one_sentence
from vlora.api import Eyes


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three pictures, one of them twice, and what is none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    Image.open(folder / "0.png").save(folder / "twin.bmp")
    (folder / "notes.md").write_text("no image")
    return folder


@pytest.fixture
def album(run: Run, loaded: Eyes, photos: Path, tmp_path: Path) -> Path:
    result = run("encode", photos, "-o", tmp_path / "album", "--workers", 0)
    assert result.exit_code == 0, result.output
    return tmp_path / "album"


def test_json(run: Run, loaded: Eyes, photos: Path, tmp_path: Path) -> None:
    result = run("encode", photos, "-o", tmp_path / "album", "--workers", 0, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    report = json.loads(result.stdout)
    rate, seconds = report.pop("images_per_second"), report.pop("seconds")
    assert rate > 0 < seconds
    assert report == {
        "album": str(tmp_path / "album"),
        "found": 4,
        "encoded": 3,
        "unchanged": 0,
        "repeated": 1,
        "unreadable": [],
        "passed_over": {".md": 1},
    }


def test_text(run: Run, loaded: Eyes, photos: Path, tmp_path: Path) -> None:
    result = run("encode", photos, "-o", tmp_path / "album", "--workers", 0)
    assert result.stdout.startswith("4 images: 3 encoded, 1 of pictures that were there, 0 unchanged, 0 unreadable; ")
    assert "1 .md" in result.stdout
    assert "4 unchanged" in run("encode", photos, "-o", tmp_path / "album", "--workers", 0).stdout


def test_unreadable_images_are_told(run: Run, loaded: Eyes, photos: Path, tmp_path: Path) -> None:
    (photos / "bad.png").write_bytes(b"%PDF-1.7")
    result = run("encode", photos, "-o", tmp_path / "album", "--workers", 0)
    assert result.exit_code == 3
    assert f"unreadable: {photos / 'bad.png'} is a PDF document" in result.stderr
    assert "3 encoded" in result.stdout
    again = run("encode", photos, "-o", tmp_path / "album", "--workers", 0, "--json")
    assert again.exit_code == 3
    assert [problem["path"] for problem in json.loads(again.stdout)["unreadable"]] == [str(photos / "bad.png")]
    listed = run("album", "info", tmp_path / "album", "--json")
    assert [problem["path"] for problem in json.loads(listed.stdout)["problems"]] == [str(photos / "bad.png")]


@pytest.mark.usefixtures("no_loading")
def test_refused_before_the_model_is_loaded(run: Run, tmp_path: Path) -> None:
    assert "does not exist" in one_sentence(run("encode", tmp_path / "no", "-o", tmp_path / "album"))


def test_refusals(run: Run, loaded: Eyes, photos: Path, album: Path) -> None:
    assert "holds other things" in one_sentence(run("encode", photos, "-o", photos))
    assert "stored in float32" in one_sentence(run("encode", photos, "-o", album, "--dtype", "int8"))
    assert run("encode", photos, "-o", album, "--dtype", "int4").exit_code == 2
    assert run("encode", photos).exit_code == 2


def test_no_ray(run: Run, loaded: Eyes, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlora.album.cluster.find_spec", lambda _: None)
    assert "vlora-mllm[cluster]" in one_sentence(run("encode", photos, "-o", tmp_path / "album", "--ray", "local"))


# -- asking -----------------------------------------------------------------------------------------------


def test_ask(run: Run, loaded: Eyes, album: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [*sorted(photos.glob("*.png")), photos / "twin.bmp"]
    expected = {str(path): loaded.ask(path, "what?", max_new_tokens=5) for path in files}
    monkeypatch.setattr(Eyes, "perceive", None)  # no pixel is looked at again
    result = run("ask", album, "what?", "--all", "--max-new-tokens", 5, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    answer = json.loads(result.stdout)
    assert {one["image"]: one["answer"] for one in answer["answers"]} == expected
    assert (answer["album"], answer["question"], answer["visual_tokens"]) == (str(album), "what?", 0)
    assert set(answer["timings_ms"]) == {"load", "answers"}
    hashes = [one["hash"] for one in answer["answers"]]
    assert (len(hashes), len(set(hashes))) == (4, 3)
    some = run("ask", album, "what?", "--select", "[12].png", "--max-new-tokens", 5, "--json")
    assert [one["image"] for one in json.loads(some.stdout)["answers"]] == [str(photos / f"{n}.png") for n in (1, 2)]
    by_hash = run("ask", album, "what?", "--select", f"hash:{hashes[0][:8]}", "--json", "--max-new-tokens", 1)
    assert len(json.loads(by_hash.stdout)["answers"]) == 2
    lines = run("ask", album, "what?", "--all", "--max-new-tokens", 5).stdout.splitlines()
    assert [line.split("\t")[0] for line in lines] == [str(path) for path in files]


@pytest.mark.usefixtures("loaded")
def test_ask_refuses(run: Run, album: Path, photos: Path) -> None:
    photo = photos / "0.png"
    for arguments, words in (
        ((album, "what?"), "--select PATTERN, or --all"),
        ((album, "what?", "--all", "--select", "x"), "--select PATTERN, or --all"),
        ((album, "what?", "--select", "none.png"), "No image of the album"),
        ((album, "what?", "--all", "--and", photo), "single images"),
        ((album, " ", "--all"), "question is empty"),
        ((photo, "what?", "--all"), "is no album"),
        ((photos, "what?", "--select", "*"), "is no album"),
        ((photos, "what?"), "is a folder"),
    ):
        assert words in one_sentence(run("ask", *arguments))


def test_an_album_names_its_model(run: Run, album: Path, monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    asked = list[str]()
    from vlora import loading

    load = loading.load
    monkeypatch.setattr("vlora.loading.load", lambda name, **_: asked.append(name) or load(name))
    run("ask", album, "what?", "--all", "--max-new-tokens", 1)
    run("ask", album, "what?", "--all", "--max-new-tokens", 1, "--model", tiny)
    assert asked == ["nano", str(tiny)]


def test_an_album_of_fewer_views_is_of_the_same_model(run: Run, photos: Path, tmp_path: Path, tiny: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"views": [[0, 0], [3, 0]]}))
    kept: list[torch.Tensor] = []
    for views in (2, 1):
        folder = tmp_path / f"album-{views}"
        done = run("encode", photos, "-o", folder, "--workers", 0, "--model", model, "--views", views)
        assert done.exit_code == 0, done.output
        kept.append(vlora.album.open(folder)["0.png"].values)
        answered = run("ask", folder, "what?", "--select", "0.png", "--max-new-tokens", 1, "--model", model)
        assert answered.exit_code == 0, answered.output
    assert not torch.allclose(*kept)
    with Image.open(photos / "0.png") as picture:
        torch.testing.assert_close(vlora.load(model, views=1, device="cpu").perceive(picture).values, kept[1])


@pytest.mark.slow
def test_in_processes_of_their_own(process: Process, tiny: Path, photos: Path, tmp_path: Path) -> None:
    (photos / "bad.jpg").write_bytes(b"")
    done = process("encode", photos, "-o", tmp_path / "album", "--model", tiny, "--workers", "2", "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout)["encoded"] == 3
    assert done.stderr == ""
    answer = process("ask", tmp_path / "album", "what?", "--all", "--json", "--max-new-tokens", "3")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert json.loads(answer.stdout)["model"] == str(tiny)
    assert len(json.loads(answer.stdout)["answers"]) == 4
    (tmp_path / "album" / "album.sqlite").write_bytes(b"no database" * 500)
    for command in (("ask", tmp_path / "album", "what?", "--all"), ("album", "info", tmp_path / "album")):
        refused = process(*command)
        assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
        assert "damaged index" in refused.stderr
