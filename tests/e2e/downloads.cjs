// Downloads the missing files of a workflow by the button on its loader, with a stop between, and prints what it shows.
// node downloads.cjs CHROMIUM ADDRESS WORKFLOW HUB: HUB/go lets the files come that the server holds back
const { readFileSync } = require("node:fs");
const { chromium } = require("playwright-core");

const [executablePath, address, file, hub] = process.argv.slice(2);
const LABEL = "Download missing files…";

const buttons = (page) =>
  page.evaluate((label) => app.graph._nodes.filter((n) => n.widgets?.some((w) => w.label === label)).map((n) => n.type), LABEL);

const press = (page) =>
  page.evaluate((label) => app.graph._nodes.flatMap((n) => n.widgets ?? []).find((w) => w.label === label).callback(), LABEL);

(async () => {
  const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-gpu", "--disable-background-networking"] });
  const page = await browser.newPage({ viewport: { width: 1600, height: 1000 } });
  const found = {};
  try {
    await page.goto(address);
    await page.waitForFunction(() => window.app?.extensionManager && window.LiteGraph?.registered_node_types.IdentityGRPOLoadModel, null, { timeout: 60000 });
    const workflow = JSON.parse(readFileSync(file));
    workflow.extra.linearMode = false;
    await page.evaluate((content) => app.loadGraphData(content, true, true, "downloads"), workflow);
    const waitForButton = (there) => page.waitForFunction(([label, there]) => app.graph._nodes.some((n) => n.widgets?.some((w) => w.label === label)) === there, [LABEL, there], { timeout: 30000 });
    await waitForButton(true);
    found.before = await buttons(page);
    found.values = await page.evaluate(() => app.graph.serialize().nodes.find((n) => n.type === "IdentityGRPOLoadModel").widgets_values.length);
    await press(page);
    const dialog = page.locator("dialog.identity-grpo-downloads"), start = dialog.locator(".igrpo-download-start"), line = dialog.locator(".igrpo-download-line");
    await start.filter({ hasText: /[kMG]B/ }).waitFor(); // all sizes are known
    found.asked = await dialog.innerText();
    await start.click();
    await line.filter({ hasText: " of " }).waitFor();
    await dialog.locator(".igrpo-download-stop").click();
    await fetch(`${hub}/go`);
    await line.filter({ hasText: "Stopped" }).waitFor();
    await start.click();
    await line.filter({ hasText: "Downloaded." }).waitFor();
    await waitForButton(false);
    found.after = await buttons(page);
    const listed = () => app.graph._nodes.find((n) => n.type === "IdentityGRPOLoadModel").widgets.find((w) => w.name === "vae").options.values.includes("wan_2.1_vae.safetensors");
    found.listed = await page.waitForFunction(listed, null, { timeout: 15000 }).then(() => true, () => false);
  } finally {
    await browser.close();
  }
  console.log(JSON.stringify(found));
})();
