"""What all tests share."""

import os
import tempfile

# prometheus_client looks at it when it is imported, which the app does; see app/metrics.py.
os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", tempfile.mkdtemp(prefix="alsph-metrics-"))
