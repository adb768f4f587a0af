"""Death at any moment, broken pictures, a loss that is not finite, Ctrl-C, a full disk: a sentence, nothing lost."""

from __future__ import annotations

import json
import random
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml
from filelock import FileLock

from tests.helpers import picture
from tests.train.processes import (
    check_every_id_once,
    command,
    finish,
    largest_difference,
    largest_loss_difference,
    losses,
    start,
)
from vlora.errors import DataError, InputError, MissingDependency, VLoRAError
from vlora.train.config import TrainConfig, load_config
from vlora.train.run import Interrupted, train
from vlora.train.watch import Progress

WHOLE = ("--set", "train.log_ids=true", "--set", "train.stored_dtype=float32")


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_twenty_deaths_at_random_moments(tiny_config: Path, tmp_path: Path) -> None:
    """Three epochs of ten steps, a checkpoint after each; killed 20 times, whatever it is doing, and resumed."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    options = (*WHOLE, "--set", "train.steps=30", "--set", "train.save_steps=1", "--set", "train.keep_checkpoints=1")
    finish(command(tiny_config, whole, *options))
    dice, moments = random.Random(0), []
    for _ in range(20):
        process = start(command(tiny_config, broken, *options, "--resume", "auto"))
        # From the moment on at which it has come further than before: in a step, in the writing of a checkpoint, ...
        before, deadline = _newest(broken), time.monotonic() + 120
        while _newest(broken) == before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(dice.uniform(0, 0.05))
        assert process.poll() is None, "the run was over before it was killed: the test proves nothing"
        process.send_signal(signal.SIGKILL)
        process.communicate()
        moments.append(_newest(broken))
    assert len(moments) == 20
    finish(command(tiny_config, broken, *options, "--resume", "auto"))
    check_every_id_once(broken, steps=30, per_epoch=10, samples=40)
    assert largest_loss_difference(whole, broken) < 1e-4
    assert largest_difference(whole, broken) < 1e-4


def _newest(run: Path) -> int:
    return max((int(path.name.split("-")[1]) for path in run.glob("checkpoint-*")), default=0)


def settings(config: Path, *overrides: str) -> TrainConfig:
    return load_config(config, list(overrides))


def with_folder(config: Path, folder: Path, **data: object) -> Path:
    """The same config over a folder of captioned pictures."""
    fields = yaml.safe_load(config.read_text(encoding="utf-8"))
    fields["data"] = {"sources": [{"format": "messages", "path": str(folder / "rows.jsonl")}], **data}
    path = config.with_name("folder.yaml")
    path.write_text(yaml.safe_dump(fields), encoding="utf-8")
    return path


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Twelve rows with pictures, two of them broken: one is noise, one is not there."""
    folder = tmp_path / "rows"
    folder.mkdir()
    lines = []
    for number in range(12):
        name = f"{number}.png"
        if number == 3:
            (folder / name).write_bytes(b"noise")
        elif number != 7:
            picture(number).save(folder / name)
        turns = [
            {"role": "user", "content": "<image>What is it?"},
            {"role": "assistant", "content": f"Number {number}."},
        ]
        lines.append(json.dumps({"id": str(number), "messages": turns, "images": [name]}))
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_broken_pictures_are_left_out_counted_and_listed(tiny_config: Path, rows: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(settings(with_folder(tiny_config, rows), "train.steps=6"), run_dir=run)
    broken = [json.loads(line) for line in (run / "broken-0.jsonl").read_text().splitlines()]
    assert sorted(line["id"].split("/")[1] for line in broken) == ["3", "3", "7", "7"]  # two epochs of three steps
    assert all(line["where"] and line["reason"] for line in broken)
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["broken"] == 4
    assert all(torch.tensor(list(losses(run).values())).isfinite())


def test_too_many_broken_pictures_stop_the_run(tiny_config: Path, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"2 images are broken, where data.max_broken allows 1; they are listed in"):
        train(settings(with_folder(tiny_config, rows, max_broken=1), "train.steps=6"), run_dir=tmp_path / "run")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_sample_with_nothing_to_learn_stops_the_run_with_its_line(
    tiny_config: Path, rows: Path, tmp_path: Path, workers: int
) -> None:
    path = rows / "rows.jsonl"
    lines = path.read_text().splitlines()
    lines[4] = json.dumps({"id": "4", "messages": [{"role": "user", "content": "Nobody answers."}]})
    path.write_text("\n".join(lines))
    config = with_folder(tiny_config, rows, workers=workers)
    with pytest.raises(DataError, match=r"rows\.jsonl line 5") as caught:
        train(settings(config, "train.steps=6"), run_dir=tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_a_loss_that_is_not_finite_names_its_samples(tiny_config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(
        VLoRAError, match=r"The loss is not finite at step \d+, whose looks are easy-vqa/\d+, "
    ) as caught:
        train(settings(tiny_config, "train.learning_rate=1e38", "train.save_steps=1"), run_dir=run)
    step = int(str(caught.value).split("step ")[1].split(",")[0])
    assert _newest(run) == step - 1  # what is saved was made before


def test_ctrl_c_saves_and_the_run_goes_on(tiny_config: Path, tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(settings(tiny_config, "train.stored_dtype=float32"), run_dir=whole)

    def press(progress: Progress) -> None:
        if progress.step == 5:
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    config = settings(tiny_config, "train.stored_dtype=float32", "train.save_steps=100")
    with pytest.raises(Interrupted, match=r"stopped after step 6 of 12, which is saved: go on with --resume auto"):
        train(config, run_dir=stopped, report=press)
    assert signal.getsignal(signal.SIGINT) is before
    train(config, run_dir=stopped, resume="auto")
    assert largest_loss_difference(whole, stopped) < 1e-4
    assert largest_difference(whole, stopped) < 1e-4


def test_a_run_folder_that_is_being_written_is_refused(tiny_config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with FileLock(run / ".lock", thread_local=False):
            held.set()
            done.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(60)
    try:
        with pytest.raises(InputError, match="is in use by another process: wait for it, or give another --run-dir"):
            train(settings(tiny_config), run_dir=run)
    finally:
        done.set()
        holder.join()


def test_a_reporter_that_is_not_there_is_named(tiny_config: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingDependency, match=r"train.report_to names wandb, .* run `pip install wandb`"):
        train(settings(tiny_config, "train.report_to=[wandb]"), run_dir=tmp_path / "run")


def test_a_full_disk_leaves_the_last_checkpoint(tiny_config: Path, tmp_path: Path) -> None:
    """A process that may write no file beyond a size, as a full disk would have it, from its second checkpoint on."""
    run = tmp_path / "run"
    script = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from vlora.cli import main\n"
        "from vlora.train import checkpoint\n"
        "whole = checkpoint.finish\n"
        "def finish(*arguments, **options):\n"
        "    whole(*arguments, **options)\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "checkpoint.finish = finish\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "main()\n"
    )
    program = command(tiny_config, run)
    process = start([program[0], "-c", script, *program[3:]])
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 2, output + errors
    (sentence,) = [line for line in errors.splitlines() if line.startswith("Error: ")]
    assert "A checkpoint cannot be written" in sentence
    assert "checkpoint-4 is whole" in sentence
    assert "Traceback" not in errors
    assert not (run / ".partial").exists()
    finish(command(tiny_config, run, "--resume", "auto"))
