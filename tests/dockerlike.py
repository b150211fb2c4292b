"""A stand-in for the docker command in tests of scripts: a few servers in a JSON file.

It runs as `docker ...`, and knows only what deploy/roll.sh asks. After `start_looks` looks at its
health a new server is what `becomes` says of its image, and after `envoy_looks` more looks Envoy
calls it if it is healthy. `events` has every change, with the servers that Envoy called before.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

State = dict[str, Any]


def new_state(count: int, **changes: Any) -> State:
    """The state of `count` healthy servers with the image `old`, which Envoy calls."""
    old = {"image": "old", "health": "healthy", "looks": 0, "unseen": 0, "exit": 0}
    servers = {f"id-{i}": dict(old) for i in range(1, count + 1)}
    state: State = {"servers": servers, "next": count + 1, "events": [], "images": ["old", "new"]}
    return {**state, "becomes": {}, "start_looks": 2, "envoy_looks": 2, **changes}


def called(state: State) -> list[str]:
    """The servers that Envoy sends calls to."""
    healthy = {k: v for k, v in state["servers"].items() if v["health"] == "healthy"}
    return [key for key, server in healthy.items() if server["unseen"] <= 0]


def inspect(state: State, form: str, key: str) -> str:
    """One field of one server. Each look at a starting server's health brings it further."""
    server = state["servers"][key]
    if "Health" in form:
        if server["health"] == "starting":
            server["looks"] -= 1
            if server["looks"] <= 0:
                server["health"] = state["becomes"].get(server["image"], "healthy")
        return str(server["health"])
    fields = {"Image": server["image"], "ExitCode": server["exit"], "oneoff": "False"}
    return next((str(value) for part, value in fields.items() if part in form), f"/name-{key}")


def compose(state: State, arguments: list[str]) -> str:
    """The subcommands of `docker compose`."""
    match arguments:
        case ["ps", *_]:
            return "\n".join(state["servers"])
        case ["config", "lstmserve"]:
            image = os.environ.get("LSTMSERVE_IMAGE", "old")
            return f"services:\n  lstmserve:\n    image: {image}\n  valkey:\n    image: other"
        case ["exec", "-T", "envoy", *_]:
            seen = len(called(state))
            for server in state["servers"].values():
                server["unseen"] -= server["health"] == "healthy"
            return f"1a\r\ncluster.lstmserve.membership_healthy: {seen}\r\n"
        case ["--progress", "quiet", "up", *flags]:
            assert {"--no-recreate", "--no-build", "--detach"} <= set(flags)
            wanted = int(flags[flags.index("--scale") + 1].removeprefix("lstmserve="))
            while len(state["servers"]) < wanted:
                start(state)
            return ""
    raise AssertionError(arguments)


def start(state: State) -> None:
    """Starts a server with the image that compose names."""
    key, state["next"] = f"id-{state['next']}", state["next"] + 1
    state["events"].append(["up", key, called(state)])
    image = os.environ.get("LSTMSERVE_IMAGE", "old")
    fresh = {"image": image, "health": "starting", "exit": 0}
    looks = {"looks": state["start_looks"], "unseen": state["envoy_looks"]}
    state["servers"][key] = {**fresh, **looks}


def run(state: State, arguments: list[str]) -> str:
    """The output of the command. Exits with 1 if the image does not exist."""
    match arguments:
        case ["compose", *rest]:
            return compose(state, rest)
        case ["inspect", "--format", form, key]:
            return inspect(state, form, key)
        case ["image", "inspect", image] | ["pull", image]:
            if image not in state["images"]:
                sys.exit(1)
            return ""
        case ["stop", key]:
            state["events"].append(["stop", key, called(state)])
            state["servers"][key]["health"] = "exited"
            return ""
        case ["rm", key]:
            del state["servers"][key]
            return ""
        case ["logs", "--tail", "5", key]:
            return f"the end of {key}"
    raise AssertionError(arguments)


if __name__ == "__main__":
    path = Path(os.environ["DOCKERLIKE"])
    found = json.loads(path.read_text())
    printed = run(found, sys.argv[1:])
    path.write_text(json.dumps(found))
    print(printed)
