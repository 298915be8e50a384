// Queues a Training Run once, and prints, as JSON, how often the editor has queued it when its run has ended.
// node queue_again.cjs CHROMIUM ADDRESS RUN
const { chromium } = require("playwright-core");

const [executablePath, address, run] = process.argv.slice(2);

(async () => {
  const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-gpu", "--disable-background-networking"] });
  const page = await browser.newPage({ viewport: { width: 1600, height: 1000 } });
  const seen = {};
  try {
    await page.goto(address);
    await page.waitForFunction(() => window.app?.extensionManager?.workflow?.activeWorkflow && LiteGraph.registered_node_types.IdentityGRPORun, null, { timeout: 60000 });
    await page.evaluate(async (run) => {
      await app.loadGraphData({ nodes: [], links: [], version: 0.4 }, true, true, "queue_again.json");
      const node = LiteGraph.createNode("IdentityGRPORun");
      app.graph.add(node);
      node.widgets.find((w) => w.name === "run").value = run;
      node.widgets.find((w) => w.name === "queue_again").value = "at the end";
      window.ended = 0;
      app.api.addEventListener("execution_success", () => window.ended++);
      await app.queuePrompt(0);
    }, run);
    await page.waitForFunction(() => window.ended === 1, null, { timeout: 60000 });
    seen.queue = await page.evaluate(async () => (await (await app.api.fetchApi("/queue")).json()).queue_running.length);
    await page.waitForFunction(() => window.ended === 2, null, { timeout: 60000 });
    await page.waitForTimeout(3000); // it would be queued every two seconds if it did not end
    seen.ended = await page.evaluate(() => window.ended);
    seen.state = await page.evaluate(async (run) => (await (await app.api.fetchApi(`/identity_grpo/runs/${run}`)).json()).state, run);
  } finally {
    await browser.close();
  }
  console.log(JSON.stringify(seen));
})();
