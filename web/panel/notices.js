// Shows what a user waits for: a run has finished, failed, or has a new best LoRA. Once each, and on the tab's badge.
import { app } from "../../../scripts/app.js";
import { toast } from "./actions.js";
import { firstLine, titleOf } from "./format.js";
import * as store from "./store.js";
import { t } from "./texts.js";

export const NOTIFY = "IdentityGRPO.notify";

const seen = new Map(); // run -> { active, best }
let unread = 0, badge = () => {}, open = () => false;

function news(run, before) {
  if (before.active && run.state === "finished") return ["success", t("finished"), run.best === null ? "" : t("best LoRA: iteration {iteration}", { iteration: run.best })];
  if (before.active && run.state === "failed") return ["error", t("failed"), firstLine(run.error)];
  if (run.active && run.best > 0 && run.best !== before.best) return ["info", t("has a new best LoRA"), t("iteration {iteration}", { iteration: run.best })];
  return undefined;
}

function show(run, [severity, what, detail]) {
  const title = `${titleOf(run)} ${what}`;
  toast(severity, title, detail);
  if (!open()) badge(++unread);
  const asked = app.extensionManager.setting.get(NOTIFY);
  if (document.hidden && asked && "Notification" in window && Notification.permission === "granted") new Notification(title, { body: detail, tag: run.id });
}

// `setBadge(count)` shows how many there are that nobody has looked at; `isOpen()`: whether the list is open.
export function watchForNews(setBadge, isOpen) {
  badge = setBadge;
  open = isOpen;
  let first = true;
  store.subscribe((changed, deleted) => {
    if (!store.state.loaded) return;
    for (const id of deleted) seen.delete(id);
    for (const run of changed) {
      const before = seen.get(run.id);
      seen.set(run.id, { active: run.active, best: run.best });
      const found = !first && before && news(run, before);
      if (found) show(run, found);
    }
    first = false;
  });
  store.refresh();
}

export function markRead() {
  unread = 0;
  badge(0);
}

// The browser asks the user only when the setting is turned on.
export function allowNotifications(wanted, before) {
  if (wanted && before === false && "Notification" in window && Notification.permission === "default") Notification.requestPermission();
}
