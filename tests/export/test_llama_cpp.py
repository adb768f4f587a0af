"""The real llama.cpp wears an image: every family, every target, and nano's answers, which are ours."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch

import vlora
from tests.export.ggufs import rewrite, write_language_model
from tests.helpers import images, plain_llm, shared_model, token_ids
from vlora.data.prompts import render
from vlora.data.sets import easy_vqa
from vlora.errors import CheckpointError, InputError, MissingDependency
from vlora.evaluate.easy_vqa import MAX_NEW_TOKENS, Result, evaluate
from vlora.evaluate.scoring import is_correct
from vlora.export.adapter import Adapter, adapter_of, base_of
from vlora.export.gguf import FAMILIES, Template, save_file
from vlora.export.llama_cpp import LlamaCpp
from vlora.model import PerceptualWeights, VLoRAForConditionalGeneration
from vlora.model.weights import MERGEABLE
from vlora.nano.parts import packaged_language_model

pytestmark = pytest.mark.usefixtures("llama_cpp")

ROOT = Path(__file__).parents[2]
QUESTIONS = 300


@torch.no_grad()
def weights_of(model: VLoRAForConditionalGeneration, *seeds: int) -> PerceptualWeights:
    return model.expand(model.perceive(torch.cat([images(1, seed) for seed in seeds]))).composed()


def adapter(model: VLoRAForConditionalGeneration, *seeds: int) -> Adapter:
    return adapter_of(weights_of(model, *seeds), base_of(model))


@torch.no_grad()
def check(llm: LlamaCpp, model: VLoRAForConditionalGeneration, weights: PerceptualWeights | None) -> None:
    """llama.cpp's logits are ours."""
    family = model.config.text_config.model_type
    # llama.cpp knows no sliding window in a Mistral, so its text stays shorter; and it reads the GELU of Gemma
    # from a table in float16.
    ids = token_ids(1, 5 if family == "mistral" else 9)
    tolerance = 2e-2 if family.startswith("gemma") else 1e-4
    expected = model(input_ids=ids, perceptual_weights=weights).logits[0]
    torch.testing.assert_close(llm.logits(ids[0].tolist()), expected, rtol=0, atol=tolerance)
    if weights is not None:
        assert (model(input_ids=ids).logits[0] - expected).abs().max() > 0.5


def tiny_llama(model: VLoRAForConditionalGeneration, folder: Path) -> LlamaCpp:
    path = write_language_model(plain_llm(model), folder / "base.gguf")
    return LlamaCpp(path, threads=1, context=64, exact=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(tmp_path: Path, family: str) -> None:
    model = shared_model(family, targets=MERGEABLE)  # with two key-value heads for four heads
    with tiny_llama(model, tmp_path) as llm, Template(adapter(model, 1)) as template:
        check(llm, model, None)
        llm.wear(template)
        check(llm, model, weights_of(model, 1))
        llm.wear(None)
        check(llm, model, None)


@pytest.mark.parametrize("target", MERGEABLE)
def test_every_target(tmp_path: Path, target: str) -> None:
    model = shared_model(targets=(target,), layers=(0, 1, 2, 3), alpha=40.0)
    with tiny_llama(model, tmp_path) as llm, Template(adapter(model, 1)) as template:
        llm.wear(template)
        check(llm, model, weights_of(model, 1))


@pytest.mark.parametrize("options", [{}, {"factors": "b"}, {"factors": "ab", "static_rank": 2}], ids=str)
def test_one_image_after_the_other(tmp_path: Path, options: dict[str, Any]) -> None:
    model = shared_model(targets=MERGEABLE, **options)
    with tiny_llama(model, tmp_path) as llm, Template(adapter(model, 1)) as template:
        for seed in (1, 2, 1, 3):
            template.put(adapter(model, seed))
            llm.wear(template)
            check(llm, model, weights_of(model, seed))


@pytest.mark.parametrize("options", [{}, {"factors": "b"}, {"factors": "ab", "static_rank": 2}], ids=str)
def test_composed_images_from_a_file(tmp_path: Path, options: dict[str, Any]) -> None:
    model = shared_model(targets=MERGEABLE, **options)
    save_file(adapter(model, 1, 2), tmp_path / "both.gguf")
    with tiny_llama(model, tmp_path) as llm:
        llm.wear(tmp_path / "both.gguf")
        check(llm, model, weights_of(model, 1, 2))


def test_what_cannot_be_worn(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = shared_model(targets=MERGEABLE)
    other = shared_model("qwen2", targets=MERGEABLE)
    with tiny_llama(model, tmp_path) as llm:
        with (
            Template(adapter(other, 1)) as template,
            pytest.raises(CheckpointError, match=r"^The adapter in memory is"),
        ):
            llm.wear(template)
        (tmp_path / "cut.gguf").write_bytes(b"GGUF")
        for name in ("cut.gguf", "missing.gguf"):
            with pytest.raises(CheckpointError, match=rf"{name} is missing, damaged, or of another family or size"):
                llm.wear(tmp_path / name)
        check(llm, model, None)
        with pytest.raises(InputError, match=r"A text of 65 tokens was given; llama\.cpp's context takes 1 to 64"):
            llm.logits([3] * 65)
    with pytest.raises(CheckpointError, match=r"no model that llama\.cpp can load"):
        LlamaCpp(tmp_path / "cut.gguf")
    assert capfd.readouterr() == ("", "")


def test_a_wrong_order_of_rows_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = shared_model(targets=MERGEABLE)
    with tiny_llama(model, tmp_path) as llm:
        monkeypatch.setattr("vlora.export.gguf.as_neighbours", lambda rows, heads: rows)
        with Template(adapter(model, 1)) as template:
            llm.wear(template)
            with pytest.raises(AssertionError):
                check(llm, model, weights_of(model, 1))


def test_without_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(MissingDependency, match=r'run `pip install "vlora-mllm\[llama-cpp\]"`'):
        LlamaCpp("any.gguf")


# -- nano ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def eyes() -> vlora.Eyes:
    return vlora.load("nano", device="cpu")


@pytest.fixture
def smollm() -> Generator[LlamaCpp]:
    with LlamaCpp(packaged_language_model(), threads=1) as llm:
        yield llm


def test_nano_answers_in_llama_cpp(eyes: vlora.Eyes, smollm: LlamaCpp) -> None:
    question = "what color is the shape?"
    prompt = render(question, eyes.processor, 1)
    assert smollm.tokens(prompt) == eyes.tokens([question])["input_ids"][0].tolist()
    bare = smollm.complete(prompt, max_new_tokens=8)
    answers: list[str] = []
    template: Template | None = None
    for number in (1, 2, 3):
        image = ROOT / "examples" / "images" / f"shape-{number}.png"
        seen = eyes.adapter(image)
        template = template or Template(seen)
        template.put(seen)
        smollm.wear(template)
        answers.append(smollm.complete(prompt, max_new_tokens=8))
        assert answers[-1] == eyes.ask(image, question, max_new_tokens=8)
    assert len({bare, *answers}) == 4


def test_the_example() -> None:
    script = ROOT / "examples" / "llama_cpp_sees.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "llama.cpp, seeing     green\n" in done.stdout
    assert "0 visual tokens" in done.stdout


@pytest.fixture(scope="module")
def ours(eyes: vlora.Eyes) -> Result:
    return evaluate(eyes, limit=QUESTIONS, seed=0)


def answers_of(llm: LlamaCpp, eyes: vlora.Eyes, result: Result) -> list[str]:
    """The same questions, answered by llama.cpp."""
    data, answers = easy_vqa.load("test"), list[str]()
    template: Template | None = None
    for row in result.rows:
        seen = eyes.adapter(data.image_path(row.image_id))
        template = template or Template(seen)
        template.put(seen)
        llm.wear(template)
        answers.append(llm.complete(render(row.question, eyes.processor, 1), max_new_tokens=MAX_NEW_TOKENS))
    return answers


def check_answers(answers: list[str], result: Result) -> None:
    same = sum(answer == row.prediction for answer, row in zip(answers, result.rows, strict=True))
    right = sum(is_correct(answer, row.answer) for answer, row in zip(answers, result.rows, strict=True))
    assert same >= 0.97 * QUESTIONS
    assert abs(right / QUESTIONS - result.total.accuracy) <= 0.02


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_answers_agree_on_the_packaged_base(eyes: vlora.Eyes, smollm: LlamaCpp, ours: Result) -> None:
    """4-bit matrices, as packaged, which llama.cpp multiplies with activations of 8 bits."""
    check_answers(answers_of(smollm, eyes, ours), ours)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_answers_agree_on_a_base_of_half_precision(eyes: vlora.Eyes, ours: Result, tmp_path: Path) -> None:
    with LlamaCpp(rewrite(packaged_language_model(), tmp_path / "base.gguf", torch.float16), threads=1) as llm:
        check_answers(answers_of(llm, eyes, ours), ours)


@pytest.mark.slow
@torch.no_grad()
def test_logits_are_ours_on_a_base_of_full_precision(eyes: vlora.Eyes, tmp_path: Path) -> None:
    path = rewrite(packaged_language_model(), tmp_path / "base.gguf", torch.float32)
    data = easy_vqa.load("test")
    with LlamaCpp(path, threads=1, exact=True) as llm:
        for asked in data.questions[::1000]:
            seen = eyes.adapter(data.image_path(asked.image_id))
            with Template(seen) as template:
                llm.wear(template)
            ids = eyes.tokens([asked.question])["input_ids"]
            expected = eyes.model(input_ids=ids, perceptual_weights=seen.weights).logits[0]
            # The next token's; at other positions logits of hundreds of thousands of sums differ by up to 1e-3.
            torch.testing.assert_close(llm.logits(ids[0].tolist())[-1], expected[-1], rtol=0, atol=2e-4)
