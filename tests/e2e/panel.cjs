// Trains from ComfyUI's editor, watches it in the panel and on the nodes, and prints, as JSON, what was seen.
// node panel.cjs CHROMIUM ADDRESS RUNS [PICTURES]: RUNS is the server's folder of runs, PICTURES a folder for screenshots.
const { existsSync, readFileSync } = require("node:fs");
const { join } = require("node:path");
const { chromium } = require("playwright-core");

const [executablePath, address, runs, pictures] = process.argv.slice(2);
const TITLE = "<b>two people</b>";
// So small that an iteration takes a second.
const SMALL = { iterations: 500, groups_per_update: 2, width: 32, height: 32, frames: 5 };

// A workflow that trains TinyWorld's model.
const workflow = (page) =>
  page.evaluate(() => {
    app.graph.clear();
    const [model, reward, prompts, train, run] = ["LoadModel", "LoadReward", "PromptSet", "Train", "Run"].map((kind, index) => {
      const node = LiteGraph.createNode(`IdentityGRPO${kind}`);
      node.pos = [index < 3 ? 0 : 420 * (index - 2), 300 * (index % 3) * (index < 3)];
      app.graph.add(node);
      return node;
    });
    const link = (from, to, name) => from.connect(0, to, to.inputs.findIndex((input) => input.name === name));
    link(model, train, "policy");
    link(reward, train, "reward");
    link(prompts, train, "prompt_set");
    link(train, run, "training_run");
    return app.graph.serialize();
  });

const open = (page, content) => page.evaluate((c) => app.loadGraphData(c, true, true, "panel.json"), content);

const ready = (page) => page.waitForFunction(() => window.app?.extensionManager?.workflow?.activeWorkflow && LiteGraph.registered_node_types.IdentityGRPOTrain, null, { timeout: 60000 });

// The text of the strips and the buttons that can be pressed, by kind of node.
const strips = (page) =>
  page.evaluate(() => {
    const found = {};
    for (const node of app.graph._nodes) {
      const box = node.widgets?.find((w) => w.name === "identity_grpo_run")?.element;
      if (!box) continue;
      const able = [...box.querySelectorAll(".igrpo-icon")].filter((b) => !b.disabled && !b.hidden).map((b) => b.getAttribute("aria-label").split(/[:;,]| after/)[0]);
      const { width, height } = box.querySelector(".igrpo-strip").getBoundingClientRect();
      found[node.type.slice("IdentityGRPO".length)] = { text: box.querySelector(".igrpo-strip-text").textContent, able, height: box.isConnected ? Math.round(height / app.canvas.ds.scale) : 0, fills: !box.isConnected || width / app.canvas.ds.scale > 0.8 * node.size[0] };
    }
    return found;
  });

async function until(page, look, wanted, what) {
  const end = Date.now() + 150000;
  for (;;) {
    const found = await look();
    if (wanted(found)) return found;
    if (Date.now() > end) throw new Error(`${what} is not shown: ${JSON.stringify(found)}`);
    await page.waitForTimeout(50);
  }
}

const strip = (page, kind, wanted) => until(page, async () => (await strips(page))[kind], (found) => found && wanted.test(found.text), `${kind} ${wanted}`);

const card = (page) => page.locator(".igrpo-card");
const state = (page, wanted) => page.waitForSelector(`.igrpo-card[data-state="${wanted}"]`, { timeout: 150000 });

async function press(page, kind, label) {
  await page.evaluate((type) => {
    app.canvas.ds.scale = 1;
    app.canvas.centerOnNode(app.graph._nodes.find((n) => n.type === type));
    app.canvas.setDirty(true, true);
  }, `IdentityGRPO${kind}`);
  const button = await page.evaluateHandle(
    ([type, text]) => {
      const box = app.graph._nodes.find((n) => n.type === type).widgets.find((w) => w.name === "identity_grpo_run").element;
      return [...box.querySelectorAll("button")].find((b) => b.getAttribute("aria-label")?.startsWith(text));
    },
    [`IdentityGRPO${kind}`, label],
  );
  await button.click({ timeout: 10000 });
}

async function choose(page, box, label) {
  await box.locator("button[aria-haspopup=menu]").click();
  await page.locator("[role=menuitem]", { hasText: label }).click();
}

const confirm = (page) => page.locator("[role=dialog] button", { hasText: /^\s*Confirm\s*$/ }).click({ timeout: 10000 });

const queue = (page) =>
  page.evaluate(async (values) => {
    const set = (type, name, value) => (app.graph._nodes.find((n) => n.type === type).widgets.find((w) => w.name === name).value = value);
    for (const [name, value] of Object.entries(values)) set("IdentityGRPOTrain", name, value);
    set("IdentityGRPORun", "wait", "no");
    await app.queuePrompt(0);
  }, SMALL);

const picture = (page, name) => pictures && page.screenshot({ path: join(pictures, `${name}.png`) });

const rows = (id) => readFileSync(join(runs, id, "metrics.jsonl"), "utf8").split("\n").filter((line) => line.includes('"train"'));

function lives(id) {
  try {
    return process.kill(JSON.parse(readFileSync(join(runs, id, "status.json"))).pid, 0);
  } catch {
    return false;
  }
}

// How long it takes from the moment a row is in the file until its reward is the last value of the chart, in ms.
async function delay(page, id) {
  const before = rows(id).length;
  await until(page, async () => rows(id).length, (count) => count > before, "a further row");
  const written = Date.now();
  const reward = JSON.parse(rows(id)[before]).reward_mean;
  const size = Math.abs(reward);
  const text = reward.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3);
  const shown = () => page.evaluate(() => [...document.querySelectorAll(".igrpo-chart")].find((c) => c.getAttribute("aria-label") === "Reward")?.querySelector(".igrpo-values")?.textContent ?? "");
  await until(page, shown, (found) => found.includes(text), `reward ${text}`);
  return Date.now() - written;
}

(async () => {
  const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-gpu", "--disable-background-networking"] });
  const page = await browser.newPage({ viewport: { width: 1680, height: 1050 } });
  const seen = { problems: [] };
  page.on("pageerror", (error) => seen.problems.push(String(error)));
  const setting = (name, value) => page.evaluate(([n, v]) => app.extensionManager.setting.set(n, v), [name, value]);
  try {
    await page.goto(address);
    await ready(page);
    await setting("Comfy.VueNodes.Enabled", false);
    const content = await workflow(page);
    await open(page, content);
    seen.before = await strips(page);
    const toggle = () => page.evaluate(() => app.extensionManager.command.execute("Workspace.ToggleSidebarTab.identity-grpo"));
    await toggle();
    await page.waitForSelector(".igrpo-nothing:not([hidden])");
    seen.empty = await page.locator(".igrpo-nothing").innerText();
    await queue(page);
    seen.started = { Train: await strip(page, "Train", /starting|iteration/), Run: await strip(page, "Run", /starting|iteration/) };
    await state(page, "running");
    seen.id = await page.locator(".igrpo-title-text").getAttribute("title");

    // One run, live.
    await card(page).focus();
    await page.keyboard.press("Enter");
    await page.waitForSelector(".igrpo-chart canvas", { timeout: 150000 });
    await page.locator(".igrpo-controls input[type=range]").first().fill("0");
    seen.delays = [await delay(page, seen.id), await delay(page, seen.id)];
    await picture(page, "live");

    await page.locator(".igrpo-card button[aria-label^=Stop]").click();
    await confirm(page);
    await state(page, "stopped");
    seen.stopped = await strip(page, "Train", /^stopped/);
    await until(page, async () => lives(seen.id), (alive) => !alive, "the end of the process"); // it ends a moment after its status

    await card(page).focus();
    await page.keyboard.press("F2");
    await page.keyboard.type(TITLE);
    await page.keyboard.press("Enter");
    await until(page, () => page.locator(".igrpo-card .igrpo-title").innerText(), (text) => text === TITLE, "the title");
    seen.title = { file: readFileSync(join(runs, seen.id, "title.txt"), "utf8"), bold: await page.locator(".igrpo b b, .igrpo-title b").count() };

    await page.locator("#igrpo-tab-files").click();
    const keep = page.locator("[data-key^=keep-]").last();
    await keep.click();
    await page.waitForSelector('.igrpo-badge[data-kind="kept"]');
    seen.kept = { list: JSON.parse(readFileSync(join(runs, seen.id, "exports", "kept.json"))), iteration: Number((await keep.getAttribute("data-key")).slice(5)) };
    await page.locator("button", { hasText: "Use newest in the graph" }).click();
    seen.lora = await page.evaluate(() => app.graph._nodes.find((n) => n.type === "IdentityGRPOLoadLoRA" && String(n.widgets.find((w) => w.name === "lora").value).includes("tiny-"))?.widgets.find((w) => w.name === "lora").value);
    await page.locator("#igrpo-tab-clips").click();
    await page.waitForSelector(".igrpo-cell canvas:not(.igrpo-empty)", { timeout: 30000 });
    await until(page, () => page.evaluate(() => [...document.querySelectorAll(".igrpo-reference")].map((i) => i.naturalWidth)), (widths) => widths.length > 0 && widths.slice(0, 2).every((w) => w > 0), "a reference image");
    seen.clips = await page.evaluate(() => [...document.querySelectorAll(".igrpo-cell canvas")].filter((c) => c.width > 1).length);
    await picture(page, "clips");

    // By the nodes, also after a reload and in the editor's other mode.
    await page.waitForTimeout(1500); // the editor keeps its draft a moment after a change
    await setting("Comfy.VueNodes.Enabled", true);
    // The workflow is opened again while the runs are being read: its new nodes follow them all the same.
    let answer;
    const opened = new Promise((resolve) => (answer = resolve));
    await page.route("**/identity_grpo/runs", (route) => opened.then(() => route.continue()));
    await page.reload();
    await ready(page);
    await open(page, await page.evaluate(() => app.graph.serialize()));
    answer();
    seen.reloaded = { Train: await strip(page, "Train", /^stopped/), Run: await strip(page, "Run", /^stopped/) };
    await press(page, "Train", "Resume");
    seen.resumed = { Train: await strip(page, "Train", /^iteration/), Run: await strip(page, "Run", /^iteration/) };
    await picture(page, "nodes");

    // Two copies wait for the device, and change places by the menu, by keys and by the mouse.
    await toggle();
    const first = page.locator('.igrpo-card[data-state="running"]');
    const waiting = page.locator('.igrpo-card[data-state="waiting"]');
    const order = () => waiting.locator(".igrpo-title-text").evaluateAll((titles) => titles.map((title) => title.title));
    const swapped = (before) => until(page, order, (now) => now.length === 2 && now[0] === before[1] && now[1] === before[0], "the other order");
    for (const count of [1, 2]) {
      await choose(page, first, /^Duplicate$/);
      await page.locator('.igrpo-card[data-state="queued"] button[aria-label^=Start]').click();
      await until(page, () => waiting.count(), (found) => found === count, "a waiting run");
    }
    await until(page, () => waiting.locator(".igrpo-standing").allInnerTexts(), (texts) => texts.join() === "waiting, next,waiting, place 2", "the places");
    seen.orders = [await order()];
    for (const act of [
      () => choose(page, waiting.nth(1), /^Move up$/),
      () => waiting.nth(0).press("Alt+ArrowDown"),
      () => page.keyboard.press("Alt+ArrowUp"), // the card keeps the focus
      () => page.keyboard.press("Alt+ArrowDown"),
      () => waiting.nth(1).dragTo(waiting.nth(0), { sourcePosition: { x: 80, y: 12 }, targetPosition: { x: 80, y: 12 } }),
    ]) {
      await act();
      seen.orders.push(await swapped(seen.orders.at(-1)));
    }
    await picture(page, "queue");
    while (await waiting.count()) {
      const left = (await waiting.count()) - 1;
      await waiting.first().locator("button[aria-label^=Stop]").click();
      await confirm(page);
      await until(page, () => waiting.count(), (found) => found === left, "one that waits no more");
      await choose(page, page.locator('.igrpo-card[data-state="stopped"]'), /^Delete$/);
      await until(page, () => page.locator('.igrpo-card[data-state="stopped"]').count(), (found) => found === 0, "its deletion");
    }
    await toggle();

    // A run that fails is announced once, and counted on the tab until it is opened.
    process.kill(JSON.parse(readFileSync(join(runs, seen.id, "status.json"))).pid, "SIGKILL");
    seen.failed = await strip(page, "Train", /^failed/);
    const toasts = page.locator(".p-toast-message, [data-testid=toast]", { hasText: "failed" });
    await toasts.first().waitFor();
    const tab = page.locator(".identity-grpo-tab-button, [data-testid=identity-grpo-tab-button]");
    seen.notice = { toasts: await toasts.count(), badge: /\d/.test(await tab.innerText()) };
    await tab.click();
    await page.waitForSelector(".igrpo-card");
    seen.notice.read = !/\d/.test(await tab.innerText());
    await picture(page, "failed");

    await page.locator(".igrpo-card button[aria-haspopup=menu]").click();
    await page.locator("[role=menuitem]", { hasText: "Delete" }).click();
    await card(page).waitFor({ state: "detached" });
    seen.deleted = { there: existsSync(join(runs, seen.id)), strip: await strip(page, "Train", /^Deleted/) };
    await page.locator(".igrpo-undo button").click();
    await card(page).waitFor();
    seen.restored = { there: existsSync(join(runs, seen.id)), strip: await strip(page, "Train", /^failed/) };

    // A workflow of another machine, and a hostile one.
    const asked = [];
    page.on("request", (request) => /identity_grpo|elsewhere/.test(request.url()) && asked.push(request.url()));
    const kept = { IdentityGRPOTrain: "gone-20200101-000000-0000", IdentityGRPORun: "../../elsewhere?" };
    for (const node of content.nodes) node.properties.identity_grpo_run = kept[node.type];
    await open(page, content);
    await strip(page, "Train", /^Waiting for gone-/);
    seen.gone = { strips: await strips(page), asked };
  } finally {
    await browser.close();
  }
  console.log(JSON.stringify(seen));
})();
