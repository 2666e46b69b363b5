"""The command line `at-least-semaphore`: looks at semaphores and nodes, as the webhook's user and by its settings."""
