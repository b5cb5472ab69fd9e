// A client of the WebSocket protocol. It keeps its subscriptions alive across drops, restarts and replays: after a reconnect each
// resumes by its last token, or starts again with a snapshot.

const PROTOCOL = 1;
/** Rows are held in these, whatever the service prefers and the page shows: so switching needs nothing from the service. */
const WIRE_UNITS = { units: 'fahrenheit', wind_units: 'mph' };
const FIRST_RETRY_MS = 500;
const LAST_RETRY_MS = 15000;
const CATCHING_UP_RETRY_MS = 1000;
const HELLO_LIMIT_MS = 10000;
const STATUS_EVERY_MS = 2000;

/** By a path from where the page is, so that a proxy may serve it below a path of its own. */
const address = (path) => new URL(`../${path}`, import.meta.url);

/** Between half of `delay` and all of it, so that clients that were dropped together do not come back together. */
const jittered = (delay) => delay * (0.5 + Math.random() / 2);

/** One subscription. Its rows go to `receiver.snapshot(rows, { first, complete })` and `receiver.changes(upserts, removals)`. */
class Subscription {
  constructor(id, wanted, receiver) {
    this.id = id;
    this.wanted = wanted;
    this.receiver = receiver;
    this.token = null;
    this.startsAgain();
  }

  startsAgain() {
    this.token = null;
    this.next = 'snapshot';
  }

  request() {
    const resume = this.token ? { resume: this.token } : {};
    return { type: 'subscribe', id: this.id, ...this.wanted, ...WIRE_UNITS, ...resume };
  }
}

export class Feed {
  #on;
  #subscriptions = new Map();
  #numbers = 0;
  #socket = null;
  #heartbeatMs = 15000;
  #heard = 0;
  #greeted = false;
  #failures = 0;
  #attempts = 0;
  #timer = 0;
  #state = '';
  #token = null;
  #worker = new Worker(new URL('requests.js', import.meta.url), { type: 'module' });
  #answers = new Map();

  /** `on` has `state(name, retryAt)`, `hello(message)`, `now(ms)`, `asOf(ms)` and `status(body)`. */
  constructor(on) {
    this.#on = on;
    this.#worker.onmessage = ({ data: { id, ...answer } }) => {
      this.#answers.get(id)?.(answer);
      this.#answers.delete(id);
    };
  }

  start(token) {
    this.#token = token;
    setInterval(() => this.#watch(), 1000);
    setInterval(() => this.#pollStatus(), STATUS_EVERY_MS);
    addEventListener('online', () => this.#hurry());
    document.addEventListener('visibilitychange', () => document.hidden || this.#hurry());
    this.#connect();
  }

  /** Goes on with another token. */
  authorize(token) {
    this.#token = token;
    this.#failures = 0;
    this.#connect();
  }

  subscribe(wanted, receiver) {
    const subscription = new Subscription(`s${this.#numbers++}`, wanted, receiver);
    this.#subscriptions.set(subscription.id, subscription);
    if (this.#greeted) this.#send(subscription.request());
    return subscription.id;
  }

  unsubscribe(id) {
    if (this.#subscriptions.delete(id) && this.#greeted) this.#send({ type: 'unsubscribe', id });
  }

  /** `{ status, body }` of a GET of JSON; status 0 where there was no answer. */
  get(path) {
    const id = this.#numbers++;
    return new Promise((resolve) => {
      this.#answers.set(id, resolve);
      this.#worker.postMessage({ id, url: address(path).href, token: this.#token });
    });
  }

  #enter(state, retryAt = 0) {
    this.#state = state;
    this.#on.state(state, retryAt);
  }

  #retry(state, delay) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#connect(), delay);
    this.#enter(state, Date.now() + delay);
  }

  #backOff() {
    const delay = Math.min(LAST_RETRY_MS, FIRST_RETRY_MS * 2 ** this.#failures);
    this.#failures += 1;
    this.#retry('waiting', jittered(delay));
  }

  #hurry() {
    if (this.#state === 'waiting') this.#connect();
  }

  // A socket is opened only once the service has answered: a failed WebSocket is always written to the console.
  async #connect() {
    clearTimeout(this.#timer);
    this.#attempts += 1;
    const attempt = this.#attempts;
    if (this.#state !== 'catching_up') this.#enter('connecting');
    const { status, body } = await this.get('v1/status');
    if (attempt !== this.#attempts || this.#socket) return;
    if (status === 401 || status === 403) this.#enter('unauthorized');
    else if (status === 503 || (status === 200 && body?.ready === false)) {
      this.#retry('catching_up', jittered(CATCHING_UP_RETRY_MS));
    } else if (status === 200) {
      this.#on.status(body);
      this.#open();
    } else this.#backOff();
  }

  #open() {
    this.#enter('connecting');
    const url = address('v1/subscribe');
    url.protocol = url.protocol === 'https:' ? 'wss:' : 'ws:';
    let socket;
    try {
      socket = this.#token ? new WebSocket(url, ['swelter.v1', `bearer.${this.#token}`]) : new WebSocket(url);
    } catch {
      this.#enter('unauthorized');
      return;
    }
    this.#socket = socket;
    this.#heard = performance.now();
    socket.onmessage = ({ data }) => this.#socket === socket && this.#receive(data);
    socket.onclose = () => this.#socket === socket && this.#drop();
  }

  #drop() {
    const socket = this.#socket;
    this.#socket = null;
    this.#greeted = false;
    socket?.close();
    this.#backOff();
  }

  #watch() {
    if (!this.#socket) return;
    const limit = this.#greeted ? 2 * this.#heartbeatMs : HELLO_LIMIT_MS;
    if (performance.now() - this.#heard > limit) this.#drop();
  }

  async #pollStatus() {
    if (this.#state !== 'live' || document.hidden) return;
    const { status, body } = await this.get('v1/status');
    if (status === 200 && body) this.#on.status(body);
  }

  #send(message) {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(message));
  }

  #receive(text) {
    this.#heard = performance.now();
    let message;
    try {
      message = JSON.parse(text);
    } catch {
      this.#drop();
      return;
    }
    if (message.type === 'hello') this.#greet(message);
    else if (message.type === 'heartbeat') this.#tell(message);
    else if (message.type === 'pong') this.#pong(message);
    else this.#deliver(message);
  }

  #greet(hello) {
    if (hello.protocol !== PROTOCOL) {
      this.#drop();
      return;
    }
    this.#heartbeatMs = hello.heartbeat_s * 1000;
    this.#greeted = true;
    this.#on.hello(hello);
    for (const subscription of this.#subscriptions.values()) {
      subscription.next = subscription.token ? 'changes' : 'snapshot';
      this.#send(subscription.request());
    }
    // Where nothing has changed meanwhile, its answer is the first thing that a resumed session hears.
    this.#send({ type: 'ping' });
  }

  #tell({ as_of: asOf, now }) {
    this.#on.now(now);
    this.#on.asOf(asOf);
  }

  #pong(message) {
    this.#tell(message);
    this.#checkLive();
  }

  #checkLive() {
    if (this.#state === 'live') return;
    for (const { next } of this.#subscriptions.values()) if (next !== 'changes') return;
    this.#failures = 0;
    this.#enter('live');
  }

  #deliver(message) {
    const subscription = this.#subscriptions.get(message.id);
    if (!subscription) return;
    const { receiver } = subscription;
    if (message.token) subscription.token = message.token;
    if (message.type === 'snapshot') {
      receiver.snapshot(message.rows, { first: subscription.next === 'snapshot', complete: message.complete });
      subscription.next = message.complete ? 'changes' : 'more';
    } else if (message.type === 'changes') {
      receiver.changes(message.upserts, message.removals);
    } else if (message.type === 'reset') {
      subscription.startsAgain();
    } else if (message.type === 'error') {
      this.#refused(subscription, message);
      return;
    }
    if (message.as_of) this.#on.asOf(message.as_of);
    if (subscription.next === 'changes') this.#checkLive();
  }

  #refused(subscription, { code, detail }) {
    if (code === 'busy') {
      // Another socket has asked anew by itself.
      const socket = this.#socket;
      const again = () => {
        if (this.#socket === socket && this.#subscriptions.has(subscription.id)) this.#send(subscription.request());
      };
      setTimeout(again, jittered(2000));
      return;
    }
    this.#subscriptions.delete(subscription.id);
    subscription.receiver.refused?.(detail ?? code);
  }
}
