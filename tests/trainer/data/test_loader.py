import threading
from collections import Counter
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy
from transformers import MistralConfig, MistralForCausalLM

from tests.support.documents import PAD, token_rows
from trainer.data.loader import NO_TARGET, Batch, Loader, evaluation_batches
from trainer.data.token_rows import TokenRows

SEQ_LEN = 12


@st.composite
def documents(draw: st.DrawFn) -> TokenRows:
    """Draw rows that fit the sequence, with prompts of any length."""
    lengths = draw(st.lists(st.integers(1, SEQ_LEN), min_size=4, max_size=24))
    return token_rows(lengths, [draw(st.integers(1, length)) for length in lengths])


def loader(rows: TokenRows, **changes: Any) -> Loader:
    """Return a loader, with some arguments changed."""
    usual = {"seq_len": SEQ_LEN, "global_batch": 1, "dp_rank": 0, "dp": 1, "seed": 0, "packing": False, "pad_id": PAD}
    return Loader(rows, **(usual | changes))


def taken(loader: Loader, count: int) -> list[Batch]:
    """Return the next batches."""
    return list(islice(loader, count))


def same(first: list[Batch], second: list[Batch]) -> bool:
    """Whether two lists hold the same batches."""
    return len(first) == len(second) and all(
        np.array_equal(a, b) for one, other in zip(first, second, strict=True) for a, b in zip(one, other, strict=True)
    )


def documents_of(batch: Batch) -> list[np.ndarray]:
    """Return the documents of a batch as the model sees them: cut where positions begin anew, without padding."""
    found = []
    for tokens, positions in zip(batch.input_ids_BT, batch.position_ids_BT, strict=True):
        pieces = np.split(tokens, np.flatnonzero(positions == 0)[1:])
        found += [piece[piece != PAD] for piece in pieces if piece[0] != PAD]
    return found


def read(documents: list[np.ndarray]) -> Counter[tuple[int, ...]]:
    """Return how often each document comes."""
    return Counter(tuple(document.tolist()) for document in documents)


@given(documents(), st.booleans(), st.integers(0, 99))
def test_every_row_comes_once_an_epoch(rows: TokenRows, packing: bool, seed: int) -> None:
    """Where the batch is one row, each epoch hands out every document exactly once, whole and unmixed."""
    expected = read([rows[row] for row in range(len(rows))])
    with loader(rows, packing=packing, seed=seed) as batches:
        for _ in range(2):
            epoch = taken(batches, batches.steps_per_epoch)
            assert read([document for batch in epoch for document in documents_of(batch)]) == expected


@given(documents(), st.integers(1, 4), st.booleans())
def test_the_rest_of_an_epoch_is_left_out(rows: TokenRows, global_batch: int, packing: bool) -> None:
    """An epoch has as many steps as whole batches, and no document twice."""
    with loader(rows, packing=packing) as alone:
        num_rows = alone.steps_per_epoch
    assume(num_rows >= global_batch)
    with loader(rows, packing=packing, global_batch=global_batch) as batches:
        assert batches.steps_per_epoch == num_rows // global_batch
        epoch = taken(batches, batches.steps_per_epoch)
    found = read([document for batch in epoch for document in documents_of(batch)])
    assert found <= read([rows[row] for row in range(len(rows))])


@given(documents(), st.booleans(), st.sampled_from([1, 2, 4]))
def test_ranks_share_the_global_batch(rows: TokenRows, packing: bool, dp: int) -> None:
    """The ranks' rows, one after another, are the rows of one rank alone; all ranks count the same tokens."""
    rows = token_rows([*rows.lengths.tolist(), *[SEQ_LEN] * 4])  # at least four packed rows
    with loader(rows, packing=packing, global_batch=4) as alone:
        whole = taken(alone, 5)
    parts = []
    for rank in range(dp):
        with loader(rows, packing=packing, global_batch=4, dp_rank=rank, dp=dp) as own:
            parts.append(taken(own, 5))
    for step, batch in enumerate(whole):
        ranks = [part[step] for part in parts]
        for field in ("input_ids_BT", "labels_BT", "position_ids_BT"):
            assert np.array_equal(np.concatenate([getattr(own, field) for own in ranks]), getattr(batch, field))
        assert {(own.useful_tokens, own.tokens) for own in ranks} == {(batch.useful_tokens, 4 * SEQ_LEN)}


@given(documents(), st.booleans())
def test_targets_are_the_next_tokens_of_the_same_document(rows: TokenRows, packing: bool) -> None:
    """A label is the next token of its document; the prompt, a document's end and padding have none."""
    with loader(rows, packing=packing) as batches:
        epoch = taken(batches, batches.steps_per_epoch)
    for batch in epoch:
        tokens, labels, positions = batch.input_ids_BT[0], batch.labels_BT[0], batch.position_ids_BT[0]
        for place, token in enumerate(tokens.tolist()):
            document, position = token // 1000 - 1, token % 1000
            if token == PAD:
                assert labels[place] == NO_TARGET
                continue
            assert positions[place] == position
            trained = rows.untrained[document] <= position + 1 < rows.lengths[document]
            assert labels[place] == (token + 1 if trained else NO_TARGET)


@given(documents(), st.booleans())
def test_useful_tokens_are_the_targets(rows: TokenRows, packing: bool) -> None:
    """The count of useful tokens is that of labels with a target, and an epoch's is that of all rows."""
    with loader(rows, packing=packing) as batches:
        epoch = taken(batches, batches.steps_per_epoch)
    assert [batch.useful_tokens for batch in epoch] == [int((batch.labels_BT != NO_TARGET).sum()) for batch in epoch]
    assert sum(batch.useful_tokens for batch in epoch) == rows.targets().sum()


def test_padding_continues_the_last_document() -> None:
    """A row that is not packed is one document; a packed one begins its positions anew at each document only."""
    rows = token_rows([5, 4])
    with loader(rows) as batches:
        assert all(np.array_equal(batch.position_ids_BT[0], np.arange(SEQ_LEN)) for batch in taken(batches, 2))
    with loader(rows, packing=True) as batches:
        assert next(batches).position_ids_BT[0].tolist() == [*range(5), *range(7)]


@settings(max_examples=40)
@given(documents(), st.booleans(), st.integers(0, 40), st.integers(0, 3))
def test_resumed_is_uninterrupted(rows: TokenRows, packing: bool, step: int, prefetch: int) -> None:
    """From any step of any epoch, with anything prefetched, a loader goes on as the uninterrupted one."""
    with loader(rows, packing=packing) as batches:
        taken(batches, step)
        state = batches.state_dict()
        expected = taken(batches, 7)
    with loader(rows, packing=packing, prefetch=prefetch) as batches:
        taken(batches, 2)
        batches.load_state_dict(state)
        assert batches.state_dict() == state
        assert same(taken(batches, 7), expected)


def test_another_plan_continues_the_order() -> None:
    """A state of one rank of two is a place for one rank of four."""
    rows = token_rows([3] * 40)
    with loader(rows, global_batch=8, dp=2, dp_rank=1) as batches:
        taken(batches, 7)
        state, expected = batches.state_dict(), next(batches)
    with loader(rows, global_batch=8, dp=4, dp_rank=2) as batches:
        batches.load_state_dict(state)
        assert np.array_equal(next(batches).input_ids_BT, expected.input_ids_BT[:2])


def test_batches_are_made_ahead_and_no_further() -> None:
    """With a prefetch of 2, two batches beyond those handed out come to be while nobody asks, and not a third."""
    made: list[int] = []
    with loader(token_rows([3] * 40), prefetch=2) as batches:
        make = batches._make

        def noted(number: int) -> Batch:
            made.append(number)
            return make(number)

        batches._make = noted  # type: ignore[method-assign]
        for handed_out in range(1, 4):
            next(batches)
            batches._thread.submit(int).result()  # noqa: SLF001 - the thread comes to this last
            assert made == list(range(handed_out + 2))


def test_an_error_of_the_thread_is_the_loop_s() -> None:
    """What fails while a batch is made ahead is raised where the batch is asked for."""
    rows = token_rows([3] * 4)
    with loader(rows) as batches:

        def broken(number: int) -> Batch:
            raise OSError(number)

        batches._make = broken  # type: ignore[method-assign]
        with pytest.raises(OSError, match="0"):
            next(batches)


def test_close_ends_the_thread() -> None:
    """A closed loader leaves no thread, and hands out nothing."""
    before = threading.active_count()
    with loader(token_rows([3] * 4)) as batches:
        next(batches)
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
    with pytest.raises(RuntimeError):
        next(batches)


@given(documents(), st.booleans(), st.sampled_from([1, 2, 4]))
def test_evaluation_sees_every_row_once(rows: TokenRows, packing: bool, dp: int) -> None:
    """All ranks' batches hold each document once, in whole batches; what fills the last has no target."""
    steps = [
        list(
            evaluation_batches(rows, seq_len=SEQ_LEN, global_batch=4, dp_rank=rank, dp=dp, packing=packing, pad_id=PAD)
        )
        for rank in range(dp)
    ]
    batches = [batch for rank in steps for batch in rank]
    assert {batch.input_ids_BT.shape for batch in batches} == {(4 // dp, SEQ_LEN)}
    found = read([document for batch in batches for document in documents_of(batch)])
    assert found == read([rows[row] for row in range(len(rows))])
    assert sum(int((batch.labels_BT != NO_TARGET).sum()) for batch in batches) == rows.targets().sum()
    assert all(len({rank[step].useful_tokens for rank in steps}) == 1 for step in range(len(steps[0])))


def test_no_row_held_out_is_no_batch() -> None:
    """Without rows there is nothing to evaluate."""
    none = token_rows([])
    rest = {"seq_len": SEQ_LEN, "global_batch": 4, "dp_rank": 0, "dp": 1, "pad_id": PAD}
    assert all(not list(evaluation_batches(none, packing=packing, **rest)) for packing in (False, True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"global_batch": 6, "dp": 4}, r"^global batch: 6 rows are no multiple of dp=4; give one that is$"),
        ({"global_batch": 0}, r"^global batch: 0 rows are no multiple of dp=1; give one that is$"),
        ({"global_batch": 2, "dp": 2, "dp_rank": 2}, r"^dp rank: 2 is not from 0 to 1; correct it$"),
        ({"global_batch": 5}, r"^global batch: 5 rows are more than the 4 rows there are; lower it$"),
        (
            {"global_batch": 4, "packing": True},
            r"^global batch: 4 rows are more than the 1 packed rows there are; lower it$",
        ),
        ({"seq_len": 2}, r"^rows: one has 3 tokens, more than seq-len 2; truncate them$"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    """Each rule of the arguments has its line."""
    with pytest.raises(ValueError, match=message):
        loader(token_rows([3] * 4), **changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, r"^loader state: seed was 1, and is 0; give the same, or start anew$"),
        ({"rows": "others"}, r"^loader state: rows was 'others', and is "),
        ({"global_batch": None}, r"^loader state: global_batch was None, and is 1; "),
        ({"epoch": -1}, r"^loader state: epoch -1, step 0 is no place; take another checkpoint$"),
        ({"step_in_epoch": 4}, r"^loader state: epoch 0, step 4 is no place; take another checkpoint$"),
        ({"step_in_epoch": "1"}, r"^loader state: epoch 0, step '1' is no place; take another checkpoint$"),
    ],
)
def test_states_of_another_run_are_refused(change: dict[str, Any], message: str) -> None:
    """A state must be of the same rows, order and batch, and be a place in them."""
    with loader(token_rows([3] * 4)) as batches, pytest.raises(ValueError, match=message):
        batches.load_state_dict(batches.state_dict() | change)


def test_a_packed_loss_is_that_of_the_documents() -> None:
    """A Hugging Face model's loss over a packed batch is the sum over its documents, each alone with its own labels."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = MistralForCausalLM(MistralConfig(vocab_size=64, num_key_value_heads=1, **sizes)).eval()
    lengths, untrained = [30, 17, 12, 9, 5, 3, 20, 8], [1, 4, 12, 2, 1, 1, 7, 3]
    plain = token_rows(lengths, untrained)
    rows = replace(plain, tokens=np.random.default_rng(0).integers(1, 64, len(plain.tokens), dtype=np.int32))
    packed, alone, targets = 0.0, 0.0, 0
    with torch.no_grad():
        for batch in evaluation_batches(rows, seq_len=40, global_batch=2, dp_rank=0, dp=1, packing=True, pad_id=PAD):
            ids, labels, positions = (torch.from_numpy(array) for array in batch[:3])
            logits = model(ids, position_ids=positions, use_cache=False).logits
            packed += float(cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum"))
            targets += batch.useful_tokens
        for row in range(len(rows)):
            ids = torch.from_numpy(rows[row].astype(np.int64))[None]
            labels = ids.clone()
            labels[:, : untrained[row]] = NO_TARGET
            count = lengths[row] - untrained[row]
            alone += float(model(ids, labels=labels).loss) * count if count else 0.0  # the model shifts them itself
    assert targets == sum(lengths) - sum(untrained)
    assert packed == pytest.approx(alone, rel=1e-6)
