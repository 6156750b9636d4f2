import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from estimator.work.lengths import lengths_of, packed_rows
from trainer.data.packing import Packing, Packs, shuffled

SEQ_LEN = 60
lengths = st.lists(st.integers(1, SEQ_LEN), min_size=1, max_size=80).map(np.array)
seeds, epochs = st.integers(0, 2**64), st.integers(0, 1000)


def held(packs: Packs) -> list[list[int]]:
    """Return the documents of each row."""
    return [packs[row].tolist() for row in range(len(packs))]


@given(lengths, seeds, epochs)
def test_each_document_is_whole_in_one_row(drawn: np.ndarray, seed: int, epoch: int) -> None:
    """Every document is in exactly one row, no row is empty, and none holds more tokens than it has places."""
    for packs in (Packing(drawn, SEQ_LEN).of_epoch(seed, epoch), Packing(drawn, SEQ_LEN).in_order()):
        rows = held(packs)
        assert sorted(document for row in rows for document in row) == list(range(len(drawn)))
        assert all(0 < drawn[row].sum() <= SEQ_LEN for row in rows)


@given(lengths, st.integers(SEQ_LEN, 3 * SEQ_LEN), seeds)
def test_rows_are_as_many_as_the_estimator_counts(drawn: np.ndarray, seq_len: int, seed: int) -> None:
    """Packing fills exactly the rows that the estimator counts from the histogram, in every epoch."""
    counted = packed_rows(lengths_of((length, 1) for length in drawn.tolist()), seq_len)
    packing = Packing(drawn, seq_len)
    assert len(packing) == counted
    assert len(packing.of_epoch(seed, 3)) == counted


@given(lengths, seeds, epochs)
def test_documents_alone_are_a_permutation(drawn: np.ndarray, seed: int, epoch: int) -> None:
    """Without packing each row holds one document."""
    rows = held(Packing(drawn, None).of_epoch(seed, epoch))
    assert sorted(rows) == [[document] for document in range(len(drawn))]


@given(lengths, seeds, epochs)
def test_an_epoch_is_a_pure_function(drawn: np.ndarray, seed: int, epoch: int) -> None:
    """The same lengths, seed and epoch give the same rows in the same order, whatever was asked before."""
    packing = Packing(drawn, SEQ_LEN)
    packing.of_epoch(seed + 1, epoch)
    assert held(packing.of_epoch(seed, epoch)) == held(Packing(drawn, SEQ_LEN).of_epoch(seed, epoch))


def test_epochs_and_seeds_differ() -> None:
    """Epochs differ from one another, and so do seeds, in the order and in what is packed together."""
    packing = Packing(np.repeat(np.arange(1, 21), 20), SEQ_LEN)
    runs = [held(packing.of_epoch(seed, epoch)) for seed in range(3) for epoch in range(3)]
    companies = [{frozenset(row) for row in run} for run in runs]
    assert len({str(run) for run in runs}) == len({frozenset(company) for company in companies}) == 9


@given(st.integers(0, 200), seeds, epochs)
def test_shuffled_is_a_permutation(count: int, seed: int, epoch: int) -> None:
    """Each number comes once."""
    assert sorted(shuffled(count, seed, epoch).tolist()) == list(range(count))


def test_every_place_is_as_likely() -> None:
    """Over many seeds a number comes to each of 10 places about equally often (chi-squared, 9 degrees, p > 1e-6)."""
    places = [int(np.flatnonzero(shuffled(10, seed, 1) == 3)[0]) for seed in range(5000)]
    counts = np.bincount(places, minlength=10)
    assert ((counts - 500) ** 2 / 500).sum() < 45
