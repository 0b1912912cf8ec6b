"""Reports of usage: they spend budgets, and each report counts once."""

import unittest

import grpc

from server import Server

POLICY = """
[services.t1r]
max_per_organization = 10
[plans.pro]
budgets = { egress_bytes = { amount = 1000.0, per = "month" } }
[organizations.acme]
plan = "pro"
[organizations.borealis]
plan = "pro"
[organizations.corona]
plan = "pro"
[organizations.gone]
disabled = true
"""


class Usage(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server("usage", POLICY)
        cls.client = cls.server.client()

    def refusal_of(self, call):
        with self.assertRaises(grpc.RpcError) as caught:
            call()
        return caught.exception.code(), caught.exception.details()

    def test_a_spent_budget_ends_sessions_and_refuses_new_ones(self):
        key = self.client.granted("acme")
        answer = self.client.report(("acme", "egress_bytes", 999), ("acme", "blocks", 5))
        self.assertEqual((answer.revoked, answer.revocation_reason), (False, ""))
        self.assertEqual(self.client.kept(key), "ttl_extended")
        answer = self.client.report(("acme", "egress_bytes", 1))
        self.assertTrue(answer.revoked)
        self.assertIn("acme", answer.revocation_reason)
        self.assertIn("egress_bytes 1 kB of 1 kB per month", answer.revocation_reason)
        for call in (lambda: self.client.kept(key), lambda: self.client.borrow("acme")):
            code, details = self.refusal_of(call)
            self.assertEqual(code, grpc.StatusCode.RESOURCE_EXHAUSTED)
        self.assertIn("egress_bytes 1 kB of 1 kB per month, resets at ", details)
        self.client.granted("other")

    def test_a_report_that_is_sent_again_counts_once(self):
        for _ in range(3):
            answer = self.client.report(("borealis", "egress_bytes", 600), name="first")
            self.assertFalse(answer.revoked)
        self.assertTrue(self.client.report(("borealis", "egress_bytes", 600), name="2nd").revoked)

    def test_amounts_that_make_no_sense_are_skipped_and_the_others_count(self):
        for amount in (float("nan"), float("inf"), -1):
            answer, metadata = self.client.reported(
                ("corona", "egress_bytes", amount), ("corona", "egress_bytes", 300)
            )
            self.assertFalse(answer.revoked)
            self.assertEqual(metadata["x-events-skipped"], "1")
        answer, metadata = self.client.reported(("corona", "egress_bytes", 100))
        self.assertTrue(answer.revoked)
        self.assertNotIn("x-events-skipped", metadata)

    def test_a_name_is_not_for_two_reports(self):
        self.client.report(("other", "a", 1), name="one")
        code, _ = self.refusal_of(lambda: self.client.report(("other", "a", 2), name="one"))
        self.assertEqual(code, grpc.StatusCode.INVALID_ARGUMENT)

    def test_an_empty_report_is_fine_and_a_disabled_organization_is_told_of(self):
        self.assertFalse(self.client.report().revoked)
        answer = self.client.report(("gone", "blocks", 1))
        self.assertTrue(answer.revoked)
        self.assertIn("disabled", answer.revocation_reason)
