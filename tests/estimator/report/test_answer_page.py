import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from estimator import Estimate, Estimates, estimate, html_page, plot
from estimator.predict.timeline import stage_memory
from estimator.report.charts import LIGHT, merge_small
from estimator.report.json import estimate_document
from estimator.report.sensitivity import moves
from estimator.report.text import number
from tests.support.browser import Browser, browser, in_a_browser
from tests.support.commands import estimate as call

VOID = {"meta", "input", "br", "link", "img", "wbr"}


class Page(HTMLParser):
    """What of a page a test looks at; an element that is not closed, or closed twice, is an error."""

    def __init__(self, text: str) -> None:
        """Read a page."""
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.rows: dict[str, int] = {}
        self.table = ""
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element, and the row of a table."""
        given = {name: value or "" for name, value in attrs}
        self.attributes += [(tag, *item) for item in given.items()]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.table = given["id"]
        if tag == "tr" and "tbody" in self.open:
            self.rows[self.table] = self.rows.get(self.table, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        """Close the element that was opened last."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Note what is read."""
        if not {"script", "style"} & set(self.open):
            self.words.append(data)


@cache
def seed() -> Estimate:
    """Return the answer to the seed question."""
    return estimate(flavor="4xLarge.2048GB")


@cache
def every_flavor() -> Estimates:
    """Return the answers on all flavors, of the platform's small space."""
    return estimate(flavor="all", space="moai")


@cache
def seed_page() -> str:
    """Return its page."""
    return html_page(seed(), every_flavor(), "estimate --flavor 4xLarge.2048GB --html answer.html")


def test_a_page_is_whole_and_needs_nothing_else() -> None:
    """It is well-formed, under 3 MB, loads nothing, has each id once and a target for each link within it."""
    page = Page(seed_page())
    ids = [value for _, name, value in page.attributes if name == "id"]
    links = [(tag, value) for tag, name, value in page.attributes if name == "href"]
    outside = {link for link in links if not link[1].startswith("#")} - {("link", "data:,")}
    assert len(seed_page().encode()) < 3e6
    assert not [tag for tag, name, _ in page.attributes if name in {"src", "srcset", "action", "data"}]
    assert len(ids) == len(set(ids))
    assert {link.removeprefix("#") for _, link in links if link.startswith("#")} <= set(ids)
    assert {(tag, link.partition("//")[0]) for tag, link in outside} == {("a", "https:")}  # sources, to be followed
    assert re.search(r"@import|url\(", seed_page().partition("</style>")[0]) is None


def test_numbers_are_those_of_json() -> None:
    """The headline and every plan are as `--json` has them."""
    document, told = estimate_document(seed()), " ".join(Page(seed_page()).words)
    best = document["best"]
    for of in (
        best["wall"]["total_minutes"],
        best["cost"]["usd"],
        best["step"]["seconds"],
        best["memory"]["total_mib"],
    ):
        assert f"{number(of['low'])} to {number(of['high'])}" in told
        assert number(of["value"]) in told
    assert Page(seed_page()).rows["table-plans"] == len(document["plans"]) == 16
    for found in document["plans"]:
        if found["possible"]:
            assert f'data-value="{found["step"]["seconds"]["value"]!r}"' in seed_page()
        else:
            assert found["reason"] in told
    for left_out in document["not_modelled"]:
        assert left_out in told


def test_names_that_users_give_are_words() -> None:
    """A model's name with tags, quotes and the end of a script shows as it is, and adds no element."""
    hostile = "</script><script>alert(1)</script><img src=x onerror='alert(2)'>\"&amp;"
    shape, flavor = seed().workload.shape, seed().flavor
    answer = replace(
        seed(),
        workload=replace(seed().workload, shape=replace(shape, name=hostile)),
        flavor=flavor.model_copy(update={"id": hostile}),
    )
    others = replace(every_flavor(), estimates=tuple(o for o in every_flavor() if o.flavor.id != seed().flavor.id))
    page, usual = Page(html_page(answer, others, hostile)), Page(seed_page())
    assert [(tag, name) for tag, name, _ in page.attributes] == [(tag, name) for tag, name, _ in usual.attributes]
    assert any(hostile in words for words in page.words)


def test_stages_hold_what_is_predicted() -> None:
    """The parts of the fullest stage add up to the memory of the plan's fullest device."""
    for plan in (found for found in seed().plans if not found.is_illegal):
        stages = stage_memory(plan.plan, seed().workload, seed().machine, seed().stack)
        assert max(sum(parts.values()) for parts in stages) == pytest.approx(plan.memory.per_device_bytes.value)


def test_moves_are_around_the_answer() -> None:
    """Each assumption moves the wall time to both sides, and together with what is unexplained as the interval says."""
    found, best = moves(seed()), seed().best
    assert best is not None
    assert [move.span_s for move in found] == sorted((move.span_s for move in found), reverse=True)
    assert all(min(m.less_s, m.more_s) < best.wall_s.value < max(m.less_s, m.more_s) for m in found)
    assert found[0].name == "left unexplained"
    assert found[0].more_s < best.wall_s.high


def test_a_comparison_has_every_flavor() -> None:
    """The page of several flavors has a row for each, and the chosen one's minutes first."""
    page = Page(html_page(every_flavor()))
    best = every_flavor().best
    assert best is not None
    assert page.rows["table-answers"] == len(every_flavor())
    assert f"{number(best.wall_s.value / 60)} minutes" in page.words


@pytest.mark.parametrize("kind", ["memory", "step", "schedule"])
def test_a_picture_is_a_file(kind: str) -> None:
    """Its SVG parses, and has the colours of the light theme; its PNG is one."""
    drawn = plot(seed(), kind).decode()
    assert drawn.startswith("<svg")
    assert "var(" not in drawn
    assert LIGHT["paper"] in drawn
    assert plot(seed(), kind, "png").startswith(b"\x89PNG")


def test_small_purposes_are_one() -> None:
    """No amount is lost where there are more purposes than colours."""
    parts = {str(i): float(i) for i in range(12)}
    merged = merge_small({"a": parts, "b": {"3": 1.0}})
    assert len(merged["a"]) == 8
    assert sum(merged["a"].values()) == np.sum([*parts.values()])
    assert merged["b"] == {"all else": 1.0}


def test_a_schedule_of_very_many_passes_is_not_laid_out(tmp_path: Path) -> None:
    """The page says so in its place, and the picture is refused, before a laptop's memory is full of events."""
    options = [
        "--accelerator",
        "mi300x",
        "--devices",
        "2",
        "--model",
        "gpt2",
        "--seq-len",
        "512",
        "--batch",
        "100000000",
        "--plan",
    ]
    options += ["num_stages=2,num_micro_batches=100000000", "--steps", "1"]
    status, _, err = call(*options, "--html", str(tmp_path / "page.html"))
    assert (status, err) == (0, "")
    line = "schedule: 400,000,000 passes are too many to be laid out; take a plan of 200,000 at most"
    assert line in Page((tmp_path / "page.html").read_text(encoding="utf-8")).words
    for wanted in (["--plot", "schedule", str(tmp_path / "x.svg")], ["--trace", str(tmp_path / "x.svg")]):
        assert call(*options, *wanted) == (2, "", f"{line}\n")
    assert not (tmp_path / "x.svg").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--html", "no/such/folder/x.html"], "html: .* cannot be written"),
        (["--html", "x.html", "--why", "num_stages=2"], "html: --html is given beside --why"),
        (["--plot", "pie", "x.svg"], "unknown plot 'pie': use one of memory, step, schedule, frontier"),
        (["--plot", "step", "x.pdf"], "plot: a file of type 'pdf' is neither svg nor png"),
        (["--plot", "step", "x.svg", "--flavor", "small,4xlarge"], "plot: step is of an answer on one flavor"),
    ],
)
def test_bad_input_is_one_line(options: list[str], told: str) -> None:
    """It says what was given and the rule; nothing is written."""
    status, _, err = call(*options)
    assert status == 2
    assert re.fullmatch(f".*{told}.*\n", err)


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line says what to install."""
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    status, _, err = call("--plot", "step", "x.svg")
    assert (status, err.count("\n")) == (2, 1)
    assert "pip install foretrain[report]" in err


def test_the_command_writes_a_page_that_says_how(tmp_path: Path) -> None:
    """The page has the command with its options, quoted as a shell takes them."""
    status, _, err = call("--lora", "16", "--no-compile", "--html", str(tmp_path / "a page.html"))
    assert (status, err) == (0, "")
    told = " ".join(Page((tmp_path / "a page.html").read_text(encoding="utf-8")).words)
    assert f"estimate --lora 16 --no-compile --html '{tmp_path}/a page.html'" in told


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Yield a browser for all tests of this file."""
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the address of the page's file."""
    page = tmp_path_factory.mktemp("page") / "page.html"
    page.write_text(seed_page(), encoding="utf-8")
    return page.as_uri()


COLUMN = """(name) => {
  const headers = [...document.querySelectorAll("#table-plans thead th")];
  const at = headers.findIndex((header) => header.innerText.startsWith(name));
  const rows = [...document.querySelectorAll("#table-plans tbody tr")].filter((row) => !row.hidden);
  return rows.map((row) => row.cells[at].dataset.value ?? row.cells[at].innerText);
}"""


@in_a_browser
@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(400, "light"), (400, "dark"), (1600, "light"), (1600, "dark")])
def test_it_is_drawn_at_any_width(chromium: Browser, address: str, width: int, scheme: str) -> None:
    """All charts are drawn and no wider than the page, nothing is complained of, and nothing but the file is loaded."""
    chromium.open(address, width=width, scheme=scheme)
    assert chromium.complaints == []
    assert chromium.requests == [address]
    assert chromium.run("document.documentElement.scrollWidth <= innerWidth")
    assert (
        chromium.run("[...document.querySelectorAll('.chart svg')].map((one) => one.clientWidth > 200)") == [True] * 5
    )
    paper = chromium.run("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")


@in_a_browser
@pytest.mark.slow
def test_tables_are_sorted_and_filtered_by_keyboard(chromium: Browser, address: str) -> None:
    """Enter on a column's word sorts up, then down; words and the box filter, and the count is told."""
    chromium.open(address)
    button = "[...document.querySelectorAll('#table-plans th button')].find((b) => b.innerText.startsWith('tokens/s'))"
    chromium.run(f"{button}.focus()")
    chromium.press("Enter", 13)
    up = [float(value) for value in chromium.run(f"({COLUMN})('tokens/s')")]
    chromium.press("Enter", 13)
    down = [float(value) for value in chromium.run(f"({COLUMN})('tokens/s')")]
    assert up == sorted(up)
    assert down == sorted(up, reverse=True)
    assert len(up) == 16
    assert chromium.run(f"{button}.parentElement.getAttribute('aria-sort')") == "descending"
    chromium.run("document.querySelector('[data-filters] input[type=checkbox]').focus()")
    chromium.press(" ", 32)
    told = "document.querySelector('[data-filters] output').innerText"
    assert chromium.run(told) == f"{seed().num_possible} of 16 shown"
    chromium.run("document.querySelector('[data-filters] input[type=search]').focus()")
    chromium.call("Input.insertText", text="NONE")
    assert set(chromium.run(f"({COLUMN})('recomputation')")) == {"none"}
    chromium.call("Input.insertText", text=" of that kind")
    assert chromium.run(told) == "0 of 16 shown"


@in_a_browser
@pytest.mark.slow
def test_the_schedule_is_looked_at_closer_by_keyboard(chromium: Browser, address: str) -> None:
    """Arrows on the two sliders halve what is shown, and move along."""
    chromium.open(address)
    told = "document.querySelector('[data-zooms] output').innerText"
    start, end = (float(word) for word in re.findall(r"[\d.]+", chromium.run(told)))
    chromium.run("document.querySelector('[data-zooms] input').focus()")
    for _ in range(4):
        chromium.press("ArrowRight", 39)
    closer = [float(word) for word in re.findall(r"[\d.]+", chromium.run(told))]
    assert closer == pytest.approx([start, end / 2], abs=0.02)
    chromium.run("document.querySelectorAll('[data-zooms] input')[1].focus()")
    chromium.press("End", 35)
    along = [float(word) for word in re.findall(r"[\d.]+", chromium.run(told))]
    assert along == pytest.approx([end / 2, end], abs=0.02)
    assert chromium.complaints == []


@in_a_browser
@pytest.mark.slow
def test_what_is_seen_is_said(chromium: Browser, address: str) -> None:
    """Every picture, table, region and control has a name for a screen reader, and headings go down one by one."""
    chromium.open(address)
    nodes = chromium.call("Accessibility.getFullAXTree")["nodes"]
    said = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node["ignored"]]
    named = {"button", "checkbox", "image", "img", "link", "navigation", "region", "searchbox", "slider", "table"}
    assert [role for role, name in said if role in named and not name] == []
    roles = [role for role, _ in said]
    assert roles.count("slider") == 2
    assert roles.count("image") + roles.count("img") == 5
    levels = chromium.run("[...document.querySelectorAll('h1, h2, h3')].map((one) => Number(one.tagName[1]))")
    assert levels[0] == 1
    assert set(levels[1:]) == {2}


@in_a_browser
@pytest.mark.slow
def test_it_prints(chromium: Browser, address: str) -> None:
    """On paper it is dark on white, no table is cut off or scrolls, and controls are left out."""
    chromium.open(address, width=720, scheme="dark", media="print")
    assert chromium.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert chromium.run("document.documentElement.scrollWidth <= innerWidth")
    ends = "[...document.querySelectorAll('section > .wide')].map((one) => one.scrollHeight - one.clientHeight)"
    assert chromium.run(ends) == [0, 0]
    assert chromium.run("[...document.querySelectorAll('.controls, nav')].every((one) => !one.checkVisibility())")
    assert len(chromium.call("Page.printToPDF")["data"]) > 10_000


@pytest.mark.parametrize("theme", ["light", "dark", "print"])
def test_words_stand_out(theme: str) -> None:
    """Each colour of words has the contrast of 4.5 to 1 that WCAG 2.2 asks for, on paper and where it is washed."""
    css = resources.files("estimator").joinpath("data/page/page.css").read_text(encoding="utf-8")
    start = {"light": 0, "dark": css.index("(prefers-color-scheme: dark)"), "print": css.index("@media print")}[theme]
    colours = dict(re.findall(r"--(\w+): #(\w{6})", css)[:7])
    colours |= dict(re.findall(r"--(\w+): #(\w{6})", css[start : css.index("}", start)]))
    for words in ("ink", "soft", "accent", "warn"):
        for behind in ("paper", "wash"):
            assert contrast(colours[words], colours[behind]) >= 4.5, (words, behind)


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours in hexadecimal, as WCAG 2.2 defines it."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    """Return the relative luminance of a colour, as WCAG 2.2 defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
