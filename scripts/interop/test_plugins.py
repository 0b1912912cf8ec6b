"""Sessions from borrow to end, with plugins like those in production, on grpc-go and grpc-js."""

import hashlib
import signal
import subprocess
import threading
import time
import unittest

from plugins import GO, JS, Plugin, event
from server import DEADLINE, Server, folder

TTL = 4
KEEP_ALIVE = ("--keep-alive-ms", "250")
# The time between two keep-alives of a plugin that sends none.
NEVER = ("--keep-alive-ms", "10000000")
POLICY = f"""
[services.t1r]
max_per_organization = 100
ttl = "{TTL}s"
[services.t2w]
max_per_organization = 100
ttl = "{TTL}s"
[services.scarce]
max_total = 2
max_per_organization = 5
[services.keyed]
max_per_organization = 5
max_per_api_key = 1
[plans.paid]
budgets = {{ egress_bytes = {{ amount = 1000.0, per = "month" }} }}
[organizations]
"""
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
WEST = hashlib.sha256(b"west-key").hexdigest()
# The event that the plugin of one Firehose endpoint emits for one request, about 410 bytes.
FIELDS = {
    "api_key_id": "0123456789abcdef0123456789abcdef",
    "ip_address": "192.0.2.1",
    "endpoint": "sf.firehose.v2/Blocks",
    "network": "mainnet",
    "meta": "x" * 250,
}


def self_signed(name):
    """A self-signed certificate of localhost and its key, made by openssl."""
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost"]
    command += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


class Plugins:
    """The tests of every stack; each class below names its stack."""

    command = None

    @classmethod
    def setUpClass(cls):
        cls.server = Server(f"plugins-{cls.__name__}", POLICY)

    def plugin(self, *flags, server=None):
        # Connect by name, because the certificate is for a name.
        _, _, port = (server or self.server).address.rpartition(":")
        plugin = Plugin(self.command, f"localhost:{port}", *KEEP_ALIVE, *flags)
        self.addCleanup(plugin.close)
        return plugin

    def own_server(self, name, policy, *flags):
        return Server(f"{name}-{type(self).__name__}", policy, *flags)

    def eventually(self, what, expected):
        """Repeats the question until the answer is the expected one."""
        until = time.monotonic() + DEADLINE
        while (found := what()) != expected and time.monotonic() < until:
            time.sleep(0.05)
        self.assertEqual(found, expected)

    def whole_life(self, organization, *flags, server=None):
        plugin = self.plugin(*flags, server=server)
        session = plugin.held(organization, trace=TRACE, api_key="key-1")
        workers = [plugin.worker(session, 3)["worker"] for _ in range(3)]
        self.assertEqual(plugin.worker(session, 3), {"busy": "3"})
        # A later lease without keep-alives shows when these would have expired.
        without = f"{organization}-without-keep-alives"
        self.plugin(*flags, *NEVER, server=server).held(without)
        self.eventually(lambda: plugin.count(without), 0)
        self.assertEqual(plugin.count(organization, "t1r"), 1)
        self.assertEqual(plugin.count(organization, "t2w"), 3)
        answer = plugin.tell("release worker", session=session, key=workers[0])
        self.assertEqual(answer, {"status": "returned"})
        self.assertEqual(plugin.tell("release session", session=session), {"status": "returned"})
        self.assertEqual(plugin.count(organization, "t1r"), 0)
        self.assertEqual(plugin.count(organization, "t2w"), 0)
        self.assertTrue(plugin.events["ended"].empty())

    def test_a_session_and_its_workers_live_as_long_as_they_are_kept_alive(self):
        self.whole_life("life")

    def test_compressed_calls_live_the_same_life(self):
        self.whole_life("compressed", "--gzip")

    def test_a_process_that_vanishes_leaves_nothing_after_the_ttl(self):
        gone = self.plugin()
        session = gone.held("gone", trace=TRACE)
        self.assertIn("worker", gone.worker(session, 3))
        gone.close()
        watching = self.plugin()
        self.eventually(lambda: watching.count("gone"), 0)
        self.assertEqual(watching.count("gone", "t2w"), 0)

    def test_a_user_reads_the_limit_that_refused(self):
        plugin = self.plugin()
        for organization in ("north", "south"):
            plugin.held(organization, service="scarce")
        refusal = plugin.session("east", service="scarce")
        said = "Concurrent stream limit exceeded (active sessions: 2/2)"
        self.assertEqual(refusal, {"code": "ResourceExhausted", "error": said})
        plugin.held("keys", service="keyed", api_key="key-1")
        refusal = plugin.session("keys", service="keyed", api_key="key-1")
        said = "Concurrent stream limit exceeded (active sessions: 1/1)"
        self.assertEqual(refusal, {"code": "ResourceExhausted", "error": said})

    def test_a_service_nobody_has_and_a_stranger_are_told_why(self):
        plugin = self.plugin()
        refusal = plugin.session("acme", service="t9")
        self.assertEqual(refusal["code"], "InvalidArgument")
        self.assertIn('"t9"', refusal["error"])

    def test_an_operator_who_disables_an_organization_ends_its_sessions_once(self):
        server = self.own_server("disabled", POLICY)
        plugin = self.plugin(server=server)
        held = {plugin.held("stopped") for _ in range(2)}
        other = plugin.held("other")
        server.config.write_text(POLICY + "stopped = { disabled = true }\n")
        server.process.send_signal(signal.SIGHUP)
        ended = [plugin.event("ended") for _ in held]
        self.assertEqual({one["session"] for one in ended}, held)
        for refusal in (*ended, plugin.session("stopped")):
            self.assertEqual(refusal["code"], "PermissionDenied")
            self.assertIn("disabled", refusal["error"])
        self.assertEqual(plugin.count("stopped"), 0)
        self.assertEqual(plugin.count("other"), 1)
        self.assertEqual(plugin.tell("release session", session=other), {"status": "returned"})
        self.assertTrue(plugin.events["ended"].empty())

    def test_a_spent_budget_ends_sessions_and_names_the_metric_and_its_reset(self):
        server = self.own_server("budget", POLICY + 'payer = { plan = "paid" }\n')
        plugin = self.plugin(server=server)
        session = plugin.held("payer")
        self.assertFalse(plugin.report(event("payer", 999))["revoked"])
        self.assertTrue(plugin.report(event("payer", 1))["revoked"])
        ended = plugin.event("ended")
        self.assertEqual(ended["session"], session)
        for refusal in (ended, plugin.session("payer")):
            self.assertEqual(refusal["code"], "ResourceExhausted")
            self.assertIn("egress_bytes", refusal["error"])
            self.assertRegex(refusal["error"], r"resets at \d{4}-")

    def test_a_report_after_a_stall_counts_all_that_can_be_counted(self):
        policy = POLICY + 'payer = { plan = "paid" }\nneighbour = { plan = "paid" }\n'
        plugin = self.plugin(server=self.own_server("stall", policy))
        many = [event(f"organization-{n % 300}", 1, **FIELDS) for n in range(10_290)]
        bad = [event("payer", value) for value in ("NaN", "Infinity", -1)]
        bad += [event("o" * 300, 1), event("payer", 1, api_key_id="k" * 300)]
        bad += [{"organization_id": "payer", "metrics": [{"key": "a", "value": 1}] * 65}]
        good = [event("payer", 500), event("neighbour", 999)] * 2
        answer = plugin.report(*many, *bad, *good)
        self.assertEqual((answer["events"], answer["skipped"]), (10_300, len(bad)))
        self.assertTrue(answer["revoked"])
        for organization in ("payer", "neighbour"):
            self.assertEqual(plugin.session(organization)["code"], "ResourceExhausted")
        self.assertIn("session", plugin.session("organization-1"))

    def test_a_report_outlives_a_restart_of_the_server_and_counts_once(self):
        server = self.own_server("retried", POLICY + 'payer = { plan = "paid" }\n')
        # A slow machine needs more than a moment to start the server again.
        plugin = self.plugin("--report-for-ms", "60000", server=server)
        plugin.report(event("payer", 400))
        server.stop(signal.SIGKILL)
        plugin.tell("report", events=[event("payer", 599)])
        server.start()
        self.assertFalse(plugin.event("reported")["revoked"])
        self.assertTrue(plugin.report(event("payer", 1))["revoked"])
        self.assertTrue(plugin.events["lost"].empty())

    def test_a_restart_under_load_ends_no_session_and_leaks_no_worker(self):
        server = self.own_server("restart", POLICY)
        plugin = self.plugin(server=server)
        sessions = [plugin.held(f"loaded-{n % 3}", trace=f"{n + 1:032x}") for n in range(30)]
        stop = threading.Event()
        borrowed = []

        def load(session):
            while not stop.is_set():
                answer = plugin.worker(session, 3)
                if "worker" in answer:
                    borrowed.append(answer["worker"])
                    plugin.tell("release worker", session=session, key=answer["worker"])

        def wait_for_load():
            wanted = len(borrowed) + 50
            self.eventually(lambda: len(borrowed) >= wanted, True)

        threads = [threading.Thread(target=load, args=(session,)) for session in sessions[:8]]
        for thread in threads:
            thread.start()
        try:
            for how in (signal.SIGKILL, signal.SIGTERM):
                wait_for_load()
                server.stop(how)
                server.start()
            wait_for_load()
        finally:
            stop.set()
        for thread in threads:
            thread.join(2 * DEADLINE)
        # A worker whose grant was lost by the kill expires after its TTL.
        for n in range(3):
            self.eventually(lambda: plugin.count(f"loaded-{n}", "t2w"), 0)
            self.assertEqual(plugin.count(f"loaded-{n}"), 10)
        self.assertTrue(plugin.events["ended"].empty())

    def test_tls_and_the_key_of_an_indexer_open_the_port(self):
        certificate, key = self_signed(type(self).__name__)
        flags = ("--tls-cert", str(certificate), "--tls-key", str(key))
        policy = POLICY + f'[[indexers]]\nname = "west"\nkey_sha256 = "{WEST}"\n'
        server = self.own_server("tls", policy, *flags)
        opened = ("--ca-file", str(certificate))
        self.whole_life("secure", *opened, "--api-key", "west-key", server=server)
        stranger = self.plugin(*opened, "--api-key", "west-kay", server=server)
        self.assertEqual(stranger.session("secure")["code"], "Unauthenticated")
        plain = self.plugin(server=server)
        self.assertEqual(plain.session("secure")["code"], "Unavailable")


class Go(Plugins, unittest.TestCase):
    command = GO

    def id(self):
        return f"{super().id()}_on_grpc-go"


class Js(Plugins, unittest.TestCase):
    command = JS

    def id(self):
        return f"{super().id()}_on_grpc-js"
