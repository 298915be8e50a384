// The end of a run's log, followed while it grows; errors on top.
import { copyText, toast } from "./actions.js";
import { el, icon, setShown, setText } from "./dom.js";
import { read } from "./server.js";
import { t } from "./texts.js";

const LINES = 500;
const OFTEN = 2000; // ms
const ERRORS = /error|traceback|exception|out of memory|failed|killed/i;
const WARNINGS = /warn/i;

export function logView() {
  let run, timer, shown = "", token = 0;
  const errors = el("div.igrpo-errors", { role: "alert" });
  const lines = el("pre.igrpo-log", { tabIndex: 0, "aria-label": t("Log") });
  const followBox = el("input", { type: "checkbox", checked: true, onchange: () => followBox.checked && toEnd() });
  const copy = el("button.igrpo-button", { type: "button", onclick: copyAll }, icon("copy"), el("span", { textContent: t("Copy") }));
  const bar = el("div.igrpo-row.igrpo-controls", {}, el("label.igrpo-row", {}, followBox, el("span", { textContent: t("Follow") })), el("span.igrpo-label", { textContent: t("the last {count} lines", { count: LINES }) }), copy);
  const box = el("div.igrpo-column", {}, bar, errors, lines);
  lines.onscroll = () => {
    // Scrolling up reads; scrolling to the end follows again.
    followBox.checked = lines.scrollHeight - lines.scrollTop - lines.clientHeight < 24;
  };

  const toEnd = () => (lines.scrollTop = lines.scrollHeight);

  async function copyAll() {
    try {
      await copyText([run.error, shown].filter(Boolean).join("\n"));
      toast("success", t("Copied"), t("the error and the log"));
    } catch (error) {
      toast("error", t("Copy"), error.message);
    }
  }

  async function refresh() {
    clearTimeout(timer);
    const turn = ++token;
    const { text } = await read(run.id, `log?lines=${LINES}`).catch((error) => ({ text: error.message }));
    if (turn !== token || !box.isConnected) return;
    if (text !== shown) {
      shown = text;
      const follow = followBox.checked;
      lines.replaceChildren(...text.split("\n").map((line) => el("span", { className: ERRORS.test(line) ? "igrpo-line-error" : WARNINGS.test(line) ? "igrpo-line-warning" : "", textContent: `${line}\n` })));
      if (follow) toEnd();
    }
    if (run.active) timer = setTimeout(refresh, OFTEN);
  }

  function update(changed) {
    const known = run?.id === changed.id && run.state === changed.state;
    run = changed;
    setText(errors, ["failed", "damaged"].includes(run.state) ? run.error : "");
    setShown(errors, Boolean(errors.textContent));
    if (!known) refresh(); // else the timer does
  }
  return { box, update, end: () => (clearTimeout(timer), token++) };
}
