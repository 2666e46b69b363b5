"""The HTTP edge: Flask blueprints that parse, call, and answer."""
