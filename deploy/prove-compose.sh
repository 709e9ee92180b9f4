#!/usr/bin/env bash
# Brings docker-compose.yml up and shows that it does what it says: an event and a callback go through
# the containers, which are healthy, not root, and lose nothing when NATS is made anew.
#
#     deploy/stand-in-images.sh         only on a machine without an image registry
#     deploy/prove-compose.sh           with the binary at target/release/hookbridge, or HOOKBRIDGE
#     deploy/prove-compose.sh --build   builds the binary inside the build image, as `up` does
#
# It has a project, an image tag and ports of its own, and removes its containers and its volume in the
# end. It exits with 1 at the first thing that does not happen.
set -euo pipefail
cd "$(dirname "$0")/.."

binary=${HOOKBRIDGE:-target/release/hookbridge}
image=hookbridge:proof
# No port after the colon: the engine picks free ones, so that nothing here is in anybody's way.
export GATEWAY_BIND=127.0.0.1: NATS_BIND=127.0.0.1:

if docker compose version > /dev/null 2>&1; then
    compose=(docker compose)
else
    compose=(docker-compose)
fi
compose+=(-p hookbridge-proof -f docker-compose.yml -f deploy/compose.proof.yml)

work=$(mktemp -d)
brought_up=
clean_up() {
    status=$?
    if [ -n "$brought_up" ]; then
        if [ $status -ne 0 ]; then "${compose[@]}" logs --no-color --tail 60 || true; fi
        "${compose[@]}" down --volumes --timeout 5 > "$work/down" 2>&1 || cat "$work/down"
    fi
    rm -rf "$work"
}
trap clean_up EXIT

step() { printf '\n== %s\n' "$*"; }
show() { sed 's/^/   /'; }
fail() {
    echo "prove-compose: $*" >&2
    exit 1
}

# Tries the command again and again, for the given number of seconds.
within() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        [ $SECONDS -lt $deadline ] || return 1
        sleep 1
    done
}

container() { "${compose[@]}" ps -q "$1"; }

is_healthy() {
    local id
    id=$(container "$1")
    [ -n "$id" ] && [ "$(docker inspect -f '{{.State.Health.Status}}' "$id")" = healthy ]
}

all_healthy() { is_healthy nats && is_healthy gateway && is_healthy courier; }

in_courier() { "${compose[@]}" exec -T courier hookbridge "$@" < /dev/null; }

# Prints the first message that a stream keeps on a subject, and leaves it in $work/message.
first_of() {
    timeout 30 "${compose[@]}" exec -T courier hookbridge tail "$1" --all --count 1 --json \
        < /dev/null > "$work/message" 2> "$work/errors" || fail "nothing on $1: $(cat "$work/errors")"
    show < "$work/message"
}

# What NATS itself says is in a stream.
stored_in() {
    "${compose[@]}" exec -T nats wget -q -O - 'http://127.0.0.1:8222/jsz?streams=true' |
        python3 -c '
import json, sys
details = json.load(sys.stdin)["account_details"][0]["stream_detail"]
print(next(stream["state"]["messages"] for stream in details if stream["name"] == sys.argv[1]))' "$1"
}

hmac_of() {
    python3 -c '
import hashlib, hmac, pathlib, sys
key = pathlib.Path(sys.argv[1]).read_bytes().rstrip(b"\r\n")
print(hmac.new(key, sys.argv[2].encode(), hashlib.sha256).hexdigest())' "$1" "$2"
}

# Posts a body to a source, leaves status and answer in $work, and prints both.
send() {
    local source=$1 body=$2
    shift 2
    curl -sS -m 20 -o "$work/answer" -w '%{http_code}' -H 'Content-Type: application/json' "$@" \
        --data-binary "$body" "$gateway/hooks/$source" > "$work/status"
    echo "POST /hooks/$source -> $(cat "$work/status") $(cat "$work/answer")" | show
}
post() {
    local expected=$1
    shift
    send "$@"
    [ "$(cat "$work/status")" = "$expected" ] || fail "expected $expected"
}
is_accepted() { send "$@" && [ "$(cat "$work/status")" = 202 ]; }
answer_has() { grep -qF "$1" "$work/answer" || fail "the answer lacks $1"; }

step "Base images"
for name in gcr.io/distroless/cc-debian12:nonroot nats:2.15.1-alpine python:3.13-slim-bookworm; do
    mark=$(docker image inspect -f '{{index .Config.Labels "hookbridge.stand-in"}}' "$name" 2> /dev/null || echo absent)
    case $mark in
        yes) echo "$name: a stand-in" ;;
        absent) echo "$name: not here yet, the engine has to pull it" ;;
        *) echo "$name: the image itself" ;;
    esac
done | show

step "Secrets: written once, kept after"
deploy/make-secrets.sh > /dev/null
before=$(cat deploy/secrets/*)
deploy/make-secrets.sh | show
[ "$before" = "$(cat deploy/secrets/*)" ] || fail "make-secrets.sh changed a secret"

step "The image"
if [ "${1:-}" = --build ]; then
    docker build --tag "$image" .
else
    [ -x "$binary" ] || fail "there is no $binary; build it with \`cargo build --release\` or use --build"
    # The image's last stage with this binary in the place of the build stage's.
    docker build --quiet --target base --tag "$image-base" - < Dockerfile > /dev/null
    mkdir "$work/context"
    cp "$binary" "$work/context/hookbridge"
    docker build --quiet --tag "$image" --file - "$work/context" > /dev/null << DOCKERFILE
FROM $image-base
COPY hookbridge /usr/local/bin/hookbridge
DOCKERFILE
fi
docker image inspect -f '{{.RepoTags}} user {{.Config.User}}, {{.Size}} bytes' "$image" | show

step "Everything comes up and gets healthy"
brought_up=yes
# A run that was killed may have left a volume with events in it.
"${compose[@]}" down --volumes > /dev/null 2>&1
"${compose[@]}" up -d --no-build > "$work/up" 2>&1 || fail "$(cat "$work/up")"
within 60 all_healthy || fail "not healthy after a minute"
"${compose[@]}" ps | show
gateway=http://$("${compose[@]}" port gateway 8080)

step "Neither role is root, and neither can write to its image"
for role in gateway courier; do
    user=$(docker top "$(container "$role")" -o pid,uid | awk 'NR > 1 { print $2 }' | sort -u)
    locked=$(docker inspect -f '{{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}}' "$(container "$role")")
    echo "$role: uid $user, read-only and dropped capabilities: $locked" | show
    [ "$user" = 65532 ] || fail "$role runs as $user"
    [ "$locked" = "true [ALL]" ] || fail "$role is not locked down"
done

step "NATS: version, limit, JetStream on the volume"
"${compose[@]}" exec -T nats wget -q -O - http://127.0.0.1:8222/varz > "$work/varz"
python3 - "$work/varz" << 'PYTHON' | show
import json, sys
varz = json.load(open(sys.argv[1]))
print(varz["version"], "max_payload", varz["max_payload"], "store", varz["jetstream"]["config"]["store_dir"])
assert varz["version"].startswith("2.15."), "not NATS 2.15"
assert varz["max_payload"] == 8 * 1024 * 1024, "max_payload is not 8MB"
assert varz["jetstream"]["config"]["store_dir"] == "/data/jetstream", "JetStream is not on the volume"
PYTHON

step "A signed webhook is stored and seen"
body='{"type":"order.paid","order":42}'
signature=$(hmac_of deploy/secrets/demo "$body")
post 202 demo "$body" -H "X-Signature: sha256=$signature" -H 'X-Delivery-Id: order-42'
answer_has '"duplicate":false'
first_of 'events.>'
grep -qF '"subject":"events.demo.order.paid"' "$work/message" || fail "it has another subject"
post 202 demo "$body" -H "X-Signature: sha256=$signature" -H 'X-Delivery-Id: order-42'
answer_has '"duplicate":true'

push='{"ref":"refs/heads/main"}'
post 202 github "$push" -H "X-Hub-Signature-256: sha256=$(hmac_of deploy/secrets/github "$push")" \
    -H 'X-GitHub-Event: push' -H 'X-GitHub-Delivery: 72d3162e-cc78-11e3-81ab-4c9367dc0958'
echo "EVENTS holds $(stored_in EVENTS) messages" | show
[ "$(stored_in EVENTS)" = 2 ] || fail "expected two events"

step "A wrong or missing signature is refused, and nothing is stored"
post 401 demo "$body" -H "X-Signature: sha256=$(hmac_of deploy/secrets/github "$body")"
post 401 demo "$body"
[ "$(stored_in EVENTS)" = 2 ] || fail "something was stored"

step "An outbox message becomes a signed callback"
in_courier publish outbox.planner --header 'Nats-Msg-Id: planner-42' \
    '{"callback_url":"http://receiver:9000/done","payload":{"order":42,"ok":true}}' | show
received() { "${compose[@]}" logs --no-color receiver | grep -F 'planner-42' > "$work/received"; }
within 20 received || fail "the receiver accepted nothing"
show < "$work/received"
for form in standard-webhooks x-signature; do
    grep -q "\"$form\"" "$work/received" || fail "the receiver did not verify $form"
done
first_of 'receipts.planner.delivered.planner-42'

step "Without NATS nothing is accepted, and the events outlive its container"
"${compose[@]}" rm --stop --force nats > /dev/null 2>&1
post 503 demo "$body" -H "X-Signature: sha256=$signature" -H 'X-Delivery-Id: order-43'
"${compose[@]}" up -d --no-build > "$work/up" 2>&1 || fail "$(cat "$work/up")"
within 60 is_healthy nats || fail "NATS is not healthy after a minute"
[ "$(stored_in EVENTS)" = 2 ] || fail "events are missing"
within 30 is_accepted demo "$body" -H "X-Signature: sha256=$signature" -H 'X-Delivery-Id: order-43' ||
    fail "still not accepted"
within 60 all_healthy || fail "not healthy after a minute"
echo "EVENTS holds $(stored_in EVENTS) messages" | show
[ "$(stored_in EVENTS)" = 3 ] || fail "expected a third event"

step "Both roles drain and end by themselves"
stopped=$(container gateway; container courier)
"${compose[@]}" stop gateway courier > /dev/null 2>&1
for id in $stopped; do
    code=$(docker inspect -f '{{.State.ExitCode}}' "$id")
    echo "$(docker inspect -f '{{.Name}}' "$id") ended with $code" | show
    [ "$code" = 0 ] || fail "it should have been 0"
done

step "All of it happened"
