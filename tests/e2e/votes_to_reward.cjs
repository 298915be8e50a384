// Takes the template of votes from its opening to the comparison of two rewards, and prints, as JSON, what a user sees.
// node votes_to_reward.cjs CHROMIUM ADDRESS FOLDER VERDICTS [PICTURES]: FOLDER names pairs of the server, VERDICTS is a
// JSON file of them: pair id to "A" or "B". ADDRESS opens the template. PICTURES: a folder for one after each step.
const { readFileSync } = require("node:fs");
const { chromium } = require("playwright-core");

const [executablePath, address, folder, file, pictures] = process.argv.slice(2);
const verdicts = JSON.parse(readFileSync(file));
const SECONDS = 240;

const node = (type) => `app.graph._nodes.find((n) => n.type === "IdentityGRPO${type}")`;
const text = (page, type) => page.evaluate(`${node(type)}.widgets.find((w) => w.name === "identity_grpo_text")?.element.textContent`);
const strip = (page) => page.evaluate(`${node("TrainReward")}.widgets.find((w) => w.name === "identity_grpo_run")?.element.textContent`);
const set = (page, type, values) => page.evaluate(`for (const [name, value] of Object.entries(${JSON.stringify(values)})) ${node(type)}.widgets.find((w) => w.name === name).value = value`);

async function until(page, look, wanted) {
  for (const end = Date.now() + SECONDS * 1000; ; await page.waitForTimeout(200)) {
    const found = await look();
    if (wanted(found)) return found;
    if (Date.now() > end) throw new Error(`not shown: ${found}`);
  }
}

// Presses the button of the editor, and waits for the end of what was queued.
async function run(page) {
  await page.evaluate(() => {
    window.ended = new Promise((done) => {
      app.api.addEventListener("execution_success", () => done(""), { once: true });
      app.api.addEventListener("execution_error", (event) => done(event.detail.exception_message), { once: true });
    });
  });
  await page.getByTestId("queue-button").first().click();
  const error = await page.evaluate(() => window.ended);
  if (error) throw new Error(error);
  await page.waitForTimeout(500);
}

// Answers every question by its key; the side on which a pair's clip is shown changes.
async function vote(page) {
  const at = await page.evaluate(`(async () => {
    const node = ${node("Vote")}, button = node.widgets.find((w) => w.name === "Vote");
    const [x, y] = app.canvas.convertOffsetToCanvas([node.pos[0] + node.size[0] / 2, node.pos[1] + button.last_y + 10]);
    const box = app.canvas.canvas.getBoundingClientRect();
    return [box.left + x, box.top + y];
  })()`);
  await page.mouse.click(...at);
  await page.waitForSelector("dialog.identity-grpo-vote");
  const line = () => page.locator(".identity-grpo-vote-line").textContent();
  for (let count = 0; ; count++) {
    const { question } = await page.evaluate(async (name) => (await app.api.fetchApi(`/identity_grpo/votes/${name}?who=me`)).json(), folder);
    if (!question) break;
    const verdict = verdicts[question.pair] ?? "t";
    const key = question.swapped && verdict !== "t" ? { A: "b", B: "a" }[verdict] : verdict.toLowerCase();
    await page.waitForFunction(() => ![...document.querySelectorAll("dialog.identity-grpo-vote button")].some((b) => b.disabled));
    if (count === 3) await picture(page, "vote");
    await page.keyboard.press(key);
    await page.waitForFunction(async ([name, before]) => (await (await app.api.fetchApi(`/identity_grpo/votes/${name}?who=me`)).json()).question?.turn !== before, [folder, question.turn]);
  }
  const last = await until(page, line, (shown) => /all pairs/.test(shown));
  await page.keyboard.press("Escape");
  await page.waitForFunction(() => !document.querySelector("dialog.identity-grpo-vote"));
  return last;
}

let step = 0;
const picture = async (page, name) => {
  if (pictures) await page.screenshot({ path: `${pictures}/${++step}_${name}.png` });
};

(async () => {
  const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-gpu", "--disable-background-networking"] });
  const page = await browser.newPage({ viewport: { width: 1680, height: 1050 } });
  const found = { problems: [] };
  page.on("pageerror", (error) => found.problems.push(String(error)));
  try {
    await page.goto(address);
    await page.waitForFunction(`window.app?.extensionManager && app.graph && ${node("CompareRewards")}`, null, { timeout: 60000 });
    await page.evaluate(() => app.extensionManager.setting.set("Comfy.VueNodes.Enabled", false));
    await page.waitForTimeout(1500);
    await picture(page, "opened");
    await set(page, "Vote", { name: folder });
    await set(page, "TrainReward", { least_votes: 8, held_out: 0.3, epochs: 2 });
    await run(page);
    found.collected = [await text(page, "Vote"), await text(page, "TrainReward")];
    await picture(page, "collected");
    found.voted = await vote(page);
    await run(page);
    found.started = [await until(page, () => strip(page), (text) => !text.startsWith("not started")), await text(page, "CompareRewards")];
    await picture(page, "started");
    // The editor queues the graph again by itself.
    found.compared = await until(page, () => text(page, "CompareRewards"), Boolean);
    await page.waitForTimeout(2500);
    found.strip = await strip(page);
    found.shown = await page.evaluate(`${node("CompareRewards")}.imgs?.map((image) => [image.naturalWidth, image.naturalHeight])`);
    await picture(page, "compared");
  } finally {
    await browser.close();
  }
  console.log(JSON.stringify(found));
})();
