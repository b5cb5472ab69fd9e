// A subscriber that keeps an exact copy of every city's current row, over lost connections.
//
//     npm install ws          (not needed from Node 22 on, which has a WebSocket client)
//     node examples/subscriber.mjs ws://127.0.0.1:8080/v1/subscribe [FILE]
//
// It prints a line for each message. With FILE, it also writes each complete copy there, as one JSON
// object: {"as_of": .., "rows": {city: row}}. docs/protocol.md describes the messages.

import { renameSync, writeFileSync } from 'node:fs';

const WebSocket = globalThis.WebSocket ?? (await import('ws')).WebSocket;
const RETRY_MS = 1000;

/** The rows by city, and the token that continues the subscription from exactly these rows. */
class CurrentRows {
  rows = new Map();
  token = null;
  asOf = 0;

  reset() {
    this.rows.clear();
    this.token = null;
    this.asOf = 0;
  }

  subscribeMessage() {
    const message = { type: 'subscribe', id: 'current', cities: 'all', rows: 'latest' };
    if (this.token) return { ...message, resume: this.token };
    // A snapshot that was cut off has no token: the next one starts from nothing.
    this.reset();
    return message;
  }

  /** Applies a message and returns what to print of it. */
  apply(message) {
    if (message.type === 'reset') {
      this.reset();
      return `reset: ${message.reason}`;
    }
    for (const row of [...(message.rows ?? []), ...(message.upserts ?? [])]) this.rows.set(row.city, row);
    for (const row of message.removals ?? []) this.rows.delete(row.city);
    this.asOf = message.as_of;
    // Of a snapshot in several parts, the last one alone has a token.
    this.token = message.token ?? null;
    return `${message.type}: as of ${this.asOf} there are ${this.rows.size} rows`;
  }
}

/** Reads one connection until it ends. */
function follow(url, current, onChange) {
  return new Promise((resolve) => {
    const socket = new WebSocket(url);
    let silence;
    let heartbeatMs = 15_000;
    let resuming = current.token !== null;
    const end = () => {
      clearTimeout(silence);
      socket.close();
      resolve();
    };
    // The service says something in every heartbeat: twice that long without a word is a lost connection.
    const waitForMessage = () => {
      clearTimeout(silence);
      silence = setTimeout(end, 2 * heartbeatMs);
    };
    const take = (message) => {
      if (message.type === 'hello') {
        heartbeatMs = message.heartbeat_s * 1000;
        socket.send(JSON.stringify(current.subscribeMessage()));
      } else if (['snapshot', 'changes', 'reset'].includes(message.type)) {
        const line = current.apply(message);
        console.log(resuming && message.type === 'changes' ? `${line}, continued` : line);
        resuming = false;
        if (current.token) onChange();
      } else if (message.type === 'error') {
        console.error(`${message.code}: ${message.detail}`);
        process.exit(1);
      }
    };
    socket.onmessage = ({ data }) => {
      waitForMessage();
      take(JSON.parse(data));
    };
    socket.onerror = () => {}; // `onclose` follows.
    socket.onclose = end;
    waitForMessage();
  });
}

/** Replaces the file as a whole, so a reader never sees half of it. */
function save(path, current) {
  writeFileSync(`${path}.new`, JSON.stringify({ as_of: current.asOf, rows: Object.fromEntries(current.rows) }));
  renameSync(`${path}.new`, path);
}

const [url, path] = process.argv.slice(2);
if (!url) {
  console.error('usage: node subscriber.mjs URL [FILE]');
  process.exit(2);
}
const current = new CurrentRows();
for (;;) {
  await follow(url, current, () => path && save(path, current));
  console.error('the connection has ended: reconnecting');
  await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
}
