"""The command line as its own process, with the environment that it is given and no other."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from tests.harness.nodes import RedisNode, addresses
from tests.harness.webhook import ROOT, environ_for

CLI = (sys.executable, "-m", "app.cli")


def environ_of(nodes: Sequence[RedisNode], **more: str) -> dict[str, str]:
    """That of a webhook on these nodes."""
    return {"PATH": os.environ["PATH"], **environ_for(addresses(nodes), **more)}


def run(
    environ: Mapping[str, str], *arguments: str, stdin: str = "", command: Sequence[str] = CLI
) -> subprocess.CompletedProcess[str]:
    """A command that has ended."""
    return subprocess.run([*command, *arguments], env=environ, input=stdin, cwd=ROOT, capture_output=True, text=True)


def run_json(environ: Mapping[str, str], *arguments: str, stdin: str = "") -> Any:
    """What it says to programs, if all is well."""
    ended = run(environ, *arguments, "-o", "json", stdin=stdin)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def run_on_terminal(environ: Mapping[str, str], *arguments: str) -> str:
    """What a person sees of it if all is well: stdout and stderr."""
    ours, its = pty.openpty()
    process = subprocess.Popen([*CLI, *arguments], env=environ, cwd=ROOT, stdout=its, stderr=its, stdin=its)
    os.close(its)
    seen = b""
    with suppress(OSError):  # as Linux says that nobody has it open any more
        while part := os.read(ours, 65536):
            seen += part
    os.close(ours)
    assert process.wait(20) == 0, seen
    return seen.decode()
