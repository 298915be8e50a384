// The charts of a run's overview: which curves there are, how they are smoothed, and how they look.
import uPlot from "../vendor/uplot/uPlot.mjs";
import { number } from "./format.js";
import { t } from "./texts.js";

const CURSOR = uPlot.sync("identity-grpo");
const DASHES = [[], [6, 4], [2, 3], [8, 3, 2, 3], [1, 5], [12, 4]]; // one for each run that lies over the others

const DOT = 6; // pixels
const FEW = 4; // pixels: less is a click, more a selection

const train = (row) => row.kind === "train";
const held = (row) => row.kind === "evaluation";
const gpu = (name) => name.startsWith("gib_");
const PERSON = /^identity_person_\d$/;
const PEOPLE = ["violet", "blue", "green"];

// An end of the interval of the mean reward. The items are the same at every evaluation: uncertain is their change.
const bound = (row, name) => (held(row) && typeof row[name] === "number" ? row.reward_mean + row[name] - row.margin : undefined);
const phase = (name) => name.slice(4).replaceAll("_", " ");

// Charts in their order. A curve: its name, its value of a row, its colour, and for some an interval, filling or dots.
export function chartsOf(rows) {
  const has = (name) => rows.some((row) => typeof row[name] === "number");
  const memory = [...new Set(rows.flatMap((row) => Object.keys(row).filter(gpu)))];
  const people = [...new Set(rows.flatMap((row) => Object.keys(row).filter((name) => PERSON.test(name))))].sort();
  const value = (name, of) => (row) => (of(row) ? row[name] : undefined);
  const charts = [
    {
      title: t("Reward"),
      hint: t("Mean of the rollouts and of the held-out items, with the 95% interval of their change against the base policy"),
      curves: [
        { name: t("rollouts"), get: value("reward_mean", train), colour: "blue", smooth: true },
        {
          name: t("held out"),
          get: value("reward_mean", held),
          low: (row) => bound(row, "margin_low"),
          high: (row) => bound(row, "margin_high"),
          colour: "amber",
          dots: true,
        },
      ],
    },
    {
      title: t("Win rate"),
      hint: t("On held-out items against the base policy, with its 95% interval"),
      range: [0, 1],
      level: 0.5,
      format: (v) => (v === null || v === undefined ? "–" : `${(100 * v).toFixed(0)}%`),
      curves: [
        {
          name: t("win rate"),
          get: (row) => (held(row) && row.iteration > 0 ? row.win : undefined),
          low: (row) => (held(row) && row.iteration > 0 ? row.win_low : undefined),
          high: (row) => (held(row) && row.iteration > 0 ? row.win_high : undefined),
          colour: "green",
          dots: true,
        },
      ],
    },
    {
      title: t("Held-out accuracy"),
      hint: t("How often the reward agrees with the votes on held-out pairs: on those without ties, and with ties predicted too"),
      range: [0, 1],
      level: 0.5,
      format: (v) => (v === null || v === undefined ? "–" : `${(100 * v).toFixed(0)}%`),
      curves: [
        { name: t("without ties"), get: value("accuracy", held), colour: "green", dots: true },
        { name: t("with ties"), get: value("accuracy_with_ties", held), colour: "quiet", dots: true },
      ],
    },
    {
      title: t("Preference loss"),
      curves: [
        { name: t("training"), get: value("preference_loss", train), colour: "blue", smooth: true },
        { name: t("held out"), get: value("preference_loss", held), colour: "amber", dots: true },
      ],
    },
    has("identity") && {
      title: t("Judge"),
      hint: has("alignment")
        ? t("TinyWorld's oracle, which is not trained on")
        : t("The face report, which is not trained on"),
      curves: [
        { name: t("identity"), get: value("identity", held), colour: "violet", dots: true },
        has("alignment") && { name: t("alignment"), get: value("alignment", held), colour: "quiet", dots: true },
        has("quality") && { name: t("quality"), get: value("quality", held), colour: "amber", dots: true },
      ],
    },
    people.length > 1 && {
      title: t("Identity per person"),
      hint: t("The judge for each person, in the order of the reference images"),
      curves: people.map((name, index) => ({ name: String(index + 1), get: value(name, held), colour: PEOPLE[index % PEOPLE.length], dots: true })),
    },
    { title: "KL", hint: t("To the base policy"), log: true, curves: [{ name: "KL", get: value("kl", train), colour: "blue", smooth: true }] },
    { title: t("Clip fraction"), zero: true, curves: [{ name: t("clipped"), get: value("clipfrac", train), colour: "amber", smooth: true }] },
    { title: t("Ratio drift"), log: true, curves: [{ name: "|ratio − 1|", get: value("ratio_error", train), colour: "violet", smooth: true }] },
    { title: t("Gradient norm"), log: true, curves: [{ name: t("norm"), get: value("grad_norm", train), colour: "green", smooth: true }] },
    {
      title: t("Seconds per phase"),
      zero: true,
      curves: [
        { name: t("update"), get: value("seconds_update", train), colour: "amber", fill: true },
        { name: t("total"), get: (row) => (train(row) ? (row.seconds_rollout ?? 0) + (row.seconds_update ?? 0) : undefined), colour: "blue", fill: true },
      ],
    },
    memory.length > 0 && {
      title: t("GPU memory, GiB"),
      zero: true,
      curves: memory.map((name, index) => ({ name: phase(name), get: value(name, train), colour: ["blue", "amber", "green", "violet", "red", "quiet"][index % 6] })),
    },
  ];
  return charts.filter(Boolean).map((chart) => ({ ...chart, curves: chart.curves.filter(Boolean) }));
}

// An average over the curve so far that forgets older values, without the pull towards its first value.
export function smoothed(values, amount) {
  if (!amount) return values;
  let mean = 0, weight = 0;
  return values.map((value) => {
    if (value === null || value === undefined) return value;
    mean = amount * mean + (1 - amount) * value;
    weight = amount * weight + (1 - amount);
    return mean / weight;
  });
}

function colours(element) {
  const style = getComputedStyle(element);
  const probe = document.createElement("span");
  element.append(probe);
  const found = {};
  for (const name of ["blue", "amber", "green", "violet", "red", "quiet", "line", "text"]) {
    probe.style.color = `var(--ig-${name})`;
    found[name] = getComputedStyle(probe).color;
  }
  probe.remove();
  return { ...found, font: `11px ${style.fontFamily}` };
}

const faded = (colour, part) => `color-mix(in srgb, ${colour} ${100 * part}%, transparent)`;

// `runs`: [{ title, rows }], the open one first. Returns { plot, ... } or undefined when nothing is measured.
export function plot(place, chart, runs, { smoothing, log, zoom, width, height, onIteration, onCursor, onZoom }) {
  const paint = colours(place);
  const series = [{}], bands = [], tables = [];
  runs.forEach((run, which) => {
    const x = [], columns = [];
    const used = run.rows.filter((row) => chart.curves.some((curve) => typeof curve.get(row) === "number"));
    for (const row of used) if (x.at(-1) !== row.iteration) x.push(row.iteration);
    const at = new Map(x.map((iteration, index) => [iteration, index]));
    const column = (get) => {
      const values = new Array(x.length).fill(undefined);
      for (const row of used) {
        const value = get(row);
        if (typeof value === "number") values[at.get(row.iteration)] = value;
      }
      return values;
    };
    for (const curve of chart.curves) {
      const values = column(curve.get);
      if (!values.some((value) => typeof value === "number")) continue;
      const colour = paint[curve.colour], alpha = which ? 0.6 : 1;
      const few = values.length < 60;
      const style = { label: curve.name, run: which, paint: colour, stroke: colour, alpha, width: which ? 1.2 : 1.6, dash: DASHES[which % DASHES.length], spanGaps: true, points: { show: Boolean(curve.dots) && few && !which, size: 5, fill: colour } };
      const interval = curve.low && !which ? [column(curve.high), column(curve.low)] : [];
      if (interval.flat().some((value) => typeof value === "number")) {
        columns.push(...interval);
        series.push(...[0, 1].map(() => ({ silent: true, stroke: "transparent", points: { show: false }, spanGaps: true })));
        bands.push({ series: [series.length - 2, series.length - 1], fill: faded(colour, 0.16) });
      }
      if (curve.smooth && smoothing) {
        columns.push(values);
        series.push({ silent: true, stroke: colour, alpha: 0.28 * alpha, width: 1, spanGaps: true, points: { show: false } });
      }
      columns.push(curve.smooth ? smoothed(values, smoothing) : values);
      if (curve.fill && !which) style.fill = faded(colour, 0.14);
      series.push(style);
    }
    tables.push([x, ...columns]);
  });
  if (!series.length || series.length === 1) return undefined;
  const data = uPlot.join(tables.filter((table) => table.length > 1));
  const logarithmic = log && chart.log && data.slice(1).some((values) => values.some((value) => value > 0));
  if (logarithmic) for (let i = 1; i < data.length; i++) data[i] = data[i].map((value) => (value > 0 ? value : null));
  const format = chart.format ?? number;
  const axis = { stroke: paint.quiet, font: paint.font, grid: { stroke: faded(paint.line, 0.7), width: 1 }, ticks: { show: false } };
  const options = {
    width,
    height,
    series,
    bands,
    legend: { show: false },
    padding: [6, 18, 0, 0],
    cursor: { sync: { key: CURSOR.key, scales: ["x", null] }, points: { size: DOT, show: cursorDot }, drag: { x: true, y: false, setScale: false }, bind: { dblclick: () => () => (onZoom(undefined), null) } },
    scales: {
      x: { time: false },
      y: logarithmic ? { distr: 3 } : { range: chart.range ?? ((_, low, high) => padded(low, high, chart.zero)) },
    },
    axes: [
      { ...axis, size: 22, gap: 3, values: (_, ticks) => ticks.map((tick) => (Number.isInteger(tick) ? String(tick) : "")) },
      { ...axis, size: 46, gap: 4, values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : format(tick))) },
    ],
    hooks: { setCursor: [(self) => onCursor(self)], setSelect: [selected] },
  };
  if (chart.level !== undefined) options.hooks.drawAxes = [(self) => levelLine(self, chart.level, paint.quiet)];
  function selected(self) {
    const { left, width: wide } = self.select;
    if (wide < FEW) return;
    onZoom([self.posToVal(left, "x"), self.posToVal(left + wide, "x")]);
  }
  const made = new uPlot(options, data, place);
  const [min, max] = zoom ?? whole(runs);
  made.setScale("x", { min, max });
  let pressed;
  made.over.addEventListener("pointerdown", (event) => (pressed = event.clientX));
  made.over.addEventListener("click", (event) => {
    const index = made.cursor.idx;
    if (Math.abs(event.clientX - pressed) < FEW && index !== null && index !== undefined) onIteration(made.data[0][index]);
  });
  made.format = format;
  return made;
}

// The iterations that all charts show, also one whose curves begin later or have a single point.
function whole(runs) {
  const measured = runs.filter((run) => run.rows.length);
  const first = Math.min(...measured.map((run) => run.rows[0].iteration));
  return [first, Math.max(first + 1, ...measured.map((run) => run.rows.at(-1).iteration))];
}

// A dot on the open run's curves only.
function cursorDot(self, place) {
  if (self.series[place].silent || self.series[place].run) return false;
  const dot = document.createElement("div");
  Object.assign(dot.style, { width: `${DOT}px`, height: `${DOT}px`, marginLeft: `${-DOT / 2}px`, marginTop: `${-DOT / 2}px` });
  return dot;
}

function padded(low, high, zero) {
  if (low === null || low === undefined) return [0, 1];
  const span = high - low || Math.abs(high) || 1;
  return [zero ? 0 : low - 0.06 * span, high + 0.06 * span];
}

function levelLine(self, value, colour) {
  const y = self.valToPos(value, "y", true);
  const { ctx, bbox } = self;
  ctx.save();
  ctx.strokeStyle = colour;
  ctx.globalAlpha = 0.6;
  ctx.setLineDash([4, 4]);
  ctx.beginPath();
  ctx.moveTo(bbox.left, y);
  ctx.lineTo(bbox.left + bbox.width, y);
  ctx.stroke();
  ctx.restore();
}

// The value of a series at an index of the shared cursor: the nearest one at or before it.
export function valueAt(values, index) {
  for (let i = index; i >= 0; i--) if (typeof values[i] === "number") return values[i];
  return undefined;
}
