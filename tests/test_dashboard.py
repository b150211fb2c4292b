"""The dashboard: as generated, readable, and every query answered by a live Prometheus."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.grafana import generate
from deploy.grafana.panels import ROWS
from lstmserve import Client
from mixedload import MixedLoad, good, loaded_servers
from monitoring import FOLDER, Prometheus
from serving import COMMAND, ROOT, Serving

PANELS = [panel for panel in generate.dashboard()["panels"] if panel["type"] != "row"]
# Panels whose value need not change from one check to the next.
STEADY = {"Slots used", "Servers", "Slots", "Sessions", "Pending steps", "Open files", "Models"}
STEADY |= {"Durable lag", "Memory", "State memory"}
VARIABLES = {"$__rate_interval": "5s", "$instance": ".*", "$model": ".*"}
CHECK_S, CHECKS_MAX = 0.5, 40


def test_the_committed_dashboard_is_the_generated_one() -> None:
    """`python -m deploy.grafana.generate` changes nothing."""
    assert generate.PATH.read_text() == generate.text()
    assert generate.PAGE.read_text() == generate.page()


def test_the_runbook_names_panels_that_exist() -> None:
    """Every text in italics in docs/MONITORING.md is a panel's title."""
    before, _, rest = generate.PAGE.read_text().partition(generate.START)
    named = re.findall(r"(?<!\*)\*([A-Z][^*]+)\*(?!\*)", before + rest.partition(generate.END)[2])
    titles = {panel["title"] for panel in PANELS}
    assert len(named) > 10
    assert {re.sub(r"\s+", " ", name) for name in named if len(name) < 60} <= titles


def test_every_panel_says_what_it_shows() -> None:
    """Each panel has a title that is unique in its row, a unit, a description and queries."""
    for row, panels in ROWS.items():
        assert len({panel.title for panel in panels}) == len(panels), row
    for panel in PANELS:
        assert panel["title"]
        assert re.match(r".{10,}\.$", panel["description"]), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["targets"], panel["title"]


def test_no_panel_hides_that_there_is_nothing() -> None:
    """No query makes up a value when there is none."""
    for panel in PANELS:
        for target in panel["targets"]:
            assert "vector(" not in target["expr"]
            assert "absent" not in target["expr"]


def test_panels_do_not_overlap() -> None:
    """Each panel has its own place on the grid of 24 columns."""
    taken: set[tuple[int, int]] = set()
    for panel in generate.dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells


def test_the_provisioning_names_the_same_source() -> None:
    """Data source, folder and interval are the same in the dashboard, in compose and in the
    scrape."""
    sources = (ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text()
    assert f"uid: {generate.SOURCE['uid']}" in sources
    interval = re.search(r"timeInterval: (\w+)", sources)
    scrape = (ROOT / "deploy/prometheus/prometheus.yml").read_text()
    assert interval
    assert f"scrape_interval: {interval[1]}" in scrape


@pytest.fixture(scope="module")
def load(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A Prometheus that scrapes two servers under a mixed load, and the load."""
    folder = tmp_path_factory.mktemp("prometheus")
    with loaded_servers(models, tmp_path_factory.mktemp("valkey")) as (servings, load):
        targets = [serving.ready["metrics"] for serving in servings]
        with Prometheus(folder, *targets) as prometheus:
            yield prometheus, load


def asked(prometheus: Prometheus, expression: str) -> str:
    """The answer to a panel's query, "" when it has no series."""
    for variable, value in VARIABLES.items():
        expression = expression.replace(variable, value)
    assert "$" not in expression
    series = prometheus.query(expression)
    values = {
        json.dumps(each["metric"], sort_keys=True): each["value"][1]
        for each in series
        if each["value"][1] != "NaN"
    }
    return json.dumps(values, sort_keys=True) if values else ""


def test_every_panel_shows_the_load(load: tuple[Prometheus, MixedLoad]) -> None:
    """Under load each query has data, and each query about traffic changes between two checks."""
    prometheus, mixed = load
    queries = {
        (panel["title"], target["refId"], target["expr"]): panel["title"] not in STEADY
        for panel in PANELS
        for target in panel["targets"]
    }
    first: dict[Any, str] = {}
    last: dict[Any, str] = {}
    for _ in range(CHECKS_MAX):
        mixed.wait(CHECK_S)
        last = {query: asked(prometheus, query[2]) for query in queries}
        first = {query: first.get(query) or answer for query, answer in last.items()}
        empty = [query for query, answer in last.items() if not answer]
        still = [query for query, moves in queries.items() if moves and first[query] == last[query]]
        if not empty and not still:
            return
    print(last)
    assert (empty, still) == ([], [])


def test_a_panel_without_data_says_why(models: Path, tmp_path: Path) -> None:
    """Without a store or a failure, exactly the panels that have a text for it are empty."""
    explained = {p["title"] for p in PANELS if "noValue" in p["fieldConfig"]["defaults"]}
    queries = [(p["title"], target["expr"]) for p in PANELS for target in p["targets"]]
    empty: set[str] = set()
    serving = Serving(("--models", models), COMMAND)
    try:
        with (
            Prometheus(tmp_path, serving.ready["metrics"]) as prometheus,
            Client(serving.target) as client,
        ):
            for _ in range(CHECKS_MAX):
                end_s = time.monotonic() + CHECK_S
                while time.monotonic() < end_s:
                    good(client)
                empty = {title for title, query in queries if not asked(prometheus, query)}
                if empty == explained:
                    break
    finally:
        serving.kill()
    assert empty == explained
    assert {panel.title for panel in ROWS["Store"]} <= explained


def test_every_server_is_a_target(load: tuple[Prometheus, MixedLoad]) -> None:
    """Both servers are up, and no rule fails."""
    prometheus, _ = load
    targets = prometheus.get("targets")["activeTargets"]
    assert [target["health"] for target in targets] == ["up", "up"]
    rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert len(rules) > 10
    assert [rule["name"] for rule in rules if rule.get("lastError")] == []


def test_every_selector_of_the_rules_finds_something(load: tuple[Prometheus, MixedLoad]) -> None:
    """Every metric and label value in a rule's selectors exists on a server."""
    prometheus, _ = load
    text = "".join(path.read_text() for path in (FOLDER / "rules").iterdir())
    selectors = {
        match[0]
        for match in re.finditer(r"\b(?:lstm_|grpc_|process_|up)\w*\{[^{}]+\}", text)
        if "STORE_" not in match[0]  # the store was not stopped
    }
    assert len(selectors) > 10
    assert [each for each in selectors if not prometheus.query(each)] == []
