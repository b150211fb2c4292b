#!/bin/sh
# Gets what tests need of Debian: Prometheus, unpacked into .venv/prometheus and not installed, so
# that no service starts; recordings of speech, unpacked too; and, for root, a headless Chromium,
# libfaketime and systemd-analyze. Does nothing when they are there.
# What cannot be had is said here; its tests skip then, and fail in CI.
set -u
root=$(cd "$(dirname "$0")/.." && pwd)

get() { # once more with fresh lists: a new container's are empty
    "$@" >/dev/null 2>&1 || { [ "$(id -u)" = 0 ] && apt-get -qq update && "$@" >/dev/null; }
}

unpack_prometheus() {
    folder=$(mktemp -d) || return
    (cd "$folder" && get apt-get -qq download prometheus && dpkg -x prometheus_*.deb files) &&
        mkdir -p "$root/.venv/prometheus" &&
        mv "$folder"/files/usr/bin/* "$root/.venv/prometheus/"
    code=$?
    rm -rf "$folder"
    return $code
}

install() {
    [ "$(id -u)" = 0 ] && get env DEBIAN_FRONTEND=noninteractive apt-get -qq -y \
        -o DPkg::Lock::Timeout=300 install --no-install-recommends "$@"
}

[ -x "$root/.venv/prometheus/promtool" ] || unpack_prometheus ||
    echo "no Prometheus: neither apt-get nor its package; tests of dashboards and alerts will skip"
[ -d "$root/examples/voice/out/speech" ] || get sh "$root/examples/voice/speech.sh" ||
    echo "no recordings of speech: no apt-get, or not its package; the test of examples/voice will skip"
command -v chromium-headless-shell >/dev/null || command -v chromium >/dev/null ||
    install chromium-headless-shell fonts-dejavu-core ||
    echo "no Chromium, and not root or no apt-get; tests of the status page will skip"

[ -n "$(find /usr/lib -name libfaketime.so.1 2>/dev/null)" ] || install libfaketime ||
    echo "no libfaketime, and not root or no apt-get; tests of clocks that jump will skip"

command -v systemd-analyze >/dev/null || install systemd ||
    echo "no systemd-analyze, and not root or no apt-get; the test of the systemd unit will skip"
