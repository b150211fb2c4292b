"""Proofs on real processes: killed, frozen, restarted and flooded servers, and clients that crash.

`make soak` runs all of them in their long form and writes docs/GUARANTEES.md; tests/test_soak_*.py
run the short ones. A run returns a dataclass of counts, whose `check()` compares them with its
gates.
"""

import sys
from pathlib import Path

_TESTS = str(Path(__file__).parent.parent / "tests")
if _TESTS not in sys.path:  # `python -m soak` finds the servers and models that tests make, too
    sys.path.append(_TESTS)
