"""Runs the interop tests. The last line says how many passed."""

import pathlib
import signal
import sys
import time
import unittest

import server


class Sentences(unittest.TestResult):
    """Prints one line for each test: its name reads as a sentence."""

    def __init__(self):
        super().__init__()
        self.passed = 0

    def startTest(self, test):
        super().startTest(test)
        self.began = time.monotonic()

    def line(self, verdict, test):
        sentence = test.id().rpartition(".")[2].removeprefix("test_").replace("_", " ")
        print(f"{verdict:<6} {sentence} ({time.monotonic() - self.began:.2f} s)", flush=True)

    def addSuccess(self, test):
        self.passed += 1
        self.line("ok", test)

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self.line("FAILED", test)

    def addError(self, test, err):
        super().addError(test, err)
        if isinstance(test, unittest.TestCase):
            self.line("FAILED", test)
        else:
            print(f"FAILED {test}", flush=True)


def interrupted(signal_number, _):
    """Turns a signal into an exit, so that no server outlives the tests."""
    sys.exit(128 + signal_number)


def main(names):
    signal.signal(signal.SIGTERM, interrupted)
    here = pathlib.Path(__file__).parent
    loader = unittest.TestLoader()
    loader.testNamePatterns = [f"*{name}*" for name in names] or None
    suite = loader.discover(str(here))
    if loader.errors:
        print("\n".join(loader.errors), file=sys.stderr)
        return 1
    result = Sentences()
    try:
        suite.run(result)
        failed = result.failures + result.errors
        for test, trace in failed:
            print(f"\n{test}\n{trace}", flush=True)
        if failed:
            print(server.logs(), flush=True)
    finally:
        server.stop_all()
    print(f"{result.passed} passed, {len(failed)} failed", flush=True)
    return 0 if result.passed and not failed else 1


sys.exit(main(sys.argv[1:]))
