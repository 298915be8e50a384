// Works with Train's preset and with ten mistakes in the editor, and prints, as JSON, what it shows.
// node presets.cjs CHROMIUM ADDRESS
const { chromium } = require("playwright-core");

const [executablePath, address] = process.argv.slice(2);

const MISTAKES = [
  ["IdentityGRPOVACESampler", "prompt", "  "],
  ["IdentityGRPOVACESampler", "width", 100000],
  ["IdentityGRPOVACESampler", "steps", 0],
  ["IdentityGRPOVACESampler", "solver", "magic"],
  ["IdentityGRPOLoadModel", "model", "diffusers/nothing"],
  ["IdentityGRPOLoadModel", "vae", "gone.safetensors"],
  ["IdentityGRPOLoadReward", "checkpoint", "nothing"],
  ["IdentityGRPOTrain", "iterations", 0],
  ["IdentityGRPOTrain", "frames", 80],
  ["IdentityGRPOPromptSet", "file", "nothing.csv"],
];

const build = (page) =>
  page.evaluate(async () => {
    await app.loadGraphData({ nodes: [], links: [], version: 0.4 }, true, true, "presets.json");
    const add = (kind) => {
      const node = LiteGraph.createNode(kind);
      app.graph.add(node);
      return node;
    };
    const [model, reward, prompts, train, sampler, show, person] = ["IdentityGRPOLoadModel", "IdentityGRPOLoadReward", "IdentityGRPOPromptSet", "IdentityGRPOTrain", "IdentityGRPOVACESampler", "PreviewImage", "LoadImage"].map(add);
    const set = (node, name, value) => (node.widgets.find((w) => w.name === name).value = value);
    set(person, "image", "identity_grpo_woman.png");
    set(sampler, "prompt", "a woman waves");
    set(train, "name", "never started");
    const slot = (node, name) => node.inputs.findIndex((i) => i.name === name);
    model.connect(0, train, slot(train, "policy"));
    reward.connect(0, train, slot(train, "reward"));
    prompts.connect(0, train, slot(train, "prompt_set"));
    model.connect(0, sampler, slot(sampler, "policy"));
    person.connect(0, sampler, sampler.inputs.findIndex((i) => i.name.endsWith("ref0")));
    sampler.connect(0, show, 0);
    await new Promise((done) => setTimeout(done, 200));
  });

const shown = (page) =>
  page.evaluate(() => {
    const train = app.graph._nodes.find((n) => n.type === "IdentityGRPOTrain");
    const names = ["iterations", "learning_rate", "width", "height", "frames", "evaluate_every"];
    return Object.fromEntries(train.widgets.filter((w) => names.includes(w.name)).map((w) => [w.label ?? w.name, w.value]));
  });

const choose = (page, name, value) =>
  page.evaluate(
    ([name, value]) => {
      const widget = app.graph._nodes.find((n) => n.type === "IdentityGRPOTrain").widgets.find((w) => w.name === name);
      widget.value = value;
      widget.callback?.(value);
    },
    [name, value],
  );

const menu = (page, press) =>
  page.evaluate((press) => {
    const train = app.graph._nodes.find((n) => n.type === "IdentityGRPOTrain");
    const entries = app.extensions.filter((e) => e.name === "identitygrpo.presets").flatMap((e) => e.getNodeMenuItems(train));
    if (press) entries[0].callback();
    return entries.map((e) => e.content);
  }, press);

// The errors that the editor shows after the value was set, by node and input; the value is put back.
const mistake = (page, given) =>
  page.evaluate(async ([type, name, value]) => {
    const node = app.graph._nodes.find((n) => n.type === type);
    const widget = node.widgets.find((w) => w.name === name), before = widget.value;
    // The other half of the graph is muted: it is without a mistake, and would run.
    const training = ["IdentityGRPOLoadReward", "IdentityGRPOPromptSet", "IdentityGRPOTrain"];
    const sampling = ["IdentityGRPOVACESampler", "PreviewImage", "LoadImage"];
    for (const n of app.graph._nodes) n.mode = (training.includes(type) ? sampling : training).includes(n.type) ? 2 : 0;
    widget.value = value;
    await app.queuePrompt(0);
    const errors = Object.entries(app.lastNodeErrors ?? {});
    widget.value = before;
    return errors.flatMap(([id, found]) => found.errors.map((e) => [app.graph.getNodeById(id).type, e.extra_info?.input_name, e.details]));
  }, given);

(async () => {
  const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-gpu", "--disable-background-networking"] });
  const page = await browser.newPage({ viewport: { width: 1600, height: 1000 } });
  const seen = {};
  try {
    await page.goto(address, { timeout: 120000, waitUntil: "domcontentloaded" });
    await page.waitForFunction(() => window.app?.extensionManager?.workflow?.activeWorkflow && LiteGraph.registered_node_types.IdentityGRPOTrain, null, { timeout: 120000 });
    await build(page);
    seen.filled = await shown(page);
    await choose(page, "iterations", 7);
    seen.changed = await shown(page);
    await choose(page, "preset", "paper");
    seen.paper = await shown(page);
    seen.menu = await menu(page, true);
    seen.reset = await shown(page);
    await choose(page, "preset", "auto");
    seen.mistakes = [];
    for (const given of MISTAKES) seen.mistakes.push({ given, errors: await mistake(page, given) });
    seen.colours = await page.evaluate(() => ["WAN_POLICY", "IDENTITY_REWARD", "PROMPT_SET", "TRAINING_RUN"].map((type) => app.canvas.default_connection_color_byType[type]));
    seen.templates = (await page.evaluate(() => app.api.getWorkflowTemplates()))["identity-grpo"];
  } finally {
    await browser.close();
  }
  console.log(JSON.stringify(seen));
})();
