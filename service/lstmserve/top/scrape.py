"""Owns one look at a server's metrics address: HTTP, and the text parsed. Compares nothing."""

from __future__ import annotations

import http.client
import time
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

from lstmserve.address import join

TIMEOUT_S = 5.0
BYTES_MAX = 16 << 20

Samples = list[tuple[dict[str, str], float]]  # labels and value


class NoAnswer(Exception):
    """The address does not answer as a server of ours; the message is one line."""


@dataclass(frozen=True)
class Scrape:
    """What a server counted by `time_s` (monotonic)."""

    time_s: float
    is_ready: bool
    samples: dict[str, Samples] = field(repr=False)

    def total(self, name: str, **labels: str) -> float:
        """The sum over the samples that have these labels."""
        return sum(
            value for found, value in self.samples.get(name, ()) if labels.items() <= found.items()
        )

    def by(self, name: str, *labels: str) -> dict[tuple[str, ...], float]:
        """Sums by the values of the labels."""
        sums: dict[tuple[str, ...], float] = {}
        for found, value in self.samples.get(name, ()):
            key = tuple(found.get(label, "") for label in labels)
            sums[key] = sums.get(key, 0.0) + value
        return sums


def scrape(host: str, port: int) -> Scrape:
    """One look. Raises NoAnswer."""
    address = join(host, port)
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        status, body = _get(connection, "/metrics")
        time_s = time.monotonic()
        ready, _ = _get(connection, "/readyz")
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise NoAnswer(f"{address}: {reason} (is a server's --metrics there?)") from error
    except http.client.HTTPException as error:
        raise NoAnswer(f"{address} does not speak HTTP: {error!r}") from error
    finally:
        connection.close()
    if status == http.HTTPStatus.SERVICE_UNAVAILABLE:
        raise NoAnswer(f"{address}: the server's event loop hangs (/metrics: {status})")
    try:
        samples = parse(body.decode()) if status == http.HTTPStatus.OK else {}
    except ValueError as error:
        raise NoAnswer(f"{address} is no lstmserve: /metrics cannot be read") from error
    if "lstm_build_info" not in samples:
        raise NoAnswer(
            f"{address} is no lstmserve: /metrics is {status} and has no lstm_build_info"
        )
    return Scrape(time_s, ready == http.HTTPStatus.OK, samples)


def _get(connection: http.client.HTTPConnection, path: str) -> tuple[int, bytes]:
    connection.request("GET", path)
    response = connection.getresponse()
    return response.status, response.read(BYTES_MAX)


def parse(text: str) -> dict[str, Samples]:
    """The samples by name. Raises ValueError."""
    samples: dict[str, Samples] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples.setdefault(sample.name, []).append((sample.labels, sample.value))
    return samples
