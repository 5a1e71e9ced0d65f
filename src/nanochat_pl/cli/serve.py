"""`nanochat-pl serve CKPT …`: OpenAI's API and a web page over trained models; see docs/serving.md.

Errors of the command line are found before torch is loaded.
"""

import ipaddress
import logging
import math
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from nanochat_pl.cli.arguments import Arguments, refuse, share_cores
from nanochat_pl.config.suggestions import suggestions
from nanochat_pl.serve.settings import Limits

__all__ = ["main"]

_COUNTS = {
    "max_tokens": "most new tokens of an answer",
    "max_choices": "answers of a request: n times prompts",
    "max_messages": "of a conversation",
    "max_message_chars": "of one message",
    "max_total_chars": "of a request",
}
"""Limits that are options of the same name, with their help."""


def main(arguments: list[str]) -> int:
    """Serve until a signal comes; return 0, or 2 for what cannot be served."""
    share_cores()
    parser = _parser()
    try:
        options = parser.parse_args(arguments)
        models = [_split_name(text) for text in options.models]
        _check_numbers(options)
        for origin in options.cors:
            _check_origin(origin)
        for name in options.allow_host:
            _check_host(name)
        _check_proxies(options.trust_proxy)
        _check_places(models)
        keys = _read_keys(options.api_key_env, options.api_key_file)
        with _listen(options.host, options.port) as listening:
            return _serve(options, models, keys, listening)
    except (ValueError, OSError) as error:
        return refuse(error)


def _parser() -> Arguments:
    parser = Arguments(
        prog="nanochat-pl serve",
        description="Serve models: a web page at /, OpenAI's API below /v1. Only this machine reaches it by default.",
        epilog="nanochat-pl serve outputs/base/d4 tutor=outputs/sft/d4 --port 8000",
    )
    add = parser.add_argument
    add("models", nargs="+", metavar="[NAME=]CKPT", help="what `load_model` opens; the first is the default model")
    add("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 = all, for others (default: %(default)s)")
    add("--port", type=int, default=8000, help="0 = any free one (default: %(default)s)")
    add("--api-key-env", metavar="NAME", help="environment variable with the key that requests must bear")
    add("--api-key-file", type=Path, metavar="FILE", help="file with such keys, one a line")
    add("--cors", nargs="+", default=[], metavar="ORIGIN", help="pages of other origins that may use it; * = all")
    add("--trust-proxy", metavar="ADDRESSES", help="proxies whose X-Forwarded-For tells the client's address")
    add(
        "--allow-host",
        nargs="+",
        default=[],
        metavar="NAME",
        help="by which it may be called too, as by a proxy; * = any",
    )
    add("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"), help="(default: %(default)s)")
    add("--dtype", default="auto", choices=("auto", "float32", "bfloat16"), help="of decoding (default: %(default)s)")
    add("--batch-size", type=int, default=16, metavar="ROWS", help="answers at once, a model (default: %(default)s)")
    add("--queue", type=int, default=256, metavar="N", help="answers that may wait, a model (default: %(default)s)")
    add("--queue-per-client", type=int, metavar="N", help="of one client, told by key and address (default: all)")
    for name, what in _COUNTS.items():
        default = getattr(Limits, name)
        add(f"--{name.replace('_', '-')}", type=int, default=default, help=f"{what} (default: %(default)s)")
    add(
        "--request-timeout",
        type=float,
        default=Limits.request_timeout_s,
        metavar="S",
        help="of an answer, waiting too (default: 120)",
    )
    add("--header-timeout", type=float, default=10.0, metavar="S", help="for a request's head to come (default: 10)")
    add(
        "--context",
        default=Limits.context,
        choices=("refuse", "drop"),
        help="what is done with chats that are too long (default: %(default)s)",
    )
    add("--grace", type=float, default=20.0, metavar="S", help="for answers under way when it ends (default: 20)")
    return parser


def _serve(options: Any, models: Sequence[tuple[str | None, str]], keys: tuple[str, ...], listening: Any) -> int:
    import uvicorn

    from nanochat_pl.checkpoint import load_model
    from nanochat_pl.runtime import pick_device
    from nanochat_pl.serve.app import create_app
    from nanochat_pl.serve.middleware import timed_protocol
    from nanochat_pl.serve.server import ServedModel, model_id, serve_model

    limits = Limits(
        api_keys=keys,
        cors_origins=tuple(options.cors),
        hosts=_allowed_hosts(options, listening),
        **{name: getattr(options, name) for name in _COUNTS},
        # a character is at most twelve bytes of JSON (two escaped surrogates); the rest is for the structure around it
        max_body_bytes=12 * options.max_total_chars + 256 * options.max_messages + 65_536,
        request_timeout_s=options.request_timeout,
        context=options.context,
    )
    device, served = pick_device(options.device), list[ServedModel]()
    _check_names(models)
    for name, path in models:
        loaded = load_model(path, device)
        name = name or model_id(loaded.stage, loaded.path, [other.id for other in served])
        print(f"{name}: {loaded.path}, step {loaded.step}, on {device}", flush=True)
        served.append(
            serve_model(
                loaded,
                name,
                batch_size=options.batch_size,
                queue_limit=options.queue,
                client_limit=options.queue_per_client,
                dtype=options.dtype,
                suggestions=suggestions(loaded.stage, loaded.config),
            )
        )
    app = create_app(served, limits)

    class DrainingServer(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            print(f"shutting down; answers under way have {options.grace:g} s", file=sys.stderr, flush=True)
            app.state.server.drain(options.grace)
            await super().shutdown(sockets)

    config = uvicorn.Config(
        app,
        http=timed_protocol(options.header_timeout),
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=options.trust_proxy is not None,
        forwarded_allow_ips=options.trust_proxy,
        timeout_graceful_shutdown=int(options.grace) + 3,  # when it is over, the workers end their answers themselves
    )
    _configure_logging()
    _print_addresses(listening, bool(keys))
    # uvicorn raises the signal that ended it once more, for earlier handlers; here it has done its work
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    server = DrainingServer(config)
    server.run(sockets=[listening])
    return 0 if server.started else 1


def _split_name(text: str) -> tuple[str | None, str]:
    """Split NAME=PATH; a path that exists is a path, whatever characters it holds."""
    name, equals, path = text.partition("=")
    if not equals or Path(text).exists() or ("/" in name.split("=")[0] and not path):
        return None, text
    if not name or not name.isprintable() or len(name) > 100:
        raise ValueError(f"the name in {text!r} must be 1 to 100 printable characters, as in tutor=outputs/sft/d4")
    return name, path


def _check_numbers(options: Any) -> None:
    """Refuse numbers that would allow nothing, naming their options."""
    for name in ("batch_size", "queue", "queue_per_client", *_COUNTS):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} {value} must be 1 or more")
    for name in ("request_timeout", "header_timeout"):
        if not getattr(options, name) > 0:
            option, value = name.replace("_", "-"), getattr(options, name)
            raise ValueError(f"--{option} {value:g} must be a number of seconds above 0")
    if not 0 <= options.grace < math.inf:
        raise ValueError(f"--grace {options.grace:g} must be a number of seconds from 0 up")


def _check_origin(text: str) -> None:
    """Refuse what no browser sends as `Origin`, since it would admit nobody."""
    if text in ("*", "null"):  # null = a page that is opened as a file
        return
    try:
        parts = urlsplit(text if "://" in text else f"https://{text}")
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise ValueError(f"--cors {text}: {error}; write an origin, such as https://example.com") from None
    shown = f"[{host}]" if ":" in host else host
    is_default = (parts.scheme, port) in (("http", 80), ("https", 443))
    origin = f"{parts.scheme}://{shown}" + ("" if port is None or is_default else f":{port}")
    if not host:
        raise ValueError(f"--cors {text!r} names no host; write an origin, such as https://example.com, or *")
    if "://" not in text:
        raise ValueError(f"--cors {text} has no scheme, and an origin has one; write {origin} or http://{text}")
    if text != origin:
        raise ValueError(f"--cors {text} is not how browsers name an origin; write {origin}")


def _check_host(text: str) -> None:
    """Refuse what no client sends as `Host`, since it would admit nobody."""
    from nanochat_pl.serve.middleware import host_name

    if text == "*" or host_name(text) == text:
        return
    parts = urlsplit(text if "://" in text else f"http://{text}")
    name = host_name(parts.netloc) or "chat.example.com"
    raise ValueError(
        f"--allow-host {text} is no name as clients call a server, without scheme, port and path; write {name}, or * "
        "for any"
    )


def _check_proxies(text: str | None) -> None:
    """Refuse what is not the address of a proxy, since no X-Forwarded-For would be believed."""
    for address in [] if text in (None, "*") else str(text).split(","):
        try:
            ipaddress.ip_network(address.strip())
        except ValueError:
            raise ValueError(
                f"--trust-proxy {text}: {address!r} is no address; write them as 127.0.0.1,10.0.0.0/8, or * for any"
            ) from None


def _check_places(models: Sequence[tuple[str | None, str]]) -> None:
    """Refuse paths without a model and names that occur twice, as far as they are known without torch."""
    from nanochat_pl.checkpoint import check_model
    from nanochat_pl.paths import run_name

    taken: dict[object, str] = {}
    for name, path in models:
        source = check_model(path)
        place: object = name if name is not None else path
        if name is None and source is not None:
            place = source.file.resolve().parent, run_name(source.file)
        if place in taken:
            alike = f"called {name}" if name is not None else "called the same"
            raise ValueError(
                f"two models would be {alike}, {taken[place]} and {path}; give one of them another name: NAME={path}"
            )
        taken[place] = path


def _check_names(models: Sequence[tuple[str | None, str]]) -> None:
    """Refuse two models of one name before the first is loaded; only files whose runs share a name are opened."""
    from nanochat_pl.checkpoint import check_model, read_model
    from nanochat_pl.paths import run_name
    from nanochat_pl.serve.server import model_id

    taken = [name for name, _ in models if name is not None]
    here = [(source.file, path) for name, path in models if name is None and (source := check_model(path)) is not None]
    runs = [run_name(file) for file, _ in here] + [name.partition("/")[2] for name in taken]
    for file, path in here:
        if runs.count(run_name(file)) > 1:
            stored = read_model(path)
            taken.append(model_id(stored.stage, stored.file, taken))


def _read_keys(variable: str | None, file: Path | None) -> tuple[str, ...]:
    keys: list[str] = []
    if variable is not None:
        if not os.environ.get(variable):
            raise ValueError(f"--api-key-env {variable}: this environment variable is empty or not set")
        keys.append(os.environ[variable])
    if file is not None:
        try:
            text = file.read_text(encoding="utf-8")
        except OSError as error:
            raise ValueError(
                f"--api-key-file {file} cannot be read ({error.strerror}); write keys there, one a line"
            ) from error
        lines = [line.strip() for line in text.splitlines()]
        found = [line for line in lines if line and not line.startswith("#")]
        if not found:
            raise ValueError(f"--api-key-file {file} holds no key; write one a line")
        keys += found
    return tuple(keys)


def _listen(host: str, port: int) -> socket.socket:
    """Bind the port before a model is loaded, so that a port in use is an error at once."""
    if not 0 <= port <= 65_535:
        raise ValueError(f"--port {port} must lie between 0 (any free one) and 65535")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        raise OSError(f"cannot listen at {host}:{port}: {error.strerror}; choose another --port or --host") from None


def _is_loopback(listening: socket.socket) -> bool:
    return ipaddress.ip_address(listening.getsockname()[0].partition("%")[0]).is_loopback


def _allowed_hosts(options: Any, listening: socket.socket) -> tuple[str, ...]:
    """Return the host names that requests may use; none = any name.

    A server that only its own machine reaches, directly or through a proxy, knows all its names. A server that other
    machines reach has names that it cannot know, so that any name is allowed unless --allow-host lists them.
    """
    from nanochat_pl.serve.middleware import host_name

    if "*" in options.allow_host or not (options.allow_host or _is_loopback(listening)):
        return ()
    own = host_name(f"[{options.host.partition('%')[0]}]" if ":" in options.host else options.host)
    return tuple(dict.fromkeys((*options.allow_host, own, "localhost", "127.0.0.1", "[::1]")))


def _print_addresses(listening: socket.socket, has_key: bool) -> None:
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    is_everywhere = ipaddress.ip_address(host.partition("%")[0]).is_unspecified
    here = "localhost" if is_everywhere else shown  # 0.0.0.0 is no address that one can go to
    print(f"page: http://{here}:{port}/   API: http://{here}:{port}/v1   figures: /stats, /metrics", flush=True)
    if is_everywhere:
        print(f"for others: http://<this machine's name or address>:{port}/", flush=True)
    if _is_loopback(listening):
        print(
            "only this machine reaches it; for others: --host 0.0.0.0 and --api-key-env NAME, "
            "behind a proxy with TLS where the network is not your own",
            flush=True,
        )
    elif not has_key:
        print(
            f"warning: whoever reaches {shown}:{port} may use it and read its figures, since there is no key; "
            "set --api-key-env NAME or --api-key-file FILE",
            file=sys.stderr,
            flush=True,
        )


def _configure_logging() -> None:
    """Log warnings, and one line for each request, to standard error."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    access = logging.getLogger("nanochat_pl.serve.access")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    access.addHandler(handler)
    access.setLevel(logging.INFO)
    access.propagate = False
