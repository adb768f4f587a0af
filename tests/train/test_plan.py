"""A plan agrees with the counts on paper, with the model it assembles, and warns where it should."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import CLIPVisionConfig, LlamaConfig

from tests.helpers import KINDS
from vlora.cost.memory import GIGABYTE
from vlora.errors import InputError, ModelNotFound
from vlora.model import GeneratorConfig, VLoRAConfig, VLoRAForConditionalGeneration
from vlora.train.config import SourceSection, TrainConfig, load_config, parse
from vlora.train.counting import Counted, count
from vlora.train.plan import Hardware, Plan, Side, make_plan, needs_checkpointing, shares
from vlora.train.sizes import formula_parts, learning_of, meta_parts, model_config, shapes_of

CONFIGS = Path(__file__).parents[2] / "configs"
PAPER = {"pretrain": "paper-pretrain.yaml", "finetune": "paper-finetune.yaml"}
WITHIN = 0.1

# Counted by hand: Vicuna-7B and CLIP-L/14-336, H100s at 40 % of 798 TFLOP/s, 8 of them, 30 M or 665 k samples.
# stage, generator's width, paradigm, TFLOPs of a sample without and with recomputation, samples/s of a GPU, hours.
TABLE = [
    ("pretrain", 512, "weights", (1.33, 1.75), (240, 182), (4.3, 5.7)),
    ("pretrain", 1024, "weights", (1.60, 2.03), (199, 157), (5.2, 6.6)),
    ("pretrain", 512, "visual-tokens", (16.7, 24.8), (19, 13), (54, 81)),
    ("finetune", 512, "weights", (10.7, 14.1), (30, 23), (0.77, 1.0)),
    ("finetune", 512, "visual-tokens", (34.0, 45.1), (9, 7), (2.5, 3.3)),
]


def planned(name: str, *overrides: str, **options: Any) -> Plan:
    return make_plan(load_config(CONFIGS / name, list(overrides)), **options)


def config(**sections: Any) -> TrainConfig:
    """A small experiment with built-in sizes."""
    fields: dict[str, Any] = {
        "model": {
            "language_model": "smollm2-135m",
            "vision": "clip-vit-b-32",
            "generator": {"dim": 64, "depth": 1, "heads": 4, "rank": 8},
        },
        "data": {"sources": [{"format": "folder", "path": "nowhere", "limit": 10000}]},
        "train": {"epochs": 1},
    }
    for name, section in sections.items():
        fields[name] = fields.get(name, {}) | section if isinstance(section, dict) else section
    return parse(fields, "test")


@pytest.mark.parametrize(("stage", "dim", "paradigm", "work", "rates", "hours"), TABLE)
def test_the_paper_by_hand(
    stage: str, dim: int, paradigm: Any, work: Any, rates: Any, hours: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(CONFIGS)  # where neither data nor a checkpoint lies
    side = planned(PAPER[stage], f"model.generator.dim={dim}").sides[paradigm]
    counted = tuple(side.plain.total(checkpointing=on) / 1e12 for on in (False, True))
    assert counted == pytest.approx(work, rel=WITHIN)
    assert side.plain_samples_per_second == pytest.approx(rates, rel=WITHIN)
    assert side.plain_hours == pytest.approx(hours, rel=WITHIN)
    # What we compute is no more than that, and in stage one less.
    assert side.step.total(checkpointing=True) <= 1.001 * side.plain.total(checkpointing=True)


@pytest.mark.parametrize(("dim", "states", "gigabytes"), [(512, 13.4, 27.5), (1024, 32.2, 46)])
def test_memory_of_stage_one_by_hand(dim: int, states: float, gigabytes: float) -> None:
    plan = planned("paper-pretrain.yaml", f"model.generator.dim={dim}")
    alone = plan.own.memory["ddp"][False]
    assert alone.frozen / GIGABYTE == pytest.approx(13.5 + 0.6, rel=0.02)
    assert (alone.plain_states - alone.frozen) / GIGABYTE == pytest.approx(states, rel=0.02)
    assert alone.plain_states / GIGABYTE == pytest.approx(gigabytes, rel=0.02)
    assert alone.factors / plan.micro_batch / 1e6 == pytest.approx(42, rel=0.01)
    assert plan.own.trained * 2 / 1e9 == pytest.approx(1.7 if dim == 512 else 4.06, rel=0.01)


def test_what_the_paper_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stage one fits every GPU without recomputation, stage two in shards; a visual-token model recomputes in both."""
    monkeypatch.chdir(CONFIGS)
    first, second = (planned(name) for name in PAPER.values())
    assert (first.micro_batch, second.micro_batch) == (96, 16)
    assert (first.own.strategy, first.own.checkpointing) == ("ddp", False)
    assert (second.own.strategy, second.own.checkpointing) == ("fsdp", False)
    for plan in (first, second):
        assert plan.own.peak.total < 80 * GIGABYTE
        assert plan.sides["visual-tokens"].checkpointing
    assert first.warnings == ()
    assert [warning.split(" is ")[0] for warning in second.warnings] == ["model.checkpoint runs/paper-pretrain/final"]
    assert (first.amount.steps, second.amount.steps) == (39063, 5198)
    assert first.loader_cores == pytest.approx(13.7, rel=0.05)


@pytest.mark.parametrize(
    "name", ["paper-pretrain.yaml", "paper-finetune.yaml", "finetune-lora.yaml", "nano.yaml", "easy-vqa.yaml"]
)
@pytest.mark.parametrize("paradigm", ["weights", "visual-tokens"])
def test_assembled_parts_are_those_of_the_formulas(name: str, paradigm: Any) -> None:
    settings = load_config(CONFIGS / name)
    model = model_config(settings)
    parts = meta_parts(settings, model, paradigm=paradigm)
    assert parts == formula_parts(shapes_of(model), learning_of(settings), paradigm=paradigm)
    assert any(part.trained for part in parts)


@pytest.mark.parametrize("kind", KINDS)
def test_assembled_generators_are_those_of_the_formulas(kind: dict[str, Any]) -> None:
    options = {"dim": 16, "depth": 1, "heads": 2, "rank": 4} | kind
    settings = config(model={"generator": options})
    model = model_config(settings)
    assert meta_parts(settings, model, paradigm="weights") == formula_parts(
        shapes_of(model), learning_of(settings), paradigm="weights"
    )


# ---- gradient checkpointing -------------------------------------------------------------------------


def asks(settings: TrainConfig | None = None, **options: Any) -> bool:
    settings = settings or load_config(CONFIGS / "paper-pretrain.yaml")
    usual: dict[str, Any] = {"memory_bytes": 80 * GIGABYTE, "micro_batch": 96, "tokens": 32}
    return needs_checkpointing(settings, **(usual | options))


def test_auto_asks_memory() -> None:
    assert not asks()
    assert asks(memory_bytes=55 * GIGABYTE)
    assert asks(micro_batch=192)
    assert asks(tokens=128)
    second = load_config(CONFIGS / "paper-finetune.yaml")
    assert asks(settings=second, micro_batch=1)  # the states alone are too much for one device
    assert not asks(settings=second, micro_batch=16, tokens=256, world=8)
    assert asks(settings=second, micro_batch=16, tokens=2048, world=8)
    assert asks(settings=second, micro_batch=1, tokens=32, world=8, strategy="ddp")
    tokens = load_config(CONFIGS / "paper-pretrain.yaml", ["paradigm=visual-tokens"])
    assert asks(settings=tokens)


def test_auto_takes_the_loaded_model() -> None:
    """A model that no name leads to."""
    settings = config(model={"language_model": "elsewhere"})
    sizes: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
    }
    model = VLoRAConfig(
        text_config=LlamaConfig(**sizes, vocab_size=1000),
        vision_config=CLIPVisionConfig(**sizes, image_size=32, patch_size=8),
        generator_config=GeneratorConfig(dim=32, depth=1, heads=2, rank=4),
    )
    with torch.device("meta"):
        loaded: Any = VLoRAForConditionalGeneration(model)
    assert not asks(settings=settings, model=loaded.config, micro_batch=1, device="cpu")
    assert asks(settings=settings, model=loaded.config, micro_batch=10**6, device="cpu")
    with pytest.raises(ModelNotFound, match="elsewhere"):
        asks(settings=settings)


def test_the_largest_micro_batch_fits_and_one_more_does_not() -> None:
    side = planned("paper-pretrain.yaml").own
    for images, fits in ((side.largest_micro_batch, True), (side.largest_micro_batch + 1, False)):
        assert asks(micro_batch=images, world=8) is not fits


# ---- the amount of data -----------------------------------------------------------------------------


def llava(path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"id": str(n), "image": f"{n}.png", "conversations": [{"from": "human", "value": 'an "image": here?'}]}
        for n in range(5)
    ]
    del rows[2]["image"]
    path.write_text(json.dumps(rows))


def messages(path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "x"}], "images": [f"{n}.png"]} for n in range(5)]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")


def parquet(path: Path) -> None:
    from pyarrow import parquet as file
    from pyarrow import table

    write: Any = file.write_table  # pyright: ignore[reportUnknownMemberType]
    write(table({"messages": ["[]"] * 5, "images": [""] * 5}), path)


def captions(path: Path) -> None:
    path.write_text("image,caption\n" + "".join(f'{n}.png,"two\nlines"\n' for n in range(5)))


def folder(path: Path) -> None:
    path.mkdir()
    for n in range(5):
        (path / f"{n}.png").touch()
        (path / f"{n}.txt").touch()
    (path / "5.png").touch()  # has no text


def shards(path: Path) -> None:
    path.mkdir()
    (path / "index.json").write_text(json.dumps({"chunks": [{"chunk_size": 3}, {"chunk_size": 2}]}))


def dataset(path: Path) -> None:
    path.mkdir()
    (path / "dataset_info.json").write_text(json.dumps({"splits": {"train": {"num_examples": 5}}}))


@pytest.mark.parametrize(
    ("form", "name", "write", "bare"),
    [
        ("llava", "a.json", llava, 1),
        ("messages", "a.jsonl", messages, 0),
        ("messages", "a.parquet", parquet, 0),
        ("captions", "a.csv", captions, 0),
        ("folder", "a", folder, 0),
        ("shards", "a", shards, 0),
        ("dataset", "a", dataset, 0),
    ],
)
def test_counting(tmp_path: Path, form: Any, name: str, write: Callable[[Path], None], bare: int) -> None:
    path = tmp_path / name
    source = SourceSection(format=form, path=str(path))  # type: ignore[call-arg]
    assert count(source) is None
    write(path)
    assert count(source) == Counted(5, bare)
    assert count(source.model_copy(update={"limit": 3})) == Counted(3, bare)
    assert count(source.model_copy(update={"path": str(tmp_path / "*")})) == Counted(5, bare)


def test_on_and_off_are_words_in_a_config() -> None:
    """YAML reads them as true and false."""
    for word in ("on", "off"):
        read = load_config(CONFIGS / "nano.yaml", [f"train.gradient_checkpointing={word}"])
        assert read.train.gradient_checkpointing == word


def test_what_cannot_be_counted(tmp_path: Path) -> None:
    (tmp_path / "a.tar").touch()
    (tmp_path / "index.json").write_text("{")
    for form, path in (("webdataset", "a.tar"), ("shards", ""), ("dataset", ""), ("llava", "nothing-*.json")):
        assert count(SourceSection(format=form, path=str(tmp_path / path))) is None  # type: ignore[call-arg, arg-type]


def test_samples_come_from_files_then_limits_then_options(tmp_path: Path) -> None:
    source = {"format": "llava", "path": str(tmp_path / "a.json")}
    unknown = make_plan(config(data={"sources": [source]}))
    assert (unknown.amount.samples, unknown.amount.steps, unknown.own.hours) == (None, None, None)
    assert [w for w in unknown.warnings if "give --samples" in w]
    limited = make_plan(config(data={"sources": [source | {"limit": 3200}]}))
    assert (limited.amount.samples, limited.amount.origin, limited.amount.steps) == (3200, "limit", 200)
    llava(tmp_path / "a.json")
    counted = make_plan(config(data={"sources": [source | {"limit": 3200}]}))
    assert (counted.amount.samples, counted.amount.origin) == (5, "counted")
    given = make_plan(config(data={"sources": [source]}), samples=6400)
    assert (given.amount.samples, given.amount.origin, given.amount.seen) == (6400, "given", 6400)
    assert given.own.hours == pytest.approx(6400 / given.own.samples_per_second / 8 / 3600)
    steps = make_plan(config(train={"epochs": None, "steps": 50}))
    assert (steps.amount.steps, steps.amount.seen) == (50, 800)


# ---- warnings ---------------------------------------------------------------------------------------


def warnings_of(plan: Plan, *words: str) -> list[str]:
    return [warning for warning in plan.warnings if all(word in warning for word in words)]


def test_a_sound_config_has_no_warnings() -> None:
    assert (
        make_plan(config(data={"sources": [{"format": "folder", "path": "nowhere", "limit": 100000}]})).warnings == ()
    )


@pytest.mark.parametrize(
    ("name", "overrides", "options", "words"),
    [
        ("paper-pretrain.yaml", ["train.gradient_checkpointing=on"], {}, ("on and not needed", "56.9 GB", "24%")),
        (
            "paper-pretrain.yaml",
            ["train.gradient_checkpointing=off", "train.images_per_step=1024", "train.images_per_device=160"],
            {"tokens": 64},
            ("off and needed",),
        ),
        ("paper-finetune.yaml", ["train.parallel=ddp"], {}, ("Does not fit", "train.parallel: fsdp")),
        (
            "paper-finetune.yaml",
            ["train.optimizer=muon"],
            {},
            ("Does not fit", "with train.optimizer: adamw and train.parallel: fsdp"),
        ),
        ("paper-finetune.yaml", [], {"hardware": Hardware(gpus=1)}, ("Does not fit", "lora")),
        ("paper-pretrain.yaml", ["train.images_per_step=4096"], {}, ("Does not fit", "images_per_device to ")),
        ("paper-pretrain.yaml", ["train.parallel=fsdp"], {}, ("fsdp is not needed", "3.4 GB")),
        ("paper-pretrain.yaml", ["train.images_per_step=700"], {}, ("no multiple of 8 GPUs", "696")),
        ("paper-pretrain.yaml", ["train.images_per_device=50"], {}, ()),
        ("paper-pretrain.yaml", ["train.images_per_device=36"], {}, ()),
        ("paper-pretrain.yaml", ["train.images_per_device=20"], {}, ("5 micro-batches of up to 20",)),
        ("paper-pretrain.yaml", ["train.images_per_step=5"], {}, ("5 images for 8 GPUs",)),
        ("paper-pretrain.yaml", ["train.language_model_rate=1e-5"], {}, ("language_model_rate 1e-05", "frozen")),
        ("paper-pretrain.yaml", ["train.vision_rate=1e-5"], {}, ("vision_rate",)),
        ("paper-pretrain.yaml", ["paradigm=visual-tokens", "train.output_rate=2"], {}, ("output_rate 2",)),
        ("paper-pretrain.yaml", ["train.lora={rank: 8}"], {}, ("train.lora (rank 8)",)),
        ("paper-pretrain.yaml", ["data.sources.0.limit=7680"], {}, ("10 steps of 768",)),
        ("paper-pretrain.yaml", ["train.epochs=30"], {}, ("30 times over 30,000,000",)),
        ("paper-pretrain.yaml", ["train.warmup_steps=40000"], {}, ("warmup_steps 40000",)),
        ("paper-pretrain.yaml", ["train.schedule=constant", "train.decay_steps=40000"], {}, ("decay_steps 40000",)),
        ("paper-pretrain.yaml", ["data.max_text_tokens=16"], {}, ("max_text_tokens 16 is below the 32",)),
        ("paper-pretrain.yaml", ["data.workers=1"], {}, ("data.workers 1 on 8 GPUs", "14 cores")),
    ],
)
def test_warnings(name: str, overrides: list[str], options: dict[str, Any], words: tuple[str, ...]) -> None:
    plan = planned(name, *overrides, **options)
    found = [w for w in plan.warnings if not w.startswith("model.checkpoint")]
    if not words:
        assert found == []
        return
    [sentence] = warnings_of(plan, *words)
    assert sentence.endswith(".")
    assert found == [sentence]


def test_rows_without_an_image_teach_a_generator_nothing(tmp_path: Path) -> None:
    llava(tmp_path / "a.json")
    data = {"sources": [{"format": "llava", "path": str(tmp_path / "a.json"), "name": "mix"}]}
    first = make_plan(config(data=data))
    assert warnings_of(first, "1 of 5 samples of mix have no image", "the generator")
    assert first.images_per_second == pytest.approx(0.8 * 8 * first.own.samples_per_second)
    tokens = make_plan(config(data=data, paradigm="visual-tokens"))
    assert warnings_of(tokens, "1 of 5 samples of mix", "the projector")
    second = make_plan(config(data=data, stage="finetune", train={"epochs": 1, "language_model": "full"}))
    assert not warnings_of(second, "have no image")


def test_a_checkpoint_of_another_width(tmp_path: Path) -> None:
    """The contradiction of the authors' scripts is told before anything is trained."""
    settings = config()
    model_config(settings).save_pretrained(tmp_path)
    options = {"dim": 128, "depth": 1, "heads": 4, "rank": 8}
    other = config(model={"checkpoint": str(tmp_path), "generator": options})
    plan = make_plan(other)
    assert warnings_of(plan, "model.generator.dim 128 has no effect", "has 64")
    assert plan.shapes.generator.dim == 64


def test_the_looks_of_the_run_that_a_checkpoint_comes_from(tmp_path: Path) -> None:
    """A run that goes on from another with its seed and sources would repeat what that one saw."""
    begun = config()
    model_config(begun).save_pretrained(tmp_path / "final")
    after = {"model": {"checkpoint": str(tmp_path / "final")}}
    assert not warnings_of(make_plan(config(**after)), "looks")  # nothing tells how it was trained
    record = tmp_path / "config.yaml"
    record.write_text(yaml.safe_dump(begun.model_dump(mode="json")), encoding="utf-8")
    assert warnings_of(make_plan(config(**after)), "train.seed 0 is that of", str(tmp_path), "Give another seed")
    for other in ({"train": {"seed": 1}}, {"data": {"sources": [{"format": "folder", "path": "elsewhere"}]}}):
        assert not warnings_of(make_plan(config(**after, **other)), "looks")
    record.write_text("name: [of another program", encoding="utf-8")
    assert not warnings_of(make_plan(config(**after)), "looks")


# ---- the rest ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "limit", "gpus", "expected"),
    [(768, None, 8, (96, 1)), (768, 40, 8, (32, 3)), (5, None, 8, (1, 1)), (10, 4, 3, (4, 1)), (100, 30, 1, (25, 4))],
)
def test_shares(batch: int, limit: int | None, gpus: int, expected: tuple[int, int]) -> None:
    train = {"epochs": 1, "images_per_step": batch, "images_per_device": limit}
    assert shares(config(train=train), gpus) == expected


def test_the_other_paradigm_stands_beside() -> None:
    own, other = (make_plan(config(paradigm=name)) for name in ("weights", "visual-tokens"))
    assert own.sides == other.sides
    assert (own.own, other.own) == (own.sides["weights"], own.sides["visual-tokens"])
    assert isinstance(own.own, Side)
    assert other.own.parts[1].name == "projector"


def test_fewer_supervised_tokens_are_less_work_and_memory() -> None:
    whole, part = make_plan(config()).own, make_plan(config(), supervised=8).own
    assert part.step.forward.logits * 4 == whole.step.forward.logits
    assert part.peak.logits * 4 == whole.peak.logits
    assert part.plain == whole.plain


@pytest.mark.parametrize(
    "options",
    [
        {"tokens": 0},
        {"samples": -1},
        {"supervised": 33},
        {"hardware": Hardware(gpus=0)},
        {"hardware": Hardware(utilisation=1.5)},
        {"hardware": Hardware(gpu_memory=0)},
        {"hardware": Hardware(gpu_flops=float("nan"))},
    ],
)
def test_impossible_numbers(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"it must be above 0|give 1 at most|give no more"):
        make_plan(config(), **options)
