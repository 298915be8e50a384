// The voting dialog of Vote on Videos: two clips in step, one key per verdict. All state is the server's file of votes.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { key, t } from "./panel/texts.js";

const NODE = "IdentityGRPOVote";
const WHO = "IdentityGRPO.votes.who"; // in localStorage: the name that votes are kept under
const VERDICTS = { a: "A", b: "B", t: "tie", s: "skip" };
const SAVED = { tie: key("tie"), skip: key("skipped") };
const SMALL = 200; // pixels: frames below this height are enlarged without smoothing

function element(tag, style, text) {
  const made = document.createElement(tag);
  if (style) made.style.cssText = style;
  if (text) made.textContent = text;
  return made;
}

async function ask(name, action, body) {
  const headers = { "Content-Type": "application/json" };
  const options = action ? { method: "POST", headers, body: JSON.stringify(body) } : undefined;
  const query = action ? "" : `?who=${encodeURIComponent(body.who)}`;
  const path = `/identity_grpo/votes/${encodeURIComponent(name)}${action ? `/${action}` : ""}${query}`;
  const answer = await api.fetchApi(path, options).catch(() => { throw new Error(t("ComfyUI does not answer; nothing is lost, try again")); });
  const content = await answer.json().catch(() => ({}));
  if (!answer.ok) throw Object.assign(new Error(content.error ?? t("ComfyUI answered {status}", { status: answer.status })), { refused: true });
  return content;
}

// A clip as the picture of its frames, and how they lie in it.
async function sheet(name, pair, side) {
  const answer = await api.fetchApi(`/identity_grpo/votes/${encodeURIComponent(name)}/pairs/${pair}/${side}`);
  if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).error ?? t("the clip cannot be shown"));
  const layout = JSON.parse(answer.headers.get("X-Sheet"));
  return { ...layout, picture: await createImageBitmap(await answer.blob()) };
}

class Voting {
  constructor(name) {
    this.name = name;
    this.clips = new Map(); // pair and side -> promise of its sheet
    this.busy = false;
    this.frame = 0;
    this.playing = true;
    this.build();
  }

  build() {
    const dialog = (this.dialog = element("dialog", "width:min(1500px,96vw);max-width:none;max-height:96vh;padding:14px;border:1px solid var(--border-color,#444);border-radius:8px;background:var(--comfy-menu-bg,#222);color:var(--input-text,#ddd);font:14px sans-serif;box-sizing:border-box;outline:none"));
    dialog.className = "identity-grpo-vote";
    dialog.setAttribute("aria-label", t("Vote on videos"));
    const head = element("div", "display:flex;gap:12px;align-items:center;margin-bottom:8px");
    head.append(element("b", "font-size:16px", t("Which video keeps its people better?")), element("span", "flex:1"));
    this.status = element("span", "color:var(--descrip-text,#999)");
    this.status.className = "identity-grpo-vote-status";
    const label = element("label", "color:var(--descrip-text,#999)", `${t("your name")} `);
    this.who = element("input", "width:9em;background:var(--comfy-input-bg,#333);color:inherit;border:1px solid var(--border-color,#444);border-radius:4px;padding:2px 6px");
    this.who.value = localStorage.getItem(WHO) || "me";
    this.who.maxLength = 60;
    this.who.onchange = () => {
      localStorage.setItem(WHO, this.person());
      this.load();
    };
    label.append(this.who);
    const close = this.button("✕", t("Close (Esc); all votes are saved"), () => dialog.close());
    head.append(this.status, label, close);
    this.people = element("div", "display:flex;gap:8px;justify-content:center;height:110px;margin-bottom:6px");
    this.prompt = element("div", "text-align:center;color:var(--descrip-text,#999);max-height:3.6em;overflow:auto;margin-bottom:6px");
    const row = element("div", "display:grid;grid-template-columns:1fr 1fr;gap:12px");
    this.canvases = ["A", "B"].map((side) => {
      const box = element("div", "text-align:center;min-width:0");
      const canvas = element("canvas", "width:100%;max-height:52vh;object-fit:contain;background:#000;border-radius:4px;cursor:pointer");
      canvas.title = t("{side} is better", { side });
      canvas.onclick = () => this.vote(side);
      box.append(element("div", "font-weight:bold;margin-bottom:2px", side), canvas);
      row.append(box);
      return canvas;
    });
    const keys = element("div", "display:flex;gap:8px;justify-content:center;margin-top:10px;flex-wrap:wrap");
    this.buttons = [
      this.button(t("A is better (A)"), t("Key {key}", { key: "A" }), () => this.vote("A")),
      this.button(t("Tie (T)"), t("Key T: equally good"), () => this.vote("tie")),
      this.button(t("B is better (B)"), t("Key {key}", { key: "B" }), () => this.vote("B")),
      this.button(t("Skip (S)"), t("Key S: no verdict"), () => this.vote("skip")),
    ];
    this.undoButton = this.button(t("Undo (U)"), t("Key U: take the last vote back"), () => this.undo());
    this.pauseButton = this.button(t("Pause (space)"), t("Space; arrow keys step by a frame"), () => this.pause());
    keys.append(...this.buttons, this.undoButton, this.pauseButton);
    this.line = element("div", "text-align:center;min-height:1.4em;margin-top:6px");
    this.line.className = "identity-grpo-vote-line";
    this.line.setAttribute("aria-live", "polite");
    dialog.append(head, this.people, this.prompt, row, keys, this.line);
    dialog.addEventListener("keydown", (event) => this.key(event));
    dialog.addEventListener("close", () => {
      cancelAnimationFrame(this.timer);
      dialog.remove();
    });
  }

  button(text, title, act) {
    const made = element("button", "padding:6px 14px;cursor:pointer;background:var(--comfy-input-bg,#333);color:inherit;border:1px solid var(--border-color,#444);border-radius:4px", text);
    made.title = title;
    made.type = "button";
    made.onclick = act;
    return made;
  }

  person() {
    return this.who.value.trim() || "me";
  }

  open() {
    document.body.append(this.dialog);
    this.dialog.showModal();
    this.dialog.tabIndex = -1;
    this.dialog.focus();
    this.load();
    this.play(performance.now());
  }

  key(event) {
    event.stopPropagation(); // the editor has shortcuts on the same keys
    if (event.target === this.who || event.ctrlKey || event.metaKey || event.altKey) {
      if (event.key === "Enter") this.dialog.focus();
      return;
    }
    const key = event.key.toLowerCase();
    if (event.repeat && !["arrowleft", "arrowright"].includes(key)) return;
    if (VERDICTS[key]) this.vote(VERDICTS[key]);
    else if (key === "u") this.undo();
    else if (key === " ") this.pause();
    else if (key === "arrowleft" || key === "arrowright") this.step(key === "arrowleft" ? -1 : 1);
    else return;
    event.preventDefault();
  }

  async act(work) {
    if (this.busy) return;
    this.busy = true;
    this.enable();
    try {
      await work();
    } catch (error) {
      this.line.textContent = error.message;
    }
    this.busy = false;
    this.enable();
  }

  load() {
    return this.act(async () => {
      this.line.textContent = "";
      await this.show(await ask(this.name, null, { who: this.person() }));
    });
  }

  vote(verdict) {
    const asked = this.state?.question;
    if (!asked || !this.shown) return;
    return this.act(async () => {
      const vote = { who: this.person(), pair: asked.pair, verdict, turn: asked.turn, swapped: asked.swapped };
      let state, line = t("saved: {verdict}", { verdict: t(SAVED[verdict] ?? key("{side} is better"), { side: verdict }) });
      try {
        state = await ask(this.name, "vote", vote);
      } catch (error) {
        // An answer that was lost on its way, or a vote that another window has given: what the server has is shown.
        state = await ask(this.name, null, { who: this.person() });
        if (state.question?.turn === asked.turn) throw error;
        if (error.refused) line = error.message;
      }
      this.line.textContent = line;
      await this.show(state);
    });
  }

  undo() {
    return this.act(async () => {
      const state = await ask(this.name, "undo", { who: this.person() });
      this.line.textContent = t("the last vote was taken back");
      await this.show(state);
    });
  }

  async show(state) {
    this.state = state;
    this.shown = undefined;
    this.status.textContent = t(state.repeated ? key("{voted} of {pairs} pairs, same verdict again {same} of {repeated}") : key("{voted} of {pairs} pairs"), state);
    const asked = state.question;
    this.people.replaceChildren();
    this.prompt.textContent = asked?.prompt ?? "";
    if (!asked) {
      for (const canvas of this.canvases) canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
      this.line.textContent = t("You have voted on all pairs.");
      return;
    }
    for (let number = 0; number < asked.references; number++) {
      const picture = element("img", "height:100%;border-radius:4px");
      picture.alt = t("Reference image {number}", { number: number + 1 });
      picture.src = api.apiURL(`/identity_grpo/votes/${encodeURIComponent(this.name)}/pairs/${asked.pair}/references/${number}`);
      this.people.append(picture);
    }
    const clips = await Promise.all(this.sides(asked));
    if (this.state !== state) return;
    this.frame = 0;
    this.since = performance.now();
    this.shown = clips;
    this.paint();
    if (state.following) for (const clip of this.sides(state.following)) clip.catch(() => {});
    for (const key of [...this.clips.keys()].slice(0, -8)) this.clips.delete(key);
  }

  sides(asked) {
    return (asked.swapped ? ["b", "a"] : ["a", "b"]).map((side) => {
      const key = `${asked.pair}/${side}`;
      if (!this.clips.has(key)) {
        const loading = sheet(this.name, asked.pair, side);
        loading.catch(() => this.clips.delete(key));
        this.clips.set(key, loading);
      }
      return this.clips.get(key);
    });
  }

  enable() {
    // A disabled button loses the focus to the page, where the editor gets the keys.
    if (this.busy && document.activeElement?.tagName === "BUTTON") this.dialog.focus();
    for (const button of this.buttons) button.disabled = this.busy || !this.shown;
    this.undoButton.disabled = this.busy;
  }

  pause() {
    this.playing = !this.playing;
    this.since = performance.now() - (this.shown ? (this.frame / this.shown[0].fps) * 1000 : 0);
    this.pauseButton.textContent = t(this.playing ? key("Pause (space)") : key("Play (space)"));
  }

  step(by) {
    if (this.playing) this.pause();
    const most = this.longest();
    this.frame = (((this.frame + by) % most) + most) % most;
    this.paint();
  }

  longest() {
    return Math.max(...(this.shown ?? [{ frames: 1 }]).map((clip) => clip.frames));
  }

  // One clock for both clips, so that the same moment is on both sides.
  play(now) {
    this.timer = requestAnimationFrame((next) => this.play(next));
    if (!this.playing || !this.shown) return;
    const frame = Math.floor(((now - this.since) / 1000) * this.shown[0].fps) % this.longest();
    if (frame !== this.frame && frame >= 0) {
      this.frame = frame;
      this.paint();
    }
  }

  paint() {
    if (!this.shown) return;
    this.shown.forEach((clip, index) => {
      const canvas = this.canvases[index];
      const seconds = this.frame / this.shown[0].fps;
      const place = Math.min(clip.frames - 1, Math.floor(seconds * clip.fps + 1e-6));
      if (canvas.width !== clip.width || canvas.height !== clip.height) {
        canvas.width = clip.width;
        canvas.height = clip.height;
        canvas.style.imageRendering = clip.height < SMALL ? "pixelated" : "auto";
      }
      const x = (place % clip.columns) * clip.width, y = Math.floor(place / clip.columns) * clip.height;
      canvas.getContext("2d").drawImage(clip.picture, x, y, clip.width, clip.height, 0, 0, clip.width, clip.height);
    });
    this.dialog.dataset.frame = this.frame;
  }
}

app.registerExtension({
  name: "identitygrpo.vote",
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    const button = node.addWidget("button", "Vote", null, () => {
      const name = node.widgets.find((widget) => widget.name === "name")?.value;
      new Voting(String(name ?? "")).open();
    }, { serialize: false });
    button.label = t("Vote");
    button.serialize = false;
    button.tooltip = t("Compare the pairs of this folder; every vote is saved at once.");
  },
});
