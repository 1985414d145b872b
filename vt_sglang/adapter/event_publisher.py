# SPDX-License-Identifier: Apache-2.0
"""Where events are published: SGLang's `--kv-events-config`, with loopback where it would be every interface."""

import json
import re
from typing import Any

import zmq
from sglang.srt.disaggregation.kv_events import EventPublisherFactory, KVEventsConfig, ZmqEventPublisher

from vt_sglang.adapter.plugin import BACKEND
from vt_sglang.config import VTensorConfig

PUBLISHER = "vtensor-zmq"
"""The name under which SGLang finds `VTensorEventPublisher`."""

DEFAULT_ENDPOINT = "tcp://127.0.0.1:5557"

_TCP = re.compile(r"tcp://(?P<host>[^/]+):(?P<port>\d+)")
_LOOPBACK = re.compile(r"tcp://(127\.\d+\.\d+\.\d+|\[::1\]):")


class VTensorEventPublisher(ZmqEventPublisher):
    """SGLang's publisher, but that it listens on a loopback address too, where SGLang's would connect to it; and a
    reader of the replay that is slow loses nothing."""

    def _socket_setup(self) -> None:
        self._pub = self._open(zmq.PUB, self._endpoint, self._hwm, bind=listens(self._endpoint))
        if self._replay_endpoint is not None:
            # SGLang's limit of 1,000 messages would drop what does not fit, the mark of the end included.
            self._replay = self._open(zmq.ROUTER, self._replay_endpoint, 0, bind=True)

    def _open(self, kind: int, endpoint: str, high_water_mark: int, *, bind: bool) -> Any:
        opened = self._ctx.socket(kind)
        opened.set_hwm(high_water_mark)
        opened.setsockopt(zmq.IPV6, int("[" in endpoint))
        try:
            (opened.bind if bind else opened.connect)(endpoint)
        except zmq.ZMQError as error:
            opened.close(linger=0)
            raise RuntimeError(
                f"KV events cannot be published at {endpoint} ({error.strerror}): name another endpoint in "
                "--kv-events-config"
            ) from None
        return opened


def listens(endpoint: str) -> bool:
    """Whether a publisher binds this endpoint: SGLang's rule, and loopback addresses."""
    wildcard = "*" in endpoint or "::" in endpoint or "0.0.0.0" in endpoint
    return wildcard or endpoint.startswith(("ipc://", "inproc://")) or _LOOPBACK.match(endpoint) is not None


def register_publisher() -> None:
    """Let SGLang find the publisher."""
    if PUBLISHER not in EventPublisherFactory._registry:
        EventPublisherFactory.register_publisher(PUBLISHER, VTensorEventPublisher)


def event_block_tokens(server_args: Any) -> int:
    """Tokens of the blocks that events tell of; 0 where none are published."""
    if not server_args.kv_events_config:
        return 0
    config = KVEventsConfig.from_cli(server_args.kv_events_config)
    return 0 if config.publisher == "null" else VTensorConfig.from_environment().event_block_tokens


def resolve_events(server_args: Any) -> None:
    """Complete `--kv-events-config`: this project's publisher, on loopback where no endpoint is named. ValueError, with
    what to do, for what cannot be."""
    if not server_args.kv_events_config:
        return
    try:
        given = json.loads(server_args.kv_events_config)
        KVEventsConfig.model_validate(given)
    except ValueError as error:
        raise _refused(f"is not what SGLang reads ({' '.join(str(error).split())})") from None
    if given.get("publisher", "null") == "null":
        return
    if given["publisher"] not in ("zmq", PUBLISHER):
        raise _refused(f"names the publisher {given['publisher']!r}; with --radix-cache-backend {BACKEND} it is zmq")
    given["publisher"] = PUBLISHER
    given["endpoint"] = _checked(given.get("endpoint") or DEFAULT_ENDPOINT, "endpoint")
    if given.get("replay_endpoint"):
        given["replay_endpoint"] = _checked(given["replay_endpoint"], "replay_endpoint")
        if given["replay_endpoint"].rsplit(":", 1)[1] == given["endpoint"].rsplit(":", 1)[1]:
            raise _refused("has endpoint and replay_endpoint at one port; give them two")
    server_args.kv_events_config = json.dumps(given)


def describe_publisher(result: Any, server_args: Any) -> Any:
    """AFTER `ServerArgs.describe_kv_events_publisher`, which /server_info shows to routers: the size of the blocks that
    are sent, where SGLang's is the page size; and the protocol's name, not the class's."""
    from vt_sglang.adapter.arguments import wanted

    if result is not None and wanted(server_args):
        result = result | {"publisher": "zmq", "block_size": event_block_tokens(server_args)}
    return result


def _checked(endpoint: str, name: str) -> str:
    if endpoint.startswith(("ipc://", "inproc://")):
        return endpoint
    found = _TCP.fullmatch(endpoint)
    if found is None or not 0 < int(found["port"]) < 65536:
        raise _refused(f"has the {name} {endpoint!r}; write for example {DEFAULT_ENDPOINT}, or tcp://*:5557 for all")
    return endpoint.replace("//localhost:", "//127.0.0.1:")  # ZeroMQ binds addresses, not names


def _refused(reason: str) -> ValueError:
    return ValueError(f"--kv-events-config {reason}")
