"""From files to batches: safe images, formats, prompts, streams, and the sets to train and test on.

images.py       anything that may be an image -> an RGB `PIL.Image`
sample.py       what every format becomes
formats/        files of eight formats -> samples, in any order
prompts.py      conversations -> tokens, and which of them are learned
inspection.py   what is in a source, and what is wrong with it
shards/         sources of any format -> shards, for many samples
sets/           sets of images with words, found in packages and checked
"""

from __future__ import annotations

from vlora.data.images import ImageLike, image_hash, open_image

__all__ = ["ImageLike", "image_hash", "open_image"]
