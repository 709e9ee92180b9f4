"""Deliveries a second to one endpoint and to a thousand, alternately in one run, at a receiver that answers at once.

Needs nginx (Debian: nginx-light). usage: many.py [--messages 100000]
"""

import argparse
import pathlib
import subprocess
import time

from rig import Publisher, Rig, free_port

NGINX = """worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.log;
events {{ worker_connections 4096; }}
http {{ access_log off; keepalive_requests 100000000; client_body_buffer_size 64k; client_body_temp_path {folder};
  server {{ listen 127.0.0.1:{port}; location / {{ return 204; }} }} }}
"""


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--messages", type=int, default=100_000)
    count = parser.parse_args().messages
    with Rig() as rig:
        port = free_port()
        config = pathlib.Path(rig.folder.name) / "nginx.conf"
        config.write_text(NGINX.format(folder=rig.folder.name, port=port))
        nginx = subprocess.Popen(["nginx", "-c", config])
        try:
            lines = ['[egress]\nallow_http = true\nallow_networks = ["127.0.0.0/8"]']
            for number in range(1000):
                url = f"http://127.0.0.1:{port}/{number}"
                lines.append(f'[endpoints.e{number}]\nurl = "{url}"\nsecrets = ["plain:s3cret"]')
            rig.start_courier("\n".join(lines))
            body, done = b'{"pad":"' + b"x" * 1012 + b'"}', 0
            for turn, endpoints in enumerate((1, 1000, 1, 1000)):
                publisher = Publisher(rig.nats_port)
                names = (b"e%d" % (number % endpoints) for number in range(count))
                messages = [Publisher.message(name, b"t%d-%d" % (turn, n), body) for n, name in enumerate(names)]
                begun = time.monotonic()
                publisher.send_all(messages)
                publisher.finish()
                done += count
                while rig.attempts("delivered") < done and time.monotonic() - begun < 120:
                    time.sleep(0.05)
                rate = count / (time.monotonic() - begun)
                print(f"{endpoints} endpoints: {rate:.0f}/s, MiB: {rig.memory(rig.courier)}", flush=True)
        finally:
            nginx.terminate()
            nginx.wait()


if __name__ == "__main__":
    main()
