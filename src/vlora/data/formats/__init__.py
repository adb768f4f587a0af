"""Temporary."""
from __future__ import annotations

from collections import defaultdict

from ..sample import Message, Sample
from ..sets import easy_vqa


class EasyVQA:
    def __init__(self, split, limit, name, augment):
        self.name, self.augment = name or "easy-vqa", augment
        self.data = easy_vqa.load(split)
        q = defaultdict(list)
        for x in self.data.questions: q[x.image_id].append(x)
        self.q = q; self.ids = sorted(q)[:limit]
    def __len__(self): return len(self.ids)
    def __getitem__(self, i):
        k = self.ids[i]
        return Sample(str(k), (str(self.data.image_path(k)),), tuple((Message("user", "<image>"+x.question), Message("assistant", x.answer)) for x in self.q[k]), "easy")
    @property
    def blocks(self): return [len(self)]
    def length(self, i): return max(len(x.question) for x in self.q[self.ids[i]])
def open_source(format, path, *, images=None, name=None, split="train", prompts=(), columns={}, limit=None, augment=False):
    return EasyVQA(split, limit, name, augment)
