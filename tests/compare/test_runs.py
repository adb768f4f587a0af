"""Logs of runs: what is whole is read, what is not is told."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tests.compare.logs import write_run
from vlora.compare.runs import read_run, shared_end
from vlora.errors import DataError, InputError


def test_a_run(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "a", [4.0, 2.0, 1.0], name="mine", paradigm="visual-tokens"))
    assert (run.name, run.paradigm, run.cut) == ("mine", "visual-tokens", False)
    assert run.along("steps") == (10, 20, 30)
    assert run.along("samples") == (160, 320, 480)
    assert run.along("seconds") == (4, 8, 12)
    assert run.losses == (4, 2, 1)


def test_a_run_from_before_there_were_paradigms(tmp_path: Path) -> None:
    assert read_run(write_run(tmp_path / "a", [1.0], paradigm=None)).paradigm == "weights"


@pytest.mark.parametrize("tail", ['{"step": 40, "lo', "{", '{"step": 40, "loss": 1.0, "samples": 640, "seconds": 16.0'])
def test_a_last_line_that_was_cut_off(tmp_path: Path, tail: str) -> None:
    run = read_run(write_run(tmp_path / "a", [4.0, 2.0, 1.0], tail=tail))
    assert run.steps == (10, 20, 30)
    assert run.cut


def test_a_log_that_went_back(tmp_path: Path) -> None:
    """Of steps that were done twice, the later ones count."""
    again = "".join(
        json.dumps({"step": step, "loss": 9.0, "samples": step, "seconds": 50.0 + step}) + "\n" for step in (20, 30)
    )
    run = read_run(write_run(tmp_path / "a", [4.0, 3.0, 2.0, 1.0], tail=again))
    assert run.steps == (10, 20, 30)
    assert run.losses == (4, 9, 9)


def test_smooth_is_a_mean_of_neighbours(tmp_path: Path) -> None:
    losses = [float(number % 7) for number in range(100)]
    smooth = read_run(write_run(tmp_path / "a", losses)).smooth
    for place in (0, 1, 50, 98, 99):  # 4 lines to either side, as far as there are any
        near = losses[max(0, place - 4) : place + 5]
        assert smooth[place] == pytest.approx(sum(near) / len(near))


def test_losses_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "a", [3.0, math.nan, 1.0, math.inf, 2.0]))
    assert run.smooth == pytest.approx((3.0, 2.0, 1.0, 1.5, 2.0))
    assert all(math.isnan(loss) for loss in read_run(write_run(tmp_path / "b", [math.nan] * 3)).smooth)


def test_the_loss_between_two_lines(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "a", [4.0, 2.0]))
    assert run.smooth == (3.0, 3.0)
    long = read_run(write_run(tmp_path / "b", [float(n) for n in range(10)]))
    assert long.loss_at("steps", 45) == pytest.approx((long.smooth[3] + long.smooth[4]) / 2)
    assert long.loss_at("samples", 16 * 45) == long.loss_at("steps", 45)
    assert long.loss_at("seconds", 4.0) == long.smooth[0]
    assert long.loss_at("steps", 100) == long.smooth[-1]
    assert long.loss_at("steps", 9) is None
    assert long.loss_at("steps", 101) is None
    assert read_run(write_run(tmp_path / "c", [5.0])).loss_at("steps", 10) == 5.0


def test_the_last_place_of_all(tmp_path: Path) -> None:
    runs = [
        read_run(write_run(tmp_path / "a", [1.0] * 9, rate=40)),
        read_run(write_run(tmp_path / "b", [1.0] * 4, rate=4)),
    ]
    assert shared_end(runs, "steps") == 40
    assert shared_end(runs, "seconds") == runs[0].seconds[-1]


def test_what_is_no_run_is_told(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for name, found in (("none", "not there"), ("empty", r"a folder without a config\.yaml"), ("file", "a file")):
        with pytest.raises(InputError, match=f"is no run, it is {found}: give folders"):
            read_run(tmp_path / name)
    folder = write_run(tmp_path / "a", [1.0])
    (folder / "metrics.jsonl").unlink()
    with pytest.raises(InputError, match=r"has no metrics\.jsonl: it has logged nothing yet"):
        read_run(folder)
    (folder / "metrics.jsonl").mkdir()
    with pytest.raises(InputError, match="cannot be read"):
        read_run(folder)
    (folder / "config.yaml").write_bytes(b"name: [\xff")
    with pytest.raises(InputError, match=r"config\.yaml' is damaged"):
        read_run(folder)


@pytest.mark.parametrize("tail", ["", '{"step": 1', "\n\n"])
def test_a_log_without_a_line(tmp_path: Path, tail: str) -> None:
    with pytest.raises(DataError, match="has no whole line yet: wait"):
        read_run(write_run(tmp_path / "a", [], tail=tail))


def test_a_damaged_line_in_the_middle(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", [3.0, 2.0, 1.0])
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    lines[1] = lines[1][:20]
    (folder / "metrics.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(DataError, match=r"Line 2 of .* is damaged: remove it"):
        read_run(folder)


@pytest.mark.parametrize(
    "line", ['{"step": 1, "loss": 2.0, "images_per_second": 3.0}', '{"step": 1, "loss": "x"}', "[]"]
)
def test_a_log_of_another_form(tmp_path: Path, line: str) -> None:
    with pytest.raises(DataError, match=r"Line 1 of .* has no number for .*samples, seconds"):
        read_run(write_run(tmp_path / "a", [], tail=f"{line}\n"))
