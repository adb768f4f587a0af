"""A training run: what it leaves behind, that it trains only the generator, and that death does not matter."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml
from filelock import FileLock
from safetensors.torch import load_file

import vlora
from tests.train.processes import largest_loss_difference, lines, losses
from vlora.errors import CheckpointError, InputError
from vlora.model.assemble import fingerprint
from vlora.train.checkpoint import last_checkpoint
from vlora.train.config import load_config
from vlora.train.learner import build
from vlora.train.run import Interrupted, train
from vlora.train.watch import Progress

SCRIPT = """
import sys
from vlora.train.config import load_config
from vlora.train.run import train
train(load_config(sys.argv[1]), run_dir=sys.argv[2], resume=sys.argv[3])
"""


def test_a_run_leaves_a_checkpoint_that_loads(tiny_config: Path, tmp_path: Path, device: str) -> None:
    reports: list[Progress] = []
    final = train(load_config(tiny_config, [f"train.device={device}"]), run_dir=tmp_path / "run", report=reports.append)
    assert [report.step for report in reports] == list(range(1, 13))
    assert reports[-1].seconds_left == 0
    assert reports[-1].questions_per_second == pytest.approx(2 * reports[-1].images_per_second)
    assert sorted(losses(tmp_path / "run")) == list(range(1, 13))
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["torch"] == torch.__version__
    assert (tmp_path / "run" / "config.yaml").is_file()
    eyes = vlora.load(final)
    assert isinstance(eyes.ask(None, "What is the shape?", max_new_tokens=2), str)


@pytest.mark.parametrize("encoder", ["lite0", "lite2"])
def test_only_the_generator_is_trained(encoder: str, tiny_config: Path, tmp_path: Path) -> None:
    config = load_config(tiny_config, [f"model.vision_options.variant={encoder}"])
    before = build(config, torch.device("cpu")).model
    final = train(config, run_dir=tmp_path / "run")
    after = vlora.load(final).model
    for part in ("language_model", "vision_tower"):
        assert fingerprint(getattr(before.model, part)) == fingerprint(getattr(after.model, part))
    assert sum(b.abs().sum() for b in after.model.generator.b.values()) > 0
    assert {p.requires_grad for p in before.model.language_model.parameters()} == {False}


def test_killed_and_resumed_is_the_uninterrupted_run(tiny_config: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(load_config(tiny_config), run_dir=whole)
    command = [sys.executable, "-c", SCRIPT, str(tiny_config), str(broken)]
    process = subprocess.Popen([*command, "none"], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while last_checkpoint(broken) is None and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    checkpoint = last_checkpoint(broken)
    assert checkpoint is not None
    assert not (broken / "final").exists(), "the run ended before it was killed: the test proves nothing"
    # A line that was cut off in the middle of writing must not hurt either.
    with (broken / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 99, "lo')
    subprocess.run([*command, "auto"], check=True, stderr=subprocess.DEVNULL)
    expected, found = losses(whole), losses(broken)
    assert found.keys() == expected.keys()
    assert max(abs(found[step] - expected[step]) for step in expected) < 1e-4
    a, b = (load_file(run / "final" / "generator.safetensors") for run in (whole, broken))
    assert max((a[name].float() - b[name].float()).abs().max() for name in a) < 1e-2  # stored in bfloat16


def test_a_wish_ends_the_run_after_its_step_and_saves(tiny_config: Path, tmp_path: Path) -> None:
    config, asked = load_config(tiny_config), iter([False, True])
    with pytest.raises(Interrupted, match=r"stopped after step 2 of 12, which is saved: go on with --resume auto"):
        train(config, run_dir=tmp_path / "run", stop=lambda: next(asked))
    assert last_checkpoint(tmp_path / "run") == tmp_path / "run" / "checkpoint-2"
    train(config, run_dir=tmp_path / "run", resume="auto")
    assert sorted(losses(tmp_path / "run")) == list(range(1, 13))


def test_a_run_that_goes_on_waits_for_what_is_left_of_a_killed_one(tiny_config: Path, tmp_path: Path) -> None:
    config, run = load_config(tiny_config, ["train.steps=1", "train.warmup_steps=0"]), tmp_path / "run"
    run.mkdir()
    held = FileLock(run / ".lock", thread_local=False)
    held.acquire()
    with pytest.raises(InputError, match="is in use by another process"):
        train(config, run_dir=run)
    threading.Timer(0.5, held.release).start()
    assert train(config, run_dir=run, resume="auto") == run / "final"


def test_a_run_made_longer_is_the_long_run(tiny_config: Path, tmp_path: Path) -> None:
    whole, longer = tmp_path / "whole", tmp_path / "longer"
    options = ["train.decay_steps=0", "train.steps=8"]
    train(load_config(tiny_config, options), run_dir=longer)
    shutil.rmtree(longer / "final")
    for run, resume in ((whole, "none"), (longer, "auto")):
        train(load_config(tiny_config, [*options, "train.steps=12"]), run_dir=run, resume=resume)
    rates = [[line["learning_rate"] for line in lines(run / "metrics.jsonl")] for run in (whole, longer)]
    assert rates[0] == rates[1]
    assert largest_loss_difference(whole, longer) < 1e-4


def test_a_checkpoint_without_its_last_file_is_passed_over(tmp_path: Path) -> None:
    for step in (4, 12, 8):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if step != 12:
            (folder / "complete.json").write_text("{}")
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-8"


def test_a_run_folder_in_use_is_refused(tiny_config: Path, tmp_path: Path) -> None:
    config = load_config(tiny_config, ["train.steps=1", "train.warmup_steps=0"])
    train(config, run_dir=tmp_path / "run")
    with pytest.raises(InputError, match="holds a run: go on with --resume auto"):
        train(config, run_dir=tmp_path / "run")
    changed = load_config(tiny_config, ["train.steps=1", "train.warmup_steps=0", "train.learning_rate=0.5"])
    with pytest.raises(InputError, match=r"another config \(different: train\.learning_rate\)"):
        train(changed, run_dir=tmp_path / "run", resume="auto")
    with pytest.raises(InputError, match="There is no whole checkpoint"):
        train(config, run_dir=tmp_path / "run", resume=str(tmp_path / "nowhere"))


def test_a_run_of_before_a_field_existed_goes_on(tiny_config: Path, tmp_path: Path) -> None:
    config = load_config(tiny_config, ["train.steps=1", "train.warmup_steps=0"])
    train(config, run_dir=tmp_path / "run")
    path = tmp_path / "run" / "config.yaml"
    saved = yaml.safe_load(path.read_text())
    del saved["model"]["views"]
    path.write_text(yaml.safe_dump(saved))
    assert train(config, run_dir=tmp_path / "run", resume="auto") == tmp_path / "run" / "final"
    assert "views" in yaml.safe_load(path.read_text())["model"]


def test_a_generator_of_another_language_model_is_refused(tiny_config: Path, tmp_path: Path) -> None:
    final = train(load_config(tiny_config, ["train.steps=1", "train.warmup_steps=0"]), run_dir=tmp_path / "run")
    with pytest.raises(CheckpointError, match="was made for the language model"):
        vlora.load(final, language_model="nano")
