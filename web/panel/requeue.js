// The setting under which the graph is queued again when a run that it shows has a new LoRA.
export const REQUEUE = "IdentityGRPO.requeue";
