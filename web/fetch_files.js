// Loaders that name a published file which is not there get a button that downloads it, after a confirmation.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { addStyle, el } from "./panel/dom.js";
import { bytes } from "./panel/format.js";
import { key, t } from "./panel/texts.js";

const LOADERS = ["IdentityGRPOLoadModel", "IdentityGRPOLoadReward", "IdentityGRPOLoadLoRA", "IdentityGRPOApplyLoRA"];
const ROUTE = "/identity_grpo/downloads";
const BUTTON = "identity_grpo_download";
const OFTEN = 1000; // ms
const UNNAMED = key("see the page"); // what the catalogue says where the licence has no short name
const ENDED = { finished: key("Download finished"), failed: key("Download failed"), stopped: key("Download stopped") };

let files = []; // the catalogue, with what is there
let following = false; // a download is running and is asked about

async function ask(path, body) {
  const options = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const answer = await api.fetchApi(ROUTE + path, options).catch(() => { throw new Error(t("ComfyUI does not answer")); });
  const content = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(content.error ?? t("ComfyUI answered {status}", { status: answer.status }));
  return content;
}

// The loaders of the open workflow, also within subgraphs.
function loaders() {
  const graphs = [app.rootGraph ?? app.graph], found = [];
  for (const graph of graphs) {
    for (const node of graph?._nodes ?? []) {
      if (node.subgraph && !graphs.includes(node.subgraph)) graphs.push(node.subgraph);
      if (LOADERS.includes(node.comfyClass)) found.push(node);
    }
  }
  return found;
}

function missing(nodes) {
  const values = new Set(nodes.flatMap((node) => (node.widgets ?? []).map((widget) => widget.value)));
  return files.filter((file) => !file.there && values.has(file.choice));
}

// Shows or hides the button of a node, whose height follows unless the user has changed it.
function update(node) {
  const widget = node.widgets?.find((w) => w.name === BUTTON), wanted = missing([node]).length > 0;
  if (wanted === Boolean(widget)) return;
  if (widget) {
    node.removeWidget?.(widget);
  } else {
    const button = node.addWidget("button", BUTTON, null, () => new Downloads().open(), { serialize: false });
    Object.assign(button, { label: t("Download missing files…"), serialize: false, tooltip: t("Shows what is missing, with its source, size and licence; nothing is downloaded before you confirm.") });
  }
  const height = node.computeSize()[1];
  if (widget ? node.size[1] === node.identityGrpoHeight : node.size[1] < height) node.setSize([node.size[0], height]);
  node.identityGrpoHeight = height;
  node.setDirtyCanvas?.(true, true);
}

async function refresh() {
  const state = await ask("");
  files = state.files;
  for (const node of loaders()) update(node);
  return state.download;
}

// Asks about a running download until it ends; `show` gets each answer.
async function follow(show) {
  if (following) return;
  following = true;
  let download;
  try {
    do {
      if (download) await new Promise((next) => setTimeout(next, OFTEN));
      download = (await ask("")).download;
      show(download);
    } while (download?.state === "running");
  } finally {
    following = false; // it can be started again now
  }
  await ended(download);
}

async function ended(download) {
  await app.refreshComboInNodes?.();
  await refresh();
  const severity = { finished: "success", failed: "error" }[download?.state] ?? "info";
  app.extensionManager.toast?.add({ severity, summary: t(ENDED[download?.state] ?? ENDED.stopped), detail: download?.error || download?.names.join(", "), life: 8000 });
}

// What the dialog says of a download that does not run.
function said(download) {
  if (download?.state === "finished") return t("Downloaded.");
  if (download?.state === "stopped") return t("Stopped; what was received is kept, and Download continues it.");
  return download?.error ?? "";
}

let open; // the dialog that is shown

class Downloads {
  open() {
    addStyle();
    this.files = missing(loaders());
    this.rows = el("div.igrpo-downloads");
    this.line = el("p.igrpo-download-line", { "aria-live": "polite" });
    this.bar = el("progress", { hidden: true, max: 1, value: 0, style: "width:100%" });
    this.act = el("button.igrpo-button.igrpo-primary.igrpo-download-start", { type: "button", onclick: () => this.start() }, t("Download"));
    this.stop = el("button.igrpo-button.igrpo-download-stop", { type: "button", hidden: true, onclick: () => this.say(ask("/stop", {})) }, t("Stop"));
    const close = el("button.igrpo-button", { type: "button", onclick: () => this.dialog.close() }, t("Close"));
    const buttons = el("div.igrpo-row", { style: "justify-content:flex-end" }, this.stop, close, this.act);
    this.dialog = el("dialog.igrpo.identity-grpo-downloads", { "aria-label": t("Download missing files"), style: "width:min(760px,94vw);padding:18px;border:1px solid var(--ig-line);border-radius:8px;background:var(--ig-back);font-size:13px" },
      el("h2", {}, t("Files that this workflow names and that are missing")), this.rows, this.bar, this.line, buttons);
    this.dialog.addEventListener("keydown", (event) => event.stopPropagation()); // the editor has shortcuts
    this.dialog.addEventListener("close", () => { this.dialog.remove(); open = undefined; });
    document.body.append(this.dialog);
    this.dialog.showModal();
    open = this;
    this.list({});
    this.say(this.ready());
  }

  list(sizes) {
    const size = (file) => file.size ?? sizes[file.name];
    this.rows.replaceChildren(...this.files.map((file) => el("div", { style: "margin:12px 0" },
      el("b", {}, file.name), ` ${t("to {folder}", { folder: file.folder })}`, el("br"),
      el("a", { href: file.page, target: "_blank", rel: "noreferrer", style: "color:inherit" }, file.page),
      ` · ${size(file) ? bytes(size(file)) : t(file.name in sizes ? key("size unknown") : key("size is read…"))} · ${t("licence: {licence}", { licence: file.licence === UNNAMED ? t(UNNAMED) : file.licence })}`)));
    const known = this.files.map(size);
    this.act.textContent = known.every(Boolean) ? t("Download {size}", { size: bytes(known.reduce((a, b) => a + b, 0)) }) : t("Download");
  }

  // The sizes that are not published, and a download that is running already.
  async ready() {
    if ((await ask("")).download?.state === "running") return this.watch();
    const names = this.files.filter((file) => !file.size).map((file) => file.name);
    if (names.length) this.list(await ask("/sizes", { names }));
  }

  async say(work) {
    try {
      await work;
    } catch (error) {
      this.line.textContent = error.message;
    }
  }

  start() {
    return this.say(ask("/start", { names: this.files.map((file) => file.name) }).then(() => this.watch()));
  }

  watch() {
    return follow((download) => open?.show(download));
  }

  show(download) {
    const running = download?.state === "running";
    this.act.hidden = running || download?.state === "finished";
    this.stop.hidden = !running;
    this.bar.hidden = !running;
    if (download?.total) this.bar.value = download.done / download.total;
    else this.bar.removeAttribute("value");
    const done = bytes(download?.done ?? 0), part = download?.total ? t("{done} of {total}", { done, total: bytes(download.total) }) : done;
    this.line.textContent = running ? `${download.file}: ${part}` : said(download);
  }
}

app.registerExtension({
  name: "identitygrpo.fetchFiles",
  async setup() {
    await refresh().catch(() => {}); // the server is older than the page, or ends
  },
  afterConfigureGraph() {
    for (const node of loaders()) update(node);
  },
  nodeCreated(node) {
    if (!LOADERS.includes(node.comfyClass)) return;
    for (const widget of node.widgets ?? []) {
      const before = widget.callback;
      widget.callback = (...given) => {
        const result = before?.apply(widget, given);
        update(node);
        return result;
      };
    }
  },
  // Files may have been put there by hand.
  refreshComboInNodes() {
    return refresh().catch(() => {});
  },
});
