// Opens workflows in ComfyUI's editor and prints, as JSON, what it makes of them.
// node editor.cjs CHROMIUM ADDRESS FILE...: ADDRESS opens the first, the others are loaded from their files.
const { readFileSync } = require("node:fs");
const { basename } = require("node:path");
const { chromium } = require("playwright-core");

const [executablePath, address, ...files] = process.argv.slice(2);

async function look(page, file) {
  return page.evaluate(async () => {
    const nodes = app.graph._nodes;
    return {
      prompt: (await app.graphToPrompt()).output,
      scale: app.canvas.ds.scale,
      unknown: nodes.filter((n) => !LiteGraph.registered_node_types[n.type]).map((n) => n.type),
      // The editor explains apps when the first one is opened.
      dialogs: [...document.querySelectorAll("[role=dialog]")].map((d) => d.innerText.slice(0, 300)).filter((text) => !text.startsWith("Welcome to Apps")),
    };
  });
}

(async () => {
  const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-gpu", "--disable-background-networking"] });
  const page = await browser.newPage({ viewport: { width: 1600, height: 1000 } });
  const found = {};
  try {
    await page.goto(address);
    // Not the workflow that the editor opens by itself before.
    const ours = () => window.app?.extensionManager && window.app.graph?._nodes?.some((n) => n.type.startsWith("IdentityGRPO"));
    await page.waitForFunction(ours, null, { timeout: 60000 });
    await page.waitForTimeout(1500);
    for (const [index, file] of files.entries()) {
      if (index) {
        await page.evaluate(([content, name]) => app.loadGraphData(content, true, true, name), [JSON.parse(readFileSync(file)), basename(file)]);
        await page.waitForTimeout(500);
      }
      found[basename(file)] = await look(page, file);
    }
  } finally {
    await browser.close();
  }
  console.log(JSON.stringify(found));
})();
