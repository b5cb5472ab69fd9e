"""Runs the copy of the Autobahn test suite that port.py has made: python wstest.py FOLDER -m fuzzingclient -s SPEC"""

import binascii
import builtins
import sys

# A text of latin-1 stands for bytes: see port.py.
builtins._b = lambda data: data.encode("latin-1") if isinstance(data, str) else data
builtins._s = lambda data: bytes(data).decode("latin-1") if isinstance(data, (bytes, bytearray, memoryview)) else data
builtins._b2a_hex = lambda data: binascii.b2a_hex(builtins._b(data)).decode()

sys.path.insert(0, sys.argv.pop(1))

from autobahn.websocket.protocol import WebSocketClientFactory  # noqa: E402
from autobahntestsuite.wstest import run  # noqa: E402

# The client waits five seconds for a connection and one for its end, which an endpoint on a busy machine cannot always keep: what is judged
# here is whether it ends well, not how soon.
PATIENCE_S = 20
reset = WebSocketClientFactory.resetProtocolOptions


def reset_with_patience(factory):
    reset(factory)
    factory.openHandshakeTimeout = PATIENCE_S
    factory.closeHandshakeTimeout = PATIENCE_S
    factory.serverConnectionDropTimeout = PATIENCE_S


WebSocketClientFactory.resetProtocolOptions = reset_with_patience

run()
