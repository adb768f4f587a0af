"""Which model an album belongs to: visual parameters mean nothing to any other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from ..errors import AlbumError
from ..model import VLoRAForConditionalGeneration, VLoRAProcessor
from ..model.assemble import fingerprint

# What an image processor does to pixels. Its other fields differ between versions of transformers and do nothing.
_PIXELS = (
    "crop_size", "do_center_crop", "do_convert_rgb", "do_normalize", "do_pad", "do_rescale", "do_resize",
    "image_mean", "image_std", "resample", "rescale_factor", "size",
)  # fmt: skip


class Eyes(Protocol):
    """What an album needs of a model, which is what `vlora.load` gives."""

    model: VLoRAForConditionalGeneration
    processor: VLoRAProcessor
    name: str


@dataclass(frozen=True)
class Identity:
    """Fingerprints of all that visual parameters depend on.

    Args:
        generator: of its weights.
        vision: of the vision encoder's.
        language_model: of the model that wears what becomes of them.
        pixels: of how pixels are prepared and which features are taken.
    """

    generator: str
    vision: str
    language_model: str
    pixels: str

    @staticmethod
    def of(eyes: Eyes) -> Identity:
        """The identity of a loaded model."""
        parts, config = eyes.model.model, eyes.model.config
        fields = eyes.processor.image_processor.to_dict()
        prepared = {name: fields.get(name) for name in _PIXELS}
        taken = [config.vision_feature_layer, config.vision_feature_select_strategy]
        text = json.dumps([prepared, taken], sort_keys=True, default=_plain)
        return Identity(
            generator=fingerprint(parts.generator),
            vision=fingerprint(parts.vision_tower),
            language_model=fingerprint(parts.language_model),
            pixels=hashlib.sha256(text.encode()).hexdigest()[:32],
        )

    @staticmethod
    def from_json(text: str) -> Identity:
        """What `to_json` wrote.

        Raises:
            ValueError: it did not write this.
        """
        try:
            return Identity(**json.loads(text))
        except TypeError as error:
            raise ValueError(str(error)) from error

    def to_json(self) -> str:
        """As one line."""
        return json.dumps(asdict(self))

    def check(self, other: Identity, *, album: object, model: str) -> None:
        """Refuse a model that an album was not made with.

        Args:
            other: that of the model.
            album: for the message.
            model: for the message.

        Raises:
            AlbumError: they differ.
        """
        theirs = asdict(other)
        for part, own in asdict(self).items():
            if own != theirs[part]:
                raise AlbumError(
                    f"The album {str(album)!r} belongs to another model than {model!r} (its {_WORDS[part]} {own[:12]}, "
                    f"this model's {theirs[part][:12]}): load the model it was made with, or encode the images anew."
                )


_WORDS = {
    "generator": "generator is",
    "vision": "vision encoder is",
    "language_model": "language model is",
    "pixels": "preparation of pixels is",
}


def _plain(value: Any) -> Any:
    """Sizes of transformers are mappings, or classes that act like one."""
    if isinstance(value, Mapping):
        return dict(value)
    return dict(vars(value)) if hasattr(value, "__dict__") else str(value)
