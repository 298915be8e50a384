// The clips of the held-out items: base, a chosen iteration and the best one side by side, in step.
import { clip, clock, discard, seek } from "./clip.js";
import { el, icon, iconButton, setShown, setText } from "./dom.js";
import { number, signed } from "./format.js";
import { select, selection } from "./selection.js";
import { address, read } from "./server.js";
import { key, t } from "./texts.js";

const WIDTH = 384; // pixels
const COLUMNS = { base: key("base policy"), chosen: key("chosen iteration"), best: key("best iteration") };
const SORTS = { item: key("in order"), gain: key("by gain"), loss: key("by loss"), judge: key("by judge") };

export function clipsView() {
  let run, found, token = 0, shownKey = "", rows = [], sort = "item", chosen;
  const scores = new Map(); // iteration -> scores
  const slider = el("input.igrpo-wide", { type: "range", min: 0, step: 1, "aria-label": t("Iteration"), oninput: () => pick(Number(slider.value)) });
  const name = el("b.igrpo-at");
  const play = iconButton("pause", t("Pause all clips"), () => toggle());
  const frame = el("input", { type: "range", min: 0, max: 1, step: 0.001, value: 0, "aria-label": t("Position in the clips"), oninput: () => scrub() });
  const order = el("select.igrpo-field", { "aria-label": t("Sort"), onchange: () => ((sort = order.value), arrange()) }, ...Object.entries(SORTS).map(([value, text]) => el("option", { value, textContent: t(text) })));
  const bar = el("div.igrpo-row.igrpo-controls", {}, play, frame, el("span.igrpo-label", { textContent: t("Iteration") }), slider, name, el("span.igrpo-space"), order);
  const heads = ["base", "chosen", "best"].map((kind) => el("div.igrpo-column-head", { "data-kind": kind }));
  const list = el("div.igrpo-clips", {}, el("div.igrpo-clips-head", {}, el("div"), ...heads));
  const note = el("div.igrpo-note");
  const rest = el("div.igrpo-rest");
  const box = el("div.igrpo-column", {}, bar, note, el("div.igrpo-scroll", {}, list, rest));
  const follow = setInterval(() => {
    if (clock.playing && box.isConnected) frame.value = (clock.at % seconds()) / seconds();
  }, 100);

  const seconds = () => Math.max(0.1, ...rows.map((row) => (row.players.chosen.sheet ? row.players.chosen.sheet.frames / row.players.chosen.sheet.fps : 0)));

  function toggle(playing = !clock.playing) {
    clock.playing = playing;
    play.replaceChildren(icon(playing ? "pause" : "play"));
    play.title = playing ? t("Pause all clips") : t("Play all clips");
    play.setAttribute("aria-label", play.title);
  }

  function scrub() {
    toggle(false);
    seek(Math.min(Number(frame.value), 0.9999) * seconds());
  }

  const iterations = () => found?.iterations ?? [];

  function pick(index) {
    chosen = iterations()[index]?.iteration;
    // Of its own choice the newest is shown, also when a newer one comes.
    select({ iteration: index === iterations().length - 1 ? undefined : chosen });
    show();
  }

  // The nearest iteration with clips at or before the one that was asked for.
  function nearest(iteration) {
    const all = iterations();
    if (iteration === undefined) return all.at(-1)?.iteration;
    return (all.findLast((entry) => entry.iteration <= iteration) ?? all[0])?.iteration;
  }

  async function update(changed) {
    const other = run?.id !== changed.id;
    run = changed;
    const key = `${run.id} ${run.clips?.iteration} ${run.best} ${run.measured}`;
    if (other) scores.clear();
    if (key !== shownKey) {
      const turn = ++token;
      const answer = await read(run.id, "clips").catch((error) => ({ iterations: [], items: [], base: {}, problem: error.message }));
      if (turn !== token) return;
      shownKey = key;
      found = answer;
      build();
    }
    chosen = nearest(selection.iteration);
    await show();
  }

  function build() {
    const numbers = [...new Set(iterations().flatMap((entry) => entry.numbers))].sort((a, b) => a - b);
    for (const row of rows) row.end();
    rows = numbers.map((number_) => itemRow(number_));
    list.replaceChildren(list.firstChild, ...rows.map((row) => row.box));
    slider.max = Math.max(0, iterations().length - 1);
    setText(note, found.problem || (rows.length ? "" : t("No clips yet: the first are written with the first evaluation, or by Sample now.")));
    setShown(note, Boolean(note.textContent));
    setShown(list, rows.length > 0);
  }

  function itemRow(place) {
    const item = found.items[place];
    const players = {}, deltas = {};
    const cells = ["base", "chosen", "best"].map((kind) => {
      players[kind] = clip(WIDTH, t("{column}, item {number}", { column: t(COLUMNS[kind]), number: place + 1 }));
      deltas[kind] = el("div.igrpo-deltas");
      return el("div.igrpo-cell", { "data-kind": kind }, players[kind].canvas, deltas[kind]);
    });
    const references = Array.from({ length: item?.references ?? 0 }, (_, index) => el("img.igrpo-reference", { loading: "lazy", alt: t("Reference image {number}", { number: index + 1 }), src: address(run.id, `references/${place}/${index}`) }));
    const text = el("div.igrpo-item", {}, el("div.igrpo-references", {}, ...references), el("p.igrpo-prompt", { textContent: item?.prompt ?? t("item {number}", { number: place + 1 }), title: item?.prompt ?? "" }));
    return { place, id: item?.id, box: el("div.igrpo-clip-row", {}, text, ...cells), players, deltas, end: () => Object.values(players).forEach(discard) };
  }

  const scoresOf = async (iteration) => {
    if (scores.has(iteration)) return scores.get(iteration);
    const { id } = run;
    const answer = await read(id, `clips/${iteration}`).catch(() => ({}));
    if (answer.ids && run.id === id) scores.set(iteration, answer); // else it may be evaluated later
    return answer;
  };

  // The same of each person's identity.
  function peopleChange(at, id) {
    const find = (scores) => scores?.people?.[scores.ids.indexOf(id)] ?? [];
    const before = find(found.base);
    const deltas = find(at).map((value, index) => (typeof value === "number" && typeof before[index] === "number" ? value - before[index] : undefined));
    return deltas.length > 1 && deltas.every((delta) => delta !== undefined) ? deltas : undefined;
  }

  // The change of a score of an item against the base policy.
  function change(at, kind, id) {
    const index = at?.ids?.indexOf(id) ?? -1, start = found.base?.ids?.indexOf(id) ?? -1;
    const now = at?.[kind]?.[index], before = found.base?.[kind]?.[start];
    return typeof now === "number" && typeof before === "number" ? { now, delta: now - before } : undefined;
  }

  async function show() {
    if (!found) return;
    const turn = token, best = nearest(found.best ?? undefined);
    const index = iterations().findIndex((entry) => entry.iteration === chosen);
    slider.value = Math.max(0, index);
    setText(name, chosen === undefined ? "–" : `${chosen}`);
    const [atChosen, atBest] = await Promise.all([scoresOf(chosen ?? 0), scoresOf(best ?? 0)]);
    if (turn !== token) return;
    setText(heads[0], found.start === "base policy" || !found.start ? t("Base policy") : found.start === "start LoRA" ? t("Start LoRA") : t("Iteration 0"));
    setText(heads[1], t("Iteration {iteration}", { iteration: chosen ?? "–" }));
    setText(heads[2], found.best === null || found.best === undefined ? t("Best: not evaluated yet") : t("Best: iteration {iteration}", { iteration: best }));
    for (const row of rows) {
      const has = (iteration) => iterations().some((entry) => entry.iteration === iteration && entry.numbers.includes(row.place));
      const place = (kind, iteration) => (has(iteration) ? row.players[kind].show(run.id, iteration, row.place) : row.players[kind].show());
      place("base", 0);
      place("chosen", chosen);
      place("best", best);
      describe(row.deltas.base, undefined, scoreOf(found.base, row.id));
      row.gain = describe(row.deltas.chosen, changesOf(atChosen, row.id));
      describe(row.deltas.best, changesOf(atBest, row.id));
    }
    arrange();
    showRest(atChosen);
  }

  const changesOf = (at, id) => ({ reward: change(at, "rewards", id), judge: change(at, "identity", id), people: peopleChange(at, id) });

  function scoreOf(at, id) {
    const index = at?.ids?.indexOf(id) ?? -1;
    return index < 0 ? undefined : { reward: at.rewards?.[index], judge: at.identity?.[index] };
  }

  function describe(place, changes, plain) {
    const parts = [];
    for (const kind of ["reward", "judge"]) {
      const value = changes ? changes[kind]?.delta : plain?.[kind];
      if (typeof value !== "number") continue;
      const text = el("b", { textContent: changes ? signed(value) : number(value) });
      const part = el("span.igrpo-gain", {}, el("span.igrpo-label", { textContent: kind === "reward" ? t("reward") : t("judge") }), text);
      if (changes) {
        part.dataset.sign = value > 1e-9 ? "up" : value < -1e-9 ? "down" : "same";
        part.title = t("{value} now", { value: number(changes[kind].now) });
      }
      parts.push(part);
      if (kind === "judge" && changes?.people) parts.push(el("span.igrpo-label", { textContent: changes.people.map((delta, index) => `${index + 1}: ${signed(delta)}`).join("  "), title: t("The judge for each person, in the order of the reference images") }));
    }
    place.replaceChildren(...(parts.length ? parts : [el("span.igrpo-label", { textContent: changes && chosen !== undefined ? t("not scored here") : "" })]));
    return { reward: changes?.reward?.delta ?? 0, judge: changes?.judge?.delta ?? 0 };
  }

  function arrange() {
    const by = { item: (row) => row.place, gain: (row) => -row.gain?.reward, loss: (row) => row.gain?.reward, judge: (row) => -row.gain?.judge };
    const sorted = [...rows].sort((a, b) => by[sort](a) - by[sort](b) || a.place - b.place);
    sorted.forEach((row, index) => list.children[index + 1] !== row.box && list.insertBefore(row.box, list.children[index + 1]));
  }

  // Items that were scored, but whose clips the run did not keep: the best and the worst of them.
  function showRest(at) {
    const without = (at?.ids ?? []).filter((id) => !rows.some((row) => row.id === id));
    const changes = without.map((id) => ({ id, ...change(at, "rewards", id) })).filter((one) => typeof one.delta === "number");
    setShown(rest, changes.length > 0);
    if (!changes.length) return;
    changes.sort((a, b) => b.delta - a.delta);
    const most = Math.max(...changes.map((one) => Math.abs(one.delta)), 1e-9);
    const prompt = (id) => found.items.find((item) => item.id === id)?.prompt ?? id;
    rest.replaceChildren(
      el("h3", { textContent: t("{count} more items at iteration {iteration}, scored without a kept clip", { count: changes.length, iteration: chosen }) }),
      ...changes.map((one) => {
        const bar = el("i.igrpo-delta-bar");
        bar.style.width = `${(40 * Math.abs(one.delta)) / most}px`;
        return el("div.igrpo-row.igrpo-rest-row", { "data-sign": one.delta > 0 ? "up" : "down" }, el("b", { textContent: signed(one.delta) }), el("span.igrpo-delta", {}, bar), el("span.igrpo-prompt", { textContent: prompt(one.id), title: prompt(one.id) }));
      }),
    );
  }

  function end() {
    clearInterval(follow);
    for (const row of rows) row.end();
  }
  toggle(clock.playing);
  return { box, update, end };
}
