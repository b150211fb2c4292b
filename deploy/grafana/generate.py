"""Writes the Grafana dashboard: `python -m deploy.grafana.generate`.

It also writes the table of panels in docs/MONITORING.md, and a test compares both files with it.
panels.py says what the dashboard shows.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from deploy.grafana.panels import ROWS, Panel

PATH: Final = Path(__file__).parent / "dashboards" / "lstmserve.json"
PAGE: Final = Path(__file__).parents[2] / "docs" / "MONITORING.md"
START, END = "<!-- panels, written by deploy/grafana/generate.py -->\n", "<!-- end of panels -->\n"
SOURCE: Final = {"type": "prometheus", "uid": "prometheus"}
COLORS: Final = ("green", "yellow", "red")
HEIGHT: Final = {"stat": 4, "timeseries": 8, "heatmap": 8, "table": 8}
LINES: Final = {
    "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
    "tooltip": {"mode": "multi", "sort": "desc"},
}
KINDS: Final[dict[str, dict[str, Any]]] = {
    "stat": {
        "colorMode": "value",
        "graphMode": "area",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    },
    "timeseries": LINES,
    "heatmap": {
        "calculate": False,
        "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64, "reverse": False},
        "filterValues": {"le": 1e-9},  # empty buckets have no colour
        "cellGap": 1,
        "legend": {"show": True},
        "tooltip": {"mode": "single", "yHistogram": True},
    },
    "table": {"showHeader": True, "cellHeight": "sm"},
}


def dashboard() -> dict[str, Any]:
    """The whole dashboard, in Grafana's form."""
    return {
        "uid": "lstmserve",
        "title": "lstmserve",
        "description": "Sessions, steps, batches and the store. docs/MONITORING.md",
        "tags": ["lstmserve"],
        "schemaVersion": 39,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,  # one crosshair over all panels
        "refresh": "5s",
        "time": {"from": "now-15m", "to": "now"},
        "timezone": "browser",
        "templating": {
            "list": [
                _variable("instance", 'label_values(up{job="lstmserve"}, instance)'),
                _variable("model", "label_values(lstm_model_info, model)"),
            ]
        },
        "annotations": {"list": [_restarts()]},
        "panels": _panels(),
    }


def text() -> str:
    """The dashboard's file as text."""
    return json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n"


def page() -> str:
    """The documentation's page with the table of all panels."""
    before, _, rest = PAGE.read_text().partition(START)
    lines = ["| row | panel | what it shows |", "|---|---|---|"]
    for title, row in ROWS.items():
        lines += [f"| {title} | {panel.title} | {panel.description} |" for panel in row]
    return before + START + "\n".join(lines) + "\n" + END + rest.partition(END)[2]


def _panels() -> list[dict[str, Any]]:
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS.items():
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": title,
                "collapsed": False,
                "gridPos": {"h": 1, "w": 24, "x": 0, "y": y},
                "panels": [],
            }
        )
        x, y, below = 0, y + 1, 0
        for panel in row:
            if x + panel.width > 24:
                x, y = 0, below
            height = HEIGHT[panel.kind]
            grid = {"h": height, "w": panel.width, "x": x, "y": y}
            panels.append({"id": len(panels) + 1, "gridPos": grid, **_panel(panel)})
            x, below = x + panel.width, y + height
        y = below
    return panels


def _panel(panel: Panel) -> dict[str, Any]:
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": _field(panel), "overrides": []},
        "options": _options(panel),
        "targets": [_target(panel, *each) for each in enumerate(panel.queries)],
        **({"transformations": _columns()} if panel.kind == "table" else {}),
    }


def _options(panel: Panel) -> dict[str, Any]:
    if panel.kind == "heatmap":
        return {**KINDS["heatmap"], "yAxis": {"unit": panel.unit}}
    return KINDS[panel.kind]


def _field(panel: Panel) -> dict[str, Any]:
    field: dict[str, Any] = {"unit": panel.unit}
    if panel.empty:
        field["noValue"] = panel.empty
    if panel.thresholds or panel.kind == "stat":
        steps = [None, *panel.thresholds]
        field["color"] = {"mode": "palette-classic" if panel.kind == "timeseries" else "thresholds"}
        field["thresholds"] = {
            "mode": "absolute",
            "steps": [
                {"color": color, "value": value}
                for color, value in zip(COLORS, steps, strict=False)
            ],
        }
    if panel.kind == "timeseries":
        field["min"] = 0
        if panel.high is not None:
            field["max"] = panel.high
        field["custom"] = {
            "fillOpacity": 25 if panel.is_stacked else 8,
            "lineWidth": 1,
            "showPoints": "never",
            "stacking": {"mode": "normal" if panel.is_stacked else "none"},
            **({"thresholdsStyle": {"mode": "dashed"}} if panel.thresholds else {}),
        }
    return field


def _target(panel: Panel, index: int, query: tuple[str, str]) -> dict[str, Any]:
    expr, legend = query
    formats = {"heatmap": "heatmap", "table": "table"}
    return {
        "refId": chr(ord("A") + index),
        "datasource": SOURCE,
        "expr": expr,
        "legendFormat": legend,
        "format": formats.get(panel.kind, "time_series"),
        "instant": panel.kind == "table",
        "range": panel.kind != "table",
    }


def _columns() -> list[dict[str, Any]]:
    names = {"Value": "servers"}
    return [{"id": "organize", "options": {"excludeByName": {"Time": True}, "renameByName": names}}]


def _variable(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,  # when the time range changes
        "includeAll": True,
        "allValue": ".*",  # also steps whose session was not found: their model is ""
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
    }


def _restarts() -> dict[str, Any]:
    return {
        "name": "Restarts",
        "datasource": SOURCE,
        "enable": True,
        "iconColor": "purple",
        "target": {
            "refId": "Anno",
            "expr": 'changes(process_start_time_seconds{job="lstmserve"}[$__interval]) > 0',
        },
        "titleFormat": "{{instance}} started",
    }


if __name__ == "__main__":
    PATH.write_text(text())
    PAGE.write_text(page())
