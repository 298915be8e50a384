// Queues nodes of the pack that lie within nested subgraphs and prints, as JSON, what they show.
// node subgraph.cjs CHROMIUM ADDRESS FILE: FILE is a workflow with one Train and one Training Run node.
const { readFileSync } = require("node:fs");
const { chromium } = require("playwright-core");

const [executablePath, address, file] = process.argv.slice(2);
const TRAINING = ["LoadModel", "LoadReward", "PromptSet", "Train", "Run"].map((kind) => `IdentityGRPO${kind}`);
const MUTED = 2;

function workflow() {
  const content = JSON.parse(readFileSync(file));
  for (const node of content.nodes) if (!TRAINING.includes(node.type)) node.mode = MUTED;
  return content;
}

// The text of each node of the pack that runs, by its type, with the depth at which the node lies.
const shown = (page) =>
  page.evaluate(() => {
    const found = {};
    const walk = (graph, depth) => {
      for (const node of graph._nodes) {
        if (node.subgraph) walk(node.subgraph, depth + 1);
        const panel = node.widgets?.find((w) => w.name === "identity_grpo_run")?.element;
        const text = node.widgets?.find((w) => w.name === "identity_grpo_text")?.element;
        if (node.mode === 0 && (panel || text)) found[node.type] = { depth, text: (panel?.querySelector(".igrpo-strip-text") ?? text).textContent };
        if (node.mode === 0 && panel && node.properties.identity_grpo_run) found[node.type].run = node.properties.identity_grpo_run;
      }
    };
    walk(app.rootGraph, 0);
    return found;
  });

async function until(page, wanted) {
  const end = Date.now() + 60000;
  for (;;) {
    const found = await shown(page);
    if (wanted(found)) return found;
    if (Date.now() > end) throw new Error(`not shown: ${JSON.stringify(found)}`);
    await page.waitForTimeout(100);
  }
}

// `leaving`: another workflow is open while the graph is executed, then this one again.
const queue = (page, leaving) =>
  page.evaluate(async (leaving) => {
    const ended = new Promise((done) => app.api.addEventListener("execution_success", done, { once: true }));
    await app.queuePrompt(0);
    if (leaving) await app.loadGraphData({ nodes: [], links: [], version: 0.4 }, true, true, "other.json");
    await ended;
    await new Promise((done) => setTimeout(done, 1000)); // the editor ignores the command while it still opens a workflow
    if (leaving) await app.extensionManager.command.execute("Workspace.PreviousOpenedWorkflow");
  }, leaving);

(async () => {
  const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-gpu", "--disable-background-networking"] });
  const page = await browser.newPage({ viewport: { width: 1600, height: 1000 } });
  const seen = {};
  try {
    await page.goto(address);
    await page.waitForFunction(() => window.app?.extensionManager?.workflow?.activeWorkflow && LiteGraph.registered_node_types.IdentityGRPOTrain, null, { timeout: 60000 });
    await page.evaluate((content) => app.loadGraphData(content, true, true, "subgraph.json"), workflow());
    await page.evaluate(() => {
      const all = (types) => app.rootGraph._nodes.filter((n) => types.includes(n.type));
      const set = (type, name, value) => (all([type])[0].widgets.find((w) => w.name === name).value = value);
      set("IdentityGRPOTrain", "iterations", 500);
      // Not yet in the server's cache: a run of its own, and a model that is executed.
      set("IdentityGRPOTrain", "seed", 23);
      set("IdentityGRPOLoadModel", "dtype", "float32");
      set("IdentityGRPORun", "wait", "no");
      const inner = app.rootGraph.convertToSubgraph(new Set(all(["IdentityGRPOTrain", "IdentityGRPORun"])));
      app.rootGraph.convertToSubgraph(new Set([inner.node, ...all(["IdentityGRPOLoadModel"])]));
    });
    seen.before = await shown(page);
    await queue(page, true);
    const both = (found) => ["IdentityGRPOTrain", "IdentityGRPORun"].every((type) => /starting|iteration/.test(found[type]?.text));
    seen.left = await until(page, (found) => both(found) && found.IdentityGRPOLoadModel);
    await queue(page, false);
    seen.queued = await until(page, both);
    seen.toasts = await page.locator(".p-toast-message, [data-testid=toast]").allInnerTexts();
  } finally {
    await browser.close();
  }
  console.log(JSON.stringify(seen));
})();
