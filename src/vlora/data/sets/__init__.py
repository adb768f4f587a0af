"""Sets of images with words; each module finds its files in an installed package and checks them.

easy_vqa.py   coloured shapes, 48 248 questions, 13 answers
"""

from __future__ import annotations
