// Draws small line charts as SVG.
import { svg } from "./dom.js";

const WIDTH = 300, HEIGHT = 50;

// `series` are arrays of numbers, or null where there is none; all share one axis, which begins at 0.
export function lineChart(series, label) {
  const highest = Math.max(...series.flat().filter((value) => value != null), 1e-9);
  const step = WIDTH / Math.max(series[0].length - 1, 1);
  const place = (value, at) => `${(at * step).toFixed(1)} ${(HEIGHT - (value / highest) * (HEIGHT - 3) - 1).toFixed(1)}`;
  const paths = series.map((values, at) => {
    const segments = [];
    let open = false;
    values.forEach((value, index) => {
      if (value != null) segments.push(`${open ? "L" : "M"}${place(value, index)}`);
      open = value != null;
    });
    return svg("path", { class: `line ${["a", "b", "c"][at]}`, d: segments.join("") });
  });
  const area = series.length === 1
    ? svg("path", { class: "area", d: `M0 ${HEIGHT}${series[0].map((value, at) => `L${place(value ?? 0, at)}`).join("")}L${WIDTH} ${HEIGHT}Z` })
    : null;
  return svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": label }, area, ...paths);
}
