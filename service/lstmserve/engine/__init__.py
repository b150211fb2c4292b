"""The session engine: state pool, scheduler, kernel. Knows no transport; imports no gRPC.

The path of a step: Engine.submit -> Scheduler.submit -> Driver: schedule, kernel, commit, settle
-> the step's sink. docs/ARCHITECTURE.md walks it.
"""

from lstmserve.engine.engine import Engine
from lstmserve.engine.loading import load_models
from lstmserve.engine.model import Model

__all__ = ["Engine", "Model", "load_models"]
