"""The status page: self-contained, allowed nothing more, and true, in a real browser."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

import stepgraph
from chromium import Chromium
from lstmserve import Client
from lstmserve.top.numbers import Scrape, buckets, parse, quantile
from mixedload import MixedLoad, loaded_servers
from modelmaking import make_model
from sequencegraphs import make_models as make_sequences
from serving import Serve, Serving

NUMBER = "Number(document.getElementById('{}').textContent.replace(/[^0-9.]/g, ''))"
GREEN = """(() => {
  const canvas = document.getElementById('step-heat');
  const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
  let pixels = 0;
  for (let n = 0; n < data.length; n += 4) pixels += data[n + 1] - data[n] > 60 && data[n + 3] > 90;
  return pixels;
})()"""
LIST = """JSON.stringify((() => {
  const names = [...document.querySelectorAll('#ID dt')].map((each) => each.textContent);
  const counts = [...document.querySelectorAll('#ID dd[title]')];
  return names.map((name, n) => [name, Number(counts[n].title)]).sort();
})())"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """A browser, shared by tests that open pages of their own."""
    with Chromium(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture(scope="module")
def load(
    models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Serving, MixedLoad]]:
    """A server with a store under a mixed load, and the load."""
    with loaded_servers(models, tmp_path_factory.mktemp("valkey")) as (servings, load):
        yield servings[0], load


def listed(metric: str, label: str, serving: Serving) -> list[list[object]]:
    """[[label's value, count], ...] of /metrics without zeros, sorted, in the form of LIST."""
    _, body = serving.get("/metrics")
    sums: dict[str, int] = {}
    for labels, value in re.findall(rf"^{metric}{{(.*)}} (\S+)$", body, re.MULTILINE):
        name = re.search(rf'{label}="([^"]*)"', labels)
        assert name
        sums[name[1]] = sums.get(name[1], 0) + round(float(value))
    return [[name, count] for name, count in sorted(sums.items()) if count]


def test_the_page_is_alone_and_may_do_nothing_else(server: Serving) -> None:
    """It is one document without any address in it, and its policy names its script by hash."""
    with urllib.request.urlopen(server.metrics_url + "/") as response:
        page, headers = response.read().decode(), response.headers
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert headers["X-Content-Type-Options"] == "nosniff"
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert len(re.findall(r"'sha256-[A-Za-z0-9+/]{43}='", policy)) == 2
    addresses = re.findall(r"""(?:src|href)=["']?([^"'>\s]+)|url\(([^)]+)|@import""", page)
    assert [each for each, _ in addresses if not each.startswith("data:")] == ["metrics"]


def test_the_page_shows_the_load(chromium: Chromium, load: tuple[Serving, MixedLoad]) -> None:
    """Every number and picture appears, without a complaint, and from this server alone."""
    serving, mixed = load
    chromium.problems.clear()
    chromium.requests.clear()
    chromium.open(serving.metrics_url + "/")
    for name in ("steps", "rows", "errors", "p50", "p99"):
        chromium.until(f"{NUMBER.format(name)} > 0")
    chromium.until(f"{GREEN} > 50")
    chromium.until("document.querySelectorAll('#batches rect:not(.base)').length > 3")
    chromium.until("document.querySelectorAll('.tiles path.line').length === 6")
    assert chromium.evaluate("document.getElementById('state').textContent") == "ready"
    assert "tiny:1" in chromium.evaluate("document.getElementById('models').textContent")
    assert "not stored for" in chromium.evaluate("document.getElementById('server').textContent")
    mixed.wait(0)
    assert chromium.problems == []
    assert {url.rpartition("/")[0] for url in chromium.requests} == {serving.metrics_url}


def test_the_page_says_what_metrics_says(
    chromium: Chromium, load: tuple[Serving, MixedLoad]
) -> None:
    """When the load has ended, the page's counts and the server's are the same."""
    serving, mixed = load
    chromium.open(serving.metrics_url + "/")
    mixed.stop()
    sessions = round(serving.metric("lstm_sessions"))
    chromium.until(f"document.getElementById('sessions').textContent === '{sessions}'")
    for name, metric, label in (
        ("reasons", "lstm_step_errors_total", "reason"),
        ("methods", "lstm_steps_total", "method"),
        ("opened", "lstm_sessions_opened_total", "source"),
        ("closed", "lstm_sessions_closed_total", "reason"),
    ):
        counts = json.dumps(listed(metric, label, serving), separators=(",", ":"))
        assert counts.count("[") > 2
        chromium.until(f"{LIST.replace('ID', name)} === {json.dumps(counts)}")


def test_the_page_computes_as_top_does(chromium: Chromium, load: tuple[Serving, MixedLoad]) -> None:
    """From the same two scrapes the page's script computes the same quantiles and sums as
    Python."""
    serving, _ = load
    before, after = serving.get("/metrics")[1], late(serving)
    chromium.open(serving.metrics_url + "/")
    chromium.evaluate(
        f"var before = parse({json.dumps(before)}), after = parse({json.dumps(after)})"
    )
    ours = [Scrape(0.0, True, parse(text)) for text in (before, after)]
    for name in ("lstm_step_seconds", "lstm_store_seconds", "lstm_batch_size"):
        for q in (0.5, 0.9, 0.99):
            theirs = chromium.evaluate(f"quantile({q}, buckets(before, after, '{name}'))")
            assert theirs == pytest.approx(quantile(q, buckets(*ours, name)))
    where = {"op": "put"}
    theirs = chromium.evaluate(f"total(after, 'lstm_store_seconds_count', {json.dumps(where)})")
    assert theirs == ours[1].total("lstm_store_seconds_count", **where) > 0


def test_the_page_shows_networks(chromium: Chromium, serve: Serve, tmp_path: Path) -> None:
    """Each model's kind, also of one without states, and whether it is exact or by how much it is
    not; nothing is cut off in a window of any width."""
    stepgraph.make_model(tmp_path, name="five-states")
    stepgraph.make_model(tmp_path, name="rounded", is_exact=False)
    make_model(tmp_path)
    make_sequences(tmp_path, "answer")
    serving = serve(models=tmp_path)
    rows = """JSON.stringify([...document.querySelectorAll('#models tr')].map(
      (row) => [...row.children].slice(0, 3).map((each) => each.textContent)))"""
    wanted = [
        ["answer:1", "network", "yes"],
        ["five-states:1", "network", "yes"],
        ["rounded:1", "network", "to 6e-7"],
        ["tiny:1", "lstm", "yes"],
    ]
    cut = """[...document.querySelectorAll('article')]
      .filter((each) => each.scrollWidth > each.clientWidth).map((each) => each.textContent)"""
    for width in (390, 600, 900, 1101, 1280):
        chromium.open(serving.metrics_url + "/", width=width)
        chromium.until("document.querySelectorAll('#models tr').length === 4")
        assert json.loads(chromium.evaluate(rows)) == wanted
        assert chromium.evaluate(f"JSON.stringify({cut})") == "[]", width


def late(serving: Serving) -> str:
    """/metrics after one more step."""
    with Client(serving.target) as client, client.session("tiny") as session:
        session.step([1, 2, 3])
    return serving.get("/metrics")[1]


def test_the_page_of_a_new_server_says_what_to_do(chromium: Chromium, serve: Serve) -> None:
    """Before the first step it shows a hint and no made-up number, and later that there is no
    answer."""
    serving = serve()
    chromium.open(serving.metrics_url + "/")
    chromium.until("!document.getElementById('quiet').hidden")
    chromium.until("document.getElementById('state').textContent === 'ready'")
    text = chromium.evaluate("document.body.innerText")
    assert not re.search("NaN|undefined|Infinity", text), text
    assert "none: sessions end with the process" in text
    serving.kill()
    chromium.until("document.getElementById('state').textContent.startsWith('no answer')")


def test_the_page_is_dark_where_all_is_dark(chromium: Chromium, server: Serving) -> None:
    """It follows the system's colour scheme, and fits a telephone."""
    grounds = []
    for is_dark in (False, True):
        chromium.open(server.metrics_url + "/", width=390, is_dark=is_dark)
        chromium.until("document.getElementById('models').textContent.includes('tiny')")
        grounds.append(chromium.evaluate("getComputedStyle(document.body).color"))
        assert chromium.evaluate("document.documentElement.scrollWidth") == 390
    assert len(set(grounds)) == 2
