"""Generates the stubs in service/lstmserve from proto/, or lints proto/ with buf.

The published proto has `repeated float`; our own server and client use a twin in which every such
field is `bytes`. A packed `repeated float` and the `bytes` of its little-endian float32 values are
the same bytes on the wire, and parsing the latter costs one copy instead of one Python float each.
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
    return text.replace("repeated float ", "bytes ")


def protoc(includes: list[Path], arguments: list[str]) -> None:
    """Runs grpcio-tools' protoc. Raises CalledProcessError when it refuses a file."""
    well_known = Path(str(resources.files("grpc_tools") / "_proto"))
    common = Path(status_pb2.__file__).parents[2]  # googleapis-common-protos ships its sources
    paths = [f"-I{path}" for path in [*includes, well_known, common]]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *paths, *arguments], check=True)


def generate(out: Path) -> None:
    """Writes the public stubs and the twin's stubs below `out`."""
    protoc(
        [PROTO],
        [f"--python_out={out}", f"--pyi_out={out}", f"--grpc_python_out={out}", PUBLIC[0]],
    )
    protoc([PROTO], [f"--python_out={out}", f"--pyi_out={out}", PUBLIC[1], KSERVE])
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, TWIN)
        source.parent.mkdir(parents=True)
        source.write_text(twin((PROTO / PUBLIC[0]).read_text()))
        protoc([Path(scratch)], [f"--python_out={out}", f"--pyi_out={out}", TWIN])


def lint() -> None:
    """Lints with buf, on the image protoc builds: buf's registry is not needed."""
    with tempfile.TemporaryDirectory() as scratch:
        image = Path(scratch, "image.binpb")
        options = ["--include_imports", "--include_source_info", f"--descriptor_set_out={image}"]
        protoc([PROTO], [*options, *PUBLIC])
        buf = Path(sys.executable).with_name("buf")
        config = (PROTO / "buf.yaml").read_text()
        subprocess.run([buf, "lint", image, "--config", config], check=True)


def main() -> None:
    """Entry point of `make proto` and of the proto part of `make check`."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--lint", action="store_true", help="lint instead of generating")
    parser.add_argument("--out", type=Path, default=SERVICE, help="where the stubs go")
    arguments = parser.parse_args()
    try:
        lint() if arguments.lint else generate(arguments.out)
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)


if __name__ == "__main__":
    main()
