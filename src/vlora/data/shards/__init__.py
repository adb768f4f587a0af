"""Writing shards: what `vlora data convert` does. `formats/shards.py` reads them.

plan.py      which samples of which source go into which shard; decided once and kept, so that a conversion resumes
write.py     one shard, in a worker: images read and tried, whole or not there
convert.py   all of them, with progress; then the index
verify.py    what is there against the index
huggingface.py   what makes the folder a data set of Hugging Face

    DST/plan.json     until it is finished
    DST/.parts/       a JSON for each finished shard, until all are
"""

from __future__ import annotations

from .convert import Conversion, convert
from .plan import Input, ShardSize, parse_size
from .verify import verify

__all__ = ["Conversion", "Input", "ShardSize", "convert", "parse_size", "verify"]
