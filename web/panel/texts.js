// The panel's texts in the language of the editor. A text is known by its English wording.
import { app } from "../../../scripts/app.js";
import { ZH } from "./texts_zh.js";

const LANGUAGES = { zh: ZH };

// Marks a text of a table; `t` translates it where it is shown.
export const key = (text) => text;

// The text, with `{name}` replaced by the value of that name.
export function t(text, values = {}) {
  const known = LANGUAGES[app.extensionManager.setting.get("Comfy.Locale")]?.[text] ?? text;
  return known.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}
