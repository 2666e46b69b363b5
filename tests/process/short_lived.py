"""The webhook, but connections are old soon, and idle ones are not kept for long."""

from app import create_app, server

server.OLD_SECONDS = 0.5
server.IDLE_SECONDS = 1.0
app = create_app()
