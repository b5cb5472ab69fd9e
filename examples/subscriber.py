"""A subscriber that keeps an exact copy of every city's current row, over lost connections.

    pip install websockets
    python3 examples/subscriber.py ws://127.0.0.1:8080/v1/subscribe [FILE]

It prints a line for each message. With FILE, it also writes each complete copy there, as one JSON
object: {"as_of": .., "rows": {city: row}}. docs/protocol.md describes the messages.
"""

import asyncio
import json
import os
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

RETRY_S = 1


class CurrentRows:
    """The rows by city, and the token that continues the subscription from exactly these rows."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.rows, self.token, self.as_of = {}, None, 0

    def subscribe_message(self):
        message = {"type": "subscribe", "id": "current", "cities": "all", "rows": "latest"}
        if self.token is None:
            # A snapshot that was cut off has no token: the next one starts from nothing.
            self.reset()
            return message
        return {**message, "resume": self.token}

    def apply(self, message):
        """Applies a message and returns what to print of it."""
        kind = message["type"]
        if kind == "reset":
            self.reset()
            return f"reset: {message['reason']}"
        for row in message.get("rows", []) + message.get("upserts", []):
            self.rows[row["city"]] = row
        for row in message.get("removals", []):
            self.rows.pop(row["city"], None)
        self.as_of = message["as_of"]
        # Of a snapshot in several parts, the last one alone has a token.
        self.token = message.get("token")
        return f"{kind}: as of {self.as_of} there are {len(self.rows)} rows"


async def follow(url, current, on_change):
    """Reads one connection until it ends."""
    async with connect(url, max_size=None) as socket:
        hello = json.loads(await socket.recv())
        resuming = current.token is not None
        await socket.send(json.dumps(current.subscribe_message()))
        while True:
            # The service says something in every heartbeat: twice that long without a word is a lost connection.
            message = json.loads(await asyncio.wait_for(socket.recv(), 2 * hello["heartbeat_s"]))
            if message["type"] in ("snapshot", "changes", "reset"):
                line = current.apply(message)
                continued = resuming and message["type"] == "changes"
                print(f"{line}, continued" if continued else line, flush=True)
                resuming = False
                if current.token is not None:
                    on_change()
            elif message["type"] == "error":
                sys.exit(f"{message['code']}: {message['detail']}")


def save(path, current):
    """Replaces the file as a whole, so a reader never sees half of it."""
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        json.dump({"as_of": current.as_of, "rows": current.rows}, file)
    os.replace(f"{path}.new", path)


async def main(url, path=None):
    current = CurrentRows()
    while True:
        try:
            await follow(url, current, lambda: path and save(path, current))
        except (OSError, TimeoutError, InvalidHandshake, ConnectionClosed) as error:
            print(f"{type(error).__name__}: reconnecting", file=sys.stderr, flush=True)
            await asyncio.sleep(RETRY_S)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    asyncio.run(main(*sys.argv[1:]))
