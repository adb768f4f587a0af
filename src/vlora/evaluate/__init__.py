"""How well a model sees, and whether it looks at all.

| file | content |
|---|---|
| `easy_vqa.py` | the task: questions about coloured shapes |
| `nano_suite.py` | the task: everything that is asked of the nano set's held-out pictures, with controls |
| `answerers.py` | who is asked: a model that wears images, or one that reads visual tokens |
| `predict.py` | answers in batches; each image is looked at once |
| `controls.py` | what a model without eyes would score |
| `scoring.py` | right or wrong, accuracy, intervals |
| `deltas.py` | size and rank of each ΔW of an image |
| `attention.py` | where the perceptual queries looked |
| `plots.py` | figures of both |
"""
