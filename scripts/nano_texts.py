"""Write what the bare language model of nano answers to questions that no picture answers.

    python scripts/nano_texts.py            # some minutes on two cores

Rewrites `src/vlora/data/sets/nano/texts.json`; greedy, in float32, batches of prompts of one length without padding.
"""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path

import torch
from rich.progress import track

import vlora
from vlora.data.sets.nano import texts

TARGET = Path(texts.__file__).with_name("texts.json")


def main() -> None:
    """Answer all, and keep the answers that end."""
    eyes = vlora.load("nano", device="cpu")

    def length(question: str) -> int:
        return int(eyes.tokens([question])["input_ids"].shape[1])

    asked = sorted(texts.questions(), key=length)
    batches = [list(same) for _, same in groupby(asked, key=length)]
    answers: dict[str, str] = {}
    for batch in track(batches, description="answering"):
        inputs = eyes.tokens(batch)
        with torch.inference_mode():
            ids = eyes.model.generate(**inputs, do_sample=False, max_new_tokens=texts.LONGEST + 1)
        for question, row in zip(batch, ids[:, inputs["input_ids"].shape[1] :], strict=True):
            end = (row == eyes.processor.tokenizer.eos_token_id).nonzero()
            text = eyes.processor.tokenizer.decode(row, skip_special_tokens=True)
            if len(end) and text == text.strip() != "":
                answers[question] = text
    kept = {question: answers[question] for question in texts.questions() if question in answers}
    TARGET.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{len(kept)} of {len(asked)} answers end within {texts.LONGEST} tokens: {TARGET}")


if __name__ == "__main__":
    main()
