#!/usr/bin/env bash
# Webhooks in and deliveries out, measured on this machine: see bench/README.md.
set -euo pipefail
cd "$(dirname "$0")/.."
binary=${HOOKBRIDGE:-target/dist/hookbridge}
nats_server=${NATS_SERVER:-.tools/nats-server}
folder=$(mktemp -d)
pids=()
finish() { kill "${pids[@]}" 2>/dev/null || true; wait 2>/dev/null || true; rm -rf "$folder"; }
trap finish EXIT

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
nats=$(free_port) monitor=$(free_port) gateway=$(free_port) admin=$(free_port) receiver=$(free_port)

cat > "$folder/hookbridge.toml" <<TOML
[nats]
url = "nats://127.0.0.1:$nats"
[gateway]
listen = "127.0.0.1:$gateway"
[admin]
listen = "127.0.0.1:$admin"
[sources.github]
preset = "github"
secrets = ["plain:s3cret"]
[endpoints.local]
url = "http://127.0.0.1:$receiver/"
secrets = ["plain:s3cret"]
[egress]
allow_http = true
allow_networks = ["127.0.0.0/8"]
TOML
cat > "$folder/nginx.conf" <<NGINX
worker_processes 1; daemon off; pid $folder/nginx.pid; error_log $folder/nginx.log;
events { worker_connections 4096; }
http { access_log off; keepalive_requests 100000000; client_body_buffer_size 64k; client_body_temp_path $folder;
  server { listen 127.0.0.1:$receiver; location / { return 204; } } }
NGINX

"$nats_server" -a 127.0.0.1 -p "$nats" -m "$monitor" -js -sd "$folder/js" > "$folder/nats.log" 2>&1 & pids+=($!)
nginx -c "$folder/nginx.conf" & pids+=($!)
"$binary" serve --config "$folder/hookbridge.toml" > "$folder/hookbridge.log" 2>&1 & pids+=($!)
for _ in $(seq 100); do "$binary" ready --url "http://127.0.0.1:$admin/readyz" > /dev/null 2>&1 && break; sleep 0.1; done

signature=$(python3 -c 'import hashlib, hmac
body = b"{\"pad\": \"" + b"x" * 1012 + b"\"}"
print(hmac.new(b"s3cret", body, hashlib.sha256).hexdigest())')
wrk -t1 -c64 -d10s --latency -s bench/in.lua "http://127.0.0.1:$gateway" "$signature" "$(date +%s)" > "$folder/wrk.log"
grep -E 'Requests/sec|50%|99%|Non-2xx' "$folder/wrk.log" | sed 's/^ */in:  /'
curl -s "http://127.0.0.1:$admin/metrics" | grep 'requests_total{' | sed 's/^/in:  /'
python3 bench/out.py "$nats" "$admin" 100000
curl -s "http://127.0.0.1:$monitor/jsz?streams=true" | python3 -c 'import json, sys
for stream in json.load(sys.stdin)["account_details"][0]["stream_detail"]:
    if stream["name"] in ("EVENTS", "RECEIPTS", "DEAD"):
        print("stored:", stream["name"], stream["state"]["messages"])'
