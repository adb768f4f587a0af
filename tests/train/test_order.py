"""The order of samples: a pure function of the seed, in which every sample comes once an epoch."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlora.train.order import WHEEL, Order, Pick, Shuffled, Steps, share

BLOCKS = [[5, 3, 0, 7], [4, 4, 4], [1]]
SAMPLES = {(source, index) for source, own in enumerate(BLOCKS) for index in range(sum(own))}


def order(seed: int = 1, weights: list[float] | None = None, together: int = 2) -> Order:
    return Order(BLOCKS, weights=weights, seed=seed, together=together)


@given(
    blocks=st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any),
    together=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_an_epoch_holds_every_sample_once(blocks: list[int], together: int, seed: int) -> None:
    row, size = Shuffled(blocks, seed=(seed,), together=together), sum(blocks)
    for epoch in range(2):
        read = [row[epoch * size + place] for place in range(size)]
        assert sorted(sample for sample, _ in read) == list(range(size))
        assert {number for _, number in read} == {epoch}


def test_epochs_and_seeds_differ() -> None:
    row = order()
    epochs = [[row[epoch * 28 + place] for place in range(28)] for epoch in range(2)]
    assert [pick[:2] for pick in epochs[0]] != [pick[:2] for pick in epochs[1]]
    assert epochs[0] != [order(seed=2)[place] for place in range(28)]
    assert epochs[0] == [order()[place] for place in range(28)]


def test_samples_that_lie_together_are_read_together() -> None:
    row = Shuffled([100] * 50, seed=(0,), together=5)
    for begin in range(0, 5000, 500):
        assert len({row[begin + place][0] // 100 for place in range(500)}) == 5


def test_a_mixture_without_weights_is_everything_once() -> None:
    row = order()
    assert Counter((p.source, p.number) for p in (row[place] for place in range(28))) == Counter(SAMPLES)


def test_weights_are_shares_and_each_source_goes_its_own_rounds() -> None:
    row = order(weights=[3, 1, 0.0001])
    picks = [row[place] for place in range(4 * WHEEL)]
    counts = Counter(pick.source for pick in picks)
    assert [counts[source] for source in range(3)] == [4 * 750 - 4, 4 * 249 + 4, 4]
    for source, own in enumerate(BLOCKS):
        mine = [pick for pick in picks if pick.source == source]
        for visit in range(len(mine) // sum(own)):
            seen = mine[visit * sum(own) : (visit + 1) * sum(own)]
            assert sorted(pick.number for pick in seen) == list(range(sum(own)))
            assert {pick.visit for pick in seen} == {visit}


@pytest.mark.parametrize("by_length", [False, True])
def test_steps_never_mix_epochs(by_length: bool) -> None:
    steps = Steps(order(), size=5, length=(lambda pick: pick.number % 4) if by_length else None, window=3)
    assert steps.per_epoch == 6
    for epoch in range(2):
        looks = [steps[epoch * 6 + step] for step in range(6)]
        assert sorted(map(len, looks)) == [3, 5, 5, 5, 5, 5]
        assert Counter((p.source, p.number) for one in looks for p in one) == Counter(SAMPLES)
        for step in range(7):
            assert steps.looks_before(epoch * 6 + step) == epoch * 28 + sum(map(len, looks[:step]))


def test_steps_by_length_are_of_one_length() -> None:
    plain = Order([[4000]], weights=None, seed=0, together=1)
    spread = {}
    for name, length in (("length", lambda pick: pick.number % 100), ("random", None)):
        steps = Steps(plain, size=20, length=length)
        spread[name] = [
            max(p.number % 100 for p in steps[n]) - min(p.number % 100 for p in steps[n]) for n in range(200)
        ]
    assert sum(spread["length"]) < 0.1 * sum(spread["random"])
    first = [
        next(iter(Steps(plain, size=20, length=lambda pick: pick.number % 100)[n])).number % 100 for n in range(32)
    ]
    assert first != sorted(first)  # short and long steps come in no order


@given(looks=st.integers(0, 40), processes=st.integers(1, 5), accumulation=st.integers(1, 4))
def test_looks_are_dealt_out_evenly(looks: int, processes: int, accumulation: int) -> None:
    picks = [Pick(0, number, 0) for number in range(looks)]
    dealt = share(picks, processes=processes, accumulation=accumulation)
    assert sorted(pick for own in dealt for micro in own for pick in micro) == picks
    sizes = [len(micro) for own in dealt for micro in own]
    assert len(sizes) == processes * accumulation
    assert max(sizes) - min(sizes) <= 1
    in_turn = itertools.chain.from_iterable(dealt[p][m] for m in range(accumulation) for p in range(processes))
    assert list(in_turn) == picks  # neighbours are read at the same time


def test_thirty_million_samples_need_no_list() -> None:
    large = Order([[1000] * 30_000], weights=None, seed=0, together=64)
    steps = Steps(large, size=768, length=lambda pick: pick.number % 97)
    assert len({pick.number for step in range(20_000, 20_010) for pick in steps[step]}) == 7680
