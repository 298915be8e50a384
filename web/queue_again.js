// Queues a workflow again when the run that its Training Run or Train Reward node shows is ready for the rest of it.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { findNode } from "./find_node.js";

const RUNS = ["IdentityGRPORun", "IdentityGRPOTrainReward"];
const RUN_ID = /^[a-z0-9-]+$/; // a workflow of another author may hold any text, and the id becomes part of an address
const OFTEN = 2000; // ms
const FIRST = "at the first LoRA", END = "at the end";
const NEVER = "no";

const iteration = (status) => Number(/-(\d+)\.safetensors$/.exec(status.saved ?? "")?.[1] ?? 0);

const ready = (status, moment) => !status.active || (moment === FIRST && iteration(status) > 0);

// `moment`: what the node's result waits for. Ends when the node is removed, as when another workflow is opened.
function watch(node, run, moment) {
  clearInterval(node.identityGrpoWatch);
  if (!moment || !RUN_ID.test(run ?? "")) return;
  const timer = (node.identityGrpoWatch = setInterval(async () => {
    if (!node.graph) return clearInterval(timer);
    const answer = await api.fetchApi(`/identity_grpo/runs/${run}`).catch(() => undefined);
    if (node.identityGrpoWatch !== timer || !node.graph) return clearInterval(timer);
    if (answer?.status === 404) return clearInterval(timer);
    const status = answer?.ok ? await answer.json().catch(() => undefined) : undefined;
    if (!status || !ready(status, moment)) return;
    clearInterval(timer);
    if (status.active || status.state === "finished") app.queuePrompt(0);
  }, OFTEN));
}

function follow(node, output) {
  if (RUNS.includes(node?.comfyClass) && output?.identity_grpo_run) watch(node, output.identity_grpo_run[0], output.queue_again?.[0]);
}

// A page that was loaded again no longer has the node's result: the workflow names the run.
async function resume(node) {
  const run = node.properties?.identity_grpo_run, wanted = node.widgets?.find((w) => w.name === "queue_again")?.value;
  if (!wanted || wanted === NEVER || !RUN_ID.test(run ?? "")) return;
  const answer = await api.fetchApi(`/identity_grpo/runs/${run}`).catch(() => undefined);
  const status = answer?.ok ? await answer.json().catch(() => undefined) : undefined;
  if (!status?.active) return;
  if (wanted !== END && !iteration(status)) watch(node, run, FIRST);
  else if (wanted !== FIRST) watch(node, run, END);
}

app.registerExtension({
  name: "identitygrpo.queueAgain",
  nodeCreated(node) {
    if (!RUNS.includes(node.comfyClass)) return;
    for (const [event, act] of [["onExecuted", (output) => follow(node, output)], ["onConfigure", () => setTimeout(() => resume(node))], ["onRemoved", () => clearInterval(node.identityGrpoWatch)]]) {
      const before = node[event];
      node[event] = function () {
        before?.apply(this, arguments);
        act(...arguments);
      };
    }
  },
  // The editor has opened a workflow again and still has its results.
  onNodeOutputsUpdated(outputs) {
    for (const [id, output] of Object.entries(outputs)) follow(findNode(id), output);
  },
});
