// The Equal Earth projection (Šavrič, Patterson and Jenny 2018) of a unit sphere: areas are true, and the poles are lines.
const A1 = 1.340264;
const A2 = -0.081106;
const A3 = 0.000893;
const A4 = 0.003796;
const ROOT3 = Math.sqrt(3);

/** Degrees to the plane; y grows southwards, as on a screen. */
export function project(longitude, latitude) {
  const theta = Math.asin((ROOT3 / 2) * Math.sin((latitude * Math.PI) / 180));
  const t2 = theta * theta;
  const t6 = t2 * t2 * t2;
  const lambda = (longitude * Math.PI) / 180;
  const x = (2 * ROOT3 * lambda * Math.cos(theta)) / (3 * (9 * A4 * t2 * t6 + 7 * A3 * t6 + 3 * A2 * t2 + A1));
  const y = theta * (A4 * t2 * t6 + A3 * t6 + A2 * t2 + A1);
  return [x, -y];
}

/** A ring of degrees in the plane: twice, where it crosses the antimeridian, with what is beyond the edge of the world. */
export function projectRing(ring) {
  const whole = unwrapped(ring);
  const longitudes = whole.map(([longitude]) => longitude);
  const shifts = [0];
  if (Math.max(...longitudes) > 180) shifts.push(-360);
  if (Math.min(...longitudes) < -180) shifts.push(360);
  return shifts.map((shift) => whole.map(([longitude, latitude]) => project(longitude + shift, latitude)));
}

/** Without jumps from one edge to the other, unless it goes around a pole. */
function unwrapped(ring) {
  let turns = 0;
  const whole = ring.map(([longitude, latitude], i) => {
    const step = i ? longitude - ring[i - 1][0] : 0;
    if (Math.abs(step) > 180) turns -= Math.sign(step);
    return [longitude + 360 * turns, latitude];
  });
  return turns === 0 ? whole : ring;
}
