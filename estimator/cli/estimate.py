"""The command `estimate`: parse, call, print."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, NamedTuple, cast

import typer

from estimator.api.configuration import num_devices_of, read_configuration
from estimator.api.estimate import estimate as ask
from estimator.api.flavors import Estimates, why_nothing_fits
from estimator.api.options import Options, names_all
from estimator.api.pages import html_page, write
from estimator.api.trace import trace as draw
from estimator.cli.compare import Question, compared
from estimator.cli.difference import refuse_beside_diff, show_difference
from estimator.cli.given import command_again, given_options
from estimator.cli.pages import ON_THE_PLATFORM, refuse_files, write_pages
from estimator.cli.serve import USUAL_PORT, serve_page
from estimator.report import text
from estimator.report.json import comparison_document, estimate_document, flavors_document, stacks_document
from estimator.report.text_comparison import print_comparison
from estimator.report.text_flavors import print_flavors, print_known_stacks, print_stacks
from estimator.search.choice import OBJECTIVES
from estimator.search.planner import PLATFORM, SPACES, Estimate
from estimator.stack.choice import known_stacks
from estimator.stack.optimizers import OPTIMIZERS
from estimator.stack.recipe import LOSSES, PRECISIONS
from estimator.work.defaults import SEED_BATCH, SEED_EPOCHS, SEED_MODEL, SEED_ROWS, SEED_SEQ_LEN
from hardware.catalog import Catalog, catalog_template, load_catalog
from hardware.command import EXIT_DONE, open_console, print_json, run_command
from hardware.errors import shown
from hardware.models import Flavor
from hardware.smi.selection import current_flavor

EXIT_NOTHING_FITS = 3

estimate_app = typer.Typer(add_completion=False, rich_markup_mode=None)


def estimate_main() -> None:
    """Run `estimate`."""
    sys.exit(run_command(estimate_app, "estimate", sys.argv[1:]))


@estimate_app.command()
def estimate(
    context: typer.Context,
    flavor: Annotated[str | None, typer.Option(help="name of a flavor, or 'all'  [default: the current one]")] = None,
    model: Annotated[str, typer.Option(help="built-in name, directory, or config.json")] = SEED_MODEL,
    seq_len: Annotated[int, typer.Option(help="tokens per row")] = SEED_SEQ_LEN,
    batch: Annotated[int, typer.Option(help="rows per step, over all devices")] = SEED_BATCH,
    rows: Annotated[int | None, typer.Option(help=f"rows of the data set  [default: {SEED_ROWS}]")] = None,
    epochs: Annotated[int | None, typer.Option(help=f"passes over the rows  [default: {SEED_EPOCHS}]")] = None,
    steps: Annotated[int | None, typer.Option(help="optimizer steps, instead of rows and epochs")] = None,
    lengths: Annotated[Path | None, typer.Option(help="the rows' lengths: CSV of length,count, or JSON Lines")] = None,
    plan: Annotated[
        str, typer.Option(help="'best', or what is given of a plan, such as tp=8,zero_stage=3: the rest is searched")
    ] = "best",
    space: Annotated[
        str | None, typer.Option(help=f"set of plans to search: {', '.join(SPACES)}  [default: the stack's]")
    ] = None,
    stack: Annotated[
        str | None,
        typer.Option(
            help="name of a stack (--stacks lists them), its TOML file, or 'all'  [default: the one that was measured "
            "nearest to the question]"
        ),
    ] = None,
    stacks: Annotated[bool, typer.Option("--stacks", help="list the stacks with what each was measured on")] = False,
    accelerator: Annotated[str | None, typer.Option(help="id of an accelerator, instead of a flavor")] = None,
    devices: Annotated[int | None, typer.Option(help="how many of that accelerator")] = None,
    catalog: Annotated[list[Path] | None, typer.Option(help="TOML file of further hardware; may be repeated")] = None,
    template: Annotated[
        bool, typer.Option("--catalog-template", help="print a TOML file of an accelerator, node and flavor to fill in")
    ] = False,
    configuration: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="configuration of torchtitan (TOML), Axolotl, LLaMA-Factory, transformers or TRL (YAML, JSON); other "
            "options go before it",
        ),
    ] = None,
    precision: Annotated[str | None, typer.Option(help=f"{', '.join(PRECISIONS)}  [default: the stack's]")] = None,
    optimizer: Annotated[str | None, typer.Option(help=f"{', '.join(OPTIMIZERS)}  [default: the stack's]")] = None,
    optimizer_in_backward: Annotated[
        bool, typer.Option("--optimizer-in-backward", help="update each weight as its gradient comes, and free that")
    ] = False,
    lora: Annotated[int, typer.Option(help="rank of adapters, all else frozen; 0 trains everything")] = 0,
    lora_targets: Annotated[
        str | None,
        typer.Option(help="modules that they lie beside: q_proj,v_proj, 'default' as peft  [default: all-linear]"),
    ] = None,
    quantize: Annotated[str | None, typer.Option(help="bits of the frozen weights: 8, 4")] = None,
    offload_activations: Annotated[
        bool,
        typer.Option("--offload-activations", help="keep activations in the host's memory until the backward pass"),
    ] = False,
    loss: Annotated[
        str | None, typer.Option(help=f"how logits are held: {', '.join(LOSSES)}  [default: the stack's]")
    ] = None,
    compiles: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="compile each layer  [default: the stack's]")
    ] = None,
    objective: Annotated[str, typer.Option(help=f"what to make small: {', '.join(OBJECTIVES)}")] = OBJECTIVES[0],
    deadline: Annotated[str | None, typer.Option(help="time from start to end at most, such as 30m or 2.5h")] = None,
    budget: Annotated[float | None, typer.Option(help="USD at most")] = None,
    failures: Annotated[bool, typer.Option("--failures", help="count checkpoints and failures")] = False,
    device_mtbf: Annotated[str | None, typer.Option(help="mean time between failures of one device")] = None,
    price: Annotated[
        float | None, typer.Option(help="USD per device and hour  [default: what providers of the catalog ask]")
    ] = None,
    why: Annotated[
        str | None, typer.Option(help="a plan: why it cannot run, or how it ranks and where it loses")
    ] = None,
    diff: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="A B", help="hold two answers against each other: each 'best', a plan, or a file of --json"
        ),
    ] = None,
    top: Annotated[int | None, typer.Option(min=1, help="how many plans to list")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object and nothing else")] = False,
    explain: Annotated[bool, typer.Option(help="list every assumption with its evidence")] = False,
    trace: Annotated[
        Path | None, typer.Option(help="write the best plan's step, for ui.perfetto.dev, to a file")
    ] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OPTIONS",
            help="set the answer beside that with other options, such as '--lora 16'; may be repeated",
        ),
    ] = None,
    is_served: Annotated[
        bool, typer.Option("--serve", help="serve the page on loopback, to ask more, until Ctrl-C")
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="of --serve; 0 for any that is free")] = USUAL_PORT,
    html: Annotated[Path | None, typer.Option(help="write the answer as one page to a file")] = None,
    plot: Annotated[
        tuple[str, Path] | None,
        typer.Option(metavar="PICTURE FILE", help="memory, step, schedule or frontier, to a file .svg or .png"),
    ] = None,
) -> int:
    """Predict what a fine-tune needs, how fast it runs, how long it takes and what it costs."""
    if template or stacks:
        return _show_known(as_template=template)
    several = "--flavor all" if names_all(flavor) else "--stack all" if names_all(stack) else ""
    _refuse_pairs(why, trace, "--json" if as_json else several, several, explain=explain)
    refuse_files(why, html, plot)
    if diff:
        refuse_beside_diff(several, why, trace, plan, explain=explain)
    hardware, given = load_catalog(catalog or []), given_options(context)
    if _is_served(is_served, given):
        serve_page(context, hardware, _current_flavor(hardware), port)
        return EXIT_DONE
    options = Options(
        seq_len=seq_len,
        batch=batch,
        rows=rows,
        epochs=epochs,
        steps=steps,
        lengths=lengths,
        plan=plan,
        space=space,
        stack=stack,
        accelerator=accelerator,
        devices=devices,
        catalog=hardware,
        precision=precision,
        optimizer=optimizer,
        optimizer_in_backward=optimizer_in_backward,
        lora=lora,
        lora_targets=lora_targets,
        quantize=quantize,
        offload_activations=offload_activations,
        loss=loss,
        compiles=compiles,
        objective=objective,
        deadline=deadline,
        budget=budget,
        failures=failures,
        device_mtbf=device_mtbf,
        price=price,
        why=why,
    )
    is_current = flavor is None and accelerator is None and devices is None
    where = _current_flavor(hardware) if is_current else _flavors(flavor)
    if configuration:
        model, options = _configured(configuration, where, model, options, set(given))
    if diff:
        return show_difference(diff, model, where, options, as_json=as_json)
    found = ask(model, where, **options)
    if compare:
        one = _one_answer(found, compare, bool(explain or trace or plot or why is not None))
        beside = compared(
            context, compare, one, Question(model, None if options["accelerator"] else one.flavor, options)
        )
        return _show_comparison(beside, html, command_again(context), top, as_json=as_json)
    if html or plot:
        write_pages(found, model, options, html, plot, command_again(context))
    if isinstance(found, Estimates):
        return _show_several(found, top, as_json=as_json, of_stacks=names_all(stack))
    return _show(found, model, options, hardware, _Shown(top, as_json=as_json, explain=explain, trace=trace))


def _show_known(*, as_template: bool) -> int:
    """Print a catalog file to fill in, or the stacks that there are."""
    if as_template:
        print(catalog_template(), end="")
    else:
        print_known_stacks(open_console(), known_stacks())
    return EXIT_DONE


def _is_served(asked: bool, given: Mapping[str, object]) -> bool:
    if "port" in given and not asked:
        raise ValueError("port: --port is given without --serve; add it")
    return asked


def _one_answer(found: Estimate | Estimates, compare: list[str], is_shown_else: bool) -> Estimate:
    """Return the answer that others are set beside; several, or one that is shown otherwise, are none."""
    if isinstance(found, Estimates):
        raise ValueError(
            f"compare: --compare {shown(compare[0])} is given beside several flavors or stacks; ask of one"
        )
    if is_shown_else:
        raise ValueError("compare: --compare is given beside --why, --explain, --trace or --plot; they show one answer")
    return found


def _show_comparison(
    answers: dict[str, Estimate], html: Path | None, command: str, top: int | None, *, as_json: bool
) -> int:
    if html:
        write("html", html, html_page(answers, command=command).encode())
    if as_json:
        print_json(comparison_document(answers, top))
    else:
        print_comparison(open_console(), answers)
    return EXIT_DONE if any(one.best for one in answers.values()) else _miss("no plan fits any of these questions")


class _Shown(NamedTuple):
    """How an answer is printed."""

    top: int | None
    as_json: bool
    explain: bool
    trace: Path | None


def _refuse_pairs(why: str | None, trace: Path | None, beside: str, several: str, *, explain: bool) -> None:
    """Refuse options that cannot be given together."""
    if explain and beside:
        raise ValueError(f"explain: --explain is given beside {beside}; it explains the tables of one flavor")
    if trace and (several or why is not None):
        which = several or "--why"
        raise ValueError(f"trace: --trace is given beside {which}; it draws the best or only plan of one flavor")
    if why is not None and beside == "--json":
        raise ValueError("why: --why is given beside --json; it holds one plan against the best of a flavor")


def _configured(
    path: Path, where: Flavor | str | list[str] | None, model: str, options: Options, given: set[str]
) -> tuple[str, Options]:
    """Return a question with what a configuration says of it, which is told; what is given beside it stays.

    Args:
        path: of the configuration.
        where: the flavor; None where an accelerator is given.
        model: of the question.
        options: of the question.
        given: names of the options that were given.
    """
    found = read_configuration(path)
    told = dict(found.on(num_devices_of(where, options)))
    for name, others in (("steps", {"rows", "epochs", "lengths"}), ("epochs", {"steps"})):
        if given & others:
            told.pop(name, None)
    print(f"{found.software}, used: {'; '.join(found.used)}", file=sys.stderr)
    print(f"{found.software}, not used: {'; '.join(found.unused) or 'nothing'}", file=sys.stderr)
    if not given & {"rows", "steps", "lengths"} and "steps" not in told:
        print("the number of rows is not told; add --rows, --steps or --lengths", file=sys.stderr)
    own = {name: value for name, value in told.items() if name not in given}
    return found.model if found.model and "model" not in given else model, cast("Options", {**options, **own})


def _flavors(flavor: str | None) -> str | list[str] | None:
    """Return a flavor's name, or those of several: a text with commas."""
    return [name.strip() for name in flavor.split(",")] if flavor and "," in flavor else flavor


def _show(found: Estimate, model: str, options: Options, hardware: Catalog, how: _Shown) -> int:
    if found.asked is not None:
        text.print_why(open_console(), found)
        return EXIT_DONE
    if how.trace and found.best:
        write("trace", how.trace, json.dumps(draw(found)).encode())
    if how.as_json:
        print_json(estimate_document(found, how.top))
        return _exit_status(found, hardware)
    is_wider = found.space == "full" and options["plan"] == "best" and found.stack.trainer == PLATFORM
    platform = ask(model, found.flavor, **(options | ON_THE_PLATFORM)) if is_wider else None
    console = open_console()
    text.print_estimate(console, found, how.top or 8, platform)
    if how.explain:
        console.print()
        text.print_explanation(console, found)
    return _exit_status(found, hardware)


def _current_flavor(hardware: Catalog) -> Flavor:
    current = current_flavor()
    if current.problem:
        print(current.problem, file=sys.stderr)
    return current.record(hardware)


def _exit_status(found: Estimate, hardware: Catalog) -> int:
    if found.best is None:
        return _miss(why_nothing_fits(found, hardware))
    if found.missed:
        return _miss(f"{found.flavor.id}: its best plan {found.missed}; see --flavor all for flavors that keep it")
    return EXIT_DONE


def _show_several(found: Estimates, top: int | None, *, as_json: bool, of_stacks: bool) -> int:
    if as_json:
        made = stacks_document(found.estimates, top) if of_stacks else None
        print_json(made or flavors_document(found.estimates, found.chosen, top))
    elif of_stacks:
        print_stacks(open_console(), found.estimates)
    else:
        print_flavors(open_console(), found.estimates, found.objective, found.limits, found.chosen)
    return EXIT_DONE if found.chosen else _miss(found.problem)


def _miss(message: str) -> int:
    print(message, file=sys.stderr)
    return EXIT_NOTHING_FITS
