// A run's settings: those that differ from the preset first; a copy with changes.
import { duplicate, resume } from "./actions.js";
import { el, icon, setShown, setText } from "./dom.js";
import { openRun } from "./selection.js";
import { read } from "./server.js";
import { t } from "./texts.js";

export function settingsView() {
  let run, loaded, found = [];
  const changes = new Map(); // name -> number or switch
  const filter = el("input.igrpo-field", { type: "search", placeholder: t("Filter settings"), "aria-label": t("Filter settings"), oninput: () => arrange() });
  const heading = el("span.igrpo-label");
  const count = el("span.igrpo-label", { role: "status" });
  const copy = el("button.igrpo-button", { type: "button", onclick: () => make(false) }, icon("copy"), el("span", { textContent: t("Duplicate with changes") }));
  const start = el("button.igrpo-button.igrpo-primary", { type: "button", onclick: () => make(true) }, icon("play"), el("span", { textContent: t("Duplicate and start") }));
  const bar = el("div.igrpo-row.igrpo-controls", {}, filter, heading, el("span.igrpo-space"), count, copy, start);
  const body = el("tbody");
  const table = el("table.igrpo-table", {}, el("thead", {}, el("tr", {}, ...[t("Setting"), t("Value"), t("Preset"), t("Meaning")].map((text) => el("th", { textContent: text, scope: "col" })))), body);
  const problem = el("div.igrpo-note");
  const box = el("div.igrpo-column", {}, bar, problem, el("div.igrpo-scroll", {}, table));

  async function make(andStart) {
    const made = await duplicate(run, Object.fromEntries(changes));
    if (!made) return;
    changes.clear();
    if (andStart) await resume(made);
    openRun(made.id, "overview");
  }

  function field(setting) {
    if (setting.number === null) return el("code", { textContent: setting.value });
    const changed = () => {
      const given = typeof setting.number === "boolean" ? input.checked : Number(input.value);
      if (given === setting.number || (typeof given === "number" && (input.value.trim() === "" || Number.isNaN(given)))) changes.delete(setting.name);
      else changes.set(setting.name, given);
      input.classList.toggle("igrpo-changed", changes.has(setting.name));
      report();
    };
    const input =
      typeof setting.number === "boolean"
        ? el("input", { type: "checkbox", checked: setting.number, onchange: changed })
        : el("input.igrpo-field.igrpo-number", { inputMode: "decimal", value: String(setting.number), oninput: changed });
    input.setAttribute("aria-label", setting.name);
    return input;
  }

  function report() {
    setText(count, changes.size ? t("{count} changed", { count: changes.size }) : t("change values for a copy; this run keeps its own"));
  }

  function arrange() {
    const text = filter.value.trim().toLowerCase();
    for (const row of body.children) row.hidden = Boolean(text) && !row.dataset.text.includes(text);
  }

  async function update(changed) {
    run = changed;
    if (loaded === run.id) return;
    loaded = run.id;
    changes.clear();
    report();
    try {
      const answer = await read(run.id, "settings");
      if (loaded !== run.id) return;
      found = answer.settings;
      const differing = found.filter((setting) => setting.differs);
      setText(heading, t("preset {preset}, {count} of {total} settings differ", { preset: answer.preset, count: differing.length, total: found.length }));
      setText(problem, "");
      body.replaceChildren(
        ...[...differing, ...found.filter((setting) => !setting.differs)].map((setting) =>
          el(
            "tr",
            { className: setting.differs ? "igrpo-differs" : "", "data-text": `${setting.name} ${setting.value} ${setting.meaning}`.toLowerCase() },
            el("th", { scope: "row", textContent: setting.name }),
            el("td", { title: setting.type }, field(setting)),
            el("td", {}, setting.differs ? el("code", { textContent: setting.preset }) : null),
            el("td.igrpo-meaning", { textContent: setting.meaning }),
          ),
        ),
      );
      arrange();
    } catch (error) {
      loaded = undefined;
      body.replaceChildren();
      setText(problem, error.message);
    }
    setShown(problem, Boolean(problem.textContent));
  }
  report();
  return { box, update, end() {} };
}
