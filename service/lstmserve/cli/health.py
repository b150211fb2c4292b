"""Owns `lstmserve health`: one call of the standard gRPC health service."""

from __future__ import annotations

import click
import grpc
from google.protobuf.wrappers_pb2 import Int32Value, StringValue

from lstmserve.cli import options
from lstmserve.client.calls import Address
from lstmserve.client.status import from_rpc

STATES = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")
TIMEOUT_S = 10.0


@click.command()
@options.target
@options.flag("--service", default="", metavar="NAME", help="One service; else the whole server.")
def health(target: options.Target, service: str) -> None:
    """Print SERVING and exit 0, or exit 1."""
    state = check(target, service)
    if state != "SERVING":
        raise click.ClickException(state)
    click.echo(state)


def check(target: options.Target, service: str) -> str:
    """The state of `service`, "" for the server. Raises ClickException when nobody answers.

    It asks the server itself, not a proxy: an image's health check must not depend on one.

    HealthCheckRequest {string service = 1} and its reply {enum status = 1} have the wire form of
    StringValue and Int32Value, which saves the base install a package of stubs.
    """
    address = Address(target.address, target.token, target.tls)
    with address.open(grpc, is_direct=True) as channel:
        stub = channel.unary_unary(
            "/grpc.health.v1.Health/Check", StringValue.SerializeToString, Int32Value.FromString
        )
        try:
            status = stub(StringValue(value=service), timeout=TIMEOUT_S).value
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                raise click.ClickException(f"no service {service!r} here (NOT_FOUND)") from error
            raise click.ClickException(options.told(from_rpc(error))) from error
    return STATES[status] if 0 <= status < len(STATES) else f"state {status}"
