// Colours of the style sheet for canvases, which do not know custom properties.
const NAMES = [
  ...['sea', 'land', 'coast', 'graticule', 'text', 'muted', 'panel', 'accent', 'grid', 'heat-index', 'rolling', 'flash'],
  ...['none', 'caution', 'extreme_caution', 'danger', 'extreme_danger'],
];

/** Every colour by its name, as it is now. */
export function palette() {
  const probe = document.createElement('span');
  document.body.append(probe);
  const colours = {};
  for (const name of NAMES) {
    probe.style.color = `var(--${name})`;
    colours[name] = getComputedStyle(probe).color;
  }
  probe.remove();
  return colours;
}
