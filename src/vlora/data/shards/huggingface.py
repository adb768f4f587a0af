"""What makes a folder of Arrow files a data set that `datasets.load_from_disk` opens."""

from __future__ import annotations

from typing import Any


def _value(kind: str) -> dict[str, str]:
    return {"dtype": kind, "_type": "Value"}


def _list_of(feature: Any) -> dict[str, Any]:
    return {"feature": feature, "_type": "List"}


FEATURES = {
    "id": _value("string"),
    "images": _list_of(_value("binary")),
    "conversations": _list_of(_list_of({"role": _value("string"), "text": _value("string")})),
    "characters": _value("int32"),
}
"""The columns, in the words of `dataset_info.json`."""


def as_dataset(files: list[str]) -> dict[str, Any]:
    """Its `state.json`."""
    return {
        "_data_files": [{"filename": one} for one in files],
        "_fingerprint": f"vlora-shards-{len(files)}",
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": "train",
    }
