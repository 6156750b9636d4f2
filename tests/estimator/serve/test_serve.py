import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.serve.app import as_command
from estimator.serve.openapi import openapi_document
from estimator.serve.query import MOST_CHARACTERS, PARAMETERS, Query, read_query
from estimator.work.shape import MOST_CONFIG_BYTES, builtin_configs
from hardware.catalog import load_catalog
from tests.support.browser import browser, in_a_browser
from tests.support.commands import estimate as call

START = "from estimator.cli.estimate import estimate_main; estimate_main()"
TINY = {"model_type": "llama", "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 512, "vocab_size": 1000,
        "max_position_embeddings": 4096}  # fmt: skip


class Served:
    """A live page: its port, and what it answers."""

    def __init__(self, first_line: str) -> None:
        """Take the address from what the command prints."""
        self.address = first_line.partition(" ")[0]
        found = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/\?flavor=mi300x8", self.address)
        assert found, first_line
        self.port = int(found[1])

    def ask(
        self, path: str, method: str = "GET", body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, str], str]:
        """Return status, headers and body of an answer; `headers` have their dashes as underscores."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, named)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, text

    def problem(self, path: str, **how: Any) -> tuple[int, str]:
        """Return the status of a refusal and its line."""
        status, _, text = self.ask(path, **how)
        told = json.loads(text)
        assert list(told) == ["error"]
        assert "\n" not in told["error"]
        return status, told["error"]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """Yield a live page that a command of its own serves; it ends at once, and well, when it is interrupted."""
    asked = ["--serve", "--port", "0", "--flavor", "mi300x8"]
    started = subprocess.Popen([sys.executable, "-c", START, *asked], stdout=subprocess.PIPE, text=True)  # noqa: S603
    assert started.stdout is not None
    try:
        yield Served(started.stdout.readline())
        started.send_signal(signal.SIGINT)
        assert started.wait(timeout=60) == 0
    finally:
        started.kill()
        started.wait()
        started.stdout.close()


def without_time(document: dict[str, Any]) -> dict[str, Any]:
    """Return an answer without how long its search took."""
    return document | {"search": document["search"] | {"seconds": 0}}


@pytest.mark.parametrize(
    ("query", "options"),
    [
        ("flavor=mi300x8", ["--flavor", "mi300x8"]),
        (
            "model=llama-3.1-8b&accelerator=mi300x&devices=4&seq_len=4096&batch=64&steps=100&lora=16&compiles=false",
            ["--model", "llama-3.1-8b", "--accelerator", "mi300x", "--devices", "4", "--seq-len", "4096", "--batch",
             "64", "--steps", "100", "--lora", "16", "--no-compile"],
        ),
        ("flavor=small&price=&plan=best", ["--flavor", "small"]),
        ("flavor=4xlarge&plan=tp=2&space=full&price=1.5&failures=true",
         ["--flavor", "4xlarge", "--plan", "tp=2", "--space", "full", "--price", "1.5", "--failures"]),
    ],
)  # fmt: skip
def test_it_answers_what_the_command_does(served: Served, query: str, options: list[str]) -> None:
    """The JSON is that of `estimate --json` with the same options; where nothing fits, too."""
    status, _, text = served.ask(f"/api/estimate?{query}")
    assert status == 200
    assert without_time(json.loads(text)) == without_time(json.loads(call(*options, "--json")[1]))


def test_a_config_is_posted(served: Served, tmp_path: Path) -> None:
    """A posted config.json is the model, as its file is to the command."""
    file = tmp_path / "config.json"
    file.write_text(json.dumps(TINY | {"_name_or_path": "me/tiny"}))
    status, _, text = served.ask("/api/estimate?flavor=mi300x8", "POST", file.read_bytes())
    assert status == 200
    expected = json.loads(call("--flavor", "mi300x8", "--model", str(file), "--json")[1])
    assert without_time(json.loads(text)) == without_time(expected)


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("nope=1", "unknown parameter 'nope': use one of model,"),
        ("lora=1&lora=2", "lora: is given twice; give it once"),
        ("lora=x", "lora: 'x' is no integer; give one"),
        ("lora=1e3", "lora: '1e3' is no integer"),
        ("lora=9999999999999", "lora: '9999999999999' is no integer"),
        ("batch=%D9%A1", "batch: .* is no integer"),
        ("price=nan", "price: 'nan' is no number"),
        ("price=-1", "price: -1.0 is not USD per device and hour"),
        ("failures=yes", "failures: 'yes' is no boolean; give true or false"),
        ("precision=fp64", "unknown precision 'fp64'"),
        ("flavor=all", "flavor: 'all' asks for several answers"),
        ("flavor=small,medium", "flavor: 'small,medium' asks for several answers"),
        ("flavor=nope", "unknown flavor 'nope'"),
        ("flavor=small&accelerator=mi300x&devices=8", "flavor: .* is given beside --accelerator or --devices"),
        ("plan=tp%3D0", "plan: tp='0' is not a positive integer"),
        (f"plan={'x' * (MOST_CHARACTERS + 1)}", "plan: a text of 301 characters is too long; give 300 at most"),
        ("lengths=rows.csv", "unknown parameter 'lengths'"),
        ("catalog=mine.toml", "unknown parameter 'catalog'"),
        ("why=tp%3D2", "unknown parameter 'why'"),
        ("deadline=soon", "deadline: 'soon'"),
    ],
)
def test_a_malformed_query_is_one_line(served: Served, query: str, told: str) -> None:
    """It says what was given and the rule, with status 400; the page says it too, and keeps its form."""
    status, line = served.problem(f"/api/estimate?{query}")
    assert status == 400
    assert re.match(told, line), line
    status, _, text = served.ask(f"/?{query}")
    assert status == 400
    assert 'role="alert"' in text
    assert "<form" in text


@pytest.mark.parametrize("given_as", ["{}", "./{}", "../../../../../../{}", "file://{}", "~/x", "%2e%2e/{}", "{}%00"])
@pytest.mark.parametrize("name", ["model", "stack"])
def test_no_file_is_read(served: Served, tmp_path: Path, name: str, given_as: str) -> None:
    """A model or a stack by the path of a file is unknown, whether the file is there or not."""
    there = tmp_path / "config.json"
    there.write_text(json.dumps(TINY | {"_name_or_path": "secret"}))
    for path in (there, tmp_path, tmp_path / "not.json"):
        status, line = served.problem(f"/api/estimate?{name}={given_as.format(str(path))}")
        assert status == 400
        assert line.startswith(f"unknown {name} ")
        assert "secret" not in line


@pytest.mark.parametrize("path", ["/etc/passwd", "/../../../../etc/passwd", "/page.css", "/static/", "/api", "/docs"])
def test_nothing_else_is_served(served: Served, path: str) -> None:
    """Three paths answer, and no other."""
    status, line = served.problem(path)
    assert status == 404
    assert line.startswith("path: ")


@pytest.mark.parametrize("host", ["evil.example", "localhost", "127.0.0.1:1", "127.0.0.1.evil.example", "[::]", ""])
def test_another_name_of_the_host_is_refused(served: Served, host: str) -> None:
    """A name that was rebound to this host gets nothing, whatever it asks."""
    for path in ("/", "/api/estimate", "/openapi.json", "/nope"):
        status, line = served.problem(path, Host=host)
        assert status == 403
        assert line.startswith("host: ")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]"])
def test_names_of_loopback_are_not(served: Served, host: str) -> None:
    """The page answers by each name of loopback, and to its own requests."""
    name = f"{host}:{served.port}"
    assert served.ask("/openapi.json", Host=name, Origin=f"http://{name}", Sec_Fetch_Site="same-origin")[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site", "Sec_Fetch_Mode": "no-cors"},
    ],
)
def test_another_site_is_refused(served: Served, headers: dict[str, str]) -> None:
    """A page of another site neither asks nor posts."""
    for method in ("GET", "POST"):
        status, line = served.problem("/api/estimate", method=method, **headers)
        assert status == 403
        assert line.startswith("origin: ")


def test_a_link_from_another_site_opens_the_page(served: Served) -> None:
    """An address that was sent to somebody opens from where it is read."""
    assert served.ask("/?flavor=mi300x8", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate")[0] == 200


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "model: what is posted is not valid JSON"),
        (b"\xff\xfe", "model: what is posted is not valid JSON"),
        (b"[" * 100_000, "model: what is posted is not valid JSON"),
        (b"[]", "model 'posted config.json': its config is not a JSON object"),
        (b'{"model_type": "nope"}', "model 'posted config.json': model_type 'nope' is not modelled"),
        (json.dumps(TINY | {"hidden_size": -1}).encode(), "model 'posted config.json': hidden_size"),
    ],
)
def test_a_bad_config_is_one_line(served: Served, body: bytes, told: str) -> None:
    """What is posted and is no usable config.json is refused with status 400."""
    status, line = served.problem("/api/estimate", method="POST", body=body)
    assert status == 400
    assert line.startswith(told)


def test_a_large_body_is_refused(served: Served) -> None:
    """No more is taken in than a config.json may be."""
    status, line = served.problem("/api/estimate", method="POST", body=b" " * (MOST_CONFIG_BYTES + 1))
    assert status == 413
    assert line.startswith("model: what is posted is over 16,777,216 bytes")


def test_a_model_beside_a_config_is_refused(served: Served) -> None:
    """Either a name or a config is the model."""
    status, line = served.problem("/api/estimate?model=gpt2", method="POST", body=json.dumps(TINY).encode())
    assert status == 400
    assert line == "model: 'gpt2' is given beside a posted config.json; give one or the other"


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS"])
def test_other_methods_are_refused(served: Served, method: str) -> None:
    """Nothing can be changed, and other sites get no leave to ask."""
    status, headers, text = served.ask("/api/estimate", method)
    assert status == 405
    assert json.loads(text)["error"].startswith(f"method: '{method}' is not answered")
    assert not [name for name in headers if name.startswith("access-control")]


def test_every_answer_is_guarded(served: Served) -> None:
    """No answer is kept, framed, sniffed, or read by another site; the server does not say what it is."""
    for path in ("/", "/nope", "/api/estimate", "/openapi.json"):
        _, headers, _ = served.ask(path)
        assert headers["cache-control"] == "no-store"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["x-frame-options"] == "DENY"
        assert headers["x-content-type-options"] == "nosniff"
        assert "server" not in headers


def test_it_listens_on_loopback_alone(served: Served) -> None:
    """The port is free on another address of this host."""
    with socket.socket() as other:
        other.bind(("127.0.0.2", served.port))


def test_openapi_has_what_is_read(served: Served) -> None:
    """The document has every parameter but the page's own, and every reference in it resolves."""
    document = json.loads(served.ask("/openapi.json")[2])
    assert document == json.loads(json.dumps(openapi_document()))
    asked = document["paths"]["/api/estimate"]["get"]["parameters"]
    assert {one["name"] for one in asked} == PARAMETERS.keys() - {"everywhere"}
    for one in asked:
        assert all(read_query([(one["name"], word)]).options for word in one["schema"].get("enum", []))
    for name in re.findall(r'"\$ref": "#/components/schemas/(\w+)"', json.dumps(document)):
        assert name in document["components"]["schemas"]
    required = document["components"]["schemas"]["Estimate"]["required"]
    assert set(required) <= json.loads(served.ask("/api/estimate")[2]).keys()


@given(st.lists(st.tuples(st.sampled_from([*PARAMETERS]) | st.text(max_size=8), st.text(max_size=12)), max_size=4))
def test_any_query_is_read_or_refused(pairs: list[tuple[str, str]]) -> None:
    """A query of any text is one that can be asked, or is refused in one line."""
    told = ""
    try:
        assert len(read_query(pairs).options) <= len(pairs)
    except ValueError as error:
        told = str(error)
    assert "\n" not in told


def test_the_command_of_a_query_asks_the_same() -> None:
    """What the page shows as the command that makes it again has every option of its address."""
    name = next(iter(builtin_configs()))
    options = {"model": name, "accelerator": "mi300x", "devices": "8", "compiles": "false", "failures": "true"}
    usual = load_catalog().flavor("small")
    assert as_command(read_query(options.items()), usual) == (
        f"estimate --model {name} --accelerator mi300x --devices 8 --no-compile --failures --html answer.html"
    )
    assert as_command(Query(None, (), everywhere=False), usual) == f"estimate --flavor {usual.id} --html answer.html"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--port", "8765"], "port: --port is given without --serve; add it"),
        (["--serve", "--json"], "serve: --json is given beside --serve"),
        (["--serve", "--lengths", "rows.csv"], "serve: --lengths is given beside --serve; the page does not ask it"),
        (["--serve", "--flavor", "all"], "flavor: 'all' asks for several answers"),
        (["--serve", "--model", "/etc/passwd"], "unknown model '/etc/passwd'"),
    ],
)
def test_bad_options_are_one_line(options: list[str], told: str) -> None:
    """Options that the live page does not ask are refused before it is served."""
    status, out, err = call(*options)
    assert (status, out) == (2, "")
    assert re.fullmatch(f"{told}.*\n", err)


def test_a_port_that_is_taken_is_one_line(served: Served) -> None:
    """The line says why, and the mend."""
    status, _, err = call("--serve", "--port", str(served.port))
    assert status == 2
    assert re.fullmatch(rf"port: {served.port} cannot be had \(.*\); give another, or --port 0\n", err)


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line says what to install."""
    for name in ("estimator.serve.run", "estimator.serve.app", "estimator.serve.guard"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    for name in ("uvicorn", "starlette"):
        monkeypatch.setitem(sys.modules, name, None)
    status, _, err = call("--serve")
    assert (status, err) == (2, "serve: the live page needs an extra: pip install foretrain[serve]\n")


@in_a_browser
@pytest.mark.slow
def test_in_a_browser_the_address_is_the_question(served: Served, tmp_path: Path) -> None:
    """What is typed and sent is in the address, without what is empty, and nothing else is asked."""
    with browser(tmp_path) as page:
        page.open(served.address)
        page.run("document.querySelector('[name=lora]').focus()")
        page.call("Input.insertText", text="16")
        before = page.run("document.title")
        page.submit("document.querySelector('.question').requestSubmit()")
        assert page.run("location.search") == "?" + urlencode({"flavor": "mi300x8", "lora": "16"})
        assert page.run("document.title") == before
        assert page.run("document.querySelector('[name=lora]').value") == "16"
        assert "--lora 16" in page.run("document.querySelector('#again + pre').innerText")
        assert page.complaints == []
        assert {url.partition("?")[0] for url in page.requests} == {f"http://127.0.0.1:{served.port}/"}
