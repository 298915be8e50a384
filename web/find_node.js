// The node that an id of the server or of the editor means, also within subgraphs.
import { app } from "../../scripts/app.js";

// `id`: "5", a path of ids from the root graph ("1:2:3"), or a locator ("<uuid of a subgraph>:<id>").
export function findNode(id) {
  const parts = String(id).split(":");
  const last = parts.pop();
  let graph = app.rootGraph ?? app.graph;
  const definition = parts.length === 1 ? graph.subgraphs?.get(parts[0]) : undefined;
  if (definition) graph = definition;
  else for (const part of parts) graph = graph?.getNodeById(part)?.subgraph;
  return graph?.getNodeById(last);
}
