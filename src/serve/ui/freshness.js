// How old readings are by the service's clock, and what the page may call itself because of that.
import { datedTime } from './format.js';

/** Two of the service's times that agree so far, ms, are believed though they are earlier than expected. */
const AGREES_MS = 2000;
/** For so many seconds it is remembered what has come. */
const REMEMBERED_S = 5;

/** The service's clock, and from which age on a row is stale. */
export class ServiceClock {
  #ahead = 0;
  #last = 0;
  #staleAfterMs = Infinity;

  hello({ now, stale_after_s: seconds }) {
    if (Number.isFinite(now)) this.#ahead = this.#last = now - Date.now();
    this.#staleAfterMs = Number.isFinite(seconds) ? seconds * 1000 : Infinity;
  }

  /** A message may have waited for long, as in a computer that slept: then its time is too early. */
  tell(now) {
    if (!Number.isFinite(now)) return;
    const ahead = now - Date.now();
    if (ahead > this.#ahead || Math.abs(ahead - this.#last) < AGREES_MS) this.#ahead = ahead;
    this.#last = ahead;
  }

  get staleAfterMs() {
    return this.#staleAfterMs;
  }

  /** How old a reading of `at` is, ms; less than 0 where it is dated ahead of the clock. */
  age(at) {
    return Date.now() + this.#ahead - at;
  }

  isStale(at) {
    return this.age(at) > this.#staleAfterMs;
  }
}

/** What readings have come in the last seconds. */
export class Arrivals {
  #seconds = [{ fresh: 0, old: 0 }];

  add(stale) {
    if (stale) this.#seconds[0].old += 1;
    else this.#seconds[0].fresh += 1;
  }

  /** A second has passed. */
  tick() {
    this.#seconds.unshift({ fresh: 0, old: 0 });
    this.#seconds.length = Math.min(this.#seconds.length, REMEMBERED_S);
  }

  /** Whether it is mostly the past that comes. */
  get isReplay() {
    const [fresh, old] = this.#seconds.reduce(([f, o], second) => [f + second.fresh, o + second.old], [0, 0]);
    return old > fresh;
  }
}

/** What a connected page calls itself: live only where rows are fresh and it is not the past that comes. */
export function liveState(cities) {
  const { fresh, stale, newest } = cities;
  if (fresh + stale === 0) return { name: 'empty', text: 'No readings yet', detail: '' };
  if (stale > fresh && cities.arrivals.isReplay) {
    return { name: 'replaying', text: 'Replaying', detail: ` readings of ${datedTime(newest)}` };
  }
  if (fresh === 0) return { name: 'no_fresh', text: 'No fresh readings', detail: ` since ${datedTime(newest)}` };
  return { name: 'live', text: 'Live', detail: '' };
}
