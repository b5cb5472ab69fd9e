"""A subscriber written from docs/protocol.md alone, on a WebSocket library that has nothing to do with the service.

It keeps the maps of its subscriptions across cut sockets and restarts of the service, and holds every message against the rules of
the protocol. Where one is broken it ends with an error. Commands are JSON lines on standard input:

    {"do": "subscribe", "id": "a", "ask": {"cities": "all", "rows": "latest"}}
    {"do": "cut"}                     aborts the socket, without a word to the service
    {"do": "settle", "as_of": 123}    once everything is right as of then, answers with one line:
                                      {"maps": {"a": [row, ..]}, "continued": 3, "resets": ["generation"]}
"""

import asyncio
import json
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

RETRY_S = 0.05
PING_S = 0.1
SILENCE_S = 10


class Broken(Exception):
    """The service has broken the protocol."""


def require(holds, rule, message):
    if not holds:
        raise Broken(f"{rule}: {json.dumps(message)[:2000]}")


class Subscription:
    def __init__(self, name, ask):
        self.name = name
        self.ask = ask
        self.window = ask.get("rows") == "window"
        self.map = {}
        self.as_of = 0
        self.continued = 0
        self.resets = []
        self.asked_on = None
        self.start_again()

    def start_again(self):
        self.map.clear()
        self.token = None
        self.complete = False
        self.snapshot_as_of = None

    def request(self):
        """What is sent at the beginning of a session."""
        if not self.complete:
            self.start_again()
        self.resuming = self.token is not None
        resume = {"resume": self.token} if self.resuming else {}
        return {"type": "subscribe", "id": self.name, **self.ask, **resume}

    def key(self, row):
        return (row["city"], row["reading_at"]) if self.window else row["city"]

    def take(self, message):
        {"snapshot": self.snapshot, "changes": self.changes, "reset": self.reset}[message["type"]](message)

    def reset(self, message):
        self.resets.append(message["reason"])
        self.resuming = False
        self.start_again()

    def snapshot(self, message):
        require(not self.complete and not self.resuming, "a snapshot where none was due", message)
        require(self.snapshot_as_of in (None, message["as_of"]), "parts have the same as_of", message)
        self.snapshot_as_of = message["as_of"]
        for row in message["rows"]:
            require(self.key(row) not in self.map, "a key occurs once", message)
            self.map[self.key(row)] = row
        require(message["complete"] == ("token" in message), "the last part alone has a token", message)
        if message["complete"]:
            self.complete, self.token, self.as_of = True, message["token"], message["as_of"]

    def changes(self, message):
        require(self.complete, "changes come after the snapshot", message)
        if self.resuming:
            self.resuming = False
            self.continued += 1
            require(message["as_of"] >= self.as_of, "as_of does not fall", message)
        else:
            require(message["as_of"] > self.as_of, "as_of rises", message)
        keys = [self.key(row) for row in message["upserts"] + message["removals"]]
        require(len(keys) == len(set(keys)), "a key occurs once", message)
        for row in message["upserts"]:
            self.map[self.key(row)] = row
        for row in message["removals"]:
            require(self.window or row["city"] in self.map, "a removal names a city that the client has", message)
            self.map.pop(self.key(row), None)
        self.token, self.as_of = message["token"], message["as_of"]


class Recorder:
    def __init__(self, url):
        self.url = url
        self.subscriptions = {}
        self.socket = None
        self.target = None

    async def run(self):
        """Connects again and again."""
        while True:
            try:
                async with connect(self.url, max_size=None, compression=None, proxy=None) as socket:
                    await self.session(socket)
            except (OSError, TimeoutError, InvalidHandshake, ConnectionClosed):
                # Cut, or the service is not there, or not yet ready.
                await asyncio.sleep(RETRY_S)
            finally:
                self.socket = None

    async def session(self, socket):
        hello = json.loads(await asyncio.wait_for(socket.recv(), SILENCE_S))
        require(hello["type"] == "hello" and hello["protocol"] == 1, "the server speaks first", hello)
        self.socket = socket
        await self.ask()
        while True:
            self.take(json.loads(await asyncio.wait_for(socket.recv(), SILENCE_S)))

    def take(self, message):
        kind = message["type"]
        if kind in ("snapshot", "changes", "reset"):
            self.subscriptions[message["id"]].take(message)
        elif kind in ("heartbeat", "pong"):
            self.answer(message["as_of"])
        else:
            require(kind != "error", "nothing that was asked is wrong", message)

    def answer(self, as_of):
        """All that has changed up to `as_of` is in the maps whose snapshot has come."""
        everything = self.subscriptions.values()
        settled = all(each.complete and not each.resuming for each in everything)
        if self.target is None or as_of < self.target or not settled:
            return
        self.target = None
        maps = {each.name: list(each.map.values()) for each in everything}
        continued = sum(each.continued for each in everything)
        resets = [reason for each in everything for reason in each.resets]
        print(json.dumps({"maps": maps, "continued": continued, "resets": resets}), flush=True)

    async def ask(self):
        """Subscribes to what this session has not been asked for."""
        for subscription in list(self.subscriptions.values()):
            if subscription.asked_on is not self.socket:
                subscription.asked_on = self.socket
                await self.send(subscription.request())

    async def send(self, message):
        try:
            if self.socket:
                await self.socket.send(json.dumps(message))
        except ConnectionClosed:
            # The next session asks anew.
            pass

    async def ping(self):
        while True:
            await asyncio.sleep(PING_S)
            if self.target is not None:
                await self.send({"type": "ping"})

    async def obey(self):
        """Reads commands to the end of standard input."""
        commands = asyncio.StreamReader()
        reads = lambda: asyncio.StreamReaderProtocol(commands)  # noqa: E731
        await asyncio.get_running_loop().connect_read_pipe(reads, sys.stdin)
        while line := await commands.readline():
            command = json.loads(line)
            if command["do"] == "subscribe":
                self.subscriptions[command["id"]] = Subscription(command["id"], command["ask"])
                await self.ask()
            elif command["do"] == "cut" and self.socket:
                self.socket.transport.abort()
            elif command["do"] == "settle":
                self.target = command["as_of"]


async def main(url):
    recorder = Recorder(url)
    tasks = [asyncio.create_task(task()) for task in (recorder.obey, recorder.run, recorder.ping)]
    done, rest = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in rest:
        task.cancel()
    for task in done:
        task.result()


asyncio.run(main(sys.argv[1]))
