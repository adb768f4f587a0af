"""The suite's result, and the rows of every table that shows it.

    vlora evaluate nano-suite --model nano --json > all.json
    python scripts/suite_tables.py all.json             # or of several runs, each with a part of the tasks by --only

Joins what the runs printed into `docs/results/nano-suite.json`, and writes its figures into the rows of README.md,
README.zh-CN.md, the model card and docs/results.md that begin with the name of a task and have its whole accuracy, and
into those of weights and visual tokens in the latter.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from vlora.evaluate.nano_suite import TARGETS
from vlora.nano.compared import NAMES

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "docs" / "results" / "nano-suite.json"
SHORT = (ROOT / "README.md", ROOT / "README.zh-CN.md", ROOT / "src" / "vlora" / "nano" / "README.md")
LONG = ROOT / "docs" / "results.md"


def main() -> None:
    """Join, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="what `vlora evaluate nano-suite --json` printed")
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in parser.parse_args().runs]
    if runs:
        RESULT.write_text(json.dumps(joined(runs), indent=1) + "\n", encoding="utf-8")
    tasks = json.loads(RESULT.read_text(encoding="utf-8"))["tasks"]
    for path in SHORT:
        write(path, {name: short(name, part) for name, part in tasks.items()})
    write(LONG, {name: long(name, part) for name, part in tasks.items()})
    write(LONG, {name: pair(name, part) for name, part in tasks.items()})
    mean = sum(part["accuracy"] for part in tasks.values()) / len(tasks)
    met = [name for name, part in tasks.items() if part["target"] and part["accuracy"] >= part["target"]]
    print(f"mean of {len(tasks)} tasks {mean:.3f}; targets met: {', '.join(met) or 'none'}")


def joined(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """One result of several, its tasks in the suite's order."""
    tasks = {name: part for run in runs for name, part in run["tasks"].items()}
    facts = {name: value for name, value in runs[0].items() if name != "answers_file"}
    seconds = round(sum(run["seconds"] for run in runs), 1)
    return facts | {"seconds": seconds, "tasks": {name: tasks[name] for name in TARGETS if name in tasks}}


def short(name: str, part: dict[str, Any]) -> str:
    """A row without target and bare model."""
    controls = part["controls"]
    beside = (controls["shuffled"], controls["question-only"], part[NAMES[0]])
    return _row(name, part["n"], f"**{part['accuracy']:.3f}**", _interval(part), *map(_accuracy, beside))


def long(name: str, part: dict[str, Any]) -> str:
    """A row with everything."""
    target = "" if part["target"] is None else f"{part['target']:.3f}"
    beside = (*part["controls"].values(), part[NAMES[0]])
    return _row(name, part["n"], _accuracy(part), _interval(part), target, *map(_accuracy, beside))


def pair(name: str, part: dict[str, Any]) -> str:
    """A row of weights and visual tokens that were trained in the same steps: accuracies, prefills and times."""
    _, tokens, weights = (part[name] for name in NAMES)
    two = [f"{_accuracy(one, 2)} ({_interval(one, 2)})" for one in (weights, tokens)]
    difference = f"{weights['accuracy'] - tokens['accuracy']:+.2f}"
    prefill = _two(weights, tokens, "prefill_flops", 1e-9, ".1f")
    milliseconds = _two(weights, tokens, "seconds_per_answer", 1e3, ".0f")
    return _row(name, weights["n"], *two, difference, *prefill, *milliseconds)


def _two(weights: dict[str, Any], tokens: dict[str, Any], cost: str, unit: float, form: str) -> tuple[str, str]:
    both = " / ".join(format(one[cost] * unit, form) for one in (weights, tokens))
    return both, f"{weights[cost] / tokens[cost]:.2f}"


def write(path: Path, rows: dict[str, str]) -> None:
    """Put rows in the place of those with the same name and as many cells, and brackets if they have any."""

    def replaced(match: re.Match[str]) -> str:
        row = rows.get(match[1], "")
        alike = row.count("|") == match[0].count("|") and ("(" in row) == ("(" in match[0])
        return row if alike else match[0]

    text = path.read_text(encoding="utf-8")
    path.write_text(re.sub(r"^\| ([\w/-]+) \|.*\|$", replaced, text, flags=re.MULTILINE), encoding="utf-8")


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _accuracy(score: dict[str, Any], digits: int = 3) -> str:
    return f"{score['accuracy']:.{digits}f}"


def _interval(score: dict[str, Any], digits: int = 3) -> str:
    return "-".join(f"{end:.{digits}f}" for end in score["interval"])


if __name__ == "__main__":
    main()
