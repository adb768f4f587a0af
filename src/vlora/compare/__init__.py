"""The model that VLoRA is for: the same encoder and language model, joined by visual tokens. And runs, side by side.

    image ─ vision ─► features ─ projector ─► visual tokens ─┐
                                                             ▼
    question ─ tokens, with a place for each visual token ─► LLM ─► text

| file | what it does |
|---|---|
| `baseline.py` | transformers' LLaVA from loaded parts; its loss; its checkpoint |
| `llava.py` | that model, which looks at an image once for all its rows and computes needed logits only |
| `tokens.py` | the token that keeps an image's places |
| `answer.py` | questions about images, answered in batches |
| `runs.py` | what training runs have logged |
| `plot.py` | their losses against steps, samples and seconds |

Nothing is imported here, so that `vlora plot` needs no torch.
"""
