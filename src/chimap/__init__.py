"""From MRI gradient-echo phase to magnetic susceptibility."""

__version__ = "0.1.0"
