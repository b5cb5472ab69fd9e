"""Writes a copy of the Autobahn test suite, which is for Python 2, that today's Python runs: python port.py SUITE FOLDER

Payloads were texts of Python 2, so of bytes. In the copy they are texts of latin-1, a character a byte, up to where they are sent;
`_b`, `_s` and `_b2a_hex` are from wstest.py.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

# Not needed for the fuzzing client, and not to be had for today's Python.
UNUSED = r"^(\s*)(from \. import (massconnect|serializer|wsperf\w*|broadcast).*)$"
# What today's `autobahn` calls with an underscore.
COMPRESSION = (
    "requestNoContextTakeover requestMaxWindowBits acceptNoContextTakeover acceptMaxWindowBits noContextTakeover windowBits memLevel"
).split()
FUZZING = '''class FuzzingProtocol:
   debug = False
   def failConnection(self, *a, **k):
      return WebSocketProtocol._fail_connection(self, *a, **k)
   def sendFrame(self, opcode, payload = b"", *a, **k):
      return WebSocketProtocol.sendFrame(self, opcode, _b(payload), *a, **k)
   def sendMessage(self, payload, *a, **k):
      return WebSocketProtocol.sendMessage(self, _b(payload), *a, **k)
   def sendMessageFrameData(self, payload, *a, **k):
      return WebSocketProtocol.sendMessageFrameData(self, _b(payload), *a, **k)
   def sendCloseFrame(self, code = None, reasonUtf8 = None, isReply = False):
      return WebSocketProtocol.sendCloseFrame(self, code, None if reasonUtf8 is None else _b(reasonUtf8), isReply)
'''


def snake(name):
    return re.sub("([A-Z])", lambda capital: "_" + capital[1].lower(), name)


def port_case(source):
    """A file of cases."""
    source = re.sub(r"^#.*coding[=:].*\n", "", source)
    source = source.replace("binascii.b2a_hex", "_b2a_hex")
    source = source.replace('.encode("utf-8")', '.encode("utf-8").decode("latin-1")')
    source = source.replace(".encode('utf-8')", ".encode('utf-8').decode('latin-1')")
    source = re.sub(r"\.validate\((.*)\)", r".validate(_b(\1))", source)
    source = source.replace("(object, Case", "(Case").replace("len(self.payload) / self", "len(self.payload) // self")
    source = re.sub(r"^.*import implements.*$", "", source, flags=re.M)
    source = re.sub(r"^( *)implements\(.*\)$", r"\1pass", source, flags=re.M)
    for name in COMPRESSION:
        source = re.sub(rf"\b{name}\b", snake(name), source)
    return "# -*- coding: latin-1 -*-\n" + source


def port_driver(source):
    """A file of what runs the cases."""
    for old, new in [
        ("binascii.b2a_hex", "_b2a_hex"),
        (", debug = debug, debugCodePaths = debug", ""),
        (", pkg_resources", ""),
        ("''.join(payload)", "b''.join(payload)"),
        ("from . import wamp", "#"),
        ("from .wamp", "#from .wamp"),
        ("separators = (',', ': '))", "separators = (',', ': '), default = _s)"),
        ("produceHtml = True", "produceHtml = False"),
    ]:
        source = source.replace(old, new)
    return re.sub(UNUSED, r"\1pass #\2", source, flags=re.M)


def port_fuzzing(source):
    source = source.replace("class FuzzingProtocol:\n", FUZZING, 1)
    for head, name in [("onMessage(self, msg, binary)", "msg"), ("onPong(self, payload)", "payload")]:
        source = source.replace(f"   def {head}:\n", f"   def {head}:\n      {name} = _s({name})\n", 1)
    return source


def change(path, *ports):
    source = path.read_text(encoding="utf-8")
    for port in ports:
        source = port(source)
    path.write_text(source, encoding="utf-8")


def main(suite, folder):
    shutil.rmtree(folder, ignore_errors=True)
    copy = Path(folder) / "autobahntestsuite"
    shutil.copytree(suite, copy, ignore=shutil.ignore_patterns("wamp*", "__pycache__"))
    translate = [sys.executable, "-W", "ignore", "-m", "fissix", "-w", "-n", "--no-diffs", str(copy)]
    subprocess.run(translate, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for case in (copy / "case").glob("*.py"):
        change(case, port_case)
    for name in ["wstest", "util", "report", "testee", "__init__", "caseset"]:
        change(copy / f"{name}.py", port_driver)
    change(copy / "fuzzing.py", port_driver, port_fuzzing)


main(*sys.argv[1:])
