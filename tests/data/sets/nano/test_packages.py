"""The table agrees with itself: names, versions, hashes, and places that nobody takes twice."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vlora.data.sets import nano
from vlora.data.sets.nano.packages import PACKAGES, Package


@pytest.mark.parametrize("package", PACKAGES, ids=lambda one: one.name)
def test_a_line_of_the_table(package: Package) -> None:
    joint = "_" if package.tool == "apt" else "-"
    name = package.name.removeprefix("@").replace("/", "-")
    assert package.file.startswith(f"{name}{joint}{package.version.replace(':', '%3a')}")
    assert re.fullmatch("[0-9a-f]{64}", package.sha256)
    assert package.size > 1_000_000
    assert package.parts
    for part in package.parts:
        groups = re.compile(part.members).groups
        assert part.to.count("\\1") == groups
    assert package.licence
    assert package.about.endswith(".")


def test_hashes_and_places_are_distinct() -> None:
    assert len({one.sha256 for one in PACKAGES}) == len(PACKAGES)
    places = [part.to for one in PACKAGES for part in one.parts]
    assert len(set(places)) == len(places)


def test_an_epoch_may_be_written_in_three_ways() -> None:
    (clipart,) = (one for one in PACKAGES if one.name == "openclipart-png")
    rest = "0.18+dfsg-19_all.deb"
    assert clipart.files == (f"openclipart-png_1%3a{rest}", f"openclipart-png_1:{rest}", f"openclipart-png_{rest}")


@pytest.mark.parametrize(
    ("member", "to"),
    [
        ("usr/share/tuxpaint/stamps/animals/birds/owl.png", "stamps/animals/birds/owl.png"),
        ("usr/share/tuxpaint/stamps/symbols/x.png", None),
        ("usr/share/tuxpaint/stamps/animals/owl.ogg", None),
        ("usr/share/openclipart/png/food/fruit/a.png", "clipart/food/fruit/a.png"),
        ("usr/share/openclipart/png/logos/a.png", None),
        ("package/img/google/64/1f600.png", "emoji/google/1f600.png emoji/blobs/1f600.png"),  # of two versions
        ("package/img/google/64/1f44d-1f3fb.png", "emoji/google/1f44d-1f3fb.png"),
        ("package/img/google/sheets/64.png", None),
        ("package/assets/png/1f600.png", "emoji/emojione/1f600.png"),
        ("package/assets/png/1f44d-1f3fb.png", None),
        ("package/assets/1f600.webp", "emoji/fluent/1f600.png"),
        ("package/assets/1f44d-1f3ff.webp", None),
        ("package/assets/png/1F600.png", "emoji/emojione-1/1F600.png"),
        ("package/assets/1f600.svg", "emoji/fluent-flat/1f600.png"),
        ("package/color/svg/1F600.svg", "emoji/openmoji/1F600.png"),
        ("package/color/svg/1F44D-1F3FB.svg", None),
        ("package/black/svg/1F600.svg", None),
        ("package/data/train-labels-idx1-ubyte", "digits/train-labels-idx1-ubyte"),
        ("package/data/t10k-labels-idx1-ubyte", None),
        ("package/en/messages.json", "emoji/groups.json"),
        ("usr/share/backgrounds/mate/nature/Dune.jpg", "backgrounds/Dune.jpg"),
        ("usr/share/backgrounds/mate/desktop/GreenTraditional.jpg", None),
        ("usr/lib/python3/dist-packages/skimage/data/coffee.png", "photos/coffee.png"),
        ("usr/lib/python3/dist-packages/skimage/data/motorcycle_left.png", None),
        ("usr/lib/python3/dist-packages/skimage/data/chelsea.png", None),
    ],
)
def test_what_is_taken(member: str, to: str | None) -> None:
    found = [
        match.expand(part.to) for one in PACKAGES for part in one.parts if (match := re.fullmatch(part.members, member))
    ]
    assert found == (to or "").split()


def test_no_registry_is_addressed() -> None:
    for file in Path(nano.__file__).parent.glob("*.py"):
        assert not re.search(r"https?:|\.(?:org|com|net)\b", file.read_text(encoding="utf-8")), file
