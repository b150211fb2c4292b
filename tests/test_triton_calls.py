"""What stock Triton clients ask besides sequences: discovery, counts, security, error texts."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from grpc_health.v1 import health_pb2

from certificates import Authority
from lstmserve import AsyncClient
from modelmaking import make_model
from scenarios import check, folder, inputs, rows, sequence, wanted
from serving import Serving
from tenancy import tenancy, write_tokens
from test_tls import secure
from tritonserving import MODES, STREAMS, Triton, request
from wire import SPECS, serving

__all__ = ["folder"]  # a fixture
SERVICE = "inference.GRPCInferenceService"


async def test_discovery(triton: Triton, folder: Path) -> None:
    """Server, models, metadata, configuration and index, as clients of Triton look for them."""
    async with serving(folder, session_ttl_s=60) as wire:
        model = {"model_name": "m"}
        said = await triton.tell(
            wire.target,
            "is_server_live",
            "is_server_ready",
            ("is_model_ready", model),
            ("is_model_ready", {**model, "model_version": "1"}),
            ("is_model_ready", {**model, "model_version": "2"}),
            ("is_model_ready", {"model_name": "n"}),
            "get_server_metadata",
            ("get_model_metadata", model),
            ("get_model_config", model),
            ("get_model_metadata", {"model_name": "letters"}),
            ("get_model_config", {"model_name": "both"}),
            "get_model_repository_index",
            ("get_model_config", {"model_name": "n"}),
        )
        *is_so, server, metadata, config, letters, both, index, unknown = said
        assert is_so == [True, True, True, True, False, False]
        assert server["name"] == "lstmserve"
        extensions = {"sequence", "sequence(string_id)", "statistics", "model_configuration"}
        assert set(server["extensions"]) == extensions
        assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": ["-1", "3"]}]
        assert metadata["outputs"] == [{"name": "y", "datatype": "FP32", "shape": ["-1", "2"]}]
        assert metadata["versions"] == ["1"]
        assert letters["inputs"] == [{"name": "tokens", "datatype": "INT64", "shape": ["-1", "-1"]}]
        batching = config["config"]["sequence_batching"]
        assert batching["max_sequence_idle_microseconds"] == "60000000"
        assert batching["oldest"]["max_candidate_sequences"] == wire.engine.models[2].sessions_max
        states = [(s["input_name"], s["output_name"], s["dims"]) for s in batching["state"]]
        assert states == [("h0", "hn", ["2", "8"]), ("c0", "cn", ["2", "8"])]
        assert "sequence_batching" not in both["config"]
        assert [(m["name"], m["state"]) for m in index["models"]] == [
            ("both", "READY"),
            ("letters", "READY"),
            ("m", "READY"),
        ]
        assert unknown.status == "StatusCode.NOT_FOUND"


async def test_what_is_not_served_says_so(triton: Triton, folder: Path) -> None:
    """Calls of the protocol that are not served are UNIMPLEMENTED, in one sentence of ours."""
    async with serving(folder) as wire:
        refused = await triton.tell(
            wire.target,
            ("load_model", {"model_name": "m"}),
            ("unload_model", {"model_name": "m"}),
            "get_system_shared_memory_status",
            "get_cuda_shared_memory_status",
            "get_trace_settings",
            "get_log_settings",
        )
        for each in refused:
            assert each.status == "StatusCode.UNIMPLEMENTED"
            assert "is not served by lstmserve: " in each.error
            assert "Method not found" not in each.error
        handled = wire.metrics.rpc("TraceSetting", "unary", SERVICE).handled
        assert handled["Unimplemented"] == 1


async def test_statistics_are_true_counts(triton: Triton, folder: Path) -> None:
    """inference_count / execution_count is the mean batch, requests are counted by how they end,
    and steps of the native dialect count, too."""
    async with serving(folder, is_running=False) as wire:
        starts = [request(rows(1, n), n, start=True) for n in range(1, 7)]
        running = asyncio.create_task(triton.run("stream", wire.target, starts))
        await wire.until(lambda: wire.engine.batch_loop.pending_steps == 6)
        wire.run()
        await running
        await triton.run(
            "one_by_one", wire.target, [request(rows(1, 0), 1), request(rows(1, 0), 9)]
        )
        await (await wire.good()).step()
        (said,) = await triton.tell(
            wire.target, ("get_inference_statistics", {"model_name": "m", "model_version": "1"})
        )
        (stats,) = said["model_stats"]
        batch = wire.metrics.model("m", 1).batch_size.read()
        assert (stats["inference_count"], stats["execution_count"]) == ("8", "3")
        assert (batch[0][-1][1], batch[1]) == (3, 8)
        assert {b["batch_size"]: b["compute_infer"]["count"] for b in stats["batch_stats"]} == {
            "1": "2",
            "6": "1",
        }
        ends = stats["inference_stats"]
        assert (ends["success"]["count"], ends["fail"]["count"]) == ("8", "1")
        assert int(ends["success"]["ns"]) > int(ends["queue"]["ns"]) > 0
        (every,) = await triton.tell(wire.target, "get_inference_statistics")
        assert [each["name"] for each in every["model_stats"]] == ["both", "letters", "m"]
        answered = wire.metrics.model("m", 1).answered
        assert answered["ModelStreamInfer", "OK"] == 6
        assert answered["ModelInfer", "OK"] == answered["ModelInfer", "NotFound"] == 1


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
@pytest.mark.parametrize("mode", MODES)
async def test_compression(triton: Triton, folder: Path, mode: str, algorithm: str) -> None:
    """Compressed requests give the same bits."""
    xs = inputs(3, 1)
    async with serving(folder) as wire:
        call = {"compression_algorithm": algorithm}
        check(wire, xs, await triton.run(mode, wire.target, sequence(xs, 1), **call))


async def test_tls(triton: Triton, models: Path, tmp_path: Path) -> None:
    """The stock client's TLS options reach a server with a certificate; plain text does not."""
    ours = Authority(tmp_path)
    x = rows(1, 0)
    async with secure(models, ours.sign("server")) as running:
        url, one = running.ports.listen, [request(x, 1, start=True, end=True, model="tiny")]
        for mode in ("one_by_one", "asyncio_stream"):
            options = {"ssl": True, "root_certificates": str(ours.path)}
            (answer,) = await triton.run(mode, url, one, options=options)
            assert answer.y.shape == (1, 2)
        (answer,) = await triton.run("one_by_one", url, one)
        assert answer.status == "StatusCode.UNAVAILABLE"


@pytest.mark.parametrize("mode", ["one_by_one", "asyncio", "stream", "asyncio_stream"])
async def test_tokens_travel_in_headers(
    triton: Triton, models: Path, tmp_path: Path, mode: str
) -> None:
    """A bearer token in the client's headers selects a tenant, whose ids are its own, and without a
    token only the two probes are answered."""
    tokens = write_tokens(tmp_path / "tokens", acme="sessions_max=1", other="")
    async with tenancy(models, tmp_path / "tokens") as running:
        url, start = running.ports.listen, request(rows(1, 0), 1, start=True, model="tiny")
        goes_on = request(rows(1, 0), 1, model="tiny")
        more = request(rows(1, 0), 2, start=True, model="tiny")
        headers = {name: {"authorization": f"Bearer {token}"} for name, token in tokens.items()}
        (answer,) = await triton.refused(mode, url, [start])
        assert answer.status == "StatusCode.UNAUTHENTICATED"
        (answer,) = await triton.run(mode, url, [start], headers=headers["acme"])
        assert answer.y.shape == (1, 2)
        (answer,) = await triton.run(mode, url, [more], headers=headers["acme"])
        assert "your limit is 1 sessions" in str(answer.error)
        (answer,) = await triton.run(mode, url, [goes_on], headers=headers["other"])
        assert "must specify the START flag" in str(answer.error)
        (answer,) = await triton.run(mode, url, [goes_on], headers=headers["acme"])
        assert answer.parameters["step"] == 2
        if mode == "one_by_one":
            probes = await triton.tell(url, "is_server_live", "is_server_ready", "get_log_settings")
            assert probes[:2] == [True, True]
            (named,) = await triton.tell(url, "get_server_metadata")
            assert named.status == "StatusCode.UNAUTHENTICATED"


async def test_stock_and_native_client_give_equal_bits(triton: Triton, server: Serving) -> None:
    """They do on one model, and beside each other in one process with protobuf 6."""
    x = np.random.default_rng(1).standard_normal((40, 3), np.float32)
    said = await triton.beside(server.target, x)
    assert said["protobuf"].startswith("6.")
    assert said["theirs"] == said["ours"]
    async with AsyncClient(server.target) as client, client.session("tiny") as session:
        y = await session.step(x)
    assert np.array_equal(np.array(said["theirs"], np.float32), y)


@pytest.mark.parametrize("mode", STREAMS)
async def test_errors_on_a_stream(triton: Triton, folder: Path, mode: str) -> None:
    """An error is in band, its text begins with the ids of request and sequence, and the stream
    goes on, unless the client asks that the first error end it with its status."""
    xs = inputs(3, 1)
    requests = sequence(xs, "s")
    requests[1:1] = [
        request(xs[0], 77, request_id="r7"),
        request(xs[0], "s", model="n", request_id="r8"),
        request(np.ones(3, np.float32)),
    ]
    async with serving(folder) as wire:
        answers = await triton.run(mode, wire.target, requests)
        check(wire, xs, [answers[0], *answers[4:]])
        texts = [str(each.error) for each in answers[1:4]]
        assert [each.status for each in answers[1:4]] == [None] * 3
        assert texts[0].startswith("[request id: r7, sequence id: 77] inference request for")
        assert texts[1].startswith("[request id: r8, sequence id: s] no model 'n'")
        assert texts[2].startswith("input 'x' has shape [3]")
        ended = await triton.refused(
            mode, wire.target, requests[:3], headers={"triton_grpc_error": "true"}
        )
        assert len(ended) == 2
        check(wire, xs[:1], ended[:1])
        assert ended[1].status == "StatusCode.NOT_FOUND"
        assert str(ended[1].error).startswith("[request id: r7, sequence id: 77] inference request")
        rpc = wire.metrics.rpc("ModelStreamInfer", "bidi_stream", SERVICE)
        assert rpc.handled["OK"] == 1
        assert rpc.handled["NotFound"] >= 1
        assert answers[0].parameters["triton_final_response"] is True


async def test_which_sequence_is_told(triton: Triton, tmp_path: Path) -> None:
    """The ids of another model, version and incarnation get different errors, and change nothing,
    and a sequence stays on its version."""
    for seed, version in enumerate((1, 2)):
        make_model(tmp_path, SPECS["m"], seed, name="m", version=version)
    xs = inputs(3, 1)
    async with serving(tmp_path) as wire:
        requests = sequence(xs, 5, model_version="1")
        (first,) = await triton.run("one_by_one", wire.target, requests[:1])
        incarnation = first.parameters["incarnation"]
        assert first.model == ("m", "1")
        other = {"parameters": {"incarnation": incarnation + 1}}
        wrong = [
            request(rows(1, 0, "letters"), 5, model="letters"),
            request(xs[1], 5, model_version="2"),
            request(xs[1], 5, **other),
            request(xs[1], 6, **other),
        ]
        said = await triton.run("one_by_one", wire.target, wrong)
        texts = (
            "sequence 5 is one of model 'm'; on model 'letters' it was never started",
            "the sequence runs on version 1 of model 'm'",
            "sequence 5 of model 'm' was started again",
            "sequence 6 of model 'm' is lost",
        )
        for answer, text in zip(said, texts, strict=True):
            assert str(answer.error).startswith(text)
        assert [str(a.status) for a in said[:3]] == ["StatusCode.FAILED_PRECONDITION"] * 3
        mine = {"parameters": {"incarnation": incarnation}}
        rest = [request(xs[1], 5, **mine), request(xs[2], 5, end=True, model_version="1")]
        check(wire, xs, [first, *await triton.run("one_by_one", wire.target, rest)])
        (newest,) = await triton.run("stream", wire.target, sequence(xs, 5)[:1])
        assert newest.model == ("m", "2")


async def test_a_numbered_step_counts_once(triton: Triton, folder: Path) -> None:
    """Repeats of a `step` get the same bits, gaps, other inputs and steps of an ended sequence are
    refused, each in its own words, and a repeated START gets the same bits."""
    xs = inputs(3, 1)

    def numbered(i: int, **others: object) -> dict[str, object]:
        flags = {"start": i == 0, "end": i == 2}
        return request(xs[i], 5, **flags, **{"parameters": {"step": i + 1}, **others})

    async with serving(folder) as wire:
        sent = [numbered(0), numbered(0), numbered(1), numbered(1), numbered(2), numbered(2)]
        sent[3:3] = [
            numbered(1, parameters={"step": 4}),
            request(xs[0], 5, parameters={"step": 2}),
            request(xs[0], 5, parameters={"step": 0}),
            request(xs[0], 5, start=True, parameters={"step": 2}),
        ]
        said = await triton.run("stream", wire.target, sent)
        gap, other, zero, late_start = (str(each.error) for each in said[3:7])
        assert "step 4 came before step 3" in gap
        assert "step 2 was sent before with another input" in other
        assert "step is 0" in zero
        assert "a sequence starts with step 1" in late_start
        good = wanted(wire, xs)
        for answer, i in ((said[0], 0), (said[1], 0), (said[2], 1), (said[7], 1), (said[8], 2)):
            assert np.array_equal(answer.y, good[i])
            assert answer.parameters["step"] == i + 1
        assert said[7].parameters["replayed"] is True
        assert "replayed" not in said[2].parameters
        assert "step 3 was applied, the sequence has ended with step 3" in str(said[9].error)
        assert wire.metrics.model("m", 1).replays == 1


async def test_end_without_inputs(triton: Triton, folder: Path) -> None:
    """END alone ends the sequence after its steps, returns its last step, and may be sent twice."""
    xs = inputs(2, 1)
    async with serving(folder) as wire:
        alone = request(None, 5, end=True)
        requests = [*sequence(xs, 5, has_end=False), alone, alone, request(None, 6, end=True)]
        *steps, end, again, never = await triton.run("stream", wire.target, requests)
        check(wire, xs, steps)
        assert (end.parameters["step"], again.parameters["step"]) == (2, 2)
        assert "must specify the START flag" in str(never.error)
        assert len(wire.engine.table) == 0


async def test_health_names_the_dialect(server: Serving) -> None:
    """grpc.health.v1 knows the dialect's service, and reflection shows it."""
    import grpc
    from grpc_health.v1 import health_pb2_grpc
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    async with grpc.aio.insecure_channel(server.target) as channel:
        check_health = health_pb2_grpc.HealthStub(channel).Check
        status = (await check_health(health_pb2.HealthCheckRequest(service=SERVICE))).status
        assert status == health_pb2.HealthCheckResponse.SERVING
        info = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
        call = info(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        names = [s.name async for reply in call for s in reply.list_services_response.service]
        assert SERVICE in names
