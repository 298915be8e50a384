// The title of a run, editable in place: double click, F2, or `edit()`.
import { rename } from "./actions.js";
import { el, setText } from "./dom.js";
import { titleOf } from "./format.js";
import { t } from "./texts.js";

const LONGEST = 100;

export function runTitle(kind) {
  const text = el("span.igrpo-title-text");
  const box = el(kind, {}, text);
  let run, field;
  function update(changed) {
    run = changed;
    setText(text, titleOf(run));
    text.title = run.title ? `${run.title} (${run.id})` : run.id;
  }
  function edit() {
    if (field || !run) return;
    field = el("input.igrpo-field", { value: run.title, placeholder: titleOf(run), maxLength: LONGEST, "aria-label": t("Title of the run") });
    box.replaceChildren(field);
    field.select();
    field.focus();
    const end = (keep) => {
      if (!field) return;
      const given = field.value.trim();
      field = undefined;
      box.replaceChildren(text);
      if (keep && given !== run.title) rename(run, given);
    };
    field.onclick = (event) => event.stopPropagation();
    field.onblur = () => end(true);
    field.onkeydown = (event) => {
      event.stopPropagation();
      if (event.key === "Enter") end(true);
      if (event.key === "Escape") end(false);
    };
  }
  box.ondblclick = (event) => {
    event.stopPropagation();
    edit();
  };
  return { box, update, edit };
}
