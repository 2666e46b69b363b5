"""Lets waiting pods in as slots become free, and looks after the slots of pods: `python -m app.reconciler`."""
