"""The form of a live page: what can be asked, as it was asked; what it sends is the page's address."""

from collections.abc import Iterable, Mapping
from html import escape

from estimator.serve.query import MOST_CHARACTERS, PARAMETERS, Parameter
from estimator.work.shape import builtin_configs
from hardware.catalog import Catalog

FIRST = ("model", "flavor", "seq_len", "batch", "epochs", "lora", "plan")
"""What is shown at once; the rest is behind a click."""


def form(asked: Mapping[str, str], catalog: Catalog, usual: Mapping[str, str]) -> str:
    """Return the form.

    Args:
        asked: values by parameter, as texts.
        catalog: its flavors and accelerators are proposed.
        usual: values where nothing is given, shown as such.
    """
    known = {
        "model": tuple(builtin_configs()),
        "flavor": tuple(flavor.id for flavor in catalog.flavors),
        "accelerator": tuple(one.id for one in catalog.accelerators),
    }
    fields = {name: _field(one, asked.get(name, ""), usual.get(name, "")) for name, one in PARAMETERS.items()}
    rest = [field for name, field in fields.items() if name not in FIRST]
    is_open = " open" if any(asked.get(name) for name in PARAMETERS if name not in FIRST) else ""
    lists = "".join(_choices(name, words) for name, words in known.items())
    return (
        '<form class="question" method="get" action="/" aria-label="The question"><div class="fields">'
        f"{''.join(fields[name] for name in FIRST)}</div><details{is_open}><summary>More</summary>"
        f'<div class="fields">{"".join(rest)}</div></details>{lists}<button type="submit">Estimate</button></form>\n'
    )


def _choices(name: str, words: Iterable[str]) -> str:
    return f'<datalist id="known-{name}">{"".join(f"<option>{escape(word)}</option>" for word in words)}</datalist>'


def _field(one: Parameter, value: str, usual: str) -> str:
    about = f'name="{one.name}" title="{escape(one.about)}"'
    choices = ("true", "false") if one.kind == "boolean" else one.choices
    if choices:
        words = "".join(f"<option{' selected' * (word == value)}>{escape(word)}</option>" for word in choices)
        return f'<label>{_label(one)}<select {about}><option value="">{escape(usual)}</option>{words}</select></label>'
    hint = f'value="{escape(value)}" placeholder="{escape(usual)}" maxlength="{MOST_CHARACTERS}"'
    kind = f'inputmode="numeric" {hint}' if one.kind != "string" else f'list="known-{one.name}" {hint}'
    return f'<label>{_label(one)}<input type="text" autocomplete="off" spellcheck="false" {about} {kind}></label>'


def _label(one: Parameter) -> str:
    return f"<span>{one.name.replace('_', ' ')}</span>"
