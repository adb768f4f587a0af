"""Encodings that are killed: by chance, and at every step of a commit; run by `test_killed.py`.

One process imports everything, makes the model, and forks; what is killed are its children. So a killed encoding
costs a fork, not an import of torch.

    python -m tests.album.killed chance FOLDER SEED      20 kills at random moments, over worker processes too
    python -m tests.album.killed steps FOLDER STRIDE     a kill at every STRIDE-th line of what writes
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import vlora
from tests.album.conftest import draw, make_eyes
from vlora.album import encode, verify
from vlora.album.writer import Writer
from vlora.data import image_hash
from vlora.errors import AlbumError

KILLS = 20
BATCH = 4


def child(work: Callable[[], None]) -> int:
    """Start a process of its own group."""
    number = os.fork()
    if number == 0:
        code = 1
        try:
            os.setsid()
            torch.set_num_threads(1)
            work()
            code = 0
        finally:
            os._exit(code)
    return number


def living(but: int) -> list[int]:
    """Other processes that run this program: forks, and workers of those."""
    own = Path(f"/proc/{but}/cmdline").read_bytes()
    found = list[int]()
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and (entry / "cmdline").read_bytes() == own:
                found.append(int(entry.name))
        except OSError:  # it has just ended
            continue
    return [number for number in found if number != but]


def alive(number: int) -> bool:
    """Whether a child still runs; it stays to be waited for."""
    return os.waitid(os.P_PID, number, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def end_of(number: int) -> int:
    """The exit code of a child; negative: the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def state(album: Path) -> tuple[set[str], int]:
    """Paths that are listed, and pictures; empty before there is an album."""
    try:
        with vlora.album.open(album) as opened:
            verdict = verify(opened)
            assert verdict.clean, verdict.damage
            return set(opened), opened.info().images
    except AlbumError as error:
        if not any(words in str(error) for words in ("There is no album", "cut off")):
            raise
        return set(), 0


def pictures(folder: Path, count: int, first: int = 0) -> list[Path]:
    """So many different pictures, and each tenth twice."""
    numbers = range(first, first + count)
    paths = [draw(folder / f"{number}.png", number) for number in numbers]
    return paths + [draw(folder / f"twin{number}.png", number) for number in numbers[::10]]


def chance(folder: Path, seed: int) -> dict[str, Any]:
    """Kill an encoding with SIGKILL at random moments until it has been killed often enough, then let it finish."""
    eyes, album, log = make_eyes("tiny"), folder / "album", folder / "looked.txt"
    paths = pictures(folder / "photos", 300)
    perceive = eyes.model.perceive

    def slowly(pixels: Any) -> Any:
        with log.open("a") as file:
            file.write(f"{len(pixels)}\n")
        time.sleep(0.02)  # a model that takes its time, so that a kill meets it in every phase
        return perceive(pixels)

    eyes.model.perceive = slowly  # type: ignore[method-assign]
    told = folder / "told.txt"

    def run() -> None:
        encode(
            eyes, folder / "photos", album, batch_size=BATCH, workers=2, progress=lambda p: told.write_text(str(p.done))
        )

    draws, kills, before, seen = random.Random(seed), 0, set[str](), list[int]()
    while kills < KILLS:
        told.write_text("0")
        looked = log.stat().st_size if log.exists() else 0
        number = child(run)
        if kills % 4:  # else while it starts
            while not (log.exists() and log.stat().st_size > looked) and alive(number):
                time.sleep(0.01)
        time.sleep(draws.uniform(0.0, 0.4))
        # Half of the time its workers survive it, and must end by themselves.
        (os.killpg if kills % 2 else os.kill)(number, signal.SIGKILL)
        if end_of(number) == 0:  # it was faster
            paths += pictures(folder / "photos", 100, len(paths))
            continue
        kills += 1
        now, _ = state(album)
        assert before <= now, "an image was lost"
        assert len(now) >= int(told.read_text()), "what was told as done was lost"
        before = now
        seen.append(len(now))
    began = len(before)
    assert end_of(child(run)) == 0
    listed, stored = state(album)
    with Writer(album) as writer:
        left = writer.leftovers()
    time.sleep(2.5)  # workers look for their parent once a second
    return {
        "kills": kills,
        "workers_left": len(living(os.getpid())),
        "files_after_each_kill": seen,
        "unfinished_at_last_kill": len(paths) - began,
        "files": len(listed),
        "expected_files": len(paths),
        "pictures": stored,
        "expected_pictures": len({image_hash(path) for path in paths}),
        "looked_at": sum(map(int, log.read_text().split())),
        "batch": BATCH,
        "leftovers": left,
    }


def steps(folder: Path, stride: int) -> dict[str, Any]:
    """Kill an encoding at every `stride`-th line that it runs in the files which write, until one gets through."""
    eyes = make_eyes("tiny")
    pictures(folder / "photos", 9)
    kills, lines = 0, 0
    while True:
        album = folder / f"album{kills}"
        at = 1 + kills * stride

        def run(album: Path = album, at: int = at) -> None:
            sys.settrace(_killer(at))
            # Three batches, a compaction of two shards, and one of the rest.
            encode(eyes, folder / "photos", album, batch_size=BATCH, workers=0)

        code = end_of(child(run))
        state(album)
        if code == 0:
            return {"kills": kills, "lines": lines}
        assert code == -signal.SIGKILL, code
        kills, lines = kills + 1, at
        encode(eyes, folder / "photos", album, batch_size=BATCH, workers=0)
        listed, stored = state(album)
        with Writer(album) as writer:
            assert (len(listed), stored, writer.leftovers()) == (10, 9, []), (at, listed, stored)


def _killer(at: int) -> Any:
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        if Path(frame.f_code.co_filename).name not in ("writer.py", "shards.py", "index.py"):
            return None
        if event == "line":
            count += 1
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    return trace


def main() -> None:
    """Run what is named, and print what came of it as JSON."""
    torch.set_num_threads(1)
    kind, folder, number = sys.argv[1:]
    print(json.dumps({"chance": chance, "steps": steps}[kind](Path(folder), int(number))))


if __name__ == "__main__":
    main()
