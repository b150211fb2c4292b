"""Generates the stubs in service/lstmserve from proto/, or checks proto/ with buf.

The check also compares proto/ with baseline.binpb, the contract as the last release had it. A
client of that release must still be understood, so nothing may be removed, renamed or renumbered.

The published proto has `repeated float`; our own server and client use a twin in which every such
field is `bytes`. A packed `repeated float` and the `bytes` of its little-endian float32 values are
the same bytes on the wire, and parsing the latter costs one copy instead of one Python float each.
The twin also has a field `was_N` of `repeated fixed32` for a reserved number N: the server must
refuse the floats that a client of the first edition sends there, packed or not, and would not see
them in a field that it does not know.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from importlib import resources
from pathlib import Path

from google.rpc import status_pb2

PROTO = Path(__file__).resolve().parent
SERVICE = PROTO.parent / "service"
BASELINE = PROTO / "baseline.binpb"
PUBLIC = ["lstmserve/v1/lstm.proto", "lstmserve/v1/error_reason.proto"]
TWIN = "lstmserve/wire/v1/lstm.proto"
# The protocol fixes the names and numbers of this file, so buf does not lint it. It needs no twin,
# because its clients send raw contents, which are `bytes` already.
KSERVE = "lstmserve/kserve/v2/inference.proto"


def twin(public: str) -> str:
    """The text of the bytes twin of lstm.proto's text: same field numbers, no service."""
    text = re.sub(r"^service .*?^}\n", "", public, flags=re.DOTALL | re.MULTILINE)
    text = text.replace("package lstmserve.v1;", "package lstmserve.wire.v1;")
    text = re.sub(r"^option .*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"\breserved ([\d, ]+);", _was, text)
    return text.replace("repeated float ", "bytes ")


def _was(reserved: re.Match[str]) -> str:
    return " ".join(f"repeated fixed32 was_{n} = {n};" for n in re.findall(r"\d+", reserved[1]))


def protoc(includes: list[Path], arguments: list[str]) -> None:
    """Runs grpcio-tools' protoc. Raises CalledProcessError when it refuses a file."""
    well_known = Path(str(resources.files("grpc_tools") / "_proto"))
    common = Path(status_pb2.__file__).parents[2]  # googleapis-common-protos ships its sources
    paths = [f"-I{path}" for path in [*includes, well_known, common]]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *paths, *arguments], check=True)


def generate(proto: Path, out: Path) -> None:
    """Writes the public stubs and the twin's stubs below `out`."""
    protoc(
        [proto],
        [f"--python_out={out}", f"--pyi_out={out}", f"--grpc_python_out={out}", PUBLIC[0]],
    )
    protoc([proto], [f"--python_out={out}", f"--pyi_out={out}", PUBLIC[1], KSERVE])
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, TWIN)
        source.parent.mkdir(parents=True)
        source.write_text(twin((proto / PUBLIC[0]).read_text()))
        protoc([Path(scratch)], [f"--python_out={out}", f"--pyi_out={out}", TWIN])


def build_image(proto: Path, image: Path, *options: str) -> None:
    """Writes the descriptors of the public files, which buf reads: its registry is not needed."""
    protoc([proto], ["--include_imports", *options, f"--descriptor_set_out={image}", *PUBLIC])


def check(proto: Path) -> None:
    """Lints the files in `proto`, and compares them with the baseline.

    Raises CalledProcessError for what buf finds.
    """
    buf, config = Path(sys.executable).with_name("buf"), (PROTO / "buf.yaml").read_text()
    with tempfile.TemporaryDirectory() as scratch:
        image = Path(scratch, "image.binpb")
        build_image(proto, image, "--include_source_info")
        subprocess.run([buf, "lint", image, "--config", config], check=True)
        against = ["--against", BASELINE, "--against-config", config]
        subprocess.run([buf, "breaking", image, "--config", config, *against], check=True)


def main() -> None:
    """Entry point of `make proto` and of the proto part of `make check`."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--lint", action="store_true", help="check the files instead of generating")
    what.add_argument(
        "--baseline",
        action="store_true",
        help=f"at a release: write {BASELINE.name}, which no later change may break",
    )
    parser.add_argument("--proto", type=Path, default=PROTO, help="where the files are")
    parser.add_argument("--out", type=Path, default=SERVICE, help="where the stubs go")
    arguments = parser.parse_args()
    try:
        if arguments.lint:
            check(arguments.proto)
        elif arguments.baseline:
            build_image(arguments.proto, BASELINE)
        else:
            generate(arguments.proto, arguments.out)
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)


if __name__ == "__main__":
    main()
