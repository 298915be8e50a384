// Votes by keyboard in ComfyUI's editor and prints, as JSON, what the dialog shows.
// node vote.cjs CHROMIUM ADDRESS NAME [PICTURE]: NAME is a folder of pairs of the server.
const { chromium } = require("playwright-core");

const [executablePath, address, name, picture] = process.argv.slice(2);
const KEYS = ["a", "b", "t", "s"];

const ready = (page) => page.waitForFunction(() => window.app?.extensionManager?.workflow?.activeWorkflow && LiteGraph.registered_node_types.IdentityGRPOVote, null, { timeout: 60000 });

// Adds the node if it is not there, and presses its button where the mouse would.
async function open(page) {
  const at = await page.evaluate(async (folder) => {
    let node = app.graph._nodes.find((n) => n.type === "IdentityGRPOVote");
    if (!node) {
      node = LiteGraph.createNode("IdentityGRPOVote");
      app.graph.add(node);
    }
    node.widgets.find((w) => w.name === "name").value = folder;
    app.canvas.ds.scale = 1;
    app.canvas.centerOnNode(node);
    const button = node.widgets.find((w) => w.name === "Vote");
    do {
      app.canvas.draw(true, true);
      await new Promise((r) => setTimeout(r, 500));
    } while (button.last_y === undefined);
    const [x, y] = app.canvas.convertOffsetToCanvas([node.pos[0] + node.size[0] / 2, node.pos[1] + button.last_y + 10]);
    const box = app.canvas.canvas.getBoundingClientRect();
    return [box.left + x, box.top + y];
  }, name);
  await page.mouse.click(...at);
  await page.waitForSelector("dialog.identity-grpo-vote", { timeout: 20000 });
  await settled(page);
}

// Both clips of a question are shown, or there is no question left.
const settled = (page) =>
  page.waitForFunction(() => {
    const dialog = document.querySelector("dialog.identity-grpo-vote");
    return dialog && (![...dialog.querySelectorAll("button")].some((b) => b.textContent.startsWith("Tie") && b.disabled) || /all pairs/.test(dialog.innerText));
  }, null, { timeout: 30000 });

const look = (page) =>
  page.evaluate(() => ({
    status: document.querySelector(".identity-grpo-vote-status").textContent,
    line: document.querySelector(".identity-grpo-vote-line").textContent,
    images: [...document.querySelectorAll("dialog.identity-grpo-vote img")].filter((i) => i.complete && i.naturalWidth).length,
    nodes: app.graph._nodes.length,
  }));

async function press(page, key) {
  const before = (await look(page)).status + (await page.evaluate(() => document.querySelector(".identity-grpo-vote-line").textContent));
  await page.keyboard.press(key);
  await page.waitForFunction((old) => document.querySelector(".identity-grpo-vote-status").textContent !== old, before, { timeout: 30000 }).catch(() => {});
  await settled(page);
}

(async () => {
  const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-gpu", "--disable-background-networking"] });
  const page = await (await browser.newContext({ viewport: { width: 1600, height: 1000 } })).newPage();
  const found = { problems: [] };
  page.on("pageerror", (error) => found.problems.push(String(error)));
  try {
    await page.goto(address);
    await ready(page);
    // Another test of the same server may have left it on: there the button is no part of the canvas.
    await page.evaluate(() => app.extensionManager.setting.set("Comfy.VueNodes.Enabled", false));
    await open(page);
    found.first = await look(page);
    found.sent = await page.evaluate(async () => Object.keys(Object.values((await app.graphToPrompt()).output).find((n) => n.class_type === "IdentityGRPOVote").inputs));
    const start = Date.now();
    for (let vote = 0; vote < 12; vote++) await press(page, KEYS[vote % 4]);
    found.seconds = (Date.now() - start) / 1000;
    found.twelve = await look(page);
    if (picture) await page.screenshot({ path: picture });
    await page.click("dialog.identity-grpo-vote button:has-text('Tie')");
    await settled(page);
    await press(page, "b");
    found.clicked = await look(page);
    await press(page, "u");
    await press(page, "u");
    const second = await page.context().newPage();
    await second.goto(address);
    await ready(second);
    await open(second);
    await page.bringToFront();
    await press(page, "a");
    await second.bringToFront();
    await press(second, "b");
    found.second = await look(second);
    await second.close();
    await press(page, "u");
    await page.keyboard.press("u");
    await page.waitForFunction(() => /taken back/.test(document.querySelector(".identity-grpo-vote-line").textContent));
    await settled(page);
    found.undone = await look(page);
    await page.keyboard.press(" ");
    const stopped = await page.evaluate(() => document.querySelector("dialog.identity-grpo-vote").dataset.frame);
    await page.keyboard.press("ArrowRight");
    found.stepped = (await page.evaluate(() => document.querySelector("dialog.identity-grpo-vote").dataset.frame)) !== stopped;
    await page.keyboard.press("a");
    await page.reload();
    await ready(page);
    await open(page);
    found.reloaded = await look(page);
    await page.keyboard.press("Escape");
    await page.waitForFunction(() => !document.querySelector("dialog.identity-grpo-vote"));
  } finally {
    await browser.close();
  }
  console.log(JSON.stringify(found));
})();
