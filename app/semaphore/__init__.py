"""The semaphore: slots granted by a majority of independent Redis nodes."""
