"""What the trainer touches of torch and transformers that they keep to themselves, and the versions it was seen in."""

import ast
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

import trainer.cli
from hardware.command import run_command
from tests.support.ranks import run_ranks

PACKAGE = Path(trainer.cli.__file__).parent
LIBRARIES = ("torch", "transformers")

BOTH, NEWER = ("2.11", "2.13"), ("2.13",)
"""Versions of torch. 2.11: training ran with it on an accelerator; 2.13: what these tests run with."""

SEEN = {
    "torch._foreach_mul_": BOTH,
    "torch._foreach_norm": BOTH,
    "torch.distributed.tensor.DTensor.__create_chunk_list__": BOTH,
    "torch._C": NEWER,
    "torch._C._current_graph_task_id": NEWER,
    "torch._dynamo.backends.common.aot_autograd": NEWER,
    "torch._functorch.partitioners.min_cut_rematerialization_partition": NEWER,
    "torch._guards.active_fake_mode": NEWER,
    "torch._inductor.decomposition.select_decomp_table": NEWER,
    "torch._prims.rng_prims.run_and_save_rng_state": NEWER,
    "torch.distributed.tensor._sharding_prop.ShardingPropagator": NEWER,
    "torch.distributed.tensor._sharding_prop.ShardingPropagator._propagate_tensor_meta_non_cached": NEWER,
    "torch._prims.rng_prims.run_with_rng_state": NEWER,
    "torch.distributed.tensor.debug._clear_sharding_prop_cache": NEWER,
    "torch._ops": NEWER,
    "torch._subclasses.fake_tensor.FakeTensor": NEWER,
    "torch._subclasses.fake_tensor.FakeTensorMode": NEWER,
    "torch.distributed._tools.common_utils.get_untyped_storages": NEWER,
    "torch.distributed.fsdp.FSDPModule._get_fsdp_state": NEWER,
    "torch.distributed.fsdp._fully_shard._fsdp_param_group.FSDPParamGroup": NEWER,
    "torch.distributed.pipelining._utils.InferenceMode": NEWER,
    "torch.distributed.pipelining.schedules._PipelineSchedule": NEWER,
    "torch.distributed.pipelining.schedules._PipelineSchedule._warmup_p2p": NEWER,
    "torch.ops._c10d_functional": NEWER,
    "torch.ops.aten._scaled_dot_product_flash_attention_for_cpu": NEWER,
    "torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward": NEWER,
    "torch.testing._internal.distributed.fake_pg.FakeStore": NEWER,
    "torch.utils._python_dispatch.TorchDispatchMode": NEWER,
    "torch.utils._python_dispatch._get_current_dispatch_mode_stack": NEWER,
    "torch.utils._pytree.tree_leaves": NEWER,
}
"""Where each lies, and the versions that had it."""

OF_INSTANCES = {
    "_boxed_call": NEWER,
    "_fsdp_param_group": NEWER,
    "_inference_mode": NEWER,
    "_overloadpacket": NEWER,
    "_unsharded_param": NEWER,
}
"""Attributes that only an object in use has; the dry run's tests use them."""


def private_names(source: str) -> Iterator[str]:
    """Yield the private modules, names and attributes of the libraries that a module touches.

    An attribute counts on whatever it is looked up but `self`, `os` and `sys`, unless the module defines one of its
    name.
    """
    tree = ast.parse(source)
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith(LIBRARIES) and "._" in a.name)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in LIBRARIES:
            yield from (f"{node.module}.{alias.name}" for alias in node.names if "._" in f".{node.module}.{alias.name}")
        elif isinstance(node, ast.Attribute) and _is_private(node.attr) and node.attr not in own | _of_itself(node):
            yield node.attr


def _of_itself(node: ast.Attribute) -> set[str]:
    return {node.attr} if isinstance(node.value, ast.Name) and node.value.id in {"self", "cls", "os", "sys"} else set()


def _is_private(name: str) -> bool:
    of_python = name.endswith("__") and (hasattr(type, name) or hasattr(BaseException, name))
    return name.startswith("_") and not of_python and name not in ("__file__", "__version__")


def touched() -> dict[str, list[str]]:
    """Return the modules of the trainer that touch each private name."""
    found: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        if any(f"{how} {library}" in source for how in ("import", "from") for library in LIBRARIES):
            for name in private_names(source):
                found.setdefault(name, []).append(str(path.relative_to(PACKAGE)))
    return found


def test_every_private_name_is_listed() -> None:
    """A private name that nobody has listed with its versions fails here, and one that nothing uses is not listed."""
    listed = {**SEEN, **OF_INSTANCES}
    lasts = {name.rpartition(".")[2] for name in listed}
    found = touched()
    assert {name: where for name, where in found.items() if name not in listed and name not in lasts} == {}
    used = {name.rpartition(".")[2] for name in found}
    assert {name for name in listed if name.rpartition(".")[2] not in used} == set()


@pytest.mark.parametrize("name", SEEN)
def test_what_is_listed_is_in_the_version_here(name: str) -> None:
    """Each listed name is where it is said to be, and this version is among those it was seen in."""
    assert ".".join(torch.__version__.split(".")[:2]) in SEEN[name]
    assert resolve(name) is not None


def resolve(name: str) -> Any:
    """Return what a dotted name means, through modules as far as they go, then attributes."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found: Any = import_module(".".join(parts[:count]))
        except ImportError:
            continue
        for part in parts[count:]:
            found = getattr(found, part)
        return found
    raise AssertionError(name)


def test_the_walk_sees_a_new_one() -> None:
    """Imports from private modules, private names, attributes of other objects are found; a module's own are not."""
    source = (
        "from torch._inner import thing\nfrom torch.nn import _other, Linear\nimport torch._C\n"
        "def _mine(): pass\nself._kept = x._hidden + y._mine()\nz.__class__\n"
    )
    assert set(private_names(source)) == {"torch._inner.thing", "torch.nn._other", "torch._C", "_hidden"}


def test_training_imports_no_dry_run() -> None:
    """The command is imported without the modules whose names another version of torch lacks."""
    (modules,) = run_ranks(1, modules_of_the_command)
    assert "trainer.train" in modules
    assert [name for name in modules if name.startswith("trainer.look_ahead.")] == []


def modules_of_the_command() -> list[str]:
    """Return what a process that has imported the command, and what trains, has imported."""
    return list(sys.modules)


def test_a_dry_run_says_which_version_it_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where torch lacks a private name, the dry run is refused in one line, with status 2."""
    monkeypatch.setitem(sys.modules, "trainer.look_ahead.dry_run", None)
    assert run_command(trainer.cli.train_app, "train", ["--dry-run", "--flavor", "4xlarge"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"torch {torch.__version__} lacks what it follows inside torch" in said
    assert "install torch 2.13" in said
