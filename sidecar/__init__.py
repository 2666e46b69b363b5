"""The sidecar of an admitted pod: keeps the slot's lease alive and gives it back when the pod ends."""
