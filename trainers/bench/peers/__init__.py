"""Other programs at the same work, for the same table: plain diffusers, ComfyUI's own model, the published trainer."""
