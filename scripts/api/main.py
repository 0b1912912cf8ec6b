"""Sends valid and invalid requests of the OpenAPI document to a real server.

schemathesis makes the requests. No answer may be a server error, or have a status, type or fields that
are not in the document. Endpoints that are documented to need the token must need it.
"""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import urllib.request

BINARY = os.environ["TGM_SESSION_BINARY"]
TOKEN = "a-token-for-this-test"
# The longest wait for a start, for a stop, and for the leases.
DEADLINE = 30

POLICY = """
[services.default]
max_per_organization = 2
[services.t1r]
max_per_organization = 3
max_per_api_key = 2
[services.t2w]
[plans.pro]
limits = { t1r = 5 }
budgets = { egress_bytes = { amount = 1e9, per = "month" } }
[organizations.acme]
plan = "pro"
[organizations.closed]
disabled = true
[api_keys.key-1]
limits = { t1r = 1 }
"""

# The sessions held during the test: organization, API key id and workers. The last two are refused.
HELD = [("acme", "key-1", 2), ("acme", "", 0), ("other", "", 1)]
REFUSED = [("acme", "key-1", 0), ("closed", "", 0)]


def main(options):
    with tempfile.TemporaryDirectory(prefix="tgm-session-api-") as folder:
        folder = pathlib.Path(folder)
        log = folder / "server.log"
        with contextlib.ExitStack() as stack:
            server, ready = start(folder, log)
            stack.callback(server.kill)
            url = f"tgm://{ready['grpc']}?plaintext=true"
            for organization, key, workers in HELD:
                stack.callback(borrow(url, organization, key, workers).kill)
            # A borrow that comes before the leases are there is granted instead of refused.
            wait_for_leases(ready["admin"])
            for organization, key, workers in REFUSED:
                borrow(url, organization, key, workers).wait(timeout=DEADLINE)
            code = ask_everything(ready["admin"], folder, options)
            server.terminate()
            stopped = server.wait(timeout=DEADLINE)
        logged = log.read_text()
        if stopped != 0 or "panicked" in logged:
            sys.exit(f"the server ended with {stopped}:\n{logged[-4000:]}")
        return code


def start(folder, log):
    policy = folder / "policy.toml"
    policy.write_text(POLICY)
    command = [BINARY, "serve", "--format", "json", "--config", str(policy)]
    command += ["--store", f"file:{folder / 'store'}"]
    command += ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]
    environment = {**os.environ, "TGM_SESSION_ADMIN_TOKEN": TOKEN}
    server = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=log.open("wb"), env=environment
    )
    line = server.stdout.readline()
    if not line:
        sys.exit(f"the server does not start:\n{log.read_text()}")
    return server, json.loads(line)


def borrow(url, organization, key, workers):
    command = [BINARY, "borrow", url, "--organization", organization, "--workers", str(workers)]
    command += ["--api-key-id", key] if key else []
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_for_leases(admin):
    wanted = {"sessions": len(HELD), "workers": sum(workers for _, _, workers in HELD)}
    request = urllib.request.Request(f"http://{admin}/api/overview")
    request.add_header("authorization", f"Bearer {TOKEN}")
    deadline = time.monotonic() + DEADLINE
    while True:
        with urllib.request.urlopen(request, timeout=DEADLINE) as answer:
            overview = json.load(answer)
        if all(overview[name] == count for name, count in wanted.items()):
            return
        if time.monotonic() > deadline:
            sys.exit(f"the leases are not there: {overview}")
        time.sleep(0.05)


def ask_everything(admin, folder, options):
    command = [sys.executable, "-m", "schemathesis.cli", "run"]
    command += [f"http://{admin}/api/openapi.json", "--checks", "all", "--continue-on-failure"]
    command += ["--header", f"Authorization: Bearer {TOKEN}", "--request-timeout", "10"]
    # The requests are the same in each run. The stream of events is excluded, because it does not end.
    command += ["--max-examples", "40", "--seed", "1", "--generation-database", "none"]
    command += ["--exclude-path", "/api/events", "--no-color", *options]
    return subprocess.run(command, cwd=folder).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
