"""visloop: visual assistants that improve themselves in a closed loop, and show how."""

__version__ = "0.1.0"
