// Elements without HTML: everything that comes from a run is text.

// `el("button.igrpo-icon", { title, onclick }, "text", child)`: unknown properties become attributes.
export function el(kind, properties = {}, ...children) {
  const [tag, ...classes] = kind.split(".");
  const element = document.createElement(tag || "div");
  if (classes.length) element.className = classes.join(" ");
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name in element && !name.startsWith("aria")) element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== undefined && child !== null));
  return element;
}

export const icon = (name, more = "") => el("i", { className: `pi pi-${name} ${more}`, "aria-hidden": "true" });

export function iconButton(name, label, act, properties = {}) {
  return el("button.igrpo-icon", { type: "button", title: label, "aria-label": label, onclick: act, ...properties }, icon(name));
}

// Sets a text only when it is another one, so that a selection in it is kept.
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function setShown(element, shown) {
  element.hidden = !shown;
}

let styled = false;

// The style sheets of the panel, once a page.
export function addStyle() {
  if (styled) return;
  styled = true;
  for (const file of ["style.css", "../vendor/uplot/uPlot.css"]) {
    document.head.append(el("link", { rel: "stylesheet", href: new URL(file, import.meta.url).href }));
  }
}
