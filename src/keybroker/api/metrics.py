"""Prometheus metrics, by the names and labels that Trustee documents.

A resource's path can itself be a secret (a customer's name, a project), so it is a label only as
the configuration says: ``hashed`` (default), ``plain`` or ``off``. Hashed is a keyed digest: who
reads the metrics can tell two resources apart, but cannot test a guess of a name.
"""

import hashlib
import hmac
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client import multiprocess as prometheus_multiprocess

from keybroker.api import shared_metrics

ResourceLabels = Literal["hashed", "plain", "off"]

#: As Trustee's documentation gives them.
_DURATION_BUCKETS = (0.0005, 0.001, 0.005, 0.01, 0.05, 0.5, 1.0)
_SIZE_BUCKETS = (32, 128, 512, 2048, 8192)

#: Resources whose counters are at hand; others are looked up each time.
REMEMBERED_COUNTERS = 4096


class Metrics:
    """The metrics of one process, or of all workers where they share a directory.

    Args:
        version: label of ``kbs_build_info``.
        resource_labels: how resource paths appear.
        label_key: key of the digest for ``hashed``.
    """

    def __init__(self, *, version: str, resource_labels: ResourceLabels, label_key: bytes) -> None:
        registry = CollectorRegistry()
        self._registry = registry
        self._resource_labels = resource_labels
        self._label_key = label_key
        self._resource_counters: dict[tuple[str, str], Counter] = {}

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        self.requests = counter("kbs_http_requests", "Requests to protocol endpoints.")
        self.duration = Histogram(
            "kbs_http_request_duration_seconds",
            "Handling time of requests.",
            buckets=_DURATION_BUCKETS,
            registry=registry,
        )
        self.request_size = Histogram(
            "kbs_http_request_size_bytes",
            "Sizes of request bodies.",
            buckets=_SIZE_BUCKETS,
            registry=registry,
        )
        self.response_size = Histogram(
            "kbs_http_response_size_bytes",
            "Sizes of response bodies.",
            buckets=_SIZE_BUCKETS,
            registry=registry,
        )
        self.active = Gauge(
            "kbs_http_active_connections",
            "Requests being handled now.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.resource_reads = counter("kbs_resource_reads", "Reads of a resource.", "resource_path")
        self.resource_writes = counter(
            "kbs_resource_writes", "Writes of a resource.", "resource_path"
        )
        self.resource_deletes = counter(
            "kbs_resource_deletes", "Deletions of a resource.", "resource_path"
        )
        self.policy_evaluations = counter("kbs_policy_evaluations", "Resource policy decisions.")
        self.policy_approvals = counter("kbs_policy_approvals", "Requests that policy allowed.")
        self.policy_violations = counter("kbs_policy_violations", "Requests that policy denied.")
        self.policy_errors = counter("kbs_policy_errors", "Policies that failed to decide.")
        self.attestation_requests = counter("kbs_attestation_requests", "Attestation requests.")
        self.attestation_successes = counter(
            "kbs_attestation_successes", "Attestations that verified.", "tee_type"
        )
        self.attestation_failures = counter(
            "kbs_attestation_failures", "Attestations that did not verify.", "tee_type"
        )
        self.attestation_errors = counter(
            "kbs_attestation_errors", "Attestation requests that could not be processed."
        )
        self.auth_requests = counter("kbs_auth_requests", "Challenge requests.")
        self.auth_successes = counter("kbs_auth_successes", "Challenges issued.")
        self.auth_errors = counter("kbs_auth_errors", "Challenge requests refused.")
        Gauge(
            "kbs_build_info",
            "What is running; the value is always 1.",
            ("version", "git_hash", "build_date"),
            registry=registry,
            multiprocess_mode="max",
        ).labels(version, "", "").set(1)

    def resource(self, method: str, path: str) -> Counter | None:
        """Return the counter of a method on a resource, or None where none counts it."""
        known = self._resource_counters.get((method, path))
        if known is not None:
            return known
        counter = {
            "GET": self.resource_reads,
            "POST": self.resource_writes,
            "DELETE": self.resource_deletes,
        }.get(method)
        if counter is None:
            return None
        found: Counter = counter.labels(self._resource_label(path))
        if len(self._resource_counters) < REMEMBERED_COUNTERS:
            self._resource_counters[method, path] = found
        return found

    def _resource_label(self, path: str) -> str:
        if self._resource_labels == "plain":
            return path
        if self._resource_labels == "off":
            return ""
        return hmac.new(self._label_key, path.encode(), hashlib.sha256).hexdigest()[:16]

    def render(self) -> bytes:
        """Return the exposition text, summed over all workers."""
        if shared_metrics.are_shared():
            registry = CollectorRegistry()
            prometheus_multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
            return generate_latest(registry)
        return generate_latest(self._registry)
