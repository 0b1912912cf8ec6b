"""Clients that behave like the plugins of streaming services in production, on independent gRPC stacks."""

import collections
import itertools
import json
import os
import pathlib
import queue
import subprocess
import threading

from server import DEADLINE

HERE = pathlib.Path(__file__).parent
GO = [os.environ["INTEROP_GO"], "--descriptors", os.environ["INTEROP_DESCRIPTORS"]]
PROTO = HERE.parent.parent / "crates" / "wire" / "proto"
JS = ["node", str(HERE / "js" / "plugin.mjs"), "--protocol", str(PROTO)]


class Plugin:
    """One plugin process. Several threads may send commands."""

    def __init__(self, command, address, *flags):
        self.process = subprocess.Popen(
            [*command, "--address", address, *flags],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.events = collections.defaultdict(queue.Queue)
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self._answers = {}
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            said = json.loads(line)
            if "id" in said:
                self._answers.pop(said.pop("id")).put(said)
            else:
                self.events[said.pop("event")].put(said)

    def tell(self, do, **command):
        """Sends a command and returns the answer of the plugin."""
        answer = queue.Queue()
        with self._lock:
            number = next(self._ids)
            self._answers[number] = answer
            self.process.stdin.write(json.dumps({"id": number, "do": do, **command}) + "\n")
            self.process.stdin.flush()
        # A plugin waits for its server for the same time.
        return answer.get(timeout=2 * DEADLINE)

    def event(self, name):
        """Returns the next event of that name from the plugin."""
        return self.events[name].get(timeout=2 * DEADLINE)

    def session(self, organization, service="t1r", api_key="", trace=""):
        """Borrows a session and returns the answer of the plugin."""
        request = {"service": service, "organization_id": organization}
        request |= {"api_key_id": api_key, "trace_id": trace}
        return self.tell("borrow session", request=request)

    def held(self, *args, **kwargs):
        """Borrows a session, which must be granted, and returns its key."""
        answer = self.session(*args, **kwargs)
        assert "session" in answer, answer
        return answer["session"]

    def worker(self, session, most, service="t2w"):
        """Borrows a worker under a session and returns the answer of the plugin."""
        return self.tell("borrow worker", session=session, max=most, request={"service": service})

    def count(self, organization, service="t1r"):
        """Returns how many leases the organization holds."""
        request = {"service": service, "organization_id": organization}
        return int(self.tell("state", request=request)["worker_state"]["borrowed_workers"])

    def report(self, *events):
        """Emits events and returns the result of the batch."""
        self.tell("report", events=list(events))
        return self.event("reported")

    def close(self):
        self.process.stdin.close()
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


def event(organization, value, metric="egress_bytes", **fields):
    """One event of usage, as a Firehose or Substreams service emits it."""
    return {"organization_id": organization, "metrics": [{"key": metric, "value": value}], **fields}
