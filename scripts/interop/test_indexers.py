"""Who may call: indexers, their API keys, and leases that belong to their names."""

import hashlib
import unittest

import grpc

from server import Server

WEST, WEST_ROTATED, EAST = "west-secret", "west-secret-2", "east-secret"


def digest(key):
    return hashlib.sha256(key.encode()).hexdigest()


POLICY = f"""
[services.t1r]
max_per_organization = 100
[services.t2w]
max_per_organization = 100

[[indexers]]
name = "west"
key_sha256 = ["{digest(WEST)}", "{digest(WEST_ROTATED)}"]

[[indexers]]
name = "east"
key_sha256 = "{digest(EAST)}"
services = ["t1r"]
"""


class Indexers(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server("indexers", POLICY)

    def code_of(self, call):
        with self.assertRaises(grpc.RpcError) as caught:
            call()
        return caught.exception.code()

    def test_a_call_without_a_known_key_is_unauthenticated_whatever_it_asks(self):
        for key in (None, "wrong", digest(WEST)):
            client = self.server.client(key)
            calls = (
                lambda: client.borrow("acme"),
                lambda: client.borrow(""),
                lambda: client.keep_alive("any"),
                lambda: client.give_back("any"),
                lambda: client.state("acme"),
                lambda: client.report(("acme", "blocks", -1)),
            )
            for call in calls:
                self.assertEqual(self.code_of(call), grpc.StatusCode.UNAUTHENTICATED)

    def test_a_bearer_token_is_a_key_too(self):
        client = self.server.client()
        client.granted("bearer", metadata=[("authorization", f"Bearer {WEST}")])

    def test_a_rotated_key_keeps_the_leases_of_the_name(self):
        key = self.server.client(WEST).granted("rotated")
        self.assertEqual(self.server.client(WEST_ROTATED).kept(key), "ttl_extended")

    def test_a_lease_does_not_exist_for_another_indexer(self):
        west, east = self.server.client(WEST), self.server.client(EAST)
        key = west.granted("shared")
        self.assertEqual(east.kept(key), "failed")
        self.assertEqual(east.give_back(key), "missing_key")
        self.assertEqual(west.kept(key), "ttl_extended")
        # Limits of an organization apply across all indexers.
        self.assertEqual(east.state("shared").borrowed_workers, 1)

    def test_a_service_an_indexer_may_not_use_is_denied(self):
        east = self.server.client(EAST)
        east.granted("narrow")
        denied = self.code_of(lambda: east.borrow("narrow", service="t2w"))
        self.assertEqual(denied, grpc.StatusCode.PERMISSION_DENIED)
