// The charts of a run, live, with other runs over them.
import { chartsOf, plot, valueAt } from "./charts.js";
import { el, icon, setShown } from "./dom.js";
import { titleOf } from "./format.js";
import { metricsOf } from "./metrics.js";
import { openRun, selection } from "./selection.js";
import { address } from "./server.js";
import * as store from "./store.js";
import { t } from "./texts.js";

const NARROW = 290; // pixels of a chart, at least
const LOW = 128, HIGH = 320; // pixels of its plot
const FRAME = 44; // pixels of a chart around its plot
const SOON = 30; // ms
const SETTLED = 120; // ms after which a new size counts

export function overview() {
  let plots = [], shownKey = "", over = [], asked = 0, shown = 0, scheduled;
  const look = { smoothing: 0.6, log: false, zoom: undefined };
  const grid = el("div.igrpo-charts");
  const nothing = el("div.igrpo-note", { textContent: t("Nothing is measured yet: the first curve appears with the first iteration.") });
  const slider = el("input", { type: "range", "aria-label": t("Smoothing"), min: 0, max: 0.98, step: 0.02, value: look.smoothing, oninput: () => ((look.smoothing = Number(slider.value)), render()) });
  const logBox = el("input", { type: "checkbox", onchange: () => ((look.log = logBox.checked), render()) });
  const legend = el("div.igrpo-legend");
  const csv = el("a.igrpo-button", { download: "", title: t("All metrics as a CSV file") }, icon("download"), el("span", { textContent: "CSV" }));
  const bar = el(
    "div.igrpo-row.igrpo-controls",
    {},
    el("label.igrpo-row", {}, el("span.igrpo-label", { textContent: t("Smoothing") }), slider),
    el("label.igrpo-row", { title: t("For KL, ratio drift and gradient norm") }, logBox, el("span", { textContent: t("Log scale") })),
    legend,
    csv,
  );
  const box = el("div.igrpo-overview", {}, bar, nothing, grid);
  let resized;
  const sizes = new ResizeObserver(() => {
    clearTimeout(resized);
    resized = setTimeout(() => render(), SETTLED);
  });
  sizes.observe(grid);

  // What was read later is not replaced by what was asked for earlier; but a slow answer is shown until then.
  async function update(run) {
    const turn = ++asked;
    csv.href = address(run.id, "metrics.csv");
    const ids = [run.id, ...[...selection.overlaid].filter((id) => id !== run.id && store.runs.has(id))];
    const found = await Promise.all(
      ids.map(async (id) => {
        const one = store.runs.get(id) ?? run;
        return { id, title: titleOf(one), rows: await metricsOf(one).catch(() => []) };
      }),
    );
    if (turn < shown) return;
    shown = turn;
    over = found;
    // Several answers may come at once.
    scheduled ??= setTimeout(() => {
      scheduled = undefined;
      render();
    }, SOON);
  }

  function render() {
    const width = grid.clientWidth;
    if (!width || !box.isConnected) return;
    const rows = over.flatMap((run) => run.rows);
    const key = JSON.stringify([width, box.parentElement?.clientHeight, look, over.map((run) => [run.id, run.title, run.rows.length, run.rows.at(-1)?.iteration])]);
    if (key === shownKey) return;
    shownKey = key;
    const scrolled = box.parentElement?.scrollTop ?? 0;
    for (const one of plots) one.plot.destroy();
    plots = [];
    setShown(nothing, rows.length === 0);
    const charts = rows.length ? chartsOf(rows) : [];
    // As large as the room allows without scrolling, else small.
    const room = (box.parentElement?.clientHeight ?? 0) - grid.offsetTop - 14;
    const most = Math.max(1, Math.floor(width / NARROW));
    const columns = charts.length > most && room > 3 * (LOW + FRAME) ? Math.min(most, 3) : most;
    const height = Math.max(LOW, Math.min(HIGH, Math.floor(room / Math.ceil(charts.length / columns)) - FRAME));
    const each = Math.floor((width - 10 * (columns - 1)) / columns);
    grid.style.gridTemplateColumns = `repeat(${columns}, minmax(0, 1fr))`;
    grid.replaceChildren();
    for (const chart of charts) {
      const values = el("span.igrpo-values"), place = el("div.igrpo-plot");
      const frame = el("figure.igrpo-chart", { "aria-label": chart.title }, el("figcaption.igrpo-row", {}, el("h3", { textContent: chart.title, title: chart.hint ?? chart.title }), values), place);
      grid.append(frame);
      const made = plot(place, chart, over, { ...look, width: each - 18, height, onIteration: (iteration) => openRun(selection.run, "clips", { iteration }), onCursor, onZoom });
      if (!made) {
        frame.remove();
        continue;
      }
      plots.push({ plot: made, values });
      readOut(plots.at(-1), made.data[0].length - 1);
    }
    legend.replaceChildren(...(over.length > 1 ? over : []).map((run, index) => el("span.igrpo-key", { title: run.id }, el("i", { className: `igrpo-dash igrpo-dash-${index % 4}` }), el("span", { textContent: run.title }))));
    if (box.parentElement) box.parentElement.scrollTop = scrolled;
  }

  function onZoom(range) {
    look.zoom = range;
    setTimeout(render); // the chart that asks is still at work
  }

  // One cursor for all: the synchronised plots report it one after another.
  function onCursor(self) {
    const one = plots.find(({ plot }) => plot === self);
    if (one) readOut(one, self.cursor.idx ?? self.data[0].length - 1, self.cursor.idx ?? undefined);
  }

  function readOut({ plot, values }, index, at) {
    const own = plot.series.filter((series, place) => place && !series.silent && series.run === 0);
    const parts = at === undefined ? [] : [el("span.igrpo-label", { textContent: `@ ${plot.data[0][at]}` })];
    plot.series.forEach((series, place) => {
      if (!place || series.silent) return;
      const value = valueAt(plot.data[place], index);
      const text = el("b", { textContent: plot.format(value) });
      text.style.color = series.paint;
      if (series.run) text.style.opacity = 0.6;
      parts.push(el("span", { title: `${over[series.run]?.title ?? ""}: ${series.label}` }, own.length > 1 && series.run === 0 ? el("span.igrpo-label", { textContent: series.label }) : null, text));
    });
    values.replaceChildren(...parts);
  }

  function end() {
    sizes.disconnect();
    clearTimeout(scheduled);
    for (const one of plots) one.plot.destroy();
  }
  return { box, update, end };
}
