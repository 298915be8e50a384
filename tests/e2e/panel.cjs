// Trains from ComfyUI's editor and prints, as JSON, what the panels of Train and Training Run show meanwhile.
// node panel.cjs CHROMIUM ADDRESS RUNS FILE [PICTURE]: FILE is a workflow with one node of either kind, RUNS the server's folder of runs.
const { readFileSync } = require("node:fs");
const { join } = require("node:path");
const { chromium } = require("playwright-core");

const [executablePath, address, runs, file, picture] = process.argv.slice(2);
const TRAINING = ["LoadModel", "LoadReward", "PromptSet", "Train", "Run"].map((kind) => `IdentityGRPO${kind}`);
const MUTED = 2;
const STOPPED = /stopped.*\| Resume$/s; // its process may take a moment longer to end than its status

function workflow(kept = {}) {
  const content = JSON.parse(readFileSync(file));
  for (const node of content.nodes) {
    if (!TRAINING.includes(node.type)) node.mode = MUTED;
    if (kept[node.type]) node.properties.identity_grpo_run = kept[node.type];
  }
  return content;
}

const open = (page, content) => page.evaluate((c) => app.loadGraphData(c, true, true, "panel.json"), content);

const ready = (page) => page.waitForFunction(() => window.app?.extensionManager?.workflow?.activeWorkflow && LiteGraph.registered_node_types.IdentityGRPOTrain, null, { timeout: 60000 });

// The text and the buttons that can be pressed, by kind of node.
const panels = (page) =>
  page.evaluate(() => {
    const found = {};
    for (const node of app.graph._nodes) {
      const box = node.widgets?.find((w) => w.name === "identity_grpo_run")?.element;
      if (!box) continue;
      const able = [...box.querySelectorAll("button")].filter((b) => !b.disabled);
      found[node.type.slice("IdentityGRPO".length)] = { text: box.firstChild.textContent, able: able.map((b) => b.textContent) };
    }
    return found;
  });

async function until(page, kind, wanted) {
  const end = Date.now() + 60000;
  for (;;) {
    const found = (await panels(page))[kind];
    if (found && wanted.test(`${found.text} | ${found.able}`)) return found;
    if (Date.now() > end) throw new Error(`${kind} does not show ${wanted}: ${JSON.stringify(found)}`);
    await page.waitForTimeout(50);
  }
}

async function click(page, kind, label) {
  await page.evaluate((type) => {
    app.canvas.ds.scale = 1;
    app.canvas.centerOnNode(app.graph._nodes.find((n) => n.type === type));
    app.canvas.setDirty(true, true);
  }, `IdentityGRPO${kind}`);
  const button = await page.evaluateHandle(
    ([type, text]) => {
      const node = app.graph._nodes.find((n) => n.type === type);
      const box = node.widgets.find((w) => w.name === "identity_grpo_run").element;
      return [...box.querySelectorAll("button")].find((b) => b.textContent === text);
    },
    [`IdentityGRPO${kind}`, label],
  );
  await button.click({ timeout: 10000 });
}

// `leaving`: another workflow is open while the graph is executed, then this one again.
const queue = (page, leaving = false) =>
  page.evaluate(async (leaving) => {
    const set = (type, name, value) => (app.graph._nodes.find((n) => n.type === type).widgets.find((w) => w.name === name).value = value);
    set("IdentityGRPOTrain", "iterations", 500);
    set("IdentityGRPORun", "wait", "no");
    const ended = new Promise((done) => app.api.addEventListener("execution_success", done, { once: true }));
    await app.queuePrompt(0);
    if (!leaving) return;
    await app.loadGraphData({ nodes: [], links: [], version: 0.4 }, true, true, "other.json");
    await ended;
    await app.extensionManager.command.execute("Workspace.PreviousOpenedWorkflow");
  }, leaving);

(async () => {
  const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-gpu", "--disable-background-networking"] });
  const page = await browser.newPage({ viewport: { width: 1600, height: 1000 } });
  const seen = {};
  try {
    await page.goto(address);
    await ready(page);
    await open(page, workflow());
    seen.before = await panels(page);
    await queue(page);
    seen.queued = await until(page, "Run", /starting|running/);

    await page.waitForTimeout(1500); // the editor keeps its draft a moment after a change
    await page.reload();
    await ready(page);
    await until(page, "Train", /starting|running/);
    await until(page, "Run", /starting|running/);
    seen.reloaded = await panels(page);
    if (picture) await page.screenshot({ path: picture });

    await page.route("**/identity_grpo/runs/**", (route) => route.abort());
    seen.away = await until(page, "Train", /not answer/);
    await page.unroute("**/identity_grpo/runs/**");
    seen.back = await until(page, "Train", /starting|running/);

    // A process that is held takes its time to end.
    const { pid } = JSON.parse(readFileSync(join(runs, seen.queued.text.split(":")[0], "status.json")));
    process.kill(pid, "SIGSTOP");
    await click(page, "Train", "Stop");
    seen.clicked = await until(page, "Train", /stopping/);
    seen.beside = await until(page, "Run", /stopping/);
    await click(page, "Run", "Stop");
    await page.waitForTimeout(500);
    seen.twice = await panels(page);
    process.kill(pid, "SIGCONT");
    seen.stopped = await until(page, "Train", STOPPED);

    await click(page, "Train", "Resume");
    seen.resumed = await until(page, "Train", /starting|running/);
    seen.resumedBeside = await until(page, "Run", /starting|running/);
    await click(page, "Train", "Stop");
    seen.stoppedAgain = await until(page, "Train", STOPPED);

    await open(page, workflow());
    await queue(page, true);
    seen.left = await until(page, "Train", STOPPED);

    const asked = [];
    page.on("request", (request) => /identity_grpo|elsewhere/.test(request.url()) && asked.push(request.url()));
    await open(page, workflow({ IdentityGRPOTrain: "gone-20200101-000000-0000", IdentityGRPORun: "../../elsewhere?" }));
    await page.waitForTimeout(3000);
    seen.gone = { panels: await panels(page), asked, toasts: await page.locator(".p-toast-message").count() };
  } finally {
    await browser.close();
  }
  console.log(JSON.stringify(seen));
})();
