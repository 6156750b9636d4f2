import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.prompt import COLUMNS, columns_of, form, parts_of

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
_ANSWER = """def toCamelCase(s):
    s = s.split(' ')
    return ''.join(x.title() for x in s)

s = "this is some random text"
print(toCamelCase(s))"""
ROW = {
    "instruction": "Design a python code to convert a given sentence to camelCase",
    "input": "",
    "output": _ANSWER,
    "prompt": f"""\
Below is an instruction that describes a task. Write a response that appropriately completes the request.

### Instruction:
Design a python code to convert a given sentence to camelCase

### Input:


### Output:
{_ANSWER}""",
}
"""A row of iamtarun/python_code_instructions_18k_alpaca, the dataset of the seed run (Apache 2.0)."""


def test_the_form_is_the_seed_s() -> None:
    """From the three columns of a row of the seed's dataset comes its fourth, which the seed run trains on."""
    text, answer_start = form(parts_of(ROW, columns_of(ROW)))
    assert text == ROW["prompt"]
    assert text[answer_start:] == ROW["output"]


@given(TEXT, TEXT, TEXT.filter(bool))
def test_the_answer_is_the_end(instruction: str, given_input: str, output: str) -> None:
    """Whatever the cells, also braces and other rows' headings, the text holds them as they are, the answer last."""
    text, answer_start = form({"instruction": instruction, "input": given_input, "output": output})
    assert text[answer_start:] == output
    assert f"### Instruction:\n{instruction}\n\n### Input:\n{given_input}\n\n### Output:\n" in text[:answer_start]


@pytest.mark.parametrize("instruction", COLUMNS["instruction"])
@pytest.mark.parametrize("output", COLUMNS["output"])
@pytest.mark.parametrize("given_input", [*COLUMNS["input"], None])
def test_synonyms_fill_the_form(instruction: str, given_input: str | None, output: str) -> None:
    """Every combination of the table's names gives the text that the first names give."""
    row = {instruction: "a", output: "b"} | ({given_input: "c"} if given_input else {})
    expected = {"instruction": "a", "output": "b"} | ({"input": "c"} if given_input else {})
    assert form(parts_of(row, columns_of(row))) == form(expected)


def test_a_null_input_is_empty() -> None:
    """An input that is null is as one that is empty or missing."""
    row = {"instruction": "a", "input": None, "output": "b"}
    assert form(parts_of(row, columns_of(row))) == form({"instruction": "a", "output": "b"})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"instruction": "a", "input": "b"},
            r"^no column output or response or answer or completion among 'instruction, input'; name the column of",
        ),
        ({}, r"^no column instruction or prompt or question among ''; name the column of the instruction so$"),
        ({"instruction": 5, "output": "b"}, r"^instruction = 5 is not text; write a string$"),
        ({"instruction": None, "output": "b"}, r"^instruction = None is not text; write a string$"),
        ({"prompt": "a", "context": ["x"], "answer": "b"}, r"^context = \['x'\] is not text; write a string$"),
        ({"prompt": "a", "answer": ""}, r"^answer is empty; leave out rows without an answer$"),
        ({"prompt": "a", "answer": "b\ud800"}, r"^answer = 'b\\ud800' holds half a character; write whole ones$"),
    ],
)
def test_rows_that_fill_no_form_are_refused(row: dict[str, object], message: str) -> None:
    """Each rule of a row has its line."""
    with pytest.raises(ValueError, match=message):
        parts_of(row, columns_of(row))
