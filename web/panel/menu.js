// A menu below a button: arrow keys, Escape, and the focus back where it was.
import { el, icon } from "./dom.js";

let close = () => {};

// `entries`: [{ icon, label, act, danger }], undefined ones are left out.
export function openMenu(anchor, entries) {
  close();
  const items = entries.filter(Boolean).map((entry) => {
    const item = el("button.igrpo-menu-item", { type: "button", role: "menuitem", tabIndex: -1 }, icon(entry.icon), el("span", { textContent: entry.label }));
    item.classList.toggle("igrpo-danger", Boolean(entry.danger));
    item.onclick = (event) => {
      event.stopPropagation();
      close();
      entry.act();
    };
    return item;
  });
  const menu = el("div.igrpo.igrpo-menu", { role: "menu" }, ...items);
  document.body.append(menu);
  const place = anchor.getBoundingClientRect(), own = menu.getBoundingClientRect();
  menu.style.left = `${Math.max(4, Math.min(place.right - own.width, innerWidth - own.width - 4))}px`;
  menu.style.top = `${place.bottom + own.height + 4 > innerHeight ? Math.max(4, place.top - own.height - 2) : place.bottom + 2}px`;
  const outside = (event) => menu.contains(event.target) || close();
  anchor.setAttribute("aria-expanded", "true");
  close = () => {
    close = () => {};
    document.removeEventListener("pointerdown", outside, true);
    anchor.setAttribute("aria-expanded", "false");
    const inside = menu.contains(document.activeElement);
    menu.remove();
    if (inside) anchor.focus();
  };
  document.addEventListener("pointerdown", outside, true);
  menu.onkeydown = (event) => {
    event.stopPropagation();
    const at = items.indexOf(document.activeElement);
    if (event.key === "Escape" || event.key === "Tab") close();
    else if (event.key === "ArrowDown") items[(at + 1) % items.length].focus();
    else if (event.key === "ArrowUp") items[(at - 1 + items.length) % items.length].focus();
    else if (event.key === "Home") items[0].focus();
    else if (event.key === "End") items.at(-1).focus();
    else return;
    event.preventDefault();
  };
  items[0]?.focus();
}
