"""easy-VQA as a source: a sample for each image, a conversation for each question about it."""

from __future__ import annotations

from collections import defaultdict

from ..sample import MARKER, Message, Sample
from ..sets.easy_vqa import Question, Split, load
from .base import Rows
from .rules import sample


class EasyVQASource(Rows):
    """One split; samples in the order of the image ids.

    Args:
        split: `train` or `test`.
        name: see `Rows`.
        augment: see `Rows`.

    Raises:
        InputError: there is no such split.
        MissingDependency: the package is not installed.
        CheckpointError: the package is another.
    """

    def __init__(self, split: Split, *, name: str, augment: bool) -> None:
        super().__init__(name, augment=augment)
        self.data = load(split)
        questions: dict[int, list[Question]] = defaultdict(list)
        for question in self.data.questions:
            questions[question.image_id].append(question)
        self._questions = [(image, tuple(questions[image])) for image in sorted(questions)]

    def __len__(self) -> int:
        return len(self._questions)

    def length(self, index: int) -> int:
        """See `Rows`."""
        _, questions = self._questions[index]
        return max(len(MARKER) + len(one.question) + len(one.answer) for one in questions)

    def read(self, index: int) -> Sample:
        """See `Rows`."""
        image, questions = self._questions[index]
        return sample(
            str(image),
            [str(self.data.image_path(image))],
            conversations=[
                (Message("user", MARKER + one.question), Message("assistant", one.answer)) for one in questions
            ],
            where=f"easy-VQA {self.data.split} image {image}",
        )
