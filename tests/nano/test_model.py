"""The model that ships: it sees, it is small, and without an image it is the plain language model."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import vlora
from vlora.data.sets import easy_vqa
from vlora.evaluate.answerers import of_eyes
from vlora.evaluate.easy_vqa import evaluate
from vlora.evaluate.nano_suite import evaluate as nano_suite
from vlora.evaluate.predict import Drawn
from vlora.model.assemble import GENERATOR_FILE, PARTS_FILE
from vlora.nano.parts import language_model_folder

ROOT = Path(__file__).parents[2]
NANO = ROOT / "src" / "vlora" / "nano"


@pytest.fixture(scope="module")
def eyes(device: str) -> vlora.Eyes:
    return vlora.load("nano", device=device)


def test_the_weights_are_small_enough() -> None:
    assert (NANO / GENERATOR_FILE).stat().st_size < 26_000_000


def test_the_checkpoint_names_no_folder() -> None:
    for name in ("config.json", PARTS_FILE, "preprocessor_config.json"):
        assert "/" not in (NANO / name).read_text(encoding="utf-8").replace("https://", "")


def test_the_demo_is_answered_rightly(eyes: vlora.Eyes) -> None:
    examples = json.loads((ROOT / "examples" / "demo.json").read_text(encoding="utf-8"))
    paths = [ROOT / "examples" / "images" / example["image"] for example in examples]
    answers = eyes.ask(paths, [example["question"] for example in examples], max_new_tokens=4)
    assert answers == [example["expected"] for example in examples]


def test_it_looks(eyes: vlora.Eyes) -> None:
    """250 held-out questions; 0.95 of all 9 673 are right, and 0.93 is three standard errors below that."""
    assert evaluate(eyes, limit=250).total.accuracy > 0.91
    assert evaluate(eyes, limit=250, control="shuffled").total.accuracy < 0.75


def test_sixteen_at_once_are_sixteen_one_by_one(eyes: vlora.Eyes) -> None:
    data = easy_vqa.load("test")
    one_each = {question.image_id: question for question in data.questions}
    asked = random.Random(0).sample(list(one_each.values()), 16)
    images = [data.image_path(question.image_id) for question in asked]
    questions = [question.question for question in asked]
    together = eyes.ask(images, questions, max_new_tokens=8)
    alone = [eyes.ask(image, question, max_new_tokens=8) for image, question in zip(images, questions, strict=True)]
    assert together == alone


@torch.no_grad()
def test_bare_it_is_the_plain_language_model(eyes: vlora.Eyes) -> None:
    plain = AutoModelForCausalLM.from_pretrained(language_model_folder(), dtype=torch.float32).eval()
    plain.to(eyes.model.device)
    inputs = eyes.tokens(["What is the capital of France?", "Name a colour."])
    expected = plain(**inputs).logits
    assert torch.equal(eyes.model(**inputs).logits, expected)
    image = easy_vqa.load("test").image_path(0)
    weights = eyes.model.expand(eyes.perceive(image)).rows(torch.tensor([0, -1]))
    mixed = eyes.model(**inputs, perceptual_weights=weights.values).logits
    assert torch.equal(mixed[1], expected[1])
    assert not torch.allclose(mixed[0], expected[0])


def test_seen_once_asked_often(eyes: vlora.Eyes) -> None:
    image = easy_vqa.load("test").image_path(0)
    seen = eyes.perceive(image)
    assert seen.values.shape == (1, 4, 20, 256)
    assert seen.nbytes == 80 * 1024
    question = "what color is the shape?"
    assert eyes.ask(seen, question, max_new_tokens=4) == eyes.ask(image, question, max_new_tokens=4)
    assert "".join(eyes.stream(seen, question, max_new_tokens=4)).strip() == eyes.ask(seen, question, max_new_tokens=4)


def test_memory_stays_small() -> None:
    """The peak of a whole process that loads and answers.

    As the kernel counts it from the start of the program; `getrusage` would begin with what the parent held.
    """
    image = ROOT / "examples" / "images" / "shape-1.png"
    script = (
        f"import vlora; vlora.load('nano').ask({str(image)!r}, 'what is the shape?');"
        "print(*(line for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-2]) * 1024 < 2.5e9  # "VmHWM:  1035424 kB"


def test_it_answers_about_scenes_that_training_never_shows(eyes: vlora.Eyes) -> None:
    """Six kinds of questions of the nano suite that need nothing fetched: what one gets by guessing is under 0.45."""
    tasks = ("scenes/colour", "scenes/shape", "scenes/yes-no", "scenes/count", "scenes/place", "scenes/size")

    def tokens(text: str) -> int:
        return len(eyes.processor.tokenizer(text)["input_ids"])

    scores = nano_suite(of_eyes(eyes), model="nano", tokens=tokens, tasks=tasks, limit=40, controls=["shuffled"]).tasks
    seen = sum(one["none"].correct for one in scores.values())
    blind = sum(one["shuffled"].correct for one in scores.values())
    assert seen > 0.55 * 240
    assert seen > blind + 0.15 * 240


def test_it_answers_texts_while_it_wears_an_image(eyes: vlora.Eyes) -> None:
    image = Drawn("scenes", "test", 0).open()
    assert eyes.ask(image, "What is the capital of Italy?", max_new_tokens=12) == "The capital of Italy is Rome."
    assert eyes.ask(None, "What is the capital of Italy?", max_new_tokens=12) == "The capital of Italy is Rome."
