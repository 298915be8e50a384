// The sidebar tab: all runs as cards.
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { card } from "./card.js";
import { addStyle, el, icon, iconButton, setShown, setText } from "./dom.js";
import { openMenu } from "./menu.js";
import { onSelection } from "./selection.js";
import * as store from "./store.js";
import { t } from "./texts.js";

const PACK = decodeURIComponent(new URL(import.meta.url).pathname.split("/extensions/")[1].split("/")[0]);

async function templates() {
  const answer = await api.fetchApi("/workflow_templates").catch(() => undefined);
  return answer?.ok ? [...((await answer.json())[PACK] ?? [])].sort() : [];
}

async function openTemplate(name) {
  const answer = await fetch(api.apiURL(`/workflow_templates/${encodeURIComponent(PACK)}/${encodeURIComponent(name)}.json`));
  if (answer.ok) await app.loadGraphData(await answer.json(), true, true, name);
  else app.extensionManager.command.execute("Comfy.BrowseTemplates");
}

async function chooseTemplate(button) {
  const names = (await templates()).filter((name) => /train/i.test(name));
  openMenu(button, [
    ...names.map((name) => ({ icon: "file", label: name.replaceAll("_", " "), act: () => openTemplate(name) })),
    { icon: "th-large", label: t("All templates…"), act: () => app.extensionManager.command.execute("Comfy.BrowseTemplates") },
  ]);
}

// Fills `place`; returns what ends it.
export function runList(place) {
  addStyle();
  const cards = new Map();
  const search = el("input.igrpo-field.igrpo-search", { type: "search", placeholder: t("Search runs"), "aria-label": t("Search runs"), oninput: () => arrange() });
  const fresh = el("button.igrpo-button.igrpo-new", { type: "button", title: t("A new run: choose a template that trains"), "aria-haspopup": "menu", onclick: (event) => chooseTemplate(event.currentTarget) }, icon("plus"), el("span", { textContent: t("New") }));
  const list = el("div.igrpo-list", { role: "list", "aria-label": t("Training runs") });
  const start = el("button.igrpo-button.igrpo-primary", { type: "button", "aria-haspopup": "menu", onclick: (event) => chooseTemplate(event.currentTarget) }, el("span", { textContent: t("Choose a template") }));
  const empty = el(
    "div.igrpo-nothing",
    {},
    icon("chart-line"),
    el("h3", { textContent: t("No training run yet") }),
    el("p", { textContent: t("Open a template with a Train node and press Run. The first one trains a miniature in some minutes and needs no downloads.") }),
    start,
  );
  const note = el("div.igrpo-note", { role: "status" });
  const root = el(
    "section.igrpo.igrpo-panel",
    { "aria-label": t("Identity-GRPO runs") },
    el("header.igrpo-row.igrpo-header", {}, el("h2", { textContent: t("Runs") }), search, iconButton("refresh", t("Read all runs again"), () => store.refresh()), fresh),
    note,
    list,
    empty,
  );
  place.replaceChildren(root);

  function arrange() {
    const text = search.value.trim().toLowerCase();
    const order = store.ordered();
    const focused = list.contains(document.activeElement) ? document.activeElement : undefined;
    let shown = 0, at = list.firstChild;
    for (const run of order) {
      const found = cards.get(run.id);
      setShown(found.box, !text || found.matches(text));
      shown += found.box.hidden ? 0 : 1;
      // Moved only when it is elsewhere: a card that is moved loses its focus, and its clips flicker.
      if (found.box === at) at = at.nextSibling;
      else list.insertBefore(found.box, at);
    }
    if (focused !== document.activeElement) focused?.focus({ preventScroll: true });
    setShown(empty, store.state.loaded && !order.length);
    setText(note, store.state.problem ? t("{problem}; trying again", { problem: store.state.problem }) : !store.state.loaded ? t("Reading runs…") : text && !shown && order.length ? t("No run matches") : "");
    setShown(note, Boolean(note.textContent));
  }

  function show(changed, deleted) {
    for (const id of deleted) {
      cards.get(id)?.end();
      cards.get(id)?.box.remove();
      cards.delete(id);
    }
    for (const run of changed) {
      if (cards.has(run.id)) cards.get(run.id).update(run);
      else {
        cards.set(run.id, card(run));
        cards.get(run.id).box.setAttribute("role", "listitem");
      }
    }
    arrange();
  }

  const ends = [store.subscribe(show), onSelection(() => cards.forEach((one) => one.choose())), store.follow({})];
  show([...store.runs.values()], []);
  return () => {
    for (const end of ends) end();
    for (const one of cards.values()) one.end();
    root.remove();
  };
}
