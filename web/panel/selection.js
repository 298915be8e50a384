// Which run is open, which others lie over its charts, and which iteration its clips show.
import { app } from "../../../scripts/app.js";

export const VIEW = "identity-grpo-run"; // the tab of the bottom panel

export const selection = { run: undefined, tab: "overview", iteration: undefined, overlaid: new Set(), visible: false };

const listeners = new Set();

export function onSelection(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

export function select(changes) {
  Object.assign(selection, changes);
  for (const listener of [...listeners]) listener(selection);
}

// Opens a run in the bottom panel.
export function openRun(run, tab = selection.run === run ? selection.tab : "overview", more = {}) {
  const overlaid = new Set(selection.overlaid);
  overlaid.delete(run);
  select({ run, tab, overlaid, iteration: run === selection.run ? selection.iteration : undefined, ...more });
  const panel = app.extensionManager.bottomPanel;
  if (!panel.bottomPanelVisible || panel.activeBottomPanelTabId !== VIEW) panel.toggleBottomPanelTab(VIEW);
}

export function toggleOverlay(run) {
  const overlaid = new Set(selection.overlaid);
  if (!overlaid.delete(run)) overlaid.add(run);
  select({ overlaid });
}
