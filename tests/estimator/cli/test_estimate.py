import json
import os
import subprocess
import sys
import tomllib
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estimator.report.text_flavors import print_flavors
from estimator.search.planner import offers
from estimator.stack.stack import builtin_stacks
from estimator.work.plan import parse_fields, parse_plan
from hardware.catalog import load_catalog
from hardware.command import open_console
from hardware.smi.switching import switch_flavor
from tests.support.commands import estimate as call
from tests.support.every_flavor import every_flavor
from tests.support.paths import GOLDEN as GOLDEN_FOLDER

GOLDEN = tomllib.loads((GOLDEN_FOLDER / "seed.toml").read_text(encoding="utf-8"))["seed"]


def call_json(*arguments: str) -> dict:
    """Run a command with --json that must succeed."""
    status, out, err = call(*arguments, "--json")
    assert (status, err) == (0, "")
    return json.loads(out)


def walk_numbers(document: object) -> list[float]:
    """Return every number of a document."""
    if isinstance(document, dict):
        return [n for value in document.values() for n in walk_numbers(value)]
    if isinstance(document, list):
        return [n for value in document for n in walk_numbers(value)]
    return [document] if isinstance(document, int | float) else []


@pytest.fixture(scope="module")
def seed() -> dict:
    """Return the document of the seed run, as it comes without any option."""
    return call_json()


def test_the_current_flavor_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An option goes before the environment, that before the user's choice, that before the seed flavor."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert call_json()["flavor"]["name"] == "4xLarge.2048GB"
    switch_flavor(load_catalog().flavor("8xlarge"))
    assert call_json()["flavor"]["name"] == "8xLarge.4096GB"
    monkeypatch.setenv("ACCELERATOR_FLAVOR", "mi300x8")
    assert call_json()["flavor"]["name"] == "mi300x8"
    assert call_json("--flavor", "xlarge", "--batch", "64")["flavor"]["name"] == "xLarge.512GB"
    monkeypatch.setenv("ACCELERATOR_FLAVOR", "mi300x9")
    status, _, err = call()
    assert status == 2
    assert err.startswith("ACCELERATOR_FLAVOR: unknown flavor 'mi300x9': did you mean mi300x8 or mi210x32?")


def test_a_choice_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged choice is told on standard error, and the seed flavor estimated."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    (tmp_path / "foretrain").mkdir()
    (tmp_path / "foretrain" / "selection.json").write_text("?")
    status, out, err = call("--json")
    assert (status, json.loads(out)["flavor"]["name"]) == (0, "4xLarge.2048GB")
    assert err.endswith("; switch-model writes it anew; 4xLarge.2048GB is used\n")


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("logged_tokens_per_s", ("throughput", "logged_tokens_per_s")),
        ("minutes", ("wall", "minutes")),
        ("total_mib", ("memory", "total_mib")),
    ],
)
def test_seed_numbers(seed: dict, name: str, path: tuple[str, str]) -> None:
    """Out of the box, the published numbers of the seed run are met within the promised tolerance."""
    predicted = seed["best"][path[0]][path[1]]
    published = GOLDEN[name]
    assert predicted["value"] == pytest.approx(published["value"], rel=published["tolerance"])
    assert predicted["low"] < published["value"] < predicted["high"]


def test_seed_plan_is_the_platforms(seed: dict) -> None:
    """The candidates are as many as the platform's log counts, and the best is the one that it chose."""
    assert seed["search"]["num_candidates"] == GOLDEN["candidates"]
    status, out, _ = call("--flavor", "4xlarge")
    assert status == 0
    assert GOLDEN["line"] in out


def test_seed_flop(seed: dict) -> None:
    """Rate, devices and seconds multiply to the FLOP of the work: 6 N T + causal attention, N without the embedding."""
    best, tokens = seed["best"], 256 * 2048
    flop = best["throughput"]["tflops_per_device"] * 1e12 * 32 * best["step"]["seconds"]["value"]
    num_matmul_params = 7_241_732_096 - 32000 * 4096 - 65 * 4096
    assert flop == pytest.approx(6 * num_matmul_params * tokens + 6 * 32 * 4096 * 2049 * tokens, rel=1e-12)


def test_contract_fields(seed: dict) -> None:
    """The document has the fields of the contract."""
    assert seed["schema"] == "estimate/1"
    assert {"workload", "flavor", "stack", "search", "best", "plans"} <= seed.keys()
    assert set(seed["best"]) == {
        *("plan", "possible", "risky", "reason", "memory", "step", "throughput", "wall", "cost")
    }
    assert seed["best"] == seed["plans"][0]
    assert len(seed["plans"]) == seed["search"]["num_candidates"]
    assert sum(plan["possible"] for plan in seed["plans"]) == seed["search"]["num_possible"]


def test_json_round_trips(seed: dict) -> None:
    """The document survives being written and read again, and holds no infinity or not-a-number."""
    assert json.loads(json.dumps(seed, allow_nan=False)) == seed


def test_breakdowns_sum(seed: dict) -> None:
    """Of every plan, seconds by purpose sum to the step, and bytes by purpose to the fullest device."""
    for plan in seed["plans"]:
        assert sum(plan["step"]["breakdown_s"].values()) == pytest.approx(plan["step"]["seconds"]["value"])
        assert sum(plan["memory"]["breakdown_mib"].values()) == pytest.approx(plan["memory"]["per_device_mib"]["value"])


def test_throughputs_follow_from_the_step(seed: dict) -> None:
    """Sustained tokens per second are the tokens of a step over its seconds, and run parts sum to the whole."""
    best, tokens = seed["best"], seed["workload"]["tokens_per_step"]
    assert best["throughput"]["tokens_per_s"]["value"] == pytest.approx(tokens / best["step"]["seconds"]["value"])
    wall = best["wall"]
    whole = wall["startup_s"] + wall["first_step_s"] + 60 * wall["minutes"]["value"]
    assert 60 * wall["total_minutes"]["value"] == pytest.approx(whole)


@pytest.mark.parametrize("flavor", ["xlarge", "2xLarge.1024GB", "8xlarge", "mi210x32", "mi300x8"])
def test_ranges_are_ordered(flavor: str) -> None:
    """Every range has low <= value <= high, and every number is finite."""
    document = call_json("--flavor", flavor)
    assert all(abs(number) < float("inf") for number in walk_numbers(document))
    for plan in document["plans"]:
        for part in (plan["step"]["seconds"], plan["memory"]["total_mib"], plan["wall"]["total_minutes"]):
            assert 0 < part["low"] <= part["value"] <= part["high"]


def test_every_flavor_is_answered() -> None:
    """`--flavor all` has the 13 flavors of the menu, both others, and 1 to 8 nodes of H100, H200 and A100."""
    document = call_json("--flavor", "all", "--space", "moai")
    assert document["schema"] == "estimates/1"
    names = [entry["flavor"]["name"] for entry in document["estimates"]]
    assert len(names) == len(set(names)) > 15
    assert {"Small.64GB", "48xLarge.24576GB", "mi210x32", "mi300x8", "h100-sxm-80gb-16"} <= set(names)
    assert document["chosen"] in document["frontier"]
    marks = [mark for flavor in document["frontier"].values() for mark in flavor]
    assert sorted(marks) == ["cheapest", "fastest", "knee"]


def test_the_table_of_flavors_fits_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """On 80 columns and on 200, each flavor's name and headline number stand whole."""
    found = every_flavor()
    for columns in ("80", "200"):
        monkeypatch.setenv("COLUMNS", columns)
        with redirect_stdout(StringIO()) as out:
            print_flavors(open_console(), found.estimates, found.objective, found.limits, found.chosen)
        for one in found:
            assert one.flavor.id in out.getvalue()
            if one.best:
                assert f"{one.best.tokens_per_s.value:,.0f}" in out.getvalue()


def test_both_spellings_are_one_flavor() -> None:
    """Either spelling of a flavor gives the same estimate."""
    one, other = call_json("--flavor", "4xLarge.2048GB"), call_json("--flavor", "4xlarge")
    one["search"]["seconds"] = other["search"]["seconds"] = 0
    assert one == other


def test_a_plan_text_is_estimated_alone(seed: dict) -> None:
    """A plan given as text gets the numbers that it has among the candidates."""
    text = "num_stages=2,num_micro_batches=16,batch_per_device=1,tp=1,recomputation=none,distribute_param=true"
    alone = call_json("--plan", text)["best"]
    assert alone["step"] == seed["best"]["step"]
    assert alone["memory"] == seed["best"]["memory"]


def test_explain_names_evidence() -> None:
    """`--explain` lists every habit and parameter of the stack with a kind of evidence."""
    status, out, _ = call("--explain")
    assert status == 0
    for name in ("stack: matmul_efficiency", "stack: fused_attention", "log: timed window", "startup: load", "price: "):
        assert name in out
    assert {"fitted", "measured", "assumed", "datasheet", "documented"} <= set(out.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--flavor", "5xLarge"), "did you mean 4xLarge.2048GB or 6xLarge.3072GB?"),
        (("--model", "nothing"), "unknown model 'nothing'"),
        (("--model", "./nowhere/config.json"), "cannot be read"),
        (("--batch", "abc"), "valid integer"),
        (("--batch", "0"), "batch: 0"),
        (("--seq-len", "-1"), "seq-len: -1"),
        (("--rows", "3"), "rows: 3 rows do not fill one batch of 256"),
        (("--steps", "3", "--rows", "300"), "give one or the other"),
        (("--plan", "num_stages=3"), "plan: num_stages"),
        (("--plan", "num_stages=2,num_micro_batches=16,batch_per_device=1,tp=2"), "is not the global batch 256"),
        (("--plan", "tp=16"), "plan: tp=16 does not divide num_kv_heads=8"),
        (("--stack", "all", "--flavor", "all"), "stack: --stack all is given beside several flavors"),
        (("--stack", "all", "--explain"), "explain: --explain is given beside --stack all"),
        (("--flavor", "xlarge,nothing"), "unknown flavor 'nothing'"),
        (("--plan", "nonsense"), "is not key=value"),
        (("--space", "all"), "unknown space 'all': use one of moai, full"),
        (("--objective", "speed"), "unknown objective 'speed': use one of time, cost, energy"),
        (("--deadline", "soon"), "deadline: 'soon' is not a duration; write for example 30m, 2.5h or 3d"),
        (("--budget", "0"), "budget: 0.0 is not a sum of money"),
        (("--why", "num_stages=2", "--json"), "why: --why is given beside --json"),
        (("--why", "num_stages=2", "--plan", "num_stages=2"), "why: --why is given beside --plan"),
        (("--why", "nonsense"), "is not key=value"),
        (("--device-mtbf", "2h"), "device-mtbf: '2h' is given without --failures; add it"),
        (("--device-mtbf", "often", "--failures"), "device-mtbf: 'often' is not a duration"),
        (("--lengths", "missing.csv"), "missing.csv"),
        (("--lengths", "missing.csv", "--rows", "300"), "lengths: --lengths is given beside --rows"),
        (("--lora", "-1"), "lora: rank -1 is not from 1 to 4096"),
        (("--lora", "8", "--lora-targets", "Wqkv"), "unknown lora-targets of 'mistralai/Mistral-7B-v0.1': 'Wqkv': "),
        (("--lora-targets", "q_proj"), "lora-targets: 'q_proj' is given without a rank; add for example --lora 16"),
        (("--quantize", "4"), "freeze them with --lora RANK"),
        (("--precision", "fp8-mixed"), "precision: fp8 needs matrix units that mi250 lacks"),
        (("--stack", "none"), "unknown stack 'none'"),
        (("--accelerator", "mi300x"), "go together"),
        (("--accelerator", "mi300x", "--devices", "8", "--flavor", "small"), "give one or the other"),
        (("--catalog", "missing.toml"), "missing.toml"),
        (("--no-such-option",), "No such option"),
        (("--steps", "0"), "steps: 0"),
        (("--explain", "--json"), "explain: --explain is given beside --json"),
        (("--explain", "--flavor", "all"), "explain: --explain is given beside --flavor all"),
        (("--flavor", "all", "--devices", "8"), "give one or the other"),
        (("--flavor", "all", "--plan", "num_stages=7"), "no other takes it either"),
    ],
)
def test_bad_input_is_one_line(arguments: tuple[str, ...], message: str) -> None:
    """Bad input: exit status 2, nothing on standard output, one line that says what and the mend."""
    status, out, err = call(*arguments)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err


@settings(max_examples=40)
@given(st.sampled_from(["--flavor", "--plan", "--model", "--stack", "--catalog", "--space"]), st.text(max_size=80))
def test_any_text_ends_in_one_line(option: str, text: str) -> None:
    """Whatever the text, the command ends with status 0, or with 2 (3 where nothing fits) and one line."""
    status, _, err = call(f"{option}={text}", "--json")
    assert status in {0, 2, 3}
    assert err.count("\n") == (status != 0)
    assert "Traceback" not in err


def test_any_bytes_as_config(tmp_path: Path) -> None:
    """A config or a catalog of arbitrary bytes ends in exit status 2 and one line."""
    for content in (b"", b"\xff\xfe", b"[" * 100_000, b'{"model_type": "llama"}', b"[[flavor]]\nid = 3", b"null"):
        path = tmp_path / "config.json"
        path.write_bytes(content)
        for option in ("--model", "--catalog", "--stack"):
            status, out, err = call(option, str(path))
            if not (option == "--catalog" and not content):
                assert (status, out, err.count("\n")) == (2, "", 1)


def test_names_are_printed_as_they_are(tmp_path: Path) -> None:
    """A model whose name looks like terminal markup is printed to the letter."""
    folder = tmp_path / "[bold]my[" / "config"
    folder.mkdir(parents=True)
    config = {"model_type": "gpt2", "n_embd": 64, "n_head": 4, "n_layer": 4, "n_positions": 64, "vocab_size": 99}
    (folder / "config.json").write_text(json.dumps(config | {"_name_or_path": "[bold]my[/x]"}), encoding="utf-8")
    status, out, _ = call("--model", str(folder), "--seq-len", "64")
    assert status == 0
    assert "[bold]my[/x]" in out


def test_nothing_fits_names_the_miss_and_a_flavor() -> None:
    """Where no plan fits: exit status 3, the nearest miss in MiB, and the smallest flavor that fits."""
    status, out, err = call("--flavor", "small", "--json")
    assert status == 3
    assert json.loads(out)["best"] is None
    assert "MiB more than the usable 52,416" in err
    assert "the smallest flavor that fits is xLarge.512GB" in err


def test_a_batch_that_nothing_divides_names_a_batch() -> None:
    """Where no degree divides the batch, the line names a batch, and that batch works."""
    status, _, err = call("--flavor", "6xlarge")
    assert status == 3
    batch = err.partition("use --batch ")[2].partition(",")[0]
    assert call("--flavor", "6xlarge", "--batch", batch)[0] == 0


def test_why_a_plan_is_not_the_best() -> None:
    """`--why` says which rule a plan breaks, what it lacks in memory, or how it ranks and where it loses."""
    status, out, err = call("--why", "num_stages=3")
    assert (status, err) == (0, "")
    assert "cannot run on 4xLarge.2048GB: num_stages * tp * cp = 3 * 1 * 1 does not divide 32 devices" in out
    alone = "num_stages=1,num_micro_batches=8,batch_per_device=1,tp=1,recomputation=none,distribute_param=true"
    assert "MiB more than the usable" in call("--why", alone)[1]
    chosen = "num_stages=2,num_micro_batches=16,batch_per_device=1,tp=1,recomputation=none,distribute_param=true"
    assert "it is the plan that is chosen" in call("--why", chosen)[1]
    out = call("--why", chosen, "--space", "full")[1]
    assert "plans that fit (space full) are faster" in out
    assert "launch overhead +" in out


def test_the_full_space_against_the_platforms_choice(seed: dict) -> None:
    """The full space holds better plans than the platform's; the table says how many minutes they save, and where."""
    full = call_json("--space", "full")
    assert full["search"]["num_candidates"] > 100_000
    assert full["best"]["step"]["seconds"]["value"] < seed["best"]["step"]["seconds"]["value"]
    out = call("--space", "full")[1]
    assert "The platform would choose num_stages : 2, num_micro_batches : 16" in out
    assert "min more. Per step, against it: launch overhead -" in " ".join(out.split())


def test_limits() -> None:
    """A deadline or a budget that no plan keeps ends with status 3 and by how much; one that is kept, with 0."""
    status, _, err = call("--deadline", "30m")
    assert status == 3
    assert "its best plan takes 52.3 min, 22.3 min more than the deadline" in err
    assert call("--deadline", "1h", "--budget", "100")[0] == 0
    three = "mi300x8,4xlarge,h100-sxm-80gb-16"
    status, _, err = call("--flavor", three, "--budget", "1", "--space", "moai")
    assert status == 3
    assert "no flavor keeps the limits; on " in err
    chosen = call_json("--flavor", three, "--objective", "cost", "--deadline", "10m")["chosen"]
    assert (chosen, call_json("--flavor", three, "--objective", "cost")["chosen"]) == ("h100-sxm-80gb-16", "mi300x8")


def test_lengths_tell_padding_and_packing(tmp_path: Path) -> None:
    """A histogram of lengths sets the rows, the useful throughput, and what packing would save."""
    path = tmp_path / "lengths.csv"
    path.write_text("length,count\n512,9000\n2048,1000\n", encoding="utf-8")
    document = call_json("--lengths", str(path))
    assert document["workload"]["steps"] == 10_000 // 256 * 2
    padding = document["workload"]["padding"]
    assert padding == {"useful_fraction": 0.325, "packed_rows": 3250, "packed_steps": 3250 // 256 * 2}
    rates = document["best"]["throughput"]
    assert rates["useful_tokens_per_s"] == pytest.approx(0.325 * rates["tokens_per_s"]["value"])
    assert "Packed into 3,250 rows, 24 steps would do" in " ".join(call("--lengths", str(path))[1].split())


def test_failures_are_counted_when_asked(seed: dict) -> None:
    """`--failures` adds checkpoints and failures to the wall time, the more the sooner devices fail."""
    usual, soon = (call_json("--failures", *more)["best"]["wall"] for more in ((), ("--device-mtbf", "200h")))
    minutes = [wall["total_minutes"]["value"] for wall in (seed["best"]["wall"], usual, soon)]
    assert minutes == sorted(minutes)
    assert seed["best"]["wall"]["failures"] is None
    assert 0 < soon["failures"]["goodput_fraction"] < usual["failures"]["goodput_fraction"] < 1
    assert "failures" not in " ".join(call_json("--failures")["not_modelled"])


def test_a_precision_is_offered_where_it_runs() -> None:
    """`--flavor all` leaves out the accelerators that lack a precision."""
    document = call_json("--flavor", "all", "--precision", "fp8-mixed", "--space", "moai")
    names = [entry["flavor"]["accelerator"] for entry in document["estimates"]]
    assert "h100-sxm-80gb" in names
    assert "mi250" not in names


def test_a_plan_that_does_not_fit_where_another_does() -> None:
    """Where the given plan does not fit but the platform's would, the line says so."""
    text = "num_stages=2,num_micro_batches=2,batch_per_device=8,tp=1,recomputation=none,distribute_param=true"
    status, _, err = call("--plan", text)
    assert status == 3
    assert "another plan fits; leave out --plan to see it" in err


def test_nothing_fits_any_flavor() -> None:
    """Where no flavor has room: exit status 3, and the flavor that comes nearest."""
    status, _, err = call("--flavor", "all", "--model", "megatron-1t", "--space", "moai")
    assert status == 3
    assert "the nearest is on " in err
    assert "MiB more than the usable" in err


@pytest.mark.parametrize("target", ["/dev/full", "a closed pipe"])
def test_output_that_takes_no_more(target: str) -> None:
    """A full disk is one line and exit status 2; a reader that has seen enough is no error."""
    command = [sys.executable, "-c", "from estimator.cli.estimate import estimate_main; estimate_main()", "--json"]
    if target == "/dev/full":
        with Path(target).open("w", encoding="utf-8") as full:
            ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)  # noqa: S603
        assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
        assert "output: cannot be written: No space left on device" in ended.stderr
        return
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)  # noqa: S603
    os.close(write)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_users_catalog_adds_a_flavor(tmp_path: Path) -> None:
    """A flavor of a user's own catalog is estimated."""
    path = tmp_path / "mine.toml"
    path.write_text(
        '[[flavor]]\nid = "pair"\nnode = "h100-x8"\nnum_devices = 2\nnum_nodes = 1\n'
        'sources = [{ url = "https://example.org", checked = 2026-01-01 }]\n',
        encoding="utf-8",
    )
    document = call_json(
        "--flavor", "pair", "--catalog", str(path), "--model", "openai-community/gpt2", "--seq-len", "1024"
    )
    assert document["flavor"]["num_devices"] == 2
    assert document["best"]["possible"]


def test_estimate_imports_neither_torch_nor_pandas() -> None:
    """A cold estimate loads neither torch, nor pandas, nor scipy."""
    script = (
        "import sys; from estimator.cli.estimate import estimate_app; from hardware.command import run_command; "
        "status = run_command(estimate_app, 'estimate', ['--flavor', '4xLarge.2048GB', '--json']); "
        "print(status, sorted({'torch', 'pandas', 'scipy', 'transformers'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stderr.strip() == "0 []"


def test_the_stack_follows_the_question() -> None:
    """Without --stack, that of the platform on its flavors, elsewhere the one measured nearest; it says why."""
    seed, h100 = call_json("--flavor", "4xlarge"), call_json("--accelerator", "h100-sxm-80gb", "--devices", "8")
    assert (seed["stack"], seed["search"]["space"], seed["basis"]["kind"]) == ("moai-24.2", "moai", "measured here")
    assert "the MoAI platform, which offers 4xLarge.2048GB" in seed["stack_reason"]
    assert (h100["stack"], h100["search"]["space"], h100["basis"]["kind"]) == ("generic", "full", "interpolated")
    assert "measured on h100-sxm-80gb with dense models in bf16" in h100["stack_reason"]
    asked = call_json("--accelerator", "h100-sxm-80gb", "--devices", "8", "--stack", "generic")
    assert asked["stack_reason"] is None
    assert asked["best"] == h100["best"]
    status, out, _ = call("--accelerator", "rtx-4090", "--devices", "8", "--lora", "16")
    assert status == 0
    assert "no stack was measured on rtx-4090" in out
    assert "never measured" in out


def test_all_stacks_side_by_side() -> None:
    """`--stack all` has every stack once, first the one that answers without; `--stacks` what each was measured on."""
    arguments = ("--flavor", "mi300x8", "--plan", "tp=2,zero_stage=3")
    document = call_json(*arguments, "--stack", "all")
    stacks = [one["stack"] for one in document["estimates"]]
    assert document["schema"] == "stacks/1"
    assert stacks[0] == call_json(*arguments)["stack"]
    assert sorted(stacks) == sorted(builtin_stacks())
    status, out, _ = call(*arguments, "--stack", "all")
    assert status == 0
    assert all(name in out for name in stacks)
    status, out, _ = call("--stacks")
    assert status == 0
    assert "5 runs of dense models in bf16 on 32 to 64 mi250" in out
    assert all(f"{name}: " in out for name in stacks)


@pytest.mark.parametrize(("devices", "batch"), [(3, 256), (8, 100), (7, 21)])
def test_any_batch_and_number_of_devices(devices: int, batch: int) -> None:
    """With other software than the platform's, no number of devices and no batch is without an answer."""
    asked = ("--accelerator", "h100-sxm-80gb", "--devices", str(devices), "--batch", str(batch), "--lora", "8")
    document = call_json(*asked)
    assert document["best"]["possible"]
    assert not document["best"]["risky"]
    status, _, err = call(*asked, "--space", "moai")
    assert (status, "--space full" in err) == ((0, False) if batch % devices == 0 else (3, True))


@pytest.mark.parametrize("given", ["tp=8", "zero_stage=1", "num_stages=2,recomputation=full", "cp=2,schedule=gpipe"])
def test_a_plan_is_completed(given: str) -> None:
    """What is given of a plan stays, the rest is searched; the plan that is printed can be given back, for the same."""
    asked = ("--accelerator", "h100-sxm-80gb", "--devices", "16")
    best = call_json(*asked, "--plan", given)["best"]
    wanted = parse_fields(given)
    told = parse_plan(best["plan"]["text"])
    assert {name: getattr(told, name) for name in wanted} == wanted
    again = call_json(*asked, "--plan", best["plan"]["text"])
    assert again["best"]["plan"] == best["plan"]
    assert again["best"]["step"]["seconds"] == pytest.approx(best["step"]["seconds"])
    assert again["search"]["num_candidates"] == 1
    free = call_json(*asked)["best"]["step"]["seconds"]["value"]
    assert free <= best["step"]["seconds"]["value"]


def test_what_is_asked_of_a_plan_is_not_left_out_of_the_line() -> None:
    """On the platform too, whose own line cannot tell ZeRO-1 or context parallelism."""
    status, out, _ = call("--flavor", "4xlarge", "--plan", "zero_stage=1,cp=2")
    assert status == 0
    line = next(line for line in out.splitlines() if line.startswith("plan "))
    assert "cp=2" in "".join(out.split())
    assert "zero_stage=1" in "".join(out.split())
    assert "num_stages=" in line


def test_names_of_flavors_that_are_printed_can_be_given() -> None:
    """Every flavor that `--flavor all` has is found by its name, and several names compare."""
    catalog = load_catalog()
    assert all(catalog.flavor(one.id) == one for one in offers(catalog))
    document = call_json("--flavor", "h100-sxm-80gb-16, mi300x8", "--space", "moai")
    assert [one["flavor"]["name"] for one in document["estimates"]] == ["h100-sxm-80gb-16", "mi300x8"]


@pytest.mark.parametrize(
    ("asked", "mend"),
    [
        (("--accelerator", "h100-sxm-80gb", "--devices", "2", "--model", "llama-2-70b-hf"), "8 devices of it fit"),
        (("--accelerator", "l4", "--devices", "1", "--lora", "8", "--seq-len", "65536"), "4 devices of it fit"),
    ],
)
def test_where_nothing_fits_the_mend_is_what_helps(asked: tuple[str, ...], mend: str) -> None:
    """More devices are named where they help."""
    status, _, err = call(*asked, "--batch", "64", "--steps", "10")
    assert (status, mend in err) == (3, True), err


def test_a_catalog_template_is_printed() -> None:
    """`--catalog-template` prints a file to fill in, and nothing else."""
    status, out, err = call("--catalog-template")
    assert (status, err) == (0, "")
    assert tomllib.loads(out).keys() == {"named", "accelerator", "node", "flavor"}
