"""What a pod asks for and what is said to it: reviews, annotations, the injected sidecar. Pure functions."""
