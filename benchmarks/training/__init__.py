"""The parts of `benchmarks/train.py`.

| file | what |
|---|---|
| `data.py` | made-up captions, and which looks each way of training reads |
| `recipe.py` | the plain reference: the method from its formulas, trained as its authors do |
| `tokens.py` | the visual-token model |
| `ways.py` | each way of training as a step to be timed, and the levers of ours |
| `counts.py` | FLOPs of a batch, from the formulas of `vlora.cost` |
| `gpu.py` | the 7B shape with random weights on one GPU |
"""
