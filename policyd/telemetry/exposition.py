"""The metrics of all processes of one server, as one page for Prometheus.

Each process has its files (folder.py). The counts of a process that has ended are added to files
that stand for all such processes, and its gauges go.
"""

import os
import re
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from policyd.telemetry.reading import Reading

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
_FILE = re.compile(r"(counter|histogram|gauge_\w+)_(\d+)\.db")
_ENDED = "ended"
"""Stands in a file's name for all processes that have ended."""


class Exposition:
    """Gives the metrics whose files are in `folder`, and the gauges that `read` returns."""

    def __init__(self, folder: Path, read: Callable[[], Reading]) -> None:
        self._folder = folder
        self._read = read
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._one_at_a_time = threading.Lock()
        MultiProcessCollector(self._registry, str(folder))

    def page(self) -> bytes:
        """All metrics, in Prometheus's text format. It reads files, so call it in a thread."""
        with self._one_at_a_time:
            self._tend()
            return generate_latest(self._registry)

    def tend(self) -> None:
        """Merge the files of processes that have ended, lest they fill the folder."""
        with self._one_at_a_time:
            self._tend()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """See prometheus_client.registry.Collector."""
        families: dict[str, GaugeMetricFamily] = {}
        for metric, labels, value in self._read():
            family = families.get(metric.name)
            if family is None:
                family = families[metric.name] = GaugeMetricFamily(
                    metric.name, metric.meaning, labels=metric.labels
                )
            family.add_metric(labels, value)
        yield from families.values()

    def _tend(self) -> None:
        ended: dict[int, list[tuple[str, Path]]] = defaultdict(list)
        for path in self._folder.iterdir():
            found = _FILE.fullmatch(path.name)
            if found and not _is_running(int(found[2])):
                ended[int(found[2])].append((found[1], path))
        for process, files in ended.items():
            mark_process_dead(process, str(self._folder))
            for kind, path in files:
                if not kind.startswith("gauge"):
                    self._merge(kind, path)

    def _merge(self, kind: str, path: Path) -> None:
        """Add the counts of `path` to those of other processes that have ended."""
        values = MmapedDict(str(self._folder / f"{kind}_{_ENDED}.db"))
        try:
            for key, value, _, _ in MmapedDict.read_all_values_from_file(str(path)):
                values.write_value(key, values.read_value(key)[0] + value, 0.0)
        finally:
            values.close()
        path.unlink()


def _is_running(process: int) -> bool:
    """Whether `process` is this process, or a child of it that runs."""
    if process == os.getpid():
        return True
    try:
        # WNOWAIT: its status stays for the code that waits for the child.
        return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    except ChildProcessError:
        return False
