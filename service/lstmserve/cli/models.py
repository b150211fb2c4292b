"""Owns `lstmserve models`. Prints, decides nothing."""

from __future__ import annotations

import click

from lstmserve.cli import options


@click.command()
@options.target
def models(target: options.Target) -> None:
    """List every served version of every model."""
    header = ("MODEL", "VERSION", "DEVICE", "INPUT", "OUTPUT", "LSTM", "LENGTH-MAX", "FINGERPRINT")
    with options.connect(target) as client:
        options.table(
            header,
            [
                (
                    m.name,
                    m.version,
                    m.device,
                    f"token<{m.num_embeddings}" if m.num_embeddings else m.input_size,
                    m.output_size,
                    f"{m.num_layers}x{m.hidden_size}" + ("x2" if m.bidirectional else ""),
                    m.length_max,
                    m.fingerprint[:12],
                )
                for m in client.models()
            ],
        )
