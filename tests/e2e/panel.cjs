// A run's panel on the Train node: shown, kept over a reload of the page, and its Stop button pressed. Prints what it said, as JSON.
// node panel.cjs CHROMIUM ADDRESS RUN: ADDRESS opens a workflow with a Train node, RUN is the id of a run in progress.
const { chromium } = require("playwright-core");

const [executablePath, address, run] = process.argv.slice(2);
const PANEL = "identity_grpo_run";

async function open(page) {
  await page.goto(address);
  await page.waitForFunction(() => window.app?.extensionManager && window.app.graph?._nodes?.length > 1, null, { timeout: 60000 });
  await page.waitForTimeout(1500);
}

// The panel of the Train node: what it says, and which buttons can be pressed.
const look = (page) => page.evaluate((name) => {
  const { element } = app.graph._nodes.find((n) => n.type === "IdentityGRPOTrain").widgets.find((w) => w.name === name);
  return { text: element.firstChild.textContent, buttons: Object.fromEntries([...element.querySelectorAll("button")].map((b) => [b.textContent, !b.disabled])) };
}, PANEL);

async function until(page, part) {
  for (let tries = 0; tries < 240; tries++) {
    const seen = await look(page);
    if (seen.text.includes(part)) return seen;
    await page.waitForTimeout(250);
  }
  throw new Error(`the panel never said ${part}, but: ${(await look(page)).text}`);
}

// The open workflow as it is saved, loaded into a new page, perhaps with another run's name.
async function reopen(page, name) {
  const saved = await page.evaluate(() => app.graph.serialize());
  for (const node of saved.nodes) if (node.properties[PANEL]) node.properties[PANEL] = name;
  await open(page);
  await page.evaluate((content) => app.loadGraphData(content, true, true, "again"), saved);
  await page.waitForTimeout(1500);
}

(async () => {
  const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-gpu", "--disable-background-networking"] });
  const page = await browser.newPage({ viewport: { width: 1600, height: 1000 } });
  const told = {};
  try {
    await open(page);
    told.first = (await look(page)).text;
    // As the editor does when the node has been executed.
    await page.evaluate(([name, id]) => app.graph._nodes.find((n) => n.type === "IdentityGRPOTrain").onExecuted({ [name]: [id], text: [""] }), [PANEL, run]);
    await until(page, run);
    await reopen(page, run);
    const again = await until(page, "iteration");
    told.again = again.text;
    told.buttons = again.buttons;
    if (process.env.PICTURE) await page.screenshot({ path: process.env.PICTURE });
    await page.locator("button:enabled", { hasText: "Stop" }).first().click({ force: true });
    told.stopped = (await until(page, "stopped")).text;
    await reopen(page, "no-such-run-20200101-000000-abcd");
    told.elsewhere = (await look(page)).text;
  } finally {
    await browser.close();
  }
  console.log(JSON.stringify(told));
})().catch((error) => {
  console.error(error);
  process.exit(1);
});
