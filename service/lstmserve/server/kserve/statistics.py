"""Builds a model's statistics from the counts that the metrics are made of. Counts nothing."""

from __future__ import annotations

from lstmserve.engine import Model
from lstmserve.kserve.v2 import inference_pb2 as pb
from lstmserve.server.observe.counters import ModelMetrics

OK = "OK"


def model_statistics(model: Model, counts: ModelMetrics) -> pb.ModelStatistics:
    """inference_count / execution_count is the mean batch: both are of runs, none is of requests.

    As in Triton each row of a batch counts the batch's whole time.
    """
    sizes = sorted(counts.runs.items())
    rows = sum(size * runs for size, (runs, _) in sizes)
    charged_ns = sum(size * run_ns for size, (_, run_ns) in sizes)
    success = sum(n for (_, code), n in counts.answered.items() if code == OK)
    fail = sum(n for (_, code), n in counts.answered.items() if code != OK)
    (total_s, queue_s) = (each.read()[1] for each in (counts.total, counts.queue))
    moved = pb.StatisticDuration(count=rows)
    return pb.ModelStatistics(
        name=model.name,
        version=str(model.version),
        last_inference=counts.last_run_ms,
        inference_count=rows,
        execution_count=sum(runs for _, (runs, _) in sizes),
        inference_stats=pb.InferStatistics(
            success=_duration(success, total_s),
            fail=pb.StatisticDuration(count=fail),
            queue=_duration(success, queue_s),
            compute_input=moved,
            compute_infer=pb.StatisticDuration(count=rows, ns=charged_ns),
            compute_output=moved,
        ),
        batch_stats=[
            pb.InferBatchStatistics(
                batch_size=size,
                compute_input=pb.StatisticDuration(count=runs),
                compute_infer=pb.StatisticDuration(count=runs, ns=run_ns),
                compute_output=pb.StatisticDuration(count=runs),
            )
            for size, (runs, run_ns) in sizes
        ],
    )


def _duration(count: int, seconds: float) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=count, ns=round(seconds * 1e9))
