// A small curve without axes.
import { t } from "./texts.js";

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 100, HEIGHT = 24, MARGIN = 2;

// An SVG that fills its place; `set(values)` shows others.
export function spark(label) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("class", "igrpo-spark");
  svg.setAttribute("role", "img");
  const [area, line] = ["igrpo-spark-area", "igrpo-spark-line"].map((name) => {
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("class", name);
    svg.append(path);
    return path;
  });
  let shown;
  function set(values) {
    const key = values.join();
    if (key === shown) return;
    shown = key;
    const points = place(values);
    line.setAttribute("d", points.length > 1 ? `M${points.join("L")}` : "");
    area.setAttribute("d", points.length > 1 ? `M${MARGIN},${HEIGHT}L${points.join("L")}L${WIDTH - MARGIN},${HEIGHT}Z` : "");
    const said = values.length
      ? t("{label}, from {first} to {last}", { label, first: values[0].toFixed(2), last: values.at(-1).toFixed(2) })
      : t("{label}, not measured yet", { label });
    svg.setAttribute("aria-label", said);
  }
  set([]);
  return { svg, set };
}

function place(values) {
  const low = Math.min(...values), span = Math.max(...values) - low || 1;
  const x = (index) => MARGIN + ((WIDTH - 2 * MARGIN) * index) / (values.length - 1);
  const y = (value) => HEIGHT - MARGIN - ((HEIGHT - 2 * MARGIN) * (value - low)) / span;
  return values.map((value, index) => `${x(index).toFixed(1)},${y(value).toFixed(1)}`);
}
