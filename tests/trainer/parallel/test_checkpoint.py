import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.metadata import Metadata

from tests.support.checkpoints import DAMAGE, flip, infect, save_alone, seal, write_checkpoints
from trainer.parallel.checkpoint import (
    checkpoints_in,
    damage,
    find_checkpoint,
    prune,
    read_state,
    step_of,
    weight_shapes,
)
from trainer.parallel.digests import file_damage, read_digests, write_digests
from trainer.parallel.metadata import Reader, read_metadata


def test_the_newest_checkpoint_is_found(tmp_path: Path) -> None:
    """Of a run's own checkpoints the last counts; what was broken off, others' folders and files do not."""
    write_checkpoints(tmp_path, 2, 10, 9)
    (tmp_path / ".partial-step-00000098").mkdir()
    (tmp_path / "step-00000097").write_text("a file")
    (tmp_path / "step-96").mkdir()
    assert find_checkpoint("auto", tmp_path, damage) == (tmp_path / "step-00000010", "")


def test_there_need_be_none(tmp_path: Path) -> None:
    """A run without a checkpoint begins anew, as does one that is not to be continued."""
    assert find_checkpoint("auto", tmp_path / "none", damage) is None
    assert find_checkpoint("auto", tmp_path, damage) is None
    write_checkpoints(tmp_path, 1)
    assert find_checkpoint("", tmp_path, damage) is None


def test_a_checkpoint_is_given_by_its_folder(tmp_path: Path) -> None:
    """Any whole checkpoint can be given, newest or not; its step is in its name."""
    first, _ = write_checkpoints(tmp_path, 3, 4)
    assert find_checkpoint(str(first), tmp_path / "elsewhere", damage) == (first, "")
    assert (step_of(first), read_state(first)["step"]) == (3, 3)


@pytest.mark.parametrize("name", ["missing", ".partial-step-00000003", "step-00000005"])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, name: str) -> None:
    """What is no folder, or has another name, is no place to continue from."""
    (tmp_path / "step-00000005").touch()
    (tmp_path / ".partial-step-00000003").mkdir()
    given = str(tmp_path / name)
    with pytest.raises(ValueError, match=r"^resume: '.*' is no checkpoint; give a folder step-..., or auto$"):
        find_checkpoint(given, tmp_path, damage)


@pytest.mark.parametrize(("spoil", "said"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, spoil: Callable[[Path], object], said: str) -> None:
    """Whatever is damaged, the one before it is taken and the damage told; given by its folder, it is refused."""
    before, newest = write_checkpoints(tmp_path, 4, 8)
    spoil(newest)
    found = find_checkpoint("auto", tmp_path, damage)
    assert found is not None
    assert found.path == before
    assert re.fullmatch(f"step-00000008 is damaged: {said}", found.passed_over)
    with pytest.raises(ValueError, match=f"^resume: '.*8' is damaged: {said}; give another checkpoint, or auto$"):
        find_checkpoint(str(newest), tmp_path, damage)


def test_where_none_is_whole_one_line_tells_of_all(tmp_path: Path) -> None:
    """A run of which no checkpoint is whole is not begun anew behind its owner's back."""
    for checkpoint in write_checkpoints(tmp_path, 4, 8):
        (checkpoint / ".metadata").unlink()
    said = (
        r"^resume: no checkpoint in '.*' is whole \(step-00000008 is damaged: .metadata is missing; step-00000004 is "
        r"damaged: .metadata is missing\); give another, or start anew with another --output$"
    )
    with pytest.raises(ValueError, match=said):
        find_checkpoint("auto", tmp_path, damage)


def test_a_foreign_name_is_refused_before_it_is_looked_up(tmp_path: Path) -> None:
    """Metadata that calls a function is refused though its digests fit, and nothing of it is run."""
    before, newest = write_checkpoints(tmp_path, 4, 8)
    infect(newest, tmp_path / "trace")
    pickle.loads((newest / ".metadata").read_bytes())  # noqa: S301 - what a plain load does
    (tmp_path / "trace").rmdir()
    found = find_checkpoint("auto", tmp_path, damage)
    assert found == (
        before,
        "step-00000008 is damaged: .metadata names 'pathlib.Path.mkdir', which no checkpoint's does",
    )
    with pytest.raises(ValueError, match="which no checkpoint's does"):
        Reader(newest).read_metadata()
    assert not (tmp_path / "trace").exists()


def test_bytes_are_refused(tmp_path: Path) -> None:
    """An entry that is no tensor, which torch would unpickle without a list, is refused."""
    (checkpoint,) = write_checkpoints(tmp_path, 1)
    (checkpoint / ".metadata").unlink()
    save_alone(checkpoint, weight=torch.ones(1), option=0.5)
    seal(checkpoint)
    assert damage(checkpoint) == (
        ".metadata names 'torch.distributed.checkpoint.metadata.BytesStorageMetadata', which no checkpoint's does"
    )


def test_metadata_points_to_files_beside_it(tmp_path: Path) -> None:
    """A place outside of the checkpoint is refused."""
    (checkpoint,) = write_checkpoints(tmp_path, 1)
    metadata = read_metadata(checkpoint)
    for place in metadata.storage_data.values():
        place.relative_path = "../elsewhere"
    (checkpoint / ".metadata").write_bytes(pickle.dumps(metadata))
    seal(checkpoint)
    assert damage(checkpoint) == ".metadata points to '../elsewhere', which is no file beside it"


@pytest.mark.parametrize("content", [None, torch.Size([1]), Metadata([1]), Metadata({"a": 1}), Metadata({}, None, 1)])  # type: ignore[arg-type]
def test_records_put_together_otherwise_are_refused(tmp_path: Path, content: object) -> None:
    """A pickle of known records that are no checkpoint's is damage, and no traceback."""
    (checkpoint,) = write_checkpoints(tmp_path, 1)
    (checkpoint / ".metadata").write_bytes(pickle.dumps(content))
    seal(checkpoint)
    assert damage(checkpoint) in {".metadata is no checkpoint's", ".metadata has 'a', which is no tensor"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "digests.json is no list of digests"),
        ('{"files": {"a": {"bytes": 1}}}', "digests.json is no list of digests"),
        ('{"files": {"../a": {"bytes": 1, "sha256": ""}}}', "digests.json names '../a', which is no file beside it"),
        ('{"files": {}}', "digests.json lists no run.json"),
        ("[" * 10**5, "digests.json cannot be read"),
    ],
)
def test_a_list_of_digests_is_checked(tmp_path: Path, text: str, said: str) -> None:
    """What is no list of a checkpoint's digests is damage."""
    (checkpoint,) = write_checkpoints(tmp_path, 1)
    (checkpoint / "digests.json").write_text(text)
    assert damage(checkpoint) == said


def test_shares_of_the_digests_are_all_of_them(tmp_path: Path) -> None:
    """Whichever file has a flipped bit, one rank of several sees it, and no other does."""
    (checkpoint,) = write_checkpoints(tmp_path, 1)
    for name in ("__1_0.distcp", "__2_0.distcp"):
        shutil.copy(checkpoint / "__0_0.distcp", checkpoint / name)
    seal(checkpoint)
    for name in read_digests(checkpoint):
        flip(checkpoint / name)
        found = [file_damage(checkpoint, part=part, parts=2) for part in range(2)]
        flip(checkpoint / name)
        assert sorted(found) == ["", f"{name} is not as it was written (its sha256 differs)"]
    assert [file_damage(checkpoint, part=part, parts=2) for part in range(2)] == ["", ""]
    write_digests(checkpoint, read_digests(checkpoint))
    assert damage(checkpoint) == ""


@pytest.mark.parametrize("text", ["", "{", "\xff", "[]", "{}"])
def test_a_state_that_cannot_be_read_is_damage(tmp_path: Path, text: str) -> None:
    """A state that says nothing is told, also where its digest fits."""
    (checkpoint,) = write_checkpoints(tmp_path, 1)
    (checkpoint / "run.json").write_text(text, encoding="latin-1")
    seal(checkpoint)
    assert damage(checkpoint) in {"run.json cannot be read", "run.json is no state of a run"}


def test_the_weights_that_a_checkpoint_holds_are_known(tmp_path: Path) -> None:
    """Names and shapes of weights are told from the metadata alone."""
    (checkpoint,) = write_checkpoints(tmp_path, 1)
    assert weight_shapes(checkpoint) == {"weight": [12]}


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_the_newest_are_kept(tmp_path: Path, keep: int) -> None:
    """All but the newest checkpoints go, and what was broken off; nothing else is touched."""
    write_checkpoints(tmp_path, 1, 5, 20, 100)
    (tmp_path / ".partial-step-00000007" / "deep").mkdir(parents=True)
    (tmp_path / "notes").mkdir()
    prune(tmp_path, keep, keeps_best=False, is_own=lambda _: True)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["notes", *[f"step-{step:08d}" for step in (1, 5, 20, 100)[-keep:]]]


def test_what_was_passed_over_takes_no_ones_place(tmp_path: Path) -> None:
    """Checkpoints that the run did not continue from go, and do not count among those that are kept."""
    write_checkpoints(tmp_path, 4, 6, 8, 5)
    prune(tmp_path, 2, keeps_best=False, is_own=lambda step: step in {4, 5})
    assert [step_of(path) for path in checkpoints_in(tmp_path)] == [5, 4]


def test_the_best_is_kept_too(tmp_path: Path) -> None:
    """Beside the newest stays the one of the least loss on held-out rows; of equals the newer."""
    for step, loss in ((1, 2.0), (2, 1.0), (3, 1.0), (4, None), (5, 3.0), (6, np.pi)):
        write_checkpoints(tmp_path, step, held_out_loss=loss)
    prune(tmp_path, 2, keeps_best=True, is_own=lambda _: True)
    assert [step_of(path) for path in checkpoints_in(tmp_path)] == [6, 5, 3]
