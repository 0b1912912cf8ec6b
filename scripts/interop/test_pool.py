"""The WorkerPool contract, tested with an independent gRPC stack."""

import time
import unittest

import grpc
from sf.worker.v1 import pool_pb2

from server import DEADLINE, Server

POLICY = """
[services.t1r]
max_per_organization = 3
ttl = "61250ms"
minimal_life = "2500ms"

[services.t2w]
max_per_organization = 50

[services.keyed]
max_per_api_key = 1

[services.scarce]
max_total = 2

[services.brief]
ttl = "1s"

[organizations.roomy]
limits = { t1r = 100 }

[organizations.stopped]
disabled = true

[api_keys.stopped-key]
disabled = true
"""

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
OTHER_TRACE = "0af7651916cd43dd8448eb211c80319c"

BORROWED = pool_pb2.BorrowWorkerResponse.borrowed
EXHAUSTED = pool_pb2.BorrowWorkerResponse.resource_exhausted


class Pool(unittest.TestCase):
    """Each test has its own organizations, so all tests share one server."""

    @classmethod
    def setUpClass(cls):
        cls.server = Server("pool", POLICY)
        cls.client = cls.server.client()

    def refused(self, code, *words, call):
        """Checks that the call fails with `code` and a message that contains every word."""
        with self.assertRaises(grpc.RpcError) as caught:
            call()
        error = caught.exception
        self.assertEqual(error.code(), code, error.details())
        for word in words:
            self.assertIn(word, error.details())

    def test_a_borrow_answers_a_key_its_ttl_and_the_pool_after_it(self):
        answer, metadata = self.client.borrow("first", trace=TRACE, api_key="key-1")
        self.assertEqual(answer.status, BORROWED)
        self.assertTrue(16 <= len(answer.worker_key) <= 64, answer.worker_key)
        self.assertTrue(answer.worker_key.isascii())
        self.assertNotIn("first", answer.worker_key)
        self.assertEqual(metadata["x-lease-ttl-ms"], "61250")
        state = answer.worker_state
        self.assertEqual((state.borrowed_workers, state.max_workers), (1, 3))
        self.assertEqual(state.available_workers, 2)
        self.assertEqual(dict(state.worker_count_per_trace_id), {TRACE: 1})

    def test_the_minimal_life_keeps_its_fraction_of_a_second(self):
        answer, _ = self.client.borrow("fraction")
        self.assertEqual(answer.minimal_worker_life_duration.ToTimedelta().total_seconds(), 2.5)

    def test_a_full_pool_is_an_answer_with_the_scope_that_is_full(self):
        for _ in range(3):
            self.client.granted("full")
        answer, metadata = self.client.borrow("full")
        self.assertEqual(answer.status, EXHAUSTED)
        self.assertEqual(answer.worker_key, "")
        self.assertEqual(answer.worker_state.borrowed_workers, 3)
        self.assertEqual(answer.worker_state.available_workers, 0)
        denied = [metadata[f"x-denied-{fact}"] for fact in ("scope", "active", "max")]
        self.assertEqual(denied, ["organization", "3", "3"])
        self.assertNotIn("x-lease-ttl-ms", metadata)

    def test_another_organization_has_a_pool_of_its_own(self):
        for _ in range(3):
            self.client.granted("full-neighbour")
        self.client.granted("its-neighbour")
        self.assertEqual(self.client.state("its-neighbour").borrowed_workers, 1)

    def test_an_override_of_one_organization_beats_its_service(self):
        self.assertEqual(self.client.state("roomy").max_workers, 100)

    def test_an_api_key_has_a_limit_of_its_own(self):
        self.client.granted("keys", service="keyed", api_key="key-1")
        answer, metadata = self.client.borrow("keys", service="keyed", api_key="key-1")
        self.assertEqual(answer.status, EXHAUSTED)
        self.assertEqual(metadata["x-denied-scope"], "api_key")
        self.client.granted("keys", service="keyed", api_key="key-2")

    def test_a_service_has_a_limit_over_all_organizations(self):
        self.client.granted("scarce-1", service="scarce")
        self.client.granted("scarce-2", service="scarce")
        answer, metadata = self.client.borrow("scarce-3", service="scarce")
        self.assertEqual(answer.status, EXHAUSTED)
        self.assertEqual(metadata["x-denied-scope"], "service")

    def test_a_keep_alive_extends_a_live_lease_and_tells_its_ttl(self):
        key = self.client.granted("kept")
        answer, metadata = self.client.keep_alive(key, api_key="key-1")
        self.assertEqual(answer.status, pool_pb2.KeepAliveResponse.ttl_extended)
        self.assertEqual(metadata["x-lease-ttl-ms"], "61250")

    def test_a_keep_alive_of_a_key_nobody_was_given_fails_without_an_error(self):
        for key in ("", "never-given", "A" * 32, "k" * 5000):
            self.assertEqual(self.client.kept(key), "failed")

    def test_a_lease_nobody_keeps_alive_gives_its_slot_back(self):
        answer, _ = self.client.borrow("silent", service="brief")
        key = answer.worker_key
        self.assertEqual(answer.worker_state.borrowed_workers, 1)
        deadline = time.monotonic() + DEADLINE
        while self.client.state("silent", service="brief").borrowed_workers:
            self.assertLess(time.monotonic(), deadline, "the slot is still taken")
            time.sleep(0.05)
        self.assertEqual(self.client.kept(key), "failed")
        self.assertEqual(self.client.give_back(key), "missing_key")

    def test_a_return_frees_the_slot_before_it_is_answered_and_only_once(self):
        keys = [self.client.granted("returned") for _ in range(3)]
        self.assertEqual(self.client.give_back(keys[0]), "returned")
        self.assertEqual(self.client.give_back(keys[0]), "missing_key")
        self.assertEqual(self.client.kept(keys[0]), "failed")
        self.assertEqual(self.client.state("returned").available_workers, 1)
        self.client.granted("returned")
        self.assertEqual(self.client.state("returned").available_workers, 0)

    def test_a_young_return_is_answered_at_once_and_goes_on_counting(self):
        key = self.client.granted("young")
        # The deadline of a call is far below the minimal life: the answer does not wait for its end.
        self.assertEqual(self.client.give_back(key, minimal_life=300), "ttl_updated")
        self.assertEqual(self.client.state("young").borrowed_workers, 1)
        self.assertEqual(self.client.kept(key), "failed")
        # A second return may only shorten the lingering, here to 0.
        self.assertEqual(self.client.give_back(key, minimal_life=0), "returned")
        self.assertEqual(self.client.state("young").borrowed_workers, 0)

    def test_a_return_of_a_key_nobody_was_given_is_missing(self):
        for key in ("", "never-given", "k" * 5000):
            self.assertEqual(self.client.give_back(key), "missing_key")

    def test_an_invalid_argument_is_named(self):
        invalid = grpc.StatusCode.INVALID_ARGUMENT
        borrow = self.client.borrow
        self.refused(invalid, "service", call=lambda: borrow("acme", service=""))
        self.refused(invalid, "organization_id", call=lambda: borrow(""))
        self.refused(invalid, "organization_id", call=lambda: borrow("o" * 257))
        self.refused(invalid, "api_key_id", call=lambda: borrow("acme", api_key="k" * 5000))
        self.refused(invalid, "trace_id", call=lambda: borrow("acme", trace="t" * 5000))
        self.refused(invalid, "max_worker_for_trace_id", call=lambda: borrow("acme", workers=-1))
        key = self.client.granted("negative")
        self.refused(
            invalid, "minimal_worker_life", call=lambda: self.client.give_back(key, minimal_life=-1)
        )
        self.assertEqual(self.client.kept(key), "ttl_extended")

    def test_a_service_the_policy_does_not_know_is_named(self):
        invalid = grpc.StatusCode.INVALID_ARGUMENT
        self.refused(invalid, "t3x", call=lambda: self.client.borrow("acme", service="t3x"))
        self.refused(invalid, "t3x", call=lambda: self.client.state("acme", service="t3x"))

    def test_what_is_disabled_is_denied_and_its_state_still_answered(self):
        denied = grpc.StatusCode.PERMISSION_DENIED
        self.refused(denied, call=lambda: self.client.borrow("stopped"))
        self.refused(denied, call=lambda: self.client.borrow("acme", api_key="stopped-key"))
        self.assertEqual(self.client.state("stopped").borrowed_workers, 0)

    def test_workers_are_capped_for_each_trace(self):
        self.client.granted("capped", trace=TRACE)
        for _ in range(2):
            self.client.granted("capped", service="t2w", trace=TRACE, workers=2)
        answer, metadata = self.client.borrow("capped", service="t2w", trace=TRACE, workers=2)
        self.assertEqual(answer.status, EXHAUSTED)
        denied = [metadata[f"x-denied-{fact}"] for fact in ("scope", "active", "max")]
        self.assertEqual(denied, ["trace", "2", "2"])
        self.client.granted("capped", service="t2w", trace=OTHER_TRACE, workers=2)

    def test_the_state_counts_every_trace_of_the_pool(self):
        self.client.granted("traced", trace=TRACE)
        for trace in (TRACE, TRACE, OTHER_TRACE):
            self.client.granted("traced", service="t2w", trace=trace, workers=5)
        state = self.client.state("traced", service="t2w")
        self.assertEqual(dict(state.worker_count_per_trace_id), {TRACE: 2, OTHER_TRACE: 1})
        self.assertEqual((state.borrowed_workers, state.active_trace_id), (3, 2))
        self.assertEqual((state.max_workers, state.available_workers), (50, 47))

    def test_ending_a_session_ends_its_workers(self):
        session = self.client.granted("ending", trace=TRACE)
        worker = self.client.granted("ending", service="t2w", trace=TRACE, workers=5)
        stranger = self.client.granted("ending", service="t2w", trace=OTHER_TRACE, workers=5)
        self.assertEqual(self.client.give_back(session), "returned")
        self.assertEqual(self.client.kept(worker), "failed")
        self.assertEqual(self.client.give_back(worker), "missing_key")
        self.assertEqual(self.client.kept(stranger), "ttl_extended")
        self.assertEqual(self.client.state("ending", service="t2w").borrowed_workers, 1)

    def test_a_borrow_tried_again_under_its_id_gets_the_same_lease(self):
        name = [("x-borrow-id", "00112233445566778899aabbccddeeff")]
        key = self.client.granted("again", trace=TRACE, metadata=name)
        self.assertEqual(self.client.granted("again", trace=TRACE, metadata=name), key)
        self.assertEqual(self.client.state("again").borrowed_workers, 1)
        self.refused(
            grpc.StatusCode.INVALID_ARGUMENT,
            "x-borrow-id",
            call=lambda: self.client.borrow("again", trace=OTHER_TRACE, metadata=name),
        )
        # A client that never received the key can still return the lease of its borrow.
        self.assertEqual(self.client.give_back("", metadata=name), "returned")
        self.assertEqual(self.client.give_back("", metadata=name), "missing_key")
        self.assertEqual(self.client.state("again").borrowed_workers, 0)

    def test_a_borrow_id_that_is_not_hex_is_refused(self):
        self.refused(
            grpc.StatusCode.INVALID_ARGUMENT,
            "x-borrow-id",
            call=lambda: self.client.borrow("hex", metadata=[("x-borrow-id", "not hex")]),
        )
        self.assertEqual(self.client.state("hex").borrowed_workers, 0)
