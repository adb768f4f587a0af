"""Questions that no picture answers, asked beside a picture: a model that wears an image shall still answer them.

The right answer is what the bare language model says, greedily, with nano's chat template: `texts.json`, which
`scripts/nano_texts.py` writes. Only answers that end within `LONGEST` tokens are kept.
"""

from __future__ import annotations

import json
import random
from functools import cache
from importlib.resources import files

from .base import LEAST, Picture, PictureSet, Split, Turn, open_set

LONGEST = 24
"""Tokens of an answer, its end not counted."""

_GROUNDS = ("scenes", "emoji", "stamps")
"""The sets that lend their pictures."""

_FILLED: dict[str, tuple[str, ...]] = {
    "What is the capital of {}?": (
        "France", "Italy", "Spain", "Germany", "Japan", "China", "India", "Egypt", "Kenya", "Canada", "Mexico",
        "Brazil", "Peru", "Chile", "Norway", "Sweden", "Finland", "Poland", "Greece", "Turkey", "Russia", "Cuba",
        "Portugal", "Austria", "Hungary", "Ireland", "Australia", "Thailand", "Vietnam", "Nigeria",
    ),
    "What does a {} do? Answer in one sentence.": (
        "baker", "teacher", "farmer", "pilot", "nurse", "judge", "painter", "plumber", "chef", "lawyer", "gardener",
        "sailor", "tailor", "carpenter", "dentist", "librarian", "firefighter", "journalist", "mechanic", "musician",
    ),
    "What is a {} used for? Answer in one sentence.": (
        "hammer", "needle", "telescope", "compass", "kettle", "ladder", "broom", "pencil", "microscope", "thermometer",
        "bicycle", "umbrella", "calendar", "bridge", "candle", "pillow", "shovel", "radio", "map", "bell",
    ),
    "What is the opposite of {}?": (
        "hot", "big", "fast", "light", "happy", "old", "wet", "hard", "loud", "early", "rich", "empty", "strong",
        "brave", "deep", "smooth", "sharp", "near", "open", "sweet",
    ),
    "Write one short sentence about {}.": (
        "the sea", "winter", "friendship", "music", "a train", "the moon", "bread", "a forest", "school", "rain",
        "a garden", "dreams", "a river", "time", "courage", "coffee", "a mountain", "books", "the desert", "summer",
    ),
    "Where do {} live? Answer in one sentence.": (
        "penguins", "camels", "whales", "lions", "bees", "polar bears", "kangaroos", "owls", "frogs", "monkeys",
        "sharks", "spiders", "wolves", "elephants", "eagles",
    ),
    "What do {} eat? Answer in one sentence.": (
        "rabbits", "horses", "pandas", "cows", "cats", "squirrels", "tigers", "ducks", "snakes", "bears", "goats",
        "mice", "seals", "koalas", "hens",
    ),
    "Name three {}.": (
        "fruits", "planets", "countries", "sports", "vegetables", "rivers", "metals", "musical instruments", "trees",
        "oceans", "insects", "languages", "colors", "birds", "cities", "flowers", "languages of Europe", "tools",
    ),
    "What is {}?": (
        "gravity", "water made of", "2 + 2", "3 + 4", "5 + 5", "10 - 3", "6 times 2", "9 minus 4", "photosynthesis",
        "an atom", "a verb", "a noun", "democracy", "the largest ocean", "the longest river", "the speed of light",
        "oxygen", "a volcano", "a poem", "inflation",
    ),
    "Who {}? Answer in one sentence.": (
        "was Albert Einstein", "wrote Hamlet", "was Isaac Newton", "painted the Mona Lisa", "was Marie Curie",
        "was Leonardo da Vinci", "invented the telephone", "was Charles Darwin", "was Mozart", "was Cleopatra",
        "was Galileo", "was Napoleon", "discovered penicillin", "was Aristotle", "was Gandhi",
    ),
    "Give me one short tip for {}.": (
        "sleeping well", "learning a language", "saving money", "cooking rice", "running faster", "writing a letter",
        "staying healthy", "public speaking", "planting tomatoes", "reading more", "packing a suitcase",
        "making friends", "studying for an exam", "taking care of a dog", "drawing a face",
    ),
    "Say {} in French.": ("hello", "thank you", "good night", "water", "bread", "goodbye", "please", "friend"),
    "Complete the sentence: {}": (
        "The sun rises in the", "Birds of a feather", "An apple a day", "Once upon a time", "Better late than",
        "Practice makes", "Time is", "Actions speak louder than", "The early bird", "Honesty is the best",
    ),
    "{}": (
        "Hello!", "Thank you!", "Good morning.", "How are you?", "Who are you?", "What can you do?",
        "Can you help me?", "Tell me a joke.", "What day comes after Monday?", "How many days are in a week?",
        "How many minutes are in an hour?", "Is the earth round?", "Is ice cold?", "Do fish swim?",
        "Can people fly without a machine?", "Why is the sky blue?", "Good bye!", "What is your name?",
        "How many legs does a spider have?", "How many months are in a year?",
    ),
}  # fmt: skip


class Texts(PictureSet):
    """Pictures of other sets, and questions that are not about them."""

    name = "texts"

    def __init__(self, split: Split) -> None:
        super().__init__(split)
        self.grounds = [open_set(name, split) for name in _GROUNDS]
        known, new = parts()
        self.usable = list((new if split == "test" else known).items())

    def draw(self, dice: random.Random, number: int) -> Picture:
        """See `PictureSet`."""
        ground = self.grounds[number % len(self.grounds)].picture(number)
        chosen = dice.sample(self.usable, LEAST)
        return Picture(ground.image, tuple(Turn("texts", question, answer) for question, answer in chosen))


SET = Texts


def questions() -> list[str]:
    """All of them."""
    return [frame.format(word) for frame, words in _FILLED.items() for word in words]


def parts() -> tuple[dict[str, str], dict[str, str]]:
    """Questions with their answers: those of training, and every fourth, which is held out."""
    answers = _answers()
    held_out = {question for number, question in enumerate(questions()) if number % 4 == 3}
    return (
        {question: answer for question, answer in answers.items() if question not in held_out},
        {question: answer for question, answer in answers.items() if question in held_out},
    )


@cache
def _answers() -> dict[str, str]:
    return json.loads((files("vlora.data.sets.nano") / "texts.json").read_text(encoding="utf-8"))
