"""What the documentation tells people to type, open and set exists: no command is run."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

import documentation
from documentation import Page
from serving import ROOT

PAGES = documentation.pages()
Check = Callable[[Page], list[str]]
CHECKS: list[Check] = [
    documentation.unknown_commands,
    documentation.unknown_flags,
    documentation.unknown_variables,
    documentation.unknown_targets,
    documentation.unknown_services,
    documentation.broken_links,
    documentation.missing_files,
    documentation.wrong_python,
]
BLOCK = "```\n{}\n```\n"
# A sound line of each kind, and the same with a fault: (check, sound, faulty).
PLANTED: list[tuple[Check, str, str]] = [
    (documentation.unknown_commands, "`lstmserve models`", "`lstmserve model`"),
    (documentation.unknown_commands, "`lstmserve sessions list`", "`lstmserve sessions lost`"),
    (
        documentation.unknown_commands,
        BLOCK.format("tail -f x | lstmserve step m --if-lost new"),
        BLOCK.format("tail -f x | lstmserve step m --if-lost old"),
    ),
    (
        documentation.unknown_commands,
        BLOCK.format("$ A=1 lstmserve serve \\\n  --store-format 2 | x --else"),
        BLOCK.format("$ A=1 lstmserve serve \\\n  --store-format 9 | x --else"),
    ),
    (
        documentation.unknown_commands,
        BLOCK.format("lstmserve models; lstmserve health"),
        BLOCK.format("lstmserve models; lstmserve healthy"),
    ),
    (
        documentation.unknown_commands,
        "`/opt/lstmserve/bin/lstmserve serve --models m`",
        "`/opt/lstmserve/bin/lstmserve serve --model m`",
    ),
    (documentation.unknown_flags, "`--pool-bytes`", "`--pool-byte`"),
    (documentation.unknown_variables, "`LSTMSERVE_STORE`", "`LSTMSERVE_STOER`"),
    (documentation.unknown_targets, "`make demo`", "`make demos`"),
    (
        documentation.unknown_targets,
        "`python -m bench.versions new=. --rounds 3`",
        "`python -m bench.versions new=. --round 3`",
    ),
    (
        documentation.unknown_targets,
        "`python -m examples.weather.demo`",
        "`python -m examples.weather.demos`",
    ),
    (documentation.unknown_targets, "`python -m venv x`", "`python -m venvs x`"),
    (
        documentation.unknown_services,
        "`docker compose up -d envoy`",
        "`docker compose up -d envoys`",
    ),
    (documentation.broken_links, "[a](docs/EXPORT.md)", "[a](docs/EXPORTS.md)"),
    (
        documentation.broken_links,
        "[a](docs/EXPORT.md#what-is-read)",
        "[a](docs/EXPORT.md#what-is-red)",
    ),
    (documentation.broken_links, "# A `b`, c\n[a](#a-b-c)", "# A `b`, c\n[a](#a-b)"),
    (
        documentation.broken_links,
        '<img src="docs/img/weather.png">',
        '<img src="docs/img/whether.png">',
    ),
    (documentation.broken_links, "[a]: Makefile", "[a]: Makefiles"),
    (documentation.missing_files, "see docs/EXPORT.md.", "see docs/EXPORTS.md."),
    (documentation.missing_files, "`soak/`, `tests/test_cli.py`", "`tests/test_clis.py`"),
    (documentation.missing_files, "`test_store*.py`", "`test_stores*.py`"),
    (
        documentation.missing_files,
        BLOCK.format("docker compose -f docker-compose.scale.yml up"),
        BLOCK.format("docker compose -f docker-compose.scales.yml up"),
    ),
    (
        documentation.wrong_python,
        "```python\nfrom lstmserve import Client\n```",
        "```python\nfrom lstmserve import Clients\n```",
    ),
    (
        documentation.wrong_python,
        "```python\nerrors.SessionLost\n```",
        "```python\nerrors.SessionLosts\n```",
    ),
    (documentation.wrong_python, "```python\nx = 1\n```", "```python\nx = = 1\n```"),
]


def name_of(page: Page) -> str:
    """Its path from the root."""
    return str(page.path.relative_to(ROOT))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_page_is_right(page: Page, check: Check) -> None:
    """The check finds nothing on the page."""
    assert check(page) == []


@pytest.mark.parametrize(("check", "sound", "faulty"), PLANTED)
def test_a_planted_fault_is_found(check: Check, sound: str, faulty: str) -> None:
    """The check finds nothing in a sound line, and something in the same line with a fault."""
    page = ROOT / "page.md"
    assert check(Page(page, sound)) == []
    assert check(Page(page, faulty)) != []


def test_every_check_is_held_by_a_planted_fault() -> None:
    """Each check has a fault that it must find, so none of them can pass because it is empty."""
    assert {check for check, _, _ in PLANTED} == set(CHECKS)


def test_the_pages_are_all_there() -> None:
    """The pages are those of every folder, the systemd unit among them."""
    names = {name_of(page) for page in PAGES}
    assert {"README.md", "docs/README.md", "examples/weather/README.md"} <= names
    assert {"deploy/roll.sh", "deploy/envoy/envoy.yaml", "docker-compose.yml"} <= names
    assert any(name.endswith(".service") for name in names)


def test_the_index_has_every_page() -> None:
    """docs/README.md links to every other page of docs/, and README.md to the index."""
    index = (ROOT / "docs" / "README.md").read_text()
    linked = {(ROOT / "docs" / path).resolve() for path in re.findall(r"\]\(([^)#]+)", index)}
    wanted = {page.path for page in PAGES if name_of(page).startswith("docs/")}
    assert wanted - linked - {ROOT / "docs" / "README.md"} == set()
    assert "](docs/README.md)" in (ROOT / "README.md").read_text()


def test_the_fastapi_server_of_the_docs_is_the_measured_one() -> None:
    """The page for those who come from FastAPI shows bench/fastapi_server.py as it is."""
    source = (ROOT / "bench" / "fastapi_server.py").read_text()
    assert source in (ROOT / "docs" / "howto" / "from-fastapi.md").read_text()
