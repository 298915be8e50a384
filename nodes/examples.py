"""The templates' pictures and clips, put into ComfyUI's input folder for Load Image and Load Video."""

from __future__ import annotations

import logging
from pathlib import Path

import folder_paths

from ..trainers.errors import UserError
from ..trainers.files import write_atomic

EXAMPLES = Path(__file__).parents[1] / "workflows" / "examples"

logger = logging.getLogger(__name__)


def offer_examples() -> None:
    """Copy the examples that are missing; a file of the same name is kept. A folder that cannot be written is left."""
    inputs = Path(folder_paths.get_input_directory())
    try:
        inputs.mkdir(parents=True, exist_ok=True)
        for source in sorted(EXAMPLES.iterdir()):
            if not (inputs / source.name).exists():
                write_atomic(inputs / source.name, source.read_bytes(), sync=False)
    except (OSError, UserError) as error:
        logger.debug("Identity-GRPO: the templates' examples were not copied to the input folder: %s", error)
