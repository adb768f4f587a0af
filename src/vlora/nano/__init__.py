"""The embedded default model: its frozen parts from the Python index, its generator's weights in this folder.

| file | content |
|---|---|
| `parts.py` | SmolLM2-135M-Instruct and EfficientNet-Lite0: found, checked, converted, cached |
| `vision.py` | the encoder with its weights |
| `generator.safetensors`, `config.json`, `parts.json` | the trained generator |
| `README.md` | the model card |
"""
