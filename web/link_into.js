// The link into an input of a node; undefined where there is none. Of a subgraph's node, the link outside of it, where
// its own method `getInputLink` returns the one inside.
export function linkInto(node, slot) {
  if (!node?.graph || !node.inputs?.[slot] || !node.isInputConnected(slot)) return undefined;
  return [...node.graph.links.values()].find((link) => link.target_id === node.id && link.target_slot === slot);
}
