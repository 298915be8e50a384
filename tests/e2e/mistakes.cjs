// Sets one wrong value after the other in a workflow of the editor, queues it, and prints, as JSON, where errors are shown.
// node mistakes.cjs CHROMIUM ADDRESS PLAN: a JSON file of [{workflow, mistakes}]; a mistake is [node type, widget, value].
const { readFileSync } = require("node:fs");
const { chromium } = require("playwright-core");

const [executablePath, address, file] = process.argv.slice(2);

const set = (page, type, name, value) =>
  page.evaluate(([type, name, value]) => {
    const widget = app.graph._nodes.find((n) => n.type === type).widgets.find((w) => w.name === name);
    const before = widget.value;
    widget.value = value;
    return before;
  }, [type, name, value]);

// What the editor says of the nodes, and the widgets that it shows in red.
const errors = (page) =>
  page.evaluate(() => {
    const said = Object.entries(app.lastNodeErrors ?? {}).flatMap(([id, found]) => found.errors.map((e) => [app.graph.getNodeById(id).type, e.extra_info?.input_name, `${e.message}: ${e.details}`]));
    const node = (e) => app.graph.getNodeById(e.closest("[data-node-id]").dataset.nodeId).type;
    // Core's own frontend has the name in red, later ones say so of the widget.
    const named = [...document.querySelectorAll("[data-node-id] .text-node-stroke-error")].filter((e) => e.closest("[data-testid=node-widgets]") ?? e.className.includes("col-span-2")).map((e) => [node(e), e.innerText.split("\n")[0]]);
    const invalid = [...document.querySelectorAll("[data-node-id] [data-widget-name]")].filter((e) => e.querySelector("[aria-invalid=true]")).map((e) => [node(e), e.dataset.widgetName]);
    return { said, red: named.length ? named : invalid };
  });

(async () => {
  const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-gpu", "--disable-background-networking"] });
  const page = await browser.newPage({ viewport: { width: 1680, height: 1050 } });
  const found = [];
  try {
    await page.goto(address);
    await page.waitForFunction(() => window.app?.extensionManager?.workflow?.activeWorkflow && LiteGraph.registered_node_types.IdentityGRPOTrain, null, { timeout: 60000 });
    await page.evaluate(() => Promise.all([["VueNodes.Enabled", true], ["Node.AlwaysShowAdvancedWidgets", true]].map(([name, value]) => app.extensionManager.setting.set(`Comfy.${name}`, value))));
    for (const { workflow, mistakes } of JSON.parse(readFileSync(file))) {
      await page.evaluate((content) => app.loadGraphData(content, true, true, "mistakes.json"), workflow);
      await page.waitForTimeout(1500);
      for (const [type, name, value] of mistakes) {
        const right = await set(page, type, name, value);
        await page.evaluate(() => app.queuePrompt(0));
        await page.waitForTimeout(400); // the red is drawn
        found.push(await errors(page));
        await set(page, type, name, right);
      }
    }
    await page.evaluate(() => Promise.all(["VueNodes.Enabled", "Node.AlwaysShowAdvancedWidgets"].map((name) => app.extensionManager.setting.set(`Comfy.${name}`, false))));
  } finally {
    await browser.close();
  }
  console.log(JSON.stringify(found));
})();
