"""What the documentation tells people to type, open and set exists: no command is run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml

from lstmserve.cli import COMMANDS, commands
from serving import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("[a-z]*/*.md"), *ROOT.glob("examples/*/*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
FENCE = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`]+)`")
# Before it: the prompt, a variable, or `docker compose exec SERVICE`.
LSTMSERVE = re.compile(r"(?:^|\$ |\w=\S+ |exec (?:--index \d+ )?[\w-]+ )lstmserve +((?!https?:).+)")
COMPOSE_FILES = [ROOT / f"docker-compose{part}.yml" for part in ("", ".scale", ".gpu")]
# Flags of docker, of Triton's perf_analyzer; an example of a value that looks like a flag.
NOT_OURS = {"--read-only", "--scale", "--shape", "--foo-bar"}

pytestmark = pytest.mark.parametrize("page", PAGES, ids=NAMES)


def lines(page: Path) -> Iterator[str]:
    """Each line of a fenced block, and each piece of code within a line."""
    text = page.read_text()
    for block in FENCE.findall(text):
        yield from re.sub(r"\\\n\s*", "", block).splitlines()
    yield from (" ".join(code.split()) for code in CODE.findall(FENCE.sub("", text)))


def words(command: str) -> list[str]:
    """Of a shell line, up to its first pipe, redirection, end or comment."""
    command = re.split(r"\s(?:\||>>?|&&?|;|#|\.\.\.)(?:\s|$)|\s{3,}", command)[0]
    try:
        return shlex.split(re.sub(r"[\[\]<>|]", " ", command))
    except ValueError:
        return command.split()


def unknown(arguments: list[str]) -> Iterator[str]:
    """Subcommands and flags among the arguments of `lstmserve` that it does not have."""
    command: click.Command = commands
    context = click.Context(command)
    rest = list(arguments)
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        found = command.get_command(context, rest[0])
        if found is None:
            yield rest[0]
            return
        command = found
        rest.pop(0)
    known = {flag for each in command.params for flag in (*each.opts, *each.secondary_opts)}
    for word in rest:
        flag = word.partition("=")[0].rstrip(",.:)")
        if flag.startswith("--") and flag not in known | {"--help", "--version", "--"}:
            yield flag


def all_flags() -> set[str]:
    """Of every command of ours."""
    found = {"--help", "--version"}
    waiting = [commands.get_command(click.Context(commands), name) for name in COMMANDS]
    while waiting:
        command = waiting.pop()
        assert command is not None
        found |= {flag for each in command.params for flag in (*each.opts, *each.secondary_opts)}
        if isinstance(command, click.Group):
            waiting += command.commands.values()
    return found


def test_every_command_exists(page: Path) -> None:
    """Each `lstmserve ...` names a subcommand and flags that the command line has."""
    wrong = [
        (line, missing)
        for line in lines(page)
        for match in LSTMSERVE.finditer(line)
        for missing in unknown(words(match[1]))
    ]
    assert wrong == []
    assert list(unknown(words("serve --nothing 1 --models x | y --else"))) == ["--nothing"]
    assert list(unknown(words("sessions nothing ID"))) == ["nothing"]


def test_every_flag_exists(page: Path) -> None:
    """Code that begins with a flag, as in `--pool-bytes`, is about a flag that something has."""
    tools = [*ROOT.glob("soak/*.py"), *ROOT.glob("bench/*.py"), *ROOT.glob("examples/*/*.py")]
    others = "".join(path.read_text() for path in [*tools, ROOT / "tests" / "conftest.py"])
    known = all_flags() | NOT_OURS
    codes = CODE.findall(FENCE.sub("", page.read_text()))
    flags = {match[0] for code in codes if (match := re.match(r"--[a-z][a-z0-9-]*[a-z0-9]", code))}
    assert [each for each in flags if each not in known and f'"{each}"' not in others] == []


def test_every_target_and_module_exists(page: Path) -> None:
    """Each `make X` is a target of the Makefile, and each `python -m X` of ours is there."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in lines(page):
        for target in re.findall(r"(?:^|\$ )make ([a-z]+)", line):
            assert target in targets, line
        for module in re.findall(r"python -m ((?:bench|soak|examples|deploy)[\w.]*)", line):
            path = ROOT / module.replace(".", "/")
            assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), line


def test_every_service_exists(page: Path) -> None:
    """What `docker compose up`, `build` and others are given are services of the compose files."""
    loader = type("Loader", (yaml.SafeLoader,), {})
    loader.add_constructor("!override", lambda loader, node: loader.construct_sequence(node))
    files = [yaml.load(path.read_text(), loader) for path in COMPOSE_FILES]
    services = {name for each in files for name in each["services"]}
    asked = re.compile(r"docker compose (?:-f \S+ )*(up|build|exec|run|logs|stop|restart)\b(.*)")
    for line in lines(page):
        for verb, rest in asked.findall(line):
            named = [each for each in words(f" {rest}") if re.fullmatch("[a-z]+", each)]
            if verb in ("exec", "run"):
                named = named[:1]
            assert set(named) <= services, line


def test_every_link_and_path_resolves(page: Path) -> None:
    """Links lead to files and headings that are there, and so do paths and tests in code."""
    text = page.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        other = (page.parent / path) if path else page
        assert other.exists(), target
        assert not anchor or anchor in anchors(other), target
    folders = "docs|deploy|tests|soak|bench|examples|proto|service|export"
    for code in lines(page):
        for path in re.findall(rf"(?:^|[\s(])((?:{folders})/[\w./*-]*[\w*])", code):
            assert exists(path), path
        for name in re.findall(r"\b(test_\w+\.py|docker-compose[\w.]*\.yml)\b", code):
            assert list(ROOT.glob(f"*/{name}")) + list(ROOT.glob(name)), name


def exists(path: str) -> bool:
    """Below the root, or a folder that commands make there."""
    return any(ROOT.glob(path)) or "/out" in path


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}
