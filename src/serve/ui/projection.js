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
