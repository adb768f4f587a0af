"""What is told of a source is what is in it."""

from __future__ import annotations

from pathlib import Path

from tests.data.made import Write, llava_row
from tests.helpers import tiny_processor
from vlora.data.formats import open_source
from vlora.data.inspection import examine


def test_counts_lengths_and_shares(jsonl: Write, pictures: Path) -> None:
    text = {"id": "t", "conversations": [{"from": "human", "value": "what"}, {"from": "gpt", "value": "is " * 200}]}
    rows = [llava_row(0), llava_row(0), llava_row(2), text, {"id": "bad", "conversations": text["conversations"][:1]}]
    (pictures / "2.png").write_bytes(b"\x89PNG and no more")
    source = open_source("llava", jsonl(rows), images=pictures)
    told: list[tuple[str, int, int]] = []
    found = examine(source, tiny_processor(), images="all", tell=lambda *now: told.append(now))
    assert (found.samples, found.read, found.repeats) == (5, 5, 1)
    assert (found.conversations, found.images, found.without_image) == (4, 3, 1)
    (error,) = found.errors
    assert "line 5 (id 'bad') has nothing to learn from" in error.reason
    assert (found.checked, len(found.broken)) == (3, 1)
    assert "line 3" in found.broken[0].where
    assert "2.png" in found.broken[0].reason
    lengths = found.lengths()
    assert lengths["min"] == lengths["median"] < lengths["p95"] == lengths["max"]
    assert sum(found.tokens) == 3 * lengths["min"] + lengths["max"]
    assert 0 < found.learned_share() < 1
    assert told[-1] == ("images", 4, 5) or told[-1] == ("images", 5, 5)


def test_rendered_text_is_cut_where_learning_begins(jsonl: Write) -> None:
    source = open_source("llava", jsonl([llava_row(0), llava_row(1)]))
    (one,) = examine(source, tiny_processor(), show=1).rendered
    assert [piece.learned for piece in one.pieces] == [False, True]
    assert one.pieces[0].text == "<|im_start|>user\nWas?<|im_end|>\n<|im_start|>assistant\n"
    assert one.pieces[1].text == "Tür 0.</s>"
    assert (one.id, one.images) == ("a0", 1)


def test_a_part_is_chosen_by_a_seed(jsonl: Write) -> None:
    source = open_source("llava", jsonl([llava_row(n) for n in range(200)]))
    processor = tiny_processor()
    first = [one.id for one in examine(source, processor, scan=20, show=20).rendered]
    assert len(first) == 20
    assert first == [one.id for one in examine(source, processor, scan=20, show=20).rendered]
    assert first != [one.id for one in examine(source, processor, scan=20, show=20, seed=1).rendered]


def test_long_texts_are_cut_as_in_training(jsonl: Write) -> None:
    source = open_source("llava", jsonl([llava_row(0)]))
    processor = tiny_processor()
    (whole,) = examine(source, processor).tokens
    assert examine(source, processor, max_tokens=whole - 2).tokens == [whole - 2]
    assert "raise data.max_text_tokens" in examine(source, processor, max_tokens=8).errors[0].reason
