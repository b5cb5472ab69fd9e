"""Runs the copy of the Autobahn test suite that port.py has made: python wstest.py FOLDER -m fuzzingclient -s SPEC"""

import binascii
import builtins
import sys

# A text of latin-1 stands for bytes: see port.py.
builtins._b = lambda data: data.encode("latin-1") if isinstance(data, str) else data
builtins._s = lambda data: bytes(data).decode("latin-1") if isinstance(data, (bytes, bytearray, memoryview)) else data
builtins._b2a_hex = lambda data: binascii.b2a_hex(builtins._b(data)).decode()

sys.path.insert(0, sys.argv.pop(1))

from autobahntestsuite.wstest import run  # noqa: E402

run()
