"""Training of the agents: supervised fine-tuning and rounds of direct preference optimisation, by TRL on any image-text model."""

import os

# Read once when huggingface_hub is imported, so it must stand before the first import of transformers or TRL.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
