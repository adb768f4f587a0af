"""A run on a Ray cluster: workers die, machines go, and it tells the story of one process that nobody disturbed."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from vlora.cli import app
from vlora.errors import ConfigError, InputError, MissingDependency, VLoRAError
from vlora.train.checkpoint import last_checkpoint
from vlora.train.cluster import _final, train_on_ray, workers_of
from vlora.train.config import TrainConfig, load_config
from vlora.train.run import train

STEPS, SAVE, LOOKS, SAMPLES = 40, 4, 4, 40
SETTINGS = [f"train.steps={STEPS}", f"train.save_steps={SAVE}", "train.log_ids=true", "train.stored_dtype=float32"]


# ---- what needs no cluster ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "workers"), [("2", 2), ("1:8", (1, 8))])
def test_a_number_of_workers(text: str, workers: object) -> None:
    assert workers_of(text) == workers


@pytest.mark.parametrize("text", ["", "many", "-1", "1:", ":2", "1:2:3", "1.5"])
def test_no_number_of_workers(text: str) -> None:
    with pytest.raises(InputError, match="give 4, or 1:8"):
        workers_of(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "give 1 or more"),
        ({"workers": (3, 2)}, "the smaller first"),
        ({"gpus_per_worker": 2}, "uses one GPU"),
        ({"max_failures": -2}, "-1 for no limit"),
    ],
)
def test_what_cannot_be_is_said_before_a_cluster_is_looked_for(options: dict[str, Any], message: str) -> None:
    config = TrainConfig.model_validate({"train": {"steps": 1}})
    with pytest.raises(InputError, match=message):
        train_on_ray(config, **options)


def test_an_error_of_ours_is_final_unless_a_worker_was_lost() -> None:
    ours, other, lost = InputError("mine"), ValueError("a bug"), type("RayActorError", (Exception,), {})("gone")
    lost.__class__.__module__ = "ray.exceptions"
    assert _final([other, ours]) is ours
    assert _final([lost, ours]) is None
    assert _final([ours, RuntimeError("[tcp/pair.cc:553] Connection closed by peer [192.0.2.2]:4123")]) is None
    assert _final([other]) is None


def test_errors_travel_between_processes() -> None:
    error = ConfigError("a.yaml", ["train.steps: wrong"])
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.problems) == (ConfigError, str(error), error.problems)


def test_an_import_brings_no_ray() -> None:
    code = "import sys, vlora, vlora.cli, vlora.train.cluster, vlora.train.run; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependency, match=r'pip install "vlora-mllm\[cluster\]"'):
        train_on_ray(TrainConfig.model_validate({"train": {"steps": 1}}), workers=2)


def test_the_options_of_a_cluster_need_one(tiny_config: Path) -> None:
    answer = CliRunner().invoke(app, ["train", str(tiny_config), "--workers", "2"])
    assert answer.exit_code == 2
    assert "give --ray too" in answer.stderr


# ---- on a cluster -------------------------------------------------------------------------------------------


def losses(run: Path) -> dict[int, float]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    told = [json.loads(line) for line in lines]
    assert [line["step"] for line in told] == list(range(1, STEPS + 1))  # each step once, in order
    return {line["step"]: line["loss"] for line in told}


def ids(run: Path) -> dict[int, list[str]]:
    """The ids of each step, over all processes."""
    seen: dict[int, list[str]] = {}
    for path in run.glob("ids-*.jsonl"):
        for line in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
            seen.setdefault(line["step"], []).extend(line["ids"])
    return seen


def assert_same_story(run: Path, undisturbed: Path) -> None:
    """Every id once an epoch; losses and weights of the undisturbed run."""
    seen = ids(run)
    assert sorted(seen) == list(range(1, STEPS + 1))
    assert {step: sorted(own) for step, own in seen.items()} == {s: sorted(own) for s, own in ids(undisturbed).items()}
    per_epoch = SAMPLES // LOOKS
    for epoch in range(STEPS // per_epoch):
        counts = Counter(i for step in range(epoch * per_epoch, (epoch + 1) * per_epoch) for i in seen[step + 1])
        assert len(counts) == SAMPLES
        assert set(counts.values()) == {1}
    found, expected = losses(run), losses(undisturbed)
    assert max(abs(found[step] - expected[step]) for step in expected) < 1e-4
    a, b = (load_file(folder / "final" / "generator.safetensors") for folder in (run, undisturbed))
    assert max((a[name] - b[name]).abs().max() for name in a) < 1e-4


@pytest.fixture
def config(tiny_config: Path) -> TrainConfig:
    return load_config(tiny_config, SETTINGS)


@pytest.fixture
def undisturbed(config: TrainConfig, tmp_path: Path) -> Path:
    train(config, run_dir=tmp_path / "undisturbed")
    return tmp_path / "undisturbed"


@pytest.fixture
def cluster() -> Iterator[Any]:
    """Two machines of one place each, both on this one."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    machine = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=machine)
    try:
        cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        cluster.wait_for_nodes()
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def workers() -> list[psutil.Process]:
    """The processes of the workers of all clusters that this process has begun."""
    processes = psutil.Process().children(recursive=True)
    return [process for process in processes if "RayTrainWorker" in " ".join(_command(process))]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def after_a_checkpoint(run: Path, strike: Callable[[], None]) -> threading.Thread:
    """Do something as soon as the run has a checkpoint."""

    def wait() -> None:
        while last_checkpoint(run) is None:  # the test's own timeout ends this
            time.sleep(0.005)
        strike()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_worker_loses_nothing(
    rank: int, cluster: Any, config: TrainConfig, undisturbed: Path, tmp_path: Path
) -> None:
    run, told, steps = tmp_path / "run", [], []

    def kill() -> None:
        sorted(workers(), key=lambda process: process.pid)[rank].kill()

    thread = after_a_checkpoint(run, kill)
    final = train_on_ray(
        config, run_dir=run, workers=2, report=lambda progress: steps.append(progress.step), tell=told.append
    )
    thread.join()
    assert final == run / "final"
    assert [line.split(",")[0] for line in told] == ["workers: 2"] * 2, "nobody was killed: the test proves nothing"
    assert steps[-1] == STEPS
    assert len({*steps}) == STEPS
    assert_same_story(run, undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_goes_on_with_the_machines_that_are_left(
    cluster: Any, config: TrainConfig, undisturbed: Path, tmp_path: Path
) -> None:
    run, told = tmp_path / "run", []
    thread = after_a_checkpoint(run, lambda: cluster.remove_node(cluster.worker_nodes.copy().pop(), False))
    train_on_ray(config, run_dir=run, workers=(1, 2), tell=told.append)
    thread.join()
    assert [line.split(",")[0] for line in told] == ["workers: 2", "workers: 1"]
    assert_same_story(run, undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_mistake_is_not_tried_again(cluster: Any, config: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "run" / "final").mkdir(parents=True)
    told: list[str] = []
    with pytest.raises(InputError, match="holds a run: go on with --resume auto"):
        train_on_ray(config, run_dir=tmp_path / "run", workers=2, tell=told.append)
    assert len(told) == 1
    with pytest.raises(InputError, match=r"room for 2 workers \(2 CPUs, 0 GPUs\), and 3 are asked for"):
        train_on_ray(config, run_dir=tmp_path / "run", workers=3)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_worker_lost_too_often_is_one_sentence(cluster: Any, config: TrainConfig, tmp_path: Path) -> None:
    run = tmp_path / "run"
    thread = after_a_checkpoint(run, lambda: workers()[0].kill())
    with pytest.raises(VLoRAError, match=r"A worker was lost once more than --max-failures allows .*--resume auto"):
        train_on_ray(config, run_dir=run, max_failures=0)
    thread.join()
    assert last_checkpoint(run) is not None


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ctrl_c_saves_and_the_command_line_says_how_to_go_on(
    tiny_config: Path, config: TrainConfig, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "vlora.cli", "train", str(tiny_config), "--run-dir", str(run), "--ray", "local"]
    command += [option for setting in SETTINGS for option in ("--set", setting)] + ["--json"]
    process = subprocess.Popen([*command, "--workers", "2"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    thread = after_a_checkpoint(run, lambda: os.kill(process.pid, signal.SIGINT))
    out, err = process.communicate()
    thread.join()
    assert process.returncode == 130, err
    assert out == ""
    assert "which is saved: go on with --resume auto" in err
    assert "Traceback" not in err
    stopped = last_checkpoint(run)
    assert stopped is not None
    assert stopped.name != f"checkpoint-{STEPS}", "the run ended before it was stopped: the test proves nothing"
    again = subprocess.run([*command, "--workers", "1", "--resume", "auto"], capture_output=True, text=True, check=True)
    assert json.loads(again.stdout)["model"] == str(run / "final")
    assert_same_story(run, undisturbed)
