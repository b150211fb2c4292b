"""The session engine: sessions, scheduler, kernel, pool. It imports no gRPC and knows no dialect.

The path of a step: Engine.accept -> Scheduler.accept -> BatchLoop: schedule, compute, commit,
settle -> the request's responder. docs/ARCHITECTURE.md walks it.
"""

from lstmserve.engine.engine import Engine
from lstmserve.engine.loading import load_models
from lstmserve.engine.model import Model

__all__ = ["Engine", "Model", "load_models"]
