"""Sets of images with words, found in packages and checked.

easy_vqa.py   coloured shapes, 48 248 questions, 13 answers, of an installed package
nano/         what nano is trained on: pictures of eight packages, fetched into the cache
"""

from __future__ import annotations
