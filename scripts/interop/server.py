"""Real tgm-session processes, and clients of them on Python's own gRPC stack."""

import json
import os
import pathlib
import queue
import shutil
import signal
import subprocess
import tempfile
import threading

import grpc
from google.protobuf.duration_pb2 import Duration
from sf.gateway.payment.v1 import usage_pb2, usage_pb2_grpc
from sf.metering.v1 import metering_pb2
from sf.worker.v1 import pool_pb2, pool_pb2_grpc

BINARY = os.environ["TGM_SESSION_BINARY"]
# The longest wait for one answer, for a start and for a stop. A healthy server needs milliseconds.
DEADLINE = 15

_running = []
# The tests write their files here; the folder is removed at the end.
folder = pathlib.Path(tempfile.mkdtemp(prefix="tgm-session-interop-"))


class Server:
    """A server on free ports, with a durable store in a temporary folder."""

    def __init__(self, name, policy, *flags):
        self.name = name
        self.flags = flags
        self.config = folder / f"{name}.toml"
        self.store = folder / f"{name}.store"
        self.log = folder / f"{name}.log"
        self.config.write_text(policy)
        self.process = None
        self.channel = None
        self.listen = "127.0.0.1:0"
        _running.append(self)
        self.start()

    def start(self):
        """Starts the server, on its previous store and port, and waits until it accepts."""
        command = [BINARY, "serve", "--format", "json"]
        command += ["--config", str(self.config), "--store", f"file:{self.store}"]
        command += ["--listen", self.listen, "--admin-listen", "127.0.0.1:0", *self.flags]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
        lines = queue.Queue()
        threading.Thread(target=_forward, args=(self.process.stdout, lines), daemon=True).start()
        try:
            ready = lines.get(timeout=DEADLINE)
        except queue.Empty:
            ready = None
        if ready is None:
            self.process.kill()
            raise AssertionError(f"{self.name} does not serve:\n{self.log.read_text()}")
        self.address = self.listen = json.loads(ready)["grpc"]
        self.channel = grpc.insecure_channel(self.address)
        self.stub = pool_pb2_grpc.WorkerPoolStub(self.channel)
        self.usage = usage_pb2_grpc.UsageServiceStub(self.channel)

    def stop(self, how=signal.SIGTERM):
        """Sends a signal and returns the exit code."""
        if self.channel is not None:
            self.channel.close()
            self.channel = None
        self.process.send_signal(how)
        code = self.process.wait(timeout=DEADLINE)
        self.process.stdout.close()
        return code

    def client(self, api_key=None):
        """A client that calls with the indexer's API key, if one is given."""
        return Client(self.stub, self.usage, [("x-api-key", api_key)] if api_key else [])


def _forward(stdout, lines):
    for line in stdout:
        lines.put(line)
    lines.put(None)


class Client:
    """The calls of the contract. Each returns the message and the initial metadata."""

    def __init__(self, stub, usage, metadata):
        self.stub = stub
        self.usage = usage
        self.metadata = metadata

    def _call(self, method, request, metadata):
        answer, call = method.with_call(
            request, timeout=DEADLINE, metadata=[*self.metadata, *metadata]
        )
        return answer, dict(call.initial_metadata())

    def borrow(self, organization, service="t1r", api_key="", trace="", workers=0, metadata=()):
        request = pool_pb2.BorrowWorkerRequest(
            service=service,
            organization_id=organization,
            api_key_id=api_key,
            trace_id=trace,
            max_worker_for_trace_id=workers,
        )
        return self._call(self.stub.BorrowWorker, request, metadata)

    def granted(self, *args, **kwargs):
        """Borrows a lease, which must be granted, and returns its key."""
        answer, _ = self.borrow(*args, **kwargs)
        assert answer.status == pool_pb2.BorrowWorkerResponse.borrowed, answer
        assert answer.worker_key, answer
        return answer.worker_key

    def keep_alive(self, key, api_key=""):
        request = pool_pb2.KeepAliveRequest(worker_key=key, api_key_id=api_key)
        return self._call(self.stub.KeepAlive, request, ())

    def kept(self, key):
        """Returns the name of the status of a keep-alive."""
        return pool_pb2.KeepAliveResponse.Status.Name(self.keep_alive(key)[0].status)

    def give_back(self, key, minimal_life=None, metadata=()):
        """Returns the name of the status of a return; the minimal life is in seconds."""
        request = pool_pb2.ReturnWorkerRequest(worker_key=key)
        if minimal_life is not None:
            request.minimal_worker_life_duration.CopyFrom(Duration(seconds=minimal_life))
        answer, _ = self._call(self.stub.ReturnWorker, request, metadata)
        return pool_pb2.ReturnWorkerResponse.Status.Name(answer.status)

    def state(self, organization, service="t1r"):
        request = pool_pb2.WorkersStateRequest(service=service, organization_id=organization)
        return self._call(self.stub.WorkersState, request, ())[0].worker_state

    def report(self, *used, name=None):
        """Reports amounts by organization and metric, under a name if one is given."""
        return self.reported(*used, name=name)[0]

    def reported(self, *used, name=None):
        """Reports like `report`, and also returns the metadata of the answer."""
        events = [
            metering_pb2.Event(
                organization_id=organization,
                api_key_id="key",
                ip_address="192.0.2.1",
                endpoint="sf.substreams.rpc.v2/Blocks",
                network="mainnet",
                meta="{}",
                metrics=[metering_pb2.Metric(key=metric, value=value)],
            )
            for organization, metric, value in used
        ]
        for event in events:
            event.timestamp.GetCurrentTime()
        metadata = [("x-idempotency-key", name)] if name is not None else []
        return self._call(self.usage.Report, usage_pb2.ReportRequest(events=events), metadata)


def logs():
    """Returns the logs of all servers."""
    return "\n".join(f"log of {server.name}:\n{server.log.read_text()}" for server in _running)


def stop_all():
    """Ends all processes and removes the folder."""
    for server in _running:
        if server.process is not None and server.process.poll() is None:
            server.process.kill()
            server.process.wait()
    shutil.rmtree(folder, ignore_errors=True)
