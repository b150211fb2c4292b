#!/bin/sh
# Replaces the servers of docker-compose.scale.yml one after another, so that no call fails: for
# another image, other settings, or new models. docs/OPERATIONS.md has a run of it.
#
#   LSTMSERVE_IMAGE=lstmserve:0.1.1 deploy/roll.sh
#
# Each server gets SIGTERM and its whole grace: it says NOT_SERVING and serves on while Envoy sends
# its sessions elsewhere, stores them, and ends. Then a server with compose's current image and
# settings takes its place. The next one follows when this one is healthy and Envoy calls it. If
# that does not happen the script stops, and the other servers serve on as they are.
set -eu
cd "$(dirname "$0")/.."
export COMPOSE_FILE="${COMPOSE_FILE:-docker-compose.yml:docker-compose.scale.yml}"
wait_s=${ROLL_WAIT_S:-120} # for a new server to be healthy, and then for Envoy to call it

say() { echo "$(date +%T) $*"; }
fail() { echo "roll: $*" >&2; exit 1; }
inspect() { docker inspect --format "$1" "$2"; }

servers() { # the ids of the service's containers, without those of `docker compose run`
    for id in $(docker compose ps --all --quiet lstmserve); do
        [ "$(inspect '{{index .Config.Labels "com.docker.compose.oneoff"}}' "$id")" = True ] || echo "$id"
    done
}

health() { # healthy, unhealthy or starting; or why it does not run
    inspect '{{if eq .State.Status "running"}}{{.State.Health.Status}}{{else}}{{.State.Status}}{{end}}' "$1"
}

states() { # a line per server: its health and its id
    for id in $(servers); do echo "$(health "$id") $id"; done
}

called() { # the number of servers that Envoy sends calls to
    docker compose exec -T envoy bash -c 'exec 3<>/dev/tcp/127.0.0.1/9901 && printf "GET /stats?filter=membership_healthy HTTP/1.1\r\nHost: envoy\r\nConnection: close\r\n\r\n" >&3 && cat <&3' |
        sed -n 's/.*cluster\.lstmserve\.membership_healthy: \([0-9]*\).*/\1/p'
}

await() { # seconds, then a command that succeeds in the end
    left=$1 && shift
    until "$@"; do
        [ "$left" -gt 0 ] || return 1
        left=$((left - 1))
        sleep 1
    done
}

is_healthy() { [ "$(health "$1")" = healthy ]; }
are_settled() { ! states | grep -q '^starting '; }
are_called() { # all healthy servers
    seen=$(called)
    [ "${seen:-0}" -ge "$(states | grep -c '^healthy ')" ]
}

replace() { # the server with this id
    was=$(health "$1")
    old=$(inspect '{{.Config.Image}}' "$1")
    name=$(inspect '{{.Name}}' "$1") && name=${name#/}
    rest=$(servers | grep -vxF "$1" || true)
    say "$name ($old, $was) leaves"
    docker stop "$1" >/dev/null
    code=$(inspect '{{.State.ExitCode}}' "$1")
    [ "$code" = 0 ] || docker logs --tail 5 "$1"
    docker rm "$1" >/dev/null
    docker compose --progress quiet up --detach --no-build --no-recreate --scale "lstmserve=$count" lstmserve
    new=$(servers | grep -vxF "$rest")
    fresh=$(inspect '{{.Name}}' "$new") && fresh=${fresh#/}
    back="undo the change and run this again"
    [ "$was" != healthy ] || [ "$old" = "$image" ] || back="LSTMSERVE_IMAGE=$old deploy/roll.sh"
    await "$wait_s" is_healthy "$new" ||
        fail "$fresh ($image) is $(health "$new") after $wait_s s; the other servers serve on. Look: docker logs $fresh. Back: $back"
    await "$wait_s" are_called ||
        fail "$fresh is healthy, but Envoy does not call all healthy servers after $wait_s s. Look: docker compose logs envoy"
    say "$fresh ($image) serves"
    [ "$was" != healthy ] || [ "$code" = 0 ] ||
        fail "$name ended with $code, not 0: 1 means that the store did not take all its sessions, 137 that stop_grace_period is shorter than its drain"
}

image=$(docker compose config lstmserve | awk '/^  [a-z]/ {service = $1} service == "lstmserve:" && $1 == "image:" {print $2}')
docker image inspect "$image" >/dev/null 2>&1 || docker pull "$image" ||
    fail "there is no image $image; nothing was changed. Build it (docker compose build lstmserve), or set LSTMSERVE_IMAGE"
count=$(servers | grep -c . || true)
[ "$count" -ge 2 ] ||
    fail "needs two servers of docker-compose.scale.yml or more, found $count; nothing was changed"
await "$wait_s" are_settled || fail "a server is still starting after $wait_s s; nothing was changed"
await "$wait_s" are_called || fail "Envoy does not call all healthy servers; nothing was changed"
trap 'echo "roll: interrupted; a server may be missing. Next: docker compose up -d --no-recreate --scale lstmserve=$count lstmserve, then this script again" >&2; exit 130' INT TERM

say "$count servers become $image"
found=$(states)
for id in $(echo "$found" | sed -n '/^healthy /!s/.* //p') $(echo "$found" | sed -n 's/^healthy //p'); do
    replace "$id" # those that are not healthy come first
done
say "done: $count servers of $image"
