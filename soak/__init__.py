"""Proofs on real processes: killed, frozen, restarted and flooded servers, and clients that crash.

`make soak` runs all in their long form and writes docs/GUARANTEES.md; tests/test_soak_*.py run the
short ones. What a run found is a dataclass of counts; `check()` holds it to its gates.
"""

import sys
from pathlib import Path

_TESTS = str(Path(__file__).parent.parent / "tests")
if _TESTS not in sys.path:  # `python -m soak` finds the servers and models that tests make, too
    sys.path.append(_TESTS)
