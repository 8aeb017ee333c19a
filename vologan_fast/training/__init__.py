"""Training, from a configuration to a run folder. Its command is `vologan_fast/train.py`."""
