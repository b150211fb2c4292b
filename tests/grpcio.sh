#!/bin/sh
# Runs the tests of the transport on the oldest supported grpcio and on the newest, each in an
# environment that has that grpcio and finds everything else in .venv. It is not a part of
# `make test`, because tomorrow's newest release must not break an unrelated change. It leaves out
# the sync client's generator, which needs the development environment's ruff beside its Python.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
bounds=$(sed -n 's/^ *"grpcio\(>=.*\)",$/\1/p' pyproject.toml)
oldest=$(echo "$bounds" | sed 's/>=\([^,]*\),.*/==\1/')
folder='import site; print(site.getsitepackages()[0])'
code=0
for wanted in "$oldest" "$bounds"; do
    venv=.venv/grpcio
    .venv/bin/python -m venv --clear --without-pip "$venv"
    .venv/bin/python -m pip --python "$venv/bin/python" install --quiet --disable-pip-version-check \
        --no-deps "grpcio$wanted"
    rest=$(.venv/bin/python -c "$folder")
    echo "import site; site.addsitedir('$rest')" >"$("$venv/bin/python" -c "$folder")/rest.pth"
    "$venv/bin/python" -c 'import grpc; print("grpcio", grpc.__version__)'
    "$venv/bin/python" -m pytest -q tests/test_traps.py tests/test_transport.py tests/test_peers.py tests/test_server.py \
        tests/test_streams.py tests/test_stream_order.py tests/test_channel_arguments.py \
        tests/test_flood_guard.py tests/test_client*.py tests/test_wire_*.py \
        tests/test_pending_bytes.py \
        --deselect tests/test_client_sync.py::test_sync_client_is_generated "$@" || code=1
done
exit $code
