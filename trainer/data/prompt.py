r"""The text of a row: the prompt form of the seed's dataset, and which columns fill it.

The form is that of the `prompt` column of `iamtarun/python_code_instructions_18k_alpaca`, which the seed run trains on
with the end-of-text token after it; an empty input leaves its line empty.

>>> text, answer_start = form({"instruction": "Add two numbers", "output": "a + b"})
>>> text[answer_start:]
'a + b'
"""

from collections.abc import Collection, Mapping
from typing import Any

from hardware.errors import shown

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "instruction": ("instruction", "prompt", "question"),
    "input": ("input", "context"),
    "output": ("output", "response", "answer", "completion"),
}
"""Column names that each part of the form is read from; the first that a dataset has counts."""
OPTIONAL = frozenset({"input"})
"""Parts whose column may be missing, or its cells null: they are empty text."""

FORM = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Output:\n"
)


def columns_of(names: Collection[str]) -> dict[str, str]:
    """Return which column of a dataset fills which part of the form.

    Raises:
        ValueError: no column is there for a part.

    >>> columns_of(["prompt", "instruction", "input", "output"])
    {'instruction': 'instruction', 'input': 'input', 'output': 'output'}
    >>> columns_of(["question", "answer"])
    {'instruction': 'question', 'output': 'answer'}
    """
    found = {}
    for part, synonyms in COLUMNS.items():
        column = next((name for name in synonyms if name in names), None)
        if column is not None:
            found[part] = column
        elif part not in OPTIONAL:
            given = shown(", ".join(map(str, names)))
            raise ValueError(f"no column {' or '.join(synonyms)} among {given}; name the column of the {part} so")
    return found


def parts_of(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, str]:
    """Return the parts of the form that a row fills.

    Raises:
        ValueError: a cell is no text, or the answer is empty.
    """
    parts = {}
    for part, column in columns.items():
        cell = row[column]
        if cell is None and part in OPTIONAL:
            cell = ""
        if not isinstance(cell, str):
            raise ValueError(f"{column} = {shown(cell)} is not text; write a string")
        try:
            cell.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{column} = {shown(cell)} holds half a character; write whole ones") from error
        parts[part] = cell
    if not parts["output"]:
        raise ValueError(f"{columns['output']} is empty; leave out rows without an answer")
    return parts


def form(parts: Mapping[str, str]) -> tuple[str, int]:
    """Return the text of a row, without the end-of-text token, and the index of its answer's first character."""
    prompt = FORM.format(instruction=parts["instruction"], input=parts.get("input", ""))
    return prompt + parts["output"], len(prompt)
