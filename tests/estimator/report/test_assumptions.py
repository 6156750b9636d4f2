from tests.support.commands import estimate as call
from tests.support.paths import MEASURED

MACHINE = MEASURED / "cpu" / "5m_s256_n1_m1_b8" / "machine.toml"


def test_a_measured_machine_is_no_datasheet() -> None:
    """Figures of a machine that was itself measured are called so, and a stack of tables counts their runs."""
    status, out, _ = call(
        *("--explain", "--accelerator", "cpu-2-core-x1", "--devices", "1", "--catalog", str(MACHINE)),
        *("--stack", "reference", "--precision", "fp32"),
    )
    assert status == 3
    kinds = {line.partition("  ")[0]: line.split()[-1] for line in out.splitlines() if line.startswith("device ")}
    assert kinds["device memory"] == kinds["device memory bandwidth"] == "measured"
    assert kinds["device power"] == "assumed"
    assert "61 runs; prior " in out


def test_spreads_of_a_stack_that_learned_are_ranges() -> None:
    """Where intervals differ by plan, the least and the most of their spreads are told."""
    _, out, _ = call("--explain", "--accelerator", "h100-sxm-80gb", "--devices", "8", "--stack", "nanotron")
    (line,) = (line for line in out.splitlines() if line.startswith("stack: spread of seconds per step"))
    least, most = (float(word[:-1]) for word in line.split() if word.endswith("%"))
    assert 0 < least < most


def test_a_measured_latency_is_called_so() -> None:
    """A hop among eight H100s was measured, one between two of them was not."""
    _, out, _ = call("--explain", "--accelerator", "h100-sxm-80gb", "--devices", "8", "--stack", "nanotron")
    hops = [line for line in out.splitlines() if line.startswith("link of") and ", a hop" in line]
    assert {line.split("(")[0].strip(): line.split()[-1] for line in hops} == {
        "link of 2 devices": "assumed",
        "link of 8 devices": "measured",
    }


def test_what_lies_beyond_the_runs_is_told() -> None:
    """More nodes than were measured are told as what widens the intervals; as many are not."""
    for devices, told in (("256", False), ("512", True)):
        asked = ("--accelerator", "h100-sxm-80gb", "--devices", devices, "--stack", "nanotron", "--batch", "512")
        _, out, _ = call("--explain", *asked)
        assert ("stack: further spread of more nodes than the 32 measured" in out) == told
        assert "stack: further spread of a source of runs other than those measured" in out
