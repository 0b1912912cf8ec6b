"""The server as a process: reflection, health, restart and stop."""

import signal
import unittest

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from sf.gateway.payment.v1 import usage_pb2
from sf.metering.v1 import metering_pb2
from sf.worker.v1 import pool_pb2

from server import DEADLINE, Server

POLICY = "[services.t1r]\nmax_per_organization = 2\n"
SERVICE = "sf.worker.v1.WorkerPool"
USAGE = "sf.gateway.payment.v1.UsageService"


class Process(unittest.TestCase):
    def test_reflection_describes_the_services_as_their_proto_files_do(self):
        server = Server("reflection", POLICY)
        database = ProtoReflectionDescriptorDatabase(server.channel)
        pool = DescriptorPool(database)
        for file in (pool_pb2.DESCRIPTOR, usage_pb2.DESCRIPTOR, metering_pb2.DESCRIPTOR):
            for service in file.services_by_name.values():
                self.assertIn(service.full_name, database.get_services())
                told = pool.FindServiceByName(service.full_name)
                for method in service.methods:
                    self.assertIn(method.name, told.methods_by_name)
            for message in file.message_types_by_name.values():
                fields = {field.name: field.number for field in message.fields}
                told = pool.FindMessageTypeByName(message.full_name)
                self.assertEqual({field.name: field.number for field in told.fields}, fields)

    def test_health_says_serving_and_knows_no_other_service(self):
        server = Server("health", POLICY)
        health = health_pb2_grpc.HealthStub(server.channel)
        for service in ("", SERVICE, USAGE):
            answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=DEADLINE)
            self.assertEqual(answer.status, health_pb2.HealthCheckResponse.SERVING, service)
        with self.assertRaises(grpc.RpcError) as caught:
            health.Check(health_pb2.HealthCheckRequest(service="no.such"), timeout=DEADLINE)
        self.assertEqual(caught.exception.code(), grpc.StatusCode.NOT_FOUND)

    def test_a_method_nobody_has_is_unimplemented(self):
        server = Server("unimplemented", POLICY)
        for method in (f"/{SERVICE}/NoSuchMethod", "/no.such.Service/Method"):
            call = server.channel.unary_unary(method)
            with self.assertRaises(grpc.RpcError) as caught:
                call(b"", timeout=DEADLINE)
            self.assertEqual(caught.exception.code(), grpc.StatusCode.UNIMPLEMENTED)

    def test_sigterm_and_ctrl_c_end_the_server_with_exit_code_0(self):
        for how in (signal.SIGTERM, signal.SIGINT):
            server = Server(f"stop-{how.name}", POLICY)
            server.client().granted("stopping")
            self.assertEqual(server.stop(how), 0, how)

    def test_leases_outlive_the_server_stopped_or_killed(self):
        server = Server("restart", POLICY)
        kept, returned = (server.client().granted("lasting") for _ in range(2))
        self.assertEqual(server.client().give_back(returned), "returned")
        for how in (signal.SIGTERM, signal.SIGKILL):
            server.stop(how)
            server.start()
            client = server.client()
            self.assertEqual(client.kept(kept), "ttl_extended", how)
            self.assertEqual(client.kept(returned), "failed", how)
            self.assertEqual(client.state("lasting").borrowed_workers, 1, how)
        self.assertNotIn(client.granted("lasting"), (kept, returned))
