"""Draws what the dashboard's queries say of a run of some minutes, panel by panel, as SVG.

`python -m tests.monitoring.picture FILE.svg`; docs/images/dashboard.png was converted from one. This is not Grafana: it
follows the places, queries, units and legends that the dashboard gives, and little else of it.
"""

import random
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from html import escape
from pathlib import Path
from typing import Any

import trustme

from tests.e2e.binaries import build_missing, find
from tests.harness.nodes import RedisNode, addresses, failing, redis_nodes
from tests.harness.sidecars import Sidecar
from tests.harness.webhook import Webhook, environ_for, pod_asking, running_webhook
from tests.monitoring.objects import DASHBOARD, Object, query_of
from tests.monitoring.prometheus import Prometheus, prometheus

SEMAPHORES = {"batch/reports-db": 3, "batch/licences": 8, "media/transcode": 4, "ml/gpu": 2, "partner/api": 12}
SECONDS, STEP_SECONDS = 360, 5
RATES = f"{4 * STEP_SECONDS}s"

AUTHORITY = trustme.CA()

UNIT, GAP = 60, 6  # of the dashboard's grid, and between panels
COLOURS = ("#73bf69", "#f2cc0c", "#8ab8ff", "#ff780a", "#f2495c", "#5794f2", "#b877d9", "#705da0", "#37872d", "#fade2a")
NAMED = {"green": "#4b9a3f", "orange": "#d8791f", "red": "#c4384a", "blue": "#3f6fc2", "purple": "#8f52b5"}
BACK, PANEL, TEXT, DIM = "#111217", "#181b1f", "#d8d9da", "#8e8e99"


def run(nodes: Sequence[RedisNode], webhooks: Sequence[Webhook]) -> None:
    """Pods come and go; one node is away for a while, then two are; now and then a pod vanishes."""
    rng = random.Random(7)
    pods: list[tuple[float, Sidecar]] = []
    began = time.monotonic()

    def passed() -> float:
        return time.monotonic() - began

    def live(until: float) -> None:
        while passed() < until:
            semaphore, length = rng.choice(list(SEMAPHORES.items()))
            namespace, key = semaphore.split("/")
            unavailable = "admit" if namespace == "media" else "deny"
            asking = pod_asking(key, length, 20, when_unavailable=unavailable)
            answer = rng.choice(webhooks).ask(asking, namespace=namespace)
            if answer.allowed and not answer.warnings and rng.random() < 0.95:
                pods.append((passed() + rng.uniform(5, 40), Sidecar(answer.container()["command"], answer.env())))
            for end, pod in list(pods):
                if end < passed():
                    pod.close() if rng.random() < 0.1 else pod.terminate()
                    pods.remove((end, pod))
            time.sleep(rng.expovariate(1.2))

    try:
        live(SECONDS * 0.3)
        with failing(nodes[2:], RedisNode.kill, RedisNode.start):
            live(SECONDS * 0.5)
        live(SECONDS * 0.7)
        with failing(nodes[1:], RedisNode.pause, RedisNode.resume):
            live(SECONDS * 0.76)
        live(SECONDS)
    finally:
        for _, pod in pods:
            pod.close()


def draw(source: Prometheus) -> str:
    """The dashboard as SVG."""
    panels = DASHBOARD["panels"]
    height = max(each["gridPos"]["y"] + each["gridPos"]["h"] for each in panels)
    parts = [part for each in panels for part in draw_panel(each, source)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {24 * UNIT} {height * UNIT // 2}" '
        f'font-family="Inter, Helvetica, Arial, DejaVu Sans, sans-serif" font-size="12" fill="{TEXT}">'
        f'<rect width="100%" height="100%" fill="{BACK}"/>{"".join(parts)}</svg>\n'
    )


def draw_panel(panel: Object, source: Prometheus) -> Iterator[str]:
    place = panel["gridPos"]
    width, height = place["w"] * UNIT - GAP, place["h"] * UNIT // 2 - GAP
    yield f'<g transform="translate({place["x"] * UNIT + GAP / 2},{place["y"] * UNIT / 2 + GAP / 2})">'
    if panel["type"] == "row":
        yield text(8, 17, panel["title"], font_weight="bold")
    else:
        yield f'<rect width="{width}" height="{height}" rx="3" fill="{PANEL}" stroke="#2a2d33"/>'
        kinds = {"stat": stat, "table": table, "timeseries": chart, "state-timeline": states}
        yield from kinds[panel["type"]](panel, source, width, height)
        yield text(10, 19, panel["title"], font_weight="bold")
    yield "</g>"


def text(x: float, y: float, what: str, **more: Any) -> str:
    attributes = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in more.items())
    return f'<text x="{x:.1f}" y="{y:.1f}"{attributes}>{escape(what)}</text>'


def spelt(value: float, unit: str | None) -> str:
    """A value as its panel's unit has it."""
    if unit == "percentunit":
        return f"{value:.0%}"
    if unit == "s":
        for seconds, name in ((31_536_000, "years"), (86_400, "days"), (60, "min")):
            if abs(value) >= seconds:
                return f"{value / seconds:.1f} {name}"
        return f"{value:.1f} s" if abs(value) >= 1 else f"{value * 1000:.3g} ms"
    return f"{value:.3g}{' /s' if unit == 'ops' else ''}"


def step_colour(value: float, thresholds: Object) -> str:
    """That of the last threshold which the value has reached."""
    reached = [each["color"] for each in thresholds["steps"] if each["value"] is None or value >= each["value"]]
    return NAMED.get(reached[-1], "none")


def stat(panel: Object, source: Prometheus, width: float, height: float) -> Iterator[str]:
    defaults = panel["fieldConfig"]["defaults"]
    [found] = source.query(query_of(panel["targets"][0], __rate_interval=RATES))
    value = float(found["value"][1])
    yield f'<rect width="{width}" height="{height}" rx="3" fill="{step_colour(value, defaults["thresholds"])}"/>'
    shown = spelt(value, defaults["unit"]) if defaults["unit"] == "s" else f"{value:.0f}"
    yield text(width / 2, height / 2 + 25, shown, font_size=36, text_anchor="middle", font_weight="bold", fill="#fff")


def table(panel: Object, source: Prometheus, width: float, height: float) -> Iterator[str]:
    [naming] = [each["options"]["renameByName"] for each in panel["transformations"] if each["id"] == "organize"]
    rows: dict[str, dict[str, str | float]] = {}
    for target in panel["targets"]:
        for series in source.query(query_of(target)):
            own = {naming[name]: value for name, value in series["metric"].items() if name in naming}
            row = rows.setdefault(own.get("Semaphore") or own["Pod"], {})
            row.update(own)
            if f"Value #{target['refId']}" in naming:
                row[naming[f"Value #{target['refId']}"]] = float(series["value"][1])
    [order] = panel["options"]["sortBy"]
    properties = {
        each["matcher"]["options"]: {one["id"]: one["value"] for one in each["properties"]}
        for each in panel["fieldConfig"]["overrides"]
    }
    names = list(naming.values())
    widths = [3.0 if name in ("Semaphore", "Pod") else 1.2 for name in names]
    starts = [10 + (width - 20) * sum(widths[:number]) / sum(widths) for number in range(len(names))]
    for x, name in zip(starts, names, strict=True):
        yield text(x, 44, name, fill="#6e9fff", font_size=11)
    ordered = sorted(rows.values(), key=lambda row: row[order["displayName"]], reverse=order["desc"])
    for y, row in zip(range(64, int(height), 22), ordered, strict=False):
        for x, name in zip(starts, names, strict=True):
            yield from cell(x, y, row.get(name), properties.get(name, {}))


def cell(x: float, y: float, value: str | float | None, properties: Object) -> Iterator[str]:
    if isinstance(value, float):
        if "thresholds" in properties and step_colour(value, properties["thresholds"]) != "none":
            yield f'<rect x="{x - 4:.0f}" y="{y - 14}" width="60" height="19" fill="{NAMED["orange"]}"/>'
        if properties.get("unit") == "percentunit":
            yield f'<rect x="{x + 40:.0f}" y="{y - 11}" width="{45 * min(1, value):.0f}" height="13" fill="#5794f2"/>'
        [mapping] = properties.get("mappings") or [{"options": {}}]
        mapped = mapping["options"].get(f"{value:.0f}")
        yield text(x, y, mapped["text"] if mapped else spelt(value, properties.get("unit")))
    elif value is not None:
        yield text(x, y, value)


def legend_of(target: Object, series: Object) -> str:
    return re.sub(r"{{(\w+)}}", lambda match: series["metric"].get(match[1], ""), target.get("legendFormat", ""))


def lines_of(panel: Object, source: Prometheus) -> list[tuple[str, list[tuple[float, float]]]]:
    """Legend and points of each series."""
    return [
        (legend_of(target, series), [(at, float(value)) for at, value in series["values"]])
        for target in panel["targets"]
        for series in source.history(query_of(target, __rate_interval=RATES))
    ]


def time_axis(source: Prometheus) -> tuple[float, float]:
    """When the run began and ended."""
    [up, *_] = source.history("up")
    return source.began, up["values"][-1][0]


def chart(panel: Object, source: Prometheus, width: float, height: float) -> Iterator[str]:
    defaults = panel["fieldConfig"]["defaults"]
    lines = [(name, [point for point in points if point[1] == point[1]]) for name, points in lines_of(panel, source)]
    first, last = time_axis(source)
    bars = defaults["custom"]["drawStyle"] == "bars"
    values = [value for _, points in lines for _, value in points]
    if bars:
        stacked: dict[float, float] = {}
        for at, value in (point for _, points in lines for point in points):
            stacked[at] = stacked.get(at, 0) + value
        values = list(stacked.values())
    low = min([0.0, *values, defaults["custom"].get("axisSoftMin", 0)])
    high = max([*values, low + 1e-9, defaults["custom"].get("axisSoftMax", 0)]) * 1.05
    left, top, bottom = 58.0, 34.0, height - 42

    def place(at: float, value: float) -> tuple[float, float]:
        across = left + (width - left - 12) * (at - first) / (last - first)
        return across, bottom - (bottom - top) * (value - low) / (high - low)

    yield from axes(first, last, low, high, place, defaults["unit"])
    base: dict[float, float] = {}
    for number, (name, points) in enumerate(lines):
        colour, as_bars = look(panel, name, number, bars)
        if as_bars:
            thick = max(1.5, place(first + STEP_SECONDS, 0)[0] - left)
            for at, value in points:
                x, y = place(at, base.get(at, 0) + value)
                bar = place(at, base.get(at, 0))[1] - y
                yield f'<rect x="{x:.1f}" y="{y:.1f}" width="{thick:.1f}" height="{bar:.1f}" fill="{colour}"/>'
                base[at] = base.get(at, 0) + value
        elif points:
            yield from curve([(at, *place(at, value)) for at, value in points], colour, defaults["custom"])
    yield from legend(
        [(name, look(panel, name, number, bars)[0]) for number, (name, _) in enumerate(lines)], width, height
    )


def axes(first: float, last: float, low: float, high: float, place: Any, unit: str) -> Iterator[str]:
    for part in range(4):
        value = low + (high - low) * part / 3
        (x0, y), (x1, _) = place(first, value), place(last, value)
        yield f'<line x1="{x0:.1f}" y1="{y:.1f}" x2="{x1:.1f}" y2="{y:.1f}" stroke="#2f3238"/>'
        yield text(x0 - 6, y + 4, spelt(value, unit), text_anchor="end", font_size=10, fill=DIM)
    for part in range(4):
        at = first + (last - first) * part / 3
        x, y = place(at, low)
        anchor = ("start", "middle", "middle", "end")[part]
        yield text(x, y + 14, time.strftime("%H:%M:%S", time.gmtime(at)), text_anchor=anchor, font_size=10, fill=DIM)


def curve(points: Sequence[tuple[float, float, float]], colour: str, custom: Object) -> Iterator[str]:
    """A line that is interrupted where scrapes are missing."""
    path, before = "", None
    for at, x, y in points:
        if before is None or at - before[0] > STEP_SECONDS:
            path += f"M{x:.1f} {y:.1f}"
        else:
            path += f"H{x:.1f}V{y:.1f}" if custom.get("lineInterpolation") == "stepAfter" else f"L{x:.1f} {y:.1f}"
        before = (at, x, y)
    yield f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>'


def look(panel: Object, name: str, number: int, bars: bool) -> tuple[str, bool]:
    """The colour of a series, and whether it is drawn as bars."""
    colour = COLOURS[number % len(COLOURS)]
    for override in panel["fieldConfig"]["overrides"]:
        if re.fullmatch(override["matcher"]["options"], name):
            for each in override["properties"]:
                if each["id"] == "color":
                    colour = NAMED[each["value"]["fixedColor"]]
                bars = bars or each["id"] == "custom.drawStyle"
    return colour, bars


def legend(entries: Sequence[tuple[str, str]], width: float, height: float) -> Iterator[str]:
    x = 10.0
    for name, colour in entries:
        needed = 18 + 6.1 * len(name)
        if x + needed > width:
            yield text(x, height - 9, "…", font_size=11)
            return
        yield f'<rect x="{x:.1f}" y="{height - 15:.1f}" width="10" height="4" fill="{colour}"/>'
        yield text(x + 14, height - 9, name, font_size=11)
        x += needed + 8


def states(panel: Object, source: Prometheus, width: float, height: float) -> Iterator[str]:
    lines = lines_of(panel, source)
    first, last = time_axis(source)
    [mapping] = panel["fieldConfig"]["defaults"]["mappings"]
    left, tall = 110.0, (height - 60) / len(lines)
    for number, (name, points) in enumerate(lines):
        y = 34 + number * tall
        yield text(left - 8, y + tall / 2, name, text_anchor="end", font_size=11)
        for at, value in points:
            x = left + (width - left - 12) * (at - first) / (last - first)
            wide = (width - left - 12) / (last - first) * STEP_SECONDS + 0.5
            colour = NAMED[mapping["options"][f"{value:.0f}"]["color"]]
            yield f'<rect x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{tall * 0.8:.1f}" fill="{colour}"/>'
    for x, at, anchor in ((left, first, "start"), (width - 12, last, "end")):
        shown = time.strftime("%H:%M:%S", time.gmtime(at))
        yield text(x, height - 9, shown, text_anchor=anchor, font_size=10, fill=DIM)


def certificate(folder: Path) -> Path:
    """Where one is that is valid for as long as cert-manager's."""
    issued = AUTHORITY.issue_cert("localhost", "127.0.0.1", not_after=datetime.now(UTC) + timedelta(days=90))
    issued.private_key_pem.write_to_path(folder / "tls.key")
    issued.cert_chain_pems[0].write_to_path(folder / "tls.crt")
    return folder


def main(file: Path) -> None:
    build_missing("prometheus")
    with ExitStack() as stack:
        folder = certificate(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        nodes = stack.enter_context(redis_nodes())
        environ = environ_for(addresses(nodes), RESERVATION_SECONDS="60")
        webhooks = [
            stack.enter_context(running_webhook(environ, cert_dir=folder, authority=AUTHORITY)) for _ in range(2)
        ]
        pods = ("webhook-4kq8d", "webhook-x2x7l")
        targets = {pod: webhook.metrics_port for pod, webhook in zip(pods, webhooks, strict=True)}
        source = stack.enter_context(prometheus(find("prometheus"), folder, targets, STEP_SECONDS))
        run(nodes, webhooks)
        file.write_text(draw(source))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
