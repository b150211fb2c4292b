"""Owns how a metric is made of its samples. Knows no name of one."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from lstmserve.server.observe.histogram import Histogram

Labels = tuple[str, ...]


def counter(name: str, text: str, names: Labels, samples: Iterable[tuple[Labels, float]]) -> Metric:
    """Of samples: the values of the labels, and the count."""
    family = CounterMetricFamily(name, text, labels=names)
    for labels, value in samples:
        family.add_metric(labels, value)
    return family


def gauge(name: str, text: str, names: Labels, samples: Iterable[tuple[Labels, float]]) -> Metric:
    """Of samples: the values of the labels, and the value now."""
    family = GaugeMetricFamily(name, text, labels=names)
    for labels, value in samples:
        family.add_metric(labels, value)
    return family


def histogram(
    name: str, text: str, names: Labels, samples: Iterable[tuple[Labels, Histogram]]
) -> Metric:
    """Of samples: the values of the labels, and the counts."""
    family = HistogramMetricFamily(name, text, labels=names)
    for labels, counts in samples:
        family.add_metric(labels, *counts.read())
    return family
