"""Contact sheets of what nano says: pictures that training has not shown, and natural photographs.

    make gallery            # or: python scripts/gallery.py [--model nano] [--seed 0] [--into docs/gallery]

held-out.png        24 questions of the nano suite, drawn by the seed: of each kind of picture the same number
photographs.png     every photograph of the nano set that has a licence of its own: asked what it is

The seed chooses, nobody else: no picture is left out because of its answer. `gallery.json` lists what is shown.
"""

from __future__ import annotations

import argparse
import json
import random
import textwrap
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

import vlora
from vlora.data.sets.nano.fetch import folder
from vlora.evaluate.nano_suite import Item, items
from vlora.evaluate.predict import Asked, opened, predict
from vlora.evaluate.scoring import is_correct

KINDS: dict[str, tuple[str, ...]] = {
    "scenes": ("scenes/colour", "scenes/yes-no", "scenes/count", "scenes/relation", "scenes/caption"),
    "digits": ("digits/read", "digits/larger", "digits/sum"),
    "emoji": ("emoji/name", "emoji/group"),
    "another artist's emoji": ("emoji/other-artist-name", "emoji/other-artist-group"),
    "stamps": ("stamps/noun", "stamps/held-out-noun"),
    "clip art": ("clipart/topic",),
}
EACH = 4
LONGEST = 24

QUESTION = "what is this?"
# What counts as right: what is to be seen, in some common words for it.
PHOTOGRAPHS: dict[str, tuple[str, ...]] = {
    "photos/astronaut.png": ("astronaut", "woman", "person", "spacesuit"),
    "photos/coffee.png": ("coffee", "cup", "cup of coffee", "mug", "espresso"),
    "photos/horse.png": ("horse",),
    "photos/retina.jpg": ("eye", "retina"),
    "photos/rocket.jpg": ("rocket",),
    "backgrounds/Aqua.jpg": ("water", "splash", "drop"),
    "backgrounds/Blinds.jpg": ("leaf", "palm leaf"),
    "backgrounds/Dune.jpg": ("grass", "reeds", "dune", "beach"),
    "backgrounds/FreshFlower.jpg": ("flower", "petals", "blossom"),
    "backgrounds/Garden.jpg": ("flower", "marigold", "blossom"),
    "backgrounds/GreenMeadow.jpg": ("grass", "meadow", "lawn"),
    "backgrounds/LadyBird.jpg": ("ladybug", "ladybird", "lady beetle", "beetle"),
    "backgrounds/RainDrops.jpg": ("leaf", "leaves", "grass", "drops", "raindrops"),
    "backgrounds/Storm.jpg": ("storm", "clouds", "sky", "road"),
    "backgrounds/TwoWings.jpg": ("dandelion", "seed", "seeds", "flower"),
    "backgrounds/Wood.jpg": ("wood", "board", "plank"),
    "backgrounds/YellowFlower.jpg": ("flower", "sunflower", "blossom"),
}


def main() -> None:
    """Ask, and draw both sheets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--into", type=Path, default=Path("docs/gallery"))
    arguments = parser.parse_args()
    arguments.into.mkdir(parents=True, exist_ok=True)
    eyes = vlora.load(arguments.model)
    shown = {
        "held-out": [answered(eyes, item, (item.answer,)) for item in drawn(arguments.seed)],
        "photographs": [answered(eyes, Item(folder() / p, QUESTION, a[0]), a) for p, a in PHOTOGRAPHS.items()],
    }
    for name, cells in shown.items():
        sheet(cells).savefig(arguments.into / f"{name}.png", dpi=110, metadata={"Software": None})
        print(f"{name}: {sum(one['correct'] for one in cells)} of {len(cells)} right")
    facts = {
        name: [{key: value for key, value in one.items() if key != "picture"} for one in cells]
        for name, cells in shown.items()
    }
    text = json.dumps({"seed": arguments.seed, **facts}, indent=1, ensure_ascii=False)
    (arguments.into / "gallery.json").write_text(text + "\n", encoding="utf-8")


def drawn(seed: int) -> list[Item]:
    """So many items of each kind, no picture twice."""
    dice = random.Random(seed)
    found = items([task for tasks in KINDS.values() for task in tasks], 100)
    chosen: list[Item] = []
    for tasks in KINDS.values():
        pictures: dict[Any, Item] = {}
        while len(pictures) < EACH:
            item = dice.choice(found[dice.choice(tasks)])
            pictures.setdefault(item.image, item)
        chosen += pictures.values()
    return chosen


def answered(eyes: vlora.Eyes, item: Item, right: tuple[str, ...]) -> dict[str, Any]:
    """What the sheet shows of an item."""
    (said,) = predict(eyes, [Asked(item.image, item.question)], max_new_tokens=LONGEST)
    image: Any = item.image
    name = f"{image.parent.name}/{image.name}" if isinstance(image, Path) else f"{image.part}/test/{image.number}"
    return {
        "image": name,
        "question": item.question,
        "answer": list(right),
        "prediction": said,
        "correct": any(is_correct(said, one) for one in right),
        "picture": opened(item.image),
    }


def sheet(cells: list[dict[str, Any]], columns: int = 6) -> Figure:
    """Pictures with question and answer below; what is wrong in red, and what would have been right."""
    rows = -(-len(cells) // columns)
    figure = Figure(figsize=(2 * columns, 2.7 * rows))
    for number, one in enumerate(cells):
        place = figure.add_subplot(rows, columns, number + 1)
        place.imshow(one["picture"].resize((256, 256), Image.Resampling.BICUBIC))
        place.set_axis_off()
        said = one["prediction"] or "(nothing)"
        lines = [*textwrap.wrap(one["question"], 26), *textwrap.wrap(f"{'✓' if one['correct'] else '✗'} {said}", 26)]
        if not one["correct"]:
            lines += textwrap.wrap(f"right: {one['answer'][0]}", 26)
        colour = "#1a7f37" if one["correct"] else "#b3261e"
        place.set_title("\n".join(lines), fontsize=8, color=colour, loc="left", y=-0.04, va="top")
    figure.subplots_adjust(left=0.01, right=0.99, top=0.99, bottom=0.28 / rows, hspace=0.36, wspace=0.05)
    return figure


if __name__ == "__main__":
    main()
