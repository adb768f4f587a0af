"""Scenes: coloured shapes, from nothing but a seed.

A training scene never shows, names or asks for a held-out pair such as "purple star"; each test scene shows at least
one of them, so that every test scene is a composition that training has not had. Training also has shapes that no test
asks for: the more pairs there are, the less can be learned by heart.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

from PIL import Image, ImageDraw

from .base import LEAST, PRESENCE, SIZE, Picture, PictureSet, Split, Turn, a, held_out, yes_no
from .canvas import plain_ground

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 30),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (240, 205, 30),
    "orange": (245, 130, 20),
    "purple": (140, 50, 180),
    "black": (25, 25, 25),
    "pink": (240, 120, 180),
    "brown": (120, 70, 30),
    "gray": (130, 130, 130),
    "cyan": (30, 190, 205),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond", "heart", "ring", "moon")
MORE_SHAPES = ("flag", "hexagon", "arrow", "house", "hourglass", "bolt", "crown", "drop")
"""Of training alone. None that a tested one could be called as well: a square is a rectangle."""
MOST = 6
"""Shapes of a scene, and the largest count that is asked for."""

_ROWS, _COLUMNS = ("top", "middle", "bottom"), ("left", "middle", "right")

Pair = tuple[str, str]


@dataclass(frozen=True)
class Thing:
    """A shape at its place: the centre and the half of its side, in pixels."""

    colour: str
    shape: str
    x: float
    y: float
    half: float

    @property
    def pair(self) -> Pair:
        """Its colour and shape."""
        return self.colour, self.shape

    @property
    def words(self) -> str:
        """As it is spoken of."""
        return f"{self.colour} {self.shape}"


Kind = Callable[[random.Random, list[Pair], Pair | None], list[Thing]]
"""Chooses and places what a scene shows, of these pairs; one that must be there is the last argument."""


class Scenes(PictureSet):
    """Up to six shapes each."""

    name = "scenes"

    def __init__(self, split: Split) -> None:
        super().__init__(split)
        kept = [tuple(pair) for pair in held_out("scenes")]
        shapes = SHAPES if split == "test" else SHAPES + MORE_SHAPES
        self.pairs: list[Pair] = [pair for pair in product(COLOURS, shapes) if split == "test" or pair not in kept]
        self.needed: list[Pair] = kept if split == "test" else []

    def draw(self, dice: random.Random, number: int) -> Picture:
        """See `PictureSet`."""
        things = self.things(dice)
        picture = painted(things, dice)
        turns = dict.fromkeys(self.turns(things, dice))
        while len(turns) < LEAST:
            turns |= dict.fromkeys(ask_presence(things, self.pairs, dice))
        return Picture(picture, tuple(turns))

    def things(self, dice: random.Random) -> list[Thing]:
        """What a scene shows."""
        needed = dice.choice(self.needed) if self.needed else None
        return dice.choice(self.kinds())(dice, self.pairs, needed)

    def kinds(self) -> tuple[Kind, ...]:
        """What it is chosen by, each as often as it stands here."""
        return few, few, many, _grid

    def turns(self, things: list[Thing], dice: random.Random) -> list[Turn]:
        """What is asked of it, some perhaps twice."""
        return _turns(things, self.pairs, dice, training=self.split == "train")


SET = Scenes


# -- what is in a scene ------------------------------------------------------------------------------------


def few(dice: random.Random, pairs: list[Pair], needed: Pair | None) -> list[Thing]:
    """One to four unlike shapes."""
    return anywhere(_unlike(dice, pairs, needed), dice)


def many(dice: random.Random, pairs: list[Pair], needed: Pair | None) -> list[Thing]:
    """None to six of one kind, and some of another."""
    first, second = needed or dice.choice(pairs), dice.choice(pairs)
    count = dice.randint(1 if needed else 0, MOST)
    others = dice.choice((0, 0, dice.randint(0, MOST - count)))
    return _placed([first] * count + [second] * others, dice, (8, 15))


def _grid(dice: random.Random, pairs: list[Pair], needed: Pair | None) -> list[Thing]:
    """One to four unlike shapes in the nine cells of a grid."""
    return in_cells(_unlike(dice, pairs, needed), dice)


def anywhere(chosen: list[Pair], dice: random.Random) -> list[Thing]:
    """Shapes of any size and place."""
    return _placed(chosen, dice, (11, 22))


def in_cells(chosen: list[Pair], dice: random.Random) -> list[Thing]:
    """Shapes in the nine cells of a grid."""
    cell, things = SIZE / 3, list[Thing]()
    for (colour, shape), place in zip(chosen, dice.sample(range(9), len(chosen)), strict=True):
        x, y = (cell * (number + 0.5) + dice.uniform(-3, 3) for number in (place % 3, place // 3))
        things.append(Thing(colour, shape, x, y, dice.uniform(11, 17)))
    return things


def _unlike(dice: random.Random, pairs: list[Pair], needed: Pair | None) -> list[Pair]:
    """One to four unlike pairs, the needed one among them."""
    count = dice.randint(1, 4)
    chosen = dice.sample(pairs, count)
    if needed and needed not in chosen:
        chosen[dice.randrange(count)] = needed
    return chosen


def _placed(chosen: list[Pair], dice: random.Random, halves: tuple[float, float]) -> list[Thing]:
    """Places where nothing touches: tried anew, and smaller, until all fit."""
    while True:
        things: list[Thing] = []
        for colour, shape in chosen:
            for _ in range(40):
                half = dice.uniform(*halves)
                x, y = (dice.uniform(half + 2, SIZE - half - 2) for _ in range(2))
                if all(max(abs(x - one.x), abs(y - one.y)) > half + one.half + 4 for one in things):
                    things.append(Thing(colour, shape, x, y, half))
                    break
        if len(things) == len(chosen):
            return things
        halves = (halves[0] * 0.9, halves[1] * 0.9)


# -- painting ----------------------------------------------------------------------------------------------

_OVER = 4
"""Painted so many times larger, for smooth edges."""


def painted(things: list[Thing], dice: random.Random) -> Image.Image:
    """Things on a pale ground."""
    picture = plain_ground(dice)
    for thing in things:
        _paint(picture, thing, dice)
    return picture


def _paint(picture: Image.Image, thing: Thing, dice: random.Random) -> None:
    red, green, blue = (max(0, min(255, one + dice.randint(-14, 14))) for one in COLOURS[thing.colour])
    side = math.ceil(2 * thing.half)
    mask = Image.new("L", (side * _OVER, side * _OVER))
    draw = ImageDraw.Draw(mask)
    full = side * _OVER - 1
    if thing.shape == "circle" or thing.shape in _CUT:
        draw.ellipse((0, 0, full, full), fill=255)
        for left, top, right, bottom in _CUT.get(thing.shape, ()):
            draw.ellipse((left * full, top * full, right * full, bottom * full), fill=0)
    else:
        draw.polygon([(x * full, y * full) for x, y in _CORNERS[thing.shape]], fill=255)
    mask = mask.resize((side, side), Image.Resampling.BOX)
    picture.paste((red, green, blue), (round(thing.x - side / 2), round(thing.y - side / 2)), mask)


_CUT = {"ring": [(0.25, 0.25, 0.75, 0.75)], "moon": [(0.35, -0.05, 1.25, 0.85)]}
"""Boxes of the discs that are cut out of a disc, in a unit square."""


def _heart() -> list[tuple[float, float]]:
    angles = [math.tau * point / 40 for point in range(40)]
    rise = (13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t) for t in angles)
    return [(0.5 + math.sin(t) ** 3 / 2, 0.42 - y / 29) for t, y in zip(angles, rise, strict=True)]


def _drop() -> list[tuple[float, float]]:
    arc = (math.tau * point / 40 for point in range(-7, 28))
    return [(0.5, 0), *((0.5 + 0.33 * math.cos(t), 0.67 + 0.33 * math.sin(t)) for t in arc)]


def _star() -> list[tuple[float, float]]:
    spikes = [(0.5 if point % 2 == 0 else 0.2, math.pi * (point / 5 - 0.5)) for point in range(10)]
    return [(0.5 + radius * math.cos(angle), 0.5 + radius * math.sin(angle)) for radius, angle in spikes]


_NEAR, _FAR = 0.33, 0.67
_CORNERS: dict[str, list[tuple[float, float]]] = {
    "square": [(0, 0), (1, 0), (1, 1), (0, 1)],
    "triangle": [(0.5, 0), (1, 1), (0, 1)],
    "star": _star(),
    "cross": [(_NEAR, 0), (_FAR, 0), (_FAR, _NEAR), (1, _NEAR), (1, _FAR), (_FAR, _FAR),
              (_FAR, 1), (_NEAR, 1), (_NEAR, _FAR), (0, _FAR), (0, _NEAR), (_NEAR, _NEAR)],
    "diamond": [(0.5, 0), (0.9, 0.5), (0.5, 1), (0.1, 0.5)],
    "heart": _heart(),
    "flag": [(0.05, 0), (1, 0.05), (1, 0.6), (0.22, 0.6), (0.22, 1), (0.05, 1)],
    "hexagon": [(0.25, 0.07), (0.75, 0.07), (1, 0.5), (0.75, 0.93), (0.25, 0.93), (0, 0.5)],
    "arrow": [(0, 0.35), (0.5, 0.35), (0.5, 0.05), (1, 0.5), (0.5, 0.95), (0.5, 0.65), (0, 0.65)],
    "house": [(0.5, 0), (1, 0.45), (0.85, 0.45), (0.85, 1), (0.15, 1), (0.15, 0.45), (0, 0.45)],
    "hourglass": [(0.1, 0), (0.9, 0), (0.58, 0.5), (0.9, 1), (0.1, 1), (0.42, 0.5)],
    "bolt": [(0.6, 0), (0.15, 0.58), (0.45, 0.58), (0.35, 1), (0.85, 0.38), (0.52, 0.38)],
    "crown": [(0, 0.15), (0.27, 0.5), (0.5, 0.05), (0.73, 0.5), (1, 0.15), (0.92, 0.95), (0.08, 0.95)],
    "drop": _drop(),
}  # fmt: skip
"""Of the shapes that are polygons, in a unit square."""


# -- what is asked -----------------------------------------------------------------------------------------


def _turns(things: list[Thing], pairs: list[Pair], dice: random.Random, training: bool) -> list[Turn]:
    asked: list[Callable[[], list[Turn]]] = [
        lambda: ask_colour(things, dice),
        lambda: ask_shape(things, dice),
        lambda: ask_presence(things, pairs, dice),
        lambda: ask_presence(things, pairs, dice),
        lambda: ask_count(things, pairs, dice),
        lambda: ask_count(things, pairs, dice),
        lambda: ask_relation(things, dice),
        lambda: ask_relation(things, dice),
        lambda: ask_relation(things, dice),
        lambda: ask_place(things, dice),
        lambda: ask_place(things, dice),
        lambda: ask_place(things, dice),
        lambda: ask_size(things, dice),
        lambda: ask_caption(things, dice),
    ]
    if training:
        # A colour and a shape again: a scene has more to say of where things are, and a step asks only some of its
        # turns. And what a relation and a comparison of sizes follow from: whether they hold is one bit, which tells a
        # model little about why.
        asked += [lambda: ask_colour(things, dice), lambda: ask_shape(things, dice)] * 3
        asked += [lambda: ask_side(things, dice), lambda: ask_places(things, dice)] * 2
        asked += [lambda: ask_extent(things, dice)]
    return [turn for ask in asked for turn in ask()]


def _only(things: list[Thing]) -> list[Thing]:
    """Things that no other is like."""
    pairs = [thing.pair for thing in things]
    return [thing for thing in things if pairs.count(thing.pair) == 1]


def ask_colour(things: list[Thing], dice: random.Random) -> list[Turn]:
    wordings = ("what color is the {}?", "what is the color of the {}?", "which color does the {} have?")
    return _follows("scenes/colour", [(thing.shape, thing.colour) for thing in things], wordings, dice)


def ask_shape(things: list[Thing], dice: random.Random) -> list[Turn]:
    wordings = ("what shape is {}?", "what is the {} shape?", "which shape is {}?")
    return _follows("scenes/shape", [(thing.colour, thing.shape) for thing in things], wordings, dice)


def _follows(task: str, facts: list[tuple[str, str]], wordings: Sequence[str], dice: random.Random) -> list[Turn]:
    """Ask for the second of two words about a thing by the first, if it has but one answer."""
    answers = single_answers(facts)
    if not answers:
        return []
    asked = dice.choice(sorted(answers))
    return [Turn(task, dice.choice(wordings).format(asked), answers[asked])]


def single_answers(facts: list[tuple[str, str]]) -> dict[str, str]:
    """The second of two words about a thing by the first, where that has but one; in the order of the facts."""
    answers: dict[str, set[str]] = {}
    for asked, answer in facts:
        answers.setdefault(asked, set()).add(answer)
    return {asked: found.pop() for asked, found in answers.items() if len(found) == 1}


def ask_presence(things: list[Thing], pairs: list[Pair], dice: random.Random) -> list[Turn]:
    """Is there one? Half of the answers are yes; a no often shares a colour or a shape with what there is."""
    truth = bool(things) and dice.random() < 0.5
    if truth:
        pair = dice.choice(things).pair
    else:
        shown = {thing.pair for thing in things}
        absent = [one for one in pairs if one not in shown]
        near = [one for one in absent if any(one[0] == pair[0] or one[1] == pair[1] for pair in shown)]
        pair = dice.choice(near if near and dice.random() < 0.7 else absent)
    return presence(pair, truth, dice)


def presence(pair: Pair, truth: bool, dice: random.Random) -> list[Turn]:
    """Whether there is such a thing, and the answer."""
    return [Turn("scenes/yes-no", *yes_no(PRESENCE, truth, dice, thing=a(" ".join(pair))))]


def ask_count(things: list[Thing], pairs: list[Pair], dice: random.Random) -> list[Turn]:
    kind = dice.random()
    if kind < 0.3:
        words, count = "shapes", len(things)
    elif kind < 0.6:
        colour = dice.choice([thing.colour for thing in things] or list(COLOURS))
        words, count = f"{colour} shapes", sum(thing.colour == colour for thing in things)
    elif kind < 0.9:
        shape = dice.choice([thing.shape for thing in things] or list(SHAPES))
        words, count = _plural(shape), sum(thing.shape == shape for thing in things)
    else:
        pair = dice.choice(pairs)
        words, count = f"{pair[0]} {_plural(pair[1])}", sum(thing.pair == pair for thing in things)
    if count == 1 and dice.random() < 0.7:  # a colour or a shape is mostly there once, which could be guessed
        words, count = "shapes", len(things)
    question = dice.choice(("how many {} are there?", "how many {} do you see?", "count the {}."))
    return [Turn("scenes/count", question.format(words), str(count))]


def ask_relation(things: list[Thing], dice: random.Random) -> list[Turn]:
    """Which of two sides of another thing, or whether it is one."""
    pair = _apart(things, dice)
    if not pair:
        return []
    one, other = pair
    side = _side_of(one, other)
    opposite = _OPPOSITE[side]
    if dice.random() < 0.5:
        truth = dice.random() < 0.5
        question = f"is the {one.words} {side if truth else opposite} the {other.words}?"
        return [Turn("scenes/relation", question, "yes" if truth else "no")]
    first, second = dice.sample((side, opposite), 2)
    return [Turn("scenes/relation", f"is the {one.words} {first} or {second} the {other.words}?", side.split()[0])]


def ask_side(things: list[Thing], dice: random.Random) -> list[Turn]:
    """On which of the four sides of another thing."""
    pair = _apart(things, dice)
    if not pair:
        return []
    one, other = pair
    question = dice.choice(("where is the {0} from the {1}?", "on which side of the {1} is the {0}?"))
    return [Turn("scenes/side", question.format(one.words, other.words), _side_of(one, other).split()[0])]


def _two(things: list[Thing], dice: random.Random) -> list[Thing]:
    """Two things that no other is like, or none."""
    alone = _only(things)
    return dice.sample(alone, 2) if len(alone) > 1 else []


def _apart(things: list[Thing], dice: random.Random) -> list[Thing]:
    """Two such things that are clearly beside or above each other, or none."""
    pair = _two(things, dice)
    return pair if pair and max(abs(pair[0].x - pair[1].x), abs(pair[0].y - pair[1].y)) >= 16 else []


_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def _side_of(one: Thing, other: Thing) -> str:
    across, down = one.x - other.x, one.y - other.y
    if abs(across) > abs(down):
        return "left of" if across < 0 else "right of"
    return "above" if down < 0 else "below"


def ask_place(things: list[Thing], dice: random.Random) -> list[Turn]:
    """In which cell of the picture, where it is clearly in one."""
    fit = _clear(things)
    if not fit:
        return []
    thing, cell = dice.choice(fit)
    question = dice.choice(("where is the {}?", "in which part of the picture is the {}?"))
    return [Turn("scenes/place", question.format(thing.words), cell)]


def ask_places(things: list[Thing], dice: random.Random) -> list[Turn]:
    """The cells of two things in one answer."""
    fit = _clear(things)
    if len(fit) < 2:
        return []
    (one, first), (other, second) = dice.sample(fit, 2)
    return [Turn("scenes/places", f"where are the {one.words} and the {other.words}?", f"{first} and {second}")]


def _clear(things: list[Thing]) -> list[tuple[Thing, str]]:
    """Things that no other is like, and that are clearly in one cell."""
    return [(thing, cell) for thing in _only(things) if (cell := _cell(thing))]


def _cell(thing: Thing) -> str:
    """The cell of a three by three grid that a thing is near the middle of; nothing where it is between two."""
    third = SIZE / 3
    column, row = int(thing.x // third), int(thing.y // third)
    if max(abs(thing.x - third * (column + 0.5)), abs(thing.y - third * (row + 0.5))) > third / 3:
        return ""
    return "middle" if row == column == 1 else f"{_ROWS[row]} {_COLUMNS[column]}"


def ask_size(things: list[Thing], dice: random.Random) -> list[Turn]:
    pair = _two(things, dice)
    if not pair:
        return []
    one, other = pair
    if not unlike_sizes(one, other):
        return []
    word = dice.choice(("larger", "smaller"))
    winner = one if (one.half > other.half) == (word == "larger") else other
    question = f"which is {word}, the {one.words} or the {other.words}?"
    return [Turn("scenes/size", question, winner.words)]


def unlike_sizes(one: Thing, other: Thing) -> bool:
    """Whether one of two is clearly the larger."""
    return max(one.half, other.half) >= 1.3 * min(one.half, other.half)


def ask_extent(things: list[Thing], dice: random.Random) -> list[Turn]:
    """Of one thing, where it is clearly small or large."""
    fit = [thing for thing in _only(things) if not _SMALL < thing.half < _LARGE]
    if not fit:
        return []
    thing = dice.choice(fit)
    question = dice.choice(("how large is the {}?", "is the {} small or large?"))
    return [Turn("scenes/extent", question.format(thing.words), "small" if thing.half <= _SMALL else "large")]


_SMALL, _LARGE = 12.5, 15.5
"""Halves of a side, in pixels, up to which a thing is small and from which it is large."""


def ask_caption(things: list[Thing], dice: random.Random) -> list[Turn]:
    question = dice.choice(("describe the picture.", "what do you see?"))
    if not things:
        return [Turn("scenes/caption", question, "nothing")]
    ordered = sorted({thing.pair for thing in things})
    if len(ordered) > 3:
        return []
    parts: list[str] = []
    for pair in ordered:
        count = sum(thing.pair == pair for thing in things)
        parts.append(a(" ".join(pair)) if count == 1 else f"{_WORDS[count]} {pair[0]} {_plural(pair[1])}")
    return [Turn("scenes/caption", question, " and ".join(parts))]


_WORDS = ("no", "one", "two", "three", "four", "five", "six")


def _plural(shape: str) -> str:
    return f"{shape}es" if shape.endswith("ss") else f"{shape}s"
