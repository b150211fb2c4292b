"""Reads a page of documentation and finds what it names that does not exist. Runs no command.

Each check takes a Page and returns the faults that it found, as the page has them.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import click
import yaml

import lstmserve
from lstmserve import errors
from lstmserve.cli import COMMANDS, commands
from serving import ROOT

FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`]+)`")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)|^\[[^\]]+\]: (\S+)|\b(?:href|src)=\"([^\"]+)\"", re.MULTILINE)
# After a prompt, a pipe, a variable, a folder, a container or `sudo`.
LSTMSERVE = re.compile(
    r"(?:^|[$|;&] |\w=\S+ |/bin/|exec (?:--index \d+ )?[\w-]+ |sudo (?:-u \w+ )?)"
    r"lstmserve +(?=((?!https?:)[a-z-].*))"
)
COMPOSE = re.compile(
    r"(?:^|[\w\"]+=\S+ |\$ |&& )docker compose (?:-f \S+ )*"
    r"(up|build|exec|run|logs|stop|restart)\b(.*)"
)
VARIABLE = re.compile(r"\bLSTMSERVE_[A-Z0-9_]*[A-Z0-9]\b")
ENDINGS = "md|py|yml|yaml|sh|toml|proto|service|svg|png|json|txt|onnx|npz|pbtxt"
FILE = re.compile(rf"(?<![\w./<*-])((?:\w[\w-]*/)*[\w*][\w.*-]*\.(?:{ENDINGS}))(?![\w/*(-]|\.\w)")
FOLDERS = "docs|deploy|tests|soak|bench|examples|proto|service|export"
FOLDER = re.compile(rf"(?:^|[\s(`])((?:{FOLDERS})/[\w./*-]*[\w*])")
# Flags of docker and of Triton's perf_analyzer, and what EXPORT.md says of every flag.
NOT_OUR_FLAGS = {"--read-only", "--scale", "--shape", "--foo-bar"}
NOT_OUR_VARIABLES = {"LSTMSERVE_FOO_BAR", "LSTMSERVE_ROUTER_PORT"}
# What a reader has or makes, and what the server writes beside a model.
NOT_OUR_FILES = {
    "FILE.py",
    "net.py",
    "x.npz",
    "wind.npz",
    "scaler.npz",
    "config.yml",
    "silero_vad.onnx",
    "train_data_scaler.yml",
    "train_data/train_data_scaler.yml",
    "pairs.npz",
    "golden.npz",
    "manifest.json",
    "model.onnx",
    "MODEL.onnx",
    "whole.onnx",
    "lstm.onnx",
    "policy.onnx",
    "encoder.onnx",
    "config.pbtxt",
    # Published models that docs/IMPORT.md and bench.published import.
    "dtln_model_1.onnx",
    "dtln_model_2.onnx",
    "flashvad-stream.onnx",
    "gtcrn_simple.onnx",
    "hello_deepa.onnx",
    "model_1.onnx",
    "model_2.onnx",
    "nsnet2-20ms-baseline.onnx",
    "silero_vad_16k_sequence.onnx",
    "silero_vad_legacy.onnx",
    "ten-vad.onnx",
    "voicefilter_lite.int8.onnx",
    "result.json",
}
ANY_MODULE = {"venv", "pip", "grpc_tools.protoc"}  # of Python, and of packages that a reader gets


@dataclass(frozen=True, slots=True)
class Page:
    """A file of documentation, or one whose comments are: YAML, a script, a systemd unit."""

    path: Path
    text: str

    @property
    def prose(self) -> str:
        """Without fenced blocks."""
        return FENCE.sub("", self.text)

    def code(self) -> Iterator[str]:
        """Each line of a fenced block, and each piece of code within a line."""
        if self.path.suffix != ".md":
            for line in self.text.splitlines():  # a command in a comment is indented
                yield line.lstrip("# ") if re.match(r"#\s{2,}", line) else line
            return
        for _, block in FENCE.findall(self.text):
            yield from re.sub(r"\\\n\s*", "", block).splitlines()
        yield from (" ".join(code.split()) for code in CODE.findall(self.prose))

    def commands(self) -> Iterator[tuple[str, list[str]]]:
        """The line and the arguments of each `lstmserve ...`."""
        for line in self.code():
            for match in LSTMSERVE.finditer(line):
                yield line, words(match[1])


@cache
def files() -> tuple[str, ...]:
    """Every file of the checkout that git does not ignore, from its root."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return tuple(sorted(name for name in listed.stdout.splitlines() if (ROOT / name).exists()))


def pages() -> list[Page]:
    """Every page of the checkout, and what deploys it."""
    deployed = re.compile(r"(deploy/(?!grafana/dashboards/).*|docker-compose[^/]*)\.\w+$")
    names = [
        name
        for name in files()
        if name.endswith(".md") or (deployed.match(name) and not name.endswith(".py"))
    ]
    return [Page(ROOT / name, (ROOT / name).read_text()) for name in names]


def words(command: str) -> list[str]:
    """Those of a shell line up to its first pipe, redirection, end or comment."""
    command = re.split(r"\s(?:\||[<>]{1,2}|&&?|;|#|\.\.\.)(?:\s|$)|;\s|\s{3,}", command)[0]
    try:
        return shlex.split(re.sub(r"[\[\]<>|]", " ", command))
    except ValueError:
        return command.split()


def unknown_commands(page: Page) -> list[str]:
    """Subcommands, flags and values of `lstmserve` that its command line refuses."""
    return [
        f"{line}: {fault}" for line, arguments in page.commands() for fault in refused(arguments)
    ]


def refused(arguments: list[str]) -> Iterator[str]:
    """What the command line has not, of the arguments of `lstmserve`."""
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
    options = {flag: each for each in command.params for flag in (*each.opts, *each.secondary_opts)}
    for word, following in pairwise([*rest, ""]):
        flag, is_joined, value = word.partition("=")
        flag = flag.rstrip(",.:)")
        if not flag.startswith("--") or flag in ("--help", "--version", "--"):
            continue
        if flag not in options:
            yield flag
        elif not accepts(options[flag], value if is_joined else following):
            yield f"{flag} {value if is_joined else following}"


def accepts(option: click.Parameter, value: str) -> bool:
    """Whether it is a choice or a number of the option's; other values may be anything."""
    is_closed = isinstance(option.type, click.Choice | click.IntRange | click.FloatRange)
    if not is_closed or not re.fullmatch(r"[a-z0-9.]+", value):
        return True
    try:
        option.type.convert(value, option, None)
    except click.BadParameter:
        return False
    return True


@cache
def all_options() -> list[click.Parameter]:
    """Those of every command of ours."""
    found: list[click.Parameter] = []
    waiting = [commands.get_command(click.Context(commands), name) for name in COMMANDS]
    while waiting:
        command = waiting.pop()
        assert command is not None
        found += command.params
        if isinstance(command, click.Group):
            waiting += command.commands.values()
    return found


def unknown_flags(page: Page) -> list[str]:
    """Code that begins with a flag, as in `--pool-bytes`, which nothing of ours has."""
    tools = [*ROOT.glob("soak/*.py"), *ROOT.glob("bench/*.py"), *ROOT.glob("examples/*/*.py")]
    others = "".join(path.read_text() for path in [*tools, ROOT / "tests" / "conftest.py"])
    ours = {flag for each in all_options() for flag in (*each.opts, *each.secondary_opts)}
    known = ours | NOT_OUR_FLAGS | {"--help", "--version"}
    codes = CODE.findall(page.prose)
    flags = {match[0] for code in codes if (match := re.match(r"--[a-z][a-z0-9-]*[a-z0-9]", code))}
    return [each for each in sorted(flags) if each not in known and f'"{each}"' not in others]


def unknown_variables(page: Page) -> list[str]:
    """LSTMSERVE_... that is no setting of a command, of a compose file or of a script."""
    known = {str(each.envvar) for each in all_options() if each.envvar}
    files = [*ROOT.glob("docker-compose*.yml"), *ROOT.glob("Dockerfile"), *ROOT.glob("deploy/*.sh")]
    assigned = re.compile(r"\$\{(LSTMSERVE_\w+)|^ARG (LSTMSERVE_\w+)", re.MULTILINE)
    for path in files:
        known |= {name for pair in assigned.findall(path.read_text()) for name in pair}
    return sorted(set(VARIABLE.findall(page.text)) - known - NOT_OUR_VARIABLES)


def unknown_targets(page: Page) -> list[str]:
    """`make X` without that target, `python -m X` without that module or a flag of it."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    found = []
    for line in page.code():
        found += [
            f"make {target}"
            for target in re.findall(r"(?:^|\$ )make ([a-z]+)", line)
            if target not in targets
        ]
        for module, rest in re.findall(r"\bpython3? -m ([\w.]+)(.*)", line):
            if module in ANY_MODULE or importlib.util.find_spec(module.partition(".")[0]) is None:
                found += [] if module in ANY_MODULE else [module]
            elif module.partition(".")[0] in ("bench", "soak", "examples", "deploy"):
                found += wrong_call(module, words(f" {rest}"))
    return found


def wrong_call(module: str, arguments: list[str]) -> list[str]:
    """The module if it cannot be run, or those flags that its package never mentions."""
    path = ROOT / module.replace(".", "/")
    if not path.with_suffix(".py").exists() and not (path / "__main__.py").exists():
        return [module]
    sources = "".join(each.read_text() for each in (ROOT / module.split(".")[0]).rglob("*.py"))
    flags = {word.partition("=")[0] for word in arguments if word.startswith("--")} - {"--help"}
    return [f"{module} {flag}" for flag in sorted(flags) if f'"{flag}"' not in sources]


def unknown_services(page: Page) -> list[str]:
    """What `docker compose up`, `build` and others name that the compose files have not."""
    loader = type("Loader", (yaml.SafeLoader,), {})
    loader.add_constructor("!override", lambda loader, node: loader.construct_sequence(node))
    files = [yaml.load(path.read_text(), loader) for path in ROOT.glob("docker-compose*.yml")]
    services = {name for each in files for name in each["services"]}
    found = []
    for line in page.code():
        for verb, rest in COMPOSE.findall(line):
            named = [each for each in words(f" {rest}") if re.fullmatch("[a-z]+", each)]
            named = named[:1] if verb in ("exec", "run") else named
            found += [each for each in named if each not in services]
    return found


def broken_links(page: Page) -> list[str]:
    """Links to a file or a heading that is not there."""
    found = []
    for target in filter(None, (part for link in LINK.findall(page.prose) for part in link)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        other = page.path.parent / path
        is_there = other.exists() if path else True
        if is_there and anchor:
            is_there = anchor in anchors(other.read_text() if path else page.text)
        if not is_there:
            found.append(target)
    return found


def anchors(text: str) -> set[str]:
    """Of the headings of a page, as GitHub makes them."""
    titles = HEADING.findall(FENCE.sub("", text))
    return {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}


@cache
def paths_of_ours() -> frozenset[str]:
    """Those files and their folders, each with a / before it."""
    folders = {str(folder) for name in files() for folder in Path(name).parents}
    return frozenset(f"/{path}" for path in (*files(), *folders))


def missing_files(page: Page) -> list[str]:
    """Names of files, in prose and in code, that no file of ours has; and paths below a folder."""
    texts = [LINK.sub("]", page.prose), *page.code()]
    text = "\n".join(re.sub(r"https?://\S+", "", each) for each in texts)
    found = [path for line in texts[1:] for path in FOLDER.findall(line) if not exists(path)]
    names = {name.rstrip(".") for name in FILE.findall(text)}
    return found + sorted(name for name in names - NOT_OUR_FILES if not exists(name))


def exists(path: str) -> bool:
    """Whether a file of ours ends so, or commands make it below a folder `out`."""
    end = re.compile(re.escape(f"/{path}").replace(r"\*", ".*") + "$")
    return "/out" in path or any(end.search(each) for each in paths_of_ours())


def wrong_python(page: Page) -> list[str]:
    """Blocks of Python that do not compile, or that import or catch what lstmserve has not."""
    found = []
    for language, block in FENCE.findall(page.text):
        if language != "python":
            continue
        try:
            tree = ast.parse(block)
        except SyntaxError as error:
            found.append(str(error))
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module == "lstmserve":
                found += [name.name for name in node.names if not hasattr(lstmserve, name.name)]
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "errors":
                found += [] if hasattr(errors, node.attr) else [f"errors.{node.attr}"]
    return found
