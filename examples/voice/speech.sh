#!/bin/sh
# Gets ten recordings of speech from Debian's package pocketsphinx-testdata into
# examples/voice/out/speech. It needs apt-get and dpkg, and no root; it installs nothing.
set -eu
out=$(cd "$(dirname "$0")" && pwd)/out
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
apt-get -qq -o APT::Sandbox::User=root download pocketsphinx-testdata
dpkg -x pocketsphinx-testdata_*.deb files
rm -rf "$out/speech" && mkdir -p "$out/speech"
data=files/usr/share/pocketsphinx/test/data
mv "$data"/cards/*.wav "$data"/librivox/*.wav files/usr/share/doc/pocketsphinx-testdata/copyright \
    "$out/speech/"
