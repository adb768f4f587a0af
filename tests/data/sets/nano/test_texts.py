"""Questions that no picture answers: in one split each, asked beside pictures that have nothing to do with them."""

from __future__ import annotations

from vlora.data.sets.nano.texts import parts, questions


def test_a_question_is_of_one_split() -> None:
    known, new = parts()
    assert len(known) > 60
    assert len(new) > 20
    assert not set(known) & set(new)
    assert set(known) | set(new) <= set(questions())
    assert len(set(questions())) == len(questions())


def test_answers_are_sentences_of_the_language_model() -> None:
    known, new = parts()
    assert (known | new)["What is the capital of Italy?"] == "The capital of Italy is Rome."
    assert all(answer == answer.strip() != "" for answer in (known | new).values())
