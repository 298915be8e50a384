// Requests to the pack's routes.
import { api } from "../../../scripts/api.js";
import { t } from "./texts.js";

const RUN_ID = /^[a-z0-9-]{1,100}$/; // a workflow of another author may hold any text, and the id becomes part of an address

export const isRunId = (id) => typeof id === "string" && RUN_ID.test(id);

const RUNS = "/identity_grpo/runs";

async function send(path, options) {
  const answer = await api.fetchApi(path, options).catch(() => {
    throw new Error(t("ComfyUI does not answer"));
  });
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => ({}));
  throw Object.assign(new Error(said.error ?? `ComfyUI answered ${answer.status}`), { status: answer.status });
}

const json = async (path, options) => (await send(path, options)).json();

const post = (path, body = {}) =>
  json(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

export const listRuns = () => json(RUNS);
export const read = (run, what) => json(`${RUNS}/${run}/${what}`);
export const act = (run, action, body) => post(`${RUNS}/${run}/${action}`, body);
export const restore = (run) => post(`/identity_grpo/trash/${run}/restore`);
export const deletedRuns = () => json("/identity_grpo/trash");
export const watch = () => post("/identity_grpo/watch", { client: api.clientId });
export const endWatch = () => post("/identity_grpo/watch/end", { client: api.clientId });
export const address = (run, what) => api.apiURL(`${RUNS}/${run}/${what}`);

// All frames of a clip in one picture, and how they lie in it.
export async function frameSheet(run, iteration, number, width) {
  const answer = await send(`${RUNS}/${run}/clips/${iteration}/${number}/frames?width=${width}`);
  const value = (name) => Number(answer.headers.get(`X-${name}`));
  const picture = await createImageBitmap(await answer.blob());
  return { picture, frames: value("Frames"), columns: value("Columns"), width: value("Width"), height: value("Height"), fps: value("Fps") };
}
