// Reward and judge now against the start, in two elements.
import { el, setShown, setText } from "./dom.js";
import { number, signed } from "./format.js";
import { t } from "./texts.js";

const ZERO = 1e-9;

export function gain(reward, judge, run) {
  one(reward, t("reward"), run?.reward, (change) => signed(change.now - change.start), t("Reward on held-out items: now against the start"));
  one(judge, t("judge"), run?.judge, (change) => `${number(change.start)} → ${number(change.now)}`, t("Identity as the judge measures it, which is not trained on: at the start and now"));
}

function one(element, label, change, text, hint) {
  setShown(element, Boolean(change));
  if (!change) return;
  if (!element.firstChild) element.append(el("span.igrpo-label", { textContent: label }), el("b"));
  setText(element.lastChild, text(change));
  const value = change.now - change.start;
  element.dataset.sign = value > ZERO ? "up" : value < -ZERO ? "down" : "same";
  element.title = hint;
}
